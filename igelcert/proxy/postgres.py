"""PostgreSQL under the database: its URL and where that is kept, connections, time limits, notifications.

psycopg is looked for only where a URL is used: the embedded default does without it.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa

from ..errors import SettingsError, StorageError
from .turns import waiting

if TYPE_CHECKING:
    import psycopg

__all__ = ["FILE", "engine", "given", "hearing", "keep", "kept", "passes", "shown"]

log = logging.getLogger("igelcert.proxy")

FILE = "database.url"  # in the data directory
HINT = "it looks like postgresql://ca_proxy@db.example/ca_proxy?sslmode=verify-full"
CONNECT_SECONDS = 5
LOCK_SECONDS = 10  # as SQLite's busy_timeout
STATEMENT_SECONDS = 60
IDLE_SECONDS = 5  # of a transaction; shorter: who waits for a proxy that is cut off gets its lock
POOL_SECONDS = 10
DOWN_SECONDS = 1.0  # after a connection that failed, the next one fails at once for that long
KEPT_OPEN = 5
# SQLSTATE: connection, too many of them, locks and time limits, what an operator ends, a transaction that stood still
PASSING = ("08", "53300", "55P03", "57", "40", "25P03")
PASSING_TEXTS = ("starting up", "shutting down", "in recovery", "too many", "remaining connection slots")
ENCODING = "UTF8"
# where the URL says nothing else: a peer that is gone without a word is noticed within about twenty seconds
_LINK: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "fallback_application_name": "ca-proxy",
}
_LIMITS = f"""
SET lock_timeout = '{LOCK_SECONDS}s';
SET statement_timeout = '{STATEMENT_SECONDS}s';
SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'
"""


# ---- the URL ------------------------------------------------------------------------------------


def _parts(option: str, url: str) -> dict[str, Any]:
    """As libpq reads it; SettingsError, which shows nothing of it: there may be a password in it."""
    try:
        from psycopg import Error
        from psycopg.conninfo import conninfo_to_dict
    except ModuleNotFoundError:
        raise StorageError(
            "the Python package psycopg is not installed: it is needed for PostgreSQL",
            hint="pip install 'igelcert[postgresql]', or install python3-psycopg",
        ) from None
    if not url.startswith(("postgresql://", "postgres://")):
        raise SettingsError(option, "is not a URL of PostgreSQL", hint=HINT)
    try:
        return dict(conninfo_to_dict(url))
    except Error:
        raise SettingsError(option, "cannot be read as a URL of PostgreSQL", hint=HINT) from None


def given(option: str, url: str, password: str | None = None) -> str:
    """The URL of a command line, checked, with the password that came by another way. SettingsError."""
    url = url.strip().replace("postgresql+psycopg://", "postgresql://", 1)
    parts = _parts(option, url)
    if parts.get("password"):
        raise SettingsError(
            option,
            "holds a password, which others on this machine see in the list of processes",
            hint=f"give it with {option}-password-file, or leave it to PGPASSFILE (~/.pgpass)",
        )
    if not parts.get("dbname"):
        raise SettingsError(option, "names no database", hint=HINT)
    if password:
        url += ("&" if "?" in url else "?") + "password=" + quote(password, safe="")
        _parts(option, url)
    return url


def shown(url: str) -> str:
    """Where that is, for people: user, host, port and database."""
    parts = _parts("database", url)
    user = f"{parts['user']}@" if parts.get("user") else ""
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"postgresql://{user}{parts.get('host', '')}{port}/{parts.get('dbname', '')}"


def keep(path: Path, url: str) -> None:
    """Writes the URL for this proxy alone."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(url + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from None


