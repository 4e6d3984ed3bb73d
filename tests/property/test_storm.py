"""The storm in simulated time: the door to the CA as it is, and the device's own rules of when to ask again.

What `python -m tests.load storm` shows with processes and sockets, where the machine is fast enough, holds here whatever the
machine does: how many are at the CA, how often devices ask, how long it takes in all.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from igelcert.device import notes
from igelcert.proxy.upstream.gate import Busy, Gate

CAP, LOBBY = 8, 8
DOWN_RETRY = 60  # of a failure that is no queue
START = 1_800_000_000.0


@dataclass
class Storm:
    """devices hear of their profile at `told` a second; the CA takes `delay` seconds and fails from `down` to `up`
    (seconds from the beginning). A failure takes it no time."""

    devices: int
    delay: float
    down: float
    up: float
    told: float = 1_000.0
    now: float = START
    peak: int = 0
    inside: int = 0
    issued: int = 0
    asked: dict[int, int] = field(default_factory=dict)
    early: int = 0
    tries: int = 0  # of the CA while it failed

    def run(self, chance: random.Random) -> float:
        """Seconds until the last device has its certificate."""
        self.chance = chance
        self.gate = Gate(CAP, 0, 0.0, lambda: self.now)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._lobby: deque[tuple[int, dict[str, Any]]] = deque()
        for device in range(self.devices):
            self._at(START + device / self.told, lambda device=device: self._hear(device))
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.now - START

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._count), event))

    def _hear(self, device: int) -> None:
        later = self.gate.news() + self.chance.random()
        self._at(self.now + later, lambda: self._ask(device, {}, 0.0))

    def _ask(self, device: int, state: dict[str, Any], allowed: float) -> None:
        self.early += self.now < allowed
        self.asked[device] = self.asked.get(device, 0) + 1
        if self.inside >= CAP and len(self._lobby) < LOBBY and not self.gate._down:
            self._lobby.append((device, state))
            return
        self._enter(device, state)

    def _enter(self, device: int, state: dict[str, Any]) -> None:
        stack = contextlib.ExitStack()
        try:
            if (busy := self.gate.full()) is not None:
                raise busy
            stack.enter_context(self.gate.place())
        except Busy as busy:
            self._wait(device, state, busy.seconds)
            return
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        fails = self.down <= self.now - START < self.up
        took = 0.0 if fails else self.delay
        self._at(self.now + took, lambda: self._answered(device, state, stack, fails))

    def _answered(self, device: int, state: dict[str, Any], stack: contextlib.ExitStack, fails: bool) -> None:
        self.inside -= 1
        stack.close()
        self._end(device, state, fails)
        if self._lobby:
            self._enter(*self._lobby.popleft())

    def _end(self, device: int, state: dict[str, Any], fails: bool) -> None:
        if not fails:
            self.gate.answered(self.delay)
            self.issued += 1
            return
        self.tries += 1
        if seconds := self.gate.failed():
            self._wait(device, state, seconds)
            return
        state = notes.failed(
            state, mark="m", text="away", now=int(self.now), refused=False, retry_after=DOWN_RETRY,
            chance=self.chance.random(),
        )  # fmt: skip
        self._again(device, state, DOWN_RETRY)

    def _wait(self, device: int, state: dict[str, Any], seconds: int) -> None:
        now = int(self.now)
        self._again(device, notes.pending(state, mark="m", text="later", retry_at=now + seconds), seconds)

    def _again(self, device: int, state: dict[str, Any], told: int) -> None:
        moment = notes.next_step(state, 0.0)
        assert moment is not None
        # the device wakes in that second, when its process comes to it
        at = max(self.now, moment) + self.chance.random()
        allowed = int(self.now) + told
        self._at(at, lambda: self._ask(device, state, allowed))


@pytest.mark.parametrize(
    ("devices", "delay", "down", "up", "told"),
    [
        (10_000, 0.05, 31.0, 91.0, 1_000),  # the CA fails for a minute in the middle
        (10_000, 0.05, 31.0, 91.0, 150),  # the proxy cannot tell devices any faster
        (10_000, 0.05, 5.0, 65.0, 1_000),  # near the beginning
        (10_000, 0.05, 55.0, 115.0, 1_000),  # near the end
        (10_000, 0.05, 0.0, 0.0, 1_000),  # never
        (1_250, 0.4, 31.0, 91.0, 1_000),  # a slow CA
        (3_000, 0.05, 9.0, 39.0, 1_000),
    ],
)
def test_storm(devices: int, delay: float, down: float, up: float, told: float) -> None:
    storm = Storm(devices, delay, down, up, told)
    took = storm.run(random.Random(1))
    least = devices * delay / CAP + (up - down)
    assert storm.issued == devices and storm.peak == CAP and storm.early == 0
    asked = sum(storm.asked.values()) / devices
    assert took <= 1.2 * least
    assert storm.tries <= 2 * CAP + (up - down), "a CA that is away is not hammered"
    assert asked <= 3 and max(storm.asked.values()) <= 12
