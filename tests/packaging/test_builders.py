"""Buildroot and Yocto: what they would do, as far as it shows without them; man pages and dependencies as they are."""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kconfiglib  # type: ignore[import-not-found]
import pytest

import igelcert

ROOT = Path(__file__).resolve().parents[2]
BUILDROOT = ROOT / "packaging/buildroot"
PACKAGE = BUILDROOT / "package/igelcert-device"
LAYER = ROOT / "packaging/yocto"
RECIPE = LAYER / f"recipes-security/igelcert/igelcert-device_{igelcert.__version__}.bb"

# What of Buildroot the external tree leans on: variables as its own makefiles name them, and the steps in their order.
MAKEFILE = """\
HOST_DIR = /usr
PYTHON3_VERSION_MAJOR = 3.99
PKG_PYTHON_ENV = PATH=/usr/bin:/bin CFLAGS=-O1 STRIP=strip
generic-package =
include $(BR2_EXTERNAL_IGELCERT_PATH)/external.mk
$(SOURCE)/all:
\t$(IGELCERT_DEVICE_INSTALL_TARGET_CMDS)
\t$(IGELCERT_DEVICE_INSTALL_INIT_SYSV)
\t$(IGELCERT_DEVICE_INSTALL_INIT_SYSTEMD)
print-%:
\t@echo '$($*)'
"""
SYMBOLS = (
    "LIBOPENSSL",
    "OPENSSL",
    "PYTHON3",
    "PYTHON3_SSL",
    "PYTHON3_UNICODEDATA",
    "PYTHON3_ZLIB",
    "PYTHON_CFFI",
)

# Parts of the standard library that OpenEmbedded packs by themselves (python3-manifest.json); others are python3-core.
PARTS = {
    "base64": "netclient",
    "calendar": "datetime",
    "difflib": "difflib",
    "fcntl": "fcntl",
    "hashlib": "crypt",
    "hmac": "netclient",
    "html": "html",
    "http": "netclient",
    "json": "json",
    "random": "math",
    "socket": "io",
    "ssl": "io",
    "syslog": "syslog",
    "tomllib": "tomllib",
    "urllib": "netclient",
}
CORE = {
    "argparse", "binascii", "collections", "contextlib", "dataclasses", "errno", "functools", "gc", "grp", "ipaddress", "os",
    "pwd", "re", "select", "shutil", "signal", "stat", "struct", "subprocess", "sys", "threading", "time", "typing",
    "unicodedata", "zlib",
}  # fmt: skip


def listed(site: str) -> set[str]:
    command = [str(ROOT / "scripts/stage"), "--list", "--sitedir", site]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def laid(root: Path) -> set[str]:
    """The files below a directory, as scripts/stage --list names them."""
    found = set()
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if (path.is_file() or path.is_symlink()) and "__pycache__" not in name:
            found.add(re.sub(r"(/_\w+)\..*\.so$", r"\1.so", name))
    return found


