"""The images themselves: small, and made again the same."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.qemu import ROOT, image

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("qemu-boots")]

KINDS = ("tiny", "full")
LIMITS = {"tiny": 27_000_000, "full": 32_000_000}  # bytes of the squashfs


def digests(place: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_sources_give_the_same_image(kind: str, tmp_path: Path) -> None:
    """Made once more, with other surroundings and under another name, it is the one that all tests boot."""
    made = image(kind)
    (moment,) = struct.unpack_from("<I", (made / "root.squashfs").read_bytes(), 8)  # mkfs_time
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(moment), "TZ": "Asia/Kathmandu", "LC_ALL": "C"}
    done = subprocess.run(
        [ROOT / "scripts/image", kind, "--out", tmp_path / "again"],
        capture_output=True, text=True, timeout=1200, env=env, umask=0o077,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "again") == digests(made)


@pytest.mark.parametrize("kind", KINDS)
def test_size_and_bill(kind: str) -> None:
    made = image(kind)
    assert (made / "root.squashfs").stat().st_size <= LIMITS[kind]
    bill = json.loads((made / "bom.json").read_text())
    names = {part["name"] for part in bill["components"]}
    assert {"igelcert", "libssl3", "python3.11-minimal", "busybox-static"} <= names
    assert all(part.get("hashes") for part in bill["components"] if part["name"] != "igelcert")
    assert any(name.startswith("linux-image-") for name in names)
