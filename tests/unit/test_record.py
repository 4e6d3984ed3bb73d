"""Records behave as frozen dataclasses with slots do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from igelcert.model import CsrSpec, Subject, SubjectAltName
from igelcert.record import field, fields, record, replace

ROOT = Path(__file__).resolve().parents[2]


@record
class Mine:
    """With a default, a hidden field, and a rule."""

    name: str
    secret: str = field(default="s3cret", repr=False)
    size: int = 1
    key: bytes = field(repr=False, default=b"")

    LIMIT = 10

    def __post_init__(self) -> None:
        if self.size > self.LIMIT:
            raise ValueError("size")
        object.__setattr__(self, "name", self.name.upper())

    @property
    def twice(self) -> int:
        return 2 * self.size


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    name: str
    secret: str = dataclasses.field(default="s3cret", repr=False)
    size: int = 1
    key: bytes = dataclasses.field(repr=False, default=b"")

    LIMIT = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.upper())


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("a",), {}),
    (("a", "b", 3, b"k"), {}),
    ((), {"name": "a", "size": 2}),
    (("a",), {"key": b"x"}),
    ((), {}),
    ((), {"size": 1}),
    (("a", "b", 3, b"k", 5), {}),
    (("a",), {"name": "b"}),
    (("a",), {"other": 1}),
]


@pytest.mark.parametrize(("args", "named"), CALLS)
def test_as_a_dataclass(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    try:
        theirs = Theirs(*args, **named)
    except TypeError:
        with pytest.raises(TypeError):
            Mine(*args, **named)
        return
    mine = Mine(*args, **named)
    assert [getattr(mine, name) for name in fields(mine)] == list(dataclasses.astuple(theirs))
    assert repr(mine) == repr(theirs).replace("Theirs", "Mine")
    assert mine == Mine(*args, **named) and hash(mine) == hash(Mine(*args, **named))
    assert mine != theirs and mine != replace(mine, size=7)


def test_what_it_holds_stays() -> None:
    mine = Mine("a")
    for act in (
        lambda: setattr(mine, "size", 2),
        lambda: setattr(mine, "other", 2),
        lambda: delattr(mine, "size"),
    ):
        with pytest.raises(AttributeError):
            act()
    assert mine.twice == 2 and not hasattr(mine, "__dict__") and Mine.LIMIT == 10
    assert fields(Mine) == fields(mine) == ("name", "secret", "size", "key")
    assert (
        "Mine.twice" in Mine.twice.fget.__qualname__
        and Mine.__doc__ == "With a default, a hidden field, and a rule."
    )


def test_another_one_is_checked_too() -> None:
    mine = Mine("a", size=3)
    assert replace(mine, name="b") == Mine("b", size=3) and mine.name == "A"
    with pytest.raises(ValueError, match="size"):
        replace(mine, size=11)
    with pytest.raises(TypeError):
        replace(mine, other=1)


def test_copies() -> None:
    spec = CsrSpec("rsa_2048", Subject(cn="tc"), SubjectAltName(hostname=("tc.example",)), "s3cret")
    for other in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert other == spec and other is not spec and other.challenge == "s3cret"
    assert "s3cret" not in repr(spec)


HEAVY = {"argparse", "dataclasses", "email", "http.client", "inspect", "logging", "pathlib", "shutil", "subprocess",
         "tempfile", "tomllib", "typing", "urllib.request"}  # fmt: skip


def test_what_a_run_loads() -> None:
    """On a small device the imports are most of a run that has nothing to do."""
    code = "import sys; sys.path[:] = sys.argv[1:]; import igelcert.device.paced; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT), *sys.path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert HEAVY.isdisjoint(done.stdout.split())
