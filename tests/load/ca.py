"""A CA for load tests: it really signs, takes as long as told, minds how many ask at once, and fails when told.

`python -m tests.load.ca DIR PLAN` makes DIR/ca.pem, DIR/ra.p12 and DIR/ra.pem (with its password in DIR/ra.password), serves
EST over mutual TLS on loopback and prints {"port"}. PLAN is JSON: {"delay": seconds that a certificate takes, "cap": how
many may be asked for at once (more are refused), "fail_after": certificates after which it fails, "fail_seconds": for how
long, "life": seconds of a certificate, 0 for 90 days}.
Each line on standard input is answered by what it has seen so far; from a line "hold" on to a line "go on" no answer is
given; the end of the input ends it.
"""

from __future__ import annotations

import datetime
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from igelcert.codec import est
from igelcert.codec.http import Request, Response
from igelcert.labca.server import Server
from tests.support.badca import keystore, make_ca, sign

__all__ = ["Seen", "SlowCa", "slow_ca"]

DER = serialization.Encoding.DER
PEM = serialization.Encoding.PEM
FORM = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@dataclass
class Seen:
    """What the CA saw. inside: requests now, peak: at once; over: those that it refused for that; failed: those in the
    time that it failed; signing: seconds of processor time of the whole CA; first, last: when certificates were issued,
    and down, up: when it failed (monotonic seconds)."""

    issued: int = 0
    inside: int = 0
    peak: int = 0
    over: int = 0
    failed: int = 0
    first: float = 0.0
    last: float = 0.0
    down: float = 0.0
    up: float = 0.0
    cpu: float = 0.0


class _Service:
    """EST: CA certificates and enrollments."""

    def __init__(self, plan: dict[str, Any], key: Any, cert: x509.Certificate) -> None:
        self.plan = plan
        self.seen = Seen()
        self._key = key
        self._cert = cert
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._lock = threading.Lock()
        self._cacerts = est.certs_response([cert.public_bytes(DER)])

    def answer(self, request: Request, client: bytes | None) -> Response:
        operation, _ = est.route(request.path) or ("", None)
        if operation == "cacerts":
            return self._cacerts
        if operation != "simpleenroll":
            return est.error_response(404, "nothing here")
        try:
            return self._enroll(request) if self._enter() else est.error_response(503, "not now")
        finally:
            with self._lock:
                self.seen.inside -= 1

    def _enter(self) -> bool:
        now = time.monotonic()
        with self._lock:
            seen = self.seen
            seen.inside += 1
            seen.peak = max(seen.peak, seen.inside)
            if seen.inside > self.plan["cap"]:
                seen.over += 1
                return False
            if not seen.down and seen.issued >= self.plan["fail_after"] > 0:
                seen.down, seen.up = now, now + self.plan["fail_seconds"]
            if not seen.down <= now < seen.up:
                return True
            seen.failed += 1
            if seen.failed % 2:
                raise ConnectionResetError("it fails: every other time without an answer")
            return False

    def _dates(self) -> dict[str, Any]:
        if not self.plan["life"]:
            return {}
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        return {"start": now, "end": now + datetime.timedelta(seconds=self.plan["life"])}

    def _enroll(self, request: Request) -> Response:
        start = time.monotonic()
        csr = x509.load_der_x509_csr(est.csr_from_request(request.body))
        sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        cert = sign(
            csr.subject, csr.public_key(), self._cert.subject, self._key, sans=list(sans), **self._dates()
        )
        answer = est.certs_response([cert.public_bytes(DER)], enroll=True)
        time.sleep(max(0.0, start + self.plan["delay"] - time.monotonic()))
        self.goes_on.wait()
        with self._lock:
            self.seen.issued += 1
            self.seen.last = time.monotonic()
            self.seen.first = self.seen.first or self.seen.last
        return answer


def _serve(place: Path, plan: dict[str, Any]) -> None:
    authority = make_ca("Load CA")
    key, cert = authority
    place.mkdir(parents=True)
    (place / "ca.pem").write_bytes(cert.public_bytes(PEM))
    ra = ec.generate_private_key(ec.SECP256R1())
    keystore(place / "ra.p12", authority, key=ra)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RA")])
    pem = sign(name, ra.public_key(), cert.subject, key).public_bytes(PEM)
    (place / "ra.pem").write_bytes(pem + ra.private_bytes(*FORM))
    service = _Service(plan, key, cert)
    server = Server("est", ("127.0.0.1", 0), service, _tls(place, authority), quiet=True)
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    for line in sys.stdin:
        if line == "hold\n":
            service.goes_on.clear()
        elif line == "go on\n":
            service.goes_on.set()
        service.seen.cpu = time.process_time()
        print(json.dumps(asdict(service.seen)), flush=True)
    server.shutdown()


def _tls(place: Path, authority: tuple[Any, x509.Certificate]) -> ssl.SSLContext:
    key, cert = authority
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    mine = sign(name, own.public_key(), cert.subject, key, sans=[x509.DNSName("localhost")])
    (place / "server.pem").write_bytes(mine.public_bytes(PEM) + own.private_bytes(*FORM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(place / "ca.pem")
    return context


class SlowCa:
    """A running CA. port: where it serves; dir: as of the module."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.dir = directory
        self._process = process
        self.port = int(self._line()["port"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout
        found: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        return found

    def seen(self, word: str = "seen") -> Seen:
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return Seen(**self._line())

    @contextmanager
    def held(self) -> Iterator[None]:
        """It takes requests and answers none meanwhile: what is at it stays there."""
        self.seen("hold")
        try:
            yield
        finally:
            self.seen("go on")


@contextmanager
def slow_ca(
    directory: Path,
    delay: float = 0.0,
    cap: int = 64,
    fail_after: int = 0,
    fail_seconds: float = 0.0,
    life: int = 0,
) -> Iterator[SlowCa]:
    """Such a CA in a process of its own; `directory` is made."""
    plan = {"delay": delay, "cap": cap, "fail_after": fail_after, "fail_seconds": fail_seconds,
            "life": life}  # fmt: skip
    args = [sys.executable, "-m", "tests.load.ca", str(directory), json.dumps(plan)]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield SlowCa(directory, process)
        finally:
            process.kill()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), json.loads(sys.argv[2]))
