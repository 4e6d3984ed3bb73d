"""`ca-proxy rekey`: another master key, while proxies serve.

A new key is put into the master key file of every proxy; then the database says that it seals, for all of them in one
transaction; then what is sealed under the old one is sealed anew, a few rows at a time; then the old one is taken out
of the files. Whatever was cut goes on where it stood: each step looks at what is there.
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..errors import ConflictError, StorageError, UnavailableError
from . import cacerts, challenges, managementca, profiles
from .audit import actor
from .context import ETAG_KEY, Context
from .database import Database, moment
from .schema import ca_config, management_cas, meta, ndes_challenges, proxies, scep_keys
from .schema import profiles as profiles_table
from .secrets import CURRENT, Sealer, key_of_sealed
from .upstream import config, scepkeys

__all__ = [
    "SEALED",
    "State",
    "alone",
    "begin",
    "check_opens",
    "drop",
    "reseal",
    "state",
    "switch",
    "take_over",
]

NEXT = "master_key_next"  # in meta: the name of the key that is to seal
BATCH = 50
LOCK = 0x6967_6B65  # the advisory lock of who changes the master key


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A column of sealed values. place(row): what is bound into the value. text: it is base64 there."""

    table: sa.Table
    column: sa.Column[Any]
    place: Callable[[Any], str]
    where: sa.ColumnElement[bool] | None = None
    text: bool = False

    def value(self, row: Any) -> bytes:
        found = getattr(row, self.column.name)
        return base64.b64decode(found) if self.text else found

    def rows(self) -> sa.Select[Any]:
        query = sa.select(self.table)
        return query if self.where is None else query.where(self.where)


