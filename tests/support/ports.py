"""Ports for servers that tests start."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port"]


def free_port() -> int:
    """Of loopback, for a server that is yet to start, and to start again: none that the system gives to those who ask for
    any, where it leaves some, and none that this process was given before."""
    for _ in range(TRIES):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", next(_ports))) as found:
            return int(found.getsockname()[1])
    raise AssertionError("no port is free")


def _below_the_system_s() -> Iterator[int]:
    high = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low = 10_000
    if high - low < TRIES:
        return itertools.repeat(0)
    number = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", ""))  # workers keep apart
    begin = int(number) * 1500 + os.getpid() if number else os.getpid() * 101
    return (low + (begin + number) % (high - low) for number in itertools.count())


TRIES = 10_000
_ports = _below_the_system_s()
