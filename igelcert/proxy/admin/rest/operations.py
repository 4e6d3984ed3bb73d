"""An operation of the REST interface: what it takes, does and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ... import paging
from ...context import Context
from ..guard import Caller
from ..schemas import Schema

__all__ = [
    "CHANGED",
    "JSON",
    "NDJSON",
    "PAGED",
    "WORD",
    "YES",
    "Call",
    "Handler",
    "Missing",
    "Operation",
    "page",
]

JSON = "application/json"
NDJSON = "application/x-ndjson"
LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": paging.MAX_LIMIT, "default": 100}
OFFSET: Schema = {"type": "integer", "minimum": 0, "maximum": 1_000_000_000, "default": 0}
YES: Schema = {"type": "boolean", "default": False}
PAGED = {"limit": LIMIT, "offset": OFFSET}
WORD: Schema = {"type": "string", "maxLength": paging.SEARCH_MAX, "default": ""}
COMMON = {
    400: "malformed",
    401: "no token, or none that counts",
    405: "the address does not take that method; Allow names those that it takes",
    413: "too large",
    431: "the header, or a field of it, is too large, or there are too many",
    503: "the proxy cannot use its database now; Retry-After says when to come again",
}
CHANGED = {409: "somebody else changed it meanwhile"}


class Missing(Exception):
    """There is no such thing: 404."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was checked: parameters of path and query, and its body."""

    context: Context
    caller: Caller
    path: dict[str, str]
    query: dict[str, Any]
    body: Any = None


Handler = Callable[[Call], Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """answer: (status, schema or None for no body, media type). errors: further statuses and when they come."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: tuple[int, str | None, str] = (204, None, "")
    query: dict[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    body: str = ""
    body_required: bool = True
    csv_body: bool = False
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        return self.method != "GET"

    @property
    def statuses(self) -> dict[int, str]:
        found = {**COMMON, **self.errors}
        if self.changes:
            found[403] = "a viewer changes nothing"
        if self.body or self.csv_body:
            found[415] = "the Content-Type is another one"
        if self.body or self.csv_body or self.query:
            found.setdefault(422, "a value is not allowed; `field` names it")
        return found


def page(found: paging.Page[Any], shown: Callable[[Any], Any]) -> dict[str, Any]:
    """A page of a list, as it is answered."""
    return {
        "items": [shown(item) for item in found.items],
        "total": found.total,
        "limit": found.limit,
        "offset": found.offset,
    }
