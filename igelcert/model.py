"""Values that device, proxy and lab CA share. No I/O; an invalid value cannot exist."""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from .errors import SettingsError
from .record import field, record

__all__ = [
    "CA_LABEL_MAX",
    "KEY_TYPES",
    "CsrSpec",
    "DeviceFacts",
    "Issued",
    "Outcome",
    "Pending",
    "Refused",
    "Subject",
    "SubjectAltName",
    "check_dns_name",
    "check_email",
    "check_friendly_name",
    "check_ip",
    "check_text",
    "check_unit_id",
    "check_uri",
    "is_ca_label",
]

KEY_TYPES = (
    "rsa_2048",
    "rsa_3072",
    "rsa_4096",
    "rsa_8192",
    "ecdsa_ed25519",
    "ec_brainpoolP256r1",
    "ec_brainpoolP384r1",
    "ec_brainpoolP512r1",
    "ec_prime256v1",
    "ec_secp256k1",
    "ec_secp384r1",
    "ec_secp521r1",
)

FRIENDLY_NAME_BYTES = 128
_UNIT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DNS_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# devices seldom meet these: compiled when one comes, and kept by re
CA_LABEL_MAX = 128  # characters
_CA_LABEL = rf"[A-Za-z0-9_-]{{1,{CA_LABEL_MAX}}}"
_MAILBOX = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}"
_URI = r"[A-Za-z][A-Za-z0-9+.-]*:[!-;=?-\[\]_a-z~]+"


def check_text(path: str, value: str, limit: int) -> str:
    """Refuse control and format characters and more than `limit` characters (RFC 5280 upper bounds)."""
    if len(value) > limit:
        raise SettingsError(path, f"is {len(value)} characters long, at most {limit} are allowed")
    for char in value:
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            raise SettingsError(path, f"holds the control character U+{ord(char):04X}")
    return value


def check_friendly_name(path: str, value: str) -> str:
    """A friendly name is a directory name on the device."""
    if not value or value.isspace():
        raise SettingsError(path, "is empty", hint="give the certificate a name; it becomes a directory name")
    if value != value.strip():
        raise SettingsError(path, "begins or ends with a blank")
    if value.startswith("."):
        raise SettingsError(path, "begins with a dot: it becomes a directory name")
    if "/" in value or "\\" in value:
        raise SettingsError(path, "holds a slash: it becomes a directory name")
    check_text(path, value, FRIENDLY_NAME_BYTES)
    size = len(value.encode("utf-8"))
    if size > FRIENDLY_NAME_BYTES:
        raise SettingsError(path, f"is {size} bytes long, at most {FRIENDLY_NAME_BYTES} are allowed")
    return value


def check_unit_id(path: str, value: str) -> str:
    if not _UNIT_ID.fullmatch(value):
        raise SettingsError(
            path, "is not a unit ID: 1 to 64 letters, digits, '.', '_' or '-', not starting with a sign"
        )
    return value


def check_dns_name(path: str, value: str) -> str:
    """The name as A-labels in lower case (IDNA, RFC 5890); a leading "*." stays."""
    name = value.strip().removesuffix(".")
    star, rest = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    try:
        ascii_name = rest.lower() if rest.isascii() else rest.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise SettingsError(path, f"{value!r} is not a host name") from None
    labels = ascii_name.split(".")
    if not rest or len(star + ascii_name) > 253 or not all(_DNS_LABEL.fullmatch(label) for label in labels):
        raise SettingsError(path, f"{_shown(value)} is not a host name")
    return star + ascii_name


def check_email(path: str, value: str) -> str:
    """A mailbox as IA5String: an ASCII local part and a host name, which becomes A-labels."""
    local, at, domain = value.rpartition("@")
    if not at or not re.fullmatch(_MAILBOX, local):
        raise SettingsError(path, f"{_shown(value)} is not an e-mail address")
    try:
        name = check_dns_name(path, domain)
    except SettingsError:
        raise SettingsError(path, f"{_shown(value)} is not an e-mail address") from None
    if len(local) + 1 + len(name) > 255:
        raise SettingsError(path, "is longer than 255 characters")
    return f"{local}@{name}"


def check_uri(path: str, value: str) -> str:
    """An absolute URI of ASCII characters (RFC 3986), at most 2048."""
    if len(value) > 2048 or not re.fullmatch(_URI, value):
        raise SettingsError(
            path, f"{_shown(value)} is not an absolute URI", hint="percent-encode special characters"
        )
    return value


