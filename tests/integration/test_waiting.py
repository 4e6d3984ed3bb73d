"""Devices that wait for a change of their settings: told within a second, without a thread, within bounds."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain import Device, Proxy, proxy

SETTINGS = "/rmagent/settings"
CERT = {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}, "subject": {"auto_cn": "hostname"}}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    # few threads: who waits must hold none
    with proxy(tmp_path_factory.mktemp("gate") / "data", "threads = 2\nwaiting = 3") as made:
        made.profile("first", CERT)
        made.profile("second", {**CERT, "friendly_name": "vpn"})
        yield made


def figure(gate: Proxy, name: str) -> int:
    found = re.search(rf"^{name} ([0-9.]+)$", gate.admin("/metrics")[1], re.MULTILINE)
    assert found, gate.admin("/metrics")[1]
    return int(float(found[1]))


def until_waiting(gate: Proxy, count: int, seconds: float = 5) -> None:
    """As many devices wait."""
    deadline = time.monotonic() + seconds
    while figure(gate, "igelcert_waiting_devices") != count:
        assert time.monotonic() < deadline, gate.admin("/metrics")[1]
        time.sleep(0.02)


class Waiting(threading.Thread):
    """A request that waits. answer: status, headers, body; took: seconds until it came."""

    def __init__(self, gate: Proxy, device: Device, seconds: int, etag: str = "") -> None:
        super().__init__()
        self.gate = gate
        self.device = device
        etag = etag or gate.ask("GET", SETTINGS, client=device)[1]["etag"]
        self.headers = {"Prefer": f"respond-async, wait={seconds}", "If-None-Match": etag}
        self.answer: tuple[int, dict[str, str], bytes] = (0, {}, b"")
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self.answer = self.gate.ask("GET", SETTINGS, client=self.device, headers=self.headers, timeout=60)
        self.ended = time.monotonic()

    def done(self, seconds: float) -> tuple[int, dict[str, str], bytes]:
        self.join(seconds)
        assert not self.is_alive(), f"no answer within {seconds} s"
        return self.answer


def test_a_change_by_another_process_arrives(gate: Proxy, root: Path) -> None:
    device = gate.device(root, "CHANGED", "tc-changed", directory="/Changed/Below")
    for act in (
        ("profile", "assign", "first", "--directory", "/Changed"),
        ("profile", "assign", "second", "--device", "CHANGED"),
        ("profile", "unassign", "first", "--directory", "/Changed"),
    ):
        waiting = Waiting(gate, device, 30)
        until_waiting(gate, 1)
        gate.cli(*act)
        committed = time.monotonic()
        status, headers, body = waiting.done(5)
        assert status == 200 and headers["preference-applied"] == "wait=30"
        assert headers["etag"] != waiting.headers["If-None-Match"] and b'"certs"' in body
        assert waiting.ended - committed < 1, "the command has ended, so the change is at most that old"
    until_waiting(gate, 0)
