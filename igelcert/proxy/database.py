"""The database: engine, schema version, and small functions for what several modules share."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, OperationalError

from ..errors import StorageError
from . import schema

__all__ = ["Database", "now"]

BUSY_SECONDS = 10


_META = sa.select(schema.meta.c.value).where(schema.meta.c.key == sa.bindparam("name"))


def now() -> int:
    return int(time.time())


class Database:
    """An engine and its transactions. Safe for threads."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_pragmas)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        self._reader = self.engine.execution_options(reading=True)
        self._local = threading.local()
        self._writer = threading.Lock() if self.engine.dialect.name == "sqlite" else None

    @classmethod
    def sqlite(cls, path: Path) -> Database:
        return cls(f"sqlite:///{path}")

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction that writes; what the database refuses becomes a StorageError in words."""
        with self._turn(), self._transaction(self.engine) as connection:
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """SQLite has one writer at a time, and who finds it busy sleeps and looks again, for up to a tenth of a second:
        the threads of this process queue up here instead."""
        if self._writer is None:
            yield
        elif self._writer.acquire(timeout=BUSY_SECONDS):
            try:
                yield
            finally:
                self._writer.release()
        else:
            raise StorageError("the database cannot be used now: others have been writing for too long")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, and waits for no writer. One within another of the same thread is the same:
        what a request is judged by is one view of the database, and costs one transaction."""
        outer: sa.Connection | None = getattr(self._local, "reading", None)
        if outer is not None:
            yield outer
            return
        with self._transaction(self._reader) as connection:
            self._local.reading = connection
            try:
                yield connection
            finally:
                self._local.reading = None

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except OperationalError as err:
            text = str(err.orig).partition("\n")[0]
            hint = (
                "make room and try again" if "full" in text else "look at the database file and its directory"
            )
            raise StorageError(f"the database cannot be used now: {text}", hint=hint) from None
        except sa.exc.IntegrityError:
            raise
        except DatabaseError as err:
            raise StorageError(f"the database refused: {str(err.orig).partition(chr(10))[0]}") from None

    def check(self) -> None:
        """StorageError unless the schema is this program's."""
        with self.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                raise StorageError(
                    "the database is empty",
                    hint="is this the right directory? restore proxy.db from a backup",
                )
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        if found != schema.HEAD:
            raise StorageError(
                f"the database has schema {found}, this program wants {schema.HEAD}",
                hint="run: ca-proxy migrate",
            )

    def migrate(self) -> None:
        """Brings the schema up to this program's; nothing to do is fine."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        self.engine.dispose()

    # ---- meta and audit -------------------------------------------------------------------------

    def meta(self, key: str, default: str = "") -> str:
        with self.read() as connection:
            return self.meta_in(connection, key, default)

    @staticmethod
    def meta_in(connection: sa.Connection, key: str, default: str = "") -> str:
        found = connection.execute(_META, {"name": key}).scalar()
        return default if found is None else str(found)

    @staticmethod
    def put_meta(connection: sa.Connection, key: str, value: str) -> None:
        connection.execute(schema.meta.delete().where(schema.meta.c.key == key))
        connection.execute(schema.meta.insert().values(key=key, value=value))

    @staticmethod
    def record(connection: sa.Connection, actor: str, action: str, detail: str) -> None:
        """A line of the audit log; never a secret."""
        connection.execute(
            schema.audit.insert().values(at=now(), actor=actor[:128], action=action, detail=detail[:1000])
        )


def _sqlite_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _sqlite_begin alone
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_SECONDS * 1000}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    # IMMEDIATE: a transaction that starts by reading and then writes would fail instead of waiting
    connection.exec_driver_sql(
        "BEGIN IMMEDIATE" if not connection.get_execution_options().get("reading") else "BEGIN"
    )
