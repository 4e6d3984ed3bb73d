"""What happens around a run while it works: /wfs goes away, hooks misbehave, somebody else is at work, settings change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from igelcert.device import files
from tests.support.badca import Answer, BadCa, bad_ca
from tests.support.servers import PASSWORD, Host, device, straight
from tests.support.tree import check_certificate, snapshot

EX_OK, EX_FAILED, EX_TEMPFAIL = 0, 1, 75


class SlowCa:
    """A CA that answers when it is told to. asked: a request is there."""

    def __init__(self, ca: BadCa) -> None:
        self.ca = ca
        self.asked, self.go = threading.Event(), threading.Event()
        self.csrs: list[bytes] = []
        ca._slow = self._slow  # type: ignore[attr-defined]
        ca.mode = "slow"
        self.go.set()

    def _slow(self, csr: x509.CertificateSigningRequest) -> Answer:
        self.csrs.append(csr.tbs_certrequest_bytes)
        self.asked.set()
        assert self.go.wait(30)
        return self.ca._good(csr)

    def hold(self) -> None:
        self.asked.clear()
        self.go.clear()
        self.csrs.clear()


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[SlowCa]:
    with bad_ca(tmp_path / "ca") as made:
        slow = SlowCa(made)
        try:
            yield slow
        finally:
            slow.go.set()


@pytest.fixture
def host(ca: SlowCa, tmp_path: Path) -> Host:
    """A device with the certificate "lan"."""
    made = device(tmp_path / "root", "tc-17", "SEVENTEEN", hook_timeout=30)
    made.trust(ca.ca.trust.read_bytes())
    made.wants(straight("lan", ca.ca.port))
    made.do()
    return made


@contextlib.contextmanager
def running(host: Host, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(host.command(*args), stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def end(process: subprocess.Popen[str], code: int) -> str:
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in said, (process.returncode, said)
    return said


def serial(host: Host, name: str = "lan") -> int:
    return x509.load_pem_x509_certificate((host.home(name) / "cert.pem").read_bytes()).serial_number


# ---- /wfs -----------------------------------------------------------------------------------------


def test_wfs_goes_away_and_comes_back(host: Host, ca: SlowCa) -> None:
    """It is said, and no second tree is begun in its place; the request that the CA knows is asked again."""
    wfs, away = host.root / "wfs", host.root / "away"
    before = snapshot(host.home().resolve())
    ca.hold()
    with running(host, "renew", "--force") as process:
        assert ca.asked.wait(20)
        wfs.rename(away)
        wfs.mkdir()
        ca.go.set()
        said = end(process, EX_FAILED)
    assert "error: lan: cannot " in said and str(wfs) in said
    assert list(wfs.iterdir()) == []
    wfs.rmdir()
    away.rename(wfs)
    assert snapshot(host.home().resolve()) == before
    host.do("apply")
    assert len(ca.csrs) == 2 and len(set(ca.csrs)) == 1
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)
    assert host.litter() == []


def test_no_wfs_at_all(host: Host) -> None:
    """Without --root nothing is made in the place of a file system that is not mounted."""
    config = host.root / "etc/igelcert/device.toml"
    config.write_text(f'unit_id = "X"\nwfs = "{host.root}/nowhere"\n')
    command = [host.command()[0], "apply", "--config", str(config), "--settings", str(host.settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == EX_FAILED and "nowhere is not there" in done.stderr
    assert not (host.root / "nowhere").exists()


# ---- hooks ----------------------------------------------------------------------------------------


def hook(host: Host, text: str, name: str = "10-test") -> None:
    path = host.root / "etc/igelcert/hooks.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def hook_trouble(host: Host) -> dict[str, Any] | None:
    found: dict[str, Any] | None = host.status()[0].get("hooks")
    return found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sleep 60", "did not end within 1 seconds"),
        ("trap '' TERM; sleep 60 & wait; sleep 60", "did not end within 1 seconds"),
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "signal 9"),
        ("exec /nowhere/at/all", "exit status 127"),
    ],
)
def test_a_hook_that_fails(host: Host, text: str, says: str) -> None:
    """The certificate is renewed all the same; the next run calls the hook again, until it succeeds."""
    hook(host, text)
    config = host.root / "etc/igelcert/device.toml"
    patient = config.read_text()
    if "within" in says:
        config.write_text(patient.replace("hook_timeout = 30", "hook_timeout = 1"))
    before, began = serial(host), time.monotonic()
    assert says in host.do("renew", "--force", code=EX_TEMPFAIL)
    config.write_text(patient)
    assert time.monotonic() - began < 30 and serial(host) != before
    trouble = hook_trouble(host)
    assert trouble and trouble["event"] == "renewed" and says in trouble["error"]
    fresh = serial(host)
    hook(host, 'echo "$1 $IGELCERT_FRIENDLY_NAME $IGELCERT_REASON" >"${0%/*}/.heard"')
    host.do("apply")
    assert (host.root / "etc/igelcert/hooks.d/.heard").read_text() == "renewed lan forced\n"
    assert hook_trouble(host) is None and serial(host) == fresh


def test_a_hook_whose_program_is_missing(host: Host) -> None:
    path = host.root / "etc/igelcert/hooks.d/10-gone"
    path.parent.mkdir()
    path.symlink_to("/nowhere/at/all")
    hook(host, 'touch "${0%/*}/.heard"', "20-after")
    host.do("renew", "--force")
    assert (path.parent / ".heard").exists()


def test_a_hook_that_writes_megabytes(host: Host) -> None:
    """It neither hangs nor fills the log."""
    hook(host, "head -c 20000000 /dev/zero | tr '\\0' x; yes | head -c 20000000; exit 0")
    began = time.monotonic()
    said = host.do("renew", "--force", "--verbose")
    assert time.monotonic() - began < 29 and len(said) < 20_000 and hook_trouble(host) is None


def test_a_hook_whose_child_stays(host: Host) -> None:
    """A service that a hook starts holds nothing up."""
    hook(host, "sleep 20 & exit 0")
    began = time.monotonic()
    host.do("renew", "--force")
    assert time.monotonic() - began < 15 and hook_trouble(host) is None


def test_a_removed_certificate_that_is_wanted_again(host: Host, ca: SlowCa) -> None:
    """A removal that hooks have not heard of does not outlive the certificate's return."""
    hook(host, "exit 0")
    host.do()
    hook(host, "exit 1")
    host.wants()
    host.do(code=EX_TEMPFAIL)
    removed = host.certs / ".store/.removed.json"
    assert "lan" in json.loads(removed.read_text())
    hook(host, 'echo "$1" >>"${0%/*}/.heard"')
    host.wants(straight("lan", ca.ca.port))
    host.do()
    assert (host.root / "etc/igelcert/hooks.d/.heard").read_text() == "enrolled\n"
    assert not removed.exists()


