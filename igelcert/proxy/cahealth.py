"""Is the CA up? What the last request of a device, or the last test, showed. Nothing here asks it.

It stands in the database, so that every proxy and the command line see the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .database import Database, now

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Health", "last", "note"]

_KEY = "ca_health"
QUIET_SECONDS = 10  # the same news are written no more often


@dataclass(frozen=True, slots=True)
class Health:
    """up: did it answer? at: when (seconds since 1970). text: why not, "" when it did."""

    up: bool
    at: int
    text: str


def last(context: Context, version: int) -> Health | None:
    """None when nobody has asked that version of the configuration yet."""
    found = json.loads(context.db.meta(_KEY, "{}"))
    if not found or found["version"] != version:
        return None
    return Health(found["up"], found["at"], found["text"])


def note(context: Context, version: int, up: bool, text: str = "") -> None:
    """An exchange with that version of the configuration ended so."""
    moment = now()
    noted = context.health_noted
    if noted[:2] == (version, up) and moment - noted[2] < QUIET_SECONDS:
        return
    context.health_noted = (version, up, moment)
    before = json.loads(context.db.meta(_KEY, "{}"))
    same = before and before["version"] == version and before["up"] == up
    if same and moment - before["at"] < QUIET_SECONDS:
        return
    value = json.dumps({"version": version, "up": up, "at": moment, "text": text[:500]})
    with context.db.begin(alone=False) as connection:
        Database.put_meta(connection, _KEY, value)
