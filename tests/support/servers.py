"""Processes of our commands (tests.support.chain), and devices that enroll straight at a CA, without a proxy."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.chain import LabCa, Proxy, command, lab_ca, proxy, run

__all__ = ["PASSWORD", "Host", "LabCa", "Proxy", "command", "device", "lab_ca", "proxy", "run", "straight"]

PASSWORD = "correct horse"
TRUST = "/etc/igelcert/ca.pem"  # as the device sees it


def straight(name: str, port: int, key_type: str = "ec_prime256v1", **more: Any) -> dict[str, Any]:
    """A certificate of the settings that is asked for straight at an EST server on this machine.

    `more`: keys of the `est` object ("username" ...), or objects beside it ("subject", "key", "subjaltname").
    """
    beside = {key: more.pop(key) for key in ("subject", "subjaltname", "key") if key in more}
    target = {"server": f"https://localhost:{port}", "ca_file": TRUST, **more}
    entry = {
        "friendly_name": name,
        "subject": {"org": "Example", "country": "DE"},
        "key": {"type": key_type, "crypt_password": PASSWORD},
        "enrollment": {"proto": "est", "est": target},
    }
    return {**entry, **beside}


@dataclass
class Host:
    """A directory that stands for the root file system of a device. `settings`: the file given to --settings."""

    root: Path

    @property
    def certs(self) -> Path:
        return self.root / "wfs/igel-certs"

    @property
    def store(self) -> Path:
        return self.root / "etc/ssl/certs"

    @property
    def settings(self) -> Path:
        return self.root / "etc/igelcert/settings.json"

    def home(self, name: str = "lan") -> Path:
        """Where readers find that certificate."""
        return self.certs / name

    def trust(self, pem: bytes) -> None:
        (self.root / TRUST.lstrip("/")).write_bytes(pem)

    def wants(self, *certs: dict[str, Any]) -> None:
        self.settings.write_text(json.dumps({"certs": list(certs)}))

    def command(self, name: str = "apply", *args: str) -> list[str]:
        """Words of an igel-certs command for this device; `apply` and `renew` take the settings file."""
        given = ["--settings", str(self.settings)] if name in {"apply", "renew"} else []
        return [command("igel-certs"), name, "--root", str(self.root), *given, *args]

    def do(self, name: str = "apply", *args: str, code: int = 0, timeout: float = 60, **more: Any) -> str:
        """stderr of an igel-certs command (stdout of status), which must end with that code."""
        done = run(*self.command(name, *args), timeout=timeout, **more)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout if name == "status" else done.stderr

    def status(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.do("status", "--json"))["certificates"]
        return found

    def copy(self, to: Path) -> Host:
        """The same device again: links stay links, times stay."""
        shutil.copytree(self.root, to, symlinks=True)
        return Host(to)

    def live(self) -> dict[str, tuple[int, ...] | str]:
        """What readers see, by path: inode, times, mode, and content of every file; targets of links.

        Notes, locks and requests under way (.store, .lock) are the program's own business and are left out.
        """
        found: dict[str, tuple[int, ...] | str] = {}
        for place in (self.certs, self.root / "etc/ssl"):
            for at, names, files in os.walk(place):
                names[:] = sorted(name for name in names if name != ".store")
                for path in (Path(at, name) for name in (*names, *files) if name != ".lock"):
                    found.update(_facts(path))
        return found

    def litter(self) -> list[str]:
        """Entries that nothing should have left behind: temporary files, half a generation."""
        return sorted(str(path) for path in self.root.rglob("*") if ".new" in path.name)


def _facts(path: Path) -> dict[str, tuple[int, ...] | str]:
    if not path.is_symlink():
        info = path.stat()
        content = hash(path.read_bytes()) if path.is_file() else 0
        # a directory's own time moves when a temporary file comes and goes
        moment = info.st_mtime_ns if path.is_file() else 0
        return {str(path): (info.st_ino, moment, info.st_mode, info.st_uid, content)}
    found: dict[str, tuple[int, ...] | str] = {str(path): os.readlink(path)}
    if path.is_dir():
        for below in path.rglob("*"):
            found.update(_facts(below))
    return found


def device(root: Path, hostname: str, unit_id: str, **toml: str | int) -> Host:
    """A fresh device; `toml`: more keys of device.toml."""
    (root / "etc/igelcert").mkdir(parents=True)
    (root / "wfs").mkdir()
    (root / "etc/hostname").write_text(hostname + "\n")
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in {"unit_id": unit_id, **toml}.items()]
    (root / "etc/igelcert/device.toml").write_text("".join(lines))
    return Host(root)
