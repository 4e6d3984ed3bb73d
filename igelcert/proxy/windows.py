"""Windows for renewals: every certificate has one, so that the herd of a mass assignment is flat by its first renewal.

Time is cut into buckets, and each window is one of them; how many certificates have which is counted in
`renewal_slots`, so that any proxy sees where there is room. A bucket is chosen once, when the certificate is issued,
and kept with its row: that is one statement over at most a few hundred buckets, however many devices there are.

The pure part says which bucket. The fair load of a bucket is the mean of all between now and the certificate's own
rule; where every certificate is renewed as late as its rule says, that is what each bucket has. The latest bucket
below it is taken. A herd finds none below it, as all of it comes at once: it is laid out evenly from an early time on.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ..renewal import last_moment, renew_at
from ..settings import EnrollmentSettings
from .schema import renewal_slots

__all__ = ["Span", "Window", "book", "choose", "released", "span_of", "width_of"]

Window = tuple[int, int]  # its begin and its end, seconds since 1970

WIDTHS = (1, 4, 15, 60, 240, 900, 3_600, 14_400, 86_400)  # seconds
BUCKETS = 128  # at least so many between the issue and the own rule, where the width allows it
EARLY = 6  # a herd is laid out from a sixth of the time to the own rule on
ABOVE = 1.05  # as many times the fair load is still fair
CHOICES = 4  # the latest buckets with room, of which one is taken: proxies do not meet at one row
ROOM = 0.8  # of the CA's rate that renewals may take: first enrollments and second tries need some, too
PRUNE = 0.01  # the share of bookings that clears away what is over


@dataclass(frozen=True, slots=True)
class Span:
    """Buckets of `width` seconds, by number: that of an instant is instant // width. first to last: those that a window may
    be; `over`: the last one where it may be later than the own rule; now: the bucket of now. late: the own rule has it due
    already, and it is renewed as soon as there is room."""

    width: int
    now: int
    first: int
    last: int
    over: int
    late: bool = False


def width_of(seconds: int) -> int:
    """Of the buckets for certificates whose own rule is so many seconds from their begin."""
    return max((width for width in WIDTHS if width * BUCKETS <= seconds), default=WIDTHS[0])


def span_of(now: int, not_before: int, not_after: int, rule: EnrollmentSettings) -> Span | None:
    """Where a window for a certificate may be: from a sixth of the time to the own rule on, up to the rule; up to the
    last moment of a window where there is no room before, or the rule has it due already. None: it is not
    renewed by itself, or there is no time for a window."""
    due = renew_at(not_before, not_after, rule)
    if due is None:
        return None
    width = width_of(due - not_before)
    here = now // width
    first = max(here + 1, -(-(not_before + (due - not_before) // EARLY) // width))
    last = due // width - 1
    over = last_moment(due, not_after) // width - 1
    late = first > last
    if late:
        first, last = here + 1, over
    return Span(width, here, first, last, over, late) if first <= last else None


def choose(span: Span, booked: Mapping[int, int], rate: int, place: float) -> int:
    """The number of the bucket for one more certificate.

    booked: how many certificates have which bucket, from the one after now to `over`. rate: of the CA, certificates an
    hour. place: from 0 to below 1, this certificate's place among many.
    """
    capacity = max(1.0, rate * ROOM * span.width / 3_600)
    late = range(span.last + 1, span.over + 1)
    ahead = sum(booked.values()) - sum(booked.get(number, 0) for number in late)
    limit = min(capacity, max(1.0, (ahead + 1) / (span.last - span.now) * ABOVE))
    within = range(span.first, span.last + 1)
    fitting = list(islice(_with_room(within if span.late else reversed(within), booked, limit), CHOICES))
    if fitting:
        return fitting[int(place * len(fitting))]
    if next(_with_room(within, booked, capacity), None) is None:
        if (over := next(_with_room(late, booked, capacity), None)) is not None:
            return over
        within = range(span.first, max(span.last, span.over) + 1)
    least = min(booked.get(number, 0) for number in within)
    emptiest = list(_with_room(within, booked, least + 1))
    return emptiest[int(place * len(emptiest))]


def _with_room(within: Iterable[int], booked: Mapping[int, int], limit: float) -> Iterator[int]:
    return (number for number in within if booked.get(number, 0) + 1 <= limit)


# ---- what is booked -----------------------------------------------------------------------------

_BOOKED = sa.select(renewal_slots.c.number, renewal_slots.c.booked).where(
    renewal_slots.c.width == sa.bindparam("size"),
    renewal_slots.c.number.between(sa.bindparam("low"), sa.bindparam("high")),
)
_OVER = renewal_slots.delete().where(
    renewal_slots.c.width == sa.bindparam("size"), renewal_slots.c.number < sa.bindparam("low")
)
_GIVEN_BACK = (
    renewal_slots.update()
    .where(
        renewal_slots.c.width == sa.bindparam("size"),
        renewal_slots.c.number == sa.bindparam("at"),
        renewal_slots.c.booked > 0,
    )
    .values(booked=renewal_slots.c.booked - 1)
)


def _one_more(dialect: Any) -> Any:
    insert = dialect.insert(renewal_slots)
    more = {"booked": renewal_slots.c.booked + 1}
    return insert.on_conflict_do_update(index_elements=["width", "number"], set_=more)


_ONE_MORE = {"sqlite": _one_more(sqlite), "postgresql": _one_more(postgresql)}


def book(
    connection: sa.Connection,
    rate: int,
    dates: Window,
    rule: EnrollmentSettings,
    serial: str,
    now: int,
    given_back: Window | None = None,
) -> Window | None:
    """Books a window for a certificate in the caller's transaction; None when it gets none.

    dates: its not_before and not_after. given_back: the window of the certificate that it replaces. Rows are locked in
    the order of their keys, so that proxies do not wait for each other in a circle.
    """
    span = span_of(now, *dates, rule) if rate else None
    found = None
    steps: list[tuple[int, int, int]] = []
    if span is not None:
        where = {"size": span.width, "low": span.now + 1, "high": max(span.last, span.over)}
        booked = {row.number: row.booked for row in connection.execute(_BOOKED, where)}
        place = zlib.crc32(serial.encode()) / (1 << 32)
        number = choose(span, booked, rate, place)
        found = number * span.width, (number + 1) * span.width
        steps.append((span.width, number, 1))
        if place < PRUNE:
            connection.execute(_OVER, {"size": span.width, "low": span.now})
    if given_back is not None and given_back[1] > now:
        steps.append((*released(given_back), -1))
    for width, number, change in sorted(steps):
        if change > 0:
            row = {"width": width, "number": number, "booked": 1}
            connection.execute(_ONE_MORE[connection.dialect.name], row)
        else:
            connection.execute(_GIVEN_BACK, {"size": width, "at": number})
    return found


def released(window: Window) -> tuple[int, int]:
    """(width, number) of a window that was booked."""
    width = window[1] - window[0]
    return width, window[0] // width
