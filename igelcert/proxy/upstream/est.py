"""EST towards the CA (RFC 7030), the proxy being a registration authority with a client certificate.

It always uses /simpleenroll: /simplereenroll is authenticated by the certificate to be renewed, whose key
no registration authority holds.
"""

from __future__ import annotations

import contextlib
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
from ...codec import est
from ...codec.http import Request, Response, plain_line, plain_reason
from ...errors import Error, RemoteProtocolError, SettingsError, TransportError
from ...model import Outcome
from ..keystore import ClientKeystore, open_keystore
from ..tls import load_pair
from .config import CaConfig
from .steps import Step

__all__ = ["EstUpstream"]

MAX_BODY = 1 << 20
READ_SIZE = 65_536
CONNECT_SECONDS = 10.0
LISTEN_SECONDS = 0.5
IDLE_CONNECTIONS = 8
_NO_CSR = b"\x30\x00"  # parses as DER and is no request: no CA can issue anything for it
_watched = threading.local()


class EstUpstream:
    """One EST server. Connections are made when they are needed and kept for the next request."""

    def __init__(self, config: CaConfig, timeout: float) -> None:
        self.config = config
        self._timeout = timeout
        # its dates are looked at with every request: it may expire while this lives
        self._keystore = open_keystore(config.keystore, config.password, 0)
        self._context = _client_context(self._keystore)
        self._pool = urllib3.HTTPSConnectionPool(
            config.est.host,
            config.est.port,
            ssl_context=self._context,
            maxsize=IDLE_CONNECTIONS,
            retries=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, timeout), read=timeout),
        )
        self._pool.ConnectionCls = _Connection

    def __repr__(self) -> str:
        return f"<EstUpstream {self._name}>"

    @property
    def _name(self) -> str:
        host = self.config.est.host
        return f"[{host}]:{self.config.est.port}" if ":" in host else f"{host}:{self.config.est.port}"

    @property
    def _label(self) -> str | None:
        return self.config.est.label or None

    def close(self) -> None:
        self._pool.close()

    def cacerts(self) -> list[bytes]:
        return est.cacerts_reply(self._send(est.cacerts_request(self._label)))

    def enroll(self, csr: bytes) -> Outcome:
        return est.enroll_reply(self._send(est.enroll_request(csr, self._label)), int(time.time()))

    # ---- one exchange ---------------------------------------------------------------------------

    def _send(self, request: Request) -> Response:
        if time.time() >= self._keystore.cert.not_after:
            raise TransportError(
                f"the client certificate for the CA ({self._keystore.cert.cn}) has expired",
                link="tls-client",
                hint="get a new keystore from the PKI and run: ca-proxy ca set-est",
            )
        with _Watch(self._timeout) as watch:
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
                    f"{self._name} answered with more than {MAX_BODY >> 20} MiB", status_hint=502
                )
        return bytes(body)

    def _failure(self, err: Exception, watch: _Watch) -> TransportError:
        name = self._name
        if watch.fired or isinstance(err, (ReadTimeoutError, TimeoutError)):
            return TransportError(f"{name} did not answer within {self._timeout:g} seconds", link="timeout")
        if isinstance(err, NameResolutionError):
            return TransportError(
                f"the name {self.config.est.host} does not resolve",
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
            return _tls_failure(
                name, err.args[0] if err.args and isinstance(err.args[0], ssl.SSLError) else None
            )
        if isinstance(err, ssl.SSLError):
            return _tls_failure(name, err)
        cause = err.args[1] if len(err.args) > 1 and isinstance(err.args[1], Exception) else err
        if isinstance(cause, ssl.SSLError):
            return _tls_failure(name, cause)
        return TransportError(f"{name} broke off the exchange ({type(cause).__name__})", link="http")

    # ---- ca test --------------------------------------------------------------------------------

    def test(self) -> Iterator[Step]:
        """Name, TCP, TLS trust, client certificate, label, CA answer; ends at the first that fails."""
        host, port = self.config.est.host, self.config.est.port
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as err:
            yield Step(
                "name",
                False,
                f"{host} does not resolve: {plain_line(err.strerror or str(err))}",
                "check the name and DNS",
            )
            return
        addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
        yield Step("name", True, f"{host} is {', '.join(addresses)}")
        try:
            raw = socket.create_connection((host, port), timeout=min(CONNECT_SECONDS, self._timeout))
        except OSError as err:
            why = "no answer" if isinstance(err, TimeoutError) else plain_line(err.strerror or str(err))
            yield Step("TCP", False, f"{self._name}: {why}", "check the port, and any firewall between")
            return
        yield Step("TCP", True, f"{self._name} takes connections")
        trust, refusal = self._test_trust(raw)
        yield trust
        if refusal is not None:
            yield Step("client certificate", False, str(refusal), refusal.hint)
        elif trust.ok:
            yield from self._test_answers()

    def _test_trust(self, raw: socket.socket) -> tuple[Step, TransportError | None]:
        """The step, and what the server has against our certificate."""
        raw.settimeout(self._timeout)
        try:
            with self._context.wrap_socket(raw, server_hostname=self.config.est.host) as tls:
                der = tls.getpeercert(True) or b""
                seen = Step("TLS trust", True, f"{tls.version()}, the server is {_describe(der)}")
                return seen, self._objection(tls)
        except ssl.SSLCertVerificationError as err:
            return Step("TLS trust", False, *self._distrust(err)), None
        except TimeoutError:
            text = f"{self._name} takes the connection and then says nothing for {self._timeout:g} seconds"
            return Step("TLS trust", False, text, "check the port: is it the one for TLS?"), None
        except OSError as err:  # in TLS 1.2 also what the server says of our certificate
            failure = _tls_failure(self._name, err if isinstance(err, ssl.SSLError) else None)
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
            return _tls_failure(self._name, err if isinstance(err, ssl.SSLError) else None)
        if not closed:
            return None
        return TransportError(
            f"{self._name} closes the connection after the handshake",
            link="tls-client",
            hint="some servers do so when they do not accept the client certificate",
        )

    def _distrust(self, err: ssl.SSLCertVerificationError) -> tuple[str, str]:
        why = plain_line(err.verify_message)
        shown = self._shown_certificate()
        text = f"the server's certificate is not trusted: {why}" + (f"; it shows {shown}" if shown else "")
        if "hostname" in why.lower() or "address" in why.lower():
            return text, "give --host as the certificate names the server"
        if "expired" in why:
            return (
                text,
                "the CA's operator must renew the server's certificate; is this machine's clock right?",
            )
        return text, "the keystore must hold the server's web certificate or the CA that issued it"

    def _shown_certificate(self) -> str:
        """What the server presents, for the message alone; nothing is sent over that connection."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        address = (self.config.est.host, self.config.est.port)
        try:
            with (
                socket.create_connection(address, timeout=min(CONNECT_SECONDS, self._timeout)) as raw,
                context.wrap_socket(raw, server_hostname=address[0]) as tls,
            ):
                return _describe(tls.getpeercert(True) or b"")
        except OSError:
            return ""

    def _test_answers(self) -> Iterator[Step]:
        """Three steps out of two requests: CA certificates, and a request that no CA can grant."""
        certificate, label, answer = "client certificate", "label", "CA answer"
        ours = self._keystore.cert
        try:
            cacerts = self._send(est.cacerts_request(self._label))
            probe = self._send(est.enroll_request(_NO_CSR, self._label)) if cacerts.status == 200 else cacerts
        except TransportError as err:
            yield Step(certificate if err.link == "tls-client" else answer, False, str(err), err.hint)
            return
        except Error as err:
            yield Step(answer, False, str(err), err.hint)
            return
        if probe.status in {401, 403}:
            why = plain_reason(probe)
            yield Step(
                certificate,
                False,
                f"the CA does not let {ours.subject_text} enroll ({probe.status}){': ' + why if why else ''}",
                "give this certificate the right to enroll at the CA (in EJBCA: a role of the RA)",
            )
            return
        yield Step(certificate, True, f"{ours.subject_text}, until {_date(ours.not_after)}")
        shown = f"label {self._label!r}" if self._label else "no label"
        if cacerts.status != 200:
            why = plain_reason(cacerts)
            hint = (
                "compare it with the CA, letter by letter: case counts"
                if self._label
                else "does the CA want a label?"
            )
            yield Step(
                label, False, f"with {shown} the CA answers {cacerts.status}{': ' + why if why else ''}", hint
            )
            return
        yield Step(label, True, f"{shown} is served")
        try:
            certs = [crypto.parse_certificate(der) for der in est.cacerts_reply(cacerts)]
        except Error as err:
            yield Step(answer, False, f"the CA certificates cannot be read: {err}", "is this an EST server?")
            return
        names = ", ".join(cert.cn or cert.subject_text for cert in certs)
        yield Step(answer, True, f"{len(certs)} CA certificate{'s' if len(certs) != 1 else ''}: {names}")


class _Connection(urllib3.connection.HTTPSConnection):
    """Shows its socket to the watch of the exchange that uses it."""

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        watch = getattr(_watched, "watch", None)
        if watch is not None:
            watch.sock = self.sock
        return super().getresponse()


class _Watch:
    """Ends an exchange that drips on: timeouts of sockets start anew with every octet."""

    def __init__(self, seconds: float) -> None:
        self.fired = False
        self.sock: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        _watched.watch = self
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _watched.watch = None

    def _cut(self) -> None:
        self.fired = True
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


def _client_context(keystore: ClientKeystore) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # the keystore may carry the server's own certificate as its trust, with no CA at all
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata="".join(cert.pem() for cert in keystore.trust))
    except ssl.SSLError as err:
        raise SettingsError("--keystore", f"its trusted certificates cannot be used: {err.reason}") from None
    chain = "".join(
        cert.pem() for cert in (keystore.cert, *keystore.chain) if not cert.is_ca or not cert.self_issued
    )
    load_pair(context, chain, lambda fd, password: keystore.key.write(fd, password, 1000))
    return context


def _tls_failure(name: str, err: ssl.SSLError | None) -> TransportError:
    if isinstance(err, ssl.SSLCertVerificationError):
        return TransportError(
            f"the certificate of {name} is not trusted: {plain_line(err.verify_message)}",
            link="tls-trust",
            hint="the keystore must hold the server's web certificate or the CA that issued it",
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
    return f"{subject}, issued by {cert.issuer_text}, until {_date(cert.not_after)}"


def _date(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
