"""What changes the settings of devices: noted by whoever changes them, read by a proxy in which devices wait.

A change is noted in the transaction that makes it, by any process on the database, and says whom it concerns: a
device, or all in and below a directory. Nothing hangs on memory: a proxy that sees a change late, or never, answers
its devices when their time is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from ..errors import Error
from .context import Context
from .database import Database, now
from .schema import changes, meta

__all__ = ["Change", "Watch", "hearing", "newest", "note", "since", "view"]

log = logging.getLogger("igelcert.proxy")

LOOK_SECONDS = 0.5
TROUBLE_SECONDS = 5.0  # before another look at a database that does not answer
HEARD_SECONDS = 1.0  # between looks while news are heard of, which might get lost all the same
CHANNEL = "igelcert_changes"
KEPT_SECONDS = 3600
_COUNTER = "changes"  # in meta: the newest id


@dataclass(frozen=True, slots=True)
class Change:
    """kind: "device" or "directory"; target: a unit ID or a path. ids count up in the order of the commits."""

    id: int
    kind: str
    target: str


def note(connection: sa.Connection, targets: Iterable[tuple[str, str]]) -> None:
    """Notes (kind, target) of what the transaction changes. Call it last.

    The row of the counter stays locked until the end of the transaction, so that no id becomes visible before a
    smaller one; SQLite has one writer at a time anyway.
    """
    found = list(dict.fromkeys(targets))
    if not found:
        return
    held = sa.select(meta.c.value).where(meta.c.key == _COUNTER).with_for_update()
    last = int(connection.execute(held).scalar_one())
    moment = now()
    connection.execute(changes.delete().where(changes.c.at < moment - KEPT_SECONDS))
    connection.execute(
        changes.insert(),
        [
            {"id": number, "kind": kind, "target": target, "at": moment}
            for number, (kind, target) in enumerate(found, last + 1)
        ],
    )
    connection.execute(meta.update().where(meta.c.key == _COUNTER).values(value=str(last + len(found))))
    Database.notify(connection, CHANNEL)


def newest(context: Context) -> int:
    """The id of the newest change."""
    return context.db.once(_COUNTER, lambda connection: int(Database.meta_in(connection, _COUNTER, "0")))


def view(context: Context) -> AbstractContextManager[None]:
    """For requests that one thread answers one after the other, see `Database.view`. The oldest that they see is which
    change is the newest: of what is committed meanwhile, those who wait on will hear."""
    return context.db.view(lambda: newest(context))


def since(context: Context, position: int) -> list[Change]:
    """The changes after `position`, the oldest first."""
    query = sa.select(changes.c.id, changes.c.kind, changes.c.target).where(changes.c.id > position)
    with context.db.read() as connection:
        return [Change(*row) for row in connection.execute(query.order_by(changes.c.id))]


Hearing = Callable[[], AbstractContextManager[Callable[[float], bool]]]


def hearing(context: Context) -> Hearing | None:
    """How news of changes are heard; None where there are none, and who waits has to look."""
    return partial(context.db.hearing, CHANNEL) if context.db.shared else None


class Watch:
    """A thread that looks for changes while somebody waits. `tell` gets them, in that thread.

    Changes may be told more than once: who waits compares their ids with its own position. hear: another thread hears of
    news and makes this one look at once; when that fails, it looks as often as without.
    """

    def __init__(
        self,
        read: Callable[[int], list[Change]],
        tell: Callable[[list[Change]], None],
        hear: Hearing | None = None,
    ) -> None:
        self._read = read
        self._tell = tell
        self._hear = hear
        self._hears = self._news = False
        self._changed = threading.Condition()
        self._active = self._stopped = False
        self._asked: int | None = None  # the least position of those that came since the last look
        self._thread: threading.Thread | None = None

    def look_from(self, position: int) -> None:
        """Somebody waits now for what comes after `position`."""
        with self._changed:
            self._active = True
            self._asked = position if self._asked is None else min(self._asked, position)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
            self._thread.start()
            if self._hear is not None:
                threading.Thread(target=self._listen, args=(self._hear,), name="news", daemon=True).start()

    def rest(self) -> None:
        """Nobody waits."""
        with self._changed:
            self._active, self._asked = False, None

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        last: int | None = None
        while True:
            with self._changed:
                if not self._active:
                    last = None
                self._changed.wait_for(lambda: self._active or self._stopped)
                self._news = False
                starts = [each for each in (last, self._asked) if each is not None]
                self._asked = None
            if self._stopped:
                return
            pause = HEARD_SECONDS if self._hears else LOOK_SECONDS
            try:
                found = self._read(min(starts))
            except Error as err:
                log.error("the changes of settings cannot be read: %s", err)
                found, pause = [], TROUBLE_SECONDS
            last = found[-1].id if found else min(starts)
            if found:
                self._tell(found)
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._news, pause)

    def _listen(self, hear: Hearing) -> None:
        while not self._stopped:
            try:
                with hear() as wait:
                    self._hears = True
                    self._look_now()  # what came while nothing was heard
                    while not self._stopped:
                        if wait(HEARD_SECONDS):
                            self._look_now()
            except Error as err:
                if self._hears:
                    log.warning("%s", err)
                self._hears = False
                time.sleep(HEARD_SECONDS)

    def _look_now(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify_all()
