"""The Debian packages: built, checked, installed in clean systems, at work, purged."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.conftest import package
from tests.support.chain import LabCa, lab_ca
from tests.support.systems import System, until
from tests.support.until import until as come_about

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.xdist_group("packaging")]

CORE, DEVICE, PROXY = "python3-igelcert", "igelcert-device", "igelcert-proxy"
DATA = "/var/lib/igelcert/proxy"
PASSWORD = "correct horse"
EXPOSURE_MAX = 2.5
OURS = re.compile(r"igel|rmagent|ca-proxy")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    with lab_ca(tmp_path_factory.mktemp("lab") / "ca") as lab:
        yield lab


def test_lintian_has_nothing_to_say(built: tuple[dict[str, Path], str]) -> None:
    """Errors end scripts/package; warnings are mended, or overridden with a reason in debian/."""
    assert built[1] == ""
    assert {CORE, DEVICE, PROXY} <= set(built[0])


def test_the_same_bytes_again(packages: dict[str, Path], tmp_path: Path) -> None:
    again, _ = package(
        tmp_path / "again", "--no-lint", TZ="Pacific/Apia", LANG="tr_TR.UTF-8", TMPDIR=str(tmp_path)
    )
    for name, path in packages.items():
        assert again[name].read_bytes() == path.read_bytes(), name
    sources = [next(folder.glob("*.tar.*")) for folder in (packages[CORE].parent, tmp_path / "again")]
    assert sources[0].read_bytes() == sources[1].read_bytes()


def test_device(device: System, packages: dict[str, Path], tmp_path: Path) -> None:
    """What a device's package does before there is a proxy."""
    device.install(packages[CORE], packages[DEVICE])
    for command in ("igel-certs", "rmagent"):
        assert "usage: " + command in device.run(command, "--help")
    device.run("igel-certs", "keygen", "--type", "ec_prime256v1", "--out", "/root/key.pem")
    text = subprocess.run(
        ["openssl", "pkey", "-noout", "-text", "-in", device.at("/root/key.pem")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "P-256" in text
    for module in ("igelcert.proxy", "igelcert.labca"):
        device.run("python3", "-c", f"import {module}", code=1)
    wants = device.at("/etc/systemd/system")
    assert {path.name for path in wants.glob("*.wants/*") if OURS.search(path.name)} == {
        "rmagent.service",
        "igel-certs-install-cas.service",
    }
    # not registered: the agent waits, touches nothing of the system's store, and goes when it is told to
    before = device.paths()
    log = tmp_path / "log"
    with device.running("rmagent", "run", "--verbose", log=log) as process:
        until(device.at("/wfs/igel-rmagent/run.lock"), process, log)
        come_about(lambda: "not registered" in log.read_text() or process.poll() is not None)
        assert process.poll() is None
    assert "this device is not registered; waiting" in log.read_text()
    assert not {path for path in device.paths() - before if not path.startswith("/wfs")}


def test_proxy_begins_with_init(server: System, for_proxy: dict[str, Path]) -> None:
    """Installing makes user and place, and says how to begin; the unit waits for that."""
    said = server.install(for_proxy[CORE], for_proxy[DEVICE], for_proxy[PROXY])
    hint = re.search(
        rf"^  (runuser -u igelcert -- ca-proxy init --data {DATA} --hostname )NAME$", said, re.MULTILINE
    )
    assert hint, said
    unit = next(path for path in server.paths() if path.endswith("systemd/system/ca-proxy.service"))
    assert f"ConditionPathExists={DATA}/proxy.toml" in server.at(unit).read_text()
    assert (server.at("/etc/systemd/system/multi-user.target.wants") / "ca-proxy.service").is_symlink()
    assert not server.at(DATA).exists()
    made = server.run("sh", "-c", hint[1] + "localhost")
    assert server.at(DATA + "/proxy.toml").is_file() and "SHA-256" in made
    assert "igelcert igelcert" in server.run("stat", "--format", "%U %G", DATA)
    assert server.at(DATA).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("unit", ["ca-proxy", "rmagent", "igel-certs", "igel-certs-install-cas"])
def test_units_are_hardened(server: System, unit: str) -> None:
    said = server.run("systemd-analyze", "security", "--offline=true", "--no-pager", f"{unit}.service")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found and float(found[1]) <= EXPOSURE_MAX, said


def test_from_package_to_package(device: System, server: System, ca: LabCa, tmp_path: Path) -> None:
    """A device of one release enrolls through the proxy of another, at a CA outside of both."""
    proxy = ["setpriv", "--reuid=igelcert", "--regid=igelcert", "--clear-groups", "ca-proxy"]
    for name in ("ra.p12", "ra.p12.password"):
        server.at(f"/root/{name}").write_bytes((ca.dir / name).read_bytes())
    server.run(
        "ca-proxy", "ca", "set-est", "--data", DATA, "--name", "lab", "--host", "localhost", "--port", str(ca.port),
        "--keystore", "/root/ra.p12", "--keystore-password-file", "/root/ra.p12.password", "--yes",
    )  # fmt: skip
    settings = {
        "certs": [{"friendly_name": "lan", "key": {"type": "ec_prime256v1", "crypt_password": PASSWORD}}]
    }
    server.at("/root/lan.json").write_text(json.dumps(settings))
    server.run("ca-proxy", "profile", "set", "lan", "--data", DATA, "--settings", "/root/lan.json")
    server.run("ca-proxy", "profile", "assign", "lan", "--data", DATA, "--directory", "/")
    added = server.run("ca-proxy", "device", "add", "--data", DATA, "--unit-id", "00E0C5123456", "--json")
    log = tmp_path / "log"
    here = "127.0.0.1:0"
    options = ["serve", "--data", DATA, "--listen", here, "--admin-listen", here, "--drain", "0"]
    with server.running(*proxy, *options, log=log) as process:
        until(server.at(DATA + "/run.json"), process, log)
        port = json.loads(server.at(DATA + "/run.json").read_text())["device_port"]
        device.at("/root/token").write_text(json.loads(added)["token"])
        device.at("/root/trust.pem").write_bytes(server.at(DATA + "/trust.pem").read_bytes())
        with device.at("/etc/igelcert/device.toml").open("a") as config:
            config.write('unit_id = "00E0C5123456"\nhostname = "thin-1"\n')
        device.run(
            "rmagent", "register", "--server", f"https://localhost:{port}", "--token-file", "/root/token",
            "--ca-file", "/root/trust.pem",
        )  # fmt: skip
        device.run("rmagent", "sync", "--verbose")
    home = device.at("/wfs/igel-certs/lan")
    assert {"cert.pem", "cert.pfx", "pkey.pem", "cacerts.pem", "cacerts"} <= {
        path.name for path in home.iterdir()
    }
    verified = [
        "openssl",
        "verify",
        "-CAfile",
        str(ca.dir / "root.pem"),
        "-untrusted",
        str(home / "cacerts.pem"),
    ]
    subprocess.run([*verified, str(home / "cert.pem")], check=True, capture_output=True)
    assert len(ca.issued()) == 1


def test_purge_leaves_the_data_alone(device: System, server: System) -> None:
    """docs/packaging.md says what stays: certificates, keys and CAs; the proxy's data."""
    device.run("dpkg", "--purge", DEVICE, CORE)
    left = {path for path in device.paths() if OURS.search(path) and not path.startswith("/wfs/")}
    assert left == set()
    assert device.at("/wfs/igel-certs/lan/cert.pem").exists()
    server.run("dpkg", "--purge", PROXY, DEVICE, CORE)
    left = {
        path for path in server.paths() if OURS.search(path) and not path.startswith("/var/lib/igelcert/")
    }
    assert left == {"/var/lib/igelcert"}
    assert server.at(DATA + "/master.key").exists()
