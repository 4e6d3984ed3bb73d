"""What a proxy holds of what all proxies on a database share: places at the CA, and requests that it carries there.

A process is a row in `proxies` that says until when it counts as alive, by the database's clock; it pushes that on
while it lives. Who dies keeps nothing for longer than a lease lasts. Whoever asks the CA holds a row of `slots`, and
begins an exchange only where the lease outlasts it. A request that is carried to the CA names its process (`holder`):
another takes it over when that one is dead. With the embedded database there is one proxy, which has all places; whether
its processes live is known by locks (lives.py).
"""

from __future__ import annotations

import logging
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ..errors import Error, StorageError, TransportError, UnavailableError
from .database import moment
from .schema import proxies, slots
from .turns import waiting

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Leases", "alive", "check_place"]

log = logging.getLogger("igelcert.proxy")

BEAT = 3.0  # seconds between two signs of life
TROUBLE_SECONDS = 1.0  # before another try, where the last one failed
LEAVE_SECONDS = 5.0  # at the end, for a sign of life that is just being given
MARGIN = 10  # seconds that a lease lasts longer than an exchange with the CA may take
TRY_SECONDS = 0.03  # between two looks for a free place
LATER_MAX = 1000
KEPT = 86_400  # seconds for which a dead proxy is remembered


