"""The door to the CA: so many requests at once, a few that wait before it, and a time to come back for all others.

A herd of devices costs no threads: who finds no room is told when its turn comes, by the pace at which the CA answered
of late, or that of this proxy where requests wait for a thread. The turns lie one after the other, slightly closer than
the CA's pace, so that it is not idle when one does not come; who comes and finds no room again gets another turn. While
the CA does not answer, one request at a time tries whether it does again, and the others' turns go on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import TransportError
from ..figures import show_ca
from ..turns import waiting

__all__ = ["Busy", "Gate"]

LEAST = 2  # seconds to a turn
MOST = 3_600
FIRST_PACE = 0.05  # seconds that a request takes, before one was seen
WEIGHT = 0.1  # of the newest request in the pace
CLOSER = 0.9  # the distance of turns, as a part of the CA's pace
PROBE_EVERY = 2.0  # seconds between tries of a CA that does not answer
HIDDEN = 300.0  # seconds for which a CA that does not answer is a queue to devices, and no failure
LAG = 0.1  # seconds that requests wait for a thread, above which this proxy is busy
LAG_SECONDS = 2.0  # without a request, after which what was seen of that counts no more
OVERLOAD = 0.5  # the same, above which what just came is sent away
SLOWEST = 8  # times the CA's distance between answers: slower than that no proxy is held to be
FORGETTING = 0.998  # of what this proxy can do, with each answer where it is not busy
NEWS_SECONDS = 1.0  # after a device was told of other settings, in which nothing is seen of that
NEWS_PACE = 0.005  # seconds between devices that hear of other settings: no proxy enrolls more at once


class Busy(TransportError):
    """There is no room at the CA. seconds: when to come back."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message, link="busy")
        self.seconds = seconds


class Gate:
    """places: requests at the CA at once; lobby: those that wait before it, for `patience` seconds. share: how many of the
    places it counts on, where other gates let in to the same ones. Safe for threads."""

    def __init__(
        self,
        places: int,
        lobby: int,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        share: int = 0,
    ) -> None:
        self.places = places
        self._share = share or places
        self._lobby = lobby
        self._patience = patience
        self._clock = clock
        self._free = threading.Condition()
        self._busy = 0
        self._waiting = 0
        self._pace = FIRST_PACE / self._share  # seconds between two answers
        self._lag = 0.0  # seconds for which requests wait for a thread
        self._lag_at = -math.inf  # when one was seen to
        self._own = 0.0  # seconds between two answers while this proxy was busy all the time; 0: it was not
        self._answered_at = 0.0
        self._news_at = -math.inf  # when a device was last told of other settings
        self._turn = 0.0  # when the next turn is
        self._failures = 0  # in a row
        self._failed_at = 0.0  # the first of them
        self._probe_at = 0.0

    # ---- places ---------------------------------------------------------------------------------

    @contextmanager
    def place(self, *, patience: float | None = None) -> Iterator[None]:
        """A place at the CA; Busy when there is none. patience: seconds to wait for it, instead of the usual."""
        with waiting():
            self._enter(self._patience if patience is None else patience, bounded=patience is None)
        try:
            yield
        finally:
            with self._free:
                self._busy -= 1
                self._free.notify()

    def _enter(self, patience: float, *, bounded: bool) -> None:
        end = self._clock() + patience
        with self._free:
            if not self._down and self._busy >= self.places:
                if bounded and self._waiting >= self._lobby:
                    raise self._later()
                self._await_place(end)
            if self._down:
                self._probe()
            self._busy += 1

    def _await_place(self, end: float) -> None:
        self._waiting += 1
        try:
            while not self._down and self._busy >= self.places:
                if not self._free.wait(max(0.0, end - self._clock())):
                    raise self._later()
        finally:
            self._waiting -= 1

    @property
    def _down(self) -> bool:
        return self._failures >= self.places

    def _probe(self) -> None:
        """While the CA does not answer: one at a time, and at intervals where others wait. Busy."""
        now = self._clock()
        if self._busy or (now < self._probe_at and self._turn > now):
            raise self._later()
        self._probe_at = now + PROBE_EVERY

    def answered(self, seconds: float) -> None:
        """The CA answered a request, in so many seconds."""
        with self._free:
            now = self._clock()
            self._failures = 0
            self._pace += WEIGHT * (seconds / self._share - self._pace)
            self._learn(now, min(1.0, now - self._answered_at))
            self._answered_at = now

    def _learn(self, now: float, interval: float) -> None:
        """What this proxy can do itself is seen where requests wait for it, and for nothing but each other; where one comes
        after the other, their distance says nothing."""
        if self._lag > LAG and self._busy and now - self._news_at > NEWS_SECONDS:
            self._own += WEIGHT * (min(interval, self._pace * SLOWEST) - self._own)
        else:
            self._own *= FORGETTING

    def note_lag(self, seconds: float) -> None:
        """A request waited so long for a thread."""
        now = self._clock()
        before = self._lag_of(now)
        self._lag, self._lag_at = before + WEIGHT * (seconds - before), now

    def _lag_of(self, now: float) -> float:
        return self._lag if now - self._lag_at < LAG_SECONDS else 0.0

    @property
    def _distance(self) -> float:
        """Seconds between two turns: of the CA, or of this proxy, when requests wait for it and not for the CA."""
        return max(self._pace * CLOSER, self._own)

    def failed(self) -> int:
        """The CA did not answer a request, or that it cannot now. When to come back, where this was one of many for
        whom it is a queue; 0: it is a failure."""
        with self._free:
            now = self._clock()
            if not self._failures:
                self._failed_at = now
            self._failures += 1
            many = self._turn > now or self._waiting
            return self._next_turn() if many and now - self._failed_at < HIDDEN else 0

    def full(self) -> Busy | None:
        """Is there no room, not even before the CA? Asked before anything is written for a request."""
        with self._free:
            crowded = self._busy >= self.places and self._waiting >= self._lobby
            behind = self._lag_of(self._clock()) > OVERLOAD
            return self._later() if (crowded or behind) and not self._down else None

    def later(self) -> Busy:
        """There is no room: when to come back."""
        with self._free:
            return self._later()

    # ---- turns ----------------------------------------------------------------------------------

    def _later(self) -> Busy:
        seconds = self._next_turn()
        if self._down:
            return Busy("the CA does not answer now; this request has its turn later", seconds)
        return Busy("many requests wait for the CA; this one has its turn later", seconds)

    def _next_turn(self) -> int:
        now = self._clock()
        # the longer the CA is away, the more rarely it is asked for
        away = (now - self._failed_at) / 4 if self._down else 0.0
        at = max(now + max(LEAST, away), self._turn)
        self._turn = min(at + self._distance, now + MOST)
        return math.ceil(at - now)

    def show(self) -> None:
        """Tells monitoring how it is here."""
        show_ca(self._share, self._busy, self._waiting + self.queue)

    @property
    def queue(self) -> int:
        """How many have a turn that is still to come, roughly."""
        return max(0, int((self._turn - self._clock()) / self._distance))

    def news(self) -> int:
        """Seconds after which a device that hears of other settings is to act on them: 0 for the first of many, and
        as many a second as the CA, or this proxy, can do. Those are turns like others: who is sent away comes after."""
        with self._free:
            now = self._news_at = self._clock()
            at = max(now, self._turn)
            self._turn = min(at + max(self._distance, NEWS_PACE), now + MOST)
            return int(at - now)
