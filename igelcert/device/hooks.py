"""Hooks: the image's programs that hear of a certificate. Sorted, by argument vector, never a shell.

Each gets the event as its argument and three variables, no input, a bounded time; what it prints goes to
the log. What a hook says never undoes a certificate.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Container
from dataclasses import dataclass

from .config import Config
from .log import Log

__all__ = ["EVENTS", "HOOKS_DIR", "Event", "Heard", "run"]

HOOKS_DIR = "/etc/igelcert/hooks.d"
EVENTS = ("enrolled", "renewed", "failed", "removed")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LINES_MAX = 40  # of one hook, in the log
LINE_MAX = 300
READ_MAX = 65_536
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True, slots=True)
class Event:
    """kind: one of EVENTS. directory: of the certificate, as this system sees it. reason: why, in words."""

    kind: str
    friendly_name: str
    directory: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """heard: names of hooks that ended well. failed: what the others did, in words; "" when there are none."""

    heard: tuple[str, ...]
    failed: str


def run(config: Config, event: Event, log: Log, done: Container[str] = ()) -> Heard:
    """Runs every hook but those that heard of this event already. A failed one does not stop the others."""
    directory = config.at(HOOKS_DIR)
    heard, failed = [], []
    for name in _names(directory):
        path = os.path.join(directory, name)
        if problem := _unfit(path):
            if problem != "not executable":
                log.warning(f"hook {name} is passed over: {problem}")
            continue
        if name not in done:
            log.debug(f"{event.friendly_name}: hook {name} {event.kind}")
            if wrong := _one(path, name, event, config.hook_timeout, log):
                log.error(f"{event.friendly_name}: hook {name} {wrong}")
                failed.append(f"{name} {wrong}")
                continue
        heard.append(name)
    return Heard(tuple(heard), "; ".join(failed))


def _names(directory: str) -> list[str]:
    """In the order of their names. What editors and package managers leave beside them does not count."""
    try:
        found = os.listdir(directory)
    except OSError:
        return []
    leftovers = (".dpkg-old", ".dpkg-new", ".dpkg-dist", ".rpmsave", ".rpmnew", ".bak", "~")
    return sorted(name for name in found if not name.startswith(".") and not name.endswith(leftovers))


def _unfit(path: str) -> str:
    """Why a file is not run; "" when it is."""
    try:
        info = os.stat(path)
    except OSError as err:
        return err.strerror or "it cannot be looked at"
    if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111:
        return "not executable"
    if info.st_mode & 0o022:
        return "others than its owner may write it"
    if info.st_uid not in {0, os.geteuid()}:
        return "it belongs to somebody else"
    return ""


def _one(path: str, name: str, event: Event, timeout: int, log: Log) -> str:
    """What went wrong, or ""."""
    environment = {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "IGELCERT_FRIENDLY_NAME": event.friendly_name,
        "IGELCERT_DIR": event.directory,
        "IGELCERT_REASON": event.reason,
    }
    try:
        process = subprocess.Popen(  # noqa: S603 - the image's own programs, by argument vector
            [path, event.kind],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
            umask=0o077,
        )
    except OSError as err:
        return f"cannot be started: {err.strerror}"
    with process:
        assert process.stdout is not None
        ended = _listen(process, process.stdout.fileno(), name, timeout, log)
        # what it left running in its session keeps nothing of ours open, and goes when it did not end in time
        if not ended:
            _end(process)
            return f"did not end within {timeout} seconds and was stopped"
        code = process.wait()
    if code == 0:
        return ""
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit status {code}"


def _listen(process: subprocess.Popen[bytes], pipe: int, name: str, timeout: int, log: Log) -> bool:
    """Logs what the hook prints until it ends; False when its time is over first."""
    deadline = time.monotonic() + timeout
    lines, rest, closed = 0, b"", False
    os.set_blocking(pipe, False)
    while (left := deadline - time.monotonic()) > 0:
        if not closed:
            # a child of the hook may hold the pipe for ever: the hook's own end is looked for, too
            ready = select.select([pipe], [], [], min(left, 0.2))[0]
            if ready:
                data = _read(pipe)
                closed = data == b""
                lines, rest = _say(rest + (data or b""), lines, name, log, last=closed)
        if closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, left))
        if process.poll() is not None:
            if not closed:
                _say(rest + (_read(pipe) or b""), lines, name, log, last=True)
            return True
    return False


def _read(pipe: int) -> bytes | None:
    """b"" at the end, None when there is nothing now."""
    try:
        return os.read(pipe, READ_MAX)
    except BlockingIOError:
        return None


def _say(data: bytes, lines: int, name: str, log: Log, *, last: bool) -> tuple[int, bytes]:
    """Whole lines to the log, at most LINES_MAX; returns their number so far and what is left over."""
    *whole, rest = data.split(b"\n")
    if last and rest:
        whole, rest = [*whole, rest], b""
    for line in whole:
        if lines < LINES_MAX and line.strip():
            log.info(f"hook {name}: {line[:LINE_MAX].decode('utf-8', 'replace')}")
        elif lines == LINES_MAX:
            log.info(f"hook {name}: what else it prints is left out")
        lines += 1
    return lines, rest[:READ_MAX]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the hook and all that it started: first kindly."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
            if number == signal.SIGKILL:
                return
