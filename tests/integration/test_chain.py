"""The whole chain: device, proxy and lab CA over real TLS."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from igelcert.codec.http import Request, Response
from igelcert.device.agent import Agent
from igelcert.device.config import load
from igelcert.device.log import Log
from igelcert.device.transport import Link
from igelcert.model import KEY_TYPES
from tests.support.chain import LabCa, Proxy, lab_ca, ok, proxy
from tests.support.tree import check_certificate, new_csr, openssl, snapshot

PASSWORD = "correct horse"


def cert(name: str, key_type: str = "ec_prime256v1", **more: Any) -> dict[str, Any]:
    return {
        "friendly_name": name,
        "subject": {"org": "Example", "country": "DE"},
        "key": {"type": key_type, "crypt_password": PASSWORD},
        **more,
    }


@pytest.mark.parametrize(
    "types", [KEY_TYPES[:3] + KEY_TYPES[4:], pytest.param(("rsa_8192",), marks=pytest.mark.slow)]
)
def test_every_key_type(gate: Proxy, root: Path, types: tuple[str, ...]) -> None:
    unit = f"ALL{len(types)}"
    gate.profile(f"all-{len(types)}", *(cert(kind, kind) for kind in types), directory=f"/All/{unit}")
    device = gate.device(root, unit, f"tc-all-{len(types)}", directory=f"/All/{unit}")
    device.sync(timeout=400)
    for kind in types:
        check_certificate(root, kind, kind, PASSWORD)
        issued = x509.load_pem_x509_certificate((device.certs / kind / "cert.pem").read_bytes())
        assert issued.subject.rfc4514_string() == f"CN={device.hostname},O=Example,C=DE"
    # a second run has nothing to do
    before = snapshot(root / "wfs/igel-certs", root / "etc/ssl")
    device.sync()
    assert snapshot(root / "wfs/igel-certs", root / "etc/ssl") == before
    links = {
        path.name: path.readlink().name for path in (root / "etc/ssl/certs").iterdir() if path.is_symlink()
    }
    for path in (root / "etc/ssl/certs").glob("*.pem"):
        digest = openssl("x509", "-in", path, "-noout", "-subject_hash").strip()
        assert links[f"{digest}.0"] == path.name


def test_renewal_keeps_paths_and_changes_serial_and_key(gate: Proxy, root: Path) -> None:
    gate.profile("renewal", cert("lan"), directory="/Renewal")
    device = gate.device(root, "RENEW", "tc-renew", directory="/Renewal")
    device.sync()
    home = device.certs / "lan"
    first = x509.load_pem_x509_certificate((home / "cert.pem").read_bytes())
    ok("igel-certs", "renew", "lan", "--force", "--root", root)
    second = x509.load_pem_x509_certificate((home / "cert.pem").read_bytes())
    assert second.serial_number != first.serial_number
    assert second.public_key() != first.public_key()
    assert second.subject == first.subject
    check_certificate(root, "lan", "ec_prime256v1", PASSWORD)


def test_what_is_unassigned_goes(gate: Proxy, root: Path) -> None:
    gate.profile("passing", cert("lan"), directory="/Passing")
    device = gate.device(root, "PASSING", "tc-passing", directory="/Passing")
    device.sync()
    assert (device.certs / "lan/cert.pem").exists()
    gate.cli("profile", "unassign", "passing", "--directory", "/Passing")
    device.sync()
    assert [path.name for path in device.certs.iterdir() if not path.name.startswith(".")] == []
    assert list((root / "etc/ssl/certs").glob("*.pem")) == []


def test_profiles_of_the_device_come_before_those_of_its_directories(gate: Proxy, root: Path) -> None:
    gate.profile("top", cert("lan", "ec_secp384r1"), cert("top"), directory="/Inherit")
    gate.profile("near", cert("lan", "ec_secp521r1"), directory="/Inherit/Near")
    device = gate.device(root, "INHERIT", "tc-inherit", directory="/Inherit/Near/Desk")
    device.sync()
    status = {entry["friendly_name"]: entry for entry in device.status()["certificates"]}
    assert set(status) == {"lan", "top"}
    check_certificate(root, "lan", "ec_secp521r1", PASSWORD)
    gate.profile("own", cert("lan", "ec_brainpoolP256r1"), device="INHERIT")
    device.sync()
    check_certificate(root, "lan", "ec_brainpoolP256r1", PASSWORD)


def test_autocompletion_takes_what_the_device_reports(gate: Proxy, root: Path) -> None:
    names = {
        "auto_hostname": True,
        "auto_ip": False,
        "ip": ["192.0.2.9", "2001:db8::9"],
        "hostname": ["bücher.example"],
    }
    gate.profile("auto", cert("lan", subject={"auto_cn": "unitid"}, subjaltname=names), directory="/Auto")
    device = gate.device(root, "AUTO17", "tc-auto", directory="/Auto")
    device.sync()
    issued = x509.load_pem_x509_certificate((device.certs / "lan/cert.pem").read_bytes())
    assert issued.subject.rfc4514_string() == "CN=AUTO17"
    san = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["xn--bcher-kva.example", "tc-auto"]
    assert [str(ip) for ip in san.get_values_for_type(x509.IPAddress)] == ["192.0.2.9", "2001:db8::9"]
    # a new host name is a new certificate
    (root / "etc/hostname").write_text("tc-other\n")
    toml = root / "etc/igelcert/device.toml"
    toml.write_text(toml.read_text().replace("tc-auto", "tc-other"))
    device.sync()
    issued = x509.load_pem_x509_certificate((device.certs / "lan/cert.pem").read_bytes())
    san = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["xn--bcher-kva.example", "tc-other"]


def test_another_ca_counts_from_the_next_request_on(tmp_path: Path) -> None:
    """No restart; what the earlier CA issued still verifies, and the device changes over at its renewal."""
    with lab_ca(tmp_path / "one") as one, lab_ca(tmp_path / "two") as two, proxy(tmp_path / "data") as gate:
        gate.profile("lan", cert("lan"), directory="/")
        gate.use(one)
        device = gate.device(tmp_path / "root", "CHANGE", "tc-change")
        device.sync()
        assert (len(one.issued()), len(two.issued())) == (1, 0)
        gate.use(two, "--label", "Devices_2")
        ok("igel-certs", "renew", "--force", "--root", device.root)
        assert (len(one.issued()), len(two.issued())) == (1, 1)
        issued = (device.certs / "lan/cert.pem").read_bytes()
        assert issued in [path.read_bytes() for path in two.issued()]
        openssl(
            "verify",
            "-CAfile",
            two.dir / "root.pem",
            "-untrusted",
            two.dir / "issuing.pem",
            device.certs / "lan/cert.pem",
        )
        assert "/.well-known/est/Devices_2/simpleenroll" in two.log()
        gate.cli("ca", "clear", "--yes")
        before = snapshot(device.certs)
        done = device.sync()
        assert snapshot(device.certs) == before, done
        assert gate.admin("/readyz")[0] == 503


def test_the_ca_is_left_alone_until_a_device_asks(lab: LabCa, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as ear:
        ear.setblocking(False)
        with proxy(data, "upstream_timeout = 1") as gate:
            gate.use_est(ear.getsockname()[1], lab.dir / "ra.p12", lab.dir / "ra.p12.password")
            gate.profile("lan", cert("lan"), directory="/")
            gate.cli("ca", "show")
            device = gate.device(tmp_path / "root", "QUIET", "tc-quiet")
            assert gate.ask("GET", "/rmagent/settings", client=device)[0] == 200
            assert gate.ask("GET", "/.well-known/est/cacerts")[0] == 401
            assert gate.admin("/readyz")[0] == gate.admin("/metrics")[0] == 200
            with pytest.raises(BlockingIOError):
                ear.accept()  # nobody ever knocked
        # nor when a proxy starts that has its CA already
        with proxy(data, port=gate.port) as again:
            assert again.admin("/readyz")[0] == again.admin("/metrics")[0] == 200
            time.sleep(0.5)
            with pytest.raises(BlockingIOError):
                ear.accept()
            device.sync(75)
            ear.accept()[0].close()


def test_the_same_request_again_is_the_same_certificate(gate: Proxy, lab: LabCa, root: Path) -> None:
    gate.profile("same", cert("lan", subject={"auto_cn": "hostname"}), directory="/Same")
    device = gate.device(root, "SAME", "tc-same", directory="/Same")
    gate.ask("POST", "/rmagent/report", json.dumps({"hostname": "tc-same"}).encode(), client=device)
    request = root.parent / "same.csr"
    new_csr(request, "/CN=tc-same", "DNS:tc-same")
    before = len(lab.issued())
    answers = {
        gate.ask("POST", "/.well-known/est/simpleenroll", request.read_bytes(), client=device)[2]
        for _ in range(3)
    }
    assert len(answers) == 1 and len(lab.issued()) == before + 1


def test_a_renewal_by_the_certificate_itself(gate: Proxy, root: Path) -> None:
    """RFC 7030 4.2.2: /simplereenroll authenticated by the certificate that is renewed, same names only."""
    gate.profile("self", cert("lan", subject={"auto_cn": "hostname"}), directory="/Self")
    device = gate.device(root, "SELF", "tc-self", directory="/Self")
    device.sync()
    plain = root.parent / "plain.key"
    openssl("pkey", "-in", device.certs / "lan/pkey.pem", "-passin", f"pass:{PASSWORD}", "-out", plain)
    pair = (device.certs / "lan/cert.pem", plain)
    for name, status in (("tc-self", 200), ("tc-foreign", 403)):
        request = root.parent / f"{name}.csr"
        new_csr(request, f"/CN={name}", f"DNS:{name}")
        answer = gate.ask("POST", "/.well-known/est/lan/simplereenroll", request.read_bytes(), client=pair)
        assert answer[0] == status, answer
    # it renews; it does not enroll, and it is no management certificate
    request = root.parent / "tc-self.csr"
    assert gate.ask("POST", "/.well-known/est/lan/simpleenroll", request.read_bytes(), client=pair)[0] == 403
    assert gate.ask("GET", "/rmagent/settings", client=pair)[0] == 403


def test_one_connection_serves_a_whole_sync(gate: Proxy, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake costs both sides more than the rest of a request; thousands of devices come at once."""
    key = {"type": "ec_prime256v1"}
    gate.profile("one", *({"friendly_name": name, "key": key} for name in ("lan", "vpn")), directory="/One")
    device = gate.device(root, "ONE", "tc-one", directory="/One")
    opened: list[Link] = []
    asked: list[str] = []
    new, send = Link._open, Link.send

    def opens(link: Link, end: float) -> socket.socket:
        opened.append(link)
        return new(link, end)

    def asks(link: Link, request: Request) -> Response:
        asked.append(request.path)
        return send(link, request)

    monkeypatch.setattr(Link, "_open", opens)
    monkeypatch.setattr(Link, "send", asks)
    with Agent(load(str(root)), Log("rmagent", screen=False)) as agent:
        assert agent.sync() == 0
    assert all((device.certs / name / "cert.pem").exists() for name in ("lan", "vpn"))
    assert len(opened) == 1
    assert asked.count("/rmagent/report") == 2, "what it is, and what it has then"
