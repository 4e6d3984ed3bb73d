"""The device's commands in forked children of one process that has loaded them: a run costs its work alone.

Started with LD_PRELOAD=cut.so (tests/support/cut.c). A line of JSON in is a job, a line out is how it ended:

    {"argv": ["rmagent", "sync", ...], "out": FILE, "root": DIR, "at": N, "how": 0, "trace": FILE, "ahead": SECONDS}
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback

ITERATIONS = 1000


def child(job: dict[str, object]) -> int:
    from igelcert.device import agent, cli, rmagent_cli

    out = os.open(str(job["out"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if ahead := int(str(job.get("ahead", 0))):
        now = agent._now
        agent._now = lambda: now() + ahead
    named = job.get("trace")
    trace = os.open(str(named), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600) if named else -1
    program, *words = [str(word) for word in job["argv"]]  # type: ignore[attr-defined]
    main = {"igel-certs": cli.main, "rmagent": rmagent_cli.main}[program]
    cut = ctypes.CDLL(None).cut_arm
    cut.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    cut(str(job["root"]).encode(), int(str(job.get("at", 0))), int(str(job.get("how", 0))), trace)
    return main(words)


def main() -> None:
    # what commands import when they need it
    import contextlib  # noqa: F401
    import fcntl  # noqa: F401
    import json
    import shutil  # noqa: F401
    import ssl  # noqa: F401

    from igelcert import crypto
    from igelcert.codec import pem  # noqa: F401
    from igelcert.device import agent, cli, commands, flow, rmagent_cli, straight  # noqa: F401

    # most of a run is the derivation of keys from passwords, which is not what is looked at here
    crypto.Password.__init__.__defaults__ = (ITERATIONS,)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = child(job)
            except SystemExit as err:
                code = int(err.code or 0)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    main()
