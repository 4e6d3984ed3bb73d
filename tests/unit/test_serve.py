"""How a process of the proxy begins."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from igelcert.errors import StorageError, UnavailableError
from igelcert.proxy import serve
from igelcert.proxy.context import Context
from igelcert.proxy.initialise import initialise

ANY = "127.0.0.1:0"
AWAY, WRONG = UnavailableError("the database is away"), StorageError("there is no such table")


class Beginning:
    """A process of a proxy in that directory. left: what still fails, in this order."""

    def __init__(self, data: Path, patch: pytest.MonkeyPatch, *left: Exception, follows: bool) -> None:
        self.left, self.slept = list(left), 0
        self.worker = SimpleNamespace(alive=True)
        opened = Context.open

        def fails(*args: object) -> Context:
            if self.left:
                raise self.left.pop(0)
            return opened(*args)  # type: ignore[arg-type]

        patch.setattr(Context, "open", fails)
        patch.setattr("igelcert.proxy.serve.time.sleep", self._sleep)
        patch.setattr("sys.argv", ["ca-proxy"])
        self.server = serve._Server(Context(data).config, data, ANY, ANY, 0, os.open(os.devnull, os.O_RDONLY))
        self.server._worker, self.server._follows = self.worker, follows

    def _sleep(self, _seconds: float) -> None:
        self.slept += 1
        if self.slept > 3:
            self.worker.alive = False


@pytest.fixture
def data(tmp_path: Path) -> Path:
    initialise(tmp_path / "data", ["localhost"], ANY, ANY)
    return tmp_path / "data"


@pytest.mark.parametrize("follows", [False, True])
def test_it_waits_for_a_database_that_has_just_gone(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, follows: bool
) -> None:
    caplog.set_level("ERROR", "igelcert.proxy")
    begins = Beginning(data, monkeypatch, AWAY, AWAY, follows=follows)
    assert begins.server._opened().data == data
    assert begins.slept == 2 and caplog.messages == [f"this process cannot begin yet: {AWAY}"]


def test_what_no_waiting_mends_ends_the_proxy_that_begins(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = Beginning(data, monkeypatch, WRONG, follows=False)
    with pytest.raises(StorageError, match="no such table"):
        begins.server._opened()


def test_but_never_one_that_serves(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begins = Beginning(data, monkeypatch, WRONG, OSError("no descriptor is left"), follows=True)
    assert begins.server._opened().data == data and begins.slept == 2


def test_it_ends_when_it_is_told_to_while_it_waits(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begins = Beginning(data, monkeypatch, *[AWAY] * 9, follows=False)
    with pytest.raises(SystemExit):
        begins.server._opened()
    assert begins.slept == 4
