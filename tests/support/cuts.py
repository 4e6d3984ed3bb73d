"""Cutting the device's program at a system call, and judging what it left (cut.c and zygote.py beside this)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key, pkcs12

from tests.support.tree import openssl

__all__ = [
    "BEFORE",
    "HALF",
    "KILLED",
    "LOST",
    "Call",
    "Program",
    "cases",
    "check_set",
    "check_store",
    "check_what_is_open",
    "live_sets",
    "undurable",
]

HERE = Path(__file__).parent
BEFORE, HALF, LOST = 0, 1, 2
KILLED = -9
TEMPORARY = re.compile(r"\.new\d*$|^\.new")


@dataclass(frozen=True)
class Call:
    """A system call that changes files, or (`connect`, `start`) asks somebody else. other: a rename's new name."""

    number: int
    what: str
    size: int
    path: str
    other: str


def build(directory: Path) -> Path:
    """The preload library."""
    if not shutil.which("cc"):
        pytest.fail("a C compiler is needed to build tests/support/cut.c")
    made = directory / "cut.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", made, HERE / "cut.c", "-ldl"], check=True, timeout=60
    )
    return made


class Program:
    """The device's program, loaded once, run in forked children under the library. Not for two threads at a time."""

    def __init__(self, directory: Path, library: Path, umask: int) -> None:
        directory.mkdir(exist_ok=True)
        self.out = directory / "out"
        self._trace = directory / "trace"
        self._process = subprocess.Popen(
            [sys.executable, "-I", HERE / "zygote.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(library)},
            umask=umask,
        )

    def run(self, root: Path, argv: Sequence[str], *, at: int = 0, how: int = BEFORE, ahead: int = 0) -> int:
        """The exit code of a command on the device at `root`, KILLED when it was cut at the call number `at`.

        ahead: seconds by which the device's clock is before the real one.
        """
        job = {"argv": [*argv, "--root", str(root)], "root": str(root), "out": str(self.out), "at": at, "how": how,
               "ahead": ahead, "trace": str(self._trace)}  # fmt: skip
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code: int = json.loads(self._process.stdout.readline())
        assert code != 99, self.said()
        return code

    def said(self) -> str:
        return self.out.read_text()

    def calls(self) -> list[Call]:
        """Of the last run."""
        rows = (line.split("\t") for line in self._trace.read_text().splitlines())
        return [Call(int(row[0]), row[1], int(row[2]), row[3], row[4]) for row in rows]

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class _Disk:
    """What of a sequence of calls is on the disk for sure: contents by fsync of the file, names by that of the
    directory (fsync(2))."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.names: set[str] = set()  # paths whose entry is not flushed

    def take(self, call: Call) -> None:
        if call.what in {"create", "mkdir", "symlink"}:
            self.names.add(call.path)
        elif call.what in {"write", "truncate"}:
            self.files.add(call.path)
        elif call.what == "fsync":
            self.files.discard(call.path)
            self.names = {path for path in self.names if os.path.dirname(path) != call.path}
        elif call.what in {"unlink", "rmdir"}:
            self.files.discard(call.path)
            self.names.discard(call.path)
        elif call.what == "rename":
            self.files = {_moved(path, call) for path in self.files}
            self.names = {_moved(path, call) for path in self.names} | {call.other}


def _moved(path: str, call: Call) -> str:
    return call.other + path[len(call.path) :] if _within(path, call.path) else path


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def undurable(calls: Sequence[Call], place: str) -> list[str]:
    """What a power cut could tear although it counts: content that gets its name before it is on the disk, and
    anything below `place` that is not on the disk when others are asked, or at the end."""
    disk, found = _Disk(), []
    for call in calls:
        if call.what == "rename":
            inside = [path for path in disk.files if _within(path, call.path)]
            inside += [path for path in disk.names if _within(path, call.path) and path != call.path]
            found += [f"{call.number}: {path} is not flushed before it is renamed" for path in inside]
        if call.what == "connect":
            found += [
                f"{call.number}: {path} is not flushed when the request leaves" for path in _open(disk, place)
            ]
        disk.take(call)
    return found + [f"end: {path} is not flushed" for path in _open(disk, place)]


def _open(disk: _Disk, place: str) -> list[str]:
    return sorted(
        path for path in disk.files | disk.names if _within(path, place) and not path.endswith(".lock")
    )


def cases(calls: Sequence[Call], *, main: bool) -> Iterator[tuple[int, int]]:
    """(number, how) of every cut that leaves something else than the one before it.

    Between a call and the next nothing changes, so a cut after it is one before the next. An fsync changes
    nothing but what is lost without it. main: with writes by half, and with lost contents.
    """
    disk = _Disk()
    for call in calls:
        if call.what != "fsync":
            yield call.number, BEFORE
            if main and call.what == "write" and call.size > 1:
                yield call.number, HALF
        if main and disk.files and call.what != "chmod":
            yield call.number, LOST
        disk.take(call)


# ---- what a reader sees ---------------------------------------------------------------------------


def live_sets(root: Path) -> dict[str, dict[str, bytes]]:
    """By friendly name: every file that readers find there."""
    place = root / "wfs/igel-certs"
    names = [path for path in place.iterdir() if not path.name.startswith(".")] if place.exists() else []
    return {
        home.name: {
            str(file.relative_to(home)): file.read_bytes() for file in home.rglob("*") if file.is_file()
        }
        for home in names
    }


_seen: dict[str, x509.Certificate] = {}


def check_set(files: dict[str, bytes], password: str) -> x509.Certificate:
    """Certificate, key, PKCS#12 and CA certificates are there and belong together; the certificate."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    if digest not in _seen:
        _seen[digest] = _check_set(files, password.encode())
    return _seen[digest]


def _check_set(files: dict[str, bytes], password: bytes) -> x509.Certificate:
    singles = {name for name in files if name.startswith("cacerts/")}
    assert set(files) - singles == {"cert.pem", "cert.pfx", "pkey.pem", "cacerts.pem"}, sorted(files)
    cert = x509.load_pem_x509_certificate(files["cert.pem"])
    cas = x509.load_pem_x509_certificates(files["cacerts.pem"])
    assert {x509.load_pem_x509_certificate(files[name]) for name in singles} == set(cas) and len(
        singles
    ) == len(cas)
    assert load_pem_private_key(files["pkey.pem"], password).public_key() == cert.public_key()
    key, leaf, others = pkcs12.load_key_and_certificates(files["cert.pfx"], password)
    assert (
        key is not None and key.public_key() == cert.public_key() and leaf == cert and set(others) == set(cas)
    )
    cert.verify_directly_issued_by(next(ca for ca in cas if ca.subject == cert.issuer))
    return cert


def check_what_is_open(root: Path, secret: str) -> None:
    """No key and no password can be read, and no file or directory of ours written, by others."""
    for path in (root / "wfs", root / "etc/ssl"):
        for each in [path, *path.rglob("*")] if path.exists() else ():
            info = each.lstat()
            if stat.S_ISLNK(info.st_mode):
                continue
            assert not info.st_mode & 0o022, (each, oct(info.st_mode))
            if stat.S_ISREG(info.st_mode):
                data = each.read_bytes()
                private = b"PRIVATE KEY" in data or secret.encode() in data or "pfx" in each.name
                assert not (private and info.st_mode & 0o077), (each, oct(info.st_mode))


_hashes: dict[bytes, str] = {}


def check_store(root: Path, *, done: bool) -> set[x509.Certificate]:
    """The CA store as TLS programs read it: whole certificates, links that lead to them. done: each has its link,
    everybody may read it, and nothing else is there. Returns the certificates."""
    store = root / "etc/ssl/certs"
    if not store.exists():
        assert not done
        return set()
    found: dict[str, x509.Certificate] = {}
    links: dict[str, str] = {}
    for path in store.iterdir():
        if TEMPORARY.search(path.name):
            assert not done, path
        elif path.is_symlink():
            assert path.is_file(), f"{path} leads nowhere"
            links[path.name] = os.readlink(path)
        else:
            found[path.name] = x509.load_pem_x509_certificate(path.read_bytes())
            assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
    if done:
        assert os.readlink(root / "etc/ssl/cert") == "certs"
        assert all(stat.S_IMODE(at.stat().st_mode) == 0o755 for at in (store, store.parent))
        expected = {f"{_subject_hash(store / name, cert)}.0": name for name, cert in found.items()}
        assert links == expected
    return set(found.values())


def _subject_hash(path: Path, cert: x509.Certificate) -> str:
    der = cert.public_bytes(Encoding.DER)
    if der not in _hashes:
        _hashes[der] = openssl("x509", "-in", path, "-noout", "-hash").strip()
    return _hashes[der]


def state_of(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "wfs/igel-certs/.store" / name / "state.json").read_text())
    return found
