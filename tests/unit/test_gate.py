"""The door to the CA: who is let in, who waits, who gets a turn, and what happens while the CA is away."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from igelcert.proxy.upstream.gate import HIDDEN, MOST, PROBE_EVERY, Busy, Gate
from tests.support.until import until


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def crowded(gate: Gate, stack: contextlib.ExitStack) -> None:
    for _ in range(gate.places):
        stack.enter_context(gate.place())


def turn(gate: Gate) -> int:
    with pytest.raises(Busy) as found, gate.place():
        pass
    return found.value.seconds


def enter(gate: Gate) -> None:
    """Waits for a place, and leaves it."""
    with gate.place():
        pass


def test_never_more_than_its_places() -> None:
    gate, inside, most = Gate(3, 50, 5.0), 0, 0
    lock = threading.Lock()

    def ask() -> None:
        nonlocal inside, most
        with gate.place():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.005)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_who_finds_no_room_gets_turns_at_the_pace_of_the_ca() -> None:
    clock = Clock()
    gate = Gate(8, 0, 0.0, clock)
    for _ in range(200):
        gate.answered(0.05)  # 160 a second
    with contextlib.ExitStack() as stack:
        crowded(gate, stack)
        assert gate.full() is not None
        turns = [turn(gate) for _ in range(10_000)]
    assert turns == sorted(turns) and turns[0] <= 3
    assert 50 <= turns[-1] <= 65, "the last has its turn when the CA has done the others, or slightly earlier"
    assert 9_000 <= gate.queue <= 10_500
    clock.now += 70
    assert gate.queue == 0 and gate.full() is None
    with gate.place():
        pass


def test_a_few_wait_before_the_ca_and_not_for_long() -> None:
    gate = Gate(1, 1, 30.0)
    waiting = threading.Thread(target=enter, args=(gate,))
    with gate.place():
        waiting.start()
        until(lambda: gate.full() is not None)
        start = time.monotonic()
        assert turn(gate) >= 1 and time.monotonic() - start < 20, "there is no room to wait in"
    waiting.join()
    gate = Gate(1, 1, 0.3)
    with gate.place():
        start = time.monotonic()
        assert turn(gate) >= 1
        assert 0.3 <= time.monotonic() - start < 20
    with gate.place():
        pass


def test_a_ca_that_is_away_is_tried_by_one_at_a_time() -> None:
    clock = Clock()
    gate = Gate(4, 0, 0.0, clock)
    with contextlib.ExitStack() as stack:
        crowded(gate, stack)
        turn(gate)
        clock.now += 1
        assert all(gate.failed() for _ in range(4)), "others wait: to devices this is a queue"
    with gate.place():
        assert turn(gate), "one tries, no other"
    assert gate.failed()
    assert turn(gate), "and the next only after a while"
    clock.now += PROBE_EVERY
    with gate.place():
        gate.answered(0.05)
    with contextlib.ExitStack() as stack:
        crowded(gate, stack)


def test_alone_a_failure_is_a_failure_and_every_request_tries() -> None:
    gate = Gate(2, 0, 0.0, Clock())
    for _ in range(20):
        with gate.place():
            assert gate.failed() == 0


def test_a_ca_that_stays_away_becomes_a_failure_and_turns_get_rarer() -> None:
    clock = Clock()
    gate = Gate(1, 0, 0.0, clock)
    with gate.place():
        turn(gate)
        assert gate.failed()
    turns = []
    for _ in range(30):
        clock.now += 60
        with gate.place():
            turns.append(turn(gate))
            hidden = gate.failed() > 0
    assert not hidden and clock.now - 1_000 > HIDDEN
    assert turns[0] < turns[9] < turns[-1] <= MOST


def test_other_settings_are_acted_on_at_the_pace_of_the_ca() -> None:
    clock = Clock()
    gate = Gate(8, 0, 0.0, clock)
    for _ in range(200):
        gate.answered(0.05)
    assert gate.news() == 0, "who changes one device waits for nothing"
    told = [gate.news() for _ in range(1_599)]
    assert told[100] == 0 and 8 <= told[-1] <= 10
    clock.now += 60
    assert gate.news() == 0


def test_a_proxy_that_is_slow_itself_sets_the_pace() -> None:
    clock = Clock()
    gate = Gate(8, 0, 0.0, clock)

    def answers(count: int, apart: float) -> None:
        for _ in range(count):
            clock.now += apart
            gate.note_lag(lag)
            gate.answered(0.05)

    lag = 0.0
    answers(300, 0.05)  # 20 a second, though the CA could do 160
    assert 5 <= [gate.news() for _ in range(1_000)][-1] <= 7
    clock.now += 100
    lag = 1.0
    answers(60, 0.05)  # nobody else is there: they come no faster
    assert 5 <= [gate.news() for _ in range(1_000)][-1] <= 7
    clock.now += 100
    with gate.place():
        answers(60, 0.05)
    assert 40 <= [gate.news() for _ in range(1_000)][-1] <= 50
    clock.now += 100
    with gate.place():
        answers(60, 1.0)
    assert [gate.news() for _ in range(1_000)][-1] <= 51, "never slower than an eighth of the CA"
    clock.now += 100
    lag = 0.0
    answers(3_000, 0.05)
    assert 5 <= [gate.news() for _ in range(1_000)][-1] <= 7, "it is busy no more, and forgets"


def test_that_devices_are_told_is_no_measure_of_what_this_proxy_can_do() -> None:
    clock = Clock()
    gate = Gate(8, 0, 0.0, clock)
    for _ in range(200):
        gate.note_lag(1.0)
        gate.news()
        clock.now += 0.05
        gate.answered(0.05)
    clock.now += 100
    assert 5 <= [gate.news() for _ in range(1_000)][-1] <= 7


def test_who_comes_to_a_proxy_that_has_fallen_behind_is_sent_away_at_once() -> None:
    gate = Gate(8, 8, 1.0, Clock())
    assert gate.full() is None
    for _ in range(50):
        gate.note_lag(1.0)
    found = gate.full()
    assert isinstance(found, Busy) and found.seconds >= 2
    for _ in range(50):
        gate.note_lag(0.0)
    assert gate.full() is None


def test_what_was_slow_long_ago_counts_no_more() -> None:
    clock = Clock()
    gate = Gate(8, 8, 1.0, clock)
    for _ in range(50):
        gate.note_lag(5.0)
    assert gate.full() is not None
    clock.now += 60
    assert gate.full() is None, "nobody came meanwhile"
    gate.note_lag(0.0)
    assert gate.full() is None
