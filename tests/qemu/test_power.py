"""The plug is pulled: at each write of an enrollment and of a renewal, and at random. The next boot goes on."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from igelcert.device.rmagent_cli import main as rmagent
from tests.support.guests import UNIT_ID, Rig, whole
from tests.support.qemu import Guest, boot, make_disk, online, read_disk
from tests.support.writelog import blockdev, read_log, states

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("qemu-power")]

LEAST = 200  # crash points of an enrollment and a renewal together
BOOTED = 2  # of the disks that they leave, so many are booted; every one is judged, and gone on with here
KILLS, OF_BOOTS = 10, 2  # so many while the guest boots, the others while it renews without end

# The guest's own run at boot has come to its end: a certificate, and nothing left half done.
SETTLED = """\
for i in $(seq 1500); do
    [ -s /wfs/igel-certs/lan/cert.pem ] && ! pgrep -f 'sync --paced' >/dev/null &&
        [ -z "$(find /wfs -name '*.new*' -o -name pending)" ] && exit
    usleep 100000
done
find /wfs
exit 1"""


@dataclass
class Life:
    """One boot with a logged disk. before: the disk then; disk: as it was when the plug was pulled. The size of the
    log when each thing was said to be done; the serials of both certificates."""

    before: bytes
    disk: Path
    seed: Path
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
        if (
            seed
        ):  # the control: what nobody flushes stays in memory until it is told, however slow the guest is
            guest.do("mount -o remount,commit=600 /wfs")
            guest.do("for i in writeback expire; do echo 60000 >/proc/sys/vm/dirty_${i}_centisecs; done")
        guest.do(host.register)
        guest.await_journal("new settings with 0")
        registered = log.stat().st_size
        host.wants("lan")
        guest.await_journal("lan: enrolled")
        enrolled = log.stat().st_size
        if seed:
            guest.do("sync")
        first = {cert.serial_number for cert in host.issued()} - old
        hooked(guest)
        guest.do("igel-certs renew --force")
        renewed = log.stat().st_size
        guest.kill()
    second = {cert.serial_number for cert in host.issued()} - old - first
    assert len(first) == len(second) == 1
    return Life(before, disk, seed_disk, log, registered, enrolled, renewed, (*first, *second))


def hooked(guest: Guest) -> None:
    """Hooks come after the enrollment; what they write belongs to it."""
    guest.do("for i in $(seq 600); do [ -s /wfs/hooks.log ] && exit; usleep 100000; done; false")


@dataclass
class Left:
    """What a cut left. fault: what must not be so, "" when all is well. renewal: it was cut in the renewal."""

    end: int
    tree: Path
    disk: bytes
    fault: str
    renewal: bool


def cut_everywhere(life: Life, place: Path) -> Iterator[Left]:
    """Every state of the disk from the registration to the end of the renewal; file system and tree are checked."""
    place.mkdir()
    for end, disk in states(life.before, read_log(life.log), life.registered, random.Random(7)):
        if end > life.renewed:
            return
        (place / "disk").write_bytes(disk)
        tree = read_disk(place / "disk", place / "tree")
        yield Left(end, tree, disk, fault(life, end, tree), end > life.enrolled)


def fault(life: Life, end: int, tree: Path) -> str:
    """Old or new, never mixed; what was said to be done is done."""
    old, new = life.serials
    try:
        found = whole(tree / "igel-certs/lan")
    except (AssertionError, OSError, ValueError) as err:
        return f"after {end} bytes of the log the tree is mixed or damaged: {err!r}"
    serial = found["serial"] if found else None
    if end >= life.renewed and serial != new:
        return f"after {end} bytes of the log the renewed certificate, which was said to be there, is not"
    if end >= life.enrolled and serial not in {old, new}:
        return f"after {end} bytes of the log the enrolled certificate, which was said to be there, is not"
    if serial not in ({None, old} if end < life.enrolled else {old, new}):
        return f"after {end} bytes of the log there is a certificate too early: {serial}"
    return ""


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
    """The device's next run, on this machine: ends with a certificate, asks for one at most, and leaves nothing
    half done behind."""
    root = tree.with_name("root")
    shutil.rmtree(root, ignore_errors=True)
    (root / "etc/igelcert").mkdir(parents=True)
    (root / "etc/hostname").write_text("thinclient\n")
    (root / "etc/igelcert/device.toml").write_text(f'unit_id = "{UNIT_ID}"\n')
    shutil.copytree(tree, root / "wfs", symlinks=True)
    (root / "wfs/igel-rmagent/server.json").write_text(json.dumps({"server": host.gate.url}))
    before = len(host.lab.issued())
    assert rmagent(["sync", "--root", str(root)]) == 0
    assert len(host.lab.issued()) - before <= 1
    assert whole(root / "wfs/igel-certs/lan")
    names = [str(path.relative_to(root)) for path in (root / "wfs").rglob("*")]
    left = [name for name in names if ".new" in name or name.endswith("/pending")]
    assert not left, left
    store = [path.name for path in (root / "wfs/igel-certs/.store/lan").iterdir()]
    assert sorted(name[:4] for name in store)[-1] == "stat" and len(store) <= 3, store


def one_each(host: Rig) -> None:
    """The CA gave at most one certificate for a request: no two have one key."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    keys = Counter(cert.public_key().public_bytes(*form) for cert in host.issued())
    assert max(keys.values()) == 1


