"""How the resident agent comes to be: a small process that holds nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

from . import files
from .agenda import RUN_LOCK
from .config import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["become_resident", "child_command", "wake"]

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEAVY = {"argparse", "igelcert.crypto", "site", "tomllib"}


def child_command(root: str, config_file: str | None) -> list[str]:
    """What the resident agent starts when there is work: `rmagent sync --paced`, by a shorter way."""
    program = (
        "import gc, os, sys; gc.set_threshold(20_000); "
        f"sys.path[:] = {[*sys.path, PACKAGE]!r}; from igelcert.device.paced import main; "
        # when it is done, nothing is left that tidying up would end
        f"os._exit(main({root!r}, {config_file!r}))"
    )
    # the last words are for those who look at the processes
    return [sys.executable, "-I", "-S", "-c", program, "rmagent", "sync", "--paced"]


def become_resident(
    config: Config, root: str, config_file: str | None, wait: int, *, verbose: bool
) -> NoReturn:
    """Goes on as the resident agent; where this process has loaded more than that needs, in an interpreter that has not.

    The command line parser, TOML, the core: all that a run needs is its child's. -I -S: neither the
    environment nor site-packages add to it; the path of this package is handed over, and to the child ours.
    """
    plan = {
        "agent_dir": config.agent_dir,
        "server": config.server,
        "wait": wait,
        "level": config.log_level,
        "screen": verbose,
        "watch_network": not root,
        "child": child_command(root, config_file),
    }
    if HEAVY.isdisjoint(sys.modules):
        from . import resident

        sys.exit(resident.live(plan))
    start = f"import sys; sys.path.append({PACKAGE!r}); from igelcert.device.resident import main; main()"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", start, json.dumps(plan)])  # noqa: S606


def wake(agent_dir: str) -> None:
    """Tells a resident agent of this device, if one runs, that there is something to look at."""
    import fcntl

    with contextlib.suppress(OSError, ValueError):
        path = os.path.join(agent_dir, RUN_LOCK)
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.kill(int(files.read(path, 20)), signal.SIGHUP)
        finally:
            os.close(handle)
