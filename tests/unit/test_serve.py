"""How a process of the proxy begins."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from igelcert.errors import StorageError, UnavailableError
from igelcert.proxy import serve
from igelcert.proxy.context import Context
from igelcert.proxy.database import Database
from igelcert.proxy.initialise import initialise

ANY = "127.0.0.1:0"
AWAY = UnavailableError("the database is away", hint="is it running?")
WRONG = StorageError("there is no such table", hint="run: ca-proxy migrate")


class Beginning:
    """A process of a proxy in that directory. left: what still fails, in this order."""

    def __init__(self, data: Path, patch: pytest.MonkeyPatch, *left: Exception, follows: bool) -> None:
        self.left, self.slept = list(left), 0
        self.worker = SimpleNamespace(alive=True, ppid=os.getppid())
        self.open_files: list[int] = []
        check = Database.check

        def fails(db: Database) -> None:
            if self.left:
                raise self.left.pop(0)
            check(db)

        patch.setattr(Database, "check", fails)
        patch.setattr(serve, "time", SimpleNamespace(sleep=self._sleep, monotonic=lambda: float(self.slept)))
        patch.setattr("sys.argv", ["ca-proxy"])
        config = replace(Context(data).config, processes=2)
        self.server = serve._Server(config, data, ANY, ANY, 0, os.open(os.devnull, os.O_RDONLY))
        self.server._worker, self.server._follows = self.worker, follows

    def _sleep(self, _seconds: float) -> None:
        self.slept += 1
        self.open_files.append(len(os.listdir("/proc/self/fd")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    initialise(tmp_path / "data", ["localhost"], ANY, ANY)
    return tmp_path / "data"


@pytest.mark.parametrize("follows", [False, True])
def test_it_waits_for_a_database_that_has_just_gone(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, follows: bool
) -> None:
    caplog.set_level("ERROR", "igelcert.proxy")
    begins = Beginning(data, monkeypatch, *[AWAY] * 9, follows=follows)
    assert begins.server._opened().data == data
    assert begins.slept == 9 and caplog.messages == [f"this process cannot begin yet: {AWAY}"]
    assert len(set(begins.open_files)) == 1, "each try costs nothing"


@pytest.mark.parametrize(("why", "seconds", "code"), [(WRONG, 0, serve.WRONG), (AWAY, 60, serve.GONE)])
def test_the_first_ones_end_the_proxy_in_words(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    why: StorageError,
    seconds: int,
    code: int,
) -> None:
    """At once where no waiting mends it, and when the database stays away."""
    caplog.set_level("ERROR", "igelcert.proxy")
    begins = Beginning(data, monkeypatch, *[why] * 99, follows=False)
    with pytest.raises(SystemExit) as ended:
        begins.server._opened()
    assert ended.value.code == code and begins.slept == seconds
    assert caplog.messages[-1] == f"{why} ({why.hint})"


def test_a_mistake_of_ours_is_shown_whole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begins = Beginning(data, monkeypatch, KeyError("x"), follows=False)
    with pytest.raises(KeyError):
        begins.server._opened()


def test_who_follows_ends_no_others(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = (WRONG, OSError("no descriptor is left"), KeyError("x"), *[AWAY] * 99)
    begins = Beginning(data, monkeypatch, *left, follows=True)
    assert begins.server._opened().data == data and begins.slept == len(left)


@pytest.mark.parametrize("gone", [{"alive": False}, {"ppid": 1}], ids=["told to", "alone"])
def test_it_ends_while_it_waits(data: Path, monkeypatch: pytest.MonkeyPatch, gone: dict[str, int]) -> None:
    """When it is told to, and when the main process died."""
    begins = Beginning(data, monkeypatch, *[AWAY] * 99, follows=True)
    vars(begins.worker).update(gone)
    with pytest.raises(SystemExit) as ended:
        begins.server._opened()
    assert ended.value.code == 0 and begins.slept == 1


@pytest.mark.parametrize(("kind", "code"), [("StorageError", 1), ("UnavailableError", 75)])
def test_what_the_proxy_ends_with_when_its_processes_cannot_begin(data: Path, kind: str, code: int) -> None:
    """The main process found nothing wrong."""
    program = f"""
import sys
from pathlib import Path
from igelcert import errors
from igelcert.proxy import serve

def fails(*_):
    raise errors.{kind}("the disk is full", hint="make room")

sys.argv = ["ca-proxy"]
serve.FIRST_SECONDS = 0
serve._Server._stand_on = fails
sys.exit(serve.serve(Path({str(data)!r}), {ANY!r}, {ANY!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert "ERROR the disk is full (make room)" in done.stderr and "Traceback" not in done.stderr
    assert not (data / "run.json").exists()
