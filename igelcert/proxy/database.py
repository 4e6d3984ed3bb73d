"""The database: SQLite, or PostgreSQL for several proxies; transactions, schema version, what several modules share.

The same statements run on both. What differs is here and in postgres.py. SQLite has one writer at a time; on PostgreSQL
`begin` takes a lock that makes it so, and transactions that bear others beside them say so.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.ext.compiler import compiles

from ..errors import StorageError, UnavailableError
from . import postgres, schema
from .turns import waiting
from .writing import Writing

__all__ = ["Database", "moment", "now"]

T = TypeVar("T")

BUSY_SECONDS = 10
CONNECTIONS = 20
WRITER = 0x6967_656C  # the advisory lock of who writes alone
READ_ONLY = "25006"
PROBE = "probe"  # in meta: when somebody last looked whether this can be written
PROBE_SECONDS = 5.0


_META = sa.select(schema.meta.c.value).where(schema.meta.c.key == sa.bindparam("name"))
_AUDIT = schema.audit.insert()
_LOCK = sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("number", type_=sa.BigInteger)))
_TRY_LOCK = sa.select(sa.func.pg_try_advisory_lock(sa.bindparam("number", type_=sa.BigInteger)))
_UNLOCK = sa.select(sa.func.pg_advisory_unlock(sa.bindparam("number", type_=sa.BigInteger)))


def now() -> int:
    return int(time.time())


class moment(sa.sql.functions.FunctionElement[int]):
    """The database's clock in a statement, seconds since 1970: the one clock that all proxies share. A FunctionElement:
    statements with an element of another kind are compiled anew each time, which costs more than to run them."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(moment, "sqlite")
def _sqlite_moment(_element: moment, _compiler: Any, **_options: Any) -> str:
    return "CAST(strftime('%s', 'now') AS INTEGER)"


@compiles(moment, "postgresql")
def _postgres_moment(_element: moment, _compiler: Any, **_options: Any) -> str:
    return "CAST(floor(extract(epoch FROM clock_timestamp())) AS BIGINT)"


