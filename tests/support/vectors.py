"""Recorded and hostile inputs, which lie beside the repository and are never copied into it."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

__all__ = ["cases", "index", "load", "vector"]

ROOT = Path(os.environ.get("IGELCERT_VECTORS") or Path(__file__).resolve().parents[3] / "shared/vectors")


def vector(name: str) -> bytes:
    """A file's content. Without the vectors the test is skipped with the reason; in CI it fails."""
    if not ROOT.is_dir():
        text = f"the vectors are not at {ROOT}; IGELCERT_VECTORS names another place"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return (ROOT / name).read_bytes()


def load(name: str) -> Any:
    return json.loads(vector(name))


@cache
def index() -> dict[str, dict[str, str]]:
    """folder -> file -> what must come out, as INDEX.md says. Empty without the vectors."""
    found: dict[str, dict[str, str]] = {}
    path = ROOT / "INDEX.md"
    folder = ""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith("## "):
            folder = line[3:].strip()
        elif row := re.match(r"\| ([\w.-]+\.[\w-]+) \| .* \| ([^|]*) \| [^|]* \| [^|]* \|$", line):
            found.setdefault(folder, {})[row[1]] = row[2]
    return found


def cases(folder: str, pattern: str = ".*") -> list[str]:
    """Names for parametrize; one that skips or fails by itself where there are no vectors."""
    names = [name for name in index().get(folder, {}) if re.fullmatch(pattern, name)]
    return names or ["(no vectors here)"]
