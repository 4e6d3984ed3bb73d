"""The façade over the native core, and its only importer.

Data goes in as bytes and comes out as values; private keys stay behind `Key`. Every failure is a
CryptoError with the core's code and reasons. Imports stay few: `igel-certs status` pays for each.
"""

from __future__ import annotations

import binascii
from functools import lru_cache

from . import errors
from ._core import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

__all__ = [
    "Certificate",
    "CertificateSet",
    "Envelope",
    "Key",
    "Keystore",
    "Password",
    "SignedMessage",
    "cms_certificates",
    "libcrypto_version",
    "open_envelope",
    "parse_certificate",
    "read_pfx",
    "sha256",
    "spki_type",
    "split_list",
    "verify",
    "verify_chain",
    "write_pfx",
]

ITERATIONS = 100_000
LEAST_ITERATIONS = 1000
PARSED_KEPT = 128  # certificates, of about 5 kB each
GLANCE = 0.1  # seconds between two looks at a key generation
_KEY_OUT = ffi.typeof("igc_key **")
_PURPOSES = {"any": 0, "server": 1, "client": 2}


def _check(operation: str, rc: int) -> None:
    """The one gate: what the core reports becomes a CryptoError."""
    if rc != 0:
        reasons = ffi.string(lib.igc_reasons()).decode("utf-8", "replace")
        raise errors.CryptoError(
            operation,
            ffi.string(lib.igc_error_name(rc)).decode(),
            ffi.string(lib.igc_error_text(rc)).decode(),
            tuple(reasons.splitlines()),
        )


def _bytes(buf: Any) -> bytes:
    """The content of a buffer, which the core keeps owning."""
    return bytes(ffi.buffer(buf.data, buf.len)) if buf.len else b""


def _take(buf: Any) -> bytes:
    """The content of an output buffer, which is wiped and freed."""
    try:
        return _bytes(buf)
    finally:
        lib.igc_buf_free(ffi.addressof(buf) if ffi.typeof(buf).kind == "struct" else buf)


def libcrypto_version() -> str:
    return str(ffi.string(lib.igc_version()).decode())


def sha256(data: bytes) -> bytes:
    """As hashlib's, which takes as long to load as many a run of the device has to do."""
    digest = ffi.new("uint8_t[32]")
    lib.igc_sha256(data, len(data), digest)
    return bytes(digest)


# ---- passwords ----------------------------------------------------------------------------------


class Password:
    """A password, with the key that is made of it (PBKDF2, RFC 8018 5.2) once, for all that is written under it.

    iterations, 1000 to 10 000 000, make guessing dear; where the password is empty they are the least.
    """

    __slots__ = ("_handle",)

    def __init__(self, password: bytes, iterations: int = ITERATIONS) -> None:
        out = ffi.new("igc_secret **")
        rounds = iterations if password else LEAST_ITERATIONS
        _check("using a password", lib.igc_secret_new(password, len(password), rounds, out))
        self._handle = ffi.gc(out[0], lib.igc_secret_free)


# ---- keys ---------------------------------------------------------------------------------------


