"""The keystore that authenticates the proxy to the CA: PKCS#12, checked before it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import crypto
from ..errors import CryptoError, SettingsError

__all__ = ["MAX_KEYSTORE", "ClientKeystore", "open_keystore"]

MAX_KEYSTORE = 1 << 20
SOON = 30 * 86_400
KEY_TYPES = {
    "rsa_2048", "rsa_3072", "rsa_4096", "rsa_8192",
    "ec_prime256v1", "ec_secp384r1", "ec_secp521r1", "ecdsa_ed25519", "ed448",
}  # fmt: skip
_PATH = "--keystore"


@dataclass(frozen=True, slots=True)
class ClientKeystore:
    """key, cert and chain authenticate us; trust are the certificates by which the server is trusted."""

    key: crypto.Key = field(repr=False)
    cert: crypto.Certificate
    chain: tuple[crypto.Certificate, ...]
    trust: tuple[crypto.Certificate, ...]
    warnings: tuple[str, ...]


def open_keystore(data: bytes, password: str, now: int, *, stored: bool = False) -> ClientKeystore:
    """The keystore, fit for use at `now`; SettingsError in words otherwise. stored: it is in use already, so that its
    end is told among the warnings: what it holds can still be shown, and the rest of the proxy goes on."""
    if len(data) > MAX_KEYSTORE:
        raise SettingsError(_PATH, "is larger than 1 MiB")
    _know(data)
    try:
        store = crypto.read_pfx(data, password.encode())
    except CryptoError as err:
        raise _refusal(err) from None
    if store.key is None or store.cert is None:
        raise SettingsError(_PATH, "holds no private key with its certificate")
    cert = crypto.parse_certificate(store.cert)
    chain = tuple(crypto.parse_certificate(each) for each in store.chain)
    others = _readable(store.trusted)
    if store.key.type not in KEY_TYPES:
        raise SettingsError(
            _PATH, f"its key is of type {store.key.type}", hint="possible are " + " ".join(sorted(KEY_TYPES))
        )
    expired = now >= cert.not_after
    if expired and not stored:
        raise SettingsError(
            _PATH, f"its client certificate {cert.cn!r} has expired", hint="get a new keystore from the PKI"
        )
    trust = (*chain, *others)
    if not trust:
        raise SettingsError(
            _PATH,
            "holds neither the web certificate of the EST server nor a CA certificate: nothing to trust the server by",
            hint="export the keystore with the server's certificate, or the CA that issued it, in it",
        )
    warnings = []
    if "no-mac" in store.warnings:
        warnings.append("the keystore has no integrity check (MAC)")
    if "trailing-bytes" in store.warnings:
        warnings.append("the keystore has bytes after its end, which were passed over")
    if expired:
        warnings.append("the client certificate has expired")
    elif now < cert.not_before:
        warnings.append("the client certificate is not valid yet")
    elif cert.not_after - now < SOON:
        warnings.append(f"the client certificate expires in {(cert.not_after - now) // 86_400} days")
    if not chain and not cert.self_issued:
        warnings.append(
            "the keystore holds no CA certificate of the client certificate; the server must know it"
        )
    return ClientKeystore(store.key, cert, chain, trust, tuple(warnings))


def _readable(certs: list[bytes]) -> tuple[crypto.Certificate, ...]:
    found = []
    for each in certs:
        try:
            found.append(crypto.parse_certificate(each))
        except CryptoError:
            continue
    return tuple(found)


def _know(data: bytes) -> None:
    """Names what is often given by mistake."""
    if not data:
        raise SettingsError(_PATH, "is empty")
    if data[:4] in {b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce"}:
        raise SettingsError(
            _PATH,
            "is a Java keystore (JKS), not PKCS#12",
            hint="convert it: keytool -importkeystore -srckeystore F -destkeystore F.p12 -deststoretype PKCS12",
        )
    if b"-----BEGIN " in data[:4096]:
        raise SettingsError(
            _PATH,
            "is PEM, not PKCS#12",
            hint="make one of it: openssl pkcs12 -export -in cert.pem -inkey key.pem -certfile chain.pem -out keystore.p12",
        )


def _refusal(err: CryptoError) -> SettingsError:
    if err.code == "PASSWORD":
        return SettingsError(
            "--keystore-password-file",
            "the password does not open it",
            hint="keystore and keys must share one password",
        )
    why = err.reasons[0] if err.reasons else err.text
    return SettingsError(
        _PATH, f"cannot be used: {why}", hint="it must be PKCS#12 with key, certificate and chain"
    )
