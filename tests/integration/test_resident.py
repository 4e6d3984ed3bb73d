"""`rmagent run` as a real process: settings as soon as they change, at rest otherwise, and hard to kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from igelcert.device import identity
from igelcert.device.agent import Agent
from igelcert.device.config import load
from igelcert.device.log import Log
from tests.support.chain import Device, LabCa, Proxy, command, lab_ca, proxy, run
from tests.support.tree import check_certificate
from tests.support.until import until

PASSWORD = "correct horse"
LIMIT_KB = 20_000


def lan(kind: str = "ec_prime256v1", **more: Any) -> dict[str, Any]:
    return {"friendly_name": "lan", "key": {"type": kind, "crypt_password": PASSWORD}, **more}


# As `rmagent run` starts at boot, with nothing loaded that it would have to get rid of
LEAN = """
import sys
root = sys.argv[1]
sys.path[:] = sys.argv[2:]
from igelcert.device.config import load
from igelcert.device.residence import become_resident
become_resident(load(root), root, None, 240, verbose=True)
"""


class Running:
    """A resident agent; `said` is what it wrote to stderr so far."""

    def __init__(
        self, root: Path, *options: str, env: dict[str, str] | None = None, lean: bool = False
    ) -> None:
        self._log = root.parent / f"{root.name}.agent.log"
        args = [command("rmagent"), "run", "--root", str(root), "--verbose", *options]
        if lean:
            args = [sys.executable, "-I", "-S", "-c", LEAN, str(root), *sys.path]
        with self._log.open("wb") as sink:
            self.process = subprocess.Popen(args, stderr=sink, env={**os.environ, **(env or {})})
        until(lambda: "at work" in self.said or self.process.poll() is not None, say="it does not start")

    @property
    def said(self) -> str:
        return self._log.read_text()

    def __str__(self) -> str:
        return self.said

    def status(self, key: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(f"{key}:")).split()[1])

    def ticks(self) -> int:
        """CPU used, of itself and the children that it waited for, in clock ticks."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15]))

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def at_rest(self) -> bool:
        return not self.children() and self.connected()

    def connected(self) -> bool:
        for path in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it may be closed meanwhile
                if int(path.name) > 5 and "socket" in os.readlink(path):
                    return True
        return False

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def agent(
    root: Path, *options: str, env: dict[str, str] | None = None, lean: bool = False
) -> Iterator[Running]:
    made = Running(root, *options, env=env, lean=lean)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.terminate()
            try:
                made.process.wait(60)
            except subprocess.TimeoutExpired:
                made.process.kill()
                made.process.wait(30)
                raise
        assert "Traceback" not in made.said, made.said


def serial(device: Device, name: str = "lan") -> int:
    try:
        return x509.load_pem_x509_certificate((device.certs / name / "cert.pem").read_bytes()).serial_number
    except FileNotFoundError:
        return 0


def test_a_profile_is_with_the_device_in_two_seconds(gate: Proxy, lab: LabCa, root: Path) -> None:
    device = gate.device(root, "PUSH", "tc-push", directory="/Push")
    with agent(root) as resident:
        until(resident.at_rest, say=resident)
        time.sleep(1.5)
        # the CSR is with the CA: the certificate is there, in little more than the enrollment itself takes
        gate.profile("push", lan(), directory="/Push")
        took = [until(lambda: serial(device) != 0, say=resident)]
        until(resident.at_rest, say=resident)
        check_certificate(root, "lan", "ec_prime256v1", PASSWORD)
        # changed
        first = serial(device)
        gate.profile("push", lan("ec_secp384r1"))
        took.append(until(lambda: serial(device) not in {0, first}, say=resident))
        # and gone
        until(resident.at_rest, say=resident)
        gate.cli("profile", "unassign", "push", "--directory", "/Push")
        took.append(until(lambda: not os.path.lexists(device.certs / "lan"), say=resident))
        assert min(took[:2]) < 2.5 and took[2] < 30, took
        assert resident.end() == 0
    assert PASSWORD not in resident.said


def quiet(resident: Running, seconds: float) -> bool:
    """Neither processor time nor a wake-up."""
    before = resident.ticks(), resident.status("voluntary_ctxt_switches")
    time.sleep(seconds)
    return (resident.ticks(), resident.status("voluntary_ctxt_switches")) == before