class Key:
    """A private key inside the core. It leaves through a descriptor only, never as bytes."""

    __slots__ = ("_handle",)

    _handle: Any

    def __init__(self) -> None:
        raise TypeError("a Key comes from Key.generate() or Key.read()")

    @staticmethod
    def _own(pointer: Any) -> Key:
        key = object.__new__(Key)
        key._handle = ffi.gc(pointer, lib.igc_key_free)
        return key

    @staticmethod
    def generate(
        type: str,
        *,
        generator: str = "native",
        threads: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Key:
        """A new key of one of the twelve types. RSA takes from 15 ms (2048) to some seconds (8192).

        generator: whose RSA keys, "native" or "openssl" (docs/rsa.md). threads: 1 to 4 for the native one, 0 as
        many as there are processors, at most four. progress: called ten times a second with the candidates tested
        and the primes found, RSA only; with it, Ctrl-C and what it raises end the generation at once.
        """
        if progress is None:
            return Key._generate(type, generator, threads, ffi.NULL)
        state = ffi.new("igc_progress *")
        return _watched(lambda: Key._generate(type, generator, threads, state), state, progress)

    @staticmethod
    def _generate(type: str, generator: str, threads: int, state: Any) -> Key:
        out = ffi.new(_KEY_OUT)
        rc = lib.igc_key_generate_with(type.encode(), generator.encode(), threads, state, out)
        if rc != 0:  # spelled out: a curve's key takes 20 µs, and the message for nobody would be one of them
            _check(f"generating a key of type {type}", rc)
        return Key._own(out[0])

    @staticmethod
    def read(fd: int, password: bytes | None = None) -> Key:
        """The key of a PEM file of at most 64 KiB, read from the descriptor to its end."""
        out = ffi.new("igc_key **")
        given = ffi.NULL if password is None else password
        _check("reading a private key", lib.igc_key_read(fd, given, len(password or b""), out))
        return Key._own(out[0])

    def write(self, fd: int, password: Password | None) -> None:
        """PKCS#8 PEM to the descriptor; encrypted (PBES2, RFC 8018) unless the password is None."""
        secret = ffi.NULL if password is None else password._handle
        _check("writing a private key", lib.igc_key_write(self._handle, fd, secret))

    def check(self) -> None:
        """Refuse a key whose parts do not belong together (code BADKEY)."""
        _check("checking a private key", lib.igc_key_check(self._handle))

    @property
    def type(self) -> str:
        return str(ffi.string(lib.igc_key_type(self._handle)).decode())

    def spki(self) -> bytes:
        """SubjectPublicKeyInfo, DER."""
        out = ffi.new("igc_buf *")
        _check("reading a public key", lib.igc_key_spki(self._handle, out))
        return _take(out)

    def sign(self, tbs: bytes) -> tuple[bytes, bytes]:
        """AlgorithmIdentifier (DER) and signature, with the hash that fits the key."""
        alg, sig = ffi.new("igc_buf *"), ffi.new("igc_buf *")
        _check("signing", lib.igc_key_sign(self._handle, tbs, len(tbs), alg, sig))
        return _take(alg), _take(sig)

    def sign_with(self, digest: str, tbs: bytes) -> tuple[bytes, bytes]:
        """As sign(), with "sha1", "sha256", "sha384" or "sha512"; RSA and ECDSA keys only."""
        alg, sig = ffi.new("igc_buf *"), ffi.new("igc_buf *")
        rc = lib.igc_key_sign_with(self._handle, digest.encode(), tbs, len(tbs), alg, sig)
        _check("signing", rc)
        return _take(alg), _take(sig)

    def __repr__(self) -> str:
        return f"<Key {self.type}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key cannot be pickled or copied")

    def __copy__(self) -> NoReturn:
        raise TypeError("a private key cannot be pickled or copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a private key cannot be pickled or copied")


def _watched(make: Callable[[], Key], state: Any, progress: Callable[[int, int], None]) -> Key:
    """The key that `make` makes in a thread of its own: this one looks at `state`, and signals reach it."""
    import threading

    made: list[Key | errors.CryptoError] = []

    def work() -> None:
        try:
            made.append(make())
        except errors.CryptoError as err:
            made.append(err)

    thread = threading.Thread(target=work, name="key generation")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(GLANCE)
            progress(state.tested, state.primes)
    finally:
        state.cancel = 1
        thread.join()
    if isinstance(made[0], errors.CryptoError):
        raise made[0]
    return made[0]


def spki_type(spki: bytes) -> str:
    """The key type of a SubjectPublicKeyInfo; CryptoError KEYTYPE or BADKEY for one nobody may use."""
    out = ffi.new("char[64]")
    _check("reading a public key", lib.igc_spki_type(spki, len(spki), out))
    return str(ffi.string(out).decode())


