"""The resident agent on a machine with a network and a name of its own: what changes there wakes it, once."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chain import command
from tests.support.sandbox import Machine, machine
from tests.support.until import until

pytestmark = [pytest.mark.peers, pytest.mark.slow]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "box") as made:
        yield made


def starts(log: Path) -> list[str]:
    """Why a child was started, in order."""
    lines = log.read_text().splitlines()
    return [line.partition("(")[2].rstrip(")") for line in lines if "starting a run" in line]


def test_addresses_and_names_wake_it(box: Machine) -> None:
    (box.etc / "igelcert").mkdir()
    text = 'unit_id = "BOX"\nwfs = "/run/wfs"\nca_store = "/run/certs"\nlog_level = "debug"\n'
    (box.etc / "igelcert/device.toml").write_text(text)
    agent = box.proc / "run/wfs/igel-rmagent"
    agent.mkdir(parents=True)
    target = {"server": "https://127.0.0.1:1", "ca_file": "/etc/igelcert/none.pem"}
    entry = {"friendly_name": "lan", "enrollment": {"proto": "est", "est": target}}
    (agent / "settings.json").write_text(json.dumps({"certs": [entry]}))
    box.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "far9")
    for name in ("eth9", "far9"):
        box.run("ip", "link", "set", name, "up")
    # duplicate address detection: addresses come, and are no longer tentative
    until(
        lambda: box.run("ip", "-6", "address").stdout.count("scope link") == 2,
        say=lambda: "no link-local addresses",
    )
    until(lambda: "tentative" not in box.run("ip", "-6", "address").stdout, say=lambda: "no end of it")
    time.sleep(1)
    words = ("unshare", "--uts", command("rmagent"), "run", "--verbose")
    with box.running("agent", *words) as log:
        until(lambda: len(starts(log)) == 1, say=log.read_text)
        pid = int((agent / "run.lock").read_text() or 0)
        until(lambda: "the run ended" in log.read_text(), say=log.read_text)
        # an address: several messages of the kernel, one run, not sooner than half a minute after the last one
        box.run("ip", "address", "add", "192.0.2.5/24", "dev", "eth9")
        until(lambda: len(starts(log)) == 2, 90, log.read_text)
        assert starts(log) == ["start", "addresses"]
        # what is no other address wakes nobody
        box.run(
            "ip",
            "address",
            "change",
            "192.0.2.5/24",
            "dev",
            "eth9",
            "valid_lft",
            "600",
            "preferred_lft",
            "300",
        )
        # a name
        box.run("nsenter", "--target", pid, "--uts", "hostname", "another")
        until(lambda: len(starts(log)) == 3, 90, log.read_text)
        assert starts(log)[2] == "host name"
        children = Path(f"/proc/{_outer(box, pid)}/task/{_outer(box, pid)}/children")
        until(lambda: not children.read_text().split(), say=log.read_text)
        until(lambda: _wakes_in(_outer(box, pid), 4) <= 1, say=lambda: "it does not come to rest")
        assert len(starts(log)) == 3


def _outer(box: Machine, pid: int) -> int:
    """The same process by its number here."""
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal():
            continue
        try:
            numbers = next(
                line for line in (place / "status").read_text().splitlines() if line.startswith("NSpid")
            )
            same = os.readlink(place / "ns/pid") == os.readlink(f"/proc/{box.pid}/ns/pid")
        except (OSError, StopIteration):
            continue
        if same and numbers.split()[-1] == str(pid):
            return int(place.name)
    raise AssertionError(
        f"no process {pid}: {subprocess.run(['ps', 'ax'], capture_output=True, text=True).stdout}"
    )


def _wakes_in(pid: int, seconds: float) -> int:
    before = _wakes(pid)
    time.sleep(seconds)
    return _wakes(pid) - before


def _wakes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])
