"""What a whole enrollment costs a device: processor time of the resident agent's child, which asks for settings, makes an
EC key and a request, gets the certificate through the proxy, writes every file and reports. Run by scripts/bench."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from igelcert.device.residence import child_command
from tests.support.chain import Device, Proxy, lab_ca, proxy

__all__ = ["measure"]

LIMIT = 60.0  # milliseconds of processor time, waiting for the network not counted
RATIO = 8.2  # to a bare python, for a machine that is slower than the one of the limit


def _cpu(command: list[str]) -> float:
    """Processor time of a command and of what it started, in milliseconds."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[-3:]} ended with {process.returncode}")
    return (used.ru_utime + used.ru_stime) * 1000


def measure(runs: int) -> bool:
    """Prints a line for each kind of private key file; whether it stayed within its aim."""
    bare = [sys.executable, "-I", "-S", "-c", "pass"]
    with (
        tempfile.TemporaryDirectory() as place,
        lab_ca(Path(place) / "ca") as ca,
        proxy(Path(place) / "proxy") as gate,
    ):
        gate.use(ca)
        key = {"type": "ec_prime256v1"}
        gate.profile("plain", {"friendly_name": "lan", "key": key}, directory="/Plain")
        locked = {**key, "crypt_password": "correct horse"}
        gate.profile("locked", {"friendly_name": "lan", "key": locked}, directory="/Locked")
        times: dict[str, list[float]] = {"bare": [], "Plain": [], "Locked": []}
        for number in range(runs + 1):
            row = {"bare": _cpu(bare)}
            for kind in ("Plain", "Locked"):
                device = _device(gate, Path(place), kind, number)
                row[kind] = _cpu(child_command(str(device.root), None))
                assert (device.certs / "lan/cert.pem").exists()
            if number:  # the first finds cold caches, here and at the proxy
                for name, each in row.items():
                    times[name].append(each)
    base, plain, secret = (statistics.median(column) for column in times.values())
    good = plain <= LIMIT or plain / base <= RATIO
    print(
        f"enroll   {plain:6.1f} ms of processor time   bare python {base:6.1f} ms   ratio {plain / base:5.2f}   "
        f"with a password on the key (PBKDF2) {secret:6.1f} ms   {'within' if good else 'MISSES'} its aim"
    )
    return good


def _device(gate: Proxy, place: Path, kind: str, number: int) -> Device:
    name = f"{kind}-{number}".lower()
    made = gate.device(place / name, name.upper(), name, directory=f"/{kind}")
    shutil.copy("rootfs/etc/igelcert/device.toml", made.root / "etc/igelcert/device.toml")  # as it is shipped
    return made
