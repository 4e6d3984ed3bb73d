"""The tree at every step of a swap: a reader finds the old set or the new one, and never nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from igelcert.device import files
from igelcert.device.store import Tree


def put(tree: Tree, text: str) -> None:
    def write(fd: int) -> None:
        os.write(fd, text.encode())

    tree.put("lan", write, write, text, [("CA", text)])


def test_a_swap_is_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(str(tmp_path))
    tree.prepare()
    put(tree, "old")
    home = tmp_path / "igel-certs/lan"
    seen: list[str] = []

    def look() -> None:
        names = ("pkey.pem", "cert.pem", "cert.pfx", "cacerts.pem", "cacerts/CA.pem")
        found = {(home / name).read_text() for name in names}
        assert len(found) == 1, found
        seen.append(found.pop())

    for name in (
        "rename",
        "replace",
        "unlink",
        "remove",
        "rmdir",
        "mkdir",
        "symlink",
        "link",
        "chmod",
        "truncate",
    ):
        real = getattr(os, name)

        def step(*args: Any, real: Any = real, **more: Any) -> Any:
            result = real(*args, **more)
            look()
            return result

        monkeypatch.setattr(os, name, step)
    put(tree, "new")
    assert seen == sorted(seen, reverse=True) and {"old", "new"} == set(seen), "old, then new"


def test_a_copied_key_stays_in_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the key passed through Python")

    (tmp_path / "old").write_bytes(b"key" * 5000)
    with monkeypatch.context() as patch:
        for name in ("read", "write", "pread", "readv"):
            patch.setattr(os, name, never)
        files.write_new(str(tmp_path / "new"), files.copy_of(str(tmp_path / "old")), 0o600)
    assert (tmp_path / "new").read_bytes() == b"key" * 5000
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
