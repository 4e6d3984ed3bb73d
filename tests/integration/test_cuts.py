"""Cut off at any moment, and many at once: the tree is always the old set or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from tests.support.chain import Device, LabCa, Proxy, command, proxy, run

PASSWORD = "correct horse"


def check(home: Path) -> int:
    """Certificate, key and pfx belong together; the serial."""
    cert = x509.load_pem_x509_certificate((home / "cert.pem").read_bytes())
    key = load_pem_private_key((home / "pkey.pem").read_bytes(), PASSWORD.encode())
    assert key.public_key() == cert.public_key()
    other, leaf, _ = pkcs12.load_key_and_certificates((home / "cert.pfx").read_bytes(), PASSWORD.encode())
    assert leaf == cert and other is not None
    assert (home / "cacerts.pem").read_bytes().count(b"BEGIN") == len(list((home / "cacerts").iterdir())) == 2
    return cert.serial_number


def profile() -> dict[str, object]:
    return {"friendly_name": "lan", "key": {"type": "ec_prime256v1", "crypt_password": PASSWORD}}


def test_killed_at_any_moment(gate: Proxy, lab: LabCa, root: Path) -> None:
    gate.profile("cuts", profile(), directory="/Cuts")
    device = gate.device(root, "CUTS", "tc-cuts", directory="/Cuts")
    device.sync()
    home = device.certs / "lan"
    start = time.monotonic()
    assert run("igel-certs", "renew", "--force", "--root", root).returncode == 0
    whole = time.monotonic() - start
    chance = random.Random(17)
    cut = 0
    serials = {check(home)}
    issued = len(lab.issued())
    for number in range(100):
        if number >= 25 and cut >= 5:
            break
        args = [command("igel-certs"), "renew", "--force", "--root", str(root)]
        process = subprocess.Popen(args, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1 * whole, 1.1 * whole))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            cut += 1
        elif number >= 25:  # the first one was slow by chance
            whole *= 0.9
        serials.add(check(home))
    assert cut >= 5, "most were over before the cut: it would prove nothing"
    # and the next run goes on as if nothing had been, and leaves nothing behind
    assert run("igel-certs", "renew", "--force", "--root", root).returncode == 0
    check(home)
    leftovers = [path.name for path in (device.certs / ".store/lan").iterdir() if path.name.startswith(".")]
    assert leftovers == []
    generations = [
        path for path in (device.certs / ".store/lan").iterdir() if path.is_dir() and path.name != "pending"
    ]
    assert len(generations) <= 2
    # a request that was cut is asked again with its key, which is one certificate
    assert len(lab.issued()) - issued <= len(serials) + cut


def test_two_runs_at_once(gate: Proxy, root: Path) -> None:
    gate.profile("twice", profile(), directory="/Twice")
    device = gate.device(root, "TWICE", "tc-twice", directory="/Twice")
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(run("rmagent", "sync", "--root", root).returncode))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [0, 0, 0, 0]
    check(device.certs / "lan")


@pytest.mark.slow
def test_a_herd(lab: LabCa, tmp_path: Path) -> None:
    """Twenty devices at once through a proxy that may ask the CA two things at a time: who is told to come later
    (75) comes later, and each has its certificate in the end."""

    def come(device: Device) -> int:
        end = time.monotonic() + 120
        while (code := run("rmagent", "sync", "--root", device.root).returncode) == 75:
            if time.monotonic() > end:
                break
            time.sleep(1)
        return code

    with proxy(tmp_path / "data", "upstream_parallel = 2") as gate:
        gate.use(lab)
        gate.profile("lan", profile(), directory="/")
        herd: list[Device] = [
            gate.device(tmp_path / f"root{n}", f"HERD{n}", f"tc-herd{n}") for n in range(20)
        ]
        before = len(lab.issued())
        codes: list[int] = []
        threads = [threading.Thread(target=lambda d=each: codes.append(come(d))) for each in herd]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(150)
        assert codes == [0] * 20
        assert len(lab.issued()) == before + 20
        assert len({check(each.certs / "lan") for each in herd}) == 20


def test_the_proxy_killed(lab: LabCa, tmp_path: Path) -> None:
    """Whatever it was doing: it starts again and goes on with what it knew."""

    data = tmp_path / "data"
    with contextlib.suppress(RuntimeError), proxy(data) as gate:
        gate.use(lab)
        gate.profile("lan", profile(), directory="/")
        device = gate.device(tmp_path / "root", "KILLED", "tc-killed")
        device.sync()
        pid = json.loads((data / "run.json").read_text())["pid"]
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, workers)):
            os.kill(each, signal.SIGKILL)
        raise RuntimeError
    with proxy(data) as gate:
        toml = tmp_path / "root/wfs/igel-rmagent/server.json"
        toml.write_text(json.dumps({"server": gate.url}))
        device.sync()
        assert [row["state"] for row in gate.enrollments()] == ["issued"]
        assert run("igel-certs", "renew", "--force", "--root", device.root).returncode == 0
