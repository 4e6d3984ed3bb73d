"""The record of enrollments as administrators read it: searched, exported, counted by day. `enrollments` writes it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import sqlalchemy as sa

from ..errors import SettingsError
from . import paging
from .context import Context
from .database import now
from .schema import enrollments

__all__ = ["STATES", "as_json", "by_day", "search", "sheet"]

STATES = ("issued", "pending", "refused", "failed", "running")
COLUMNS = (
    "unit_id",
    "friendly_name",
    "operation",
    "state",
    "reason",
    "subject",
    "serial",
    "not_before",
    "not_after",
    "created",
    "updated",
)
DAY = 86_400


def search(
    context: Context,
    *,
    text: str = "",
    unit_id: str = "",
    state: str = "",
    since: int = 0,
    until: int = 0,
    limit: int = 100,
    offset: int = 0,
) -> paging.Page[Any]:
    """Rows, the newest first. text: in unit ID, friendly name, subject, serial number or reason.

    state: as recorded, "" for all. since, until: of the last change, seconds since 1970, 0 for no bound.
    """
    query = sa.select(*(enrollments.c[name] for name in COLUMNS), enrollments.c.warnings)
    if unit_id:
        query = query.where(enrollments.c.unit_id == unit_id)
    if state:
        if state not in STATES:
            raise SettingsError("state", f"{state[:40]!r} is no state", hint="one of: " + " ".join(STATES))
        query = query.where(enrollments.c.state == state)
    if since:
        query = query.where(enrollments.c.updated >= since)
    if until:
        query = query.where(enrollments.c.updated < until)
    if text:  # last: it is the dearest
        fields = ("unit_id", "friendly_name", "subject", "serial", "reason")
        query = query.where(paging.contains(text, *(enrollments.c[name] for name in fields)))
    order = (enrollments.c.updated.desc(), enrollments.c.id.desc())
    with context.db.read() as connection:
        return paging.page(connection, query, order, limit, offset)


def as_json(row: Any) -> dict[str, Any]:
    return {**{key: getattr(row, key) for key in COLUMNS}, "warnings": row.warnings.splitlines()}


def sheet(rows: Iterable[Any]) -> Iterator[str]:
    """CSV of such rows, line by line. A cell that a spreadsheet would run as a formula gets an apostrophe."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    for cells in chain([(*COLUMNS, "warnings")], rows):
        writer.writerow(_cell(cell) for cell in cells)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _cell(value: object) -> object:
    text = "" if value is None else str(value).replace("\n", "; ")
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def by_day(context: Context, days: int) -> list[tuple[int, dict[str, int]]]:
    """(begin of the day in UTC, state -> how many requests ended so) up to today."""
    first = (now() // DAY - days + 1) * DAY
    day = (enrollments.c.updated - first) // DAY
    query = (
        sa.select(day, enrollments.c.state, sa.func.count())
        .where(enrollments.c.updated >= first)
        .group_by(day, enrollments.c.state)
    )
    found: dict[int, dict[str, int]] = {}
    with context.db.read() as connection:
        for index, state, count in connection.execute(query):
            found.setdefault(int(index), {})[state] = count
    return [(first + index * DAY, found.get(index, {})) for index in range(days)]
