"""From a first boot to an enrolled certificate, and what later boots do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.guests import Rig, whole
from tests.support.qemu import boot, make_disk, read_disk

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("qemu")]


@pytest.mark.parametrize("kind", ["tiny", "full"])
def test_first_boot(kind: str, host: Rig, tmp_path: Path) -> None:
    host.wants("lan")
    disk, seed = make_disk(tmp_path / "wfs"), host.seed(tmp_path / "seed")
    with boot(kind, tmp_path / "1", disk, seed) as guest:
        print("ready", guest.ready)
        guest.do("for i in $(seq 50); do ip addr show eth0 | grep -q 'inet ' && break; usleep 100000; done")
        guest.do(host.register)
        print("registered", guest.uptime())
        guest.do("rmagent sync --verbose")
        print("enrolled", guest.uptime())
        print(guest.journal())
        print(guest.do("ls -lR /wfs /etc/ssl; free; cat /proc/meminfo | head -3"))
        guest.power_off()
    tree = read_disk(disk, tmp_path / "read")
    assert whole(tree / "igel-certs/lan")
