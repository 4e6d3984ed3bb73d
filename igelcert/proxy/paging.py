"""Lists in pages, and searching in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from ..errors import SettingsError

__all__ = ["MAX_LIMIT", "SEARCH_MAX", "Page", "contains", "page"]

MAX_LIMIT = 1000
SEARCH_MAX = 512  # characters
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """items: of this page; total: how many there are in all."""

    items: tuple[T, ...]
    total: int
    limit: int
    offset: int


def page(
    connection: sa.Connection, query: sa.Select[Any], order: tuple[Any, ...], limit: int, offset: int
) -> Page[Any]:
    """The rows of one page. limit 0: all of them."""
    total = connection.execute(
        sa.select(sa.func.count()).select_from(query.order_by(None).subquery())
    ).scalar_one()
    ordered = query.order_by(*order)
    if limit:
        ordered = ordered.limit(limit).offset(offset)
    return Page(tuple(connection.execute(ordered).all()), total, limit, offset)


def contains(text: str, *columns: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Does any of the columns contain the text? Case does not count. SettingsError when it is too long to look for."""
    if len(text) > SEARCH_MAX:
        raise SettingsError(
            "--search",
            f"is {len(text)} characters long, at most {SEARCH_MAX} are looked for",
            hint="a part of it will do",
        )
    return sa.or_(*(sa.func.lower(column).contains(text.lower(), autoescape=True) for column in columns))