@pytest.fixture(scope="module")
def life(host: Rig, tmp_path_factory: pytest.TempPathFactory) -> Life:
    return live(host, tmp_path_factory.mktemp("life"))


def test_every_write(host: Rig, life: Life, tmp_path: Path) -> None:
    counts = Counter[bool]()
    seen: dict[str, bool] = {}
    sample: list[Path] = []
    for left in cut_everywhere(life, tmp_path / "cut"):
        assert not left.fault, left.fault
        counts[left.renewal] += 1
        mark = digest(left.tree)
        if mark in seen:
            continue
        seen[mark] = left.renewal
        goes_on(left.tree, host)
        if len(seen) % 15 == 7 and len(sample) < BOOTED:
            sample.append(tmp_path / f"disk{len(seen)}")
            sample[-1].write_bytes(left.disk)
    print(f"{counts[False]} crash points of the enrollment, {counts[True]} of the renewal, {len(seen)} trees")
    assert min(counts.values()) >= LEAST / 4 and sum(counts.values()) >= LEAST
    assert len(seen) >= 20 and len(sample) == BOOTED
    for disk in sample:
        with boot("tiny", tmp_path / f"{disk.name}.boot", disk, life.seed) as guest:
            guest.do(SETTLED, seconds=400)
            guest.power_off()
        assert whole(read_disk(disk, tmp_path / "after") / "igel-certs/lan")
    one_each(host)


def test_killed_at_random(host: Rig, life: Life, tmp_path: Path) -> None:
    """QEMU is killed while the device boots or renews without end. Each boot begins with what the last kill left."""
    chance = random.Random(11)
    disk = Path(shutil.copyfile(life.disk, tmp_path / "wfs"))
    serials = set()
    ready = 5.0
    for number in range(3 * KILLS):
        if number >= KILLS and len(serials) >= 3:
            break
        booting = number % (KILLS // OF_BOOTS) == 2
        with boot("tiny", tmp_path / f"{number}", disk, life.seed, wait=not booting) as guest:
            if not booting:
                ready = guest.ready
                assert "lan: valid" in guest.do("igel-certs status")
                guest.do("(while :; do igel-certs renew --force; done) >/dev/null 2>&1 &")
                if number % 2:
                    another(host)
            time.sleep(chance.uniform(0.5, ready) if booting else chance.uniform(0.0, 2.5))
            guest.kill()
        tree = read_disk(disk, tmp_path / "tree")
        found = whole(tree / "igel-certs/lan")
        assert found, "an enrolled certificate is gone"
        serials.add(found["serial"])
        goes_on(tree, host)
    assert len(serials) >= 3, "too few renewals: it would prove little"
    with boot("tiny", tmp_path / "last", disk, life.seed) as guest:
        guest.do(SETTLED, seconds=400)
        assert "lan: valid" in guest.do("igel-certs status")
        guest.power_off()
    assert whole(read_disk(disk, tmp_path / "tree") / "igel-certs/lan")
    one_each(host)


def another(host: Rig) -> None:
    """Waits until the CA has issued one more: just then most is written."""
    before, end = len(host.lab.issued()), time.monotonic() + 60
    while len(host.lab.issued()) == before:
        assert time.monotonic() < end, "no renewal within a minute"
        time.sleep(0.02)


def test_without_fsync_it_is_noticed(host: Rig, tmp_path: Path) -> None:
    """The control: the same judge over a device whose flushes do nothing."""
    library = tmp_path / "nofsync.so"
    source = Path(__file__).parents[1] / "support/nofsync.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", "-o", library, source], check=True, timeout=60)
    life = live(host, tmp_path, **{"nofsync.so": library.read_bytes()})
    expected = "the enrolled certificate, which was said to be there, is not"
    assert any(expected in left.fault for left in cut_everywhere(life, tmp_path / "cut"))
