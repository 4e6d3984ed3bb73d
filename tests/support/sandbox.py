"""A machine for foreign daemons: network, mounts and processes of its own, on this kernel and with these programs.

Its /etc has little more than what programs need to start, its /run is empty, and what runs in it ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers import missing, peer

__all__ = ["Machine", "machine"]

TIMEOUT = 90
KEPT = ("alternatives", "dbus-1", "group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd", "ssl/openssl.cnf",
        "strongswan.conf", "strongswan.d")  # fmt: skip
# sysfs read-only: NetworkManager then knows that there is no udev
INSIDE = """
mount --bind "$1/etc" /etc && mount -t tmpfs -o mode=755 tmpfs /run && mount -t sysfs -o ro sysfs /sys &&
    ip link set lo up && echo ready && exec sleep infinity
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """dir: etc/ is its /etc, logs of its programs lie beside. pid: of its first process."""

    dir: Path
    pid: int

    @property
    def etc(self) -> Path:
        return self.dir / "etc"

    @property
    def proc(self) -> Path:
        """Its root directory as seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    def enter(self, *args: object, net: bool = True) -> list[str]:
        """The words that run a command in it; net=False: with the network of the tests."""
        nsenter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", *(["--net"] if net else [])]
        return [*nsenter, "--", *map(str, args)]

    def run(
        self, *args: object, env: dict[str, str] | None = None, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """A command's end. Its exit code must be `code`; None: any."""
        done = subprocess.run(
            self.enter(*args), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=TIMEOUT,
        )  # fmt: skip
        assert code is None or done.returncode == code, (
            f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    @contextlib.contextmanager
    def running(self, name: str, *args: object, env: dict[str, str] | None = None) -> Iterator[Path]:
        """A daemon in the foreground until the end of the block; yields its log."""
        log = self.dir / f"{name}.log"
        full = None if env is None else {**os.environ, **env}
        with log.open("ab") as sink:
            process = subprocess.Popen(
                self.enter(*args), env=full, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        try:
            yield log
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)


@contextlib.contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """`directory` is made. Skipped (with CI=true: failed) where this user may make no namespaces."""
    peer("ip")
    (directory / "etc/ssl").mkdir(parents=True)
    for name in KEPT:
        place = Path("/etc", name)
        if place.is_dir():
            shutil.copytree(place, directory / "etc" / name, symlinks=True)
        elif place.exists():
            shutil.copy(place, directory / "etc" / name)
    words = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (directory / "machine.log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "sh", "-c", INSIDE, "sh", str(directory)], stdout=subprocess.PIPE, stderr=log
        )
    try:
        assert process.stdout is not None
        with process.stdout as out:
            ready = out.readline()
        if ready != b"ready\n":
            why = (directory / "machine.log").read_text().strip()
            missing("namespaces", f"run the tests as root, where root may make them ({why})")
        first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Machine(directory, int(first[0]))
    finally:
        process.kill()  # and the kernel ends all that runs in it
        process.wait(30)
