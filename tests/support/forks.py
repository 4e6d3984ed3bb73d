"""ca-proxy commands in processes that need not load it: a process that has, forks for each one.

Loading takes a command half a second of processor time, and the tests give thousands. What runs is the same code on
the same files, in a process of its own, as of the device's commands in zygote.py (which cuts them, and knows nothing of the
proxy). `tests/cli` and everything that serves start the installed command itself.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

__all__ = ["ca_proxy"]

ROOT = Path(__file__).parents[2]
_lock = threading.Lock()
_forker: list[subprocess.Popen[str]] = []


def ca_proxy(args: list[str], env: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """A command's end, as of subprocess.run with its output captured as text."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _lock:
        place = f"/proc/{os.getpid()}/fd"
        files = {name: f"{place}/{file.fileno()}" for name, file in (("out", out), ("err", err))}
        code = _order({"args": args, "env": env, "cwd": str(Path.cwd()), **files}, timeout)
        out.seek(0)
        err.seek(0)
        texts = [file.read().decode() for file in (out, err)]
    return subprocess.CompletedProcess(["ca-proxy", *args], code, *texts)


def _order(order: dict[str, Any], timeout: float) -> int:
    if not _forker:
        command = [sys.executable, "-m", "tests.support.forks"]
        made = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        _forker.append(made)
        atexit.register(_end)
    process = _forker[0]
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    pid = int(process.stdout.readline())
    late = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
    late.start()
    code = int(process.stdout.readline())
    late.cancel()
    if code == -signal.SIGKILL:
        raise subprocess.TimeoutExpired(["ca-proxy", *order["args"]], timeout)
    return code


def _end() -> None:
    for process in _forker:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def _serve(orders: IO[str], answers: IO[str]) -> None:
    """One command after the other: its process ID, then its exit code."""
    for line in orders:
        if not (pid := os.fork()):
            _become(json.loads(line))
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(order: dict[str, Any]) -> None:
    """The command, to its end."""
    from igelcert.proxy.cli import main

    code = 1
    try:
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
            file = os.open(path, os.O_RDWR)
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        sys.argv = ["ca-proxy", *order["args"]]
        code = main(order["args"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    from igelcert.proxy import cli, initialise  # noqa: F401 - what it is here for

    _serve(sys.stdin, sys.stdout)
