"""The audit log for other programs: lines in the order of their ids, each once, as JSON lines or to syslog (RFC 5424)."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..codec.http import plain_line
from ..errors import SettingsError, StorageError, TransportError
from .context import Context
from .database import now
from .schema import audit

__all__ = ["Syslog", "as_json", "keep_position", "kept_position", "lines", "position_at"]

BATCH = 500
LOOK_SECONDS = 1.0
# on PostgreSQL an id is drawn before its line can be seen: a missing one is waited for as long as transactions may last
GAP_SECONDS = 120
PRIORITY = 13 * 8 + 5  # facility "log audit", severity "notice" (RFC 5424 6.2.1)
MESSAGE_ID = 32  # characters (6.2.7)
TIMEOUT = 10.0


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


def kept_position(path: Path) -> int:
    """The id that the file holds; 0 when it is not there. StorageError."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except OSError as err:
        raise StorageError(f"cannot read {path}: {err.strerror}") from None
    except ValueError:
        raise StorageError(
            f"{path} holds no position in the audit log", hint="remove it to begin at the start"
        ) from None


def keep_position(path: Path, position: int) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w") as file:
            file.write(f"{position}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as err:
        raise StorageError(f"cannot write {path}: {err.strerror}") from None


# ---- syslog -------------------------------------------------------------------------------------


class Syslog:
    """A syslog server. target: the path of its socket, udp:HOST:PORT or tcp:HOST:PORT (octet counting, RFC 6587 3.4.1)."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._host = socket.gethostname()[:255] or "-"
        kind, _, rest = target.partition(":")
        host, _, port = rest.rpartition(":")
        self._stream = kind == "tcp"
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

    def __enter__(self) -> Syslog:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, row: Any) -> None:
        """One line. TransportError: it did not get there."""
        text = message(self._host, row)
        try:
            self._socket.sendall(b"%d %s" % (len(text), text) if self._stream else text)
        except OSError as err:
            raise self._failed(err) from None

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
