"""Requests that wait for a change (RFC 7240, Prefer: wait) without a thread: the program's side of it.

A server that can park a connection puts a Visit into the environ under KEY. The program asks it to wait; that raises
Parked, and the same request is handed to the program again when something changed or its time is over.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import MutableSequence
from dataclasses import dataclass

from .figures import show_waiting

__all__ = ["KEY", "REQUEST_MAX", "Parked", "Place", "Room", "Visit", "preferred_wait", "retry_soon"]

KEY = "igelcert.visit"
REQUEST_MAX = 8_192  # octets of a request that may wait: they are kept meanwhile
_PREFERENCES = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_WAIT = re.compile(r'\s*wait\s*=\s*("?)([0-9]{1,9})\1\s*(?:;.*)?', re.IGNORECASE | re.DOTALL)


def preferred_wait(header: str, most: int) -> int:
    """Seconds that a Prefer header wants to wait, at most `most`; 0 without. The first one counts (RFC 7240 2)."""
    for preference in _PREFERENCES.findall(header):
        if found := _WAIT.fullmatch(preference):
            return min(int(found[2]), most)
    return 0


def retry_soon(*, leaving: bool = False) -> int:
    """Seconds after which to come back, spread out: for who may not wait here, or finds this proxy leaving."""
    return random.randint(5, 35) if leaving else random.randint(30, 90)


@dataclass(frozen=True, slots=True)
class Place:
    """What a request waits for: a change after the one with id `since` that concerns this device."""

    unit_id: str
    directory: str
    etag: str
    since: int

    @property
    def directories(self) -> list[str]:
        """Its directory and those above."""
        parts = [part for part in self.directory.split("/") if part]
        return ["/" + "/".join(parts[:depth]) for depth in range(len(parts) + 1)]


class Parked(BaseException):
    """The request waits; its thread is free. No error: nothing that handles errors is to catch it."""


class Room:
    """Bounded places for requests that wait. Safe for threads. woken: how often a change woke one.

    counts: how many each of several processes has, in memory that they share, of which this is `number`. Two that take the
    last place at the same moment both get it.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.woken = 0
        self.closed = False
        self._lock = threading.Lock()
        self._counts: MutableSequence[int] = [0]
        self._number = 0

    def share(self, counts: MutableSequence[int], number: int) -> None:
        """Before any is taken."""
        self._counts, self._number = counts, number
        counts[number] = 0

    @property
    def taken(self) -> int:
        """By this process."""
        return self._counts[self._number]

    def take(self) -> bool:
        with self._lock:
            free = not self.closed and sum(self._counts) < self.places
            self._counts[self._number] += free
            return free

    def show(self) -> None:
        """Tells monitoring who waits here."""
        places, rest = divmod(self.places, len(self._counts))
        show_waiting(self.taken, places + (self._number < rest), self.woken)

    def give_back(self) -> None:
        with self._lock:
            self._counts[self._number] -= 1


class Visit:
    """One request at a server that can park it. until: when its wait is over (monotonic seconds), 0 before it
    waited; seconds: how long that is; place: what it waits for."""

    __slots__ = ("_size", "place", "room", "seconds", "until")

    def __init__(self, room: Room, size: int) -> None:
        self.room = room
        self._size = size
        self.seconds = 0
        self.until = 0.0
        self.place: Place | None = None

    def wait(self, place: Place, seconds: int) -> int:
        """Raises Parked to wait. 0: the time is over. More: it cannot wait, and is to come back in so many seconds."""
        if not self.until:
            if self._size > REQUEST_MAX or not self.room.take():
                return retry_soon(leaving=self.room.closed)
            self.seconds, self.until = seconds, time.monotonic() + seconds
        elif time.monotonic() >= self.until:
            return 0
        self.place = place
        raise Parked

    def leave(self) -> None:
        """It is answered, or gone."""
        if self.until:
            self.until = 0.0
            self.room.give_back()
