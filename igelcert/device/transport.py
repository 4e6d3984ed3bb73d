"""HTTPS, and HTTP for SCEP, for the device: one kept connection, everything bounded.

Only the private CA is loaded. Redirects are not followed, proxies from the environment are ignored.
"""

from __future__ import annotations

import socket
import ssl
import time

from ..codec.http import Request, Response
from ..codec.http1 import ResponseReader, encode_request
from ..errors import RemoteProtocolError, SettingsError, TransportError
from ..record import replace
from .wire import TIMEOUT, client_context, failure

__all__ = ["Link", "client_context", "split_url"]

DEADLINE = 90.0  # seconds for a whole exchange
MAX_BODY = 1 << 20
PIECE = 65_536


def split_url(url: str, scheme: str = "https") -> tuple[str, int]:
    """Host and port of an https URL (or http, by `scheme`) without user, path or query."""
    begin, _, rest = url.partition("://")
    name, _, number = rest.rstrip("/").partition(":")
    plain = name.isascii() and name.replace("-", "").replace(".", "").isalnum()
    if (
        begin == scheme
        and plain
        and len(number) < 6
        and (number == "" or (number.isascii() and number.isdecimal()))
    ):
        port = int(number or (443 if scheme == "https" else 80))
        if 0 < port < 65_536:
            return name.lower(), port
    return _split_odd_url(url, scheme)


def _split_odd_url(url: str, scheme: str) -> tuple[str, int]:
    """The same for addresses and names of other alphabets, and the refusals."""
    from urllib.parse import urlsplit  # takes long to load

    try:
        parts = urlsplit(url)
        port = parts.port or (443 if scheme == "https" else 80)
    except ValueError:
        raise SettingsError("server", f"{url!r} is not a URL") from None
    if parts.scheme != scheme or not parts.hostname or parts.username or parts.query or parts.path.strip("/"):
        raise SettingsError("server", f"{url!r} is not of the form {scheme}://HOST[:PORT]")
    if parts.hostname.isascii():
        return parts.hostname, port
    try:
        return parts.hostname.encode("idna").decode("ascii"), port
    except UnicodeError:
        raise SettingsError("server", f"{url!r} has no name of a host") from None


class Link:
    """A connection to one server; context None: plain HTTP. `authorization`: value of that header, never shown."""

    def __init__(
        self, url: str, context: ssl.SSLContext | None, *, authorization: str = "", timeout: float = TIMEOUT
    ) -> None:
        self.host, self.port = split_url(url, "http" if context is None else "https")
        self._context = context
        self._authorization = authorization
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def send(self, request: Request) -> Response:
        """The answer to a request; TransportError says which link failed."""
        kept = self._socket is not None
        try:
            return self._exchange(request)
        except TransportError as err:
            # a kept connection may have been closed by the server meanwhile: once more on a new one
            if not kept or err.link != "closed":
                raise
        return self._exchange(request)

    def _exchange(self, request: Request) -> Response:
        end = time.monotonic() + DEADLINE
        if self._authorization:
            request = replace(request, headers=(*request.headers, ("Authorization", self._authorization)))
        octets = encode_request(request, self._name if self.port != self._default else self._shown)
        keep = False
        try:
            sock = self._socket = self._socket or self._open(end)
            rest = memoryview(octets)
            while rest:
                self._allow(sock, end)
                rest = rest[sock.send(rest) :]
            answer, keep = self._answer(sock, end)
            return answer
        except OSError as err:
            raise failure(err, self.host, self._name) from None
        except RemoteProtocolError as err:
            raise TransportError(f"{self._name} {err}", link="http") from None
        finally:
            if not keep:
                self.close()

    def _answer(self, sock: socket.socket, end: float) -> tuple[Response, bool]:
        """The answer, and whether the connection serves another request."""
        reader = ResponseReader(MAX_BODY)
        while True:
            self._allow(sock, end)
            data = sock.recv(PIECE)
            if not data and not reader.begun:
                raise ConnectionResetError
            if (answer := reader.receive(data)) is not None:
                return answer, reader.keep

    def _allow(self, sock: socket.socket, end: float) -> None:
        """The next call may wait for as long as silence or the whole exchange may last."""
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(min(self._timeout, left))

    def _open(self, end: float) -> socket.socket:
        # octets: a str is converted by the idna module, which has to be loaded
        sock = socket.create_connection((self.host.encode("ascii"), self.port), self._timeout)  # type: ignore[arg-type]
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                return sock
            self._allow(sock, end)
            return self._context.wrap_socket(sock, server_hostname=self.host.encode("ascii"))
        except BaseException:
            sock.close()
            raise

    @property
    def _default(self) -> int:
        return 80 if self._context is None else 443

    @property
    def _shown(self) -> str:
        """The host as RFC 3986 writes it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def _name(self) -> str:
        return f"{self._shown}:{self.port}"
