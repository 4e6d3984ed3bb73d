"""Who lives: said by the kernel, whatever became of the main process."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from igelcert.proxy.lives import Lives


def _live(path: Path, pipe: Connection) -> None:
    lives = Lives(path)
    pipe.send(lives.own)
    while (number := pipe.recv()) is not None:
        pipe.send(lives.has(number))


class Other:
    """Another process that serves."""

    def __init__(self, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_live, args=(path, theirs))
        self.process.start()
        theirs.close()
        self.own: int = self._pipe.recv()

    def has(self, number: int) -> bool:
        self._pipe.send(number)
        return bool(self._pipe.recv())

    def end(self, *, kill: bool) -> None:
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGKILL) if kill else self._pipe.send(None)
        self.process.join(20)


def test_who_lives_and_who_does_not(tmp_path: Path) -> None:
    one, two, three = (Other(tmp_path / "lives.lock") for _ in range(3))
    assert all(each.has(other.own) for each in (one, two, three) for other in (one, two, three))
    two.end(kill=True)
    three.end(kill=False)
    again = Other(tmp_path / "lives.lock")
    for _ in range(2):  # looking takes nothing from anybody
        assert one.has(one.own) and one.has(again.own) and again.has(one.own)
        assert not any(each.has(gone.own) for each in (one, again) for gone in (two, three))
    assert not one.has(4711)
    for each in (one, again):
        each.end(kill=False)


def test_where_nothing_can_be_locked_no_descriptor_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no locks"):
        Lives(tmp_path / "lives.lock")
    assert len(os.listdir("/proc/self/fd")) == before