def verify(spki: bytes, alg: bytes, tbs: bytes, sig: bytes) -> None:
    """CryptoError SIGNATURE unless `sig` is the key's signature over `tbs` by the algorithm `alg` (DER)."""
    rc = lib.igc_spki_verify(spki, len(spki), alg, len(alg), tbs, len(tbs), sig, len(sig))
    _check("verifying a signature", rc)


# ---- certificates -------------------------------------------------------------------------------


class Certificate:
    """The fields of an X.509 certificate. Equal when the DER is equal.

    subject, issuer: RDNs, each a tuple of (dotted OID, value). sans: (GeneralName tag, value): 1 email,
    2 DNS and 6 URI as text bytes, 7 IP as 4 or 16 bytes, others as DER. Times: seconds since 1970, UTC.
    """

    __slots__ = (
        "cn",
        "der",
        "is_ca",
        "issuer",
        "issuer_der",
        "issuer_text",
        "key_type",
        "key_usage",
        "not_after",
        "not_before",
        "sans",
        "self_issued",
        "serial",
        "sha256",
        "spki",
        "spki_sha256",
        "subject",
        "subject_der",
        "subject_hash",
        "subject_text",
    )

    cn: str
    der: bytes
    is_ca: bool
    issuer: tuple[tuple[tuple[str, str], ...], ...]
    issuer_der: bytes
    issuer_text: str
    key_type: str
    key_usage: int
    not_after: int
    not_before: int
    sans: tuple[tuple[int, bytes], ...]
    self_issued: bool
    serial: int
    sha256: bytes
    spki: bytes
    spki_sha256: bytes
    subject: tuple[tuple[tuple[str, str], ...], ...]
    subject_der: bytes
    subject_hash: int
    subject_text: str

    def __init__(self, der: bytes) -> None:
        raw = ffi.new("igc_cert *")
        _check("reading a certificate", lib.igc_cert_parse(der, len(der), raw))
        put = object.__setattr__
        try:
            put(self, "der", bytes(der))
            for name in ("subject", "issuer"):
                put(self, name, _rdns(_bytes(getattr(raw, name))))
                put(self, f"{name}_der", _bytes(getattr(raw, f"{name}_der")))
                put(self, f"{name}_text", _bytes(getattr(raw, f"{name}_text")).decode("utf-8", "replace"))
            put(self, "cn", _bytes(raw.cn).decode("utf-8", "replace"))
            put(self, "serial", int.from_bytes(_bytes(raw.serial), "big", signed=True))
            put(self, "sans", tuple(_records(_bytes(raw.san))))
            put(self, "spki", _bytes(raw.spki))
            put(self, "key_type", ffi.string(raw.key_type).decode())
            for name in ("sha256", "spki_sha256"):
                put(self, name, bytes(ffi.buffer(getattr(raw, name), 32)))
            for name in ("subject_hash", "not_before", "not_after", "key_usage"):
                put(self, name, int(getattr(raw, name)))
            put(self, "is_ca", bool(raw.is_ca))
            put(self, "self_issued", bool(raw.self_issued))
        finally:
            lib.igc_cert_clear(raw)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Certificate does not change")

    __delattr__ = __setattr__  # type: ignore[assignment]

    @property
    def serial_hex(self) -> str:
        """The serial number in upper case hexadecimal, whole octets, as `openssl x509 -serial` has it."""
        digits = f"{abs(self.serial):X}"
        return ("-" if self.serial < 0 else "") + ("0" if len(digits) % 2 else "") + digits

    @property
    def issuer_cn(self) -> str:
        """The issuer's common name, the whole name where it has none."""
        names = [value for rdn in self.issuer for oid, value in rdn if oid == "2.5.4.3"]
        return names[-1] if names else self.issuer_text

    def pem(self) -> str:
        text = binascii.b2a_base64(self.der, newline=False).decode()
        lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
        return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and other.der == self.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<Certificate {self.subject_text!r} serial {self.serial_hex}>"


