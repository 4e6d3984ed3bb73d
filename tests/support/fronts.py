"""What stands in front of several proxies: HAProxy and nginx, with the configuration that is shipped."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.chain import Proxy
from tests.support.peers import peer
from tests.support.scep_peers import free_port

__all__ = ["BALANCER", "Front", "haproxy", "placed"]

CONTRIB = Path(__file__).parents[2] / "contrib"
BALANCER = 'proxy_protocol = ["127.0.0.1"]'  # for proxy.toml
START_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Front:
    """port: for devices."""

    port: int
    log: Path

    def before(self, gate: Proxy) -> Proxy:
        """That proxy, asked through the front."""
        return Proxy(gate.data, self.port, gate.admin_port, gate.password)


def placed(text: str, *pairs: tuple[str, str]) -> str:
    """Shipped configuration with other addresses; what is replaced must be there."""
    for old, new in pairs:
        assert old in text, f"the configuration does not hold {old!r}"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def haproxy(place: Path, gates: list[tuple[int, int]]) -> Iterator[Front]:
    """contrib/haproxy before at most three proxies: the ports for devices and for administration of each."""
    place.mkdir(parents=True)
    port = free_port()
    # the limit of open files of who runs the tests may be low
    pairs = [("maxconn 40000", "maxconn 6000"), ("bind :8443", f"bind 127.0.0.1:{port}")]
    for number in range(3):
        line = f"    server proxy{number + 1} 192.0.2.1{number + 1}:8443\n"
        here = "127.0.0.1:{} port {}".format(*gates[number]) if number < len(gates) else ""
        pairs.append((line, f"    server proxy{number + 1} {here}\n" if here else ""))
    config = place / "haproxy.cfg"
    config.write_text(placed((CONTRIB / "haproxy/haproxy.cfg").read_text(), *pairs))
    with running([peer("haproxy"), "-db", "-f", config], port, place / "log") as front:
        yield front


@contextlib.contextmanager
def running(args: list[str | Path], port: int, log: Path) -> Iterator[Front]:
    """A server until the end of the block; its output goes to `log`."""
    with log.open("wb") as sink, subprocess.Popen(args, stdout=sink, stderr=sink) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield Front(port, log)
        finally:
            process.terminate()
            process.wait(20)