class Database:
    """An engine and its transactions. Safe for threads. shared: other proxies may be on it (PostgreSQL)."""

    def __init__(self, url: str, connections: int = CONNECTIONS) -> None:
        """url: sqlite:///PATH, or of PostgreSQL as libpq takes it. connections: at most, of this process."""
        self.url = url
        self.shared = not url.startswith("sqlite:")
        if self.shared:
            self.engine = postgres.engine(url, connections)
            # each statement is a transaction: one round trip instead of three
            self._reader = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        else:
            self.engine = sa.create_engine(url)
            sa.event.listen(self.engine, "connect", _sqlite_pragmas)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
            self._reader = self.engine.execution_options(reading=True)
        self._local = threading.local()
        self._writer = threading.Lock()
        self._writing = None if self.shared else Writing(self.engine.begin)
        self._probing = threading.Lock()
        self._writable_until = 0.0  # by the monotonic clock
        self._trouble: StorageError | None = None  # of the last look

    def __repr__(self) -> str:
        return f"<Database {self.engine.dialect.name}>"

    @classmethod
    def sqlite(cls, path: Path) -> Database:
        return cls(f"sqlite:///{path}")

    @contextmanager
    def begin(self, *, alone: bool = True) -> Iterator[sa.Connection]:
        """A transaction that writes; what the database refuses becomes a StorageError in words.

        alone: no other such transaction runs beside it, at any proxy, so what it has read stays true. Without, its
        statements must hold by themselves: on SQLite nothing is beside them either.
        """
        if self._writing is not None:
            with self._in_words(), self._writing.part() as connection:
                yield connection
            return
        with self._turn(alone), self._in_words(), self._connected(self.engine) as connection:
            if alone:
                connection.execute(_LOCK, {"number": WRITER})
            yield connection

    @contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Of this process's threads that want to be alone on PostgreSQL: they would wait with a connection each."""
        if not alone:
            yield
            return
        with waiting():
            ours = self._writer.acquire(timeout=BUSY_SECONDS)
        if ours:
            try:
                yield
            finally:
                self._writer.release()
        else:
            raise UnavailableError("the database cannot be used now: others have been writing for too long")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, and waits for no writer. One within another of the same thread is the same:
        what a request is judged by costs one transaction, and is one view of the database with SQLite. On PostgreSQL each
        statement sees it as it is then, and costs one round trip."""
        outer: sa.Connection | None = getattr(self._local, "reading", None)
        if outer is not None:
            yield outer
            return
        with self._in_words(), self._connected(self._reader) as connection:
            self._local.reading = connection
            try:
                yield connection
            finally:
                self._local.reading = None

    @contextmanager
    def _connected(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """A transaction. While this waits for PostgreSQL (see postgres.py, too), other threads have our turn."""
        if not self.shared:
            with engine.begin() as connection:
                yield connection
            return
        with waiting():
            connection = engine.connect()
        with connection:
            transaction = connection.begin()
            try:
                yield connection
            except BaseException:
                with waiting():
                    transaction.rollback()
                raise
            with waiting():
                transaction.commit()

    @contextmanager
    def view(self, first: Callable[[], object]) -> Iterator[None]:
        """Requests that one thread answers one after the other, in a moment: what is the same for all of them is read
        once. It may be as old as the first of them, but no older than what `first` reads."""
        self._local.seen = {}
        try:
            with suppress(StorageError):
                first()
            if not self._local.seen:  # each is told by itself that the database is away
                self._local.seen = None
            yield
        finally:
            self._local.seen = None

    def once(self, key: Hashable, read: Callable[[sa.Connection], T]) -> T:
        """What `read` finds, or found before in this `view`."""
        seen: dict[Hashable, Any] | None = getattr(self._local, "seen", None)
        if seen is None:
            with self.read() as connection:
                return read(connection)
        if key not in seen:
            with self.read() as connection:
                seen[key] = read(connection)
        found: T = seen[key]
        return found

    def seen_empty(self, query: sa.Select[Any]) -> bool:
        """In a `view`: does the query find nothing? False outside, where nothing is asked."""
        if getattr(self._local, "seen", None) is None:
            return False
        return self.once(query, lambda connection: connection.execute(query).first()) is None

    @contextmanager
    def lock(self, number: int) -> Iterator[bool]:
        """An advisory lock of PostgreSQL, on a connection of its own. Yields at once: is it ours?"""
        keys = {"number": number}
        with self._in_words(), self._reader.connect() as connection:
            ours = bool(connection.execute(_TRY_LOCK, keys).scalar())
            try:
                yield ours
            finally:
                if ours:
                    connection.execute(_UNLOCK, keys)

    def share(self, path: Path) -> None:
        """Other processes of this proxy are on it: with SQLite they take turns by the lock of that file."""
        if self._writing is not None:
            self._writing.share(path)

    def single(self) -> AbstractContextManager[sa.Connection]:
        """For one statement that writes and holds by itself: on PostgreSQL in one round trip."""
        return self._statement()

    def check_writable(self) -> None:
        """StorageError when nothing can be written now. What was written counts for PROBE_SECONDS, unless something else
        fails meanwhile; who asks while another looks is told what was seen last."""
        if time.monotonic() < self._writable_until:
            return
        if not self._probing.acquire(blocking=False):
            if self._trouble is not None:
                raise self._trouble
            return
        try:
            with self.single() as connection:
                # another value each time: SQLite writes nothing when all is as it was
                self.put_meta(connection, PROBE, str(time.time_ns()))
            self._writable_until, self._trouble = time.monotonic() + PROBE_SECONDS, None
        except StorageError as err:
            self._trouble = err
            raise
        finally:
            self._probing.release()

    @contextmanager
    def _statement(self) -> Iterator[sa.Connection]:
        writing = (
            self._writing.part(single=True) if self._writing is not None else self._connected(self._reader)
        )
        with self._in_words(), writing as connection:
            yield connection

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.IntegrityError:
            raise
        except DatabaseError as err:
            raise self._refused(err) from None
        except sa.exc.TimeoutError:
            self._writable_until = 0.0
            raise UnavailableError(
                "the database cannot be used now: all connections to it are busy",
                hint="is it slow? database_connections in proxy.toml allows more",
            ) from None

    def _refused(self, err: DatabaseError) -> StorageError:
        self._writable_until = 0.0  # perhaps: it is to be looked at
        text = str(err.orig).partition("\n")[0]
        state = getattr(err.orig, "sqlstate", None)
        if state == READ_ONLY:
            self.engine.dispose()  # after a failover the next connection may find the one that takes changes
            return StorageError(f"the database takes no changes now: {text}")
        if not isinstance(err, OperationalError) and not (state and postgres.passes(err.orig)):
            return StorageError(f"the database refused: {text}")
        if "full" in text or "No space" in text:
            hint = "make room and try again"
        elif self.shared:
            hint = "is PostgreSQL running, and does it let this proxy in?"
        else:
            hint = "look at the database file and its directory"
        passes = postgres.passes(err.orig) if self.shared else _is_busy(err.orig)
        kind = UnavailableError if passes else StorageError
        return kind(f"the database cannot be used now: {text}", hint=hint)

    # ---- news -----------------------------------------------------------------------------------

    @staticmethod
    def notify(connection: sa.Connection, channel: str) -> None:
        """Tells all proxies, when the transaction is committed. Nothing with SQLite: there, who waits looks."""
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_notify(channel, "")))

    def hearing(self, channel: str) -> AbstractContextManager[Callable[[float], bool]]:
        """On PostgreSQL: yields a function that waits at most so many seconds for news. StorageError."""
        return postgres.hearing(self.url, channel)

    # ---- schema ---------------------------------------------------------------------------------

    def version(self) -> str | None:
        """The schema that is there; None when there is none."""
        with self.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()

    @staticmethod
    def tables_in(connection: sa.Connection) -> list[str]:
        """Names of the tables that are there."""
        return sa.inspect(connection).get_table_names()

    def check(self) -> None:
        """StorageError unless the schema is this program's."""
        found = self.version()
        if found is None:
            raise StorageError(
                "the database is empty",
                hint="is it the right one? restore it from a backup"
                if self.shared
                else "is this the right directory? restore proxy.db from a backup",
            )
        if found != schema.HEAD:
            raise StorageError(
                f"the database has schema {found}, this program wants {schema.HEAD}",
                hint="run: ca-proxy migrate",
            )

    def migrate(self) -> None:
        """Brings the schema up to this program's; nothing to do is fine."""
        with self.begin() as connection:
            self.migrate_in(connection)

    def migrate_in(self, connection: sa.Connection) -> None:
        from alembic import command
        from alembic.config import Config

        if self.shared:
            for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(sa.text(f"SET LOCAL {limit} = 0"))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
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
        Database.put(connection, schema.meta, {"key": key, "value": value})

    @staticmethod
    def add(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> bool:
        """The row, unless there is one that it cannot be beside. Is it there now?"""
        return _execute(connection, _add(connection.dialect.name, table), row).first() is not None

    @staticmethod
    def put(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
        """The row, in place of one with the same primary key; whoever does so at the same time makes no difference."""
        _execute(connection, _put(connection.dialect.name, table, tuple(row)), row)

    @staticmethod
    def record(connection: sa.Connection, actor: str, action: str, detail: str) -> None:
        """A line of the audit log; never a secret."""
        row = {"at": now(), "actor": actor[:128], "action": action, "detail": detail[:1000]}
        connection.execute(_AUDIT, row)


def _execute(connection: sa.Connection, statement: Any, row: dict[str, Any]) -> Any:
    """A statement with the values of a row, some of which may be the database's to compute."""
    computed = {name: value for name, value in row.items() if isinstance(value, sa.ClauseElement)}
    if computed:
        statement = statement.values(computed)
    return connection.execute(statement, {name: value for name, value in row.items() if name not in computed})


@lru_cache(16)
def _add(dialect: str, table: sa.Table) -> Any:
    """The statement of `Database.add`."""
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    # what a driver says of affected rows is not the same everywhere
    return insert.on_conflict_do_nothing().returning(*table.primary_key)


@lru_cache(64)
def _put(dialect: str, table: sa.Table, names: tuple[str, ...]) -> Any:
    """The statement of `Database.put` for a row with these columns; making it costs as much as running it."""
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    keys = [column.name for column in table.primary_key]
    rest = {name: insert.excluded[name] for name in names if name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=rest)


def _is_busy(err: BaseException | None) -> bool:
    """Another process holds SQLite's file."""
    code = getattr(err, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


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
