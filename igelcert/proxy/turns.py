"""Who runs Python: of the threads of a process that answer requests, one at a time.

A thread lets the interpreter go for a moment at every statement of the database and every octet sent. Where a dozen threads
wait for it then, each such moment hands it to another one, by way of the kernel, at a third of all processor time. So a
thread takes a turn before it works on a request, and gives it up where it waits for somebody: for the CA, a commit, the
database, a client.

A turn is a courtesy and no lock: who gets none within PATIENCE goes on without, so that nothing can come to a stop here,
whatever a thread with a turn waits for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

__all__ = ["waiting", "working"]

TURNS = 1  # with two, the same takes a tenth more of the processor's time
PATIENCE = 0.25  # seconds
COURTESY, STEP = 0.02, 0.002  # the same, of who is in no hurry; between its looks


class _Turns(threading.local):
    """Of a thread. turn: it has one."""

    free: ClassVar[queue.SimpleQueue[None]] = queue.SimpleQueue()
    # as long as there are threads that wait; appending and popping are atomic
    wanted: ClassVar[list[None]] = []

    def __init__(self) -> None:
        self.turn = False

    def take(self) -> None:
        self.wanted.append(None)
        try:
            self.free.get(timeout=PATIENCE)
            self.turn = True
        except queue.Empty:
            pass
        self.wanted.pop()

    def give_back(self) -> None:
        if self.turn:
            self.turn = False
            self.free.put(None)

    def let_others_go_first(self) -> None:
        end = time.monotonic() + COURTESY
        while self.wanted and time.monotonic() < end:
            time.sleep(STEP)


_turns = _Turns()
for _ in range(TURNS):
    _turns.free.put(None)


@contextmanager
def working(*, first: bool = True) -> Iterator[None]:
    """This thread works on a request. first: it is as urgent as any; else it lets others go before, for a moment."""
    if not first:
        _turns.let_others_go_first()
    _turns.take()
    try:
        yield
    finally:
        _turns.give_back()


@contextmanager
def waiting() -> Iterator[None]:
    """Within `working`: waits for somebody. Nothing for a thread that has no turn."""
    if not _turns.turn:
        yield
        return
    _turns.give_back()
    try:
        yield
    finally:
        _turns.take()
