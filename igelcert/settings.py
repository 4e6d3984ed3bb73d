"""The settings document: parsing, defaults, autocompletion.

A document is pushed by the proxy or given as a file; a certificate profile of the proxy is the same
document. Names and defaults are the original's. Every error names its path ("certs[0].key.type") and
the reason; nothing is guessed. Parsing does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from .errors import SettingsError
from .model import (
    KEY_TYPES,
    CsrSpec,
    DeviceFacts,
    Subject,
    SubjectAltName,
    check_friendly_name,
    check_text,
    is_ca_label,
)
from .record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "DEFAULTS",
    "CertSettings",
    "EnrollmentSettings",
    "EstSettings",
    "KeySettings",
    "ScepSettings",
    "Settings",
    "parse_document",
    "parse_settings",
]

DOCUMENT_BYTES = 1 << 20
MAX_CERTS = 100
MOMENT_MAX = 253_402_300_799  # the end of the year 9999


@record
class KeySettings:
    type: str = "rsa_4096"
    crypt_password: str = field(default="", repr=False)

    @property
    def password(self) -> bytes | None:
        """The key password as the core takes it; None when the profile sets none."""
        return self.crypt_password.encode() or None


@record
class EstSettings:
    """Straight to an EST server: where it is, what authenticates us, what we trust."""

    server: str = ""
    label: str = ""
    username: str = ""
    crypt_password: str = field(default="", repr=False)
    client_certificate: str = ""
    client_key: str = ""
    crypt_client_key_password: str = field(default="", repr=False)
    ca_file: str = ""
    ca_fingerprint: str = ""


@record
class ScepSettings:
    """Straight to a SCEP server (RSA keys only: the device's key opens the answer)."""

    url: str = ""
    profile: str = ""
    fingerprint: str = ""
    ca_file: str = ""


@record
class EnrollmentSettings:
    """How and when. `renewal_period` is the percentage of the validity that remains when renewal is due.

    `renew_serial`: a certificate of this serial number is renewed now, whatever its dates say; or, where `renew_until` is
    not 0, between `renew_from` and `renew_until` (seconds since 1970).
    """

    proto: str = "igelums"
    auto_renewal: bool = True
    renewal_period_units: str = "percent"
    renewal_period: int = 20
    renewal_period_days: int = 30
    crypt_challenge_password: str = field(default="", repr=False)
    renew_serial: str = ""
    renew_from: int = 0
    renew_until: int = 0
    est: EstSettings | None = None
    scep: ScepSettings | None = None


@record
class CertSettings:
    """One certificate of the document. `subject` and `san` are as configured, before autocompletion."""

    friendly_name: str
    subject: Subject
    san: SubjectAltName
    auto_cn: str
    auto_hostname: bool
    auto_ip: bool
    key: KeySettings
    enrollment: EnrollmentSettings

    def csr_spec(self, facts: DeviceFacts) -> CsrSpec:
        """Autocompletion: the CSR of this certificate on that device.

        A completed CN replaces the configured one; completed host name and addresses are added to the
        configured alternative names.
        """
        cn = {"hostname": facts.hostname, "unitid": facts.unit_id}.get(self.auto_cn, self.subject.cn)
        if self.auto_cn != "off" and not cn:
            raise SettingsError("subject.auto_cn", f"the device has no {self.auto_cn} to use as common name")
        subject = Subject(
            cn=cn,
            ou=self.subject.ou,
            org=self.subject.org,
            locality=self.subject.locality,
            state=self.subject.state,
            country=self.subject.country,
            email=self.subject.email,
        )
        hostnames = (facts.hostname,) if self.auto_hostname and facts.hostname else ()
        san = SubjectAltName(
            hostname=(*self.san.hostname, *hostnames),
            ip=(*self.san.ip, *(facts.ips if self.auto_ip else ())),
            email=self.san.email,
            uri=self.san.uri,
        )
        return CsrSpec(self.key.type, subject, san, self.enrollment.crypt_challenge_password)


@record
class Settings:
    """A whole document. `warnings` are for the screen and the log: duplicates that were passed over."""

    certs: tuple[CertSettings, ...] = ()
    show_user_notifications: bool = True
    warnings: tuple[str, ...] = ()


def parse_settings(text: str | bytes) -> Settings:
    """Settings from JSON text of at most 1 MiB."""
    return parse_document(load_json(text))


def load_json(text: str | bytes) -> Any:
    """JSON that names no key twice; SettingsError with line and column otherwise."""
    if len(text) > DOCUMENT_BYTES:
        raise SettingsError("", f"the document is larger than {DOCUMENT_BYTES >> 20} MiB")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as err:
        raise SettingsError(f"line {err.lineno} column {err.colno}", f"not JSON: {err.msg}") from None
    except UnicodeDecodeError:
        raise SettingsError("", "the document is not UTF-8") from None
    except RecursionError:
        raise SettingsError("", "the document is nested too deeply") from None
    except ValueError:  # integers beyond the interpreter's limit
        raise SettingsError("", "a number in the document has too many digits") from None


def parse_document(document: object) -> Settings:
    """Settings from the decoded JSON value."""
    fields = _object("", document, _DOCUMENT)
    certs: dict[str, CertSettings] = {}
    warnings = []
    for index, entry in enumerate(fields["certs"]):
        cert = _cert(f"certs[{index}]", entry)
        if cert.friendly_name in certs:
            warnings.append(
                f"certs[{index}].friendly_name: {cert.friendly_name!r} is taken by an earlier certificate; "
                "this one is passed over"
            )
        else:
            certs[cert.friendly_name] = cert
    return Settings(tuple(certs.values()), fields["show_user_notifications"], tuple(warnings))


# ---- one parser per key -------------------------------------------------------------------------

if TYPE_CHECKING:
    Parser = Callable[[str, Any], Any]
    Table = Mapping[str, tuple[Any, Parser]]  # key: (default, parser)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SettingsError(_printable(key), "is given twice")
        found[key] = value
    return found


def _printable(value: str) -> str:
    return value if value.isprintable() and len(value) <= 80 else repr(value[:80])


def _near(word: str, known: Iterable[str]) -> list[str]:
    """The one that was meant, perhaps."""
    import difflib  # for an error alone: the device's start need not bear it

    return difflib.get_close_matches(word, list(known), 1)


def _object(path: str, value: object, table: Table) -> dict[str, Any]:
    """The table's keys from a JSON object, defaults filled in; an unknown key is an error."""
    if not isinstance(value, dict):
        raise SettingsError(path or "settings", "is not an object")
    for key in value:
        if key not in table:
            near = _near(key, table)
            raise SettingsError(
                f"{path}.{_printable(key)}" if path else _printable(key),
                "is not a known setting",
                hint=f"did you mean {near[0]!r}?" if near else "known here: " + " ".join(table),
            )
    prefix = f"{path}." if path else ""
    return {
        key: parse(prefix + key, value[key]) if key in value else default
        for key, (default, parse) in table.items()
    }


def _text(limit: int) -> Parser:
    def parse(path: str, value: object) -> str:
        if not isinstance(value, str):
            raise SettingsError(path, "is not text")
        return check_text(path, value, limit)

    return parse


def _texts(path: str, value: object) -> tuple[str, ...]:
    """A list of texts; one text stands for a list of one, as the original's single field."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise SettingsError(path, "is not a list of texts")
    return tuple(entry for entry in entries if entry)


def _flag(path: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(path, "is neither true nor false")
    return value


def _number(low: int, high: int) -> Parser:
    def parse(path: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise SettingsError(path, "is not a whole number")
        if not low <= value <= high:
            raise SettingsError(path, f"is {value}, allowed are {low} to {high}")
        return value

    return parse


def _choice(choices: Iterable[str]) -> Parser:
    allowed = tuple(choices)

    def parse(path: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            shown = _printable(value) if isinstance(value, str) else type(value).__name__
            near = _near(value, allowed) if isinstance(value, str) else []
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingsError(path, f"{shown} is not possible", hint=f"{hint}one of: {' '.join(allowed)}")
        return value

    return parse


def _nested(table: Table, make: Callable[..., Any]) -> Parser:
    return lambda path, value: make(**_object(path, value, table))


def _raw(path: str, value: object) -> object:
    if not isinstance(value, dict):
        raise SettingsError(path, "is not an object")
    return value


def _entries(path: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise SettingsError(path, "is not a list")
    if len(value) > MAX_CERTS:
        raise SettingsError(path, f"has {len(value)} entries, at most {MAX_CERTS} are allowed")
    return value


def _ca_label(path: str, value: object) -> str:
    label = str(_text(128)(path, value))
    if label and not is_ca_label(label):
        raise SettingsError(
            path, f"{label!r} is not a CA label", hint="letters, digits, '_' and '-' are allowed"
        )
    return label


def _url(schemes: tuple[str, ...]) -> Parser:
    def parse(path: str, value: object) -> str:
        url = str(_text(2048)(path, value))
        if url and (not url.startswith(schemes) or not url.isascii() or " " in url or "@" in url):
            raise SettingsError(
                path, "is not a URL", hint=f"it starts with {' or '.join(schemes)} and holds no password"
            )
        return url

    return parse


def _secret(limit: int) -> Parser:
    """A password: its value never shows in an error."""

    def parse(path: str, value: object) -> str:
        if not isinstance(value, str):
            raise SettingsError(path, "is not text")
        if len(value.encode("utf-8", "surrogatepass")) > limit:
            raise SettingsError(path, f"is longer than {limit} bytes")
        if any(
            ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in value
        ):
            raise SettingsError(path, "holds a control character")
        return value

    return parse


def _fingerprint(path: str, value: object) -> str:
    """Hexadecimal digits; colons, blanks and case are free. MD5, SHA-1 or SHA-256 by length."""
    digits = str(_text(200)(path, value)).replace(":", "").replace(" ", "").lower()
    if digits and (len(digits) not in {32, 40, 64} or any(char not in "0123456789abcdef" for char in digits)):
        raise SettingsError(path, "is not an MD5, SHA-1 or SHA-256 fingerprint in hexadecimal")
    return digits


def _serial(path: str, value: object) -> str:
    """A serial number as `openssl x509 -serial` has it: upper case hexadecimal."""
    digits = str(_text(64)(path, value)).upper()
    if digits.strip("-0123456789ABCDEF"):
        raise SettingsError(path, "is not a serial number in hexadecimal")
    return digits


_SUBJECT: Table = {
    "auto_cn": ("hostname", _choice(("hostname", "unitid", "off"))),
    "cn": ("", _text(64)),
    "ou": ("", _text(64)),
    "org": ("", _text(64)),
    "locality": ("", _text(128)),
    "state": ("", _text(128)),
    "country": ("", _text(2)),
    "email": ("", _text(255)),
}
_SAN: Table = {
    "auto_hostname": (True, _flag),
    "auto_ip": (False, _flag),
    "hostname": ((), _texts),
    "ip": ((), _texts),
    "email": ((), _texts),
    "uri": ((), _texts),
}
_KEY: Table = {"type": ("rsa_4096", _choice(KEY_TYPES)), "crypt_password": ("", _secret(1000))}
_EST: Table = {
    "server": ("", _url(("https://",))),
    "label": ("", _ca_label),
    "username": ("", _text(255)),
    "crypt_password": ("", _secret(1000)),
    "client_certificate": ("", _text(1000)),
    "client_key": ("", _text(1000)),
    "crypt_client_key_password": ("", _secret(1000)),
    "ca_file": ("", _text(1000)),
    "ca_fingerprint": ("", _fingerprint),
}
_SCEP: Table = {
    "url": ("", _url(("http://", "https://"))),
    "profile": ("", _text(128)),
    "fingerprint": ("", _fingerprint),
    "ca_file": ("", _text(1000)),
}
_ENROLLMENT: Table = {
    "proto": ("igelums", _choice(("igelums", "est", "scep"))),
    "auto_renewal": (True, _flag),
    "renewal_period_units": ("percent", _choice(("percent", "days"))),
    "renewal_period": (20, _number(1, 99)),
    "renewal_period_days": (30, _number(1, 36500)),
    "crypt_challenge_password": ("", _secret(255)),
    "renew_serial": ("", _serial),
    "renew_from": (0, _number(0, MOMENT_MAX)),
    "renew_until": (0, _number(0, MOMENT_MAX)),
    "est": (None, _nested(_EST, EstSettings)),
    "scep": (None, _nested(_SCEP, ScepSettings)),
}
_CERT: Table = {
    "friendly_name": ("Device certificate", _text(1000)),
    "subject": ({}, _raw),
    "subjaltname": ({}, _raw),
    "key": (KeySettings(), _nested(_KEY, KeySettings)),
    "enrollment": (EnrollmentSettings(), _nested(_ENROLLMENT, EnrollmentSettings)),
}
_DOCUMENT: Table = {"show_user_notifications": (True, _flag), "certs": ([], _entries)}


def _cert(path: str, value: object) -> CertSettings:
    fields = _object(path, value, _CERT)
    subject = _object(f"{path}.subject", fields["subject"], _SUBJECT)
    san = _object(f"{path}.subjaltname", fields["subjaltname"], _SAN)
    try:
        check_friendly_name("friendly_name", fields["friendly_name"])
        cert = CertSettings(
            friendly_name=fields["friendly_name"],
            auto_cn=subject.pop("auto_cn"),
            auto_hostname=san.pop("auto_hostname"),
            auto_ip=san.pop("auto_ip"),
            subject=Subject(**subject),
            san=SubjectAltName(**san),
            key=fields["key"],
            enrollment=fields["enrollment"],
        )
    except SettingsError as err:  # the values know their field, not their place
        raise SettingsError(f"{path}.{err.path}", err.reason, hint=err.hint) from None
    _consistent(path, cert)
    return cert


def _consistent(path: str, cert: CertSettings) -> None:
    """Rules that span several keys."""
    enrollment = cert.enrollment
    for proto, required in (("est", "server"), ("scep", "url")):
        straight = getattr(enrollment, proto)
        if enrollment.proto == proto and not (straight and getattr(straight, required)):
            raise SettingsError(
                f"{path}.enrollment.{proto}.{required}", f"is missing, and proto is {proto!r}"
            )
        if straight and enrollment.proto != proto:
            raise SettingsError(f"{path}.enrollment.{proto}", f"is given, but proto is {enrollment.proto!r}")
    if enrollment.proto == "scep" and not cert.key.type.startswith("rsa_"):
        raise SettingsError(
            f"{path}.key.type",
            f"{cert.key.type} cannot enroll straight over SCEP: the device's key must open the answer, which takes RSA",
            hint="use an RSA key, or set proto to 'igelums': the proxy carries every key type over SCEP",
        )
    if not any(
        (cert.auto_cn != "off", cert.auto_hostname, cert.auto_ip, cert.subject.attributes(), cert.san)
    ):
        raise SettingsError(f"{path}.subject", "is empty and there is no subject alternative name either")


def _defaults(table: Table) -> dict[str, Any]:
    return {key: default for key, (default, _) in table.items() if default is not None}


# a certificate that says nothing, as a document
DEFAULTS: Mapping[str, Any] = {
    **_defaults(_CERT),
    "subject": _defaults(_SUBJECT),
    "subjaltname": _defaults(_SAN),
    "key": _defaults(_KEY),
    "enrollment": _defaults(_ENROLLMENT),
}
