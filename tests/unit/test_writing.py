"""Writers of one process share commits: each part is whole or not there, and on disk when its writer goes on."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
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
    db.commits, db.slow = 0, 0.02
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


PROCESS = """
import sys, time
from pathlib import Path
import sqlalchemy as sa
from igelcert.proxy.database import Database
place, who, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
db = Database.sqlite(place / "db")
db.share(place / "lock")
print("ready", flush=True)
sys.stdin.readline()
for what in range(count):
    with db.begin() as connection:
        connection.execute(sa.text("INSERT INTO t VALUES (:who, :what)"), {"who": who, "what": what})
        time.sleep(0.002)
"""


def run_processes(place: Path, count: int, each: int) -> list[subprocess.Popen[str]]:
    args = [sys.executable, "-c", PROCESS, str(place)]
    made = [
        subprocess.Popen(
            [*args, str(number), str(each)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(count)
    ]
    for process in made:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in made:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return made


def test_processes_write_beside_each_other(db: Counted, tmp_path: Path) -> None:
    db.close()
    for process in run_processes(tmp_path, 4, 60):
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
    assert rows(tmp_path) == {(who, what) for who in range(4) for what in range(60)}


def test_who_writes_waits_for_the_lock_and_readers_do_not(db: Counted, tmp_path: Path) -> None:
    db.share(tmp_path / "lock")
    other = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    done = threading.Event()

    def write() -> None:
        with db.begin() as connection:
            put(connection, 1, 1)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.3)
    with db.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM t")).scalar() == 0
    os.close(other)
    assert done.wait(30)
    thread.join()
    with pytest.raises(ValueError, match="no"), db.begin() as connection:
        put(connection, 2, 2)
        raise ValueError("no")
    with (tmp_path / "lock").open() as file:  # given back after a failure, too
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_that_dies_in_its_turn_holds_up_nobody(db: Counted, tmp_path: Path) -> None:
    db.close()
    dying, going_on = run_processes(tmp_path, 2, 400)
    time.sleep(0.3)
    os.kill(dying.pid, signal.SIGSTOP)  # with or without the lock
    os.kill(dying.pid, signal.SIGKILL)
    dying.wait(10)
    going_on.communicate(timeout=60)
    assert going_on.returncode == 0
    assert {what for who, what in rows(tmp_path) if who == 1} == set(range(400))


def test_the_lock_is_no_file_that_others_could_take(db: Counted, tmp_path: Path) -> None:
    db.share(tmp_path / "lock")
    assert (tmp_path / "lock").stat().st_mode & 0o077 == 0
