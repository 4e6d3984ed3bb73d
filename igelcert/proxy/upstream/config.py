"""The CA's configuration: one row, its secrets sealed, its version counting up with every change."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from ... import crypto
from ...codec.est import OPERATIONS
from ...codec.pem import decode_pem
from ...errors import ConflictError, Error, SettingsError
from ...model import CA_LABEL_MAX, check_dns_name, check_ip, check_text, is_ca_label
from .. import changes
from ..audit import actor
from ..database import Database, now
from ..schema import ca_config

if TYPE_CHECKING:
    from ..context import Context

__all__ = [
    "PLACE",
    "RATE_MAX",
    "CaConfig",
    "EstSettings",
    "ScepSettings",
    "Settings",
    "clear",
    "current_version",
    "load",
    "rate",
    "rate_of",
    "show",
    "split_url",
    "standing",
    "store",
]

PLACE = "ca_config"
_VERSION = sa.select(ca_config.c.version)
_SETTINGS = sa.select(ca_config.c.settings)
_STANDING = sa.select(ca_config.c.version, ca_config.c.settings)


@dataclass(frozen=True, slots=True)
class EstSettings:
    """Where the EST server is. name: how people call this configuration; label: "" for none. rate: certificates an hour
    that the CA may be asked for, 0 where nothing is said."""

    name: str
    host: str
    port: int = 443
    label: str = ""
    rate: int = 0

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise SettingsError("--name", "is empty")
        check_text("--name", self.name, 128)
        object.__setattr__(self, "host", _host(self.host))
        if not 0 < self.port < 65_536:
            raise SettingsError("--port", f"{self.port} is not a port")
        if len(self.label) > CA_LABEL_MAX:
            raise SettingsError(
                "--label", f"has {len(self.label)} characters: at most {CA_LABEL_MAX} are allowed"
            )
        if self.label and not is_ca_label(self.label):
            raise SettingsError(
                "--label",
                f"{self.label[:80]!r} is not a CA label",
                hint="letters, digits, '_' and '-' are allowed; case counts",
            )
        if self.label in OPERATIONS:
            raise SettingsError("--label", f"{self.label!r} is the name of an EST operation")
        _check_rate(self.rate)


RATE_MAX = 10_000_000  # an hour
_UNITS = {"s": 3_600, "min": 60, "h": 1}


def rate_of(text: str) -> int:
    """Certificates an hour, of "600/h", "10/min", "2/s"; a bare number is an hour's. SettingsError."""
    number, slash, unit = text.strip().partition("/")
    number, unit = number.strip(), unit.strip() if slash else "h"
    if not (number.isascii() and number.isdecimal() and len(number) < 10) or unit not in _UNITS:
        raise SettingsError(
            "--rate", f"{text[:40]!r} is no rate", hint="such as 600/h, 10/min or 2/s; 0 for none"
        )
    rate = int(number) * _UNITS[unit]
    _check_rate(rate)
    return rate


def _check_rate(rate: int) -> None:
    if not 0 <= rate <= RATE_MAX:
        raise SettingsError("--rate", f"is not from 0 to {RATE_MAX} certificates an hour")


def _host(value: str, option: str = "--host") -> str:
    bare = value.strip().removeprefix("[").removesuffix("]")
    if "://" in value or "/" in value:
        raise SettingsError(
            option,
            f"{value[:80]!r} is a URL",
            hint="give the host name alone; port and label are apart",
        )
    try:
        return check_ip(option, bare)
    except SettingsError:
        return check_dns_name(option, bare)


