"""What a load test stands on: the CA, the proxy and its devices, each in processes of their own on loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from igelcert.proxy import profiles
from igelcert.proxy.context import Context
from tests.support.chain import Proxy, lab_ca, proxy
from tests.support.peers import peer
from tests.support.ports import free_port

from . import fleet
from .ca import SlowCa, slow_ca
from .crew import Cost, Result, cost_of, play, processes
from .fleet import Fleet

__all__ = ["Front", "Stage", "nginx", "over_est", "over_scep"]

START_SECONDS = 60.0
FORM = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@dataclass
class Stage:
    """A proxy with a CA behind it. pids: the proxy's processes; fleet: its registered devices, assigned a profile or not."""

    gate: Proxy
    ca: SlowCa | None
    fleet: Fleet
    pids: list[int]
    used: int = 0

    def play(self, part: str, count: int, **more: Any) -> Result:
        """The next `count` devices of the fleet that have not played yet."""
        first, self.used = self.used, self.used + count
        return play(self.fleet, self.gate, part, count=count, first=first, **{"pids": self.pids, **more})

    def cost(self) -> Cost:
        return cost_of(self.pids)

    def waiting(self) -> int:
        """Devices that wait for other settings, as the proxy says."""
        lines = self.gate.admin("/metrics")[1].splitlines()
        found = next((line for line in lines if line.startswith("igelcert_waiting_devices ")), "x 0")
        return int(float(found.split()[1]))

    def assign(self) -> None:
        """The fleet's profile to its devices, at once: no command has to start for it."""
        context = Context.open(self.gate.data)
        profiles.assign(context, "load", directory=fleet.DIRECTORY)
        context.db.close()


@contextmanager
def _stage(place: Path, devices: int, ca: Callable[[Proxy], SlowCa | None], config: str) -> Iterator[Stage]:
    with proxy(place / "gate", config) as gate:
        served = ca(gate)
        made = fleet.make(gate.data, place / "fleet", devices)
        gate.profile("load", fleet.PROFILE)
        pids = processes(json.loads((gate.data / "run.json").read_text())["pid"])
        yield Stage(gate, served, made, pids)


@contextmanager
def over_est(
    place: Path, devices: int, *, assigned: bool = True, config: str = "", rate: str = "", **ca: Any
) -> Iterator[Stage]:
    """With a CA of `ca.slow_ca` (its properties: `ca`). rate: of it, as the proxy is told."""
    with slow_ca(place / "ca", **ca) as served:

        def use(gate: Proxy) -> SlowCa:
            options = ("--rate", rate) if rate else ()
            gate.use_est(served.port, served.dir / "ra.p12", served.dir / "ra.password", *options)
            return served

        with _stage(place, devices, use, config) as stage:
            if assigned:
                stage.assign()
            yield stage


@contextmanager
def over_scep(place: Path, devices: int) -> Iterator[Stage]:
    """With the lab CA, over SCEP."""
    with lab_ca(place / "lab", "--scep", "127.0.0.1:0") as lab:

        def use(gate: Proxy) -> None:
            gate.use_scep(lab.scep, "--fingerprint", lab.root_fingerprint())

        with _stage(place, devices, use, "") as stage:
            stage.assign()
            yield stage


@dataclass(frozen=True, slots=True)
class Front:
    """A server in the proxy's place. pids: its processes."""

    port: int
    pids: list[int]


_NGINX = """
daemon off; pid {place}/pid; error_log {place}/error.log error; worker_processes 2;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/temp;
  fastcgi_temp_path {place}/x; uwsgi_temp_path {place}/x; scgi_temp_path {place}/x;
  upstream ca {{ server 127.0.0.1:{ca}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=1024; keepalive_requests 100000;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {place}/server.pem; ssl_certificate_key {place}/server.pem;
    ssl_client_certificate {trust}; ssl_verify_client on;
    location / {{
      proxy_pass https://ca; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host localhost;
      proxy_ssl_certificate {place}/../ca/ra.pem; proxy_ssl_certificate_key {place}/../ca/ra.pem;
      proxy_ssl_trusted_certificate {place}/../ca/ca.pem; proxy_ssl_verify on; proxy_ssl_name localhost;
    }}
  }}
}}
"""


@contextmanager
def nginx(place: Path, stage: Stage) -> Iterator[Front]:
    """nginx as a reverse proxy with mutual TLS on both sides, before the stage's CA: it relays and checks nothing but
    certificates."""
    assert stage.ca is not None
    place.mkdir()
    context = Context.open(stage.gate.data)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = context.management_ca.issue_server(key.public_key(), ("localhost",)).encode()
    context.db.close()
    (place / "server.pem").write_bytes(pem + key.private_bytes(*FORM))
    port = free_port()
    text = _NGINX.format(place=place, ca=stage.ca.port, port=port, trust=stage.gate.data / "trust.pem")
    (place / "nginx.conf").write_text(text)
    args = [peer("nginx"), "-p", place, "-c", place / "nginx.conf"]
    with (place / "log").open("wb") as log, subprocess.Popen(args, stderr=log) as process:
        try:
            _await(process, port, place / "log")
            yield Front(port, processes(process.pid))
        finally:
            process.terminate()


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
