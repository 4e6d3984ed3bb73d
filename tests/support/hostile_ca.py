"""badca.py's EST server over raw TLS sockets, so that the way an answer travels can be hostile as well.

`mode` says what /simpleenroll answers (BadCa's modes and those added here), `wire` how any answer is sent.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7

from tests.support.badca import Answer, BadCa, make_ca, sign

__all__ = ["WIRES", "HostileCa", "hostile_ca"]

SILENCE = 20.0  # seconds: the longest that a stalled connection is held
DRIP = 1.0  # seconds between two bytes
PEM = serialization.Encoding.PEM
TEXT = "text/plain"


@dataclass
class HostileCa(BadCa):
    """`clients`: DER of the client certificate of each enrollment, None where there was none. `bodies`: what was posted."""

    wire: str = "whole"
    connections: int = 0

    def __post_init__(self) -> None:
        self.clients: list[bytes | None] = []
        self.bodies: list[bytes] = []
        self.lock = threading.Lock()

    def reset(self, mode: str = "good", wire: str = "whole") -> None:
        """What comes next, counted from zero."""
        self.mode, self.wire, self.cacerts, self.connections = mode, wire, "good", 0
        self.requests.clear()
        self.clients.clear()
        self.bodies.clear()

    @property
    def trust_pem(self) -> bytes:
        return self.cert.public_bytes(PEM)

    def answer_cacerts(self) -> Answer:
        if self.cacerts == "empty":
            return Answer()
        return super().answer_cacerts()

    # ---- more answers ---------------------------------------------------------------------------

    def _lines(self, csr: Any) -> Answer:
        """Base64 as old servers write it: 76 characters, CRLF, a byte order mark in front."""
        body = base64.encodebytes(pkcs7.serialize_certificates([self.issue(csr)], serialization.Encoding.DER))
        return Answer(body=b"\xef\xbb\xbf" + body.replace(b"\n", b"\r\n"))

    def _renewed_twice(self, csr: Any) -> Answer:
        """Two certificates for our key; the newer one counts, wherever it stands."""
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        old = self.issue(csr, start=now - datetime.timedelta(days=2))
        return Answer(body=self.pack(self.issue(csr), old))

    def _garbage(self, _csr: Any) -> Answer:
        return Answer(body=b"no base64 at all: %&$")

    def _torn_cms(self, csr: Any) -> Answer:
        whole = pkcs7.serialize_certificates([self.issue(csr)], serialization.Encoding.DER)
        return Answer(body=base64.b64encode(whole[: len(whole) // 2]))

    def _no_certificate(self, _csr: Any) -> Answer:
        """A well-formed SignedData without certificates: ContentInfo { signedData, [0] { 1, {}, { data }, {} } }."""
        return Answer(
            body=base64.b64encode(
                bytes.fromhex("302306092a864886f70d010702a0163014020101310030 0b06092a864886f70d0107013100")
            )
        )

    def _ca_certificate(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr, ca=True)))

    def _unauthorized(self, _csr: Any) -> Answer:
        challenge = (("WWW-Authenticate", 'Basic realm="x"'),)
        return Answer(401, b"who are you?\n", TEXT, challenge)

    def _html_error(self, _csr: Any) -> Answer:
        page = (
            b"<html><head><style>b{}</style></head><body><h1>Bad gateway</h1>\r\n<p>nobody home</body></html>"
        )
        return Answer(502, page, "text/html")

    def _controls(self, _csr: Any) -> Answer:
        """A refusal that would like to draw on the screen and forge a log line."""
        return Answer(400, b"\x1b[2Jno\r\nigel-certs: all is well\x00\x07 \xff\xfe", TEXT)

    def _redirect_text(self, _csr: Any) -> Answer:
        there = (("Location", f"https://localhost:{self.port}/.well-known/est/simpleenroll"),)
        return Answer(302, b"over there\n", TEXT, there)

    def _later(self, csr: Any, retry: str) -> Answer:
        return Answer(202, b"", TEXT, (("Retry-After", retry),))

    def _pending(self, csr: Any) -> Answer:
        return self._later(csr, "70")

    def _pending_seconds(self, csr: Any) -> Answer:
        return self._later(csr, "3600")

    def _pending_soon(self, csr: Any) -> Answer:
        """In 1000 seconds, as a date."""
        return self._later(csr, email.utils.formatdate(time.time() + 1000, usegmt=True))

    def _pending_garbage(self, csr: Any) -> Answer:
        return self._later(csr, "when it suits -1 \u00b2")

    def _pending_nothing(self, _csr: Any) -> Answer:
        return Answer(202, b"", TEXT)

    def _pending_for_ever(self, csr: Any) -> Answer:
        return self._later(csr, "9" * 400)


# ---- how an answer travels ------------------------------------------------------------------------

Wire = Callable[[HostileCa, ssl.SSLSocket, Answer], None]


def _head(answer: Answer, *more: str, version: str = "1.1", length: int | None = None) -> bytes:
    lines = [f"HTTP/{version} {answer.status} whatever", f"Content-Type: {answer.content_type}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, *more, "", ""]).encode("latin-1")


def _whole(ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    if answer.wait:
        ca.stop.wait(answer.wait)
    if answer.raw is not None:
        sock.sendall(answer.raw)
        raise ConnectionError
    if answer.chunked:
        sock.sendall(_head(answer, "Transfer-Encoding: chunked") + _chunks(answer.body) + b"0\r\n\r\n")
    else:
        sock.sendall(_head(answer, length=len(answer.body)) + answer.body)


def _chunks(body: bytes) -> bytes:
    """Of uneven sizes, one with an extension."""
    parts = [body[at : at + 77] for at in range(0, len(body), 77)]
    return b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts)


def _chunked(ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    answer.chunked = True
    _whole(ca, sock, answer)


def _until_close(_ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    """HTTP/1.0: the end of the connection is the end of the body."""
    sock.sendall(_head(answer, version="1.0") + answer.body)
    _goodbye(sock)
    raise ConnectionError


def _bytewise(_ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    """Each byte in a record of its own; slow, and right."""
    for byte in _head(answer, length=len(answer.body)) + answer.body:
        sock.send(bytes([byte]))


def _silent(ca: HostileCa, _sock: ssl.SSLSocket, _answer: Answer) -> None:
    ca.stop.wait(SILENCE)
    raise ConnectionError


def _silent_in_the_body(ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    sock.sendall(_head(answer, length=len(answer.body)) + answer.body[:100])
    _silent(ca, sock, answer)


def _drip(ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    """A byte a second, so that no read ever waits for long."""
    for byte in _head(answer, length=len(answer.body)) + answer.body:
        sock.send(bytes([byte]))
        if ca.stop.wait(DRIP):
            break
    raise ConnectionError


def _drip_body(ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    sock.sendall(_head(answer, length=len(answer.body)))
    _drip(ca, sock, answer)


def _drip_until_close(ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    sock.sendall(_head(answer, version="1.0") + answer.body[:-20])
    _drip(ca, sock, Answer())


def _torn(_ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    """The connection ends in the middle of the body, at a place where base64 would still read."""
    sock.sendall(_head(answer, length=len(answer.body)) + answer.body[: len(answer.body) // 8 * 4])
    _goodbye(sock)
    raise ConnectionError


def _torn_chunk(_ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    sock.sendall(_head(answer, "Transfer-Encoding: chunked") + _chunks(answer.body[:800])[:-30])
    _goodbye(sock)
    raise ConnectionError


def _no_last_chunk(_ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    sock.sendall(_head(answer, "Transfer-Encoding: chunked") + _chunks(answer.body))
    _goodbye(sock)
    raise ConnectionError


def _reset(_ca: HostileCa, sock: ssl.SSLSocket, _answer: Answer) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    raise ConnectionError


def _closed(_ca: HostileCa, sock: ssl.SSLSocket, _answer: Answer) -> None:
    _goodbye(sock)
    raise ConnectionError


def _noise(_ca: HostileCa, sock: ssl.SSLSocket, _answer: Answer) -> None:
    sock.sendall(b"\x16\x03\x01 220 mail.example ready\r\n\r\n")
    raise ConnectionError


def _endless_head(_ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000)
    raise ConnectionError


def _endless_body(ca: HostileCa, sock: ssl.SSLSocket, answer: Answer) -> None:
    sock.sendall(_head(answer, "Transfer-Encoding: chunked"))
    while not ca.stop.is_set():
        sock.sendall(b"10000\r\n" + b"A" * 0x10000 + b"\r\n")


def _goodbye(sock: ssl.SSLSocket) -> None:
    """close_notify, so that the end is no accident of TLS."""
    with contextlib.suppress(OSError):
        sock.settimeout(0.2)
        sock.unwrap()


WIRES: dict[str, Wire] = {
    "whole": _whole,
    "chunked": _chunked,
    "until_close": _until_close,
    "bytewise": _bytewise,
    "silent": _silent,
    "silent_in_the_body": _silent_in_the_body,
    "drip": _drip,
    "drip_body": _drip_body,
    "drip_until_close": _drip_until_close,
    "torn": _torn,
    "torn_chunk": _torn_chunk,
    "no_last_chunk": _no_last_chunk,
    "reset": _reset,
    "closed": _closed,
    "noise": _noise,
    "endless_head": _endless_head,
    "endless_body": _endless_body,
}  # and before TLS: no_handshake, plain_http


# ---- the server -----------------------------------------------------------------------------------


class _Server:
    def __init__(self, ca: HostileCa, context: ssl.SSLContext) -> None:
        self._ca = ca
        self._context = context
        self._ear = socket.create_server(("127.0.0.1", 0))
        ca.port = self._ear.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ca.stop.set()
        self._ear.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._ear.close()

    def _listen(self) -> None:
        while not self._ca.stop.is_set():
            try:
                plain, _ = self._ear.accept()
            except OSError:
                return
            with self._ca.lock:
                self._ca.connections += 1
            threading.Thread(target=self._talk, args=(plain,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        """One connection; clients that break off are the point."""
        with plain, contextlib.suppress(OSError, ValueError):
            plain.settimeout(SILENCE)
            if self._ca.wire == "no_handshake":
                self._ca.stop.wait(SILENCE)
            if self._ca.wire == "plain_http":
                plain.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                plain.recv(1000)
                return
            with self._context.wrap_socket(plain, server_side=True) as sock, sock.makefile("rb") as reader:
                while self._answer(sock, reader):
                    pass

    def _answer(self, sock: ssl.SSLSocket, reader: Any) -> bool:
        request = reader.readline(1000).decode("latin-1").split()
        if len(request) != 3:
            return False
        fields = {}
        while line := reader.readline(8000).strip():
            name, _, value = line.decode("latin-1").partition(":")
            fields[name.lower()] = value.strip()
        body = reader.read(int(fields.get("content-length", 0)))
        ca = self._ca
        with ca.lock:
            ca.requests.append(f"{request[0]} {request[1]}")
            if request[0] == "POST":
                ca.clients.append(sock.getpeercert(True))
                ca.bodies.append(body)
        if request[1].endswith("/cacerts"):
            # the wire is what happens to the enrollment
            _whole(ca, sock, ca.answer_cacerts())
        else:
            WIRES[ca.wire](ca, sock, ca.answer_enroll(body))
        return True


@contextlib.contextmanager
def hostile_ca(
    directory: Path, *, clients: x509.Certificate | None = None, ask: bool = False
) -> Iterator[HostileCa]:
    """The server on a free port of localhost. clients: it demands a certificate of that CA.
    ask: it asks for one of its own, and takes the connection without."""
    directory.mkdir(parents=True, exist_ok=True)
    ca = HostileCa(*make_ca("Test CA"), directory)
    ca.trust.write_bytes(ca.trust_pem)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    cert = sign(x509.Name([]), key.public_key(), ca.cert.subject, ca.key, sans=names)
    pair = directory / "server.pem"
    plain = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair.write_bytes(cert.public_bytes(PEM) + plain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    trusted = clients if clients is not None else ca.cert if ask else None
    if trusted is not None:
        context.verify_mode = ssl.CERT_REQUIRED if clients is not None else ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=trusted.public_bytes(PEM).decode())
    server = _Server(ca, context)
    try:
        yield ca
    finally:
        server.close()
