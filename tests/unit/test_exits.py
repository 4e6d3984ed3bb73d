"""Exit codes of ca-proxy: 75 for what another try may mend, 1 for what none does."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from igelcert.proxy import database
from igelcert.proxy.cli import main
from igelcert.proxy.postgres import passes
from tests.support.stores import Stores


def test_a_database_that_another_process_holds(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    with (
        stores.fresh("sqlite", tmp_path / "data") as made,
        closing(sqlite3.connect(made.data / "proxy.db")) as other,
    ):
        add = ["device", "add", "--unit-id", "A1", "--data", str(made.data)]
        other.execute("BEGIN IMMEDIATE")
        assert main(add) == 75 and "database is locked" in capsys.readouterr().err
        other.rollback()
        assert main(add) == 0
        with closing(sqlite3.connect(made.data / "proxy.db")) as broken:
            broken.execute("PRAGMA writable_schema=ON")
            broken.execute("DELETE FROM sqlite_schema WHERE name = 'devices'")
            broken.commit()
        assert main(["device", "list", "--data", str(made.data)]) == 1


class Refusal(Exception):
    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("err", "expected"),
    [
        (Refusal("connection failed: Connection refused"), True),
        (Refusal("connection timeout expired"), True),
        (Refusal("connection failed: FATAL:  the database system is starting up"), True),
        (Refusal("connection failed: FATAL:  sorry, too many clients already"), True),
        (Refusal('connection failed: FATAL:  password authentication failed for user "x"'), False),
        (Refusal('connection failed: FATAL:  database "x" does not exist'), False),
        (Refusal("terminating connection due to administrator command", "57P01"), True),
        (Refusal("canceling statement due to statement timeout", "57014"), True),
        (Refusal("canceling statement due to lock timeout", "55P03"), True),
        (Refusal("could not extend file: No space left on device", "53100"), False),
    ],
)
def test_what_postgresql_says_that_passes(err: Refusal, expected: bool) -> None:
    assert passes(err) is expected
