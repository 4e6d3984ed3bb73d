"""The newest certificate of each device and friendly name: for lists, charts, figures, renewals; and its window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .. import crypto
from ..settings import EnrollmentSettings
from . import windows
from .context import Context
from .database import Database, now
from .schema import certificates, devices, renewals
from .upstream import config as ca_config

__all__ = [
    "AGES",
    "Certificate",
    "by_age",
    "by_week",
    "forget",
    "note",
    "of_device",
    "told_windows",
]

DAY = 86_400
NEVER = EnrollmentSettings(auto_renewal=False)
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
    sa.select(devices.c.unit_id, certificates.c.window_from, certificates.c.window_until)
    .outerjoin(
        certificates,
        sa.and_(
            certificates.c.unit_id == devices.c.unit_id, certificates.c.friendly_name == sa.bindparam("name")
        ),
    )
    .where(devices.c.unit_id == sa.bindparam("unit"))
    .with_for_update(read=True, key_share=True, of=devices)
)
_ITS = sa.select(certificates).where(certificates.c.unit_id == sa.bindparam("unit"))
_GIVE_WINDOW = (
    certificates.update()
    .where(
        certificates.c.unit_id == sa.bindparam("unit"),
        certificates.c.friendly_name == sa.bindparam("name"),
        certificates.c.serial == sa.bindparam("number"),
        certificates.c.window_until.is_(None),
    )
    .values(window_from=sa.bindparam("begin"), window_until=sa.bindparam("end"))
)
_DONE = renewals.delete().where(
    renewals.c.unit_id == sa.bindparam("unit"), renewals.c.friendly_name == sa.bindparam("name")
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """asked: when an administrator wanted this very certificate renewed, None when nobody did. issuer: its common name;
    issuer_sha256: of the CA certificate above it, "" where that was not noted. The window is for its renewal."""

    friendly_name: str
    serial: str
    subject: str
    not_before: int
    not_after: int
    issued: int
    asked: int | None = None
    window_from: int | None = None
    window_until: int | None = None
    issuer: str = ""
    issuer_sha256: str = ""


def note(
    connection: sa.Connection,
    unit_id: str,
    friendly_name: str,
    cert: crypto.Certificate,
    *,
    issuer: str = "",
    rate: int = 0,
    rule: EnrollmentSettings | None = None,
) -> None:
    """The device got this certificate. A device that was removed meanwhile has none.

    issuer: SHA-256 of the CA certificate above it. rate, rule: as of `windows.book`; without a rate or rule it
    gets no window.
    """
    known = connection.execute(_KNOWN, {"unit": unit_id, "name": friendly_name}).one_or_none()
    if known is None:
        return
    window = windows.book(
        connection,
        rate,
        (cert.not_before, cert.not_after),
        rule or NEVER,
        cert.serial_hex,
        now(),
        (known.window_from, known.window_until) if known.window_until else None,
    )
    row = {
        "unit_id": unit_id,
        "friendly_name": friendly_name,
        "serial": cert.serial_hex,
        "subject": cert.subject_text,
        "not_before": cert.not_before,
        "not_after": cert.not_after,
        "issued": now(),
        "window_from": window[0] if window else None,
        "window_until": window[1] if window else None,
        "issuer": cert.issuer_cn,
        "issuer_sha256": issuer,
    }
    Database.put(connection, certificates, row)
    connection.execute(_DONE, {"unit": unit_id, "name": friendly_name})


def told_windows(
    context: Context, unit_id: str, rules: Callable[[], Mapping[str, EnrollmentSettings]]
) -> list[dict[str, Any]]:
    """Windows of the device's certificates, as a report is answered. One that has none, as it was issued before the CA
    had a rate, gets it now. rules: friendly name -> when the device renews by itself."""
    with context.db.read() as connection:
        rows = connection.execute(_ITS, {"unit": unit_id}).all()
        bare = [row for row in rows if row.window_until is None and row.not_after > now()]
        rate = ca_config.rate(connection) if bare else 0
    found = {
        row.friendly_name: (row.serial, row.window_from, row.window_until) for row in rows if row.window_until
    }
    if rate:
        known = rules()
        with context.db.begin(alone=False) as connection:
            for row in bare:
                if window := _late_window(connection, row, rate, known.get(row.friendly_name, NEVER)):
                    found[row.friendly_name] = (row.serial, *window)
    return [
        {"friendly_name": name, "serial": serial, "from": begin, "until": end}
        for name, (serial, begin, end) in sorted(found.items())
    ]


def _late_window(
    connection: sa.Connection, row: Any, rate: int, rule: EnrollmentSettings
) -> windows.Window | None:
    dates = row.not_before, row.not_after
    window = windows.book(connection, rate, dates, rule, row.serial, now())
    if window is None:
        return None
    given = {
        "unit": row.unit_id,
        "name": row.friendly_name,
        "number": row.serial,
        "begin": window[0],
        "end": window[1],
    }
    if connection.execute(_GIVE_WINDOW, given).rowcount:
        return window
    windows.book(connection, 0, dates, rule, row.serial, now(), window)  # somebody else was first
    return None


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
            row.friendly_name,
            row.serial,
            row.subject,
            row.not_before,
            row.not_after,
            row.issued,
            row.asked,
            row.window_from,
            row.window_until,
            row.issuer,
            row.issuer_sha256,
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
