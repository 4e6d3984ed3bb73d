"""Lab CA, proxy and devices as real processes on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.support.forks import ca_proxy

__all__ = ["Device", "LabCa", "Proxy", "command", "lab_ca", "proxy", "run", "served"]

START_SECONDS = 90
SCEP_PATHS = {
    "standard": "/scep",
    "ejbca": "/ejbca/publicweb/apply/scep/lab/pkiclient.exe",
    "ndes": "/certsrv/mscep/mscep.dll",
}
BIN = Path(sys.executable).parent


def command(name: str) -> str:
    """One of our commands, as installed."""
    return str(BIN / name)


def run(
    *args: str | Path, env: dict[str, str] | None = None, timeout: float = 60, **more: Any
) -> subprocess.CompletedProcess[str]:
    """A command's end; its output as text. The first argument may be one of our commands."""
    name = command(str(args[0])) if (BIN / str(args[0])).exists() else str(args[0])
    full = [name, *map(str, args[1:])]
    return subprocess.run(
        full, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}, **more
    )


def ok(*args: str | Path, **more: Any) -> str:
    """stdout of a command that must succeed."""
    done = run(*args, **more)
    assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def served(args: list[str | Path], run_json: Path, log: Path) -> Iterator[dict[str, int]]:
    """A server of ours until the end of the block; yields what its run.json says."""
    run_json.unlink(missing_ok=True)
    with log.open("ab") as sink:
        process = subprocess.Popen([command(str(args[0])), *map(str, args[1:])], stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not run_json.exists():
            assert process.poll() is None, f"{args[0]} ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{args[0]} does not start:\n{log.read_text()}"
            time.sleep(0.05)
        yield json.loads(run_json.read_text())
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            raise


@dataclass
class LabCa:
    """port: of EST. scep, scep_https: addresses of its SCEP service, "" when it is not offered."""

    dir: Path
    port: int
    scep: str = ""
    scep_https: str = ""

    def root_fingerprint(self, name: str = "sha256") -> str:
        cert = x509.load_pem_x509_certificate((self.dir / "root.pem").read_bytes())
        return hashlib.new(name, cert.public_bytes(serialization.Encoding.DER)).hexdigest()

    def issued(self) -> list[Path]:
        """Every certificate that it ever issued."""
        return sorted((self.dir / "issued").iterdir())

    def log(self) -> str:
        return (self.dir.parent / f"{self.dir.name}.log").read_text()


@contextlib.contextmanager
def lab_ca(directory: Path, *options: str | Path) -> Iterator[LabCa]:
    args = ["lab-ca", "serve", "--dir", directory, "--est", "127.0.0.1:0", *options]
    directory.mkdir(parents=True, exist_ok=True)
    with served(args, directory / "run.json", directory.parent / f"{directory.name}.log") as state:
        mode = options[options.index("--scep-mode") + 1] if "--scep-mode" in options else "standard"
        place = SCEP_PATHS[str(mode)]
        plain = f"http://127.0.0.1:{state['scep_port']}{place}" if "scep_port" in state else ""
        over_tls = (
            f"https://localhost:{state['scep_https_port']}{place}" if "scep_https_port" in state else ""
        )
        yield LabCa(directory, state["est_port"], plain, over_tls)


@dataclass
class Proxy:
    data: Path
    port: int
    admin_port: int
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def cli(self, *args: str | Path, **more: Any) -> str:
        done = self._command(*args, **more)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _command(self, *args: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        env = {"CA_PROXY_DATA": str(self.data)}
        if more:
            return run("ca-proxy", *args, env=env, **more)
        return ca_proxy([*map(str, args)], {**os.environ, **env}, 60)

    def refused(self, *args: str | Path) -> tuple[int, str]:
        """Exit code and stderr of a command that must fail, in one or two plain lines."""
        done = self._command(*args)
        assert done.returncode not in {0, 2} and "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    def use(self, ca: LabCa, *options: str) -> None:
        self.use_est(ca.port, ca.dir / "ra.p12", ca.dir / "ra.p12.password", *options)

    def use_est(self, port: int, keystore: Path, password_file: Path, *options: str) -> None:
        self.cli(
            "ca", "set-est", "--name", "test", "--host", "localhost", "--port", str(port), "--yes",
            "--keystore", keystore, "--keystore-password-file", password_file, *options,
        )  # fmt: skip

    def use_scep(self, url: str, *options: str | Path) -> None:
        self.cli("ca", "set-scep", "--name", "test", "--url", url, "--yes", *options)

    def profile(self, name: str, *certs: dict[str, Any], directory: str = "", device: str = "") -> None:
        path = self.data.parent / "profile.json"
        path.write_text(json.dumps({"certs": list(certs)}))
        self.cli("profile", "set", name, "--settings", path)
        if directory:
            self.cli("profile", "assign", name, "--directory", directory)
        if device:
            self.cli("profile", "assign", name, "--device", device)

    def device(
        self, root: Path, unit_id: str, hostname: str, directory: str = "/", register: bool = True
    ) -> Device:
        """A device that is known here, by default registered."""
        made = Device(root, unit_id, hostname)
        (root / "etc/igelcert").mkdir(parents=True)
        (root / "etc/hostname").write_text(hostname + "\n")
        (root / "etc/igelcert/device.toml").write_text(f'unit_id = "{unit_id}"\nhostname = "{hostname}"\n')
        added = json.loads(
            self.cli("device", "add", "--unit-id", unit_id, "--directory", directory, "--json")
        )
        token = root.parent / f"{unit_id}.token"
        token.write_text(added["token"] + "\n")
        if register:
            made.register(self, token)
        return made

    def enrollments(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.cli("enrollments", "--json"))
        return found

    def log(self) -> str:
        return (self.data.parent / "proxy.log").read_text()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        client: Device | tuple[Path, Path] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
        source: str = "",
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request; `client` authenticates it. source: the address that it comes from."""
        context = ssl.create_default_context(cafile=str(self.data / "trust.pem"))
        if isinstance(client, Device):
            client = (client.agent / "cert.pem", client.agent / "key.pem")
        if client:
            context.load_cert_chain(*client)
        connection = http.client.HTTPSConnection(
            "localhost", self.port, context=context, timeout=timeout,
            source_address=(source, 0) if source else None,
        )  # fmt: skip
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def admin(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@dataclass
class Device:
    """A directory that stands for the root file system of a device."""

    root: Path
    unit_id: str
    hostname: str

    @property
    def agent(self) -> Path:
        return self.root / "wfs/igel-rmagent"

    @property
    def certs(self) -> Path:
        return self.root / "wfs/igel-certs"

    def register(self, to: Proxy, token: Path) -> None:
        trust = to.data / "trust.pem"
        ok(
            "rmagent",
            "register",
            "--root",
            self.root,
            "--server",
            to.url,
            "--token-file",
            token,
            "--ca-file",
            trust,
        )

    def sync(self, code: int = 0, timeout: float = 120) -> str:
        """stderr of a sync, which must end with that code."""
        done = run("rmagent", "sync", "--root", self.root, "--verbose", timeout=timeout)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr

    def status(self) -> Any:
        return json.loads(ok("igel-certs", "status", "--root", self.root, "--json"))


@contextlib.contextmanager
def proxy(
    data: Path, config: str = "", port: int = 0, names: tuple[str, ...] = (), drain: int = 0
) -> Iterator[Proxy]:
    """A fresh proxy, or the one that is in `data` already; `config` goes to proxy.toml. `names`: more of its names."""
    password = ""
    if not data.exists():
        words = ["init", "--data", str(data), "--hostname", "localhost", "127.0.0.1", *names, "--json"]
        done = ca_proxy(words, dict(os.environ), 60)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        password = made["admin_password"]
    if config:
        with (data / "proxy.toml").open("a") as file:
            file.write(config + "\n")
    args: list[str | Path] = ["ca-proxy", "serve", "--data", data, "--listen", f"127.0.0.1:{port}"]
    args += ["--admin-listen", "127.0.0.1:0", "--drain", str(drain)]
    with served(args, data / "run.json", data.parent / "proxy.log") as state:
        yield Proxy(data, state["device_port"], state["admin_port"], password)
