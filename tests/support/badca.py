"""An EST server that answers as told: rightly, oddly, or badly. Nothing of it is our code."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import NameOID

__all__ = ["BadCa", "bad_ca", "keystore", "make_ca"]

DER = serialization.Encoding.DER
PEM = serialization.Encoding.PEM
HOUR = datetime.timedelta(hours=1)
Key = ec.EllipticCurvePrivateKey


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _name(cn: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)])


def sign(
    subject: x509.Name,
    public: Any,
    issuer: x509.Name,
    key: Key,
    *,
    ca: bool = False,
    start: datetime.datetime | None = None,
    end: datetime.datetime | None = None,
    sans: list[x509.GeneralName] | None = None,
    serial: int = 0,
) -> x509.Certificate:
    now = _now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(start or now - HOUR)
        .not_valid_after(end or now + 24 * 90 * HOUR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(key, hashes.SHA256())


def make_ca(cn: str) -> tuple[Key, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, sign(_name(cn), key.public_key(), _name(cn), key, ca=True)


def keystore(
    path: Path,
    authority: tuple[Key, x509.Certificate],
    *,
    key: Any = None,
    password: str = "secret",
    extra: list[x509.Certificate] | None = None,
    chain: bool = True,
    end: datetime.datetime | None = None,
) -> Path:
    """A client keystore of that CA as PKCS#12; its password lies beside it in PATH.password."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    cert = sign(
        _name("RA"), key.public_key(), authority[1].subject, authority[0], end=end,
        start=_now() - 48 * HOUR,
    )  # fmt: skip
    others = ([authority[1]] if chain else []) + (extra or [])
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"ra", key, cert, others or None, serialization.BestAvailableEncryption(password.encode())
        )
    )
    path.with_suffix(".password").write_text(password + "\n")
    return path


