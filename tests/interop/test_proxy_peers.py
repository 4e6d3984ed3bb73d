"""Independent EST clients at the proxy, and an independent EST server behind it; OpenSSL judges."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from igelcert.model import KEY_TYPES
from tests.support.chain import Device, Proxy, lab_ca, ok, proxy
from tests.support.est_clients import CLIENTS, Client, Refused, Target, check, curl_enroll
from tests.support.estca import EstCa, est_ca

pytestmark = pytest.mark.peers

SUBJECT = {"auto_cn": "off", "cn": "thinclient-17", "org": "Example"}
NAMES = {"auto_hostname": False, "hostname": ["thinclient-17.example"], "ip": ["192.0.2.17"]}
QUICK = [kind for kind in KEY_TYPES if kind not in {"rsa_4096", "rsa_8192"}]


def profile(*kinds: str, names: dict[str, str] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "friendly_name": (names or {}).get(kind, kind),
            "subject": SUBJECT,
            "subjaltname": NAMES,
            "key": {"type": kind, "crypt_password": "correct horse"},
        }
        for kind in kinds
    ]


def target(gate: Proxy, device: Device, anchors: Path, label: str | None = None) -> Target:
    cert, key = device.agent / "cert.pem", device.agent / "key.pem"
    return Target(
        "localhost",
        gate.port,
        trust=gate.data / "trust.pem",
        anchors=anchors,
        label=label,
        cert=cert,
        key=key,
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    gate: Proxy
    device: Device
    root: Path

    def target(self, label: str | None = None) -> Target:
        return target(self.gate, self.device, self.root, label)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    base = tmp_path_factory.mktemp("peers")
    with lab_ca(base / "ca") as ca, proxy(base / "data") as gate:
        gate.use(ca)
        gate.cli("ca", "test")  # so that the CA certificates are known to those who ask without a certificate
        names = {"ec_secp256k1": "Büro WLAN: 1"}
        gate.profile("all", *profile(*KEY_TYPES, names=names), directory="/")
        yield Setup(gate, gate.device(base / "device", "PEER1", "thinclient-17"), ca.dir / "root.pem")


@pytest.mark.parametrize(
    ("client", "key_type"),
    [
        pytest.param(client, kind, id=f"{client.name}-{kind}")
        for client in CLIENTS
        for kind in QUICK
        if kind in client.key_types
    ],
)
def test_enroll(setup: Setup, client: Client, key_type: str, tmp_path: Path) -> None:
    check(setup.target(), client.enroll(setup.target(), key_type, tmp_path))


@pytest.mark.parametrize(
    "client", [client for client in CLIENTS if client.can_label("rsa_2048")], ids=lambda c: c.name
)
def test_label(setup: Setup, client: Client, tmp_path: Path) -> None:
    check(setup.target("rsa_2048"), client.enroll(setup.target("rsa_2048"), "rsa_2048", tmp_path))
    with pytest.raises(Refused, match="403"):
        client.enroll(setup.target("rsa_3072"), "rsa_2048", tmp_path)


def test_a_friendly_name_that_needs_encoding(setup: Setup, tmp_path: Path) -> None:
    asked = setup.target("Büro WLAN: 1")
    check(asked, curl_enroll(asked, "ec_secp256k1", tmp_path))


@pytest.mark.parametrize(
    "client", [client for client in CLIENTS if client.name != "strongswan"], ids=lambda c: c.name
)
def test_renew(setup: Setup, client: Client, tmp_path: Path) -> None:
    """Authenticated by the certificate that is renewed."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    got = client.enroll(setup.target(), "ec_prime256v1", first)
    asked = dataclasses.replace(setup.target(), cert=got.cert, key=got.key)
    check(asked, client.enroll(asked, "ec_prime256v1", second, renew=True))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_what_the_profile_does_not_give(setup: Setup, client: Client, tmp_path: Path) -> None:
    greedy = dataclasses.replace(
        setup.target(), sans=("DNS:thinclient-17.example", "IP:192.0.2.17", "DNS:vpn.example")
    )
    with pytest.raises(Refused, match="403"):
        client.enroll(greedy, "ec_prime256v1", tmp_path)


# ---- a CA that is not ours ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EstCa]:
    with est_ca(tmp_path_factory.mktemp("est-ca")) as started:
        yield started


@pytest.mark.parametrize("labelled", [False, True])
def test_our_device_at_est_ca(foreign: EstCa, tmp_path: Path, labelled: bool) -> None:
    """Every key that it can sign. It names the certificates itself: recorded, and no reason to refuse."""
    kinds = ("ec_prime256v1", "ec_secp384r1", "ecdsa_ed25519", "rsa_2048", "rsa_3072")
    with proxy(tmp_path / "data") as gate:
        label = ("--label", foreign.label) if labelled else ()
        gate.use_est(foreign.port, foreign.keystore, foreign.keystore_password, *label)
        assert "FAILED" not in gate.cli("ca", "test")
        gate.profile("all", *profile(*kinds), directory="/")
        device = gate.device(tmp_path / "root", "EST17", "thinclient-17")
        device.sync()
        for kind in kinds:
            home = device.certs / kind
            ok("openssl", "verify", "-CAfile", foreign.ca, home / "cert.pem")
            ok("openssl", "verify", "-CApath", device.root / "etc/ssl/certs", home / "cert.pem")
            assert foreign.user in ok("openssl", "x509", "-in", home / "cert.pem", "-noout", "-subject")
        rows = gate.enrollments()
        assert {(row["friendly_name"], row["state"]) for row in rows} == {(kind, "issued") for kind in kinds}
        assert all("the CA changed the subject" in json.dumps(row["warnings"]) for row in rows)


def test_what_est_ca_cannot_sign(foreign: EstCa, tmp_path: Path) -> None:
    """Its refusal reaches the device in its words; a certificate with a key that nobody can read does not."""
    with proxy(tmp_path / "data") as gate:
        gate.use_est(foreign.port, foreign.keystore, foreign.keystore_password)
        gate.profile("all", *profile("ec_brainpoolP256r1"), directory="/")
        device = gate.device(tmp_path / "root", "EST18", "thinclient-17")
        assert "the CA refused (400)" in device.sync(1)
        assert not (device.certs / "ec_brainpoolP256r1").exists()
        assert gate.enrollments()[0]["state"] == "refused"
