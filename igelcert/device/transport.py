"""HTTPS, and HTTP for SCEP, for the device: http.client and ssl, one kept connection, everything bounded.

Only the private CA is loaded. Redirects are not followed, proxies from the environment are ignored.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

from ..codec.http import Request, Response, plain_line
from ..errors import SettingsError, TransportError

__all__ = ["Link", "client_context", "split_url"]

TIMEOUT = 20.0  # seconds of silence
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


def client_context(
    *, ca_pem: str | None = None, ca_dir: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """A TLS 1.2+ client context that trusts the CAs given as PEM text or as a hashed directory.

    verify False is for one thing: fetching CA certificates whose fingerprint is checked afterwards.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        # RFC 7030 4.1.1: bootstrap; nothing is sent, and what comes is checked against a fingerprint
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate may be the configured anchor
    try:
        context.load_verify_locations(cadata=ca_pem or None, capath=ca_dir)
    except (ssl.SSLError, OSError, TypeError) as err:
        raise SettingsError("ca_file", f"holds no usable CA certificate: {err}") from None
    return context


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
        if isinstance(err, socket.gaierror):
            return TransportError(
                f"the name {self.host} does not resolve",
                link="name",
                hint="check the name and the DNS server",
            )
        if isinstance(err, ssl.SSLCertVerificationError):
            return TransportError(
                f"the certificate of {name} is not trusted: {plain_line(err.verify_message).rstrip('.')}",
                link="tls-trust",
                hint=_trust_hint(err.verify_code),
            )
        if isinstance(err, TimeoutError) or late:
            return TransportError(
                f"{name} does not answer in time", link="timeout", hint="look whether it is overloaded"
            )
        if isinstance(err, ssl.SSLError):
            return self._tls_failure(err)
        if isinstance(err, ConnectionRefusedError):
            return TransportError(
                f"nothing listens on {name}", link="tcp", hint="check host and port; is the server running?"
            )
        closed = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)
        if isinstance(err, closed):
            return TransportError(f"{name} closed the connection without an answer", link="closed")
        if isinstance(err, http.client.IncompleteRead):
            return TransportError(f"{name} closed the connection in the middle of its answer", link="http")
        if isinstance(err, http.client.HTTPException):
            detail = "" if isinstance(err, http.client.BadStatusLine) else f": {plain_line(str(err))}"
            return TransportError(f"{name} does not answer with HTTP{detail}", link="http")
        return TransportError(f"{name} cannot be reached: {plain_line(str(err))}", link="tcp")

    def _tls_failure(self, err: ssl.SSLError) -> TransportError:
        reason = (err.reason or "").upper()
        if isinstance(err, ssl.SSLEOFError) or "EOF" in reason:
            return TransportError(f"{self._name} closed the connection without an answer", link="closed")
        if "ALERT" in reason and any(word in reason for word in ("CERT", "UNKNOWN_CA", "ACCESS_DENIED")):
            return TransportError(
                f"{self._name} refused our client certificate: {reason.replace('_', ' ').lower()}",
                link="tls-client",
                hint="register the device again, or look why the server does not accept it",
            )
        if "WRONG_VERSION" in reason or "HTTP_REQUEST" in reason or "UNKNOWN_PROTOCOL" in reason:
            return TransportError(
                f"{self._name} does not speak TLS", link="tls", hint="check the port: is it plain HTTP?"
            )
        return TransportError(
            f"TLS with {self._name} failed: {reason.replace('_', ' ').lower() or 'unknown reason'}",
            link="tls",
        )


def _trust_hint(code: int) -> str:
    """By OpenSSL's X509_V_ERR_: 9 not yet valid, 10 expired, 62 and 64 another host name or address."""
    if code in {9, 10}:
        shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return f"is this device's clock right? it says {shown}"
    if code in {62, 64}:
        return "give the server's name as its certificate has it"
    return "compare the CA that this device trusts with the one that issued the server's certificate"


def _cut(sock: socket.socket, late: threading.Event) -> None:
    """Ends an exchange that drips on for too long."""
    late.set()  # first: the reader wakes before this thread goes on
    with contextlib.suppress(OSError):
        # not SSLSocket's: that pulls TLS away from under the reader
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