@pytest.mark.parametrize("lean", [False, True], ids=["command", "lean"])
def test_at_rest(gate: Proxy, root: Path, lean: bool) -> None:
    """No processor time, no wake-up, and not much memory; a minute of it is in scripts/bench."""
    gate.profile("rest", lan(), directory="/Rest")
    name = f"rest-{lean}".lower()
    device = gate.device(root, name, f"tc-{name}", directory="/Rest")
    if lean:  # as the image's file is: of comments alone
        (root / "etc/igelcert/device.toml").write_text("# unit_id\n")
    with agent(root, lean=lean) as resident:
        assert ("agent_dir" in Path(f"/proc/{resident.process.pid}/cmdline").read_text()) is not lean
        until(lambda: serial(device) != 0, say=resident)
        until(resident.at_rest, say=resident)
        # session tickets may come before
        until(lambda: quiet(resident, 6), 20, "it does not come to rest")
        assert resident.status("VmRSS") <= LIMIT_KB
        assert resident.status("Threads") == 1


def test_settings_that_cannot_be_stored(gate: Proxy, root: Path) -> None:
    """Told of them again and again, it does not start run after run."""
    gate.profile("unstored", lan(), directory="/Unstored")
    gate.device(root, "UNSTORED", "tc-unstored", directory="/Unstored")
    (root / "wfs/igel-rmagent/settings.json").mkdir()
    with agent(root) as resident:
        asked = lambda: gate.log().count("UNSTORED GET /rmagent/settings")  # noqa: E731
        until(lambda: asked() >= 2, say=resident)
        time.sleep(6)
        assert asked() <= 6, gate.log()
        (root / "wfs/igel-rmagent/settings.json").rmdir()
        resident.process.send_signal(signal.SIGHUP)
        until((root / "wfs/igel-certs/lan/cert.pem").exists, say=resident)


def at_work(resident: Running) -> list[int]:
    """The children of a resident agent that is told to look."""
    for _ in range(20):
        resident.process.send_signal(signal.SIGHUP)
        found: list[int] = []
        with contextlib.suppress(AssertionError):  # it began and ended while this process stood still
            until(lambda found=found: found.extend(resident.children()) or found, 3)  # type: ignore[misc]
            return found
    raise AssertionError(str(resident))


def test_signals(gate: Proxy, root: Path) -> None:
    gate.profile("signals", lan(), directory="/Signals")
    device = gate.device(root, "SIGNALS", "tc-signals", directory="/Signals")
    with agent(root) as resident:
        until(lambda: serial(device) != 0, say=resident)
        until(resident.at_rest, say=resident)
        first = serial(device)
        (device.certs / "lan/pkey.pem").unlink()  # self-repair, when it is told to look
        resident.process.send_signal(signal.SIGHUP)
        until(lambda: serial(device) != first, say=resident)
        check_certificate(root, "lan", "ec_prime256v1", PASSWORD)
        # a second one does not run beside it
        second = run("rmagent", "run", "--root", root)
        assert second.returncode == 1 and "another resident agent runs for this device" in second.stderr
        # ended while it works: the child ends with it
        children = at_work(resident)
        assert resident.end() == 0
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    device.sync()


def test_before_it_is_registered(gate: Proxy, root: Path) -> None:
    """It waits, and registering wakes it."""
    gate.profile("early", lan(), directory="/Early")
    device = gate.device(root, "EARLY", "tc-early", directory="/Early", register=False)
    (root / "wfs").mkdir()
    with agent(root) as resident:
        until(lambda: "not registered" in resident.said, say=resident)
        assert run("rmagent", "sync", "--root", root).returncode == 78
        device.register(gate, root.parent / "EARLY.token")
        until(lambda: serial(device) != 0, say=resident)
        assert resident.said.count("not registered") == 1


def test_without_its_place(gate: Proxy, root: Path) -> None:
    """/wfs is mounted later."""
    device = gate.device(root, "LATE", "tc-late")
    gate.profile("late", lan(), device="LATE")
    shutil.move(root / "wfs", root / "elsewhere")
    args = [command("rmagent"), "run", "--root", str(root)]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("rmagent: error: waiting: cannot use ") and "Traceback" not in line
        shutil.move(root / "elsewhere", root / "wfs")
        process.send_signal(signal.SIGHUP)
        until(lambda: serial(device) != 0, say="it does not go on")
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stderr.close()