SEALED = (
    _Sealed(management_cas, management_cas.c.sealed, lambda _row: managementca.PLACE),
    _Sealed(ca_config, ca_config.c.sealed, lambda _row: config.PLACE),
    _Sealed(profiles_table, profiles_table.c.sealed, lambda row: profiles.place(row.name)),
    _Sealed(scep_keys, scep_keys.c.sealed, lambda row: scepkeys.place(row.name)),
    _Sealed(ndes_challenges, ndes_challenges.c.sealed, lambda row: challenges.place(row.unit_id, row.friendly_name)),
    _Sealed(meta, meta.c.value, lambda _row: f"meta/{ETAG_KEY}", meta.c.key == ETAG_KEY, text=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class State:
    """current: the key that seals; coming: the one that is to, "" for none. here: keys in our file. others:
    how many values are under another key than `current`. lacking: proxies that serve without the one to come."""

    current: str
    coming: str
    here: tuple[str, ...]
    others: int
    lacking: tuple[str, ...]


@contextmanager
def alone(context: Context, started: float | None = None) -> Iterator[None]:
    """Nobody else changes this proxy's master key file meanwhile, nor the master key at another proxy. UnavailableError.

    started: when this command was; one that ended since then has done what this one was to do.
    """
    handle = os.open(context.data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _alone_of_all(context):
            if started is not None and context.sealer.changed > started:
                raise UnavailableError(
                    "another rekey was at work, and has just ended",
                    hint="see how far it is: ca-proxy rekey --show",
                )
            yield
    except BlockingIOError:
        raise _at_work() from None
    finally:
        os.close(handle)


@contextmanager
def _alone_of_all(context: Context) -> Iterator[None]:
    """A lock of a session of PostgreSQL: it goes with its connection."""
    if not context.db.shared:
        yield
        return
    with context.db.lock(LOCK) as ours:
        if not ours:
            raise _at_work()
        yield


def _at_work() -> UnavailableError:
    return UnavailableError("another rekey is at work", hint="wait for its end")


def state(context: Context) -> State:
    sealer = context.sealer
    with context.db.read() as connection:
        current, coming = sealer.current(connection), Database.meta_in(connection, NEXT)
        others = sum(1 for sealed in SEALED for _ in _under_others(connection, sealed, current))
        lacking = _lacking(context, connection, coming)
    return State(current, coming, sealer.names(), others, lacking)


def _under_others(connection: sa.Connection, sealed: _Sealed, current: str) -> Iterator[Any]:
    """Rows whose value is under another key."""
    for row in connection.execute(sealed.rows()):
        if (value := sealed.value(row)) and key_of_sealed(value) != current:
            yield row


def _lacking(context: Context, connection: sa.Connection, name: str) -> tuple[str, ...]:
    if not name or not context.db.shared:
        return ()
    there = sa.select(proxies.c.name).where(
        proxies.c.until > moment(), sa.not_(proxies.c.master_keys.contains(name, autoescape=True))
    )
    return tuple(sorted(connection.execute(there).scalars()))


def begin(context: Context) -> str:
    """A new key in this proxy's file, which is to seal; the one of a change that was begun, where there is one."""
    sealer = context.sealer
    with context.db.read() as connection:
        current, coming = sealer.current(connection), Database.meta_in(connection, NEXT)
    if coming and not sealer.bears(coming):
        raise ConflictError(
            "rekey",
            "a change of the master key was begun at another proxy",
            hint="go on there; or copy its master.key to this machine and run here: ca-proxy rekey --add FILE",
        )
    if not coming:
        # into the file first, so that nothing names a key that is nowhere; what a run that was cut left there is not
        # taken, as nothing tells it from a key of years ago
        coming = sealer.add_new()
        etag_key = context.etag_key
        with context.db.begin() as connection:
            if Database.meta_in(connection, NEXT):
                raise ConflictError(
                    "rekey", "a change of the master key was begun at another proxy", hint="go on there"
                )
            Database.put_meta(connection, CURRENT, current)
            Database.put_meta(connection, NEXT, coming)
            sealed = sealer.seal(connection, etag_key, f"meta/{ETAG_KEY}")
            if not Database.meta_in(connection, ETAG_KEY):
                Database.put_meta(connection, ETAG_KEY, base64.b64encode(sealed).decode())
            Database.record(connection, actor(), "rekey", f"key {coming} is to follow key {current}")
    return coming


def switch(context: Context) -> None:
    """From now on the new key seals, at all proxies. ConflictError while one that serves has not got it."""
    with context.db.begin() as connection:
        coming = Database.meta_in(connection, NEXT)
        if not coming:
            return
        if lacking := _lacking(context, connection, coming):
            raise ConflictError(
                "rekey",
                f"the new master key is missing at proxies that serve: {', '.join(lacking)}",
                hint="copy DIR/master.key there, run `ca-proxy rekey --add FILE` there, then this command again",
            )
        Database.put_meta(connection, CURRENT, coming)
        connection.execute(meta.delete().where(meta.c.key == NEXT))
        Database.record(connection, actor(), "rekey", f"key {coming} seals")


def reseal(context: Context) -> Iterator[int]:
    """Seals anew what is under other keys, in transactions of a few rows; yields how many were done so far."""
    done = 0
    for sealed in SEALED:
        keys = list(sealed.table.primary_key)
        with context.db.read() as connection:
            current = context.sealer.current(connection)
            found = [
                tuple(getattr(row, key.name) for key in keys)
                for row in _under_others(connection, sealed, current)
            ]
        for start in range(0, len(found), BATCH):
            with context.db.begin() as connection:
                for each in found[start : start + BATCH]:
                    mine = sa.and_(*(key == value for key, value in zip(keys, each, strict=True)))
                    done += _again(connection, context.sealer, sealed, mine)
            yield done


def _again(connection: sa.Connection, sealer: Sealer, sealed: _Sealed, mine: sa.ColumnElement[bool]) -> int:
    """One row as it is now: it may have been changed or removed meanwhile."""
    row = connection.execute(sealed.rows().where(mine).with_for_update()).one_or_none()
    value = sealed.value(row) if row is not None else b""
    if not value or key_of_sealed(value) == sealer.current(connection):
        return 0
    place = sealed.place(row)
    fresh = sealer.seal(connection, sealer.unseal(value, place), place)
    stored = base64.b64encode(fresh).decode() if sealed.text else fresh
    connection.execute(sealed.table.update().where(mine).values({sealed.column: stored}))
    return 1


def check_opens(connection: sa.Connection, sealer: Sealer) -> None:
    """CheckError unless these keys open every secret in the database."""
    for sealed in SEALED:
        for row in connection.execute(sealed.rows()):
            if value := sealed.value(row):
                sealer.unseal(value, sealed.place(row))


def drop(context: Context) -> int:
    """Takes keys that nothing needs any more out of this proxy's file; how many went. ConflictError."""
    found = state(context)
    if found.coming or found.others:
        raise ConflictError(
            "rekey",
            "the old master key is still needed: its change is not at its end",
            hint="run: ca-proxy rekey",
        )
    if not context.sealer.bears(found.current):
        raise StorageError(
            f"this proxy's master.key lacks the key {found.current}, which seals now",
            hint="copy master.key from a proxy that has it, and run here: ca-proxy rekey --add FILE",
        )
    count = context.sealer.keep_only(found.current)
    with context.db.begin() as connection:
        cacerts.count_trust(connection)  # the key in server.pem is under the master key, too
    return count


def take_over(context: Context, other: Sealer) -> int:
    """The keys of another proxy's file, which must be one of this database's; how many are new here. ConflictError."""
    with context.db.read() as connection:
        needed = {context.sealer.current(connection), Database.meta_in(connection, NEXT)} - {""}
    if not needed & set(other.names()):
        raise ConflictError(
            "--add",
            "this is no master.key of a proxy on the same database",
            hint="take that of another proxy",
        )
    return context.sealer.take_over(other)
