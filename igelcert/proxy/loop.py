"""The event loop under worker.py: one thread that accepts and waits, others that work.

gunicorn's own (workers/gthread.py) is another in each of its releases; this one stands on what they have in
common since 23, so that the proxy runs with the gunicorn of Debian 13 as with the newest.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

__all__ = ["LINGER_TIME", "Calls", "Loop"]

TURN = 1.0  # seconds without an event
LINGER_TIME = 2.0


class Calls:
    """What threads want done by the main thread: a queue, and a pipe that wakes the poller."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._ear = self._mouth = -1

    def open(self) -> int:
        """The descriptor that is readable when something is to do."""
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._mouth, False)
        return self._ear

    def defer(self, function: Callable[..., Any], *args: Any) -> None:
        """Safe for threads and for signal handlers."""
        self._queue.put(partial(function, *args))
        with contextlib.suppress(OSError):  # a full pipe wakes as well as one octet more
            os.write(self._mouth, b"\0")

    def run(self, _: Any) -> None:
        """Does what there is now; what is added meanwhile has its next turn, for others wait, too."""
        with contextlib.suppress(OSError):
            os.read(self._ear, 65_536)
        for _turn in range(self._queue.qsize()):
            self._queue.get()()
        if not self._queue.empty():
            self.defer(lambda: None)

    def close(self) -> None:
        for descriptor in (self._ear, self._mouth):
            with contextlib.suppress(OSError):
                os.close(descriptor)


class Loop(ThreadWorker, ABC):  # type: ignore[misc]
    """What a worker of this kind fills in: accept, sweep, leave, hurry, release. nr_conns is its count of connections.
    cfg.user_limits: {"drain": seconds after SIGTERM in which it still accepts, "grace": seconds after that}."""

    poller: selectors.BaseSelector
    nr_conns: int
    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = Calls()
        self._accepting = False

    # ---- for a worker to fill in ----------------------------------------------------------------

    @abstractmethod
    def accept(self, listener: Any) -> bool:
        """A listener may have a connection. False: it has none, or none can be taken."""

    def sweep(self) -> None:
        """In every turn: waits that are over."""

    def leave(self) -> None:
        """Shutdown begins, and requests are still taken: for a while, nobody is to stay."""

    def hurry(self, deadline: float) -> None:
        """No more connections; who has asked nothing should be gone by the deadline (monotonic seconds)."""

    def release(self) -> None:
        """The end: every connection that is still there."""

    # ---- the loop -------------------------------------------------------------------------------

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """SIGTERM: the loop ends when others know that it does, and it has answered what was asked."""
        if self.alive:
            self.alive = False
            self.calls.defer(lambda: None)

    def run(self) -> None:
        self.poller.register(self.calls.open(), selectors.EVENT_READ, self.calls.run)
        while self.alive and self.is_parent_alive():
            self._accept_while(self.nr_conns < self.worker_connections)
            self._turn()
        self.alive = False
        self.leave()
        end = time.monotonic() + self.cfg.user_limits["drain"]
        while time.monotonic() < end and self.is_parent_alive():
            self._accept_while(self.nr_conns < self.worker_connections)
            self._turn()
        self._accept_last()
        self.hurry(time.monotonic() + LINGER_TIME)
        deadline = time.monotonic() + self.cfg.user_limits["grace"]
        while self.nr_conns > 0 and time.monotonic() <= deadline:
            self._turn()
        self.release()
        self.tpool.shutdown(wait=False)
        self.poller.close()
        self.calls.close()

    def _turn(self) -> None:
        self.notify()
        for key, _ in self.poller.select(TURN):
            key.data(key.fileobj)
        self.sweep()

    def _accept_last(self) -> None:
        """Who is before the door is let in, and the door is shut: whoever comes now learns at once that nobody is here."""
        self._accept_while(False)
        for listener in self.sockets:
            listener.setblocking(False)
            while self.nr_conns < self.worker_connections and self.accept(listener):
                pass
            listener.close()

    def _accept_while(self, room: bool) -> None:
        if room == self._accepting:
            return
        self._accepting = room
        for listener in self.sockets:
            if room:
                listener.setblocking(False)
                self.poller.register(listener, selectors.EVENT_READ, self.accept)
            else:
                self.poller.unregister(listener)