def make(tmp_path: Path, *words: str) -> str:
    makefile = tmp_path / "Makefile"
    makefile.write_text(MAKEFILE)
    given = [f"BR2_EXTERNAL_IGELCERT_PATH={BUILDROOT}", f"TARGET_DIR={tmp_path / 'target'}", f"SOURCE={ROOT}"]
    command = [
        "make",
        "--no-print-directory",
        "--file",
        str(makefile),
        "--warn-undefined-variables",
        *given,
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "undefined variable" not in done.stderr, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_buildroot_installs_what_stage_lists(tmp_path: Path) -> None:
    make(tmp_path, f"{ROOT}/all")
    links = {"etc/init.d/S30igel-certs", "etc/init.d/S60rmagent"}
    preset = "usr/lib/systemd/system-preset/50-igelcert.preset"
    assert laid(tmp_path / "target") == listed("/usr/lib/python3.99/site-packages") | links | {preset}
    assert all((tmp_path / "target" / link).exists() for link in links)
    said = (tmp_path / "target" / preset).read_text().split()
    assert said == ["disable", "igel-certs.timer"] and laid(ROOT / "rootfs") >= {
        f"usr/lib/systemd/system/{said[1]}"
    }


def test_buildroot_finds_its_sources(tmp_path: Path) -> None:
    assert make(tmp_path, "print-IGELCERT_DEVICE_VERSION") == igelcert.__version__
    assert Path(make(tmp_path, "print-IGELCERT_DEVICE_SITE")).resolve() == ROOT
    known = (PACKAGE / "igelcert-device.hash").read_text().splitlines()[-1].split()
    assert known == ["sha256", hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest(), "LICENSE"]


def test_buildroot_menu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option that is named is one of Buildroot's, and choosing ours brings what is needed."""
    options = "".join(f'config BR2_PACKAGE_{name}\n\tbool "{name}"\n' for name in SYMBOLS)
    (tmp_path / "Config.in").write_text(f'{options}source "{BUILDROOT}/Config.in"\n')
    monkeypatch.setenv("BR2_EXTERNAL_IGELCERT_PATH", str(BUILDROOT))
    menu = kconfiglib.Kconfig(str(tmp_path / "Config.in"), warn_to_stderr=False)
    assert menu.warnings == []
    assert {
        name for name, symbol in menu.syms.items() if name.startswith("BR2_") and not symbol.nodes
    } == set()
    ours = menu.syms["BR2_PACKAGE_IGELCERT_DEVICE"]
    assert ours.visibility == 0
    menu.syms["BR2_PACKAGE_PYTHON3"].set_value("y")
    ours.set_value("y")
    assert all(menu.syms[f"BR2_PACKAGE_{name}"].str_value == "y" for name in SYMBOLS)


def bitbake(*names: str, **values: str) -> dict[str, Any]:
    script = ROOT / "tests/support/bitbake.py"
    command = [sys.executable, str(script), str(LAYER), str(RECIPE), json.dumps(values), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_yocto_packs_what_stage_lists(tmp_path: Path) -> None:
    got = bitbake(
        "do_install", "FILES:${PN}", "PYTHON_SITEPACKAGES_DIR",
        D=str(tmp_path / "image"), PYTHON="/usr/bin/python3", DISTRO_FEATURES="systemd sysvinit",
    )  # fmt: skip
    subprocess.run(["sh", "-e", "-c", got["do_install"]], check=True, timeout=120)
    files = laid(tmp_path / "image")
    assert files == listed(got["PYTHON_SITEPACKAGES_DIR"]) | {"etc/rcS.d/S38igel-certs"}
    patterns = got["FILES:${PN}"].split()
    for name in files:
        above = ["/" + name, *(f"/{parent}" for parent in Path(name).parents)]
        assert any(fnmatch.fnmatch(path, pattern) for path in above for pattern in patterns), name


def test_yocto_knows_this_version_and_its_needs() -> None:
    got = bitbake(
        "PN", "PV", "EXTERNALSRC", "LIC_FILES_CHKSUM", "RDEPENDS:${PN}", "SYSTEMD_SERVICE:${PN}", "BBFILES"
    )
    assert (got["PN"], got["PV"]) == ("igelcert-device", igelcert.__version__)
    assert Path(got["EXTERNALSRC"]) == ROOT
    assert fnmatch.fnmatch(str(RECIPE), got["BBFILES"].strip())
    known = hashlib.md5((ROOT / "LICENSE").read_bytes(), usedforsecurity=False).hexdigest()
    assert got["LIC_FILES_CHKSUM"] == f"file://LICENSE;md5={known}"
    units = {path.name for path in (ROOT / "rootfs/usr/lib/systemd/system").iterdir()}
    assert set(got["SYSTEMD_SERVICE:${PN}"].split()) <= units
    needed = {"python3-core", "python3-cffi"}
    for module in standard_modules():
        assert module in PARTS or module in CORE, f"{module}: which package of OpenEmbedded has it?"
        needed.add(f"python3-{PARTS.get(module, 'core')}")
    assert set(got["RDEPENDS:${PN}"].split()) == needed


def standard_modules() -> set[str]:
    """Modules of the standard library that the device's part imports, by their first name."""
    found = set()
    for path in (ROOT / "igelcert").rglob("*.py"):
        if {"proxy", "labca"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
    return found - {"__future__", "igelcert"}


def test_man_pages_are_what_the_commands_say(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "packaging/manpages.py"), str(tmp_path)], check=True, timeout=60
    )
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert fresh == {path.name: path.read_text() for path in (ROOT / "docs/man").iterdir()}, (
        "run: python packaging/manpages.py"
    )


def test_debian_wants_what_pyproject_wants() -> None:
    """Version and bounds stand in both places."""
    assert (ROOT / "debian/changelog").read_text().startswith(f"igelcert ({igelcert.__version__}) ")
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["proxy"]
    other = {"argon2-cffi": "argon2"}
    wanted = set()
    for line in extra:
        name, bound = line.lower().split(">=")
        wanted.add(f"python3-{other.get(name, name)} (>= {bound})")
    control = (ROOT / "debian/control").read_text().split("Package: igelcert-proxy\n")[1]
    assert wanted <= set(re.findall(r"^ (python3-\S+ \(>= [0-9.]+\)),$", control, re.MULTILINE))
