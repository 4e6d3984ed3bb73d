"""Guests: images of scripts/image, booted by scripts/qemu, and spoken to over their second serial port."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.peers import missing

__all__ = ["Guest", "boot", "image", "make_disk", "make_seed", "online", "read_disk", "tool"]

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
BOOT_SECONDS = 120
DISK_BYTES = 16 << 20
INPUTS = (
    "scripts/image",
    "scripts/stage",
    "setup.py",
    "constraints.txt",
    "image",
    "rootfs",
    "native",
    "igelcert",
)
# The seed's program: a shell without prompt or echo; the test says the words.
TALK = """\
#!/bin/sh
stty raw -echo
echo "ready $(cut -d' ' -f1 /proc/uptime)"
sh 2>/dev/null | cat
"""


def tool(name: str) -> str:
    """A program that scripts/peers installs; without it the test is skipped, in CI it fails."""
    return shutil.which(name, path=PATH) or missing(name)


def run(*args: str | Path, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [tool(str(args[0])), *map(str, args[1:])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in codes, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ---- images -------------------------------------------------------------------------------------


def _digest() -> str:
    """Of everything that an image is made of, but Debian's packages."""
    found = hashlib.sha256()
    for name in INPUTS:
        place = ROOT / name
        paths = [place] if place.is_file() else sorted(place.rglob("*"))
        for path in paths:
            inside = path.relative_to(ROOT)
            if (
                path.is_file()
                and not {"__pycache__", "proxy", "labca", "build"} & set(inside.parts)
                and path.suffix != ".so"
            ):
                found.update(f"{inside}\0{os.access(path, os.X_OK)}\0".encode())
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


def image(kind: str) -> Path:
    """The image of the present sources: from the cache, or made now."""
    for name in (
        "qemu-system-x86_64",
        "mksquashfs",
        "cpio",
        "mke2fs",
        "debugfs",
        "e2fsck",
        "apt-get",
        "dpkg-deb",
    ):
        tool(name)
    cache = Path(os.environ.get("IGELCERT_IMAGES") or Path.home() / ".cache/igelcert-images")
    place = cache / f"test-{kind}-{_digest()}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{kind}.lock").open("w") as lock:  # one that makes it, others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make(kind, cache, place)
    return place


