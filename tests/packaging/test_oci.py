"""The container image: read by programs that are not ours, and run."""

from __future__ import annotations

import http.client
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

import igelcert
from tests.support.peers import missing, peer
from tests.support.systems import System, until

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.xdist_group("packaging")]

ROOT = Path(__file__).resolve().parents[2]


def test_skopeo_and_umoci_read_it_and_it_serves(for_proxy: dict[str, Path], tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("chroot", "run the tests as root")
    image = tmp_path / "image"
    command = [
        str(ROOT / "scripts/oci"),
        "--out",
        str(image),
        "--packages",
        str(for_proxy["igelcert-proxy"].parent),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    name = f"{image}:{igelcert.__version__}"
    assert done.stdout.strip() == name

    said = json.loads(ok(peer("skopeo"), "inspect", "--config", f"oci:{name}"))
    assert said["os"] == "linux" and said["architecture"] in {platform.machine(), "amd64", "arm64"}
    config = said["config"]
    assert config["User"] == "igelcert" and config["Entrypoint"] == ["/usr/bin/ca-proxy"]
    ok(peer("umoci"), "unpack", "--image", name, str(tmp_path / "bundle"))
    system = System(tmp_path / "bundle/rootfs")
    for place in ("proc", "dev/shm"):
        system.at(place).mkdir(parents=True, exist_ok=True)
    system.at("/etc/hosts").write_text("127.0.0.1 localhost\n")
    assert not system.at("/usr/lib/systemd/systemd").exists()

    environment = ["env", *config["Env"]]
    enter = ["setpriv", f"--reuid={config['User']}", f"--regid={config['User']}", "--clear-groups"]
    data = next(value.partition("=")[2] for value in config["Env"] if value.startswith("CA_PROXY_DATA="))
    program = [*enter, *environment, *config["Entrypoint"]]
    system.run(*program, "init", "--data", data, "--hostname", "localhost")
    log = tmp_path / "log"
    options = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    with system.running(*program, *config["Cmd"], *options, log=log) as process:
        until(system.at(data + "/run.json"), process, log)
        port = json.loads(system.at(data + "/run.json").read_text())["admin_port"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()


def ok(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
