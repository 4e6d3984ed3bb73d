"""From a guest's start to its shell, and to its first certificate; the sizes of its image."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path

from tests.support.guests import Rig, rig
from tests.support.qemu import ROOT, boot, image, make_disk, online

__all__ = ["measure"]

RATIO = 2.5
OURS, TINY = 1_500_000, 27_000_000  # bytes
# (image, MB, with an aim): in the least memory tiny reads its programs again and again
ROWS = (("tiny", 96, False), ("tiny", 128, True), ("full", 128, True))
# The guest looks by itself, in its own time.
WATCH = """\
while [ ! -s /wfs/igel-certs/lan/cert.pem ]; do usleep 20000; done; cut -d' ' -f1 /proc/uptime"""


def measure(runs: int) -> bool:
    """Prints the figures; False when one misses its aim."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        good = _sizes(place)
        with rig(place / "host") as host:
            for kind, memory, aim in ROWS:
                ratio = _boots(kind, memory, host, place, runs)
                print(
                    f": {ratio:.2f} times   {'' if not aim else 'within its aim' if ratio <= RATIO else 'MISSES its aim'}"
                )
                good = good and (ratio <= RATIO or not aim)
    return good


def _sizes(place: Path) -> bool:
    subprocess.run([ROOT / "scripts/stage", place / "stage"], check=True, timeout=300)
    ours = sum(path.stat().st_size for path in (place / "stage").rglob("*") if path.is_file())
    tiny, full = ((image(kind) / "root.squashfs").stat().st_size for kind in ("tiny", "full"))
    good = ours <= OURS and tiny <= TINY
    verdict = "within" if good else "MISSES"
    print(f"image    our part {ours / 1e6:.2f} MB   squashfs tiny {tiny / 1e6:.1f} MB, full {full / 1e6:.1f} MB   "
          f"{verdict} its aim")  # fmt: skip
    return good


def _boots(kind: str, memory: int, host: Rig, place: Path, runs: int) -> float:
    """First boots: each registers with a token, and enrolls an EC certificate. Prints both times, returns their ratio."""
    ratios, shells, ends = [], [], []
    for number in range(runs):
        host.wants("lan")
        at = place / f"{kind}{memory}-{number}"
        at.mkdir()
        disk, seed = make_disk(at / "wfs"), host.seed(at / "seed")
        with boot(kind, at / "boot", disk, seed, "--memory", str(memory)) as guest:
            online(guest)
            end = float(guest.do(f"{host.register} && {WATCH}"))
            guest.kill()
        shells.append(guest.ready)
        ends.append(end)
        ratios.append(end / guest.ready)
    shell, enrolled = statistics.median(shells), statistics.median(ends)
    print(
        f"boot     {kind} in {memory} MB: shell after {shell:.1f} s, enrolled after {enrolled:.1f} s", end=""
    )
    return statistics.median(ratios)