@dataclass(frozen=True, slots=True)
class ScepSettings:
    """Where the SCEP server is. fingerprint: of its root certificate (MD5, SHA-1 or SHA-256), "" for none.

    profile: sent as `message` (in EJBCA: the name of the CA), "" for none. certificate: PEM that an https server
    is trusted by, "" for the system's CAs. renewal: messageType of renewals. legacy: SHA-1 and triple DES are
    spoken with a server that announces nothing better. poll: seconds between questions after a pending request.
    ndes_url, ndes_user: the page of one-time challenges and the account that may see it. rate: as of EST.
    """

    name: str
    url: str
    profile: str = ""
    fingerprint: str = ""
    certificate: str = ""
    renewal: str = "pkcsreq"
    legacy: bool = False
    poll: int = 60
    ndes_url: str = ""
    ndes_user: str = ""
    rate: int = 0

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise SettingsError("--name", "is empty")
        check_text("--name", self.name, 128)
        check_text("--profile", self.profile, 128)
        split_url("--url", self.url)
        object.__setattr__(self, "fingerprint", _fingerprint(self.fingerprint))
        if self.renewal not in {"pkcsreq", "renewalreq"}:
            raise SettingsError("--renewal", "is neither pkcsreq nor renewalreq")
        if not 1 <= self.poll <= 86_400:
            raise SettingsError("--poll", "is not from 1 to 86400 seconds")
        if self.certificate:
            _trust("--certificate", self.certificate)
        if bool(self.ndes_url) != bool(self.ndes_user):
            raise SettingsError("--ndes-url", "and --ndes-user belong together")
        if self.ndes_url:
            split_url("--ndes-url", self.ndes_url)
            check_text("--ndes-user", self.ndes_user, 256)
        _check_rate(self.rate)

    @property
    def ndes_where(self) -> tuple[bool, str, int, str]:
        return split_url("--ndes-url", self.ndes_url)

    @property
    def where(self) -> tuple[bool, str, int, str]:
        """TLS, host, port, path."""
        return split_url("--url", self.url)


def split_url(option: str, url: str) -> tuple[bool, str, int, str]:
    """(TLS, host, port, path with its query) of an http or https URL; SettingsError names the option."""
    hint = "it looks like http://scep.example.com/ejbca/publicweb/apply/scep/alias/pkiclient.exe"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SettingsError(option, "is not a URL", hint=hint) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(option, f"{url[:120]!r} is not an http or https URL", hint=hint)
    if parts.username is not None or parts.password is not None:
        raise SettingsError(option, "holds a user name or password, which would be seen in logs")
    if parts.fragment or "operation=" in parts.query:
        raise SettingsError(option, "goes beyond the address of the server", hint=hint)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or not path.isprintable() or " " in path or len(path) > 1024:
        raise SettingsError(option, "holds characters that a URL cannot have", hint="percent-encode them")
    return (
        parts.scheme == "https",
        _host(parts.hostname, option),
        port or (443 if parts.scheme == "https" else 80),
        path,
    )


def _fingerprint(value: str) -> str:
    """Hexadecimal digits, lower case; colons, blanks and dashes are passed over."""
    bare = re.sub(r"[\s:-]", "", value).lower()
    if bare and (len(bare) not in {32, 40, 64} or not re.fullmatch(r"[0-9a-f]+", bare)):
        raise SettingsError(
            "--fingerprint",
            "is no fingerprint",
            hint="32 (MD5), 40 (SHA-1) or 64 (SHA-256) hexadecimal digits of the root CA certificate",
        )
    return bare


def _trust(option: str, pem: str) -> None:
    try:
        found = decode_pem(pem.encode())
        for der in found:
            crypto.parse_certificate(der)
    except Error as err:
        raise SettingsError(option, f"cannot be read: {err}") from None
    if not found:
        raise SettingsError(option, "holds no certificate", hint="give the CA of the web server in PEM")


Settings = EstSettings | ScepSettings


@dataclass(frozen=True, slots=True)
class CaConfig:
    """keystore: of an EST server, else empty. password: the keystore's, or that of the NDES account."""

    version: int
    updated: int
    settings: Settings
    keystore: bytes = field(default=b"", repr=False)
    password: str = field(default="", repr=False)

    @property
    def kind(self) -> str:
        return "est" if isinstance(self.settings, EstSettings) else "scep"

    @property
    def est(self) -> EstSettings:
        assert isinstance(self.settings, EstSettings)
        return self.settings

    @property
    def scep(self) -> ScepSettings:
        assert isinstance(self.settings, ScepSettings)
        return self.settings


