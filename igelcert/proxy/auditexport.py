"""The audit log for other programs: lines in the order of their ids, each once, as JSON lines or to syslog (RFC 5424)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import select
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..codec.http import plain_line
from ..errors import SettingsError, StorageError, TransportError
from .context import Context
from .database import now
from .schema import audit

__all__ = [
    "Mark",
    "Printed",
    "Syslog",
    "as_json",
    "file_of",
    "keep_marks",
    "kept_marks",
    "lines",
    "position_at",
    "still_true",
    "with_mark",
]

BATCH = 500
LOOK_SECONDS = 1.0
# on PostgreSQL an id is drawn before its line can be seen: a missing one is waited for as long as transactions may last
GAP_SECONDS = 120
PRIORITY = 13 * 8 + 5  # facility "log audit", severity "notice" (RFC 5424 6.2.1)
MESSAGE_ID = 32  # characters (6.2.7)
TIMEOUT = 10.0
FINISH_SECONDS = 2.0
GLANCE = 0.01
DIGEST = 32  # hexadecimal digits
_MARK = re.compile(r"(\d{1,18})(?: ([0-9a-f]{32}))?")


def position_at(context: Context, moment: int) -> int:
    """The id after which lines are of that moment or later."""
    query = sa.select(sa.func.max(audit.c.id)).where(audit.c.at < moment)
    with context.db.read() as connection:
        return int(connection.execute(query).scalar() or 0)


def lines(context: Context, position: int, follow: Callable[[], bool]) -> Iterator[Any]:
    """Rows with an id above `position`, the oldest first; and what is written from then on while follow() says so."""
    while True:
        query = sa.select(audit).where(audit.c.id > position).order_by(audit.c.id).limit(BATCH)
        with context.db.read() as connection:
            found = connection.execute(query).all()
        for row in found:
            if context.db.shared and row.id > position + 1 and position and row.at > now() - GAP_SECONDS:
                break
            position = row.id
            yield row
        else:
            if len(found) == BATCH:
                continue
        if not follow():
            return
        time.sleep(LOOK_SECONDS)


def file_of(context: Context) -> tuple[int, int] | None:
    """Which file the embedded database is: it may be restored while somebody follows what was there before."""
    if context.db.shared:
        return None
    try:
        found = (context.data / "proxy.db").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def as_json(row: Any) -> dict[str, Any]:
    """at: seconds since 1970; time: the same for people, RFC 3339."""
    return {
        "id": row.id,
        "at": row.at,
        "time": _time(row.at),
        "actor": row.actor,
        "action": row.action,
        "detail": row.detail,
    }


def _time(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


# ---- where somebody else left off ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """A line that was given away. digest: by which it is known again, as a restored log gives its ids to other lines;
    "" where a program of before noted the id alone."""

    id: int
    digest: str


def mark_of(row: Any) -> Mark:
    return Mark(row.id, hashlib.sha256(json.dumps(as_json(row)).encode()).hexdigest()[:DIGEST])


def kept_marks(path: Path) -> list[Mark]:
    """What the file holds, the last line that was given away first; empty when it is not there. StorageError."""
    try:
        found = [_MARK.fullmatch(line) for line in path.read_text("ascii").splitlines()]
    except FileNotFoundError:
        return []
    except OSError as err:
        raise StorageError(f"cannot read {path}: {err.strerror}") from None
    except UnicodeDecodeError:
        found = []
    if not found or None in found:
        raise StorageError(
            f"{path} holds no position in the audit log", hint="remove it to begin at the start"
        )
    return [Mark(int(each[1]), each[2] or "") for each in found if each is not None]


def still_true(context: Context, marks: list[Mark]) -> list[Mark]:
    """The marks from the first on that is a line of this log."""
    with context.db.read() as connection:
        for number, mark in enumerate(marks):
            row = connection.execute(sa.select(audit).where(audit.c.id == mark.id)).one_or_none()
            if mark.id == 0 or (row is not None and mark.digest in {"", mark_of(row).digest}):
                return marks[number:]
    return []


def with_mark(marks: list[Mark], row: Any) -> list[Mark]:
    """One more, first. Of the older ones fewer are kept the farther they lie back, so that after a restore it goes on near
    where the logs part."""
    new, kept = mark_of(row), dict[int, Mark]()
    for mark in (new, *marks):  # the oldest of each power of two
        kept[(new.id - mark.id).bit_length()] = mark
    return list(kept.values())


def keep_marks(path: Path, marks: list[Mark]) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w") as file:
            file.writelines(f"{mark.id} {mark.digest}".rstrip() + "\n" for mark in marks)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from None


# ---- where lines go -----------------------------------------------------------------------------


class Printed:
    """Standard output. at_once: each line by itself, for who follows."""

    lags = False

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once

    def send(self, row: Any) -> None:
        print(json.dumps(as_json(row), ensure_ascii=False), flush=self._at_once)

    def settle(self) -> None:
        sys.stdout.flush()

    finish = settle

    def close(self) -> None:
        pass


class Syslog:
    """A syslog server. target: the path of its socket, udp:HOST:PORT or tcp:HOST:PORT (octet counting, RFC 6587 3.4.1).

    lags: that lines are there is known only when it still stands some time later. Over TCP, who writes to a server that
    went away hears of it afterwards, over UDP perhaps.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._host = socket.gethostname()[:255] or "-"
        kind, _, rest = target.partition(":")
        host, _, port = rest.rpartition(":")
        self._stream = kind == "tcp"
        self.lags = not target.startswith("/")
        try:
            if target.startswith("/"):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.connect(target)
            elif (
                kind in {"tcp", "udp"} and host and port.isascii() and port.isdecimal() and int(port) < 65_536
            ):
                self._socket = _connected(kind, host.strip("[]"), int(port))
            else:
                raise SettingsError(
                    "--syslog",
                    f"{target!r} is not the path of a socket from / on, udp:HOST:PORT or tcp:HOST:PORT",
                )
        except OSError as err:
            raise self._failed(err) from None

    def close(self) -> None:
        self._socket.close()

    def send(self, row: Any) -> None:
        """One line. TransportError: it did not get there, and neither did, perhaps, what was sent since it settled."""
        text = message(self._host, row)
        try:
            self._look()
            self._socket.sendall(b"%d %s" % (len(text), text) if self._stream else text)
        except OSError as err:
            raise self._failed(err) from None

    def settle(self) -> None:
        """Waits until the other end's kernel has what was sent. TransportError: it has not, or nobody listens there."""
        try:
            end = time.monotonic() + TIMEOUT
            while self._outstanding():
                self._look()
                if time.monotonic() > end:
                    raise TimeoutError("it takes nothing any more")
                time.sleep(GLANCE)
            self._look()
        except OSError as err:
            raise self._failed(err) from None

    def finish(self) -> None:
        """The last lines were sent: over TCP, waits a moment for the server to have read to their end."""
        self.settle()
        if not self._stream:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(FINISH_SECONDS)
            while self._socket.recv(4096):
                pass
        except TimeoutError:
            pass  # it keeps the connection: all of it is in its hands
        except OSError as err:
            raise self._failed(err) from None

    def _outstanding(self) -> int:
        """Octets that the other end has not acknowledged."""
        if not self._stream:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def _look(self) -> None:
        """OSError when the other end is known to be gone: a write would succeed all the same."""
        if error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        if not self._stream:
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        for _, events in poll.poll(0):
            gone = events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR)
            if gone or not self._socket.recv(4096):  # what it says is nothing to us
                raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")

    def _failed(self, err: OSError) -> TransportError:
        return TransportError(
            f"syslog at {plain_line(self._target, 200)} does not take the audit log: {err.strerror or err}",
            link="syslog",
            hint="is it running, and does it listen there?",
        )


def _connected(kind: str, host: str, port: int) -> socket.socket:
    if kind == "tcp":
        return socket.create_connection((host, port), TIMEOUT)
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.connect(address)
    return made


def message(host: str, row: Any) -> bytes:
    """RFC 5424 6: the line as JSON, in ASCII; the action is its message ID."""
    action = "".join(char if "!" <= char <= "~" else "_" for char in row.action)[:MESSAGE_ID] or "-"
    name = "".join(char if "!" <= char <= "~" else "_" for char in host)
    head = f"<{PRIORITY}>1 {_time(row.at)} {name} ca-proxy {os.getpid()} {action} - "
    return (head + json.dumps(as_json(row))).encode("ascii")