def _make(kind: str, cache: Path, place: Path) -> None:
    if not (place / "bom.json").exists():
        for old in cache.glob(f"test-{kind}-*"):
            if time.time() - old.stat().st_mtime > 3 * 86_400:
                (old / "bom.json").unlink(missing_ok=True)  # without it the rest does not count
                shutil.rmtree(old, ignore_errors=True)
        done = subprocess.run(
            [ROOT / "scripts/image", kind, "--out", place], capture_output=True, text=True, timeout=1200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


# ---- disks --------------------------------------------------------------------------------------


def make_disk(path: Path) -> Path:
    """An empty /wfs."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    run("mke2fs", "-q", "-t", "ext4", path)
    return path


def make_seed(path: Path, files: Mapping[str, str | bytes], early: str = "") -> Path:
    """The seed disk: files for the guest at /seed, and the programs that it runs there."""
    tree = path.with_suffix(".d")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name, content in {**files, "start": TALK, "early": early or "#!/bin/sh\n"}.items():
        (tree / name).write_bytes(content.encode() if isinstance(content, str) else content)
        (tree / name).chmod(0o755)
    path.unlink(missing_ok=True)
    run("mksquashfs", tree, path, "-quiet", "-no-progress", "-noappend", "-all-root")
    return path


def read_disk(disk: Path, to: Path) -> Path:
    """What is on an ext4 disk, in the directory `to`; the disk itself stays as it is. e2fsck may repair, once."""
    copy = to.with_suffix(".ext4")
    shutil.copyfile(disk, copy)
    run("e2fsck", "-fy", copy, codes=(0, 1))
    run("e2fsck", "-fn", copy)
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    run("debugfs", "-R", f"rdump / {to}", copy)
    copy.unlink()
    return to


# ---- guests -------------------------------------------------------------------------------------


@dataclass
class Guest:
    """A booted image. `ready`: seconds from its start until the seed's program ran."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    place: Path
    ready: float = 0.0
    _rest: bytes = field(default=b"", repr=False)

    def _until(self, pattern: bytes, seconds: float) -> re.Match[bytes]:
        end = time.monotonic() + seconds
        while True:
            if found := re.search(pattern, self._rest):
                self._rest = self._rest[found.end() :]
                return found
            left = end - time.monotonic()
            assert left > 0, f"nothing like {pattern!r} within {seconds} s:\n{self.story()}"
            self.line.settimeout(left)
            try:
                piece = self.line.recv(65536)
            except TimeoutError:
                continue
            assert piece, f"the guest ended before {pattern!r}:\n{self.story()}"
            self._rest += piece.replace(b"\r", b"")

    def story(self) -> str:
        console = self.place / "console"
        return f"{self._rest.decode(errors='replace')[-3000:]}\n-- console\n{console.read_text(errors='replace')[-3000:]}"

    def do(self, command: str, *, code: int | None = 0, seconds: float = 120) -> str:
        """Output of a shell command in the guest, which must end with that code."""
        self.line.sendall(f'( {command}\n) 2>&1 </dev/null; echo "=end= $?"\n'.encode())
        found = self._until(rb"(?s)(.*?)=end= (\d+)\n", seconds)
        text, got = found[1].decode(errors="replace"), int(found[2])
        assert code is None or got == code, (
            f"{command}: exit {got}\n{text}\n{self.journal() if code == 0 else ''}"
        )
        return text

    def uptime(self) -> float:
        return float(self.do("cut -d' ' -f1 /proc/uptime"))

    def journal(self) -> str:
        """As contracts have it."""
        return self.do("journalctl --no-pager -o short-monotonic | egrep 'rmagent|igel-certs'", code=None)

    def await_journal(self, pattern: str, seconds: float = 180) -> re.Match[str]:
        """The first line of our journal that fits, when it comes."""
        end = time.monotonic() + seconds
        while True:
            text = self.journal()
            if found := re.search(pattern, text, re.MULTILINE):
                return found
            assert time.monotonic() < end, f"no {pattern!r} in the journal within {seconds} s:\n{text}"
            time.sleep(0.7)  # looking takes the guest's time

    def power_off(self, seconds: float = 120) -> None:
        """As its user does: services end, disks are unmounted."""
        with contextlib.suppress(OSError):
            # busybox's shell takes its own poweroff first, which systemd does not understand
            self.line.sendall(b"[ ! -d /run/systemd/system ] || systemctl poweroff; poweroff\n")
        assert self.process.wait(seconds) == 0

    def kill(self) -> None:
        """The plug is pulled."""
        self.process.kill()
        self.process.wait(30)

    def plug(self, *, up: bool = True) -> None:
        """The network cable."""
        self.monitor("set_link", name="nic", up=up)

    def monitor(self, command: str, **arguments: Any) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(60)
            link.connect(str(self.place / "qmp"))
            stream = link.makefile("rwb")
            stream.readline()
            for each in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                stream.write(json.dumps(each).encode() + b"\n")
                stream.flush()
                while True:
                    answer = json.loads(stream.readline())
                    if "return" in answer or "error" in answer:
                        break
                assert "return" in answer, answer


def online(guest: Guest) -> None:
    """Waits until the guest has its address."""
    guest.do(
        "for i in $(seq 900); do ip addr show eth0 | grep -q 'inet ' && exit; usleep 100000; done; false"
    )


@contextlib.contextmanager
def boot(
    kind: str, place: Path, disk: Path, seed: Path, *options: str, unplugged: bool = False, wait: bool = True
) -> Iterator[Guest]:
    """A guest until the end of the block; whatever then still runs is ended. `options` of scripts/qemu.

    unplugged: without network until its monitor says otherwise. wait: until it is ready for commands.
    """
    place.mkdir(parents=True, exist_ok=True)
    control = place / "control"
    for stale in (control, place / "qmp"):
        stale.unlink(missing_ok=True)
    # a UNIX socket's path is short: relative to the directory
    files = ["--image", image(kind), "--wfs", disk, "--seed", seed]
    ports = ["--console", place / "console", "--control", control, "--qmp", place / "qmp"]
    stopped = ["--", "-S"] if unplugged else []
    command = [ROOT / "scripts/qemu", kind, "--memory", "128", *files, *ports, *options, *stopped]
    (place / "console").write_bytes(b"")
    with (place / "qemu.log").open("wb") as log:
        process = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with _connected(control, process, place / "qemu.log") as line:
            guest = Guest(process, line, place)
            if unplugged:
                guest.plug(up=False)
                guest.monitor("cont")
            if wait:
                guest.ready = float(guest._until(rb"ready ([\d.]+)\n", BOOT_SECONDS)[1])
            yield guest
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


@contextlib.contextmanager
def _connected(path: Path, process: subprocess.Popen[bytes], log: Path) -> Iterator[socket.socket]:
    end = time.monotonic() + 90
    with socket.socket(socket.AF_UNIX) as line:
        while True:
            try:
                line.connect(str(path))
                break
            except OSError:
                assert process.poll() is None, f"QEMU ended:\n{log.read_text()}"
                assert time.monotonic() < end, f"QEMU does not open {path}:\n{log.read_text()}"
                time.sleep(0.05)
        yield line
