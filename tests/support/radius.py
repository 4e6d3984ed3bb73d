"""FreeRADIUS with a configuration of its own on a loopback port, and eapol_test, the supplicant's half of EAP-TLS."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.peers import peer

__all__ = ["Eap", "Radius", "eap_tls", "radius", "supplicant"]

START_SECONDS = 90
EAP_SECONDS = 20

CONFIGURATION = """
prefix = /usr
libdir = {libdir}
confdir = {dir}
logdir = {dir}
run_dir = {dir}
max_request_time = 10
cleanup_delay = 0
security {{
    reject_delay = 0
    status_server = no
}}
modules {{
    eap {{
        default_eap_type = tls
        tls-config files {{
            certificate_file = {cert}
            private_key_file = {key}
            private_key_password = "{password}"
            ca_file = {anchors}
            ecdh_curve = ""
            tls_min_version = "1.2"
            tls_max_version = "1.3"
        }}
        tls {{
            tls = files
        }}
    }}
    linelog who {{
        filename = {dir}/accepted.log
        format = "%{{TLS-Client-Cert-Serial}} %{{session-state:TLS-Session-Version}}"
        permissions = 0600
    }}
}}
client loopback {{
    ipaddr = 127.0.0.1
    secret = {secret}
    require_message_authenticator = yes
}}
server igelcert {{
    listen {{
        type = auth
        ipaddr = 127.0.0.1
        port = {port}
    }}
    authorize {{
        eap
    }}
    authenticate {{
        eap
    }}
    post-auth {{
        who
        Post-Auth-Type REJECT {{
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Radius:
    """A running server on 127.0.0.1:port; `secret` is the RADIUS client's."""

    dir: Path
    port: int
    secret: str = field(repr=False)

    def accepted(self) -> list[tuple[int, str]]:
        """Serial number of the client certificate and version of TLS of all who were let in, in order."""
        log = self.dir / "accepted.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(serial, 16), version) for serial, version in (line.split(maxsplit=1) for line in lines)]

    def log(self) -> str:
        return (self.dir / "radius.log").read_text(errors="replace")


@contextlib.contextmanager
def radius(
    directory: Path,
    cert: Path,
    key: Path,
    password: str,
    anchors: Path,
    enter: Callable[..., list[str]] = lambda *args: [str(arg) for arg in args],
) -> Iterator[Radius]:
    """FreeRADIUS that shows `cert` (PEM files, key under `password`) and takes clients of the CAs in `anchors`.

    `enter` makes a command one that runs elsewhere, as Machine.enter does.
    """
    program = peer("freeradius")
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        made = Radius(directory, found.getsockname()[1], secrets.token_hex(12))
    config = directory / "radiusd.conf"
    config.touch(0o600)
    text = CONFIGURATION.format(
        dir=directory, port=made.port, secret=made.secret, cert=cert, key=key, password=password,
        anchors=anchors, libdir="/usr/lib/freeradius",
    )  # fmt: skip
    config.write_text(text)
    log = directory / "radius.log"
    with log.open("wb") as sink:
        # -fxx: in the foreground, with the reasons of a refusal
        args = enter(program, "-fxx", "-l", "stdout", "-d", directory, "-n", "radiusd")
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ready to process requests" not in made.log():
            assert process.poll() is None, f"freeradius ended:\n{made.log()[-3000:]}"
            assert time.monotonic() < deadline, f"freeradius does not start:\n{made.log()[-3000:]}"
            time.sleep(0.05)
        yield made
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


def supplicant(path: Path, home: Path, password: str, *more: str) -> Path:
    """Configuration of eapol_test and wpa_supplicant: EAP-TLS with the files of a certificate's directory.

    `more`: further lines of the network block.
    """
    lines = (
        "key_mgmt=IEEE8021X",
        "eap=TLS",
        'identity="host/thinclient"',
        f'ca_cert="{home / "cacerts.pem"}"',
        f'client_cert="{home / "cert.pem"}"',
        f'private_key="{home / "pkey.pem"}"',
        f'private_key_passwd="{password}"',
        'domain_match="radius.example"',
        "eapol_flags=0",
        *more,
    )
    path.touch(0o600)
    path.write_text("network={\n" + "".join(f"    {line}\n" for line in lines) + "}\n")
    return path


@dataclass(frozen=True, slots=True)
class Eap:
    """How an authentication ended: by eapol_test's exit code, and what it said."""

    passed: bool
    log: str

    @property
    def rejected(self) -> bool:
        """The server sent an Access-Reject."""
        return "(Access-Reject)" in self.log


def eap_tls(server: Radius, config: Path) -> Eap:
    """One authentication with that configuration file."""
    args = [peer("eapol_test"), "-c", config, "-a", "127.0.0.1", "-p", server.port, "-s", server.secret,
            "-t", EAP_SECONDS]  # fmt: skip
    done = subprocess.run(
        [str(arg) for arg in args], capture_output=True, text=True, errors="replace", timeout=EAP_SECONDS + 20,
        env={**os.environ, "LC_ALL": "C"}, cwd=config.parent,
    )  # fmt: skip
    return Eap(done.returncode == 0, done.stdout + done.stderr)
