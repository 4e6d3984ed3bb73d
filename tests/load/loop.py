"""Thousands of TLS connections in one process and one thread: generators that wait for a socket or for a time.

A task yields (socket, READ or WRITE, seconds of patience) to wait for a socket, and a number to sleep so many
seconds. Cheaper than asyncio's TLS by half, which matters where the load shares its processors with what it loads.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import ssl
import time
from collections.abc import Generator
from typing import Any, NamedTuple

from igelcert.codec.http import Response
from igelcert.record import replace

__all__ = ["READ", "WRITE", "Line", "Loop", "Task", "Timing"]

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
READ_SIZE = 16_384
Task = Generator[Any, None, Any]


class Timing(NamedTuple):
    """Seconds: until the connection stood (0 on a kept one), and from the request's sending to its whole answer."""

    connect: float
    answer: float


class Loop:
    """Runs tasks until none is left, or until `end` (monotonic seconds)."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._at: dict[int, tuple[Task, int]] = {}  # by descriptor: who waits, and its timer
        self._timers: list[tuple[float, int, Task, int]] = []  # descriptor -1: it sleeps
        self._count = itertools.count()
        self.active = 0

    def spawn(self, task: Task) -> None:
        self.active += 1
        self._step(task, None)

    def run(self, end: float) -> bool:
        """False when the time was over before all tasks were."""
        while self.active:
            now = time.monotonic()
            if now >= end:
                return False
            patience = min(end, self._timers[0][0] if self._timers else end) - now
            for handle, _ in self._poll.poll(max(0.0, patience), 512):
                task, _ = self._at.pop(handle)
                self._poll.unregister(handle)
                self._step(task, None)
            self._ring(time.monotonic())
        return True

    def _ring(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, number, task, handle = heapq.heappop(self._timers)
            if handle < 0:
                self._step(task, None)
            elif (found := self._at.get(handle)) is not None and found[1] == number:
                del self._at[handle]
                self._poll.unregister(handle)
                self._step(task, TimeoutError("no answer in time"))

    def _step(self, task: Task, error: Exception | None) -> None:
        try:
            want = task.throw(error) if error else next(task)
        except StopIteration:
            self.active -= 1
            return
        number = next(self._count)
        if isinstance(want, tuple):
            sock, events, seconds = want
            handle = sock.fileno()
            self._poll.register(handle, events)
            self._at[handle] = task, number
            heapq.heappush(self._timers, (time.monotonic() + seconds, number, task, handle))
        else:
            heapq.heappush(self._timers, (time.monotonic() + want, number, task, -1))


class Line:
    """One TLS connection to a server on loopback."""

    def __init__(self, sock: ssl.SSLSocket, took: float) -> None:
        self.sock = sock
        self._connect = took

    @classmethod
    def open(cls, tls: ssl.SSLContext, port: int, patience: float) -> Task:
        """Returns a Line; a handshake in full, as no session is offered."""
        start = time.monotonic()
        raw = socket.socket()
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            raw.connect_ex(("127.0.0.1", port))
            yield raw, WRITE, patience
            if error := raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise ConnectionError(error)
            sock = tls.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False)
        except OSError:
            raw.close()
            raise
        try:
            while True:
                try:
                    sock.do_handshake()
                    return cls(sock, time.monotonic() - start)
                except ssl.SSLWantReadError:
                    yield sock, READ, patience
                except ssl.SSLWantWriteError:
                    yield sock, WRITE, patience
        except OSError:
            sock.close()
            raise

    def ask(self, method: str, path: str, headers: str, body: bytes, patience: float) -> Task:
        """Returns (Response, Timing). headers: whole lines. ConnectionError when the server closes instead."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        start = time.monotonic()
        # a request is smaller than any socket's buffer
        self.sock.send(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{length}\r\n".encode() + body
        )
        found = b""
        while (end := found.find(b"\r\n\r\n")) < 0:
            found += yield from self._read(patience)
        lines = found[:end].decode("latin-1").split("\r\n")
        named = tuple(tuple(line.split(": ", 1)) for line in lines[1:])
        answer = Response(int(lines[0].split(" ", 2)[1]), named, b"")  # type: ignore[arg-type]
        size = 0 if answer.status in {204, 304} else int(answer.header("Content-Length") or 0)
        body = found[end + 4 :]
        while len(body) < size:
            body += yield from self._read(patience)
        timing = Timing(self._connect, time.monotonic() - start)
        self._connect = 0.0
        return replace(answer, body=body), timing

    def _read(self, patience: float) -> Task:
        while True:
            try:
                data = self.sock.recv(READ_SIZE)
            except ssl.SSLWantReadError:
                yield self.sock, READ, patience
                continue
            if not data:
                raise ConnectionError("closed without an answer")
            return data

    def close(self) -> None:
        self.sock.close()
