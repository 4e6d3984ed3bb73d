"""The PROXY protocol at a running proxy: from the balancer that is named it must come, from others it is worth nothing."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.chain import Device, LabCa, Proxy, proxy
from tests.support.fronts import haproxy
from tests.support.until import until
from tests.unit.test_preface import BAD, FOUR, GOOD, PORTS, TLV, two

BALANCER, STRANGER = "127.0.0.2", "127.0.0.1"
REQUEST = b"GET /rmagent/settings HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HERE = two(0x11, FOUR + PORTS + TLV)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("gate") / "data", f'proxy_protocol = ["{BALANCER}"]') as made:
        yield made


@pytest.fixture(scope="module")
def device(gate: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return gate.device(tmp_path_factory.mktemp("device") / "root", "BEHIND", "tc-behind")


def ask(gate: Proxy, device: Device, header: bytes, origin: str) -> bytes:
    """The answer to a request after `header`, over a connection from that address; what there is of it."""
    context = ssl.create_default_context(cafile=str(gate.data / "trust.pem"))
    context.load_cert_chain(device.agent / "cert.pem", device.agent / "key.pem")
    raw = socket.create_connection(("127.0.0.1", gate.port), timeout=15, source_address=(origin, 0))
    with contextlib.ExitStack() as stack:
        stack.callback(raw.close)
        stack.enter_context(contextlib.suppress(OSError))
        raw.sendall(header)
        line = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
        line.sendall(REQUEST)
        return line.recv(65_536)
    return b""


def last_address(gate: Proxy) -> str:
    """Of the last request of a device in the log."""
    return re.findall(r"INFO (\S+) BEHIND GET /rmagent/settings", gate.log())[-1]


@pytest.mark.parametrize("name", GOOD)
def test_the_address_is_the_clients(gate: Proxy, device: Device, name: str) -> None:
    header, expected = GOOD[name]
    assert ask(gate, device, header, BALANCER).startswith(b"HTTP/1.1 200 ")
    assert last_address(gate) == (expected[0] if expected else BALANCER)


@pytest.mark.parametrize("name", [*BAD, "nothing", "half of it"])
def test_whatever_else_the_balancer_sends_is_refused(gate: Proxy, device: Device, name: str) -> None:
    header = {"nothing": b"", "half of it": HERE[:20]}.get(name, BAD.get(name, b""))
    assert ask(gate, device, header, BALANCER) == b""
    assert ask(gate, device, HERE, BALANCER).startswith(b"HTTP/1.1 200 ")
    assert "Traceback" not in gate.log()


@pytest.mark.parametrize("name", GOOD)
def test_from_a_stranger_it_is_worth_nothing(gate: Proxy, device: Device, name: str) -> None:
    assert ask(gate, device, GOOD[name][0], STRANGER) == b""
    assert ask(gate, device, b"", STRANGER).startswith(b"HTTP/1.1 200 ")
    assert last_address(gate) == STRANGER


def test_who_is_refused_stands_in_the_log_with_its_address(gate: Proxy, tmp_path: Path) -> None:
    gone = gate.device(tmp_path / "root", "GONE", "tc-gone")
    gate.cli("device", "remove", "--unit-id", "GONE")
    assert ask(gate, gone, HERE, BALANCER).startswith(b"HTTP/1.1 403 ")
    assert "WARNING 203.0.113.9 GONE: this device is not known" in gate.log()


def answers(gate: Proxy) -> bool:
    with suppress(OSError):
        return gate.ask("GET", "/rmagent/cacerts")[0] == 200
    return False


@pytest.mark.peers
def test_behind_haproxy(lab: LabCa, tmp_path: Path) -> None:
    with ExitStack() as stack:
        gate = stack.enter_context(proxy(tmp_path / "data", 'proxy_protocol = ["127.0.0.1"]'))
        until(lambda: gate.admin("/healthz")[0] == 200)
        front = stack.enter_context(haproxy(tmp_path / "front", [(gate.port, gate.admin_port)]))
        through = front.before(gate)
        # none is ready: what a proxy has to say comes through all the same
        time.sleep(2.5)
        assert gate.admin("/readyz")[0] == 503
        until(lambda: answers(through))
        gate.use(lab)
        device = through.device(tmp_path / "root", "BEHIND", "tc-behind")
        context = ssl.create_default_context(cafile=str(gate.data / "trust.pem"))
        context.load_cert_chain(device.agent / "cert.pem", device.agent / "key.pem")
        raw = socket.create_connection(("127.0.0.1", front.port), timeout=15, source_address=("127.0.0.7", 0))
        with context.wrap_socket(raw, server_hostname="localhost") as line:
            line.sendall(REQUEST)
            assert line.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert last_address(gate) == "127.0.0.7"
