"""A connection of a client, as far as no thread is needed for it: the preface, the handshake, what is read and waits.

Nothing here waits for the client, but for SEND_TIMEOUT while it is answered; who waits is the poller (worker.py).
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import ssl
import time
from typing import Any

from gunicorn import sock as gunicorn_sock
from gunicorn.workers.gthread import TConn

from .framing import ADMIN_BODY_MAX, DEVICE_BODY_MAX, Cut, FramingError, expects_continue, request_length
from .preface import Preface
from .waiting import REQUEST_MAX, Place, Visit

__all__ = ["READ", "READ_SIZE", "SEND_TIMEOUT", "WRITE", "Connection", "Gone"]

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
SEND_TIMEOUT = 10.0
READ_SIZE = 65_536
PROBE_AFTER, PROBE_EVERY, PROBES = 60, 20, 3  # TCP keep-alive of who waits: seconds, seconds, times
_REASONS = {
    400: "Bad Request",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}
CUT_SECONDS = 60.0
TURN_MAX = 4 << 20  # octets that a thread reads of one connection before it looks after others
_OF_PROGRAMS = re.compile(
    rb"[A-Za-z]{1,16} (?:https?://[^/ ]{1,255})?/(?:rmagent|api)/"
)  # whose errors are JSON


class Gone(Exception):
    """The client closed the connection."""


class Connection(TConn):  # type: ignore[misc]
    """A client connection. `deadline` (monotonic seconds) bounds the current wait."""

    sock: socket.socket
    client: Any  # its address, and its port; of who is behind a balancer when that has said so

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any, *, admin: bool) -> None:
        super().__init__(cfg, sock, client, server)
        self.admin = admin
        self.body_max = ADMIN_BODY_MAX if admin else DEVICE_BODY_MAX
        self.buffer = bytearray()
        # what a balancer says before the client's handshake begins
        self.preface = Preface() if not admin and cfg.sends_preface(client[0]) else None
        self.established = admin
        self.continued = False
        self.idle = False
        self.lingering = False
        self.visit: Visit | None = None  # of the request that is answered, or waits
        self.request = b""  # the one that waits
        self.parked = False  # with the poller, until it is answered
        self.woken = False
        self.cut: Cut | None = None  # of a request whose body is too large to be kept
        self.since = 0.0  # when it was handed to the threads
        self.deadline = time.monotonic() + cfg.user_limits["handshake"]

    def advance(self) -> int:
        """Handshake and reading as far as the octets go. READ or WRITE: wait for that; 0: a request is whole.

        Raises PrefaceError, FramingError, Gone, OSError (ssl.SSLError is one).
        """
        try:
            if self.preface is not None:
                self.client = self.preface.read(self.sock) or self.client
                self.preface = None
            if not self.established:
                self._handshake()
            taken = 0
            while not self._whole():
                if taken > TURN_MAX:
                    return READ
                if not self.continued and expects_continue(self.buffer):
                    self.continued = True
                    self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                data = self.sock.recv(READ_SIZE)
                if not data:
                    raise Gone
                self.buffer += data
                taken += len(data)
        except ssl.SSLWantWriteError:
            return WRITE
        except (ssl.SSLWantReadError, BlockingIOError):
            return READ
        return 0

    def _whole(self) -> bool:
        """Is there a request in the buffer? One of the administration that is too large is cut."""
        if self.cut is None:
            try:
                return request_length(self.buffer, self.body_max) is not None
            except FramingError as err:
                if not self.admin or err.status != 413 or (cut := Cut.of(self.buffer)) is None:
                    raise
            del self.buffer[: self.buffer.find(b"\r\n\r\n") + 4]
            self.cut = cut
            self.deadline = time.monotonic() + CUT_SECONDS
        return self.cut.take(self.buffer)

    def _handshake(self) -> None:
        if not isinstance(self.sock, ssl.SSLSocket):
            context = gunicorn_sock.ssl_context(self.cfg)
            # making it may have waited for the database, which is not the client's fault
            self.deadline = time.monotonic() + self.cfg.user_limits["handshake"]
            self.sock = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
            self.sock.setblocking(False)
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.do_handshake()
        self.established = True
        self.deadline = time.monotonic() + self.cfg.user_limits["request"]

    def take(self) -> bytes:
        """The octets of the first whole request."""
        if self.cut is not None:
            return self.cut.request()
        size = request_length(self.buffer, self.body_max) or 0
        request = bytes(self.buffer[:size])
        del self.buffer[:size]
        return request

    def has_gone(self) -> bool:
        """Did an idle client close the connection? What it sends instead is kept."""
        try:
            data = self.sock.recv(READ_SIZE)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return False
        except OSError:
            return True
        self.buffer += data
        return not data

    def overhear(self) -> bool:
        """Keeps what a waiting client sends for afterwards. False: it is gone, or sends more than is kept."""
        try:
            while len(self.buffer) <= REQUEST_MAX:
                data = self.sock.recv(READ_SIZE)
                if not data:
                    return False
                self.buffer += data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return True
        except OSError:
            return False
        return False

    def dismiss(self, place: Place, seconds: int) -> None:
        """Answers a request that waits, without the program: nothing changed, come back in `seconds`."""
        head = (
            f"HTTP/1.1 304 Not Modified\r\nETag: {place.etag}\r\nRetry-After: {seconds}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            self.sock.send(head.encode())

    def probe(self) -> None:
        """Lets the kernel find out that a silent client is gone."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)

    def refuse(self, status: int, sentence: str, request: bytes | bytearray) -> None:
        """Answers without the program: the request, of which there is at least the begin, is not one that it could read."""
        json = _OF_PROGRAMS.match(request)
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
