"""scripts/stage for another architecture, with Debian's compiler and libraries for arm64; QEMU runs what came out."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.support.peers import clean_system, peer

ROOT = Path(__file__).resolve().parents[2]
TRIPLET = "aarch64-linux-gnu"
SITE = "usr/lib/python3/dist-packages"
START = "import sys; sys.path[:0] = sys.argv[1:3]; from igelcert.device.cli import main; sys.exit(main(sys.argv[3:]))"


def cross(sysroot: Path) -> dict[str, str]:
    """What docs/packaging.md tells to set."""
    include = sorted((sysroot / "usr/include").glob("python3.*"))[0]
    compiler = f"{peer('aarch64-gcc')} --sysroot={sysroot}"
    return {
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared",
        "CFLAGS": f"-O2 -I{include} -I{sysroot}/usr/include/{TRIPLET}/{include.name}",
        "STRIP": f"{TRIPLET}-strip",
        "PKG_CONFIG": f"{TRIPLET}-pkg-config",
        "PKG_CONFIG_SYSROOT_DIR": str(sysroot),
        "PKG_CONFIG_LIBDIR": f"{sysroot}/usr/lib/{TRIPLET}/pkgconfig",
        "PYTHONPATH": f"{sysroot}/usr/lib/{include.name}",
        "_PYTHON_SYSCONFIGDATA_NAME": f"_sysconfigdata__{TRIPLET}",
    }


@pytest.mark.peers
@pytest.mark.slow
def test_a_core_for_arm64(tmp_path: Path) -> None:
    sysroot = tmp_path / "sysroot"
    sysroot.mkdir()
    archive = clean_system(platform.freedesktop_os_release()["VERSION_CODENAME"], "arm64")
    unpack = [
        "tar",
        "--extract",
        "--exclude=./dev",
        "--exclude=libpython*.a",
        "--file",
        archive,
        "--directory",
        sysroot,
    ]
    subprocess.run(unpack, check=True)
    command = [str(ROOT / "scripts/stage"), str(tmp_path / "stage")]
    done = subprocess.run(
        command, env={**os.environ, **cross(sysroot)}, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    package = tmp_path / "stage" / SITE / "igelcert"
    modules = sorted(package.glob("*.so"))
    assert [path.name.split(".")[0] for path in modules] == ["_core", "_der"]
    for path in modules:
        header = subprocess.run(
            ["readelf", "--file-header", path], capture_output=True, text=True, check=True
        ).stdout
        assert "AArch64" in header and TRIPLET in path.name
    needed = subprocess.run(
        ["readelf", "--dynamic", modules[0]], capture_output=True, text=True, check=True
    ).stdout
    assert "[libcrypto.so.3]" in needed
    python = next(path for path in (sysroot / "usr/bin").glob("python3.*") if path.name[-1].isdigit())
    key = tmp_path / "key.pem"
    words = ["keygen", "--type", "ec_prime256v1", "--out", str(key)]
    emulated = [str(peer("qemu-aarch64")), "-L", str(sysroot), str(python), "-IS", "-c", START]
    ran = [*emulated, str(package.parent), str(sysroot / SITE), *words]
    done = subprocess.run(ran, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        ["openssl", "pkey", "-noout", "-text", "-in", key], capture_output=True, text=True, check=True
    )
    assert "P-256" in shown.stdout
