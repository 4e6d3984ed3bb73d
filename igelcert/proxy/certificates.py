"""The newest certificate of each device and friendly name: for lists, charts, figures, and "renew now"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from .. import crypto
from ..errors import SettingsError
from . import changes
from .audit import actor
from .context import Context
from .database import Database, now
from .schema import certificates, devices, renewals

__all__ = [
    "AGES",
    "Certificate",
    "by_age",
    "by_week",
    "forget",
    "note",
    "of_device",
    "renew_now",
    "wanted_renewals",
]

DAY = 86_400
# name -> days to expiry, from and below
AGES: dict[str, tuple[int, int]] = {
    "expired": (-100_000, 0),
    "0-1": (0, 1),
    "1-7": (1, 7),
    "7-14": (7, 14),
    "14-30": (14, 30),
    "30-90": (30, 90),
    "90+": (90, 1_000_000),
}


# statements are made once: making one costs as much as running it
# it stays known until the end of the transaction
_KNOWN = (
    sa.select(devices.c.unit_id)
    .where(devices.c.unit_id == sa.bindparam("unit"))
    .with_for_update(read=True, key_share=True)
)
_WANTED = sa.select(renewals.c.friendly_name, renewals.c.serial).where(
    renewals.c.unit_id == sa.bindparam("unit")
)
_DONE = renewals.delete().where(
    renewals.c.unit_id == sa.bindparam("unit"), renewals.c.friendly_name == sa.bindparam("name")
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """asked: when an administrator wanted this very certificate renewed, None when nobody did."""

    friendly_name: str
    serial: str
    subject: str
    not_before: int
    not_after: int
    issued: int
    asked: int | None = None


def note(connection: sa.Connection, unit_id: str, friendly_name: str, cert: crypto.Certificate) -> None:
    """The device got this certificate. A device that was removed meanwhile has none."""
    if connection.execute(_KNOWN, {"unit": unit_id}).scalar() is None:
        return
    row = {
        "unit_id": unit_id,
        "friendly_name": friendly_name,
        "serial": cert.serial_hex,
        "subject": cert.subject_text,
        "not_before": cert.not_before,
        "not_after": cert.not_after,
        "issued": now(),
    }
    Database.put(connection, certificates, row)
    connection.execute(_DONE, {"unit": unit_id, "name": friendly_name})


def forget(connection: sa.Connection, unit_id: str, kept: Sequence[str], before: int) -> None:
    """The device has only those names left; what was issued after `before` may still be on its way to it."""
    connection.execute(
        certificates.delete().where(
            certificates.c.unit_id == unit_id,
            certificates.c.friendly_name.not_in(kept),
            certificates.c.issued < before,
        )
    )


def of_device(context: Context, unit_id: str) -> list[Certificate]:
    query = (
        sa.select(certificates, renewals.c.asked)
        .outerjoin(
            renewals,
            sa.and_(
                renewals.c.unit_id == certificates.c.unit_id,
                renewals.c.friendly_name == certificates.c.friendly_name,
                renewals.c.serial == certificates.c.serial,
            ),
        )
        .where(certificates.c.unit_id == unit_id)
        .order_by(certificates.c.friendly_name)
    )
    with context.db.read() as connection:
        rows = connection.execute(query).all()
    return [
        Certificate(
            row.friendly_name, row.serial, row.subject, row.not_before, row.not_after, row.issued, row.asked
        )
        for row in rows
    ]


def soonest(context: Context, unit_ids: Sequence[str]) -> dict[str, int]:
    """Unit ID -> when the first of its certificates expires."""
    query = (
        sa.select(certificates.c.unit_id, sa.func.min(certificates.c.not_after))
        .where(certificates.c.unit_id.in_(unit_ids))
        .group_by(certificates.c.unit_id)
    )
    with context.db.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


# ---- renew now ----------------------------------------------------------------------------------


def renew_now(context: Context, unit_id: str, friendly_name: str = "") -> list[str]:
    """Tells the device to renew that certificate, or all that it has; returns their friendly names.

    The settings name the serial number of what is to be renewed, so it is done once, however often it is read.
    """
    mine = certificates.c.unit_id == unit_id
    if friendly_name:
        mine = sa.and_(mine, certificates.c.friendly_name == friendly_name)
    with context.db.begin() as connection:
        known = sa.select(devices.c.unit_id).where(devices.c.unit_id == unit_id)
        if connection.execute(known).scalar() is None:
            raise SettingsError(
                "--unit-id", f"no device {unit_id[:80]!r} is known", hint="ca-proxy device list"
            )
        rows = connection.execute(sa.select(certificates).where(mine)).all()
        if not rows:
            what = f"certificate {friendly_name[:80]!r}" if friendly_name else "certificate"
            raise SettingsError("friendly_name", f"the device has no {what} yet")
        for row in rows:
            same = sa.and_(renewals.c.unit_id == unit_id, renewals.c.friendly_name == row.friendly_name)
            connection.execute(renewals.delete().where(same))
            connection.execute(
                renewals.insert().values(
                    unit_id=unit_id, friendly_name=row.friendly_name, serial=row.serial, asked=now()
                )
            )
        names = sorted(row.friendly_name for row in rows)
        Database.record(connection, actor(), "device renew", f"{unit_id}: {', '.join(names)}")
        changes.note(connection, [("device", unit_id)])
    return names


def wanted_renewals(context: Context, unit_id: str) -> dict[str, str]:
    """Friendly name -> serial number of the certificate that is to be renewed."""
    with context.db.read() as connection:
        return {row.friendly_name: row.serial for row in connection.execute(_WANTED, {"unit": unit_id})}


# ---- figures ------------------------------------------------------------------------------------


def by_age(connection: sa.Connection, moment: int) -> dict[str, int]:
    """How many certificates are how many days from their expiry."""
    column = certificates.c.not_after
    sums = [
        sa.func.coalesce(
            sa.func.sum(
                sa.case((sa.and_(column > moment + low * DAY, column <= moment + high * DAY), 1), else_=0)
            ),
            0,
        )
        for low, high in AGES.values()
    ]
    row = connection.execute(sa.select(*sums).select_from(certificates)).one()
    return dict(zip(AGES, (int(value) for value in row), strict=True))


def by_week(context: Context, weeks: int) -> list[tuple[int, int]]:
    """(begin of the week, how many expire in it) from this week on; weeks begin on Monday, UTC."""
    first = monday(now())
    week = (certificates.c.not_after - first) // (7 * DAY)
    query = (
        sa.select(week.label("week"), sa.func.count())
        .where(certificates.c.not_after >= first, certificates.c.not_after < first + weeks * 7 * DAY)
        .group_by(week)
    )
    with context.db.read() as connection:
        found = {int(row[0]): int(row[1]) for row in connection.execute(query)}
    return [(first + index * 7 * DAY, found.get(index, 0)) for index in range(weeks)]


def monday(moment: int) -> int:
    """The Monday, 00:00 UTC, at or before a moment; 1970 began on a Thursday."""
    day = moment // DAY
    return (day - (day + 3) % 7) * DAY