@lru_cache(PARSED_KEPT)
def parse_certificate(der: bytes) -> Certificate:
    """One DER certificate without trailing bytes; strict (see igc_cert_parse).

    The same few come again and again: CAs with every answer, the live certificate in one look after the other.
    """
    return Certificate(der)


def _records(data: bytes) -> Iterable[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        yield data[at], data[at + 5 : end]
        at = end


def _rdns(data: bytes) -> tuple[tuple[tuple[str, str], ...], ...]:
    names: list[list[tuple[str, str]]] = []
    for tag, record in _records(data):
        oid, _, value = record.partition(b"\0")
        entry = (oid.decode("ascii"), value.decode("utf-8", "replace"))
        if tag == 1 or not names:
            names.append([entry])
        else:
            names[-1].append(entry)
    return tuple(tuple(rdn) for rdn in names)


def split_list(certs: bytes) -> list[bytes]:
    """DER certificates of a certificate list (one after the other)."""
    found, at = [], 0
    while at < len(certs):
        first = certs[at + 1]
        octets = first & 0x7F if first & 0x80 else 0
        size = int.from_bytes(certs[at + 2 : at + 2 + octets], "big") if octets else first
        end = at + 2 + octets + size
        found.append(certs[at:end])
        at = end
    return found


def verify_chain(
    leaf: bytes,
    pool: Iterable[bytes],
    anchors: Iterable[bytes],
    at: int,
    *,
    purpose: str = "any",
    host: str | None = None,
    partial: bool = False,
) -> list[bytes]:
    """The chain leaf .. anchor, DER, verified at `at`; CryptoError CHAIN says why there is none.

    purpose: "any", "server" or "client" (extended key usage). host: a DNS name or IP address that the
    leaf must carry. partial: an anchor need not be self-signed.
    """
    between, roots = b"".join(pool), b"".join(anchors)
    out = ffi.new("igc_buf *")
    name = ffi.NULL if host is None else host.encode("idna" if not host.isascii() else "ascii")
    rc = lib.igc_chain_verify(
        leaf, len(leaf), between, len(between), roots, len(roots), at, _PURPOSES[purpose], name, partial, out
    )
    _check("verifying a certificate chain", rc)
    return split_list(_take(out))


def cms_certificates(ber: bytes) -> list[bytes]:
    """Certificates of a SignedData (RFC 5652 5.1), DER or BER, in the order they stand in."""
    out = ffi.new("igc_buf *")
    _check("reading a CMS message", lib.igc_cms_certs(ber, len(ber), out))
    return split_list(_take(out))


class CertificateSet:
    """Certificates read once, to sign for, encrypt for or verify with many times. Safe for threads."""

    __slots__ = ("_handle",)

    def __init__(self, certs: Iterable[bytes]) -> None:
        """DER, at most 100; as libcrypto reads them, less strict than `Certificate`."""
        known, out = b"".join(certs), ffi.new("igc_certs **")
        _check("reading certificates", lib.igc_certs_read(known, len(known), out))
        self._handle = ffi.gc(out[0], lib.igc_certs_free)


class Envelope:
    """Parts of an EnvelopedData (RFC 5652 6.1) for one RSA recipient."""

    __slots__ = ("iv", "sealed", "wrapped")

    def __init__(self, to: CertificateSet, cipher: str, content: bytes) -> None:
        """`content` under a fresh key for the first certificate of `to`. cipher: see igc_envelope_make."""
        wrapped, iv, sealed = ffi.new("igc_buf *"), ffi.new("igc_buf *"), ffi.new("igc_buf *")
        rc = lib.igc_envelope_make(to._handle, cipher.encode(), content, len(content), wrapped, iv, sealed)
        _check("encrypting a message", rc)
        self.wrapped = _take(wrapped)
        self.iv = _take(iv)
        self.sealed = _take(sealed)


def open_envelope(ber: bytes, key: Key, mine: CertificateSet, *, weak: bool = False) -> tuple[bytes, str]:
    """Content of an EnvelopedData and the cipher that it was under; the first of `mine` belongs to `key`.

    weak: triple and single DES are opened, too. CryptoError MISMATCH: for somebody else; INTEGRITY: does not decrypt.
    """
    out, cipher = ffi.new("igc_buf *"), ffi.new("char[32]")
    rc = lib.igc_envelope_open(ber, len(ber), key._handle, mine._handle, weak, out, cipher)
    _check("opening a message", rc)
    return _take(out), str(ffi.string(cipher).decode())


class SignedMessage:
    """A SignedData whose one signature verified (RFC 5652 5.1). Who the signer is, the caller judges.

    content: None when there is none. attributes: signed ones, each DER, one after the other; None when the
    signature is over the content itself. signer: its certificate, DER. certs: enclosed ones, DER.
    """

    __slots__ = ("attributes", "certs", "content", "content_type", "digest", "signer")

    def __init__(
        self, ber: bytes, signers: CertificateSet, *, enclosed: bool = False, weak: bool = False
    ) -> None:
        """signers: certificates that may have signed. enclosed: those in the message may, too. weak: SHA-1."""
        raw = ffi.new("igc_signed *")
        rc = lib.igc_signed_open(ber, len(ber), signers._handle, enclosed, weak, raw)
        _check("verifying a signed message", rc)
        try:
            self.content = _bytes(raw.content) if raw.has_content else None
            self.content_type = _bytes(raw.content_type).decode("ascii")
            self.attributes = _bytes(raw.attributes) if raw.signed_attributes else None
            self.signer = _bytes(raw.signer)
            self.certs = split_list(_bytes(raw.certs))
            self.digest = str(ffi.string(raw.digest).decode())
        finally:
            lib.igc_signed_clear(raw)


# ---- PKCS#12 ------------------------------------------------------------------------------------


def write_pfx(
    fd: int,
    key: Key,
    cert: bytes,
    cas: Iterable[bytes],
    password: Password,
    name: str,
    *,
    legacy: bool = False,
) -> None:
    """A PKCS#12 file (RFC 7292) with key, certificate and CA certificates to the descriptor.

    AES-256 and SHA-256; with legacy 3DES and SHA-1, and 2048 iterations at most, for old readers.
    """
    rest = b"".join(cas)
    rc = lib.igc_pfx_write(
        fd,
        key._handle,
        cert,
        len(cert),
        rest,
        len(rest),
        password._handle,
        name.encode(),
        legacy,
    )
    _check("writing a PKCS#12 file", rc)


class Keystore:
    """What a PKCS#12 file holds. chain leads upwards from cert; trusted are all other certificates."""

    __slots__ = ("cert", "chain", "key", "trusted", "warnings")

    def __init__(
        self,
        key: Key | None,
        cert: bytes | None,
        chain: list[bytes],
        trusted: list[bytes],
        warnings: tuple[str, ...],
    ) -> None:
        self.key = key
        self.cert = cert
        self.chain = chain
        self.trusted = trusted
        self.warnings = warnings


def read_pfx(data: bytes, password: bytes, *, want_key: bool = True) -> Keystore:
    """Opens a PKCS#12 keystore of at most 1 MiB; see igc_pfx_read for the codes of refusals."""
    raw = ffi.new("igc_pfx *")
    _check("opening a keystore", lib.igc_pfx_read(data, len(data), password, len(password), want_key, raw))
    try:
        key = None
        if raw.key != ffi.NULL:
            key = Key._own(raw.key)
            raw.key = ffi.NULL
        flags = ((lib.IGC_PFX_NO_MAC, "no-mac"), (lib.IGC_PFX_TRAILING, "trailing-bytes"))
        return Keystore(
            key,
            _bytes(raw.cert) or None,
            split_list(_bytes(raw.chain)),
            split_list(_bytes(raw.trusted)),
            tuple(name for flag, name in flags if raw.flags & flag),
        )
    finally:
        lib.igc_pfx_clear(raw)
