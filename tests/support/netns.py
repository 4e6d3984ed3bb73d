"""A network namespace on a cable of its own, which can be pulled: whoever is in it reaches this machine by that alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.support.peers import missing, peer

__all__ = ["Namespace", "namespace"]

T = TypeVar("T")
NETWORK = "198.18.57"  # RFC 2544: nobody's


@dataclass
class Namespace:
    """here, there: addresses of the cable's ends, of this machine and within."""

    name: str
    cable: str
    here: str = f"{NETWORK}.1"
    there: str = f"{NETWORK}.2"

    def command(self, *args: str) -> tuple[str, ...]:
        """That program, within."""
        return str(peer("ip")), "netns", "exec", self.name, *args

    def inside(self, function: Callable[[], T]) -> T:
        """What the function returns when its connections are made within."""
        found: list[Any] = []

        def act() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self.name}") as place:
                if libc.setns(place.fileno(), 0):  # of this thread alone
                    found.append(OSError(ctypes.get_errno(), "setns"))
                    return
            try:
                found.append(function())
            except Exception as err:
                found.append(err)

        thread = threading.Thread(target=act)
        thread.start()
        thread.join()
        if isinstance(found[0], Exception):
            raise found[0]
        result: T = found[0]
        return result

    def pull(self) -> None:
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        _ip("link", "set", self.cable, "up")


def _ip(*args: str) -> None:
    subprocess.run([peer("ip"), *args], check=True, capture_output=True)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Skipped where nobody may make one."""
    made = Namespace(f"igelcert-{os.getpid()}", f"igc{os.getpid()}")
    try:
        _ip("netns", "add", made.name)
    except subprocess.CalledProcessError as err:
        missing("network namespaces", f"run as root, where they may be made: {err.stderr.decode().strip()}")
    try:
        inner = f"{made.cable}p"
        _ip("link", "add", made.cable, "type", "veth", "peer", "name", inner, "netns", made.name)
        _ip("address", "add", f"{made.here}/30", "dev", made.cable)
        _ip("link", "set", made.cable, "up")
        for words in (
            ("address", "add", f"{made.there}/30", "dev", inner),
            ("link", "set", inner, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", made.name, *words)
        yield made
    finally:
        _ip("netns", "delete", made.name)