def store(
    context: Context,
    settings: Settings,
    keystore: bytes = b"",
    password: str = "",
    *,
    expected: int | None = None,
) -> int:
    """Puts the configuration in place of whatever was there; returns its version.

    expected: the version that its editor saw (0: none); ConflictError when it is another one by now, unless
    that is the same configuration: somebody pressed the button twice.
    """
    secret = json.dumps({"keystore": base64.b64encode(keystore).decode(), "password": password})
    values = asdict(settings)
    name = values.pop("name")
    kind = "est" if isinstance(settings, EstSettings) else "scep"
    detail = (
        f"{name}: {settings.host}:{settings.port} label {settings.label or '-'}"
        if isinstance(settings, EstSettings)
        else f"{name}: {settings.url} profile {settings.profile or '-'}"
    )
    with context.db.begin() as connection:
        if expected is not None and (row := _moved(connection, expected)) is not None:
            if row and _same(context, row, kind, name, values, secret):
                return int(row.version)
            raise _conflict()
        version = _next_version(connection)
        challenged = _has_challenges(connection)
        connection.execute(ca_config.delete())
        connection.execute(
            ca_config.insert().values(
                id=1,
                kind=kind,
                name=name,
                settings=json.dumps(values),
                sealed=context.sealer.seal(connection, secret.encode(), PLACE),
                version=version,
                updated=now(),
            )
        )
        Database.record(connection, actor(), f"ca set-{kind}", detail)
        if challenged or _has_challenges(connection):
            changes.note(connection, [("directory", "/")])
    return version


def _moved(connection: sa.Connection, expected: int) -> Any | None:
    """None when the configuration is that version; else its row, or an empty tuple when there is none."""
    row = connection.execute(sa.select(ca_config)).one_or_none()
    found = row.version if row is not None else 0
    return None if found == expected else (row if row is not None else ())


def _same(context: Context, row: Any, kind: str, name: str, values: dict[str, Any], secret: str) -> bool:
    if (row.kind, row.name, json.loads(row.settings)) != (kind, name, values):
        return False
    return context.sealer.unseal(row.sealed, PLACE) == secret.encode()


def _conflict() -> ConflictError:
    return ConflictError(
        "version",
        "somebody else changed the CA configuration meanwhile",
        hint="compare it with what is there now, and save again to put yours in its place",
    )


def clear(context: Context, *, expected: int | None = None) -> bool:
    """Removes the configuration; False when there was none. expected: as of `store`."""
    with context.db.begin() as connection:
        if expected is not None and _moved(connection, expected):
            raise _conflict()
        challenged = _has_challenges(connection)
        gone = connection.execute(ca_config.delete()).rowcount > 0
        if gone:
            _next_version(connection)
            Database.record(connection, actor(), "ca clear", "")
        if challenged:
            changes.note(connection, [("directory", "/")])
    return gone


def show(context: Context) -> Any | None:
    """The row (kind, name, settings, version, updated) without opening its secrets."""
    with context.db.read() as connection:
        return connection.execute(sa.select(ca_config)).one_or_none()


def current_version(context: Context) -> int:
    """The version of the configuration; 0 when there is none."""
    with context.db.read() as connection:
        return connection.execute(_VERSION).scalar() or 0


def load(context: Context) -> CaConfig | None:
    """The configuration with its secrets opened; None when there is none."""
    row = show(context)
    if row is None:
        return None
    secret = json.loads(context.sealer.unseal(row.sealed, PLACE))
    made: type[Settings] = EstSettings if row.kind == "est" else ScepSettings
    settings = made(name=row.name, **json.loads(row.settings))
    return CaConfig(
        row.version, row.updated, settings, base64.b64decode(secret["keystore"]), secret["password"]
    )


def standing(context: Context) -> tuple[int, bool]:
    """The version of the configuration, 0 when there is none; does the CA want one-time challenges of NDES in the
    settings?"""
    row = context.db.once(PLACE, lambda connection: connection.execute(_STANDING).one_or_none())
    return (row.version, _wants_challenges(row.settings)) if row is not None else (0, False)


def _has_challenges(connection: sa.Connection) -> bool:
    found = connection.execute(_SETTINGS).scalar()
    return found is not None and _wants_challenges(found)


def _wants_challenges(settings: str) -> bool:
    return bool(json.loads(settings).get("ndes_url"))


def rate(connection: sa.Connection) -> int:
    """Certificates an hour that the CA may be asked for; 0 where nothing is said, or there is no CA."""
    found = connection.execute(_SETTINGS).scalar()
    return int(json.loads(found).get("rate", 0)) if found is not None else 0


def _next_version(connection: sa.Connection) -> int:
    version = int(Database.meta_in(connection, "ca_version", "0")) + 1
    Database.put_meta(connection, "ca_version", str(version))
    return version
