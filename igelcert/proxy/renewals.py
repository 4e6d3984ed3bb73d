"""Renewals that an administrator asks for: now, or within a time: of a device, a directory, or all that a CA issued.

Each certificate gets a window of its own, those that expire first before the others, and its device hears of it with
its settings. They name the serial number of what is to be renewed, so it is done once, however often they are read, and
not at all where the certificate was renewed meanwhile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .. import crypto
from ..errors import SettingsError
from . import changes
from .audit import actor
from .context import Context
from .database import Database, now
from .devices import check_directory
from .schema import ca_certificates, certificates, devices, renewals
from .upstream import config as ca_config

__all__ = ["WITHIN_MAX", "Asked", "renew", "renew_now", "wanted"]

WITHIN_MAX = 366 * 86_400  # seconds
_WANTED = sa.select(renewals.c.friendly_name, renewals.c.serial, renewals.c.begin, renewals.c.until).where(
    renewals.c.unit_id == sa.bindparam("unit")
)
_ANY = sa.select(renewals.c.unit_id).limit(1)


@dataclass(frozen=True, slots=True)
class Asked:
    """How many certificates are to be renewed, the first from `begin` on and the last by `until` (0, 0: at once)."""

    count: int
    begin: int = 0
    until: int = 0
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "certificates": self.count,
            "from": self.begin or None,
            "until": self.until or None,
            "warnings": list(self.warnings),
        }


def renew(
    context: Context,
    *,
    device: str = "",
    directory: str = "",
    issuer: str = "",
    friendly_name: str = "",
    within: int = 0,
) -> Asked:
    """Asks for the renewal of the certificates of one device, of all in and below a directory, or of all that a CA
    issued (its common name, or the SHA-256 of its certificate), spread over `within` seconds; 0: at once.

    SettingsError when there is no such device or directory, or nothing to renew.
    """
    if sum(map(bool, (device, directory, issuer))) != 1:
        raise SettingsError("--device", "one of a device, a directory and an issuer is wanted")
    if not 0 <= within <= WITHIN_MAX:
        raise SettingsError("--within", f"is not from 0 seconds to {WITHIN_MAX // 86_400} days")
    with context.db.begin() as connection:
        chosen = _chosen(connection, device, directory, issuer)
        if friendly_name:
            chosen = sa.and_(chosen, certificates.c.friendly_name == friendly_name)
        total = connection.execute(
            sa.select(sa.func.count()).select_from(certificates).where(chosen)
        ).scalar_one()
        if not total:
            raise _nothing(device, directory, issuer, friendly_name)
        moment = now()
        # a tenth of the time is kept for what has to be tried again
        _put(connection, chosen, total, moment, within * 9 // 10)
        what = f"device {device}" if device else f"directory {directory}" if directory else f"issuer {issuer}"
        how = f"within {within} s" if within else "now"
        Database.record(connection, actor(), "renew", f"{what}: {total} certificates {how}"[:1000])
        warnings = _too_fast(total, within, ca_config.rate(connection))
        told = ("device", device) if device else ("directory", check_directory(directory or "/"))
        changes.note(connection, [told])
    return Asked(total, moment, moment + within, warnings) if within else Asked(total, warnings=warnings)


def renew_now(context: Context, unit_id: str, friendly_name: str = "") -> list[str]:
    """Tells the device to renew that certificate, or all that it has, at once; returns their friendly names."""
    renew(context, device=unit_id, friendly_name=friendly_name)
    with context.db.read() as connection:
        rows = connection.execute(_WANTED, {"unit": unit_id}).all()
    return sorted(
        row.friendly_name for row in rows if not friendly_name or row.friendly_name == friendly_name
    )


def _chosen(connection: sa.Connection, device: str, directory: str, issuer: str) -> sa.ColumnElement[bool]:
    """Which rows of `certificates`."""
    if device:
        known = sa.select(devices.c.unit_id).where(devices.c.unit_id == device)
        if connection.execute(known).scalar() is None:
            raise SettingsError(
                "--device", f"no device {device[:80]!r} is known", hint="ca-proxy device list"
            )
        return certificates.c.unit_id == device
    if directory:
        path = check_directory(directory)
        if path == "/":
            return sa.true()
        below = devices.c.directory.startswith(path + "/", autoescape=True)
        inside = sa.select(devices.c.unit_id).where(sa.or_(devices.c.directory == path, below))
        return certificates.c.unit_id.in_(inside)
    return _issued_by(connection, issuer)


def _issued_by(connection: sa.Connection, issuer: str) -> sa.ColumnElement[bool]:
    digest = re.sub(r"[\s:]", "", issuer).lower()
    if not re.fullmatch("[0-9a-f]{64}", digest):
        return certificates.c.issuer == issuer
    same = certificates.c.issuer_sha256 == digest
    der = connection.execute(
        sa.select(ca_certificates.c.der).where(ca_certificates.c.sha256 == digest).limit(1)
    ).scalar()
    if der is None:
        return same
    # of certificates that were issued before this was noted, the name is all that is known
    name = crypto.parse_certificate(der).cn
    return sa.or_(same, sa.and_(certificates.c.issuer_sha256 == "", certificates.c.issuer == name))


def _put(
    connection: sa.Connection, chosen: sa.ColumnElement[bool], total: int, moment: int, seconds: int
) -> None:
    """A row for each, its window one after the other in the order of their expiry; one statement however many they are."""
    keys = sa.select(certificates.c.unit_id, certificates.c.friendly_name).where(chosen)
    both = sa.tuple_(renewals.c.unit_id, renewals.c.friendly_name)
    connection.execute(renewals.delete().where(both.in_(keys)))
    order = (certificates.c.not_after, certificates.c.unit_id, certificates.c.friendly_name)
    rank = sa.func.row_number().over(order_by=order) - 1
    step = max(1, seconds // total)
    begin: Any = sa.literal(0, sa.BigInteger)
    until: Any = begin
    if seconds:
        begin = moment + sa.cast(rank, sa.BigInteger) * seconds // total
        until = begin + step
    columns = certificates.c
    rows = sa.select(
        columns.unit_id,
        columns.friendly_name,
        columns.serial,
        sa.literal(moment, sa.BigInteger),
        begin,
        until,
    ).where(chosen)
    names = ["unit_id", "friendly_name", "serial", "asked", "begin", "until"]
    connection.execute(renewals.insert().from_select(names, rows))


def _nothing(device: str, directory: str, issuer: str, friendly_name: str) -> SettingsError:
    path = "--device" if device else "--directory" if directory else "--issuer"
    what = f"certificate {friendly_name[:80]!r}" if friendly_name else "certificate"
    if device:
        why = f"the device has no {what} yet"
    else:
        why = f"there is no {what} {f'in {directory}' if directory else f'issued by {issuer[:80]!r}'}"
    return SettingsError("friendly_name" if friendly_name else path, why)


def _too_fast(total: int, within: int, rate: int) -> tuple[str, ...]:
    if not rate or total * 3_600 <= rate * max(within, 1) * 9 // 10 or (total == 1 and not within):
        return ()
    hours = -(-total * 10 // (rate * 9))
    return (
        f"{total} certificates in that time are more than the CA's rate of {rate} an hour allows: "
        f"some will wait for their turn; within {hours}h there would be room",
    )


def wanted(context: Context, unit_id: str) -> dict[str, dict[str, Any]]:
    """Friendly name -> what the settings say of a certificate that is to be renewed: its serial number, and when."""
    if context.db.seen_empty(_ANY):
        return {}
    with context.db.read() as connection:
        rows = connection.execute(_WANTED, {"unit": unit_id}).all()
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found[row.friendly_name] = {"renew_serial": row.serial}
        if row.until:
            found[row.friendly_name].update(renew_from=row.begin, renew_until=row.until)
    return found
