"""charon authenticates (IKEv2) with the new certificate after its hook."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.hooks import hook, renew, serial
from tests.support.peers import peer
from tests.support.sandbox import Machine
from tests.support.servers import PASSWORD, Host
from tests.support.until import until

pytestmark = pytest.mark.peers

SWANCTL = """
connections {{
    office {{
        remote_addrs = 127.0.0.1
        local_port = 4500
        remote_port = 5510
        childless = force
        local {{
            auth = pubkey
            certs = {home}/cert.pem
        }}
        remote {{
            auth = pubkey
        }}
    }}
}}
secrets {{
    private-lan {{
        file = lan.pem
        secret = "{password}"
    }}
}}
"""
GATEWAY = """
include /etc/strongswan.conf
charon-systemd {

    port = 5500
    port_nat_t = 5510
    plugins {
        vici {
            socket = unix:///run/gateway.vici
        }
    }
}
"""


LOGGED = """
charon-systemd {
    filelog {
        stderr {
            default = 1
        }
    }
}
"""


@contextlib.contextmanager
def charon(
    box: Machine, name: str, home: Path, vici: str, env: dict[str, str] | None = None
) -> Iterator[Path]:
    """strongSwan with links to a certificate's files in /etc/NAME, loaded; its log."""
    program, swanctl = peer("charon-systemd"), peer("swanctl")
    place = box.etc / name
    for kind in ("x509", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey", "private"):
        (place / kind).mkdir(parents=True)
    (place / "x509/lan.pem").symlink_to(home / "cert.pem")
    (place / "x509ca").symlink_to(home / "cacerts")
    (place / "private/lan.pem").symlink_to(home / "pkey.pem")
    (place / "swanctl.conf").write_text(SWANCTL.format(home=home, password=PASSWORD))
    with (box.etc / "strongswan.conf").open("a") as file:
        file.write(LOGGED)
    inherited = {**os.environ, **(env or {})}
    with box.running(name, program, env=env) as log:
        up = ("--stats", "--uri", vici)
        until(lambda: box.run(swanctl, *up, code=None, env=inherited).returncode == 0, say=log.read_text)
        box.run(swanctl, "--load-all", "--noprompt", "--uri", vici, env=inherited)
        yield log


@pytest.fixture
def client(box: Machine, host: Host) -> Iterator[Path]:
    """The charon that the hook is for, with the certificate "lan"; its log."""
    with charon(box, "swanctl", host.home(), "unix:///run/charon.vici") as log:
        yield log


@pytest.fixture
def gateway(box: Machine, host: Host) -> Iterator[Path]:
    """A second charon, for the first to connect to; its log."""
    (box.etc / "gateway.conf").write_text(GATEWAY)
    env = {"STRONGSWAN_CONF": "/etc/gateway.conf", "SWANCTL_DIR": "/etc/gateway"}
    with charon(box, "gateway", host.home("radius"), "unix:///run/gateway.vici", env) as log:
        yield log


def known(box: Machine) -> set[int]:
    """Serial numbers of the end entities' certificates in charon; it has the private key of each."""
    listed = ("swanctl", "--list-certs", "--type", "x509", "--flag", "none")
    certs = x509.load_pem_x509_certificates(box.run(*listed, "--pem").stdout.encode())
    shown = box.run(*listed).stdout
    assert shown.count("has private key") == len(certs), shown
    return {cert.serial_number for cert in certs}


def test_strongswan(box: Machine, host: Host, client: Path, gateway: Path) -> None:
    assert known(box) == {serial(host)}
    box.run("swanctl", "--initiate", "--ike", "office")
    box.run("swanctl", "--terminate", "--ike", "office")
    after = renew(host)
    hook(box, "strongswan", host)
    assert known(box) == {after}
    # the gateway lets it in: key and certificate of the connection are the new ones
    box.run("swanctl", "--initiate", "--ike", "office")


def test_strongswan_refuses(box: Machine, host: Host, client: Path) -> None:
    config = box.etc / "swanctl/swanctl.conf"
    config.write_text(config.read_text().replace(PASSWORD, "wrong horse"))
    said = hook(box, "strongswan", host, code=1)
    assert "strongSwan hook: charon did not take" in said and "/private/lan.pem' failed" in said
