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
from itertools import islice, repeat
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ..renewal import last_moment, renew_at
from ..settings import EnrollmentSettings
from .schema import renewal_slots

__all__ = [
    "BOOKED",
    "Span",
    "Window",
    "asked_for",
    "choose",
    "enter",
    "pick",
    "released",
    "span_of",
    "width_of",
]

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
    already, or soon, and it is renewed as soon as there is room."""

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
    # the few buckets before a rule that is near are no measure of what is fair
    late = first > last or (first == here + 1 and last - here < over - last)
    if late:
        first, last = here + 1, over
    return Span(width, here, first, last, over, late) if first <= last else None


def choose(span: Span, booked: Mapping[int, int], rate: int, place: float) -> int:
    """The number of the bucket for one more certificate.

    booked: how many certificates have which bucket; counted are those after now, up to `over`. rate: of the CA,
    certificates an hour. place: from 0 to below 1, this certificate's place among many.
    """
    base = span.now + 1
    counts = list(map(booked.get, range(base, max(span.last, span.over) + 1), repeat(0)))

    def with_room(numbers: Iterable[int], limit: float) -> Iterator[int]:
        return (number for number in numbers if counts[number - base] + 1 <= limit)

    capacity = max(1.0, rate * ROOM * span.width / 3_600)
    ahead = sum(counts[: span.last + 1 - base])
    limit = min(capacity, max(1.0, (ahead + 1) / (span.last - span.now) * ABOVE))
    within = range(span.first, span.last + 1)
    fitting = list(islice(with_room(within if span.late else reversed(within), limit), CHOICES))
    if fitting:
        return fitting[int(place * len(fitting))]
    if next(with_room(within, capacity), None) is None:
        if (over := next(with_room(range(span.last + 1, span.over + 1), capacity), None)) is not None:
            return over
        within = range(span.first, max(span.last, span.over) + 1)
    least = min(counts[within.start - base : within.stop - base])
    emptiest = list(with_room(within, least + 1))
    return emptiest[int(place * len(emptiest))]


# ---- what is booked -----------------------------------------------------------------------------

# "NUMBER:COUNT" of each bucket, as part of a statement that reads anyway: one round trip less
BOOKED = (
    sa.select(
        sa.func.aggregate_strings(
            sa.cast(renewal_slots.c.number, sa.Text) + ":" + sa.cast(renewal_slots.c.booked, sa.Text), " "
        )
    )
    .where(
        renewal_slots.c.width == sa.bindparam("size"),
        renewal_slots.c.number.between(sa.bindparam("low"), sa.bindparam("high")),
    )
    .scalar_subquery()
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


def asked_for(span: Span | None) -> dict[str, int]:
    """The parameters of BOOKED; without a span it finds nothing."""
    if span is None:
        return {"size": 0, "low": 1, "high": 0}
    return {"size": span.width, "low": span.now + 1, "high": max(span.last, span.over)}


def pick(span: Span, booked: str | None, rate: int, serial: str) -> Window:
    """The window for one more certificate. booked: as BOOKED found it."""
    pairs = (each.split(":") for each in (booked or "").split())
    found = {int(number): int(count) for number, count in pairs}
    number = choose(span, found, rate, _place(serial))
    return number * span.width, (number + 1) * span.width


def enter(
    connection: sa.Connection, serial: str, window: Window | None, given_back: Window | None, now: int
) -> None:
    """Books the window of that certificate, and gives back another one, where it has not begun.

    The last statements of a transaction, in the order of the rows' keys: proxies do not wait for each other for long, nor
    in a circle.
    """
    steps = []
    if window is not None:
        steps.append((*released(window), 1))
    if given_back is not None and given_back[0] > now:
        steps.append((*released(given_back), -1))
    for width, number, change in sorted(steps):
        if change > 0:
            row = {"width": width, "number": number, "booked": 1}
            connection.execute(_ONE_MORE[connection.dialect.name], row)
        else:
            connection.execute(_GIVEN_BACK, {"size": width, "at": number})
    if window is not None and _place(serial) < PRUNE:
        width = window[1] - window[0]
        connection.execute(_OVER, {"size": width, "low": now // width})


def _place(serial: str) -> float:
    return zlib.crc32(serial.encode()) / (1 << 32)


def released(window: Window) -> tuple[int, int]:
    """(width, number) of a window that was booked."""
    width = window[1] - window[0]
    return width, window[0] // width
