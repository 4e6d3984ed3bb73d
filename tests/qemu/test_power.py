"""The plug is pulled: at each write of an enrollment and of a renewal, and at random. The next boot goes on."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from igelcert.device.rmagent_cli import main as rmagent
from tests.support.guests import UNIT_ID, Rig, whole
from tests.support.qemu import Guest, boot, make_disk, read_disk
from tests.support.writelog import blockdev, read_log, states

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("qemu")]

LEAST = 200  # crash points of an enrollment and a renewal together
KILLS = 10


@dataclass
class Life:
    """One boot with a logged disk. Sizes of the log when each thing was said to be done; serials of both."""

    before: bytes
    log: Path
    registered: int
    enrolled: int
    renewed: int
    serials: tuple[int, int]


def live(host: Rig, place: Path, **seed: str | bytes) -> Life:
    """Registers, enrolls, renews; then the plug is pulled."""
    early = "[ ! -e /seed/nofsync.so ] || { cp /seed/nofsync.so /usr/lib/; echo /usr/lib/nofsync.so >/etc/ld.so.preload; }\n"
    disk, log = make_disk(place / "wfs"), place / "log"
    before = disk.read_bytes()
    host.wants()
    seed_disk = host.seed(place / "seed", early, **seed)
    old = {cert.serial_number for cert in host.issued()}
    with boot("tiny", place, disk, seed_disk, "--blockdev", blockdev(disk, log)) as guest:
        online(guest)
        guest.do(host.register)
        guest.await_journal("registered")
        registered = log.stat().st_size
        host.wants("lan")
        guest.await_journal("lan: enrolled")
        enrolled = log.stat().st_size
        first = {cert.serial_number for cert in host.issued()} - old
        guest.do("for i in $(seq 100); do [ -s /wfs/hooks.log ] && break; usleep 100000; done")
        guest.do("igel-certs renew --force")
        renewed = log.stat().st_size
        guest.kill()
    second = {cert.serial_number for cert in host.issued()} - old - first
    assert len(first) == len(second) == 1
    return Life(before, log, registered, enrolled, renewed, (*first, *second))


def online(guest: Guest) -> None:
    guest.do(
        "for i in $(seq 100); do ip addr show eth0 | grep -q 'inet ' && exit; usleep 100000; done; false"
    )


def judge(life: Life, host: Rig, place: Path) -> tuple[int, int, int]:
    """Every state of the disk: whole, old or new, and nothing lost that was said to be done; and a device that
    starts from it ends enrolled. Returns the numbers of moments in the enrollment and renewal, and of states."""
    place.mkdir()
    counts = [0, 0]
    seen: set[str] = set()
    for end, disk in states(life.before, read_log(life.log), life.registered, random.Random(7)):
        if end <= life.renewed:
            counts[end > life.enrolled] += 1
        (place / "disk").write_bytes(disk)
        tree = read_disk(place / "disk", place / "tree")
        mark = digest(tree)
        if mark in seen and end <= life.enrolled:
            continue
        found = whole(tree / "igel-certs/lan")
        may = [None, life.serials[0]] if end < life.enrolled else [*life.serials]
        if end >= life.renewed:
            may = [life.serials[1]]
        serial = found and found["serial"]
        assert serial in may, f"after {end} bytes of the log: {serial} instead of {may}"
        if mark not in seen:
            seen.add(mark)
            goes_on(tree, host)
    return counts[0], counts[1], len(seen)


def digest(tree: Path) -> str:
    """Of all names, links and contents."""
    found = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        found.update(f"{path.relative_to(tree)}\0".encode())
        if path.is_symlink():
            found.update(str(path.readlink()).encode())
        elif path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def goes_on(tree: Path, host: Rig) -> None:
    """The device's next run, on this machine: ends with a certificate, and no request under way.

    Temporary files stay until the next generation is made, which sweeps.
    """
    root = tree.with_name("root")
    shutil.rmtree(root, ignore_errors=True)
    (root / "etc/igelcert").mkdir(parents=True)
    (root / "etc/hostname").write_text("thinclient\n")
    (root / "etc/igelcert/device.toml").write_text(f'unit_id = "{UNIT_ID}"\n')
    shutil.copytree(tree, root / "wfs", symlinks=True)
    (root / "wfs/igel-rmagent/server.json").write_text(json.dumps({"server": host.gate.url}))
    assert rmagent(["sync", "--root", str(root)]) == 0
    assert whole(root / "wfs/igel-certs/lan")
    names = [path.name for path in (root / "wfs/igel-certs/.store/lan").iterdir()]
    assert not [name for name in names if name == "pending"], names


def one_each(host: Rig) -> None:
    """The CA gave at most one certificate for a request: no two have one key."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    keys = Counter(cert.public_key().public_bytes(*form) for cert in host.issued())
    assert max(keys.values()) == 1


def test_every_write(host: Rig, tmp_path: Path) -> None:
    life = live(host, tmp_path)
    enrollment, renewal, distinct = judge(life, host, tmp_path / "judge")
    print(f"{enrollment} moments of the enrollment, {renewal} of the renewal, {distinct} different disks")
    assert enrollment >= 50 and renewal >= 50 and enrollment + renewal >= LEAST
    assert distinct >= 20
    one_each(host)


def test_without_fsync_it_is_noticed(host: Rig, tmp_path: Path) -> None:
    """The control: the same judge over a device whose flushes do nothing."""
    library = tmp_path / "nofsync.so"
    source = Path(__file__).parents[1] / "support/nofsync.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", "-o", library, source], check=True, timeout=60)
    life = live(host, tmp_path, **{"nofsync.so": library.read_bytes()})
    with pytest.raises((AssertionError, OSError, ValueError)):
        judge(life, host, tmp_path / "judge")


def test_killed_at_random(host: Rig, tmp_path: Path) -> None:
    """QEMU is killed while the device boots or renews without end."""
    host.wants("lan")
    disk, seed = make_disk(tmp_path / "wfs"), host.seed(tmp_path / "seed")
    with boot("tiny", tmp_path / "first", disk, seed) as guest:
        online(guest)
        guest.do(host.register)
        guest.await_journal("lan: enrolled")
        ready = guest.ready
        guest.kill()
    chance = random.Random(11)
    serials = set()
    for number in range(KILLS):
        found = whole(read_disk(disk, tmp_path / "tree") / "igel-certs/lan")
        assert found, "an enrolled certificate is gone"
        serials.add(found["serial"])
        during_boot = number % 4 == 0
        with boot("tiny", tmp_path / f"{number}", disk, seed, wait=not during_boot) as guest:
            if not during_boot:
                guest.do("(while :; do igel-certs renew --force; done) >/dev/null 2>&1 &")
            time.sleep(chance.uniform(0.2, ready if during_boot else 5.0))
            guest.kill()
        goes_on(read_disk(disk, tmp_path / "tree"), host)
    assert len(serials) >= 3, "too few renewals: it would prove little"
    with boot("tiny", tmp_path / "last", disk, seed) as guest:
        assert "lan: valid" in guest.do("igel-certs status")
        guest.do("igel-certs install-cas")
        guest.power_off()
    assert whole(read_disk(disk, tmp_path / "tree") / "igel-certs/lan")
    one_each(host)
