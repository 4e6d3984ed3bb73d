"""gunicorn's thread worker, changed so that no client can hold up another.

The original gives a thread to every connection until its handshake is done and its request is read,
and lingers on closing ones in its accept loop. Here a thread only works on octets that have arrived:
handshake and reading never block, waiting is the poller's, each wait ends at a deadline, and the
threads are for whole requests. Two kinds of listeners: TLS for devices, plain HTTP on loopback for
administration, which has threads of its own so that it answers when the CA stalls all others.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import ssl
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn import sock as gunicorn_sock
from gunicorn.http import RequestParser
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

from .framing import FramingError, expects_continue, request_length

__all__ = ["BODY_MAX", "Connection", "Worker"]

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
SERVED, AGAIN, LINGER, GONE = "served", "again", "linger", "gone"  # what a thread says of a connection

BODY_MAX = 65_536  # octets of a device's request body
ADMIN_BODY_MAX = 4 << 20
ADMIN_THREADS = 4
SEND_TIMEOUT = 10.0
LINGER_TIME = 2.0
READ_SIZE = 65_536
_REASONS = {
    400: "Bad Request",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


class _Gone(Exception):
    """The client closed the connection."""


class Connection(TConn):  # type: ignore[misc]
    """A client connection. `deadline` (monotonic seconds) bounds the current wait."""

    sock: socket.socket

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any, *, admin: bool) -> None:
        super().__init__(cfg, sock, client, server)
        self.admin = admin
        self.body_max = ADMIN_BODY_MAX if admin else BODY_MAX
        self.buffer = bytearray()
        self.established = admin
        self.continued = False
        self.idle = False
        self.lingering = False
        self.deadline = time.monotonic() + cfg.user_limits["handshake"]

    def advance(self) -> int:
        """Handshake and reading as far as the octets go. READ or WRITE: wait for that; 0: a request is whole.

        Raises FramingError, _Gone, OSError (ssl.SSLError is one).
        """
        try:
            if not self.established:
                self._handshake()
            while request_length(self.buffer, self.body_max) is None:
                if not self.continued and expects_continue(self.buffer):
                    self.continued = True
                    self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                data = self.sock.recv(READ_SIZE)
                if not data:
                    raise _Gone
                self.buffer += data
        except ssl.SSLWantWriteError:
            return WRITE
        except (ssl.SSLWantReadError, BlockingIOError):
            return READ
        return 0

    def _handshake(self) -> None:
        if not isinstance(self.sock, ssl.SSLSocket):
            context = gunicorn_sock.ssl_context(self.cfg)
            self.sock = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
            self.sock.setblocking(False)
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.do_handshake()
        self.established = True
        self.deadline = time.monotonic() + self.cfg.user_limits["request"]

    def take(self) -> bytes:
        """The octets of the first whole request."""
        size = request_length(self.buffer, self.body_max) or 0
        request = bytes(self.buffer[:size])
        del self.buffer[:size]
        return request

    def refuse(self, status: int, sentence: str) -> None:
        """Answers without the program: the request is not one that it could read."""
        json = b" /rmagent/" in self.buffer[:64]
        kind = "application/json" if json else "text/plain; charset=utf-8"
        body = (f'{{"error": "{sentence}"}}\n' if json else f"{sentence}\n").encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            self.sock.settimeout(SEND_TIMEOUT)
            self.sock.sendall(head.encode() + body)

    def end(self) -> None:
        """Says goodbye in TLS and TCP; what still arrives is drained by the poller (RFC 9112 9.6)."""
        self.lingering = True
        with contextlib.suppress(OSError):
            self.sock.setblocking(False)
            if isinstance(self.sock, ssl.SSLSocket) and self.established:
                with contextlib.suppress(OSError, ValueError):
                    self.sock.unwrap()
            self.sock.shutdown(socket.SHUT_WR)


class Worker(ThreadWorker):  # type: ignore[misc]
    """cfg.user_limits: {"handshake": s, "request": s}; cfg.is_admin(listener's name): plain HTTP there?"""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: set[Connection] = set()
        self.admin_pool = ThreadPoolExecutor(ADMIN_THREADS, thread_name_prefix="admin")
        self._swept = 0.0

    # ---- main thread: accepting, waiting, ending ------------------------------------------------

    def accept(self, listener: Any) -> None:
        try:
            client, address = listener.accept()
        except OSError as err:
            if err.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                self.log.warning("no descriptor left for a new connection; closing an idle one")
                self._shed()
                time.sleep(0.01)
            elif err.errno not in {errno.EAGAIN, errno.ECONNABORTED, errno.EPROTO}:
                raise
            return
        self.nr_conns += 1
        server = listener.getsockname()
        admin = self.cfg.is_admin(server)
        self._wait(Connection(self.cfg, client, address, server, admin=admin), READ)

    def enqueue_req(self, conn: Connection) -> None:
        pool = self.admin_pool if conn.admin else self.tpool
        try:
            work = pool.submit(self.handle, conn)
        except RuntimeError:  # the pool is shutting down
            self._close(conn)
            return
        work.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        result: Any = GONE if fs.cancelled() or fs.exception() else fs.result()
        now = time.monotonic()
        if result == AGAIN:
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
        if conn.lingering:
            self._drain(conn)
            return
        self._forget(conn)
        if conn.idle:
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
        with contextlib.suppress(OSError):
            conn.sock.close()

    def _shed(self) -> None:
        """Makes room: the idle connection that has waited longest, else whoever is next to time out."""
        if self.waiting:
            conn = min(self.waiting, key=lambda each: (not (each.idle or each.lingering), each.deadline))
            self._forget(conn)
            self._close(conn)

    def murder_pending(self) -> None:
        """Ends the waits that are over; called in every turn of the loop."""
        now = time.monotonic()
        if self.nr_conns >= self.worker_connections:
            self._shed()
        if now - self._swept < 0.25:
            return
        self._swept = now
        for conn in [each for each in self.waiting if each.deadline <= now]:
            self._forget(conn)
            self._close(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        if force:
            for conn in list(self.waiting):
                self._forget(conn)
                self._close(conn)
            self.admin_pool.shutdown(wait=False)

    def _cap_keepalive(self, deadline: float) -> None:
        """Shutdown: who has sent nothing of a request does not keep us."""
        for conn in self.waiting:
            conn.deadline = min(conn.deadline, deadline)

    # ---- pool threads ---------------------------------------------------------------------------

    def handle(self, conn: Connection) -> Any:
        """One step of a connection; never waits for the client but for SEND_TIMEOUT while answering."""
        try:
            wants = conn.advance()
            return wants if wants else self._serve(conn)
        except FramingError as err:
            conn.refuse(err.status, err.sentence)
        except _Gone:
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
        conn.sock.settimeout(SEND_TIMEOUT)
        raw = conn.take()
        conn.parser = RequestParser(self.cfg, iter((raw,)), conn.client)
        keep = False
        try:
            request = next(conn.parser)
            request._expected_100_continue = False  # the wait is over, see Connection.advance
            keep = self.handle_request(request, conn) and not request.should_close()
        except (ParseException, StopIteration) as err:
            self.log.info("a request of %s is malformed: %s", conn.client[0], type(err).__name__)
            conn.refuse(400, "the request is not valid HTTP")
        except OSError:
            raise
        except Exception:
            self.log.exception("answering %s failed", conn.client[0])
            conn.refuse(500, "an internal error occurred; the log of the proxy says more")
        conn.continued = False
        if not keep or not conn.parser.finish_body() or conn.parser.unreader.buf.getvalue():
            conn.end()
            return LINGER
        return AGAIN if conn.buffer else SERVED
