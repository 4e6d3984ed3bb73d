"""OpenVPN opens a new TLS session with the new certificate after its hook."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hooks import hook, renew, serial
from tests.support.peers import peer
from tests.support.sandbox import Machine
from tests.support.servers import PASSWORD, Host
from tests.support.until import until

pytestmark = pytest.mark.peers

OPENVPN = """
dev null
verb 3
ping 1
ping-restart 10
auth-nocache
ca {home}/cacerts.pem
cert {home}/cert.pem
key {home}/pkey.pem
askpass {dir}/password
"""
OPENVPN_SERVER = """
local 127.0.0.1
lport 11940
tls-server
dh none
script-security 2
tls-verify {dir}/verify
"""
OPENVPN_CLIENT = """
remote 127.0.0.1 11940
bind
local 127.0.0.1
lport 11941
tls-client
persist-key
remote-cert-tls server
writepid /run/openvpn/office.pid
"""
VERIFY = '#!/bin/sh\n[ "$1" != 0 ] || echo "$tls_serial_0" >>"${0%/*}/peers"\n'


@pytest.fixture
def tunnel(box: Machine, host: Host, tmp_path: Path) -> Iterator[Path]:
    """An OpenVPN client with "lan", /run/openvpn/office.pid, at a server; no device is made. Logs are in box.dir.

    In the file that is yielded stand the serial numbers of the clients' certificates that the server verified.
    """
    program, peers = peer("openvpn"), tmp_path / "peers"
    peers.touch()
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "verify").write_text(VERIFY)
    (tmp_path / "verify").chmod(0o755)
    box.run("mkdir", "/run/openvpn")
    configs = []
    for name, home, role in (("vpn-server", "radius", OPENVPN_SERVER), ("vpn-client", "lan", OPENVPN_CLIENT)):
        config = tmp_path / f"{name}.conf"
        config.write_text((OPENVPN + role).format(home=host.home(home), dir=tmp_path))
        configs.append(config)
    with (
        box.running("vpn-server", program, "--config", configs[0]),
        box.running("vpn-client", program, "--config", configs[1]) as log,
    ):
        until(lambda: "Initialization Sequence Completed" in log.read_text(), say=log.read_text)
        yield peers


@pytest.mark.slow
def test_openvpn(box: Machine, host: Host, tunnel: Path) -> None:
    assert tunnel.read_text().split() == [str(serial(host))]
    after = renew(host)
    hook(box, "openvpn", host)
    log = box.dir / "vpn-client.log"
    until(lambda: log.read_text().count("Initialization Sequence Completed") >= 2, say=log.read_text)
    assert tunnel.read_text().split()[-1] == str(after)


def test_openvpn_refuses(box: Machine, host: Host, tunnel: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong horse\n")
    said = hook(box, "openvpn", host, code=1)
    assert "OpenVPN (/run/openvpn/office.pid) ended when it read the new certificate" in said
