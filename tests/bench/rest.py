"""`rmagent run` at rest: what it costs to wait for settings."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.chain import command, lab_ca, proxy

__all__ = ["measure"]

MEGABYTES = 20.0
START_SECONDS = 60


def _status(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def _ticks(pid: int) -> int:
    """Processor time of the process and of children that ended, in clock ticks."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))


def measure(seconds: float) -> bool:
    """Prints a line; whether it stayed within its aims."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        with lab_ca(Path(place) / "ca") as ca, proxy(Path(place) / "proxy") as gate:
            gate.use(ca)
            gate.profile("lan", {"friendly_name": "lan", "key": {"type": "ec_prime256v1"}}, directory="/")
            device = gate.device(root, "REST", "tc-rest")
            process = subprocess.Popen([command("rmagent"), "run", "--root", str(root)])
            try:
                return _watch(process.pid, device.certs / "lan/cert.pem", seconds)
            finally:
                process.terminate()
                process.wait(20)


def _watch(pid: int, cert: Path, seconds: float) -> bool:
    end = time.monotonic() + START_SECONDS
    while not cert.exists():
        if time.monotonic() > end:
            print("rest     the device does not enroll")
            return False
        time.sleep(0.1)
    time.sleep(3)  # the report, and session tickets of the new connection
    ticks, wakes = _ticks(pid), _status(pid, "voluntary_ctxt_switches")
    time.sleep(seconds)
    ticks, wakes = _ticks(pid) - ticks, _status(pid, "voluntary_ctxt_switches") - wakes
    size = _status(pid, "VmRSS") / 1000
    good = ticks == 0 and wakes <= seconds / 30 and size <= MEGABYTES
    print(
        f"rest     {size:6.1f} MB   {ticks} ticks and {wakes} wake-ups in {seconds:.0f} s   "
        f"{'within' if good else 'MISSES'} its aim"
    )
    return good
