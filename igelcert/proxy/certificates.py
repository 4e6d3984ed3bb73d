"""The newest certificate of each device and friendly name: for lists, charts, figures, renewals; and its window."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
_MINE = sa.and_(
    certificates.c.unit_id == devices.c.unit_id, certificates.c.friendly_name == sa.bindparam("name")
)
_WANTED = sa.and_(renewals.c.unit_id == devices.c.unit_id, renewals.c.friendly_name == sa.bindparam("name"))
# the device stays known until the end of the transaction
_KNOWN = (
    sa.select(
        certificates.c.window_from,
        certificates.c.window_until,
        renewals.c.asked,
        windows.BOOKED.label("booked"),
    )
    .select_from(devices.outerjoin(certificates, _MINE).outerjoin(renewals, _WANTED))
    .where(devices.c.unit_id == sa.bindparam("unit"))
    .with_for_update(read=True, key_share=True, of=devices)
)
_ITS = sa.select(certificates).where(certificates.c.unit_id == sa.bindparam("unit"))
_BOOKED = sa.select(windows.BOOKED)
_GIVE_WINDOW = (
    certificates.update()
    .where(
        certificates.c.unit_id == sa.bindparam("unit"),
        certificates.c.friendly_name == sa.bindparam("name"),
        certificates.c.serial == sa.bindparam("number"),
        sa.func.coalesce(certificates.c.window_until, 0) == sa.bindparam("old"),
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

    issuer: SHA-256 of the CA certificate above it. rate: of the CA, an hour; rule: when the device renews by itself; without
    a rate or rule it gets no window.
    """
    moment = now()
    span = windows.span_of(moment, cert.not_before, cert.not_after, rule) if rate and rule else None
    where = {"unit": unit_id, "name": friendly_name, **windows.asked_for(span)}
    known = connection.execute(_KNOWN, where).one_or_none()
    if known is None:
        return
    window = windows.pick(span, known.booked, rate, cert.serial_hex) if span else None
    row = {
        "unit_id": unit_id,
        "friendly_name": friendly_name,
        "serial": cert.serial_hex,
        "subject": cert.subject_text,
        "not_before": cert.not_before,
        "not_after": cert.not_after,
        "issued": moment,
        "window_from": window[0] if window else None,
        "window_until": window[1] if window else None,
        "issuer": cert.issuer_cn,
        "issuer_sha256": issuer,
    }
    Database.put(connection, certificates, row)
    if known.asked is not None:
        connection.execute(_DONE, {"unit": unit_id, "name": friendly_name})
    old = (known.window_from, known.window_until) if known.window_until else None
    windows.enter(connection, cert.serial_hex, window, old, moment)


def told_windows(
    context: Context,
    unit_id: str,
    rules: Callable[[], Mapping[str, EnrollmentSettings]],
    failing: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Windows of the device's certificates, as a report is answered. One that has none, as it was issued before the CA
    had a rate, gets it now; and another one where its own is over, or has begun and the device says that it fails: those
    that miss theirs as the CA is away do not all come at once when it is back.

    rules: friendly name -> when the device renews by itself. failing: names of certificates with an error.
    """
    moment = now()
    with context.db.read() as connection:
        rows = connection.execute(_ITS, {"unit": unit_id}).all()
        bare = [row for row in rows if moment < row.not_after and _lacks(row, moment, failing)]
        rate = ca_config.rate(connection) if bare else 0
    found = {
        row.friendly_name: (row.serial, row.window_from, row.window_until) for row in rows if row.window_until
    }
    known = rules() if rate else {}
    for row in bare:
        rule = known.get(row.friendly_name)
        span = windows.span_of(moment, row.not_before, row.not_after, rule) if rule else None
        if span and (window := _another(context, row, span, rate, moment)):
            found[row.friendly_name] = (row.serial, *window)
    return [
        {"friendly_name": name, "serial": serial, "from": begin, "until": end}
        for name, (serial, begin, end) in sorted(found.items())
    ]


def _lacks(row: Any, moment: int, failing: Collection[str]) -> bool:
    """Is there no window that the device can still make use of?"""
    if row.window_until is None or row.window_until <= moment:
        return True
    return bool(row.window_from <= moment and row.friendly_name in failing)


def _another(context: Context, row: Any, span: windows.Span, rate: int, moment: int) -> windows.Window | None:
    """A window for a certificate that is out; None when somebody else was first."""
    with context.db.begin(alone=False) as connection:
        booked = connection.execute(_BOOKED, windows.asked_for(span)).scalar()
        window = windows.pick(span, booked, rate, row.serial)
        given = {
            "unit": row.unit_id,
            "name": row.friendly_name,
            "number": row.serial,
            "old": row.window_until or 0,
        }
        given |= {"begin": window[0], "end": window[1]}
        if not connection.execute(_GIVE_WINDOW, given).rowcount:
            return None
        windows.enter(connection, row.serial, window, None, moment)
    return window


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
