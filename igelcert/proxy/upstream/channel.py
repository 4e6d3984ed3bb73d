"""HTTP and HTTPS towards a CA: connections made when they are needed, kept, bounded in size and time.

What fails is told by its link: name, tcp, tls-trust, tls-client, timeout, http.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from ... import crypto
from ...codec.http import Request, Response, plain_line
from ...errors import Error, RemoteProtocolError, SettingsError, TransportError
from ..figures import ca_exchange
from ..leases import check_place
from ..tls import Socket
from ..turns import waiting
from .steps import Step

__all__ = ["Channel", "client_context", "date"]

MAX_BODY = 1 << 20
READ_SIZE = 65_536
CONNECT_SECONDS = 10.0
LISTEN_SECONDS = 0.5
IDLE_CONNECTIONS = 8
_watched = threading.local()


class Channel:
    """One server. tls None: plain HTTP. trust_hint: what to do when its certificate is not trusted."""

    def __init__(
        self, host: str, port: int, timeout: float, tls: ssl.SSLContext | None, trust_hint: str
    ) -> None:
        self._host = host
        self._port = port
        self._timeout = timeout
        self._tls = tls
        self._trust_hint = trust_hint
        limits = urllib3.Timeout(connect=min(CONNECT_SECONDS, timeout), read=timeout)
        self._pool: urllib3.HTTPConnectionPool
        if tls is None:
            self._pool = urllib3.HTTPConnectionPool(
                host, port, maxsize=IDLE_CONNECTIONS, retries=False, timeout=limits
            )
            self._pool.ConnectionCls = _PlainConnection
        else:
            tls.sslsocket_class = Socket
            self._pool = urllib3.HTTPSConnectionPool(
                host, port, ssl_context=tls, maxsize=IDLE_CONNECTIONS, retries=False, timeout=limits
            )
            self._pool.ConnectionCls = _Connection

    @property
    def name(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def close(self) -> None:
        self._pool.close()

    # ---- one exchange ---------------------------------------------------------------------------

    def send(self, request: Request) -> Response:
        """The answer; redirects are not followed. TransportError, RemoteProtocolError."""
        check_place(self._timeout)
        # what waits for TLS gives up its turn by itself
        aside = waiting() if self._tls is None else contextlib.nullcontext()
        with aside, ca_exchange(), _Watch(self._timeout) as watch:
            try:
                answer = self._pool.urlopen(
                    request.method,
                    request.path,
                    body=request.body or None,
                    headers=dict(request.headers),
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                )
                try:
                    body = self._body(answer)
                except BaseException:
                    answer.close()  # what is left of it must not become the start of the next answer
                    raise
                answer.release_conn()
            except (HTTPError, OSError, ValueError) as err:
                raise self._failure(err, watch) from None
        return Response(answer.status, tuple(answer.headers.items()), body)

    def _body(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        """To its end: urllib3 finds a truncated body only when there is nothing more to read."""
        body = bytearray()
        while part := answer.read(READ_SIZE, decode_content=False):
            body += part
            if len(body) > MAX_BODY:
                raise RemoteProtocolError(
                    f"{self.name} answered with more than {MAX_BODY >> 20} MiB", status_hint=502
                )
        return bytes(body)

    def _failure(self, err: Exception, watch: _Watch) -> TransportError:
        name = self.name
        if watch.fired or isinstance(err, (ReadTimeoutError, TimeoutError)):
            return TransportError(f"{name} did not answer within {self._timeout:g} seconds", link="timeout")
        if isinstance(err, NameResolutionError):
            return TransportError(
                f"the name {self._host} does not resolve",
                link="name",
                hint="check the name and DNS",
            )
        if isinstance(err, ConnectTimeoutError):
            return TransportError(
                f"{name} does not take the connection", link="tcp", hint="is a firewall between?"
            )
        if isinstance(err, NewConnectionError):
            return TransportError(
                f"{name} cannot be reached: {_why(err)}", link="tcp", hint="check host, port and route"
            )
        if isinstance(err, SSLError):
            first = err.args[0] if err.args and isinstance(err.args[0], ssl.SSLError) else None
            return _tls_failure(name, first, self._trust_hint)
        if isinstance(err, ssl.SSLError):
            return _tls_failure(name, err, self._trust_hint)
        cause = err.args[1] if len(err.args) > 1 and isinstance(err.args[1], Exception) else err
        if isinstance(cause, ssl.SSLError):
            return _tls_failure(name, cause, self._trust_hint)
        return TransportError(f"{name} broke off the exchange ({type(cause).__name__})", link="http")

    # ---- ca test --------------------------------------------------------------------------------

    def test_connection(self) -> Iterator[Step]:
        """Name, TCP and, where there is TLS, trust and client certificate; ends at the first that fails."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as err:
            yield Step(
                "name",
                False,
                f"{self._host} does not resolve: {plain_line(err.strerror or str(err))}",
                "check the name and DNS",
            )
            return
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        yield Step("name", True, f"{self._host} is {', '.join(addresses)}")
        try:
            raw = socket.create_connection(
                (self._host, self._port), timeout=min(CONNECT_SECONDS, self._timeout)
            )
        except OSError as err:
            why = "no answer" if isinstance(err, TimeoutError) else plain_line(err.strerror or str(err))
            yield Step("TCP", False, f"{self.name}: {why}", "check the port, and any firewall between")
            return
        yield Step("TCP", True, f"{self.name} takes connections")
        if self._tls is None:
            raw.close()
            return
        trust, refusal = self._test_trust(raw, self._tls)
        yield trust
        if refusal is not None:
            yield Step("client certificate", False, str(refusal), refusal.hint)

    def _test_trust(self, raw: socket.socket, context: ssl.SSLContext) -> tuple[Step, TransportError | None]:
        """The step, and what the server has against our certificate."""
        raw.settimeout(self._timeout)
        try:
            with context.wrap_socket(raw, server_hostname=self._host) as tls:
                der = tls.getpeercert(True) or b""
                seen = Step("TLS trust", True, f"{tls.version()}, the server is {_describe(der)}")
                return seen, self._objection(tls)
        except ssl.SSLCertVerificationError as err:
            return Step("TLS trust", False, *self._distrust(err)), None
        except TimeoutError:
            text = f"{self.name} takes the connection and then says nothing for {self._timeout:g} seconds"
            return Step("TLS trust", False, text, "check the port: is it the one for TLS?"), None
        except OSError as err:  # in TLS 1.2 also what the server says of our certificate
            failure = _tls_failure(
                self.name, err if isinstance(err, ssl.SSLError) else None, self._trust_hint
            )
            if failure.link != "tls-client":
                return Step("TLS trust", False, str(failure), failure.hint), None
            return Step("TLS trust", True, "the server's certificate is trusted"), failure
        finally:
            raw.close()

    def _objection(self, tls: ssl.SSLSocket) -> TransportError | None:
        """In TLS 1.3 the server looks at our certificate after our handshake is over, and its alert is lost when
        it closes on a request that it did not read: so listen before asking anything."""
        tls.settimeout(LISTEN_SECONDS)
        try:
            closed = tls.recv(1) == b""
        except TimeoutError:
            return None  # nothing to say: it waits for a request
        except OSError as err:
            return _tls_failure(self.name, err if isinstance(err, ssl.SSLError) else None, self._trust_hint)
        if not closed:
            return None
        return TransportError(
            f"{self.name} closes the connection after the handshake",
            link="tls-client",
            hint="some servers do so when they do not accept the client certificate",
        )

    def _distrust(self, err: ssl.SSLCertVerificationError) -> tuple[str, str]:
        why = plain_line(err.verify_message)
        shown = self._shown_certificate()
        text = f"the server's certificate is not trusted: {why}" + (f"; it shows {shown}" if shown else "")
        if "hostname" in why.lower() or "address" in why.lower():
            return text, "call the host as the certificate names it"
        if "expired" in why:
            return (
                text,
                "the CA's operator must renew the server's certificate; is this machine's clock right?",
            )
        return text, self._trust_hint

    def _shown_certificate(self) -> str:
        """What the server presents, for the message alone; nothing is sent over that connection."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # the one that failed to verify is what is to be shown
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        address = (self._host, self._port)
        try:
            with (
                socket.create_connection(address, timeout=min(CONNECT_SECONDS, self._timeout)) as raw,
                context.wrap_socket(raw, server_hostname=address[0]) as tls,
            ):
                return _describe(tls.getpeercert(True) or b"")
        except OSError:
            return ""


class _Connection(urllib3.connection.HTTPSConnection):
    """Shows its socket to the watch of the exchange that uses it."""

    def _new_conn(self) -> socket.socket:
        with waiting():
            return super()._new_conn()

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        watch = getattr(_watched, "watch", None)
        if watch is not None:
            watch.sock = self.sock
        return super().getresponse()


class _PlainConnection(urllib3.connection.HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        watch = getattr(_watched, "watch", None)
        if watch is not None:
            watch.sock = self.sock
        return super().getresponse()


class _Watch:
    """Ends an exchange that drips on: timeouts of sockets start anew with every octet."""

    def __init__(self, seconds: float) -> None:
        self.fired = False
        self.over = False
        self.sock: socket.socket | None = None
        self.end = time.monotonic() + seconds

    def __enter__(self) -> _Watch:
        _watched.watch = self
        _watchman.watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.sock = None
        _watched.watch = None

    def cut(self) -> None:
        sock = self.sock
        if not self.over:
            self.fired = True
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _Watchman:
    """One thread for all exchanges: a timer for each would cost each a thread."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._watches: list[tuple[float, int, _Watch]] = []  # a heap, by their ends
        self._count = itertools.count()
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None

    def watch(self, watch: _Watch) -> None:
        with self._news:
            heapq.heappush(self._watches, (watch.end, next(self._count), watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="exchanges", daemon=True)
                self._thread.start()
            elif watch.end < self._wakes_at:
                self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                while self._watches and self._watches[0][2].over:
                    heapq.heappop(self._watches)
                self._wakes_at = self._watches[0][0] if self._watches else math.inf
                now = time.monotonic()
                if now < self._wakes_at:
                    self._news.wait(None if math.isinf(self._wakes_at) else self._wakes_at - now)
                    continue
                watch = heapq.heappop(self._watches)[2]
            watch.cut()


_watchman = _Watchman()


def _tls_failure(name: str, err: ssl.SSLError | None, trust_hint: str) -> TransportError:
    if isinstance(err, ssl.SSLCertVerificationError):
        return TransportError(
            f"the certificate of {name} is not trusted: {plain_line(err.verify_message)}",
            link="tls-trust",
            hint=trust_hint,
        )
    reason = ((err.reason if err else "") or "").upper()
    shown = reason.replace("_", " ").lower() or "the connection was closed"
    words = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "BAD_CERT")
    if "ALERT" in reason and any(word in reason for word in words):
        return TransportError(
            f"{name} refused our client certificate: {shown}",
            link="tls-client",
            hint="the CA must know the issuer of the keystore's certificate, and it must not have expired",
        )
    if any(word in reason for word in ("WRONG_VERSION", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH")):
        return TransportError(
            f"{name} does not speak TLS", link="tls", hint="check the port: is it plain HTTP?"
        )
    return TransportError(f"TLS with {name} failed: {shown}", link="tls", hint="the server's log may say why")


def _why(err: NewConnectionError) -> str:
    cause = err.__cause__ or err.__context__
    text = getattr(cause, "strerror", None) or str(err).rpartition(": ")[2]
    return plain_line(str(text))


def _describe(der: bytes) -> str:
    try:
        cert = crypto.parse_certificate(der)
    except Error:
        return "an unreadable certificate"
    subject = cert.subject_text or "a certificate without a subject"
    return f"{subject}, issued by {cert.issuer_text}, until {date(cert.not_after)}"


def date(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def client_context(certificate: str) -> ssl.SSLContext:
    """Trusts the certificates given (PEM), or the system's CAs where none is."""
    context = ssl.create_default_context() if not certificate else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cadata=certificate)
        except ssl.SSLError as err:
            raise SettingsError("--certificate", f"cannot be used: {err.reason}") from None
    return context
