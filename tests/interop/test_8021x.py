"""802.1X: FreeRADIUS lets a device in by EAP-TLS with the files that were enrolled, before and after a renewal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.chain import Device, LabCa, lab_ca, ok, proxy
from tests.support.radius import Radius, eap_tls, radius, supplicant
from tests.support.tree import openssl

pytestmark = pytest.mark.peers

PASSWORD = "correct horse"
KEY_TYPES = ("rsa_2048", "ec_prime256v1", "ec_secp384r1")


@dataclasses.dataclass(frozen=True)
class Network:
    lab: LabCa
    device: Device
    server: Radius

    def home(self, name: str) -> Path:
        return self.device.certs / name

    def serial(self, name: str) -> int:
        return x509.load_pem_x509_certificate((self.home(name) / "cert.pem").read_bytes()).serial_number


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A device with a certificate of each key type, and FreeRADIUS with a certificate of the same CA."""
    base = tmp_path_factory.mktemp("8021x")
    with lab_ca(base / "ca") as lab, proxy(base / "data") as gate:
        gate.use(lab)
        gate.profile("clients", *(cert(kind, kind) for kind in KEY_TYPES), directory="/Clients")
        gate.profile("radius", cert("radius", hostname="radius.example"), directory="/Servers")
        device = gate.device(base / "device", "CLIENT1", "thinclient-17", directory="/Clients")
        host = gate.device(base / "radius-host", "RADIUS1", "radius", directory="/Servers")
        device.sync()
        host.sync()
        files = host.certs / "radius"
        with radius(
            base / "raddb", files / "cert.pem", files / "pkey.pem", PASSWORD, lab.dir / "root.pem"
        ) as server:
            yield Network(lab, device, server)


def cert(name: str, key_type: str = "ec_prime256v1", hostname: str = "") -> dict[str, object]:
    return {
        "friendly_name": name,
        "subject": {"org": "Example"},
        "subjaltname": {"hostname": [hostname] if hostname else []},
        "key": {"type": key_type, "crypt_password": PASSWORD},
    }


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_before_and_after_a_renewal(network: Network, tmp_path: Path, key_type: str, tls: str) -> None:
    phase1 = 'phase1="tls_disable_tlsv1_3=0"' if tls == "1.3" else ""
    config = supplicant(tmp_path / "eapol.conf", network.home(key_type), PASSWORD, phase1)
    before = network.serial(key_type)
    first = eap_tls(network.server, config)
    assert first.passed, first.log[-4000:]
    assert network.server.accepted()[-1] == (before, f"TLS {tls}")

    ok("igel-certs", "renew", "--force", key_type, "--root", network.device.root)
    after = network.serial(key_type)
    assert after != before
    second = eap_tls(network.server, config)
    assert second.passed, second.log[-4000:]
    assert network.server.accepted()[-1] == (after, f"TLS {tls}")


def test_a_certificate_of_a_foreign_ca_is_rejected(network: Network, tmp_path: Path) -> None:
    home = foreign(tmp_path / "foreign", network.home("rsa_2048") / "cacerts.pem")
    before = network.server.accepted()
    got = eap_tls(network.server, supplicant(tmp_path / "eapol.conf", home, PASSWORD))
    assert not got.passed and got.rejected, got.log[-4000:]
    assert network.server.accepted() == before


def test_a_server_of_a_foreign_ca_is_not_believed(network: Network, tmp_path: Path) -> None:
    """cacerts.pem is what the supplicant judges the server by."""
    home = network.home("rsa_2048")
    strange = tmp_path / "strange"
    strange.mkdir()
    for name in ("cert.pem", "pkey.pem"):
        (strange / name).symlink_to(home / name)
    foreign(tmp_path / "foreign", home / "cacerts.pem")
    (strange / "cacerts.pem").symlink_to(tmp_path / "foreign/ca.pem")
    before = network.server.accepted()
    got = eap_tls(network.server, supplicant(tmp_path / "eapol.conf", strange, PASSWORD))
    assert not got.passed and "certificate verify failed" in got.log, got.log[-4000:]
    assert network.server.accepted() == before


def test_a_wrong_key_password_fails(network: Network, tmp_path: Path) -> None:
    before = network.server.accepted()
    got = eap_tls(
        network.server, supplicant(tmp_path / "eapol.conf", network.home("rsa_2048"), "wrong horse")
    )
    assert not got.passed and "Failed to load private key" in got.log, got.log[-4000:]
    assert network.server.accepted() == before


def foreign(place: Path, cacerts: Path) -> Path:
    """A certificate's directory as a device has it, of a CA of its own (ca.pem), with the CA file `cacerts`."""
    place.mkdir()
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    openssl("req", "-x509", *key, "-noenc", "-keyout", place / "ca.key", "-out", place / "ca.pem", "-days", "2",
            "-subj", "/CN=Foreign CA", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl("req", "-x509", *key, "-passout", f"pass:{PASSWORD}", "-keyout", place / "pkey.pem",
            "-out", place / "cert.pem", "-CA", place / "ca.pem", "-CAkey", place / "ca.key", "-days", "2",
            "-subj", "/CN=thinclient-17", "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "extendedKeyUsage=clientAuth")  # fmt: skip
    (place / "cacerts.pem").symlink_to(cacerts)
    return place
