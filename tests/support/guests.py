"""What guests need on this machine: a CA, a proxy that they see as proxy.example, and a seed disk with a token."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from tests.support.chain import LabCa, Proxy, lab_ca, proxy
from tests.support.qemu import make_seed

__all__ = ["NAME", "PASSWORD", "UNIT_ID", "Rig", "rig", "whole"]

NAME = "proxy.example"
UNIT_ID = "525400123456"  # the guest's MAC address: scripts/qemu
PASSWORD = "correct horse"
# Notes each event on the disk; what the hook is told is told on.
HOOK = """\
#!/bin/sh
echo "$1 $IGELCERT_FRIENDLY_NAME $IGELCERT_DIR" >>/wfs/hooks.log
"""
EARLY = """\
#!/bin/sh
cp /seed/hook /etc/igelcert/hooks.d/50-note
chmod 755 /etc/igelcert/hooks.d/50-note
"""


@dataclass
class Rig:
    """`late`: the same CA, which issues for three years. A guest that lives in the future sees what was issued
    today as due again at once."""

    place: Path
    lab: LabCa
    late: LabCa
    gate: Proxy

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.gate.port}"

    def wants(self, *names: str) -> None:
        """The profile that every device gets: EC certificates of these friendly names."""
        certs = [
            {
                "friendly_name": name,
                "subject": {"auto_cn": "hostname", "org": "Example"},
                "subjaltname": {"auto_hostname": True},
                "key": {"type": "ec_prime256v1", "crypt_password": PASSWORD},
            }
            for name in names
        ]
        self.gate.profile("guests", *certs, directory="/")

    def seed(self, path: Path, early: str = "", **files: str | bytes) -> Path:
        """A seed disk for a device that is new to the proxy."""
        if UNIT_ID in self.gate.cli("device", "list", "--json"):
            self.gate.cli("device", "remove", "--unit-id", UNIT_ID)
        added = json.loads(self.gate.cli("device", "add", "--unit-id", UNIT_ID, "--directory", "/", "--json"))
        return make_seed(
            path,
            {
                "token": added["token"] + "\n",
                "trust.pem": (self.gate.data / "trust.pem").read_bytes(),
                "hook": HOOK,
                **files,
            },
            early=EARLY + early,
        )

    @property
    def register(self) -> str:
        """The command of the first boot."""
        return f"rmagent register --server {self.url} --token-file /seed/token --ca-file /seed/trust.pem"

    def issued(self) -> list[x509.Certificate]:
        return [x509.load_pem_x509_certificate(path.read_bytes()) for path in self.lab.issued()]


@contextlib.contextmanager
def rig(place: Path) -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        ca = stack.enter_context(lab_ca(place / "ca", "--scep", "127.0.0.1:0", "--validity", "90d"))
        late = stack.enter_context(lab_ca(place / "ca", "--validity", "1095d"))
        gate = stack.enter_context(proxy(place / "data", names=(NAME,)))
        gate.use(ca)
        yield Rig(place, ca, late, gate)


def whole(home: Path) -> dict[str, Any] | None:
    """Certificate, key, pfx and CAs of a friendly name on a disk that was read, which must belong together.

    None when it is not there at all. The link is relative, so it leads into the tree that was read.
    """
    if not home.exists() and not home.is_symlink():
        return None
    cert = x509.load_pem_x509_certificate((home / "cert.pem").read_bytes())
    key = load_pem_private_key((home / "pkey.pem").read_bytes(), PASSWORD.encode())
    assert key.public_key() == cert.public_key()
    other, leaf, more = pkcs12.load_key_and_certificates((home / "cert.pfx").read_bytes(), PASSWORD.encode())
    assert other is not None and leaf == cert and other.public_key() == cert.public_key()  # type: ignore[attr-defined]
    together = x509.load_pem_x509_certificates((home / "cacerts.pem").read_bytes())
    singly = [x509.load_pem_x509_certificate(path.read_bytes()) for path in (home / "cacerts").iterdir()]
    assert {*together} == {*singly} == {*more} and len(together) == 2
    assert cert.issuer in {ca.subject for ca in together}
    return {"serial": cert.serial_number, "cert": cert, "cas": together}
