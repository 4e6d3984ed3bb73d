"""Devices: who is known here, and by what token each may register."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ..errors import SettingsError
from ..model import DeviceFacts, check_dns_name, check_text, check_unit_id
from . import changes
from .audit import actor
from .context import Context
from .database import now
from .schema import assignments, devices, management_certificates, tokens

__all__ = [
    "Device",
    "Token",
    "add",
    "by_certificate",
    "check_directory",
    "check_hostname",
    "check_hostname_text",
    "check_unit",
    "find",
    "fresh_row",
    "get",
    "import_csv",
    "insert_many",
    "listing",
    "must_find",
    "new_token",
    "of_row",
    "owner_of",
    "remove",
]

TOKEN_BYTES = 32
TOKEN_SECONDS = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Token:
    """A registration token; it is shown once and stored as its SHA-256."""

    unit_id: str
    token: str = field(repr=False)
    expires: int


@dataclass(frozen=True, slots=True)
class Device:
    unit_id: str
    directory: str
    hostname: str
    hostname_fixed: bool
    ips: tuple[str, ...]
    state: str
    created: int
    registered_at: int | None
    last_seen: int | None

    @property
    def facts(self) -> DeviceFacts:
        return DeviceFacts(self.hostname, self.unit_id, self.ips)

    def as_json(self) -> dict[str, Any]:
        return {
            "unit_id": self.unit_id,
            "directory": self.directory,
            "hostname": self.hostname,
            "hostname_fixed": self.hostname_fixed,
            "ips": list(self.ips),
            "state": self.state,
            "created": self.created,
            "registered_at": self.registered_at,
            "last_seen": self.last_seen,
        }


def of_row(row: Any) -> Device:
    return Device(
        row.unit_id,
        row.directory,
        row.hostname,
        row.hostname_fixed,
        tuple(json.loads(row.ips)),
        row.state,
        row.created,
        row.registered_at,
        row.last_seen,
    )


# ---- for administrators -------------------------------------------------------------------------


def check_directory(path: str) -> str:
    """A directory of devices: "/A/B" without a slash at its end; "/" is the root."""
    parts = path.split("/")
    if not path.startswith("/"):
        raise SettingsError("--directory", f"{path[:80]!r} does not begin with a slash, as /A/B does")
    check_text("--directory", path, 512)
    names = [part for part in parts[1:] if part]
    if len(names) != len(parts[1:]) - path.endswith("/") or any(
        name.strip() in {"", ".", ".."} for name in names
    ):
        raise SettingsError("--directory", f"{path[:80]!r} is not a directory of the form /A/B")
    return "/" + "/".join(names)


def add(context: Context, unit_id: str, directory: str = "/", hostname: str = "") -> Token:
    """Makes a device known; it registers with the token that is returned."""
    with context.db.begin() as connection:
        token = _add(connection, unit_id, directory, hostname)
        context.db.record(connection, actor(), "device add", f"{unit_id} in {directory}")
    return token


def _add(connection: sa.Connection, unit_id: str, directory: str, hostname: str) -> Token:
    check_unit(unit_id)
    directory = check_directory(directory)
    if hostname:
        check_hostname(connection, hostname, unit_id)
    if find(connection, unit_id):
        raise SettingsError(
            "--unit-id",
            f"{unit_id} is known already",
            hint=f"for a new registration token: ca-proxy device token --unit-id {unit_id}",
        )
    return insert_many(connection, [fresh_row(unit_id, directory, hostname)], now())[0]


def fresh_row(unit_id: str, directory: str, hostname: str) -> dict[str, Any]:
    """The row of a device that has not registered yet."""
    return {
        "unit_id": unit_id,
        "directory": directory,
        "hostname": hostname,
        "hostname_fixed": bool(hostname),
        "ips": "[]",
        "state": "added",
        "report": "{}",
    }


def insert_many(connection: sa.Connection, rows: list[dict[str, Any]], moment: int) -> list[Token]:
    """Adds checked rows, each with a token."""
    if not rows:
        return []
    made = [Token(row["unit_id"], secrets.token_urlsafe(TOKEN_BYTES), moment + TOKEN_SECONDS) for row in rows]
    connection.execute(devices.insert(), [{**row, "created": moment} for row in rows])
    connection.execute(tokens.insert(), [_token_row(token) for token in made])
    return made


def _token_row(token: Token) -> dict[str, Any]:
    digest = hashlib.sha256(token.token.encode()).hexdigest()
    return {"token_sha256": digest, "unit_id": token.unit_id, "expires": token.expires}


def new_token(context: Context, unit_id: str) -> Token:
    """A token for a device that is known: it lost its management identity. Older unused ones end."""
    with context.db.begin() as connection:
        must_find(connection, unit_id)
        connection.execute(tokens.delete().where(tokens.c.unit_id == unit_id, tokens.c.used_at.is_(None)))
        token = Token(unit_id, secrets.token_urlsafe(TOKEN_BYTES), now() + TOKEN_SECONDS)
        connection.execute(tokens.insert().values(_token_row(token)))
        context.db.record(connection, actor(), "device token", unit_id)
    return token


def remove(context: Context, *unit_ids: str) -> None:
    """Forgets devices: their management certificates are worth nothing from the next request on."""
    with context.db.begin() as connection:
        for unit_id in unit_ids:
            must_find(connection, unit_id)
            connection.execute(
                assignments.delete().where(assignments.c.kind == "device", assignments.c.target == unit_id)
            )
            connection.execute(devices.delete().where(devices.c.unit_id == unit_id))
            context.db.record(connection, actor(), "device remove", unit_id)
        changes.note(connection, [("device", unit_id) for unit_id in unit_ids])


def listing(context: Context) -> list[Device]:
    with context.db.read() as connection:
        rows = connection.execute(sa.select(devices).order_by(devices.c.directory, devices.c.unit_id))
        return [of_row(row) for row in rows]


def get(context: Context, unit_id: str) -> Device | None:
    with context.db.read() as connection:
        return find(connection, unit_id)


def import_csv(context: Context, text: str) -> list[Token]:
    """Devices from CSV with the columns unit_id, directory, hostname (the last two may be missing).

    All or none: an error names its line.
    """
    from .importing import Import

    sheet = Import(text)
    for _ in sheet.check():
        pass
    return sheet.write(context)


def find(connection: sa.Connection, unit_id: str) -> Device | None:
    row = connection.execute(sa.select(devices).where(devices.c.unit_id == unit_id)).one_or_none()
    return of_row(row) if row else None


def must_find(connection: sa.Connection, unit_id: str) -> Device:
    found = find(connection, unit_id)
    if found is None:
        raise SettingsError("--unit-id", f"no device {unit_id[:80]!r} is known", hint="ca-proxy device list")
    return found


_BY_CERTIFICATE = (
    sa.select(devices)
    .join(management_certificates, management_certificates.c.unit_id == devices.c.unit_id)
    .where(management_certificates.c.sha256 == sa.bindparam("digest"))
)


def by_certificate(context: Context, certificate: bytes) -> Device | None:
    """The device of a management certificate, looked up anew each time: a removed device has none."""
    with context.db.read() as connection:
        digest = hashlib.sha256(certificate).hexdigest()
        row = connection.execute(_BY_CERTIFICATE, {"digest": digest}).one_or_none()
    return of_row(row) if row else None


def check_unit(unit_id: str) -> str:
    return check_unit_id("--unit-id", unit_id)


def check_hostname(connection: sa.Connection, hostname: str, unit_id: str) -> None:
    """Can an administrator give this host name to the device? SettingsError."""
    check_hostname_text(hostname)
    if owner := owner_of(connection, hostname, unit_id):
        raise SettingsError("--hostname", f"{hostname} is the host name of device {owner}")


def check_hostname_text(value: object, path: str = "--hostname") -> None:
    """The host name of one device. A wildcard would speak for others, and so would a second spelling of a name that
    is taken (a dot at its end, characters that IDNA maps to ASCII), as certificates hold the canonical one."""
    if not isinstance(value, str):
        raise SettingsError(path, "is not text")
    name = check_dns_name(path, value)
    if (
        not value.isascii() or name != value.lower() or "*" in name or len(value) > 64
    ):  # it becomes a common name
        raise SettingsError(
            path,
            f"{value[:80]!r} is not a device's host name: ASCII, at most 64 characters, no dot at its end",
        )
    last = name.rpartition(".")[2]
    if last.isdecimal() or last in {"localhost", "localdomain"}:
        raise SettingsError(path, f"{value!r} is an address or a name that every machine has for itself")


def owner_of(connection: sa.Connection, hostname: str, unit_id: str) -> str | None:
    """The other device that has the name, or goes by it as its unit ID."""
    taken = (sa.func.lower(column) == hostname.lower() for column in (devices.c.hostname, devices.c.unit_id))
    query = sa.select(devices.c.unit_id).where(sa.or_(*taken), devices.c.unit_id != unit_id)
    return connection.execute(query.limit(1)).scalar()