def kept(path: Path) -> str | None:
    """The URL of a data directory; None: its database is the embedded one. StorageError, SettingsError."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as err:
        raise StorageError(f"cannot read {path}: {getattr(err, 'strerror', 'it is not UTF-8')}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StorageError(f"{path} is open to others", hint=f"chmod 600 {path}")
    _parts(str(path), text)
    return text


# ---- connections --------------------------------------------------------------------------------


def engine(url: str, connections: int) -> sa.Engine:
    """At most so many connections of this process."""
    made = sa.create_engine(
        "postgresql+psycopg://",
        use_native_hstore=False,
        pool_size=min(KEPT_OPEN, connections),
        max_overflow=max(0, connections - KEPT_OPEN),
        pool_timeout=POOL_SECONDS,
        pool_use_lifo=True,
        hide_parameters=True,
    )
    sa.event.listen(made, "do_connect", _Door(url).open)
    sa.event.listen(made, "connect", _prepare)
    sa.event.listen(made, "checkout", _look_alive)
    sa.event.listen(made, "do_execute", _execute)
    return made


class _Door:
    """Makes connections. Where one failed, the next fail at once for a moment: waiting for each would take all
    threads while the database is away."""

    def __init__(self, url: str) -> None:
        self._parts = {**_LINK, **_parts("database", url)}
        self._shut_until = 0.0
        self._why = ""

    def open(
        self, _dialect: object, _record: object, _args: object, options: dict[str, Any]
    ) -> psycopg.Connection[Any]:
        import psycopg

        if time.monotonic() < self._shut_until:
            raise psycopg.OperationalError(self._why)
        try:
            made = psycopg.connect(**{**self._parts, **options})
        except psycopg.OperationalError as err:
            self._why, self._shut_until = str(err), time.monotonic() + DOWN_SECONDS
            raise
        encoding = made.info.parameter_status("server_encoding")
        if encoding and encoding != ENCODING:  # what is read would be octets, or names could not be kept
            made.close()
            raise StorageError(
                f"the encoding of the database is {encoding}: it must be {ENCODING}",
                hint="make another one: createdb --encoding=UTF8 --template=template0 NAME",
            )
        return made


def _prepare(connection: psycopg.Connection[Any], _record: object) -> None:
    from psycopg.types.string import StrDumperUnknown

    class Text(StrDumperUnknown):
        """PostgreSQL takes no U+0000 in texts; what holds one is found nowhere, and kept with a mark in its place."""

        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)

    connection.adapters.register_dumper(str, Text)
    connection.autocommit = True
    connection.execute(_LIMITS)
    connection.autocommit = False


def _look_alive(connection: psycopg.Connection[Any], _record: object, _proxy: object) -> None:
    """An idle connection on which something came is one that the server ended: found out without asking it."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    if poll.poll(0):
        raise sa.exc.DisconnectionError


def _execute(cursor: Any, statement: Any, parameters: Any, _context: object) -> bool:
    """A statement, as SQLAlchemy would execute it; while it is under way, other threads have our turn."""
    with waiting():
        cursor.execute(statement, parameters)
    return True


def passes(err: BaseException | None) -> bool:
    """Is an OperationalError of the kind that is over some time: the server is away, starts, ends, is busy? Not so a
    password, a name or a right that is wrong, nor a disk that is full."""
    state: str | None = getattr(err, "sqlstate", None)
    if state is not None:
        return state.startswith(PASSING)
    # libpq gives no code for a connection that could not be made; the server's own answers begin so
    text = str(err)
    return "FATAL:" not in text or any(each in text for each in PASSING_TEXTS)


# ---- notifications ------------------------------------------------------------------------------


@contextmanager
def hearing(url: str, channel: str) -> Iterator[Callable[[float], bool]]:
    """A connection of its own that hears what is notified on the channel. Yields a function that waits at most so
    many seconds: did something come? StorageError when the connection breaks."""
    import psycopg
    from psycopg import sql

    try:
        with psycopg.connect(**{**_LINK, **_parts("database", url)}, autocommit=True) as connection:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            yield lambda seconds: any(connection.notifies(timeout=seconds, stop_after=1))
    except psycopg.Error as err:
        raise StorageError(f"changes are not heard now: {str(err).partition(chr(10))[0]}") from None
