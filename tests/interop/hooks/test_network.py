"""802.1X by wire: after their hooks wpa_supplicant and NetworkManager authenticate with the new certificate.

The other end of the cable is hostapd, which asks FreeRADIUS; that one says whom it let in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hooks import hook, renew, serial
from tests.support.peers import peer
from tests.support.radius import Radius, radius, supplicant
from tests.support.sandbox import Machine
from tests.support.servers import PASSWORD, Host, LabCa
from tests.support.until import until

pytestmark = pytest.mark.peers

HOSTAPD = """
interface=switch0
driver=wired
ieee8021x=1
use_pae_group_addr=1
own_ip_addr=127.0.0.1
auth_server_addr=127.0.0.1
auth_server_port={port}
auth_server_shared_secret={secret}
"""


@pytest.fixture
def switch(box: Machine, host: Host, lab: LabCa, tmp_path: Path) -> Iterator[Radius]:
    """A switch (hostapd) that asks for 802.1X at the other end of the cable in lan0; its RADIUS server."""
    program, home = peer("hostapd"), host.home("radius")
    box.run("ip", "link", "add", "lan0", "type", "veth", "peer", "switch0")
    box.run("ip", "link", "set", "switch0", "up")
    box.run("ip", "link", "set", "lan0", "up")
    with radius(
        tmp_path / "raddb", home / "cert.pem", home / "pkey.pem", PASSWORD, lab.dir / "root.pem", box.enter
    ) as server:
        config = tmp_path / "hostapd.conf"
        config.write_text(HOSTAPD.format(port=server.port, secret=server.secret))
        with box.running("hostapd", program, config) as log:
            until(lambda: "AP-ENABLED" in log.read_text(), say=log.read_text)
            yield server


def admitted(server: Radius, wanted: int, log: Path) -> None:
    """Waits until the RADIUS server has let that certificate in."""
    until(lambda: wanted in [number for number, _ in server.accepted()], say=log.read_text)


@pytest.fixture
def wired(box: Machine, host: Host, switch: Radius, tmp_path: Path) -> Iterator[Path]:
    """wpa_supplicant at lan0, with the control socket where Debian has it; its log."""
    program = peer("wpa_supplicant")
    config = supplicant(tmp_path / "wpa.conf", host.home(), PASSWORD)
    config.write_text("ctrl_interface=/run/wpa_supplicant\nap_scan=0\n" + config.read_text())
    with box.running("wpa_supplicant", program, "-D", "wired", "-i", "lan0", "-c", config) as log:
        yield log


def test_wpa_supplicant(box: Machine, host: Host, switch: Radius, wired: Path) -> None:
    before = serial(host)
    admitted(switch, before, wired)
    after = renew(host)
    hook(box, "wpa_supplicant", host)
    admitted(switch, after, wired)
    shown = lambda: box.run("wpa_cli", "-i", "lan0", "status").stdout  # noqa: E731
    until(lambda: "wpa_state=COMPLETED" in shown(), say=shown)


def test_wpa_supplicant_refuses(
    box: Machine, host: Host, switch: Radius, wired: Path, tmp_path: Path
) -> None:
    admitted(switch, serial(host), wired)
    with (tmp_path / "wpa.conf").open("a") as file:
        file.write("network={ nonsense\n")
    assert "refuses its configuration for lan0" in hook(box, "wpa_supplicant", host, code=1)


# ---- NetworkManager -----------------------------------------------------------------------------

NETWORK_MANAGER = """
[main]
plugins=keyfile
auth-polkit=false
rc-manager=unmanaged
systemd-resolved=false
no-auto-default=*
[logging]
level=INFO
"""
CONNECTION = """
[connection]
id=the office
uuid=6b1c2f0e-3c6a-4f0b-9a46-0f6f4c7e9b11
type=ethernet
interface-name=lan0
[802-1x]
eap=tls;
identity=host/thinclient
domain-match=radius.example
ca-cert={home}/cacerts.pem
client-cert={home}/cert.pem
private-key={home}/pkey.pem
private-key-password={password}
[ipv4]
method=manual
address1=192.0.2.17/24
[ipv6]
method=disabled
"""


@pytest.fixture
def managed(box: Machine, host: Host, switch: Radius) -> Iterator[Path]:
    """NetworkManager with a system bus and a wpa_supplicant of its own, and an 802.1X connection at lan0; its log."""
    manager, supplicant_, bus = peer("NetworkManager"), peer("wpa_supplicant"), peer("dbus-daemon")
    place = box.etc / "NetworkManager"
    (place / "system-connections").mkdir(parents=True)
    (place / "NetworkManager.conf").write_text(NETWORK_MANAGER)
    connection = place / "system-connections/office.nmconnection"
    connection.touch(0o600)
    connection.write_text(CONNECTION.format(home=host.home(), password=PASSWORD))
    box.run("mkdir", "/run/dbus", "/run/NetworkManager")
    box.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib/NetworkManager")
    with (
        box.running("dbus", bus, "--system", "--nofork", "--nopidfile", "--nosyslog") as log,
        contextlib.ExitStack() as stack,
    ):
        until((box.proc / "run/dbus/system_bus_socket").exists, say=log.read_text)
        stack.enter_context(box.running("nm-supplicant", supplicant_, "-u"))
        yield stack.enter_context(box.running("NetworkManager", manager, "--debug"))


@pytest.mark.slow
def test_networkmanager(box: Machine, host: Host, switch: Radius, managed: Path) -> None:
    admitted(switch, serial(host), managed)
    after = renew(host)
    hook(box, "networkmanager", host)
    admitted(switch, after, managed)


def test_networkmanager_refuses(box: Machine, host: Host, switch: Radius, managed: Path) -> None:
    admitted(switch, serial(host), managed)
    box.run("nmcli", "connection", "modify", "the office", "connection.interface-name", "lan9")
    said = hook(box, "networkmanager", host, code=1)
    assert "NetworkManager hook: the connection 6b1c2f0e-3c6a-4f0b-9a46-0f6f4c7e9b11 was not accepted" in said