def test_the_proxy_is_away_and_comes_back(lab: LabCa, tmp_path: Path) -> None:
    data, root = tmp_path / "proxy", tmp_path / "root"
    with proxy(data) as gate:
        gate.use(lab)
        gate.profile("away", lan(), directory="/")
        device = gate.device(root, "AWAY", "tc-away")
        resident = Running(root)
        until(lambda: serial(device) != 0, say=resident)
        until(resident.at_rest, say=resident)
        port = gate.port
    try:
        first = serial(device)
        (device.certs / "lan/pkey.pem").unlink()
        resident.process.send_signal(signal.SIGHUP)
        until(lambda: "nothing listens on" in resident.said, say=resident)
        assert serial(device) == first, "what is there stays"
        with proxy(data, port=port):
            # by itself, within its back-off: the fourth try, if the proxy needs that long, is up to 113 s after the first
            until(lambda: serial(device) != first, 150, resident)
            until(lambda: "the proxy answers again" in resident.said, 60, resident)
        check_certificate(root, "lan", "ec_prime256v1", PASSWORD)
        assert resident.said.count("going on with the stored settings") <= 4, "trouble is said once"
    finally:
        assert resident.end() == 0


def test_a_device_that_was_removed(gate: Proxy, root: Path) -> None:
    gate.profile("gone", lan(), directory="/Gone")
    device = gate.device(root, "GONE", "tc-gone", directory="/Gone")
    with agent(root) as resident:
        until(lambda: serial(device) != 0, say=resident)
        until(resident.at_rest, say=resident)
        gate.cli("device", "remove", "--unit-id", "GONE")
        until(lambda: "answers 403" in resident.said, say=resident)
        time.sleep(2)
        assert resident.said.count("answers 403") == 1
        assert serial(device) != 0, "a certificate that is valid stays"
        # registered anew, it goes on
        again = json.loads(gate.cli("device", "add", "--unit-id", "GONE", "--directory", "/Gone", "--json"))
        token = root.parent / "again.token"
        token.write_text(again["token"])
        device.register(gate, token)
        until(lambda: "the proxy answers again" in resident.said, say=resident)


def test_what_it_tells_systemd(gate: Proxy, root: Path, tmp_path: Path) -> None:
    gate.device(root, "NOTIFY", "tc-notify")
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        listener.settimeout(60)
        env = {"NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": "1000000"}
        heard: list[str] = []
        with agent(root, env=env) as resident:
            while heard.count("WATCHDOG=1") < 3 or "STATUS=waiting for settings" not in heard:
                heard += listener.recv(4096).decode().splitlines()
            assert resident.end() == 0
        listener.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while True:
                heard += listener.recv(4096).decode().splitlines()
    assert heard[0] == "READY=1" and heard[-1] == "STOPPING=1"
    assert "STATUS=waiting for settings" in heard


def test_the_management_certificate_is_renewed(
    gate: Proxy, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new key; cut between its two renames it is mended."""
    device = gate.device(root, "IDENTITY", "tc-identity")
    before = (device.agent / "cert.pem").read_bytes(), (device.agent / "key.pem").read_bytes()
    monkeypatch.setattr(identity, "RENEW_PERCENT", 100)
    made = Agent(load(str(root)), Log("rmagent", screen=False))
    assert made.sync() == 0
    after = (device.agent / "cert.pem").read_bytes(), (device.agent / "key.pem").read_bytes()
    assert before[0] != after[0] and before[1] != after[1]
    device.sync()
    # as if the power had failed before the second rename
    os.replace(device.agent / "cert.pem", device.agent / "cert.new")
    (device.agent / "cert.pem").write_bytes(before[0])
    device.sync()
    assert (device.agent / "cert.pem").read_bytes() == after[0]
    assert not (device.agent / "cert.new").exists()


@pytest.mark.slow
def test_in_real_time(tmp_path: Path) -> None:
    """Certificates that live for a minute are renewed by themselves, and the CA issues one each time."""
    root = tmp_path / "root"
    with lab_ca(tmp_path / "ca", "--validity", "60s") as lab, proxy(tmp_path / "proxy") as gate:
        gate.use(lab)
        gate.profile("short", lan(enrollment={"renewal_period": 30}), directory="/")
        device = gate.device(root, "SHORT", "tc-short")
        with agent(root) as resident:
            until(lambda: serial(device) != 0, say=resident)
            before = serial(device)
            due = device.status()["certificates"][0]["renew_at"]
            until(lambda: serial(device) != before, 70, resident)
            assert due <= time.time() < due + 20
            until(lambda: not resident.children(), say=resident)
            check_certificate(root, "lan", "ec_prime256v1", PASSWORD)
        assert len(lab.issued()) == 2
        states = [row["state"] for row in gate.enrollments()]
        assert states == ["issued"] * 2
