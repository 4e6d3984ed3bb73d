"""SQLite has one writer at a time, and each commit waits for the disk. Threads that want to write at the same time share a
transaction and its commit: one after the other does its part, the last commits, and each returns when that is done.

A part that fails is undone alone (a savepoint). When the commit fails, or the database itself fails in a part, all parts of
it have failed.

Processes of one proxy take turns by the lock of a file: SQLite's own waiting sleeps and looks again, for up to a tenth of a
second.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from .turns import waiting

__all__ = ["Writing"]

PARTS = 32  # of one transaction


class _Shared:
    """A transaction under way. done: it is over; error: how, None for well."""

    def __init__(self, scope: AbstractContextManager[sa.Connection]) -> None:
        self.scope = scope
        self.connection = scope.__enter__()
        self.parts = 0
        self.done = threading.Event()
        self.error: BaseException | None = None


class Writing:
    """begin: a transaction that writes, as a context manager. Safe for threads."""

    def __init__(self, begin: Callable[[], AbstractContextManager[sa.Connection]]) -> None:
        self._begin = begin
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._waiting = 0
        self._open: _Shared | None = None  # left by who had the turn before, for who waits for it
        self._file = -1

    def share(self, path: str | os.PathLike[str]) -> None:
        """Other processes write there, too, and call this with the same path."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def part(self, *, single: bool = False) -> Iterator[sa.Connection]:
        """A part of a transaction; what is done in it is on disk afterwards. Raises what the database says.

        single: it is one statement, which SQLite undoes by itself when it fails: no savepoint is needed for it.
        """
        # who writes is alone at that: what others wait for does not wait for a turn of the interpreter
        with waiting():
            yield from self._part(single)

    def _part(self, single: bool) -> Iterator[sa.Connection]:
        shared = self._take()
        try:
            shared.parts += 1
            if shared.parts == 1 or single:  # alone so far: nobody's part would be undone with it
                yield shared.connection
            else:
                with shared.connection.begin_nested():
                    yield shared.connection
        except BaseException as err:
            broken = isinstance(err, DBAPIError) and not isinstance(err, IntegrityError)
            if shared.parts == 1 or broken:
                self._end(shared, err)
            else:
                self._pass_on(shared)
            raise
        self._pass_on(shared)
        shared.done.wait()
        if shared.error is not None:
            raise shared.error

    def _take(self) -> _Shared:
        """Our turn, with the transaction that is open, or a new one."""
        with self._count:
            self._waiting += 1
        self._turn.acquire()
        with self._count:
            self._waiting -= 1
        shared, self._open = self._open, None
        if shared is None:
            try:
                self._lock_file()
                shared = _Shared(self._begin())
            except BaseException:
                self._release()
                raise
        return shared

    def _lock_file(self) -> None:
        if self._file < 0:
            return
        # who has it is bounded itself, and a process that dies leaves it
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def _release(self) -> None:
        if self._file >= 0:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
        self._turn.release()

    def _pass_on(self, shared: _Shared) -> None:
        """Leaves the transaction to who waits; commits it when nobody does."""
        with self._count:
            others = self._waiting > 0
        if others and shared.parts < PARTS:
            self._open = shared
            self._turn.release()
        else:
            self._end(shared, None)

    def _end(self, shared: _Shared, error: BaseException | None) -> None:
        """Commits, or undoes all of it for an error."""
        try:
            if error is None:
                shared.scope.__exit__(None, None, None)
            else:
                shared.error = error
                shared.scope.__exit__(type(error), error, error.__traceback__)
        except BaseException as err:
            shared.error = err
        finally:
            shared.done.set()
            self._release()
