"""SCEP servers and clients that were not written here: micromdm's, smallstep's, strongSwan's."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers import peer
from tests.support.ports import free_port
from tests.support.tree import openssl
from tests.support.until import until

__all__ = ["ScepCa", "micromdm", "running", "scepclient", "step_ca", "strongswan"]

START_SECONDS = 90


@dataclass(frozen=True)
class ScepCa:
    """url: of its SCEP service; https: the same over TLS, "" without. root: PEM of its root certificate."""

    url: str
    root: Path
    https: str = ""
    depot: Path | None = None

    def issued(self) -> int:
        """Certificates in the depot of micromdm's server."""
        assert self.depot is not None
        return len([path for path in self.depot.glob("*.pem") if path.name != "ca.pem"])


@contextlib.contextmanager
def running(args: list[str], port: int, log: Path, cwd: Path) -> Iterator[None]:
    with log.open("wb") as sink:
        process = subprocess.Popen(args, stdout=sink, stderr=sink, cwd=cwd)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, f"{args[0]} ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{args[0]} does not start:\n{log.read_text()[-2000:]}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


@contextlib.contextmanager
def micromdm(where: Path, challenge: str) -> Iterator[ScepCa]:
    """micromdm's scepserver; it answers with SHA-1 and single DES whatever it is asked with."""
    program = str(peer("scepserver"))
    depot = where / "depot"
    subprocess.run([program, "ca", "-init", "-depot", str(depot), "-keySize", "2048"], check=True,
                   capture_output=True, timeout=60, cwd=where)  # fmt: skip
    port = free_port()
    args = [
        program,
        "-depot",
        str(depot),
        "-http-addr",
        f"127.0.0.1:{port}",
        "-challenge",
        challenge,
        "-allowrenew",
        "0",
    ]
    with running(args, port, where / "scepserver.log", where):
        yield ScepCa(f"http://127.0.0.1:{port}/scep", depot / "ca.pem", depot=depot)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
        return True
    return False


@contextlib.contextmanager
def step_ca(where: Path, challenge: str) -> Iterator[ScepCa]:
    """smallstep's step-ca with a SCEP provisioner, an RSA root and an RSA intermediate."""
    program = str(peer("step-ca"))
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", where / "root.key", "-out", where / "root.pem",
            "-subj", "/O=Step/CN=Step Root", "-days", "3650", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", where / "int.key", "-out", where / "int.csr",
            "-subj", "/O=Step/CN=Step Intermediate")  # fmt: skip
    (where / "ext").write_text(
        "basicConstraints=critical,CA:TRUE,pathlen:0\n"
        "keyUsage=critical,keyCertSign,cRLSign,keyEncipherment,digitalSignature\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    openssl("x509", "-req", "-in", where / "int.csr", "-CA", where / "root.pem", "-CAkey", where / "root.key",
            "-CAcreateserial", "-days", "3000", "-extfile", where / "ext", "-out", where / "int.pem")  # fmt: skip
    port, tls_port = free_port(), free_port()
    provisioner = {
        "type": "SCEP", "name": "lab", "forceCN": False, "challenge": challenge, "minimumPublicKeyLength": 2048,
        "includeRoot": True, "encryptionAlgorithmIdentifier": 2,
        "claims": {"maxTLSCertDuration": "2160h", "defaultTLSCertDuration": "24h"},
    }  # fmt: skip
    config = {
        "root": str(where / "root.pem"), "crt": str(where / "int.pem"), "key": str(where / "int.key"),
        "address": f"127.0.0.1:{tls_port}", "insecureAddress": f"127.0.0.1:{port}",
        "dnsNames": ["localhost", "127.0.0.1"], "logger": {"format": "text"},
        "db": {"type": "badgerv2", "dataSource": str(where / "db")}, "authority": {"provisioners": [provisioner]},
    }  # fmt: skip
    (where / "ca.json").write_text(json.dumps(config))
    with running([program, str(where / "ca.json")], port, where / "step-ca.log", where):
        until(lambda: _listens(tls_port))
        yield ScepCa(
            f"http://127.0.0.1:{port}/scep/lab",
            where / "root.pem",
            https=f"https://localhost:{tls_port}/scep/lab",
        )


def scepclient(
    where: Path, url: str, challenge: str, cn: str, *, trust: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """micromdm's client; its certificate comes to where/client.pem, its key to where/client.key."""
    env = {**os.environ, **({"SSL_CERT_FILE": str(trust)} if trust else {})}
    return subprocess.run(
        [str(peer("scepclient")), "-server-url", url, "-challenge", challenge, "-cn", cn, "-organization", "Example",
         "-country", "DE", "-private-key", str(where / "client.key"), "-certificate", str(where / "client.pem"),
         "-key-encipherment-selector"],
        capture_output=True, text=True, timeout=60, cwd=where, env=env, check=False,
    )  # fmt: skip


def strongswan(
    where: Path,
    url: str,
    challenge: str,
    dn: str,
    encrypt: Path,
    sign: Path,
    *cas: Path,
    old: tuple[Path, Path] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """`pki --scep` with a new RSA key (where/pki.key); the certificate is its output, PEM.

    Version 5.9.8 confounds capabilities: it takes DES3 for SHA-256 and AES for DES3, so triple DES it must be.
    """
    if not (where / "pki.key").exists():
        openssl("genrsa", "-traditional", "-out", where / "pki.key", "2048")
    args = [str(peer("strongswan")), "--scep", "--url", url, "--in", str(where / "pki.key"), "--dn", dn,
            "--cipher", "des3", "--cacert-enc", str(encrypt), "--cacert-sig", str(sign), "--outform", "pem",
            "--interval", "1", "--maxpolltime", "20"]  # fmt: skip
    if challenge:
        args += ["--password", challenge]
    for ca in cas:
        args += ["--cacert", str(ca)]
    if old:
        args += ["--cert", str(old[0]), "--key", str(old[1])]
    return subprocess.run(args, capture_output=True, timeout=60, cwd=where, check=False)
