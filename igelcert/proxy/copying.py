"""`ca-proxy copy`: the embedded database into a PostgreSQL one, whole or not at all, checked row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from ..errors import StorageError
from . import schema
from .audit import actor
from .context import Context
from .database import Database
from .initialise import HOSTNAMES

__all__ = ["copy"]

BATCH = 1000


def copy(context: Context, url: str) -> Iterator[tuple[str, int, int]]:
    """Yields (table, rows checked so far, rows) as it goes; it is done when the iterator ends, and not before.

    The embedded database takes no changes meanwhile. StorageError: nothing is in the other one then.
    """
    source = context.db
    if source.shared:
        raise StorageError(
            "this proxy's database is PostgreSQL already", hint="pg_dump and pg_restore copy one to another"
        )
    target = Database(url)
    try:
        with source.begin() as old, target.begin() as new:
            if tables := target.tables_in(new):
                raise StorageError(
                    f"the database that it should go to is not empty: it has the table {sorted(tables)[0]}",
                    hint="name a database without tables",
                )
            target.migrate_in(new)
            for table in schema.metadata.sorted_tables:
                new.execute(table.delete())  # what migrations put there
                yield from _table(old, new, table)
            _complete(context, new)
    finally:
        target.close()


def _table(old: sa.Connection, new: sa.Connection, table: sa.Table) -> Iterator[tuple[str, int, int]]:
    total = old.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    done = 0
    yield table.name, 0, total
    for part in old.execute(sa.select(table)).mappings().partitions(BATCH):
        rows = [dict(row) for row in part]
        new.execute(table.insert(), rows)
        _compare(new, table, rows)
        done += len(rows)
        yield table.name, done, total
    found = new.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    if (done, found) != (total, total):
        raise StorageError(f"of {total} rows of {table.name}, {found} arrived", hint="nothing was kept")
    for column in table.primary_key:
        if column.autoincrement is True:
            top = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1)
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            new.execute(sa.select(sa.func.setval(sequence, top.scalar_subquery(), False)))


def _compare(new: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Reads back what was written."""
    keys = list(table.primary_key)
    wanted = {tuple(row[key.name] for key in keys): row for row in rows}
    query = sa.select(table).where(sa.tuple_(*keys).in_(list(wanted)))
    found = {tuple(row[key.name] for key in keys): dict(row) for row in new.execute(query).mappings()}
    for key, row in wanted.items():
        if found.get(key) != row:
            raise StorageError(
                f"a row of {table.name} did not arrive as it was: {' '.join(map(str, key))[:200]}",
                hint="nothing was kept",
            )


def _complete(context: Context, new: sa.Connection) -> None:
    """What a proxy that joins looks for, and this proxy's directory has."""
    Database.put_meta(new, HOSTNAMES, json.dumps(context.config.hostnames))
    Database.record(new, actor(), "copy", "from the embedded database")
