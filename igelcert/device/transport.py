"""HTTPS, and HTTP for SCEP, for the device: http.client and ssl, one kept connection, everything bounded.

Only the private CA is loaded. Redirects are not followed, proxies from the environment are ignored.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from urllib.parse import urlsplit

from ..codec.http import Request, Response, plain_line
from ..errors import SettingsError, TransportError
from .wire import TIMEOUT, client_context, failure

__all__ = ["Link", "client_context", "split_url"]

DEADLINE = 90.0  # seconds for a whole exchange
MAX_BODY = 1 << 20


def split_url(url: str, scheme: str = "https") -> tuple[str, int]:
    """Host and port of an https URL (or http, by `scheme`) without user, path or query."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if scheme == "https" else 80)
    except ValueError:
        raise SettingsError("server", f"{url!r} is not a URL") from None
    if parts.scheme != scheme or not parts.hostname or parts.username or parts.query or parts.path.strip("/"):
        raise SettingsError("server", f"{url!r} is not of the form {scheme}://HOST[:PORT]")
    return parts.hostname, port


class Link:
    """A connection to one server; context None: plain HTTP. `authorization`: value of that header, never shown."""

    def __init__(
        self, url: str, context: ssl.SSLContext | None, *, authorization: str = "", timeout: float = TIMEOUT
    ) -> None:
        self.host, self.port = split_url(url, "http" if context is None else "https")
        self._context = context
        self._authorization = authorization
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def send(self, request: Request) -> Response:
        """The answer to a request; TransportError says which link failed."""
        kept = self._connection is not None
        try:
            return self._exchange(request)
        except TransportError as err:
            # a kept connection may have been closed by the server meanwhile: once more on a new one
            if not kept or err.link != "closed":
                raise
        return self._exchange(request)

    def _exchange(self, request: Request) -> Response:
        connection = self._connection or self._new()
        self._connection = None
        late = threading.Event()
        timer: threading.Timer | None = None
        try:
            if connection.sock is None:
                connection.connect()
            # the socket itself: http.client forgets it when the answer ends with the connection
            timer = threading.Timer(DEADLINE, _cut, (connection.sock, late))
            timer.daemon = True
            timer.start()
            headers = dict(request.headers)
            if self._authorization:
                headers["Authorization"] = self._authorization
            connection.request(request.method, request.path, request.body or None, headers)
            answer = connection.getresponse()
            body = answer.read(MAX_BODY + 1)
            if len(body) > MAX_BODY:
                raise TransportError(f"{self._name} sent more than {MAX_BODY >> 20} MiB", link="http")
            if late.is_set() or answer.length:
                # http.client passes a short body over when it was asked for a number of bytes
                raise http.client.IncompleteRead(b"", answer.length)
            if not answer.will_close:
                self._connection, connection = connection, None  # type: ignore[assignment]
            return Response(answer.status, tuple(answer.getheaders()), body)
        except (OSError, http.client.HTTPException) as err:
            raise self._failure(err, late.is_set()) from None
        finally:
            if timer is not None:
                timer.cancel()
            if connection is not None:
                connection.close()

    def _new(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=self._timeout)
        return http.client.HTTPSConnection(self.host, self.port, timeout=self._timeout, context=self._context)

    @property
    def _name(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def _failure(self, err: Exception, late: bool) -> TransportError:
        name = self._name
        if late:
            err = TimeoutError()
        if isinstance(err, http.client.RemoteDisconnected):
            err = ConnectionResetError()
        if isinstance(err, OSError):
            return failure(err, self.host, name)
        if isinstance(err, http.client.IncompleteRead):
            return TransportError(f"{name} closed the connection in the middle of its answer", link="http")
        detail = "" if isinstance(err, http.client.BadStatusLine) else f": {plain_line(str(err))}"
        return TransportError(f"{name} does not answer with HTTP{detail}", link="http")


def _cut(sock: socket.socket, late: threading.Event) -> None:
    """Ends an exchange that drips on for too long."""
    late.set()  # first: the reader wakes before this thread goes on
    with contextlib.suppress(OSError):
        # not SSLSocket's: that pulls TLS away from under the reader
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
