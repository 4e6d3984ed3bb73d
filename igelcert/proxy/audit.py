"""The audit log: who changed what. A line never holds a secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from . import paging
from .schema import audit

if TYPE_CHECKING:
    from .context import Context

__all__ = ["ACTIONS", "actor", "acts", "listing"]

COMMAND_LINE = "ca-proxy"
ACTIONS = (
    "ca",
    "device",
    "directory",
    "profile",
    "user",
    "token",
    "login",
    "register",
    "renew identity",
    "init",
    "join",
    "copy",
    "issue",
    "management-ca",
    "rekey",
    "backup",
    "restore",
)
_actor: ContextVar[str] = ContextVar("actor", default=COMMAND_LINE)


def actor() -> str:
    """Who acts in this thread: the name of an account or token, or the command line."""
    return _actor.get()


@contextmanager
def acts(name: str) -> Iterator[None]:
    """What is changed in this block is recorded as that one's doing."""
    mark = _actor.set(name)
    try:
        yield
    finally:
        _actor.reset(mark)


def listing(
    context: Context, *, search: str = "", action: str = "", limit: int = 100, offset: int = 0, since: int = 0
) -> paging.Page[Any]:
    """Rows (id, at, actor, action, detail), the newest first. action: the first words of an action, as in ACTIONS."""
    query = sa.select(audit).where(audit.c.at >= since)
    if search:
        query = query.where(paging.contains(search, audit.c.actor, audit.c.action, audit.c.detail))
    if action:
        query = query.where(
            sa.or_(audit.c.action == action, audit.c.action.startswith(f"{action} ", autoescape=True))
        )
    with context.db.read() as connection:
        return paging.page(connection, query, (audit.c.id.desc(),), limit, offset)
