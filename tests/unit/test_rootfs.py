"""The overlay and what scripts/stage makes of it."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from igelcert.device.config import Config, load, parse
from igelcert.record import fields
from tests.support.qemu import tool

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "rootfs"
UNITS = sorted((OVERLAY / "usr/lib/systemd/system").glob("*.service"))
EXPOSURE = 2.5


def test_the_configuration_shows_every_key() -> None:
    path = OVERLAY / "etc/igelcert/device.toml"
    assert load(path=str(path)) == Config(), "as delivered it says nothing"
    keys = re.findall(r"^#(\w+) = ", path.read_text(), re.MULTILINE)
    known = {*fields(Config)} - {"root"}
    assert len(keys) == len(set(keys)) and set(keys) == known
    parse(re.sub(r"^#(\w+ = )", r"\1", path.read_text(), flags=re.MULTILINE))


@pytest.mark.peers
@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_units_are_shut_in(unit: Path) -> None:
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=true", unit],
        capture_output=True,
        text=True,
        timeout=30,
    )
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout + done.stderr)
    assert found, done.stderr
    assert float(found[1]) <= EXPOSURE, done.stdout


def stage(to: Path) -> dict[str, str]:
    """Path below `to` and SHA-256 of each staged file."""
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1795000000"}
    done = subprocess.run([ROOT / "scripts/stage", to], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return {
        str(path.relative_to(to)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in to.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.peers
def test_stage(tmp_path: Path) -> None:
    """The device's part and nothing else, small, the same each time, and as --list says."""
    first, second = stage(tmp_path / "a"), stage(tmp_path / "b")
    assert first == second
    assert not [name for name in first if "/proxy/" in name or "/labca/" in name]
    listed = subprocess.run(
        [ROOT / "scripts/stage", "--list"], capture_output=True, text=True, check=True
    ).stdout
    plain = {re.sub(r"\.cpython-.*\.so$", ".so", name) for name in first if "__pycache__" not in name}
    assert plain == set(listed.split("\n")) - {""}
    compiled = [name for name in first if name.endswith(".pyc")]
    assert len(compiled) == len([name for name in first if name.endswith(".py")])
    assert sum((tmp_path / "a" / name).stat().st_size for name in first) <= 1_500_000
    started(tmp_path / "a")


def started(dest: Path) -> None:
    """The command as it lies there: it says what it has to, and fails where that cannot be written."""
    program = (dest / "usr/bin/igel-certs").read_text()
    site = re.search(r'append\("(.*)"\)', program)
    assert site is not None and program.startswith("#!/usr/bin/python3 -IS\n")
    own = program.replace(site[1], f"{dest}{site[1]}")
    (dest / "wfs").mkdir()
    for output, code in ((">&1", 0), (">&-", 0), (">/dev/full", 1)):
        line = f"/usr/bin/python3 -IS -c {shlex.quote(own)} status --root {dest} {output}"
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == code, (output, done.stderr)
        assert ("no certificates" in done.stdout) is (output == ">&1") and "Traceback" not in done.stderr