def check_ip(path: str, value: str) -> str:
    """The address in its canonical text form."""
    try:
        if "%" in value:
            raise ValueError
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        raise SettingsError(path, f"{_shown(value)} is not an IP address") from None


def is_ca_label(value: str) -> bool:
    """RFC 7030 3.2.2 as the product narrows it; case matters."""
    return bool(re.fullmatch(_CA_LABEL, value))


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")


@record
class Subject:
    """A subject name; empty fields are left out. Country is two letters, upper case."""

    cn: str = ""
    ou: str = ""
    org: str = ""
    locality: str = ""
    state: str = ""
    country: str = ""
    email: str = ""

    # field, OID, upper bound (RFC 5280 appendix A), in the order of the encoded name
    FIELDS = (
        ("country", "2.5.4.6", 2),
        ("state", "2.5.4.8", 128),
        ("locality", "2.5.4.7", 128),
        ("org", "2.5.4.10", 64),
        ("ou", "2.5.4.11", 64),
        ("cn", "2.5.4.3", 64),
        ("email", "1.2.840.113549.1.9.1", 255),
    )

    def __post_init__(self) -> None:
        for name, _oid, bound in self.FIELDS:
            value = getattr(self, name)
            path = f"subject.{name}"
            check_text(path, value, bound)
            if value and value.isspace():
                raise SettingsError(path, "is only blanks")
        if self.country and not (
            len(self.country) == 2 and self.country.isascii() and self.country.isalpha()
        ):
            raise SettingsError("subject.country", f"{self.country!r} is not a two-letter country code")
        object.__setattr__(self, "country", self.country.upper())
        if self.email:
            object.__setattr__(self, "email", check_email("subject.email", self.email))

    def attributes(self) -> tuple[tuple[str, str], ...]:
        """(OID, value) of the fields that are set, in the order of the encoded name."""
        found = ((oid, getattr(self, name)) for name, oid, _ in self.FIELDS)
        return tuple((oid, value) for oid, value in found if value)


@record
class SubjectAltName:
    """Names of a subjectAltName: host names as A-labels, IP addresses in canonical text."""

    hostname: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    email: tuple[str, ...] = ()
    uri: tuple[str, ...] = ()

    LIMIT = 100

    def __post_init__(self) -> None:
        for name, check in (
            ("hostname", check_dns_name),
            ("ip", check_ip),
            ("email", check_email),
            ("uri", check_uri),
        ):
            values = getattr(self, name)
            if len(values) > self.LIMIT:
                raise SettingsError(
                    f"subjaltname.{name}", f"has {len(values)} entries, at most {self.LIMIT} are allowed"
                )
            clean = (check(f"subjaltname.{name}[{i}]", value) for i, value in enumerate(values))
            object.__setattr__(self, name, tuple(dict.fromkeys(clean)))

    def __bool__(self) -> bool:
        return bool(self.hostname or self.ip or self.email or self.uri)


@record
class CsrSpec:
    """What a CSR is made of. The challenge password never shows in a repr."""

    key_type: str
    subject: Subject
    san: SubjectAltName = SubjectAltName()
    challenge: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.key_type not in KEY_TYPES:
            raise SettingsError(
                "key.type", f"{_shown(self.key_type)} is not a key type", hint="one of " + " ".join(KEY_TYPES)
            )
        if not self.subject.attributes() and not self.san:
            raise SettingsError("subject", "is empty and there is no subject alternative name either")
        check_text("enrollment.crypt_challenge_password", self.challenge, 255)


@record
class DeviceFacts:
    """What autocompletion draws on: the device's host name, unit ID and IP addresses."""

    hostname: str
    unit_id: str
    ips: tuple[str, ...] = ()


@record
class Issued:
    """Certificates of an answer, DER, in no particular order (a CMS SET)."""

    certificates: tuple[bytes, ...]


@record
class Pending:
    """The CA has not decided: repeat the same request after so many seconds."""

    retry_after: int
    reason: str = ""


@record
class Refused:
    """A refusal in words. `retry_after` is set (seconds) when the peer says that it will pass."""

    status: int
    reason: str
    retry_after: int | None = None


Outcome = Issued | Pending | Refused
