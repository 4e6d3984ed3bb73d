"""Profiles: settings documents, kept sealed, and which devices they are assigned to."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..codec.est import OPERATIONS
from ..errors import SettingsError
from ..model import check_text
from ..settings import MAX_CERTS, CertSettings, load_json, parse_document
from . import changes
from .context import Context
from .database import now
from .devices import Device, check_directory
from .schema import assignments, devices, profiles

__all__ = [
    "Effective",
    "Profile",
    "allow_passthrough",
    "assign",
    "effective",
    "listing",
    "merge",
    "remove",
    "store",
    "tag",
    "unassign",
]


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile for lists: certificates as (friendly name, key type), assignments as (kind, target)."""

    name: str
    certs: tuple[tuple[str, str], ...]
    assigned: tuple[tuple[str, str], ...]
    updated: int
    passthrough: bool


@dataclass(frozen=True, slots=True)
class Effective:
    """What one device gets. document: as pushed; it holds secrets. certs: the same, parsed. passthrough: friendly
    names whose profile lets the device's own SCEP client through to the CA. incomplete: something in it is still to
    come, though nobody will change the settings."""

    document: dict[str, Any]
    certs: tuple[CertSettings, ...]
    etag: str
    passthrough: frozenset[str] = frozenset()
    incomplete: bool = False


def check_name(name: str) -> str:
    if not name or name != name.strip():
        raise SettingsError("profile", "its name is empty, or begins or ends with a blank")
    return check_text("profile", name, 128)


def store(context: Context, name: str, text: bytes) -> tuple[str, ...]:
    """Checks a document and keeps it under that name, in place of an older one. Returns warnings."""
    check_name(name)
    document = load_json(text)
    settings = parse_document(document)
    for index, cert in enumerate(settings.certs):
        if cert.friendly_name in OPERATIONS:
            raise SettingsError(
                f"certs[{index}].friendly_name",
                f"{cert.friendly_name!r} is the name of an EST operation and cannot stand in a URL",
            )
    sealed = context.sealer.seal(json.dumps(document).encode(), _place(name))
    with context.db.begin() as connection:
        changed = connection.execute(
            profiles.update().where(profiles.c.name == name).values(sealed=sealed, updated=now())
        ).rowcount
        if not changed:
            connection.execute(profiles.insert().values(name=name, sealed=sealed, updated=now()))
        context.db.record(connection, "ca-proxy", "profile set", name)
        changes.note(connection, _targets(connection, name))
    return settings.warnings


def allow_passthrough(context: Context, name: str, allowed: bool) -> None:
    """May SCEP clients of the devices talk to the CA themselves? What they ask for, the proxy cannot see."""
    with context.db.begin() as connection:
        changed = connection.execute(
            profiles.update().where(profiles.c.name == name).values(passthrough=allowed)
        ).rowcount
        if not changed:
            raise _unknown(name)
        context.db.record(
            connection, "ca-proxy", "profile passthrough", f"{name}: {'on' if allowed else 'off'}"
        )


def remove(context: Context, name: str) -> None:
    """Removes a profile and its assignments. Devices then remove its certificates."""
    with context.db.begin() as connection:
        targets = _targets(connection, name)
        if not connection.execute(profiles.delete().where(profiles.c.name == name)).rowcount:
            raise _unknown(name)
        context.db.record(connection, "ca-proxy", "profile remove", name)
        changes.note(connection, targets)


def assign(context: Context, name: str, *, device: str = "", directory: str = "") -> None:
    """To one device or to all devices in and below a directory."""
    kind, target = ("device", device) if device else ("directory", check_directory(directory))
    row = {"profile": name, "kind": kind, "target": target}
    with context.db.begin() as connection:
        if not connection.execute(sa.select(profiles.c.name).where(profiles.c.name == name)).scalar():
            raise _unknown(name)
        known = sa.select(devices.c.unit_id).where(devices.c.unit_id == device)
        if device and not connection.execute(known).scalar():
            raise SettingsError(
                "--device", f"no device {device[:80]!r} is known", hint="ca-proxy device list"
            )
        connection.execute(assignments.delete().where(*(assignments.c[key] == row[key] for key in row)))
        connection.execute(assignments.insert().values(row))
        context.db.record(connection, "ca-proxy", "profile assign", f"{name} to {kind} {target}")
        changes.note(connection, [(kind, target)])


