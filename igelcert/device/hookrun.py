"""One hook as a process: what it gets, how long it may take, what of its output the log keeps."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time

from .hooks import Event
from .log import Log

__all__ = ["run_hook"]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LINES_MAX = 40  # of one hook, in the log
LINE_MAX = 300
READ_MAX = 65_536
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL


def run_hook(path: str, name: str, event: Event, timeout: int, log: Log) -> str:
    """What went wrong, in words that follow the hook's name; "" when it ended well. timeout: seconds."""
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