@dataclass
class Answer:
    """What goes over the wire. chunked: sent in chunks. raw: sent as it is instead. wait: seconds before."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/pkcs7-mime; smime-type=certs-only"
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False
    raw: bytes | None = None
    wait: float = 0


@dataclass
class BadCa:
    """mode: what /simpleenroll answers. stop ends all waiting."""

    key: Key
    cert: x509.Certificate
    directory: Path
    port: int = 0
    mode: str = "good"
    cacerts: str = "good"
    requests: list[str] = field(default_factory=list)
    serials: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    other: tuple[Key, x509.Certificate] = field(default_factory=lambda: make_ca("Another CA"))

    @property
    def trust(self) -> Path:
        return self.directory / "badca.pem"

    # ---- good parts -----------------------------------------------------------------------------

    def issue(self, csr: x509.CertificateSigningRequest, **how: Any) -> x509.Certificate:
        try:
            names = list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            names = []
        issuer, key = how.pop("issuer", self.cert), how.pop("key", self.key)
        subject, public = how.pop("subject", csr.subject), how.pop("public", csr.public_key())
        cert = sign(subject, public, issuer.subject, key, sans=names, **how)
        self.serials.append(cert.serial_number)
        return cert

    @staticmethod
    def pack(*certs: x509.Certificate) -> bytes:
        return base64.encodebytes(pkcs7.serialize_certificates(list(certs), DER))

    def answer_cacerts(self) -> Answer:
        if self.cacerts == "other":
            return Answer(body=self.pack(self.other[1]))
        if self.cacerts == "html":
            return Answer(body=b"<html><body>Welcome</body></html>", content_type="text/html")
        if self.cacerts == "404":
            return Answer(404, b"no such alias\n", "text/plain")
        return Answer(body=self.pack(self.cert))

    # ---- /simpleenroll --------------------------------------------------------------------------

    def answer_enroll(self, body: bytes) -> Answer:
        try:
            csr = x509.load_der_x509_csr(base64.b64decode(body))
        except ValueError:
            return (
                self._forbidden(None)
                if self.mode == "forbidden"
                else Answer(400, b"no request\n", "text/plain")
            )
        return getattr(self, f"_{self.mode}")(csr)

    def _good(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr)))

    def _chunked(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr)), chunked=True)

    def _pem(self, csr: Any) -> Answer:
        return Answer(body=self.issue(csr).public_bytes(PEM), content_type="application/x-pem-file")

    def _pem_cms(self, csr: Any) -> Answer:
        return Answer(body=pkcs7.serialize_certificates([self.issue(csr)], PEM))

    def _binary(self, csr: Any) -> Answer:
        return Answer(body=pkcs7.serialize_certificates([self.issue(csr)], DER))

    def _ber(self, csr: Any) -> Answer:
        """Indefinite length from the outside in: ContentInfo, [0], SignedData."""
        der = pkcs7.serialize_certificates([self.issue(csr)], DER)
        return Answer(body=base64.b64encode(_indefinite(der)))

    def _with_chain(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.cert, self.issue(csr)))

    def _changed(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr, subject=_name("given by the CA"))))

    def _html(self, _csr: Any) -> Answer:
        page = b"<html><head><title>x</title></head><body><h1>Please log in</h1></body></html>"
        return Answer(body=page, content_type="text/html")

    def _empty(self, _csr: Any) -> Answer:
        return Answer()

    def _foreign(self, csr: Any) -> Answer:
        stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
        return Answer(body=self.pack(self.issue(csr, public=stranger)))

    def _expired(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr, start=_now() - 3 * HOUR, end=_now() - HOUR)))

    def _future(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr, start=_now() + 24 * HOUR)))

    def _other_ca(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr, key=self.other[0], issuer=self.other[1])))

    def _same_serial(self, csr: Any) -> Answer:
        return Answer(body=self.pack(self.issue(csr, serial=4711)))

    def _pending(self, _csr: Any) -> Answer:
        return Answer(202, b"an officer must approve this\n", "text/plain", (("Retry-After", "7"),))

    def _pending_date(self, _csr: Any) -> Answer:
        return Answer(202, b"", "text/plain", (("Retry-After", "Fri, 31 Dec 2027 23:59:59 GMT"),))

    def _refused(self, _csr: Any) -> Answer:
        page = b"<html><body><p>Not allowed &amp; never will be</p></body></html>"
        return Answer(400, page, "text/html")

    def _forbidden(self, _csr: Any) -> Answer:
        return Answer(403, b"the RA has no such right\n", "text/plain")

    def _broken(self, _csr: Any) -> Answer:
        return Answer(500, b"out of order\n", "text/plain")

    def _busy(self, _csr: Any) -> Answer:
        return Answer(503, b"busy\n", "text/plain", (("Retry-After", "11"),))

    def _redirect(self, _csr: Any) -> Answer:
        return Answer(302, b"", "text/plain", (("Location", f"https://localhost:{self.port}/elsewhere"),))

    def _huge(self, _csr: Any) -> Answer:
        return Answer(body=b"A" * (3 << 20))

    def _stalled(self, _csr: Any) -> Answer:
        return Answer(wait=30, raw=b"")

    def _cut(self, _csr: Any) -> Answer:
        return Answer(
            raw=b"HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\nContent-Length: 4000\r\n\r\nMIIC"
        )

    def _noise(self, _csr: Any) -> Answer:
        return Answer(raw=b"\x16\x03\x01 this is not HTTP\r\n\r\n")


def _indefinite(der: bytes) -> bytes:
    """The three outermost constructed values of a ContentInfo in indefinite length (X.690 8.1.3.6)."""

    def content(data: bytes) -> bytes:
        return data[2 + (data[1] & 0x7F) :] if data[1] & 0x80 else data[2:]

    outer = content(der)
    oid_size = 2 + outer[1]
    oid, explicit = outer[:oid_size], outer[oid_size:]
    signed = content(explicit)
    end = b"\x00\x00"
    return b"\x30\x80" + oid + b"\xa0\x80" + b"\x30\x80" + content(signed) + end * 3


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        ca: BadCa = self.server.ca  # type: ignore[attr-defined]
        ca.requests.append(f"GET {self.path}")
        self._send(ca.answer_cacerts() if self.path.endswith("/cacerts") else Answer(404))

    def do_POST(self) -> None:
        ca: BadCa = self.server.ca  # type: ignore[attr-defined]
        ca.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(ca.answer_enroll(body))

    def _send(self, answer: Answer) -> None:
        if answer.wait:
            self.server.ca.stop.wait(answer.wait)  # type: ignore[attr-defined]
        if answer.raw is not None:
            self.wfile.write(answer.raw)
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if not answer.chunked:
            self.wfile.write(answer.body)
            return
        for at in range(0, len(answer.body), 100):
            part = answer.body[at : at + 100]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # clients that break off are the point


@contextlib.contextmanager
def bad_ca(directory: Path, *, clients: x509.Certificate | None = None) -> Iterator[BadCa]:
    """The server on a free port of localhost. clients: it demands a certificate of that CA."""
    directory.mkdir(parents=True, exist_ok=True)
    ca = BadCa(*make_ca("Test CA"), directory)
    ca.trust.write_bytes(ca.cert.public_bytes(PEM))
    key = ec.generate_private_key(ec.SECP256R1())
    cert = sign(
        _name("localhost"), key.public_key(), ca.cert.subject, ca.key, sans=[x509.DNSName("localhost")]
    )
    pair = directory / "server.pem"
    plain = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair.write_bytes(cert.public_bytes(PEM) + plain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.public_bytes(PEM).decode())
    server = _Server(("127.0.0.1", 0), _Handler)
    server.ca = ca  # type: ignore[attr-defined]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    ca.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield ca
    finally:
        ca.stop.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
