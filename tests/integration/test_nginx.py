"""nginx, as contrib/nginx has it, ends TLS before the proxy and hands certificates over as RFC 9440 has it."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from igelcert.codec import est
from igelcert.codec.http import Response
from tests.support.chain import Device, LabCa, Proxy, proxy
from tests.support.fronts import Front, nginx
from tests.support.ports import free_port
from tests.support.tree import new_csr, openssl

pytestmark = pytest.mark.peers

SETTINGS = "/rmagent/settings"
ENROLL, RENEW = "/.well-known/est/lan/simpleenroll", "/.well-known/est/lan/simplereenroll"
CERT = {"friendly_name": "lan", "key": {"type": "rsa_2048"}, "subject": {"auto_cn": "hostname"}}
STRIPS = "proxy_set_header Client-Cert $igelcert_client_cert;"


@pytest.fixture(scope="module")
def direct(lab: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy itself."""
    with proxy(tmp_path_factory.mktemp("gate") / "data", 'trusted_frontends = ["127.0.0.1"]') as made:
        made.use(lab)
        made.profile("lan", CERT, directory="/")
        yield made


@pytest.fixture(scope="module")
def front(direct: Proxy, lab: LabCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """nginx, for which one of two proxies is always dead."""
    direct.cli("ca", "test")  # so that its certificates are known
    with nginx(tmp_path_factory.mktemp("front") / "nginx", direct, [free_port(), direct.port]) as made:
        yield made


@pytest.fixture(scope="module")
def gate(direct: Proxy, front: Front) -> Proxy:
    return front.before(direct)


@pytest.fixture(scope="module")
def device(gate: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """It has its certificate, all of it through nginx."""
    made = gate.device(tmp_path_factory.mktemp("device") / "root", "BEHIND", "tc-behind")
    made.sync()
    return made


@pytest.fixture(scope="module")
def other(gate: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return gate.device(tmp_path_factory.mktemp("other") / "root", "OTHER", "tc-other")


def header(device: Device) -> str:
    der = ssl.PEM_cert_to_DER_cert((device.agent / "cert.pem").read_text())
    return f":{base64.b64encode(der).decode()}:"


def test_devices_are_known_by_their_certificates(gate: Proxy, device: Device) -> None:
    assert gate.ask("GET", SETTINGS)[0] == 401
    assert gate.ask("GET", SETTINGS, client=device)[0] == 200
    for _ in range(6):  # whichever proxy it is first sent to
        assert gate.ask("GET", "/.well-known/est/cacerts", client=device)[0] == 200
    assert (device.certs / "lan/cert.pem").exists()


def test_a_certificate_of_the_company_s_ca_renews_itself(gate: Proxy, other: Device, tmp_path: Path) -> None:
    body = new_csr(tmp_path / "csr", "/CN=tc-other", "DNS:tc-other", "-newkey", "rsa:2048")
    status, headers, answer = gate.ask("POST", ENROLL, body, client=other)
    assert status == 200, answer
    found = est.enroll_reply(Response(status, tuple(headers.items()), answer), int(time.time()))
    (tmp_path / "cert.pem").write_text(ssl.DER_cert_to_PEM_cert(found.certificates[0]))  # type: ignore[union-attr]
    pair = tmp_path / "cert.pem", tmp_path / "csr.key"
    assert gate.ask("POST", RENEW, body, client=pair)[0] == 200
    assert gate.ask("POST", ENROLL, body, client=pair)[0] in {401, 403}, "it can do nothing else"


def test_what_comes_from_outside_never_passes(gate: Proxy, device: Device, other: Device) -> None:
    forged = {"Client-Cert": header(device)}
    for headers in (
        forged,
        {"client-cert": header(device)},
        {"Client_Cert": header(device)},
        {"Client-Cert-Chain": header(device)},
        {**forged, "Client-Cert ": header(device)},
        {"Client-Cert": header(device), "Connection": "Client-Cert"},
    ):
        assert gate.ask("GET", SETTINGS, headers=headers)[0] in {400, 401}
    # with a certificate of its own, it is who that says
    before = len(gate.log())
    status, _, _ = gate.ask("GET", SETTINGS, client=other, headers=forged)
    said = gate.log()[before:]
    assert status == 200 and " OTHER GET /rmagent/settings" in said and said.count(" GET ") == 1


def test_the_header_counts_from_nginx_alone(direct: Proxy, device: Device) -> None:
    """Whoever comes from another address than nginx's is nobody's front end."""
    forged = {"Client-Cert": header(device)}
    assert direct.ask("GET", SETTINGS, headers=forged, source="127.0.0.2")[0] == 401
    assert direct.ask("GET", SETTINGS, headers=forged)[0] == 200, "it is the address that counts"


def test_without_its_line_a_forged_header_would_pass(direct: Proxy, device: Device, tmp_path: Path) -> None:
    """The control: what the test above would find in a configuration that leaves the header as it comes."""
    with nginx(tmp_path / "nginx", direct, [direct.port], (STRIPS, "")) as careless:
        gate = careless.before(direct)
        assert gate.ask("GET", SETTINGS, headers={"Client-Cert": header(device)})[0] == 200


def test_a_stranger_s_certificate_is_refused(gate: Proxy, tmp_path: Path, lab: LabCa) -> None:
    server = lab.dir / "server.pem", lab.dir / "private/server.key"
    assert gate.ask("GET", SETTINGS, client=server)[0] in {400, 401, 403}


def test_addresses_are_the_clients(gate: Proxy, device: Device) -> None:
    forged, before = {"X-Forwarded-For": "203.0.113.9"}, len(gate.log())
    assert gate.ask("GET", SETTINGS, client=device, headers=forged, source="127.0.0.7")[0] == 200
    assert " INFO 127.0.0.7 BEHIND GET /rmagent/settings 200" in gate.log()[before:]


def test_logins_are_limited_by_the_address_that_the_front_end_names(direct: Proxy) -> None:
    """The last one: what stands before it, the client wrote. What is no address counts for nothing."""
    for said in ("198.51.100.1, 203.0.113.9", "nonsense"):
        line = http.client.HTTPConnection("127.0.0.1", direct.admin_port, timeout=10)
        kind = {"Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": said}
        line.request("POST", "/login", "name=nobody&password=wrong", kind)
        assert line.getresponse().status == 401
        line.close()
    found = json.loads(direct.cli("audit", "--search", "nobody", "--json"))
    assert {row["actor"] for row in found} == {"203.0.113.9", "127.0.0.1"}


def test_the_files_of_a_front_end(gate: Proxy, direct: Proxy, lab: LabCa, tmp_path: Path) -> None:
    """By OpenSSL: a certificate for its names, of the CA that devices trust, with its key; and whose devices' are."""
    place = tmp_path / "front/files"
    direct.cli("front-files", "--hostname", "front.example", "192.0.2.10", "--to", place)
    first = (place / "server.pem").read_bytes()
    direct.cli("front-files", "--hostname", "front.example", "192.0.2.10", "--to", place)
    assert (place / "server.pem").read_bytes() != first
    assert {path.name: path.stat().st_mode & 0o777 for path in place.iterdir()} == {
        "server.pem": 0o600, "trust.pem": 0o644, "clients.pem": 0o644,
    }  # fmt: skip
    trust = direct.data / "trust.pem"
    assert (place / "trust.pem").read_bytes() == trust.read_bytes()
    for name in ("-verify_hostname front.example", "-verify_ip 192.0.2.10"):
        openssl("verify", "-purpose", "sslserver", "-CAfile", trust, *name.split(), place / "server.pem")
    assert openssl("pkey", "-in", place / "server.pem", "-pubout") == openssl(
        "x509", "-in", place / "server.pem", "-noout", "-pubkey"
    )
    found = x509.load_pem_x509_certificates((place / "clients.pem").read_bytes())
    known = [
        x509.load_pem_x509_certificate((lab.dir / f"{name}.pem").read_bytes()) for name in ("issuing", "root")
    ]
    assert found[0] == x509.load_pem_x509_certificate(trust.read_bytes()) and set(found[1:]) == set(known)
    assert "front-files" in direct.cli("audit")
    code, words = direct.refused("front-files", "--hostname", "no name", "--to", place)
    assert code == 78 and "no name" in words
    assert direct.refused("front-files", "--hostname", "front.example", "--to", "/proc/nowhere")[0] == 1
