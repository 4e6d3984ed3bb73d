"""A worker for gunicorn in which no client can hold up another.

gunicorn's thread worker gives a thread to every connection until its handshake is done and its request is read,
and lingers on closing ones in its accept loop. Here a thread only works on octets that have arrived:
handshake and reading never block, waiting is the poller's, each wait ends at a deadline, and the
threads are for whole requests. A request that waits for a change (waiting.py) is parked with the poller,
and handed to a thread again when it is to be answered. Two kinds of listeners: TLS for devices, plain HTTP on
loopback for administration, which has threads of its own so that it answers when the CA stalls all others.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

from gunicorn.http import RequestParser
from gunicorn.http.errors import LimitRequestHeaders, ParseException

from .changes import Change, Watch
from .connection import READ, READ_SIZE, SEND_TIMEOUT, WRITE, Connection, Gone
from .framing import CUT, FramingError
from .loop import LINGER_TIME, Loop
from .preface import PrefaceError
from .turns import working
from .waiting import KEY, Parked, Room, Visit, retry_soon

__all__ = ["Worker"]

# what a thread says of a connection
SERVED, AGAIN, LINGER, GONE, PARK = "served", "again", "linger", "gone", "park"

ADMIN_THREADS = 4
SHOW_SECONDS = 0.5  # between looks of monitoring at what is here
BATCH = 16  # of those that waited, answered by a thread one after the other,
BATCH_SECONDS = 0.1  # or as many as it answers in that time
HELD_UP_SECONDS = (
    0.5  # after which another thread helps: one of them waits for a challenge of NDES, or for a client
)


class Worker(Loop):
    """cfg.user_limits: {"handshake": s, "request": s, "waiting": devices}, and as of Loop; cfg.is_admin(listener's name):
    plain HTTP there?; cfg.sends_preface(address): does the PROXY protocol come from there?; cfg.changes_since(position):
    the changes after it; cfg.hear_changes: see changes.hearing; cfg.note_lag(seconds): a connection waited for a thread;
    cfg.view(): see changes.view; cfg.show_gate(): tells monitoring how it is before the CA."""

    wsgi: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: set[Connection] = set()
        self.parked: dict[str, Connection] = {}  # by unit ID: one for each device, not counted in nr_conns
        self.awake: deque[Connection] = deque()  # of these, whose turn to be answered comes
        self.answering = 0  # threads that are at it
        self.room = Room(self.cfg.user_limits["waiting"])
        self.admin_pool = ThreadPoolExecutor(ADMIN_THREADS, thread_name_prefix="admin")
        self._thread = threading.local()
        self._swept = self._shown = self._handed_out = 0.0

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.watch = Watch(
            self.cfg.changes_since,
            lambda found: self.calls.defer(self._changed, found),
            self.cfg.hear_changes,
        )
        program = self.wsgi

        def with_visit(environ: dict[str, Any], start_response: Any) -> Any:
            environ[KEY] = self._thread.visit
            environ[CUT] = self._thread.cut
            return program(environ, start_response)

        self.wsgi = with_visit
        self.log.access = lambda *_: (
            None
        )  # the program has a log of its own; gunicorn would put its together in vain

    # ---- main thread: accepting, waiting, ending ------------------------------------------------

    def accept(self, listener: Any) -> bool:
        try:
            client, address = listener.accept()
        except OSError as err:
            if err.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                self.log.warning("no descriptor left for a new connection; closing an idle one")
                self._shed()
                time.sleep(0.01)
            elif err.errno not in {errno.EAGAIN, errno.ECONNABORTED, errno.EPROTO}:
                raise
            return False
        self.nr_conns += 1
        server = listener.getsockname()
        admin = self.cfg.is_admin(server)
        self._wait(Connection(self.cfg, client, address, server, admin=admin), READ)
        return True

    def enqueue_req(self, conn: Connection) -> None:
        conn.since = time.monotonic()
        pool = self.admin_pool if conn.admin else self.tpool
        try:
            work = pool.submit(self.handle, conn)
        except RuntimeError:  # the pool is shutting down
            self._close(conn)
            return
        work.add_done_callback(lambda done: self.calls.defer(self.finish_request, conn, done))

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        self._finish(conn, GONE if fs.cancelled() or fs.exception() else fs.result())

    def _finish(self, conn: Connection, result: Any) -> None:
        """What a thread said of a connection."""
        now = time.monotonic()
        if result == PARK:
            self._park(conn)
        elif result == AGAIN:
            conn.deadline = now + self.cfg.user_limits["request"]
            self.enqueue_req(conn)
        elif result == SERVED:
            conn.idle = True
            conn.deadline = now + (self.cfg.keepalive if self.alive else min(self.cfg.keepalive, LINGER_TIME))
            self._wait(conn, READ)
        elif result in (READ, WRITE) and now < conn.deadline:
            self._wait(conn, result)
        elif result == LINGER:
            conn.deadline = now + LINGER_TIME
            self._wait(conn, READ)
        else:
            self._close(conn)

    def _wait(self, conn: Connection, events: int) -> None:
        try:
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, events, partial(self._ready, conn))
        except (OSError, ValueError, KeyError):
            self._close(conn)
        else:
            self.waiting.add(conn)

    def _ready(self, conn: Connection, _: Any) -> None:
        if conn.parked:
            if not conn.overhear():
                self._unpark(conn)
                self._close(conn)
            return
        if conn not in self.waiting:  # seen by the poller before it was handed to a thread, in the same round
            return
        if conn.lingering:
            self._drain(conn)
            return
        self._forget(conn)
        if conn.idle:
            if conn.has_gone():  # most do; a thread has nothing to do with that
                self._close(conn)
                return
            conn.idle = False
            conn.deadline = time.monotonic() + self.cfg.user_limits["request"]
        self.enqueue_req(conn)

    def _drain(self, conn: Connection) -> None:
        try:
            more = socket.socket.recv(conn.sock, READ_SIZE)  # below TLS: nobody reads it
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._forget(conn)
            self._close(conn)

    def _forget(self, conn: Connection) -> None:
        self.waiting.discard(conn)
        with contextlib.suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        if conn.visit is not None:
            conn.visit.leave()
        with contextlib.suppress(OSError):
            conn.sock.close()

    def _shed(self) -> None:
        """Makes room: the idle connection that has waited longest, else whoever is next to time out."""
        if self.waiting:
            conn = min(self.waiting, key=lambda each: (not (each.idle or each.lingering), each.deadline))
            self._forget(conn)
            self._close(conn)

    def sweep(self) -> None:
        """Ends the waits that are over."""
        now = time.monotonic()
        if self.nr_conns >= self.worker_connections:
            self._shed()
        if now - self._swept < 0.25:
            return
        self._swept = now
        if now - self._shown > SHOW_SECONDS:
            self._shown = now
            self.room.show()
            self.cfg.show_gate()
        for conn in [each for each in self.waiting if each.deadline <= now]:
            self._forget(conn)
            self._close(conn)
        for conn in [each for each in self.parked.values() if each.deadline <= now]:
            self._wake(conn)
        self._answer_parked()

    def release(self) -> None:
        for conn in list(self.waiting):
            self._forget(conn)
            self._close(conn)
        self.watch.stop()
        self.admin_pool.shutdown(wait=False)

    def leave(self) -> None:
        """Shutdown begins: who waits is to wait elsewhere, and /readyz says so."""
        self.room.closed = True
        for conn in list(self.parked.values()):
            self._unpark(conn)
            self._dismiss(conn)

    def hurry(self, deadline: float) -> None:
        """Who has sent nothing of a request does not keep us."""
        for conn in self.waiting:
            conn.deadline = min(conn.deadline, deadline)

    # ---- main thread: who waits for a change ----------------------------------------------------

    def _park(self, conn: Connection) -> None:
        assert conn.visit is not None and conn.visit.place is not None
        place = conn.visit.place
        if not self.alive:
            self._dismiss(conn)
            return
        if (older := self.parked.get(place.unit_id)) is not None:  # it came back: the old connection is dead
            self._unpark(older)
            self._dismiss(older)
        try:
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, READ, partial(self._ready, conn))
        except (OSError, ValueError, KeyError):
            self._close(conn)
            return
        conn.probe()
        conn.deadline = conn.visit.until
        self.nr_conns -= 1
        self.parked[place.unit_id] = conn
        conn.parked = True
        self.watch.look_from(place.since)

    def _unpark(self, conn: Connection) -> None:
        assert conn.visit is not None and conn.visit.place is not None
        with contextlib.suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)
        del self.parked[conn.visit.place.unit_id]
        self.nr_conns += 1
        conn.parked = conn.woken = False
        if not self.parked:
            self.watch.rest()

    def _dismiss(self, conn: Connection) -> None:
        assert conn.visit is not None and conn.visit.place is not None
        conn.sock.setblocking(False)
        conn.dismiss(conn.visit.place, retry_soon(leaving=self.room.closed))
        conn.visit.leave()
        conn.visit, conn.request = None, b""
        conn.end()
        conn.deadline = time.monotonic() + LINGER_TIME
        self._wait(conn, READ)

    def _changed(self, found: list[Change]) -> None:
        """Wakes whom the changes concern."""
        newest = {(change.kind, change.target): change.id for change in found}
        for conn in self.parked.values():
            assert conn.visit is not None and conn.visit.place is not None
            place = conn.visit.place
            keys = [("device", place.unit_id), *(("directory", path) for path in place.directories)]
            if any(newest.get(key, 0) > place.since for key in keys):
                self.room.woken += 1
                self._wake(conn)
        self._answer_parked()

    def _wake(self, conn: Connection) -> None:
        if not conn.woken:
            conn.woken = True
            self.awake.append(conn)

    def _answer_parked(self) -> None:
        """Hands those that are awake to a thread, several at a time: it costs half of what one at a time does. To one thread
        alone, unless that is held up; it lets others go first: a herd that hears of something new is not to be in the way of
        who wants a certificate."""
        while self.awake and (not self.answering or self._is_held_up()):
            batch: list[Connection] = []
            while self.awake and len(batch) < BATCH:
                conn = self.awake.popleft()
                if conn.parked:  # not gone meanwhile
                    self._unpark(conn)
                    batch.append(conn)
            self._hand_out(batch)

    def _is_held_up(self) -> bool:
        late = time.monotonic() - self._handed_out > HELD_UP_SECONDS
        return late and self.answering < self.cfg.threads // 4

    def _hand_out(self, batch: list[Connection]) -> None:
        try:
            work = self.tpool.submit(self._answer_in_turn, batch)
        except RuntimeError:  # the pool is shutting down
            for conn in batch:
                self._close(conn)
            return
        self.answering += 1
        self._handed_out = time.monotonic()
        work.add_done_callback(lambda done: self.calls.defer(self._answered, batch, done))

    def _answered(self, batch: list[Connection], done: Future[Any]) -> None:
        self.answering -= 1
        failed = done.cancelled() or done.exception()
        results = [GONE] * len(batch) if failed else done.result()
        if rest := batch[len(results) :]:
            self._hand_out(rest)
        for conn, result in zip(batch, results, strict=False):
            self._finish(conn, result)
        self._answer_parked()

    # ---- pool threads ---------------------------------------------------------------------------

    def _answer_in_turn(self, batch: list[Connection]) -> list[Any]:
        """What came of the first of them, of as many as the time sufficed for."""
        results: list[Any] = []
        end = time.monotonic() + BATCH_SECONDS
        with self.cfg.view():
            while len(results) < len(batch) and (not results or time.monotonic() < end):
                results.append(self.handle(batch[len(results)]))
        return results

    def handle(self, conn: Connection) -> Any:
        """One step of a connection; never waits for the client but for SEND_TIMEOUT while answering."""
        try:
            # administration has threads of its own; who waited was not in a hurry
            with nullcontext() if conn.admin else working(first=not conn.request):
                if not (conn.admin or conn.request):
                    self.cfg.note_lag(time.monotonic() - conn.since)
                wants = 0 if conn.request else conn.advance()
                return wants if wants else self._serve(conn)
        except FramingError as err:
            conn.refuse(err.status, err.sentence, conn.buffer)
        except PrefaceError as err:
            self.log.warning("a connection from the balancer %s is refused: %s", conn.client[0], err)
            return GONE
        except Gone:
            return GONE
        except ssl.SSLError as err:
            self.log.debug("TLS with %s: %s", conn.client, err.reason or err)
            return GONE
        except OSError as err:
            self.log.debug("connection of %s: %s", conn.client, err)
            return GONE
        conn.end()
        return LINGER

    def _serve(self, conn: Connection) -> Any:
        """Answers the request that is whole, or that waited."""
        conn.sock.settimeout(SEND_TIMEOUT)
        raw, conn.request = conn.request or conn.take(), b""
        conn.visit = self._thread.visit = conn.visit or Visit(self.room, len(raw))
        waits, self._thread.cut = False, conn.cut is not None
        try:
            return self._answer(conn, raw)
        except Parked:
            waits = True
            conn.request, conn.parser = raw, None
            return PARK
        finally:
            if not waits:
                conn.visit.leave()
                conn.visit = None

    def _answer(self, conn: Connection, raw: bytes) -> Any:
        conn.parser = RequestParser(self.cfg, iter((raw,)), conn.client)
        keep = False
        try:
            request = next(conn.parser)
            request._expected_100_continue = False  # the wait is over, see Connection.advance
            keep = self.handle_request(request, conn) and not request.should_close()
        except (ParseException, StopIteration) as err:
            self.log.info("a request of %s is malformed: %s", conn.client[0], type(err).__name__)
            if isinstance(err, LimitRequestHeaders):
                conn.refuse(431, "the header of the request has a field that is too long, or too many", raw)
            else:
                conn.refuse(400, "the request is not valid HTTP", raw)
        except OSError:
            raise
        except Exception:
            self.log.exception("answering %s failed", conn.client[0])
            conn.refuse(500, "an internal error occurred; the log of the proxy says more", raw)
        conn.continued, conn.cut = False, None
        if not keep or not _read_whole(conn.parser):
            conn.end()
            return LINGER
        return AGAIN if conn.buffer else SERVED


def _read_whole(parser: Any) -> bool:
    """Did gunicorn see the request end where we did? What the program left of the body is read."""
    body = parser.mesg.body
    if getattr(body, "failed", False):
        return False
    try:
        while body.read(READ_SIZE):
            pass
    except (ParseException, OSError):
        return False
    return not parser.unreader.buf.getvalue()