# ---- somebody else at work ------------------------------------------------------------------------


def test_two_at_once(host: Host, ca: SlowCa) -> None:
    """The second waits, and finds everything done."""
    host.wants(straight("lan", ca.ca.port, subject={"org": "Another"}))
    ca.hold()
    with running(host, "apply") as first, running(host, "apply") as second:
        assert ca.asked.wait(20)
        time.sleep(1.5)
        assert first.poll() is None and second.poll() is None
        ca.go.set()
        end(first, EX_OK)
        end(second, EX_OK)
    assert len(ca.csrs) == 1
    check_certificate(host.root, "lan", "ec_prime256v1", PASSWORD, authorities=1)


def replace_settings(host: Host, *certs: dict[str, Any]) -> None:
    """As whoever does it well: in one rename."""
    fresh = host.settings.with_suffix(".fresh")
    fresh.write_text(json.dumps({"certs": list(certs)}))
    fresh.rename(host.settings)


def test_settings_replaced_while_enrolling(host: Host, ca: SlowCa) -> None:
    """The run ends what it began; the one that was called for the new settings waits, and applies them."""
    port = ca.ca.port
    replace_settings(host, straight("lan", port, subject={"org": "First"}), straight("old", port))
    ca.hold()
    with running(host, "apply") as first:
        assert ca.asked.wait(20)
        replace_settings(host, straight("lan", port, subject={"org": "Second"}), straight("new", port))
        with running(host, "apply") as second:
            time.sleep(1.0)
            ca.go.set()
            end(first, EX_OK)
            end(second, EX_OK)
    assert sorted(path.name for path in host.certs.iterdir() if path.name[0] != ".") == ["lan", "new"]
    cert = x509.load_pem_x509_certificate((host.home() / "cert.pem").read_bytes())
    assert "O=Second" in cert.subject.rfc4514_string()
    for name in ("lan", "new"):
        check_certificate(host.root, name, "ec_prime256v1", PASSWORD, authorities=1)
    assert host.litter() == []


def test_settings_replaced_while_waiting(host: Host, ca: SlowCa) -> None:
    """A run that waited for another does not bring back what that one had left behind."""
    with (host.certs / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with running(host, "apply") as process:
            _wait_for_lock(process.pid, host.certs / ".lock")
            replace_settings(host, straight("lan", ca.ca.port), straight("vpn", ca.ca.port))
            fcntl.flock(held, fcntl.LOCK_UN)
            end(process, EX_OK)
    assert host.home("vpn").exists()


def _wait_for_lock(pid: int, lock: Path) -> None:
    """Until that process has the lock file open: it has read its settings by then."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if any(os.path.samefile(each, lock) for each in Path(f"/proc/{pid}/fd").iterdir()):
                return
        time.sleep(0.02)
    raise AssertionError("the run does not get as far as the lock")


# ---- leftovers ------------------------------------------------------------------------------------


def test_what_others_left_is_not_swept(host: Host) -> None:
    """Only what our own runs could have left goes, and nothing that one at work is writing just now."""
    store = host.store
    foreign = [store / "Their CA.pem.new1", store / "something.new", store / ".backup.new12"]
    at_work = store / f"Test CA.pem.new{os.getpid()}"
    ours = [store / "Test CA.pem.new999999", host.certs / ".store/.castore.json.new999999"]
    for path in (*foreign, at_work, *ours):
        path.write_text("x")
    link = store / ".deadbeef.0.new999999"
    link.symlink_to("Test CA.pem")
    theirs = store / ".deadbeef.1.new999999"
    theirs.symlink_to("Their CA.pem")
    host.do("apply")
    assert all(path.exists() for path in (*foreign, at_work)) and theirs.is_symlink()
    assert not any(path.exists() for path in ours) and not link.is_symlink()


def test_a_friendly_name_like_a_temporary_file(host: Host, ca: SlowCa) -> None:
    host.wants(straight("lan", ca.ca.port), straight("x.new5", ca.ca.port))
    host.do()
    fresh = serial(host, "x.new5")
    host.do()
    assert serial(host, "x.new5") == fresh


def test_sweeping_keeps_directories(tmp_path: Path) -> None:
    (tmp_path / "x.new999999").mkdir()
    (tmp_path / "y.new999999").write_text("")
    files.sweep(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["x.new999999"]
