"""The hooks of rootfs/usr/share/igelcert/hooks make the real programs use the new certificate."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
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
    box: Machine,
    name: str,
    host: Host,
    event: str = "renewed",
    friendly_name: str = "lan",
    code: int = 0,
    path: Path | None = None,
) -> str:
    """What the hook says when it runs as igelcert runs it: its argument, its environment, no terminal."""
    env = {
        "PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin",
        "IGELCERT_FRIENDLY_NAME": friendly_name,
        "IGELCERT_DIR": str(host.home()),
        "IGELCERT_REASON": "due",
    }
    done = box.run(HOOKS / name, event, env=env, code=code)
    return done.stdout + done.stderr


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


# ---- OpenVPN ------------------------------------------------------------------------------------

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
        await_true(lambda: "Initialization Sequence Completed" in log.read_text(), log.read_text)
        yield peers


def test_openvpn(box: Machine, host: Host, tunnel: Path) -> None:
    assert tunnel.read_text().split() == [str(serial(host))]
    after = renew(host)
    hook(box, "openvpn", host)
    log = box.dir / "vpn-client.log"
    await_true(lambda: log.read_text().count("Initialization Sequence Completed") == 2, log.read_text, 30)
    assert tunnel.read_text().split()[-1] == str(after)


def test_openvpn_refuses(box: Machine, host: Host, tunnel: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong horse\n")
    said = hook(box, "openvpn", host, code=1)
    assert "OpenVPN (/run/openvpn/office.pid) ended when it read the new certificate" in said


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
        await_true(lambda: (box.proc / "run/dbus/system_bus_socket").exists(), log.read_text)
        stack.enter_context(box.running("nm-supplicant", supplicant_, "-u"))
        yield stack.enter_context(box.running("NetworkManager", manager, "--debug"))


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


# ---- when they keep still -----------------------------------------------------------------------

# The program each is for, and what a recorder in its place answers; $CALLS is where it writes.
RECORDERS = {
    "nginx": {"nginx": ""},
    "strongswan": {"swanctl": ""},
    "wpa_supplicant": {"wpa_cli": "case $* in *ping) echo PONG ;; *) echo OK ;; esac"},
    "networkmanager": {
        "nmcli": """case $* in
        *general) echo running ;;
        *--active) echo uuid-1; echo uuid-2 ;;
        *'show uuid uuid-1') echo "$IGELCERT_DIR/cert.pem" ;;
        *'show uuid uuid-2') echo "$IGELCERT_DIR-2/cert.pem" ;;
        esac"""
    },
    "openvpn": {"openvpn": "", "systemctl": ""},
}
CALLS = {
    "nginx": ["nginx -q -t", "nginx -s reload"],
    "strongswan": ["swanctl --stats", "swanctl --load-creds --clear --noprompt", "swanctl --load-conns"],
    "wpa_supplicant": [
        "wpa_cli -p /run/wpa_supplicant -i lan0 ping",
        "wpa_cli -p /run/wpa_supplicant -i lan0 reconfigure",
    ],
    "networkmanager": ["nmcli -t --wait 45 connection up uuid uuid-1"],
    "openvpn": [
        "systemctl --quiet is-active openvpn-client@office",
        "systemctl restart openvpn-client@office",
    ],
}
NAME = "Büro $(echo WLAN) 1"


@dataclasses.dataclass(frozen=True)
class Recorder:
    """The hook with recorders in place of its program."""

    box: Machine
    host: Host
    name: str
    calls: Path

    def __call__(self, event: str, conf: str = "") -> list[str]:
        """The calls that the hook makes."""
        self.calls.write_text("")
        if self.name == "openvpn":
            conf += "\nOPENVPN_UNITS=openvpn-client@office"
        (self.box.etc / "igelcert/hooks.conf").write_text(conf + "\n")
        assert hook(self.box, self.name, self.host, event, NAME, path=self.calls.parent) == ""
        return self.calls.read_text().splitlines()


@pytest.fixture(params=sorted(RECORDERS))
def recorder(request: pytest.FixtureRequest, box: Machine, host: Host, tmp_path: Path) -> Iterator[Recorder]:
    place = tmp_path / "bin"
    place.mkdir()
    for program, answer in RECORDERS[request.param].items():
        text = f'#!/bin/sh\n[ "$1" != sleep ] || sleep 60\necho "${{0##*/}} $*" >>"{place}/calls"\n{answer}\n'
        (place / program).write_text(text)
        (place / program).chmod(0o755)
    made = Recorder(box, host, request.param, place / "calls")
    if request.param == "wpa_supplicant":
        box.run("mkdir", "/run/wpa_supplicant")
        box.run("touch", "/run/wpa_supplicant/lan0")
    if request.param != "nginx":
        yield made
        return
    with box.running("nginx", place / "nginx", "sleep"):
        pids = lambda: box.run("pgrep", "-x", "nginx", code=None).stdout.split()  # noqa: E731
        await_true(lambda: bool(pids()), lambda: "no nginx")
        (box.proc / "run/nginx.pid").write_text(pids()[0] + "\n")
        yield made


def test_which_events_and_which_certificate(recorder: Recorder) -> None:
    def expected(calls: list[str]) -> bool:
        return [call for call in calls if call in CALLS[recorder.name]] == CALLS[recorder.name]

    variable = recorder.name.upper() + "_CERTIFICATE"
    for event in ("enrolled", "renewed"):
        assert expected(recorder(event)), event
        assert expected(recorder(event, f"{variable}='{NAME}'")), event
        assert recorder(event, f"{variable}='another'") == []
    for event in ("failed", "removed", "invented", ""):
        assert recorder(event) == [], event


def test_only_connections_with_these_files(recorder: Recorder) -> None:
    if recorder.name == "networkmanager":
        assert not [call for call in recorder("renewed") if "up uuid uuid-2" in call]


@pytest.mark.parametrize("name", sorted(RECORDERS))
def test_a_program_that_does_not_run(box: Machine, host: Host, name: str) -> None:
    """It is installed; PID files and sockets are left over from before."""
    peer({"networkmanager": "NetworkManager", "strongswan": "swanctl"}.get(name, name))
    box.run("mkdir", "/run/openvpn", "/run/wpa_supplicant")
    box.run("mknod", "/run/wpa_supplicant/lan0", "p")
    for place in ("nginx.pid", "openvpn/office.pid"):
        (box.proc / "run" / place).write_text("1\n")
    assert hook(box, name, host) == ""


@pytest.mark.parametrize("name", sorted(RECORDERS))
def test_a_program_that_is_not_installed(box: Machine, host: Host, name: str) -> None:
    for program in RECORDERS[name]:
        found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if found:
            box.run("mount", "--bind", "/dev/null", found)
    assert hook(box, name, host) == ""
