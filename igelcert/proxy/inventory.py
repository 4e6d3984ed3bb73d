"""Devices as administrators look at them: directories, searching, moving, everything about one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .. import crypto
from ..errors import ConflictError, SettingsError
from . import certificates, changes, devices, overview, paging, profiles
from .audit import actor
from .certificates import Certificate
from .context import Context
from .database import now
from .devices import Device, check_directory
from .schema import assignments, directories, enrollments, management_certificates, tokens
from .schema import certificates as certificate_table
from .schema import devices as device_table

__all__ = [
    "STATES",
    "Detail",
    "Directory",
    "Management",
    "change",
    "counts",
    "detail",
    "make_directory",
    "move",
    "move_directory",
    "remove_directory",
    "search",
    "tree",
]

DAY = 86_400
SOON = 30 * DAY
SILENT = 7 * DAY
MANY = 500  # devices, above which everybody is told to look
STATES = {
    "added": "not registered yet",
    "registered": "registered",
    "expiring": "a certificate expires within 30 days",
    "expired": "a certificate has expired",
    "failing": "a request was refused or failed, or the device reports trouble",
    "silent": "not heard of for 7 days",
}


# ---- directories --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Directory:
    """devices: how many stand in it; below: in it and everywhere below; profiles: assigned right here."""

    path: str
    devices: int
    below: int
    profiles: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2] or "/"

    @property
    def depth(self) -> int:
        return 0 if self.path == "/" else self.path.count("/")


def tree(context: Context) -> list[Directory]:
    """Every directory, the root first, parents before children: made, lived in, or assigned to."""
    with context.db.read() as connection:
        standing = sa.select(device_table.c.directory, sa.func.count()).group_by(device_table.c.directory)
        held: dict[str, int] = {row[0]: row[1] for row in connection.execute(standing)}
        paths = set(connection.execute(sa.select(directories.c.path)).scalars())
        links = connection.execute(
            sa.select(assignments.c.target, assignments.c.profile).where(assignments.c.kind == "directory")
        ).all()
    given: dict[str, list[str]] = {}
    for link in links:
        given.setdefault(link.target, []).append(link.profile)
    every = {"/"}
    for path in (*paths, *held, *given):
        every.update(_upwards(path))
    below = dict.fromkeys(every, 0)
    for path, count in held.items():
        for above in _upwards(path):
            below[above] += count
    ordered = sorted(every, key=_natural)
    return [
        Directory(path, held.get(path, 0), below[path], tuple(sorted(given.get(path, []))))
        for path in ordered
    ]


def _natural(path: str) -> list[list[tuple[int, str]]]:
    """Floor 2 before Floor 10; a directory before what is in it."""
    names = [part.casefold() for part in path.split("/")[1:] if part]
    return [
        [(int(digits or -1), text) for digits, text in re.findall(r"(\d{1,18})|(\D+)", name)]
        for name in names
    ]


def _upwards(path: str) -> list[str]:
    """The directory and all above it, the root included."""
    parts = [part for part in path.split("/") if part]
    return ["/" + "/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


def _inside(column: sa.ColumnElement[str], path: str) -> sa.ColumnElement[bool]:
    """In the directory or anywhere below it."""
    if path == "/":
        return sa.true()
    return sa.or_(column == path, column.startswith(f"{path}/", autoescape=True))


def make_directory(context: Context, path: str) -> str:
    path = check_directory(path)
    with context.db.begin() as connection:
        if (
            path == "/"
            or connection.execute(sa.select(directories).where(directories.c.path == path)).first()
        ):
            raise SettingsError("--directory", f"{path} is there already")
        connection.execute(directories.insert().values(path=path))
        context.db.record(connection, actor(), "directory add", path)
    return path


def remove_directory(context: Context, path: str) -> None:
    """An empty one, with what is assigned to it; SettingsError while devices are in it or below."""
    path = check_directory(path)
    if path == "/":
        raise SettingsError("--directory", "the root stays")
    with context.db.begin() as connection:
        count = connection.execute(
            sa.select(sa.func.count())
            .select_from(device_table)
            .where(_inside(device_table.c.directory, path))
        ).scalar_one()
        if count:
            raise SettingsError(
                "--directory", f"{count} devices are in it or below", hint="move or remove them first"
            )
        gone = connection.execute(directories.delete().where(_inside(directories.c.path, path))).rowcount
        gone += connection.execute(
            assignments.delete().where(assignments.c.kind == "directory", _inside(assignments.c.target, path))
        ).rowcount
        if not gone:
            raise SettingsError("--directory", f"there is no directory {path!r}")
        context.db.record(connection, actor(), "directory remove", path)


def move_directory(context: Context, path: str, to: str) -> int:
    """Renames a directory with all that is in it, devices and assignments; returns how many devices moved."""
    path, to = check_directory(path), check_directory(to)
    if path == "/":
        raise SettingsError("--directory", "the root stays")
    if to == path or to.startswith(f"{path}/"):
        raise SettingsError("--to", f"{to} is the directory itself, or in it")
    if to in {each.path for each in tree(context)}:
        raise SettingsError("--to", f"{to} is there already")
    longest = 0
    with context.db.begin() as connection:
        for column in (device_table.c.directory, directories.c.path, assignments.c.target):
            size = connection.execute(
                sa.select(sa.func.max(sa.func.length(column))).where(_inside(column, path))
            )
            longest = max(longest, size.scalar() or 0)
        if longest - len(path) + len(to) > 512:
            raise SettingsError("--to", "a directory below it would get a path of more than 512 characters")

        def renamed(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
            return sa.literal(to) + sa.func.substr(column, len(path) + 1)

        moved = connection.execute(
            device_table.update()
            .where(_inside(device_table.c.directory, path))
            .values(directory=renamed(device_table.c.directory))
        ).rowcount
        others = connection.execute(
            directories.update()
            .where(_inside(directories.c.path, path))
            .values(path=renamed(directories.c.path))
        ).rowcount
        others += connection.execute(
            assignments.update()
            .where(assignments.c.kind == "directory", _inside(assignments.c.target, path))
            .values(target=renamed(assignments.c.target))
        ).rowcount
        if not moved + others:
            raise SettingsError("--directory", f"there is no directory {path!r}")
        context.db.record(connection, actor(), "directory move", f"{path} to {to}, {moved} devices")
        changes.note(connection, [("directory", path), ("directory", to)])
    return moved


# ---- devices ------------------------------------------------------------------------------------


def search(
    context: Context,
    *,
    text: str = "",
    directory: str = "",
    below: bool = True,
    state: str = "",
    limit: int = 100,
    offset: int = 0,
) -> paging.Page[Device]:
    """Devices by unit ID, host name or address, in a directory (and below), in a state of STATES."""
    query = sa.select(device_table)
    if text:
        query = query.where(
            paging.contains(text, device_table.c.unit_id, device_table.c.hostname, device_table.c.ips)
        )
    if directory:
        path = check_directory(directory)
        query = query.where(
            _inside(device_table.c.directory, path) if below else device_table.c.directory == path
        )
    if state:
        query = query.where(_in_state(state))
    order = (device_table.c.directory, device_table.c.unit_id)
    with context.db.read() as connection:
        found = paging.page(connection, query, order, limit, offset)
    return paging.Page(tuple(devices.of_row(row) for row in found.items), found.total, limit, offset)


def _in_state(state: str) -> sa.ColumnElement[bool]:
    moment = now()
    until = certificate_table.c.not_after
    holders = sa.select(certificate_table.c.unit_id)
    if state in {"added", "registered"}:
        return device_table.c.state == state
    if state == "expiring":
        return device_table.c.unit_id.in_(holders.where(until > moment, until <= moment + SOON))
    if state == "expired":
        return device_table.c.unit_id.in_(holders.where(until <= moment))
    if state == "silent":
        return sa.and_(device_table.c.state == "registered", device_table.c.last_seen < moment - SILENT)
    if state == "failing":
        later = enrollments.alias("later")
        bad = enrollments.c.state.in_(("failed", "refused"))
        mended = sa.exists().where(
            later.c.unit_id == enrollments.c.unit_id,
            later.c.friendly_name == enrollments.c.friendly_name,
            later.c.updated >= enrollments.c.updated,
            later.c.state == "issued",
        )
        refused = device_table.c.unit_id.in_(sa.select(enrollments.c.unit_id).where(bad, ~mended))
        return sa.or_(refused, overview.reports_trouble())
    raise SettingsError(
        "--state", f"{state[:40]!r} is no state of a device", hint="one of: " + " ".join(STATES)
    )


def counts(context: Context) -> dict[str, int]:
    """How many devices are in each state of STATES; a device can be in several."""
    with context.db.read() as connection:
        return {
            state: connection.execute(
                sa.select(sa.func.count()).select_from(device_table).where(_in_state(state))
            ).scalar_one()
            for state in STATES
        }


def move(context: Context, unit_ids: Sequence[str], directory: str) -> int:
    """Into another directory: what is assigned to it counts for them at once. Returns how many moved."""
    path = check_directory(directory)
    if not unit_ids:
        raise SettingsError("--unit-id", "no device is chosen")
    with context.db.begin() as connection:
        for unit_id in unit_ids:
            devices.must_find(connection, unit_id)
        connection.execute(
            device_table.update().where(device_table.c.unit_id.in_(unit_ids)).values(directory=path)
        )
        shown = ", ".join(unit_ids[:20]) + (f" and {len(unit_ids) - 20} more" if len(unit_ids) > 20 else "")
        context.db.record(connection, actor(), "device move", f"{shown} to {path}")
        whom = [("device", unit_id) for unit_id in unit_ids]
        changes.note(connection, whom if len(whom) <= MANY else [("directory", "/")])
    return len(unit_ids)


def change(
    context: Context,
    unit_id: str,
    *,
    directory: str | None = None,
    hostname: str | None = None,
    seen: tuple[str, str] | None = None,
) -> Device:
    """Moves a device, fixes its host name, or lets the device report it ("" for hostname).

    seen: the directory and fixed host name ("" for none) that the editor saw; ConflictError when they changed.
    """
    values: dict[str, Any] = {}
    with context.db.begin() as connection:
        device = devices.must_find(connection, unit_id)
        if seen is not None and seen != (device.directory, device.hostname if device.hostname_fixed else ""):
            raise ConflictError("seen", "this device was changed by somebody else meanwhile")
        if directory is not None and check_directory(directory) != device.directory:
            values["directory"] = check_directory(directory)
        if hostname:
            devices.check_hostname(connection, hostname, unit_id)
            values.update(hostname=hostname, hostname_fixed=True)
        elif hostname is not None and device.hostname_fixed:
            values["hostname_fixed"] = False
        if values:
            connection.execute(device_table.update().where(device_table.c.unit_id == unit_id).values(values))
            said = ", ".join(f"{key} {value}" for key, value in values.items())
            context.db.record(connection, actor(), "device change", f"{unit_id}: {said}")
            changes.note(connection, [("device", unit_id)])
        return devices.must_find(connection, unit_id)


@dataclass(frozen=True, slots=True)
class Management:
    """A management certificate of a device."""

    serial: str
    not_before: int
    not_after: int
    sha256: str
    key_type: str


@dataclass(frozen=True, slots=True)
class Detail:
    """Everything about one device. profiles: (name, kind, target) as they count, the nearest first.

    last: friendly name -> the newest request for it. reported: what the device said of its certificates.
    token_until: until when a registration token that was made for it is good.
    """

    device: Device
    management: tuple[Management, ...]
    profiles: tuple[tuple[str, str, str], ...]
    certs: tuple[Certificate, ...]
    last: dict[str, Any]
    reported: dict[str, dict[str, Any]]
    token_until: int | None


def detail(context: Context, unit_id: str) -> Detail | None:
    """None when no such device is known."""
    device = devices.get(context, unit_id)
    if device is None:
        return None
    with context.db.read() as connection:
        rows = connection.execute(
            sa.select(management_certificates)
            .where(management_certificates.c.unit_id == unit_id)
            .order_by(management_certificates.c.not_before.desc())
        ).all()
        report = connection.execute(
            sa.select(device_table.c.report).where(device_table.c.unit_id == unit_id)
        ).scalar_one()
        token = connection.execute(
            sa.select(sa.func.max(tokens.c.expires)).where(
                tokens.c.unit_id == unit_id, tokens.c.used_at.is_(None), tokens.c.expires > now()
            )
        ).scalar()
        asks = connection.execute(
            sa.select(
                enrollments.c.friendly_name,
                enrollments.c.state,
                enrollments.c.reason,
                enrollments.c.warnings,
                enrollments.c.updated,
            )
            .where(enrollments.c.unit_id == unit_id)
            .order_by(enrollments.c.updated.desc(), enrollments.c.id.desc())
            .limit(500)
        ).all()
    last: dict[str, Any] = {}
    for ask in asks:
        last.setdefault(ask.friendly_name, ask)
    return Detail(
        device,
        tuple(
            Management(
                row.serial,
                row.not_before,
                row.not_after,
                row.sha256,
                crypto.parse_certificate(row.certificate).key_type,
            )
            for row in rows
        ),
        tuple(profiles.assigned_to(context, device)),
        tuple(certificates.of_device(context, unit_id)),
        last,
        {entry["friendly_name"]: entry for entry in json.loads(report).get("certs", [])},
        token,
    )
