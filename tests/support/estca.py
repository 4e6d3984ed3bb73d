"""est-ca, an EST CA that was not written here, behind nginx on a loopback port."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import select
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.est_clients import openssl
from tests.support.peers import SOURCES, peer

__all__ = ["EstCa", "est_ca"]

START_LIMIT = 90.0


@dataclass(frozen=True, slots=True)
class EstCa:
    """A running CA, reached as localhost:port, with and without `label`.

    ca: its own certificate, the root of what it issues. front_ca: CA of the TLS server and of the client
    certificate `cert`, `key`; `keystore` holds all three. The CA sets the subject CN=user in what it
    issues at simpleenroll, and CN=client_cn at simplereenroll; alternative names it drops. Keys: RSA,
    Ed25519, P-256 and P-384. It takes the curve from the hash of the CSR's signature: a P-384 key that signed
    with SHA-256 comes back in a certificate that says P-256 and that nobody can use.
    """

    port: int
    label: str
    user: str
    client_cn: str
    ca: Path
    front_ca: Path
    cert: Path
    key: Path
    keystore: Path
    keystore_password: Path


@contextlib.contextmanager
def est_ca(directory: Path, label: str = "devices", user: str = "igelcert-ra") -> Iterator[EstCa]:
    """`directory` is made and must be this CA's alone."""
    program, nginx = peer("est-ca"), peer("nginx")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = directory / "password"
    password.write_text(secrets.token_urlsafe(18))
    client_cn = "est-ca test RA"
    _front(directory, client_cn)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        log = stack.enter_context((directory / "est-ca.log").open("wb"))
        backend = stack.enter_context(
            _running(
                [program, directory, user, password],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        )
        port = listener.getsockname()[1]
        basic = base64.b64encode(f"{user}:{password.read_text()}".encode()).decode()
        values = {
            "DIR": str(directory),
            "PORT": str(port),
            "BACKEND": str(_port(backend)),
            "BASIC": basic,
            "LABEL": label,
            # root's workers would else be nobody, who cannot enter the directory
            "USER": "user root;" if os.getuid() == 0 else "",
        }
        text = (SOURCES / "est-ca.nginx.conf").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        config = directory / "nginx.conf"
        config.write_text(text)
        config.chmod(0o600)
        # nginx takes over a listening socket named in NGINX, as in its binary upgrade: no port to guess.
        fd = listener.fileno()
        command = [nginx, "-p", directory, "-c", config, "-e", directory / "nginx.log"]
        inherit = {"env": {**os.environ, "NGINX": f"{fd};"}, "pass_fds": (fd,)}
        front = stack.enter_context(
            _running(command, **inherit, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )
        _await_tls(front, port, directory)
        ca = directory / "ca.pem"
        ca.write_bytes(openssl("x509", "-inform", "DER", "-in", directory / "ca.der"))
        yield EstCa(
            port, label, user, client_cn, ca, directory / "front-ca.pem", directory / "client.pem",
            directory / "client.key", directory / "client.p12", directory / "client.p12.password",
        )  # fmt: skip


def _front(directory: Path, client_cn: str) -> None:
    """CA, server and client certificate of the TLS side, by openssl."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    ca, ca_key = directory / "front-ca.pem", directory / "front-ca.key"
    openssl("req", "-x509", *key, "-keyout", ca_key, "-out", ca, "-days", "30", "-subj", "/CN=est-ca front CA",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    leaves = (
        ("server", "localhost", "serverAuth", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ("client", client_cn, "clientAuth", "subjectAltName=DNS:ra.example"),
    )
    for name, subject, purpose, names in leaves:
        openssl("req", "-x509", *key, "-CA", ca, "-CAkey", ca_key, "-days", "30", "-subj", f"/CN={subject}",
                "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem",
                "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=critical,digitalSignature",
                "-addext", f"extendedKeyUsage={purpose}", "-addext", names)  # fmt: skip
    password = directory / "client.p12.password"
    password.write_text(secrets.token_urlsafe(12) + "\n")
    openssl("pkcs12", "-export", "-in", directory / "client.pem", "-inkey", directory / "client.key",
            "-certfile", ca, "-name", "est-ca RA", "-passout", f"file:{password}",
            "-out", directory / "client.p12")  # fmt: skip


@contextlib.contextmanager
def _running(command: list[object], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([str(part) for part in command], **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def _port(backend: subprocess.Popen[bytes]) -> int:
    assert backend.stdout is not None
    ready, _, _ = select.select([backend.stdout], [], [], START_LIMIT)
    line = backend.stdout.readline() if ready else b""
    assert line.startswith(b"port "), "est-ca did not start; see est-ca.log"
    return int(line.split()[1])


def _await_tls(front: subprocess.Popen[bytes], port: int, directory: Path) -> None:
    """The listener answers before nginx does: a handshake says that it serves."""
    context = ssl.create_default_context(cafile=str(directory / "front-ca.pem"))
    limit = time.monotonic() + START_LIMIT
    while True:
        assert front.poll() is None, (directory / "nginx.log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as plain:
                context.wrap_socket(plain, server_hostname="localhost").close()
            return
        except OSError:
            assert time.monotonic() < limit, (directory / "nginx.log").read_text()
            time.sleep(0.05)