_place: ContextVar[tuple[Leases, int] | None] = ContextVar("place", default=None)
_FREE = (
    sa.select(slots.c.number)
    .where(slots.c.until <= moment(), slots.c.number < sa.bindparam("cap"))
    .order_by(slots.c.number)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_TAKE = (
    slots.update()
    .where(slots.c.number == _FREE.scalar_subquery())
    .values(holder=sa.bindparam("mine"), until=moment() + sa.bindparam("seconds", type_=sa.BigInteger))
    .returning(slots.c.number)
)


def alive(holder: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Does that process live?"""
    return sa.exists().where(proxies.c.id == holder, proxies.c.until > moment())


class Leases:
    """Of this process; begun when they are first needed. Safe for threads. holder: its name, of this life of it."""

    def __init__(self, context: Context) -> None:
        self._db = context.db
        self._context = context
        self._sealer = context.sealer
        self._cap = context.config.upstream_parallel
        self._seconds = context.config.upstream_timeout + MARGIN
        self._lock = threading.Lock()
        self._door = threading.Lock()  # one thread looks for a free place, the others wait behind it
        self._wake = threading.Event()
        self._ended = False
        self._at_the_row = threading.Lock()  # a sign of life, or the end: none comes after it
        self._given_back: list[
            int
        ] = []  # numbers of places: what asked has its answer, and need not wait for that
        self._held: dict[int, float] = {}  # number of a place -> until when it is ours (monotonic)
        self._later: list[Callable[[], object]] = []  # what is to be recorded when the database is back
        self._id = ""

    def __repr__(self) -> str:
        return f"<Leases {self._id}>"

    @property
    def holder(self) -> str:
        if not self._db.shared:
            return str(self._context.lives.own) if self._context.lives else ""
        with self._lock:
            if not self._id:
                self._begin()
            return self._id

    def carries(self, row: Any) -> bool:
        """Is a request that runs still its process's? Another may have it when that one is dead, and no sooner than the CA
        has surely ended what it was asked: an answer that is still to come there is to be found. row: of `enrollments`, with
        `clock` (the database's) and whether the lease of its process holds, with PostgreSQL: `alive`."""
        if not row.holder:  # of an older version, or of no process that serves
            return True
        if self._db.shared:
            return bool(row.alive)
        lives = self._context.lives
        return lives is None or lives.has(int(row.holder)) or row.updated > row.clock - self._seconds

    def start(self) -> None:
        """From now on other proxies' commands see that this one serves; where the database takes no changes now, as soon
        as it does."""
        try:
            self.holder  # noqa: B018
        except StorageError as err:
            log.error("this proxy cannot say that it lives: %s", err)
            threading.Thread(target=self._start_later, name="leases", daemon=True).start()

    def _start_later(self) -> None:
        while not self._wake.wait(TROUBLE_SECONDS):
            with suppress(Error):
                self.holder  # noqa: B018
                return

    def _begin(self) -> None:
        name = secrets.token_hex(16)
        with self._at_the_row:
            if self._ended:
                raise UnavailableError("this process of the proxy ends")
            with self._db.begin(alone=False) as connection:
                self._furnish(connection)
                self._sign(connection, name)
            self._id = name
        threading.Thread(target=self._live, name="leases", daemon=True).start()

    def _furnish(self, connection: sa.Connection) -> None:
        """The places that there are to be; none of them is anybody's, where they are new."""
        rows = [{"number": number, "holder": "", "until": 0} for number in range(self._cap)]
        connection.execute(postgresql.insert(slots).on_conflict_do_nothing(), rows)

    def _sign(self, connection: sa.Connection, name: str) -> None:
        keys = " ".join(self._sealer.names())  # whoever changes the master key looks who has it
        row = {
            "id": name,
            "name": socket.gethostname()[:253],
            "until": moment() + self._seconds,
            "master_keys": keys,
        }
        self._db.put(connection, proxies, row)

    def close(self) -> None:
        """This process ends: gives back everything but the places from which the CA is still asked. Those are free when
        their leases are over, as those of a process that dies."""
        self._ended = True
        self._wake.set()
        # where the database does not answer who begins or lives just now, the leases end by themselves
        if not self._lock.acquire(timeout=LEAVE_SECONDS):
            return
        held = list(self._held)
        self._lock.release()  # who begins has the two locks in this order, and none waits for the first with the second
        if not self._at_the_row.acquire(timeout=LEAVE_SECONDS):
            return
        try:
            if self._id:
                self._leave(held)
        finally:
            self._at_the_row.release()

    def _leave(self, held: list[int]) -> None:
        free = sa.and_(slots.c.holder == self._id, slots.c.number.not_in(held))
        with suppress(StorageError), self._db.begin(alone=False) as connection:
            connection.execute(slots.update().where(free).values(holder="", until=0))
            if not held:
                connection.execute(proxies.delete().where(proxies.c.id == self._id))

    # ---- signs of life --------------------------------------------------------------------------

    def _live(self) -> None:
        good, next_beat = True, time.monotonic() + BEAT
        while not self._ended:
            self._wake.wait(max(0.0, next_beat - time.monotonic()))
            self._wake.clear()
            self._give_back()
            if time.monotonic() < next_beat:
                continue
            try:
                if not good:
                    with self._db.begin(alone=False) as connection:
                        self._furnish(connection)  # it may be another database by now: restored, or a standby
                self._beat()
                good = True
            except Error as err:
                if good:
                    log.error("this proxy cannot say that it lives: %s", err)
                good = False
            next_beat = time.monotonic() + (BEAT if good else TROUBLE_SECONDS)

    def _give_back(self) -> None:
        with self._lock:
            numbers = [number for number in self._given_back if number not in self._held]  # not taken again
            self._given_back = []
        # where the database is away, a place is free when its lease is over
        if numbers:
            with suppress(StorageError), self._db.single() as connection:
                mine = sa.and_(slots.c.number.in_(numbers), slots.c.holder == self._id)
                connection.execute(slots.update().where(mine).values(holder="", until=0))

    def _beat(self) -> None:
        start = time.monotonic()
        with self._lock:
            held = list(self._held)
        with self._at_the_row:
            kept = None if self._ended else self._sign_again(held)
        if kept is not None:
            with self._lock:
                for number in held:
                    if number in self._held:
                        self._held[number] = start + self._seconds if number in kept else 0.0
        self._catch_up()

    def _sign_again(self, held: list[int]) -> set[int]:
        """Those of the places that are still this process's."""
        mine = sa.and_(slots.c.holder == self._id, slots.c.number.in_(held))
        longer = slots.update().where(mine).values(until=moment() + self._seconds).returning(slots.c.number)
        with self._db.begin(alone=False) as connection:
            self._sign(connection, self._id)
            kept = set(connection.execute(longer).scalars()) if held else set()
            connection.execute(proxies.delete().where(proxies.c.until < moment() - KEPT))
        return kept

    def _catch_up(self) -> None:
        while self._later:
            try:
                self._later[0]()
            except StorageError:
                return
            except Error as err:
                log.warning("what came of a request while the database was away counts no more: %s", err)
            del self._later[0]

    def later(self, act: Callable[[], object]) -> bool:
        """What could not be recorded, as the database is away: done when it is back. With the embedded one: False."""
        if not self._db.shared or len(self._later) >= LATER_MAX:
            return False
        self._later.append(act)
        return True

    # ---- places at the CA -----------------------------------------------------------------------

    @contextmanager
    def place(self, patience: float) -> Iterator[bool]:
        """One of the places that all proxies share. False: none was free for so many seconds."""
        if not self._db.shared:
            yield True
            return
        with waiting():
            number = self._take(time.monotonic() + patience)
        if number is None:
            yield False
            return
        mark = _place.set((self, number))
        try:
            yield True
        finally:
            _place.reset(mark)
            with self._lock:
                self._held.pop(number, None)
                self._given_back.append(number)
            self._wake.set()

    def _take(self, deadline: float) -> int | None:
        """The number of a place that was free."""
        values = {"mine": self.holder, "cap": self._cap, "seconds": self._seconds}
        if not self._door.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return None
        try:
            while not self._ended:
                start = time.monotonic()
                with self._db.single() as connection:
                    number = connection.execute(_TAKE, values).scalar()
                if number is not None:
                    with self._lock:
                        self._held[number] = start + self._seconds
                    return int(number)
                if time.monotonic() >= deadline:
                    return None
                time.sleep(TRY_SECONDS * random.uniform(0.5, 1.5))
            return None
        finally:
            self._door.release()

    def outlasts(self, number: int, seconds: float) -> bool:
        """Is that place ours for so long?"""
        with self._lock:
            return time.monotonic() + seconds <= self._held.get(number, 0.0)


def check_place(seconds: float) -> None:
    """An exchange with the CA that takes at most so many seconds begins in this thread: TransportError when the place
    that was taken for it may be somebody else's by its end."""
    found = _place.get()
    if found is not None and not found[0].outlasts(found[1], seconds):
        raise TransportError("this proxy cannot reach its database, and so gives up its place", link="busy")
