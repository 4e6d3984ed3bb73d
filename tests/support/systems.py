"""Clean Debian systems, unpacked of what scripts/peers made: programs run in them as on a machine of their own.

They share this machine's network. What is mounted is so in the namespace of one command, and gone with it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers import clean_system, missing

__all__ = ["System", "unpack", "until"]

_ENTER = (
    'mount -t proc proc "$0/proc" && mount -t tmpfs -o mode=1777 shm "$0/dev/shm" && exec chroot "$0" "$@"'
)
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


@dataclass
class System:
    root: Path

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def words(self, *command: str, network: bool = True) -> list[str]:
        apart = ["unshare", "--mount"] if network else ["unshare", "--mount", "--net"]
        return [*apart, "sh", "-c", _ENTER, str(self.root), *command]

    def run(self, *command: str, code: int = 0, network: bool = True, timeout: float = 120) -> str:
        """stdout and stderr of a command of this system, run by its root, which must end with that code."""
        done = subprocess.run(
            self.words(*command, network=network),
            env=_ENVIRONMENT,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, *command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A program of this system until the end of the block, then SIGTERM, on which it must end with 0."""
        with log.open("ab") as sink:
            process = subprocess.Popen(self.words(*command), env=_ENVIRONMENT, stdout=sink, stderr=sink)
        try:
            yield process
            assert process.poll() is None, f"{command} ended:\n{log.read_text()}"
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(30)

    def install(self, *packages: Path) -> str:
        """Installs these packages, and what they depend on of what scripts/peers fetched; no network."""
        at = self.at("/packages")
        at.mkdir()
        for package in packages:
            (at / package.name).write_bytes(package.read_bytes())
        names = [f"/packages/{package.name}" for package in packages]
        said = self.run(
            "apt-get", "-o", "Dpkg::Options::=--force-unsafe-io", "-o", "APT::Sandbox::User=root", "--quiet", "--yes",
            "--no-install-recommends", "install", *names, network=False, timeout=1200,
        )  # fmt: skip
        for package in at.iterdir():
            package.unlink()
        at.rmdir()
        return said

    def paths(self) -> set[str]:
        """Every file, link and directory, from the root on; not what the kernel shows."""
        found = set()
        for place, names, files in os.walk(self.root):
            if Path(place) == self.root:
                names[:] = [name for name in names if name not in {"proc", "sys", "dev"}]
            found.update(
                "/" + os.path.relpath(os.path.join(place, name), self.root) for name in names + files
            )
        return found


def unpack(suite: str, kind: str, root: Path) -> System:
    if os.geteuid() != 0:
        missing("chroot", "run the tests as root")
    root.mkdir()
    archive = clean_system(suite, kind)
    subprocess.run(
        ["tar", "--extract", "--numeric-owner", "--file", archive, "--directory", root], check=True
    )
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    # a package's service is not started: no init runs here
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    return System(root)


def until(path: Path, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    """Waits for a file that the program makes."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
