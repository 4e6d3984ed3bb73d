"""Ports for servers that tests start."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port"]


def free_port() -> int:
    """Of loopback, for a server that is yet to start, and to start again: none that the system gives to those who ask for
    any, and none that this process was given before."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def _below_the_system_s() -> Iterator[int]:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low, high = (10_000, first) if first > 20_000 else (1_100, first)
    begin = os.getpid() * 101
    return (low + (begin + number) % (high - low) for number in itertools.cycle(range(high - low)))


_ports = _below_the_system_s()
