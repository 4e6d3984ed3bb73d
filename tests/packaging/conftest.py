"""The packages, built once, and clean systems that they are installed in."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.support.peers import clean_system, missing, peer
from tests.support.systems import System, unpack

ROOT = Path(__file__).resolve().parents[2]
PROXY_SUITE = "trixie"


def package(out: Path, *options: str, **environment: str) -> tuple[dict[str, Path], str]:
    """The .debs that scripts/package makes, by name, and what it said."""
    done = subprocess.run(
        [str(ROOT / "scripts/package"), "--out", str(out), *options],
        text=True, capture_output=True, timeout=1200, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {path.name.partition("_")[0]: path for path in map(Path, done.stdout.splitlines())}
    return found, done.stderr


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], str]:
    """The packages of this machine's release, and what lintian said."""
    peer("lintian")
    return package(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def packages(built: tuple[dict[str, Path], str]) -> dict[str, Path]:
    return built[0]


@pytest.fixture(scope="session")
def for_proxy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages of the proxy's release, built there of the source package, without network."""
    if os.geteuid() != 0:
        missing("chroot", "run the tests as root")
    archive = str(clean_system(PROXY_SUITE, "build"))
    return package(tmp_path_factory.mktemp("packages-of-the-proxy"), "--no-lint", "--in", archive)[0]


@pytest.fixture(scope="module")
def device(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> System:
    """A clean system of this machine's release; nothing is installed yet."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    return unpack(suite, "device", tmp_path_factory.mktemp("device") / "root")


@pytest.fixture(scope="module")
def server(for_proxy: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> System:
    """A clean system of the proxy's release; nothing is installed yet."""
    return unpack(PROXY_SUITE, "proxy", tmp_path_factory.mktemp("server") / "root")
