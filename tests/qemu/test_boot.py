"""From a first boot to an enrolled certificate, and what later boots do, in both images."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.support.guests import Rig, whole
from tests.support.qemu import boot, make_disk, online, read_disk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("qemu-boots")]

KINDS = ("tiny", "full")
RELOAD = {"tiny": "/etc/init.d/rmagent reload", "full": "systemctl reload rmagent"}
STATUS = {"tiny": "/etc/init.d/rmagent status", "full": "systemctl is-active rmagent"}
LEAST_MEMORY = {"tiny": "96", "full": "128"}  # MB
# Trusts what the system's store trusts, and nothing else.
TLS = """\
import socket, ssl, sys
context = ssl.create_default_context()
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as plain:
    with context.wrap_socket(plain, server_hostname="localhost") as link:
        print("verified", link.version())
"""


@dataclass
class Enrolled:
    """A device after its first boot. `said`: what its commands printed."""

    kind: str
    host: Rig
    disk: Path
    seed: Path
    place: Path
    journal: str
    said: dict[str, str]
    ready: float

    def again(self, name: str) -> Path:
        """A copy of its disk, for another boot."""
        return Path(shutil.copyfile(self.disk, self.place / name))

    def read(self, disk: Path) -> Path:
        return read_disk(disk, self.place / f"{disk.name}.read")


@pytest.fixture(scope="module", params=KINDS)
def first(
    request: pytest.FixtureRequest, host: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Enrolled]:
    """Registers with the token of the seed disk; the resident agent, which init started, does the rest."""
    kind: str = request.param
    place = tmp_path_factory.mktemp(kind)
    host.gate.use(host.lab)
    host.wants("lan")
    disk, seed = make_disk(place / "wfs"), host.seed(place / "seed", **{"tls.py": TLS})
    said = {}
    with boot(kind, place, disk, seed) as guest:
        online(guest)
        said["before"] = guest.do(f"python3 /seed/tls.py 10.0.2.2 {host.lab.port}", code=1)
        guest.do(host.register)
        guest.await_journal("lan: enrolled")
        guest.do("for i in $(seq 600); do [ -s /wfs/hooks.log ] && exit; usleep 100000; done; false")
        said["tls"] = guest.do(f"python3 /seed/tls.py 10.0.2.2 {host.lab.port}")
        said["store"] = guest.do("ls -l /etc/ssl/certs; ls /etc/ssl/cert/")
        said["status"] = guest.do("igel-certs status")
        said["agent"] = guest.do(STATUS[kind])
        guest.do("igel-certs renew nonsense", code=1)
        journal = guest.journal()
        guest.power_off()
    yield Enrolled(kind, host, disk, seed, place, journal, said, guest.ready)


def serials(host: Rig) -> set[int]:
    return {cert.serial_number for cert in host.issued()}


def test_first_boot(first: Enrolled) -> None:
    tree = first.read(first.disk)
    found = whole(tree / "igel-certs/lan")
    assert found and found["serial"] in serials(first.host)
    assert found["cert"].public_key().curve.name == "secp256r1"
    name = found["cert"].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    assert name == "thinclient"
    assert (tree / "hooks.log").read_text() == "enrolled lan /wfs/igel-certs/lan\n"
    assert first.said["agent"].split() in (
        ["active"],
        ["rmagent", "is", "running", "as", "process", first.said["agent"].split()[-1]],
    )


def test_the_system_trusts_the_ca(first: Enrolled) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in first.said["before"]
    assert first.said["tls"].startswith("verified TLSv1.")
    rows = first.said["store"]
    assert "Lab Root CA.pem" in rows and "Lab Issuing CA.pem" in rows
    assert len(re.findall(r"[0-9a-f]{8}\.0 -> Lab", rows)) == 2
    assert rows.count("Lab Root CA.pem\n") == 3, "the file, its link, and once more by way of /etc/ssl/cert"


def test_the_journal_tells_the_story(first: Enrolled) -> None:
    assert re.search(r"rmagent\[\d+\]: registered at https://proxy.example", first.journal)
    assert re.search(r"igel-certs\[\d+\]: lan: enrolled, serial [0-9A-F]+", first.journal)
    assert re.search(r"igel-certs\[\d+\]: nonsense: the settings have no such certificate", first.journal)
    assert "correct horse" not in first.journal


def test_second_boot_without_network(first: Enrolled) -> None:
    """The CAs are back before there is a network, and nothing is enrolled again. When the network comes, so do
    the settings, which now want one certificate more, and the CA behind the proxy is asked over SCEP."""
    host = first.host
    before = serials(host)
    host.gate.use_scep(host.lab.scep, "--fingerprint", host.lab.root_fingerprint())
    host.wants("lan", "vpn")
    disk = first.again("second")
    try:
        with boot(first.kind, first.place / "2", disk, first.seed, unplugged=True) as guest:
            assert "Lab Root CA.pem" in guest.do("ls /etc/ssl/certs")
            assert "lan: valid" in guest.do("igel-certs status")
            guest.await_journal("going on with the stored settings")
            assert serials(host) == before
            guest.plug()
            guest.await_journal("vpn: enrolled")
            assert "lan: enrolling" not in guest.journal() and "lan: renewing" not in guest.journal()
            guest.power_off()
    finally:
        host.gate.use(host.lab)
        host.wants("lan")
    tree = first.read(disk)
    old, new = whole(tree / "igel-certs/lan"), whole(tree / "igel-certs/vpn")
    assert old and new and serials(host) - before == {new["serial"]}
    assert old["serial"] in before


def future() -> int:
    """Within the renewal window of a certificate of 90 days."""
    return int(time.time()) + 85 * 86_400


def when(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def renewed(first: Enrolled, disk: Path) -> dict[str, Any]:
    tree = first.read(disk)
    old, new = whole(first.read(first.disk) / "igel-certs/lan"), whole(tree / "igel-certs/lan")
    assert old and new and old["serial"] != new["serial"]
    assert old["cert"].public_key() != new["cert"].public_key()
    assert (tree / "hooks.log").read_text().endswith("renewed lan /wfs/igel-certs/lan\n")
    return new


def test_boot_in_the_future(first: Enrolled) -> None:
    """The certificate is due. In the least memory that the image wants."""
    least = ["--memory", LEAST_MEMORY[first.kind]]
    first.host.gate.use(first.host.late)
    disk = first.again("future")
    try:
        with boot(
            first.kind, first.place / "3", disk, first.seed, "--clock", when(future()), *least
        ) as guest:
            guest.await_journal("lan: renewed")
            guest.do(
                "for i in $(seq 600); do grep -q renewed /wfs/hooks.log && exit; usleep 100000; done; false"
            )
            guest.power_off()
    finally:
        first.host.gate.use(first.host.lab)
    renewed(first, disk)


def test_boot_in_1970(first: Enrolled) -> None:
    """The agent waits for the time, without touching anything, and goes on when it is there."""
    first.host.gate.use(first.host.late)
    before = serials(first.host)
    disk = first.again("past")
    try:
        with boot(first.kind, first.place / "4", disk, first.seed, "--clock", "1970-01-01T00:00:30") as guest:
            guest.await_journal("the clock")
            online(guest)
            assert "lan: valid" in guest.do("igel-certs status")
            assert "Lab Root CA.pem" in guest.do("ls /etc/ssl/certs")
            assert serials(first.host) == before
            guest.do(f"date -s @{future()}; {RELOAD[first.kind]}")
            guest.await_journal("lan: renewed")
            guest.do(
                "for i in $(seq 600); do grep -q renewed /wfs/hooks.log && exit; usleep 100000; done; false"
            )
            guest.power_off()
    finally:
        first.host.gate.use(first.host.lab)
    renewed(first, disk)
