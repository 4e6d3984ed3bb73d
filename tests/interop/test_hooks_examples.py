"""The hooks of rootfs/usr/share/igelcert/hooks make the real programs use the new certificate."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.peers import peer
from tests.support.radius import Radius, radius, supplicant
from tests.support.sandbox import Machine, await_true, machine
from tests.support.servers import PASSWORD, Host, LabCa, device, lab_ca, straight

pytestmark = pytest.mark.peers

HOOKS = Path(__file__).parents[2] / "rootfs/usr/share/igelcert/hooks"
LOGIN = {"username": "devices", "crypt_password": "enroll me"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    place = tmp_path_factory.mktemp("hooks")
    (place / "password").write_text(LOGIN["crypt_password"] + "\n")
    with lab_ca(
        place / "ca", "--est-user", LOGIN["username"], "--est-password-file", place / "password"
    ) as made:
        yield made


@pytest.fixture(scope="module")
def host(lab: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A device with the certificates "lan" and "radius", the latter for a server."""
    made = device(tmp_path_factory.mktemp("host") / "root", "tc-hooks", "HOOKS1")
    made.trust((lab.dir / "root.pem").read_bytes())
    named, names = {"auto_cn": "off", "cn": "a server"}, {"hostname": ["radius.example"]}
    made.wants(
        straight("lan", lab.port, **LOGIN),
        straight("radius", lab.port, subject=named, subjaltname=names, **LOGIN),
    )
    made.do("apply")
    return made


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "machine") as made:
        (made.etc / "igelcert").mkdir()
        yield made


def renew(host: Host) -> int:
    """The serial number of the new certificate "lan"."""
    before = serial(host)
    host.do("renew", "lan", "--force")
    assert serial(host) != before
    return serial(host)


def serial(host: Host) -> int:
    return x509.load_pem_x509_certificate((host.home() / "cert.pem").read_bytes()).serial_number


def hook(
    box: Machine, name: str, host: Host, event: str = "renewed", friendly_name: str = "lan", code: int = 0
) -> str:
    """stderr of the hook as igelcert runs it: its argument, its environment, no terminal."""
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "IGELCERT_FRIENDLY_NAME": friendly_name,
        "IGELCERT_DIR": str(host.home()),
        "IGELCERT_REASON": "due",
    }
    done = box.run(HOOKS / name, event, env=env, code=code)
    return done.stderr


def configure(box: Machine, **values: str) -> None:
    lines = [f"{name}='{value}'\n" for name, value in values.items()]
    (box.etc / "igelcert/hooks.conf").write_text("".join(lines))


# ---- nginx --------------------------------------------------------------------------------------

NGINX = """
{user}
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    server {{
        listen unix:{dir}/nginx.sock ssl;
        ssl_certificate {home}/cert.pem;
        ssl_certificate_key {home}/pkey.pem;
        ssl_password_file {dir}/password;
        return 204;
    }}
}}
"""


@pytest.fixture
def nginx(box: Machine, host: Host, tmp_path: Path) -> Iterator[Path]:
    """nginx with /etc/nginx/nginx.conf and /run/nginx.pid, serving "lan"; its socket."""
    program, listening = peer("nginx"), tmp_path / "nginx.sock"
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (box.etc / "nginx").mkdir()
    (box.etc / "nginx/nginx.conf").write_text(NGINX.format(user="user root;", dir=tmp_path, home=host.home()))
    with box.running("nginx", program, "-e", "stderr", "-g", "daemon off; pid /run/nginx.pid;") as log:
        await_true(listening.exists, log.read_text)
        yield listening


def presented(place: Path, host: Host) -> int:
    """Serial number of the certificate of the TLS server at that socket.

    nginx sends cert.pem and no CA with it: who trusts the issuing CA verifies it.
    """
    context = ssl.create_default_context(cafile=host.home() / "cacerts.pem")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(10)
        plain.connect(str(place))
        with context.wrap_socket(plain, server_hostname="tc-hooks") as secured:
            der = secured.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def test_nginx(box: Machine, host: Host, nginx: Path) -> None:
    before = serial(host)
    assert presented(nginx, host) == before
    after = renew(host)
    assert presented(nginx, host) == before, "nginx needs no hook?"
    hook(box, "nginx", host)
    await_true(lambda: presented(nginx, host) == after, lambda: "nginx keeps the old certificate")


def test_nginx_refuses(box: Machine, host: Host, nginx: Path) -> None:
    before = serial(host)
    renew(host)
    with (box.etc / "nginx/nginx.conf").open("a") as file:
        file.write("nonsense;\n")
    said = hook(box, "nginx", host, code=1)
    assert 'unknown directive "nonsense"' in said and "nginx hook: nginx refuses" in said
    assert presented(nginx, host) == before


# ---- 802.1X -------------------------------------------------------------------------------------

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
            await_true(lambda: "AP-ENABLED" in log.read_text(), log.read_text)
            yield server


def admitted(server: Radius, wanted: int, log: Path) -> None:
    """Waits until the RADIUS server has let that certificate in."""
    await_true(lambda: wanted in [number for number, _ in server.accepted()], log.read_text, 40)


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
    assert "wpa_state=COMPLETED" in box.run("wpa_cli", "-i", "lan0", "status").stdout


def test_wpa_supplicant_refuses(
    box: Machine, host: Host, switch: Radius, wired: Path, tmp_path: Path
) -> None:
    admitted(switch, serial(host), wired)
    with (tmp_path / "wpa.conf").open("a") as file:
        file.write("network={ nonsense\n")
    assert "refuses its configuration for lan0" in hook(box, "wpa_supplicant", host, code=1)


# ---- strongSwan ---------------------------------------------------------------------------------

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
        await_true(lambda: box.run(swanctl, *up, code=None, env=inherited).returncode == 0, log.read_text)
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
