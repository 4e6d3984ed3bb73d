"""The CA behind the proxy, as administrators handle it: set, show, try, clear. One set of functions for all ways in."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from .. import crypto
from ..codec.pem import decode_pem
from ..errors import ConflictError, Error, SettingsError
from . import cacerts, cahealth
from .context import Context
from .database import now
from .keystore import ClientKeystore, open_keystore
from .upstream import Step
from .upstream.config import CaConfig, EstSettings, ScepSettings, Settings, load, show, store

__all__ = [
    "assemble",
    "certificate_text",
    "describe",
    "hash_name",
    "of_json",
    "readout",
    "save",
    "test",
    "warnings",
]

FINGERPRINTS = {32: "MD5", 40: "SHA-1", 64: "SHA-256"}


def hash_name(fingerprint: str) -> str:
    """The kind of a fingerprint, told by its length; "" when it has none of the three."""
    return FINGERPRINTS.get(len(fingerprint), "")


def certificate_text(data: bytes) -> str:
    """An uploaded certificate file, PEM or DER, as PEM; SettingsError when it is neither."""
    if b"-----BEGIN " in data:
        text = data.decode("ascii", "replace")
    else:
        try:
            text = crypto.parse_certificate(data).pem()
        except Error as err:
            raise SettingsError(
                "--certificate", f"is no certificate: {err}", hint="give PEM or DER"
            ) from None
    if "PRIVATE KEY-----" in text:
        raise SettingsError("--certificate", "holds a private key", hint="give the certificate alone")
    return text


def assemble(
    context: Context, settings: Settings, keystore: bytes | None = None, password: str | None = None
) -> CaConfig:
    """A configuration that could be stored, checked. Secrets that are not given stay what they are.

    keystore, password: of an EST server; for SCEP, the password of the NDES account. SettingsError.
    """
    old = load(context)
    if isinstance(settings, EstSettings):
        if keystore is None:
            if old is None or old.kind != "est":
                raise SettingsError(
                    "--keystore", "is missing", hint="upload the keystore that the PKI gave you"
                )
            keystore, password = old.keystore, old.password
        open_keystore(keystore, password or "", now())
        return CaConfig(0, now(), settings, keystore, password or "")
    if password is None and old is not None and isinstance(old.settings, ScepSettings):
        # a password goes to nobody but whom it was given for
        same = (old.scep.ndes_url, old.scep.ndes_user) == (settings.ndes_url, settings.ndes_user)
        password = old.password if same else None
    if settings.ndes_url and not password:
        raise SettingsError(
            "--ndes-password", "is missing", hint="the password of the account that may see the page"
        )
    return CaConfig(0, now(), settings, b"", (password or "") if settings.ndes_url else "")


def save(context: Context, config: CaConfig, *, replace: bool = False, expected: int | None = None) -> int:
    """Puts an assembled configuration in place; returns its version.

    replace: a configuration of the other kind may go. expected: the version that the editor saw. ConflictError.
    """
    old = show(context)
    if old is not None and old.kind != config.kind and not replace:
        raise ConflictError(
            "kind",
            f"This replaces the {old.kind.upper()} configuration {old.name!r}.",
            replaces=f"{old.kind.upper()} {old.name}",
            hint="agree to it, or leave everything as it is",
        )
    return store(context, config.settings, config.keystore, config.password, expected=expected)


def warnings(config: CaConfig) -> tuple[str, ...]:
    """What an administrator should know of a configuration that is good otherwise."""
    if config.kind == "est":
        return open_keystore(config.keystore, config.password, now(), stored=True).warnings
    found = []
    if not config.scep.fingerprint and not config.scep.where[0]:
        found.append(
            "no fingerprint is configured and the URL is plain http: anybody between can pose as the CA"
        )
    if hash_name(config.scep.fingerprint) == "MD5":
        found.append("an MD5 fingerprint can be forged; SHA-256 cannot")
    return tuple(found)


def test(context: Context, config: CaConfig | None = None) -> Iterator[Step]:
    """Tries every link to the CA, one after the other: the configured one, or one that is not stored yet."""
    upstream = context.upstreams.current() if config is None else context.upstreams.made(config)
    steps = []
    try:
        for step in upstream.test():
            steps.append(step)
            yield step
    finally:
        if config is not None:
            upstream.close()
    good = bool(steps) and all(step.ok for step in steps)
    if config is None:
        cahealth.note(context, upstream.config.version, good, "" if good else steps[-1].text)
        if good:
            cacerts.fresh(context, upstream, anew=True)


# ---- to be shown --------------------------------------------------------------------------------


def readout(data: bytes, password: str) -> dict[str, Any]:
    """What a keystore holds, for people: nothing of it is secret. SettingsError when it cannot be used."""
    return _keystore_json(open_keystore(data, password, now()))


def _keystore_json(opened: ClientKeystore) -> dict[str, Any]:
    servers = [cert for cert in opened.trust if not cert.is_ca and cert not in opened.chain]
    return {
        "client_certificate": _cert_json(opened.cert),
        "chain": [_cert_json(cert) for cert in opened.chain],
        "server_certificates": [_cert_json(cert) for cert in servers],
        "trusted": [_cert_json(cert) for cert in opened.trust],
        "warnings": list(opened.warnings),
    }


def _cert_json(cert: crypto.Certificate) -> dict[str, Any]:
    return {
        "subject": cert.subject_text,
        "issuer": cert.issuer_text,
        "serial": cert.serial_hex,
        "key_type": cert.key_type,
        "not_before": cert.not_before,
        "not_after": cert.not_after,
        "sha256": cert.sha256.hex(),
    }


def describe(context: Context) -> dict[str, Any] | None:
    """The configuration without its secrets; None when there is none."""
    config = load(context)
    if config is None:
        return None
    certs, fetched = cacerts.known(context, config.version)
    health = cahealth.last(context, config.version)
    return {
        "name": config.settings.name,
        **(_scep_json(config) if isinstance(config.settings, ScepSettings) else _est_json(config)),
        "ca_certificates": [_cert_json(crypto.parse_certificate(der)) for der in certs],
        "ca_certificates_fetched": fetched or None,
        "rate": config.settings.rate,
        "version": config.version,
        "updated": config.updated,
        "last_exchange": None if health is None else {"up": health.up, "at": health.at, "text": health.text},
    }


def _est_json(config: CaConfig) -> dict[str, Any]:
    return {
        "kind": "est",
        "host": config.est.host,
        "port": config.est.port,
        "label": config.est.label,
        **_keystore_json(open_keystore(config.keystore, config.password, now(), stored=True)),
    }


def _scep_json(config: CaConfig) -> dict[str, Any]:
    scep = config.scep
    return {
        "kind": "scep",
        "url": scep.url,
        "profile": scep.profile,
        "fingerprint": scep.fingerprint or None,
        "trusted": [
            _cert_json(crypto.parse_certificate(der)) for der in decode_pem(scep.certificate.encode())
        ],
        "renewal": scep.renewal,
        "legacy": scep.legacy,
        "poll": scep.poll,
        "ndes_url": scep.ndes_url or None,
        "ndes_user": scep.ndes_user or None,
        "warnings": list(warnings(config)),
    }


# ---- from JSON ----------------------------------------------------------------------------------


def of_json(context: Context, body: dict[str, Any]) -> CaConfig:
    """A configuration as the REST interface takes it; what is not secret and missing takes its default."""
    kind = body.get("kind")
    if kind not in {"est", "scep"}:
        raise SettingsError("kind", "is neither est nor scep")
    if kind == "est":
        settings: Settings = EstSettings(
            body.get("name", ""),
            body.get("host", ""),
            body.get("port", 443),
            body.get("label", ""),
            body.get("rate", 0),
        )
        keystore = None
        if body.get("keystore") is not None:
            keystore = keystore_octets(body["keystore"])
        return assemble(context, settings, keystore, body.get("keystore_password"))
    settings = ScepSettings(
        body.get("name", ""),
        body.get("url", ""),
        body.get("profile", ""),
        body.get("fingerprint") or "",
        certificate_of(context, body),
        body.get("renewal", "pkcsreq"),
        body.get("legacy", False),
        body.get("poll", 60),
        body.get("ndes_url") or "",
        body.get("ndes_user") or "",
        body.get("rate", 0),
    )
    return assemble(context, settings, None, body.get("ndes_password"))


def keystore_octets(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SettingsError("--keystore", "is not base64") from None


def certificate_of(context: Context, body: dict[str, Any]) -> str:
    """PEM as given; where nothing is said, what is stored for the same URL."""
    if body.get("certificate") is not None:
        return str(body["certificate"])
    old = load(context)
    if old is not None and isinstance(old.settings, ScepSettings) and old.scep.url == body.get("url"):
        return old.scep.certificate
    return ""
