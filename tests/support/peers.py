"""Finds the independent programs that scripts/peers installs."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["bouncy_castle", "cache", "clean_system", "missing", "peer"]

SOURCES = Path(__file__).parents[1] / "peers"
BC_VERSION = "1.87"
AXE_VERSION = "4.14.1"
GO_PROGRAMS = {"scepclient": "scep-v2.3.0", "scepserver": "scep-v2.3.0", "step-ca": "step-ca-v0.30.2"}
KEYGEN = {
    "keygen-go": ("keygen-go/go.mod", "keygen-go/main.go"),
    "keygen-awslc": ("keygen-awslc/Cargo.toml", "keygen-awslc/Cargo.lock", "keygen-awslc/src/main.rs"),
    "keygen-ec": ("keygen_ec.c",),
}
SYSTEM = {
    "aarch64-gcc": "aarch64-linux-gnu-gcc",
    "chromium": "chromium",
    "certutil": "certutil",
    "charon-systemd": "charon-systemd",
    "curl": "curl",
    "dbus-daemon": "dbus-daemon",
    "dunst": "dunst",
    "dunstctl": "dunstctl",
    "eapol_test": "eapol_test",
    "freeradius": "freeradius",
    "gdbus": "gdbus",
    "haproxy": "haproxy",
    "hostapd": "hostapd",
    "ip": "ip",
    "java": "java",
    "lintian": "lintian",
    "keytool": "keytool",
    "NetworkManager": "NetworkManager",
    "nginx": "nginx",
    "notify-send": "notify-send",
    "openssl": "openssl",
    "openvpn": "openvpn",
    "pk12util": "pk12util",
    "prometheus": "prometheus",
    "promtool": "promtool",
    "qemu-aarch64": "qemu-aarch64-static",
    "skopeo": "skopeo",
    "strongswan": "pki",
    "swanctl": "swanctl",
    "umoci": "umoci",
    "wpa_supplicant": "wpa_supplicant",
    "Xvfb": "Xvfb",
}


def cache() -> Path:
    if named := os.environ.get("IGELCERT_PEERS"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igelcert-peers"


def missing(name: str, help: str = "run scripts/peers") -> NoReturn:
    """Without the peer its tests are skipped; with CI=true they fail."""
    reason = f"the peer {name} is missing: {help}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def peer(name: str) -> Path:
    """The program, for bouncycastle the directory of the compiled client."""
    if name == "bouncycastle":
        place = cache() / f"bouncycastle-{BC_VERSION}" / f"BcEst-{_digest('BcEst.java')}"
        found = place if (place / "BcEst.class").is_file() else None
    elif name == "est-ca":
        files = ("est-ca/Cargo.toml", "est-ca/Cargo.lock", "est-ca/src/main.rs")
        program = cache() / f"est-ca-{_digest(*files)}" / "est-ca-peer"
        found = program if os.access(program, os.X_OK) else None
    elif name == "axe-core":
        script = cache() / f"axe-core-{AXE_VERSION}" / "axe.min.js"
        found = script if script.is_file() else None
    elif name in KEYGEN:
        program = cache() / f"{name}-{_digest(*KEYGEN[name])}" / name
        found = program if os.access(program, os.X_OK) else None
    elif name in GO_PROGRAMS:
        program = cache() / GO_PROGRAMS[name] / name
        found = program if os.access(program, os.X_OK) else None
    else:
        path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
        program_path = shutil.which(SYSTEM[name], path=path)
        found = Path(program_path) if program_path else None
    return found or missing(name)


def bouncy_castle() -> list[str]:
    """The command that runs tests/peers/BcEst.java."""
    classes = peer("bouncycastle")
    # one compiler stage and the small collector: half the start-up time of a short run
    return [str(peer("java")), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
            "-cp", f"{classes}{os.pathsep}{classes.parent}/*", "BcEst"]  # fmt: skip


def clean_system(suite: str, kind: str) -> Path:
    """The tar archive of a minimal system of that Debian release: what scripts/peers calls device, proxy, build or arm64."""
    control = Path(__file__).parents[2] / "debian/control"
    name = f"debian-{suite}-{kind}-{hashlib.sha256(control.read_bytes()).hexdigest()[:16]}.tar"
    found = cache() / name
    return found if found.is_file() else missing(name)


def _digest(*names: str) -> str:
    """As in scripts/peers: a build counts only for the very sources that it was made of."""
    return hashlib.sha256(b"".join((SOURCES / name).read_bytes() for name in names)).hexdigest()[:16]
