"""Hooks of the image: whatever they do, a run ends, and knows which failed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from igelcert.device import hooks
from igelcert.device.config import Config
from igelcert.device.hooks import Event
from igelcert.device.log import Log
from tests.support.until import until

EVENT = Event("renewed", "lan & <co> 'x'", "/wfs/igel-certs/lan", "due for renewal; $(touch no) `id` > no")


class Recorder(Log):
    def __init__(self) -> None:
        super().__init__("igel-certs", screen=False, level="debug")
        self.lines: list[str] = []

    def _write(self, level: str, text: str) -> None:
        self.lines.append(f"{level}: {text}")


@pytest.fixture
def log() -> Recorder:
    return Recorder()


class Hooks:
    def __init__(self, root: Path) -> None:
        self.config = Config(root=str(root), hook_timeout=20)
        self.dir = root / "etc/igelcert/hooks.d"
        self.dir.mkdir(parents=True)
        self.out = root / "out"

    def add(self, name: str, text: str, mode: int = 0o755) -> Path:
        path = self.dir / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return path


@pytest.fixture
def made(tmp_path: Path) -> Hooks:
    return Hooks(tmp_path)


def test_without_hooks(tmp_path: Path, log: Recorder) -> None:
    assert hooks.run(Config(root=str(tmp_path)), EVENT, log) == hooks.Heard((), "") and log.lines == []


def test_event_and_variables_and_nothing_else(
    made: Hooks, log: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    made.add("10-show", f'printf "%s\\n" "$#" "$1" > {made.out}; env | sort >> {made.out}; pwd >> {made.out}')
    assert hooks.run(made.config, EVENT, log).failed == ""
    said = made.out.read_text().splitlines()
    assert said[:2] == ["1", "renewed"] and said[-1] == "/"
    assert f"IGELCERT_FRIENDLY_NAME={EVENT.friendly_name}" in said
    assert f"IGELCERT_DIR={EVENT.directory}" in said
    assert f"IGELCERT_REASON={EVENT.reason}" in said
    assert {line.partition("=")[0] for line in said[2:-1]} == {
        "IGELCERT_DIR", "IGELCERT_FRIENDLY_NAME", "IGELCERT_REASON", "LANG", "PATH", "PWD",
    }  # fmt: skip
    assert not (made.dir / "no").exists() and not Path("/no").exists()


def test_in_the_order_of_their_names_and_all_of_them(made: Hooks, log: Recorder) -> None:
    for name, code in (("20-b", 3), ("10-a", 0), ("30-c", 0)):
        made.add(name, f"echo {name} >> {made.out}; exit {code}")
    assert hooks.run(made.config, EVENT, log).failed == "20-b failed with exit status 3"
    assert made.out.read_text().split() == ["10-a", "20-b", "30-c"]
    # who has heard is left in peace
    again = hooks.run(made.config, EVENT, log, ("10-a", "30-c"))
    assert again == hooks.Heard(("10-a", "30-c"), "20-b failed with exit status 3")
    assert made.out.read_text().split() == ["10-a", "20-b", "30-c", "20-b"]


def test_what_is_no_hook(made: Hooks, log: Recorder) -> None:
    made.add("README", "echo readme", 0o644)
    made.add("10-old.dpkg-old", f"echo old >> {made.out}")
    made.add("10-backup~", f"echo backup >> {made.out}")
    made.add(".hidden", f"echo hidden >> {made.out}")
    made.add("20-open", f"echo open >> {made.out}", 0o777)
    (made.dir / "30-directory").mkdir()
    (made.dir / "40-gone").symlink_to("nowhere")
    assert hooks.run(made.config, EVENT, log).failed == ""
    assert not made.out.exists()
    assert "warning: hook 20-open is passed over: others than its owner may write it" in log.lines
    assert [line for line in log.lines if "README" in line] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a file away")
def test_a_hook_of_somebody_else(made: Hooks, log: Recorder) -> None:
    os.chown(made.add("10-theirs", f"touch {made.out}"), 65_534, 65_534)
    assert hooks.run(made.config, EVENT, log).failed == "" and not made.out.exists()
    assert "warning: hook 10-theirs is passed over: it belongs to somebody else" in log.lines


def test_one_that_cannot_start(made: Hooks, log: Recorder) -> None:
    path = made.add("10-strange", "")
    path.write_text("#!/nowhere/interpreter\n")
    assert (
        hooks.run(made.config, EVENT, log).failed == "10-strange cannot be started: No such file or directory"
    )
    path.write_bytes(b"\x7fELF not really")
    assert hooks.run(made.config, EVENT, log).failed == "10-strange cannot be started: Exec format error"


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_one_that_hangs_is_stopped_with_all_it_started(made: Hooks, log: Recorder) -> None:
    made.config = Config(root=made.config.root, hook_timeout=3)
    made.add("10-hangs", f"trap '' TERM; sleep 300 & echo $! > {made.out}; wait; wait")
    began = time.monotonic()
    assert (
        hooks.run(made.config, EVENT, log).failed == "10-hangs did not end within 3 seconds and was stopped"
    )
    assert time.monotonic() - began < 60
    started = int(made.out.read_text())
    until(lambda: has_ended(started), say="what it started still runs")


def test_one_that_leaves_a_daemon_behind_is_done(made: Hooks, log: Recorder) -> None:
    """The daemon holds the pipe; nobody waits for it."""
    made.add("10-daemon", f"sleep 20 & echo $! > {made.out}; echo started")
    began = time.monotonic()
    try:
        assert hooks.run(made.config, EVENT, log).failed == ""
        assert time.monotonic() - began < 10
        os.kill(int(made.out.read_text()), 0)
    finally:
        os.kill(int(made.out.read_text()), 9)
    assert "info: hook 10-daemon: started" in log.lines


def test_one_that_writes_megabytes(made: Hooks, log: Recorder) -> None:
    made.add("10-lines", "yes a line of text | head -c 8000000")
    made.add("20-no-lines", "head -c 8000000 /dev/zero; exit 4")
    assert hooks.run(made.config, EVENT, log).failed == "20-no-lines failed with exit status 4"
    assert len(log.lines) < 120 and max(map(len, log.lines)) < 400


def test_one_that_reads_its_input(made: Hooks, log: Recorder) -> None:
    """Ours is not for it."""
    made.add("10-reads", "read line && exit 5; exit 0")
    reading, writing = os.pipe()
    os.write(writing, b"a password\n")
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert hooks.run(made.config, EVENT, log).failed == ""
    finally:
        os.dup2(kept, 0)
        for handle in (kept, reading, writing):
            os.close(handle)


def test_one_that_is_ended_by_a_signal(made: Hooks, log: Recorder) -> None:
    made.add("10-dies", "kill -9 $$")
    assert hooks.run(made.config, EVENT, log).failed == "10-dies was ended by signal 9"