def unassign(context: Context, name: str, *, device: str = "", directory: str = "") -> None:
    kind, target = ("device", device) if device else ("directory", check_directory(directory))
    row = {"profile": name, "kind": kind, "target": target}
    with context.db.begin() as connection:
        done = connection.execute(
            assignments.delete().where(*(assignments.c[key] == row[key] for key in row))
        )
        if not done.rowcount:
            raise SettingsError(
                "profile", f"{name!r} is not assigned to {kind} {target}", hint="ca-proxy profile list"
            )
        context.db.record(connection, "ca-proxy", "profile unassign", f"{name} from {kind} {target}")
        changes.note(connection, [(kind, target)])


def _targets(connection: sa.Connection, name: str) -> list[tuple[str, str]]:
    """(kind, target) of whom the profile is assigned to."""
    query = sa.select(assignments.c.kind, assignments.c.target).where(assignments.c.profile == name)
    return [(row.kind, row.target) for row in connection.execute(query)]


def listing(context: Context) -> list[Profile]:
    with context.db.read() as connection:
        rows = connection.execute(sa.select(profiles).order_by(profiles.c.name)).all()
        links = connection.execute(sa.select(assignments).order_by(assignments.c.target)).all()
    found = []
    for row in rows:
        certs = parse_document(_open(context, row.name, row.sealed)).certs
        found.append(
            Profile(
                row.name,
                tuple((cert.friendly_name, cert.key.type) for cert in certs),
                tuple((link.kind, link.target) for link in links if link.profile == row.name),
                row.updated,
                row.passthrough,
            )
        )
    return found


def effective(context: Context, device: Device) -> Effective:
    """The documents assigned to the device as one: its own first, then those of its directories upwards.

    Of equal friendly names the first one stands.
    """
    rows = _assigned(context, device)
    return context.merged(tuple((row.name, row.sealed, row.passthrough) for row in rows))


def merge(context: Context, rows: tuple[tuple[str, bytes, bool], ...]) -> Effective:
    """The profiles (name, sealed document, passthrough), the nearest first, as one. Context.merged keeps some."""
    found = [(_open(context, name, sealed), passthrough) for name, sealed, passthrough in rows]
    documents = [document for document, _ in found]
    certs: dict[str, tuple[Any, CertSettings]] = {}
    passed = set()
    for document, passthrough in found:
        entries = document.get("certs", [])
        for entry in entries:
            parsed = parse_document({"certs": [entry]}).certs[0]
            if len(certs) < MAX_CERTS:
                if passthrough and parsed.friendly_name not in certs:
                    passed.add(parsed.friendly_name)
                certs.setdefault(parsed.friendly_name, (entry, parsed))
    shown = next(
        (doc["show_user_notifications"] for doc in documents if "show_user_notifications" in doc), True
    )
    merged = {"show_user_notifications": shown, "certs": [entry for entry, _ in certs.values()]}
    return Effective(
        merged,
        tuple(parsed for _, parsed in certs.values()),
        tag(context, merged),
        frozenset(passed),
    )


def tag(context: Context, document: dict[str, Any]) -> str:
    """The ETag of a settings document. Keyed: it is no way to guess at passwords."""
    mark = hmac.new(context.sealer.derive("settings etag"), json.dumps(document).encode(), hashlib.sha256)
    return f'"{mark.hexdigest()[:32]}"'


_ASSIGNED = (
    sa.select(
        assignments.c.kind,
        assignments.c.target,
        profiles.c.name,
        profiles.c.sealed,
        profiles.c.passthrough,
    )
    .join(profiles, profiles.c.name == assignments.c.profile)
    .where(
        sa.or_(
            sa.and_(assignments.c.kind == "device", assignments.c.target == sa.bindparam("unit_id")),
            sa.and_(
                assignments.c.kind == "directory",
                assignments.c.target.in_(sa.bindparam("above", expanding=True)),
            ),
        )
    )
)


def _assigned(context: Context, device: Device) -> list[Any]:
    """Rows (name, sealed, passthrough) of the device's profiles, the nearest first."""
    parts = [part for part in device.directory.split("/") if part]
    above = ["/" + "/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
    with context.db.read() as connection:
        rows = connection.execute(_ASSIGNED, {"unit_id": device.unit_id, "above": above}).all()
    rank = {target: index for index, target in enumerate(above)}
    ordered = sorted(rows, key=lambda row: (-1 if row.kind == "device" else rank[row.target], row.name))
    found: dict[str, Any] = {}
    for row in ordered:  # assigned twice, it counts where it counts most
        found.setdefault(row.name, row)
    return list(found.values())


def _open(context: Context, name: str, sealed: bytes) -> Any:
    return json.loads(context.sealer.unseal(sealed, _place(name)))


def _place(name: str) -> str:
    return f"profiles/{name}"


def _unknown(name: str) -> SettingsError:
    return SettingsError("profile", f"there is no profile {name[:80]!r}", hint="ca-proxy profile list")
