"""The CA's configuration: one row, its secrets sealed, its version counting up with every change."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ...codec.est import OPERATIONS
from ...errors import SettingsError
from ...model import check_dns_name, check_ip, check_text, is_ca_label
from ..database import Database, now
from ..schema import ca_config

if TYPE_CHECKING:
    from ..context import Context

__all__ = ["CaConfig", "EstSettings", "clear", "current_version", "load", "show", "store"]

_PLACE = "ca_config"


@dataclass(frozen=True, slots=True)
class EstSettings:
    """Where the EST server is. name: how people call this configuration; label: "" for none."""

    name: str
    host: str
    port: int = 443
    label: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise SettingsError("--name", "is empty")
        check_text("--name", self.name, 128)
        object.__setattr__(self, "host", _host(self.host))
        if not 0 < self.port < 65_536:
            raise SettingsError("--port", f"{self.port} is not a port")
        if self.label and not is_ca_label(self.label):
            raise SettingsError(
                "--label",
                f"{self.label[:80]!r} is not a CA label",
                hint="letters, digits, '_' and '-' are allowed; case counts",
            )
        if self.label in OPERATIONS:
            raise SettingsError("--label", f"{self.label!r} is the name of an EST operation")


def _host(value: str) -> str:
    bare = value.strip().removeprefix("[").removesuffix("]")
    if "://" in value or "/" in value:
        raise SettingsError(
            "--host",
            f"{value[:80]!r} is a URL",
            hint="give the host name alone; --port and --label are apart",
        )
    try:
        return check_ip("--host", bare)
    except SettingsError:
        return check_dns_name("--host", bare)


@dataclass(frozen=True, slots=True)
class CaConfig:
    version: int
    updated: int
    est: EstSettings
    keystore: bytes = field(repr=False)
    password: str = field(repr=False)


def store(context: Context, settings: EstSettings, keystore: bytes, password: str) -> int:
    """Puts the configuration in place of whatever was there; returns its version."""
    secret = json.dumps({"keystore": base64.b64encode(keystore).decode(), "password": password})
    public = json.dumps({"host": settings.host, "port": settings.port, "label": settings.label})
    with context.db.begin() as connection:
        version = _next_version(connection)
        connection.execute(ca_config.delete())
        connection.execute(
            ca_config.insert().values(
                id=1,
                kind="est",
                name=settings.name,
                settings=public,
                sealed=context.sealer.seal(secret.encode(), _PLACE),
                version=version,
                updated=now(),
            )
        )
        detail = f"{settings.name}: {settings.host}:{settings.port} label {settings.label or '-'}"
        Database.record(connection, "ca-proxy", "ca set-est", detail)
    return version


def clear(context: Context) -> bool:
    """Removes the configuration; False when there was none."""
    with context.db.begin() as connection:
        gone = connection.execute(ca_config.delete()).rowcount > 0
        if gone:
            _next_version(connection)
            Database.record(connection, "ca-proxy", "ca clear", "")
    return gone


def show(context: Context) -> Any | None:
    """The row (kind, name, settings, version, updated) without opening its secrets."""
    with context.db.read() as connection:
        return connection.execute(sa.select(ca_config)).one_or_none()


def current_version(context: Context) -> int:
    """The version of the configuration; 0 when there is none."""
    with context.db.read() as connection:
        return connection.execute(sa.select(ca_config.c.version)).scalar() or 0


def load(context: Context) -> CaConfig | None:
    """The configuration with its secrets opened; None when there is none."""
    row = show(context)
    if row is None:
        return None
    secret = json.loads(context.sealer.unseal(row.sealed, _PLACE))
    est = EstSettings(name=row.name, **json.loads(row.settings))
    return CaConfig(row.version, row.updated, est, base64.b64decode(secret["keystore"]), secret["password"])


def _next_version(connection: sa.Connection) -> int:
    version = int(Database.meta_in(connection, "ca_version", "0")) + 1
    Database.put_meta(connection, "ca_version", str(version))
    return version
