"""A PostgreSQL cluster of the tests' own: made in a temporary directory, for one run of pytest, by a user that is not
root. It listens on loopback and on a socket in that directory."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.support.peers import missing
from tests.support.ports import free_port

__all__ = ["Cluster", "cluster"]

START_SECONDS = 90
PASSWORD = "not / a & secret"
# nothing of it need outlive the machine; what is committed outlives PostgreSQL
SETTINGS = """
fsync = off
full_page_writes = off
listen_addresses = '127.0.0.1'
max_connections = 120
shared_buffers = 16MB
autovacuum = off
timezone = 'UTC'
lc_messages = 'C'
"""


@dataclass
class Cluster:
    """user: its administrator, who comes in by the socket without a password; over TCP, a password is asked for."""

    directory: Path
    port: int
    bin: Path
    user: str = "tests"
    process: subprocess.Popen[bytes] | None = None
    made: int = field(default=0)

    def url(self, database: str, *, tcp: bool = False) -> str:
        """As administrator. tcp: the password is needed, and not in it."""
        where = f"127.0.0.1:{self.port}" if tcp else ""
        more = "" if tcp else f"?host={self.directory}&port={self.port}"
        return f"postgresql://{self.user}@{where}/{database}{more}"

    def sql(self, statement: str | sql.Composed, database: str = "postgres") -> list[Any]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def create(self, template: str = "template0") -> str:
        """A new database, its name; as the template is."""
        self.made += 1
        name = f"test_{self.made}"
        self.sql(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
        return name

    def drop(self, name: str) -> None:
        self.sql(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        args = [
            self.bin / "postgres",
            "-D",
            self.directory / "data",
            "-k",
            self.directory,
            "-p",
            str(self.port),
        ]
        self.process = subprocess.Popen(args, stdout=log, stderr=log, **_as_nobody())
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            with contextlib.suppress(psycopg.OperationalError):
                self.sql("SELECT 1")
                return
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.05)

    def stop(self, *, crash: bool = False) -> None:
        """At once; crash: without a word, as when power fails."""
        assert self.process is not None
        if crash:
            # the postmaster's children end when they see that it is gone
            self.process.send_signal(signal.SIGQUIT)
        else:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def _as_nobody() -> dict[str, Any]:
    """PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    raise AssertionError("no user that is not root")


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    named = shutil.which("initdb")
    return Path(named).resolve().parent if named else missing("postgresql")


@contextlib.contextmanager
def cluster(settings: str = "") -> Iterator[Cluster]:
    """Made, running, and ended with the block. settings: lines for its configuration, after ours."""
    programs = _programs()
    # not below pytest's own directories: nobody else may enter those, and a socket's name has 107 octets at most
    directory = Path(tempfile.mkdtemp(prefix="igelcert-pg-"))
    try:
        yield from _running(Cluster(directory, free_port(), programs), settings)
    finally:
        shutil.rmtree(directory)


def _running(made: Cluster, settings: str) -> Iterator[Cluster]:
    directory = made.directory
    account = _as_nobody()
    if account:
        os.chown(directory, account["user"], account["group"])
    secret = directory / "password"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o644)
    subprocess.run(
        [made.bin / "initdb", "-D", directory / "data", "-U", made.user, "--no-sync", "--no-instructions", "-E", "UTF8",
         "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile", secret],
        check=True, capture_output=True, cwd=directory, **account,
    )  # fmt: skip
    with (directory / "data/postgresql.conf").open("a") as file:
        file.write(SETTINGS + settings)
    made.start()
    try:
        yield made
    finally:
        made.stop()
