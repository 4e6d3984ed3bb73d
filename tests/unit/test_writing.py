"""Writers of one process share commits: each part is whole or not there, and on disk when its writer goes on."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from igelcert.errors import StorageError
from igelcert.proxy.database import Database

THREADS, EACH = 16, 25


class Counted(Database):
    """commits: how many there were; slow: seconds that each takes; refuses: the next commit fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self.commits, self.slow, self.refuses = 0, 0.0, False
        sa.event.listen(self.engine, "commit", self._commit)
        with self.begin() as connection:
            connection.execute(sa.text("CREATE TABLE t (who INTEGER, what INTEGER, UNIQUE (who, what))"))

    def _commit(self, _connection: sa.Connection) -> None:
        self.commits += 1
        time.sleep(self.slow)
        if self.refuses:
            raise sa.exc.OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))


@pytest.fixture
def db(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "db")


def rows(path: Path) -> set[tuple[int, int]]:
    """As another process sees them."""
    with sqlite3.connect(path / "db") as other:
        return set(other.execute("SELECT who, what FROM t"))


def put(connection: sa.Connection, who: int, what: int) -> None:
    connection.execute(sa.text("INSERT INTO t VALUES (:who, :what)"), {"who": who, "what": what})


def together(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_commits_are_shared_and_each_part_is_there_when_it_returns(db: Counted, tmp_path: Path) -> None:
    db.commits, db.slow = 0, 0.002
    missing = []

    def work(who: int) -> None:
        for what in range(EACH):
            with db.begin() as connection:
                put(connection, who, what)
            if (who, what) not in rows(tmp_path):
                missing.append((who, what))

    together(work)
    assert not missing and len(rows(tmp_path)) == THREADS * EACH
    assert db.commits < THREADS * EACH / 2


def test_a_part_that_fails_takes_no_other_with_it(db: Counted, tmp_path: Path) -> None:
    db.slow = 0.002
    failed = []

    def work(who: int) -> None:
        for what in range(EACH):
            try:
                with db.begin() as connection:
                    put(connection, who, what)
                    if (who + what) % 3 == 0:
                        put(connection, who, what)  # there already
            except sa.exc.IntegrityError:
                failed.append((who, what))

    together(work)
    wanted = {(who, what) for who in range(THREADS) for what in range(EACH)}
    assert set(failed) == {(who, what) for who, what in wanted if (who + what) % 3 == 0}
    assert rows(tmp_path) == wanted - set(failed)


def test_a_commit_that_fails_is_everybodys_failure(db: Counted, tmp_path: Path) -> None:
    db.slow, db.refuses = 0.02, True
    told = []

    def work(who: int) -> None:
        try:
            with db.begin() as connection:
                put(connection, who, 0)
        except StorageError as err:
            told.append(str(err))

    together(work)
    assert len(told) == THREADS and all("full" in text for text in told) and not rows(tmp_path)
    db.refuses = False
    with db.begin() as connection:
        put(connection, 1, 1)
    assert rows(tmp_path) == {(1, 1)}
