"""Hooks: the image's programs that hear of a certificate. Sorted, by argument vector, never a shell.

Each gets the event as its argument and three variables, no input, a bounded time; what it prints goes to
the log. What a hook says never undoes a certificate.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container

from ..record import record
from .config import Config
from .log import Log

__all__ = ["EVENTS", "HOOKS_DIR", "Event", "Heard", "run"]

HOOKS_DIR = "/etc/igelcert/hooks.d"
EVENTS = ("enrolled", "renewed", "failed", "removed")


@record
class Event:
    """kind: one of EVENTS. directory: of the certificate, as this system sees it. reason: why, in words."""

    kind: str
    friendly_name: str
    directory: str
    reason: str = ""


@record
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
            from .hookrun import run_hook  # most devices have none

            log.debug(f"{event.friendly_name}: hook {name} {event.kind}")
            if wrong := run_hook(path, name, event, config.hook_timeout, log):
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
