"""SCEP with programs that were not written here: CAs behind the proxy, clients at the lab CA."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from igelcert.model import KEY_TYPES
from tests.support.chain import Device, LabCa, Proxy, lab_ca, ok, proxy
from tests.support.peers import peer
from tests.support.ports import free_port
from tests.support.scep_peers import ScepCa, micromdm, running, scepclient, step_ca, strongswan
from tests.support.tree import check_certificate, openssl

pytestmark = pytest.mark.peers

CHALLENGE = "Tr0ub4dor"
PASSWORD = "correct horse"
GO_TYPES = ("rsa_2048", "rsa_3072", "ec_prime256v1", "ec_secp384r1", "ec_secp521r1", "ecdsa_ed25519")
TABLE = Path(__file__).parents[2] / "docs/interop.md"


def cert(name: str, key_type: str) -> dict[str, Any]:
    return {
        "friendly_name": name,
        "subject": {"auto_cn": "off", "cn": f"peer-{name}", "org": "Example", "country": "DE"},
        "subjaltname": {"auto_hostname": False},
        "key": {"type": key_type, "crypt_password": PASSWORD},
        "enrollment": {"crypt_challenge_password": CHALLENGE},
    }


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("peer-proxy") / "proxy") as found:
        yield found


@pytest.fixture(scope="module")
def mdm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScepCa]:
    with micromdm(tmp_path_factory.mktemp("micromdm"), CHALLENGE) as found:
        yield found


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScepCa]:
    with step_ca(tmp_path_factory.mktemp("step"), CHALLENGE) as found:
        yield found


def scep_lab(where: Path, mode: str, *options: str | Path) -> contextlib.AbstractContextManager[LabCa]:
    where.mkdir(parents=True, exist_ok=True)
    (where / "challenge").write_text(CHALLENGE + "\n")
    return lab_ca(
        where / "ca",
        "--scep",
        "127.0.0.1:0",
        "--scep-mode",
        mode,
        "--scep-challenge-file",
        where / "challenge",
        *options,
    )


# ---- CAs behind the proxy -----------------------------------------------------------------------


def enroll_and_renew(
    gate: Proxy, root: Path, unit: str, types: tuple[str, ...], ca_pem: Path, authorities: int
) -> None:
    gate.profile(unit, *(cert(kind, kind) for kind in types), directory=f"/{unit}")
    device = gate.device(root, unit, f"tc-{unit.lower()}", directory=f"/{unit}")
    device.sync(timeout=200)
    before = {}
    for kind in types:
        check_certificate(root, kind, kind, PASSWORD, authorities=authorities)
        before[kind] = x509.load_pem_x509_certificate((device.certs / kind / "cert.pem").read_bytes())
        openssl(
            "verify",
            "-CAfile",
            ca_pem,
            "-untrusted",
            device.certs / kind / "cacerts.pem",
            device.certs / kind / "cert.pem",
        )
    ok("igel-certs", "renew", "--force", "--root", root, timeout=200)
    for kind in types:
        check_certificate(root, kind, kind, PASSWORD, authorities=authorities)
        renewed = x509.load_pem_x509_certificate((device.certs / kind / "cert.pem").read_bytes())
        assert renewed.serial_number != before[kind].serial_number
        assert renewed.public_key() != before[kind].public_key()


@pytest.mark.parametrize("renewal", ["pkcsreq", "renewalreq"])
def test_micromdm_behind_the_proxy(gate: Proxy, mdm: ScepCa, tmp_path: Path, renewal: str) -> None:
    """Without Ed25519, for which its server cannot make a subject key identifier."""
    types = tuple(kind for kind in GO_TYPES if kind != "ecdsa_ed25519")
    gate.use_scep(mdm.url, "--fingerprint", fingerprint(mdm.root), "--legacy", "--renewal", renewal)
    count = mdm.issued()
    enroll_and_renew(gate, tmp_path / "root", f"MDM{renewal.upper()}", types, mdm.root, 1)
    assert mdm.issued() == count + 2 * len(types)


@pytest.mark.parametrize("renewal", ["pkcsreq", "renewalreq"])
@pytest.mark.parametrize("tls", [False, True])
def test_step_ca_behind_the_proxy(gate: Proxy, step: ScepCa, tmp_path: Path, renewal: str, tls: bool) -> None:
    trust = ("--certificate", step.root) if tls else ()
    gate.use_scep(
        step.https if tls else step.url, "--fingerprint", fingerprint(step.root), "--renewal", renewal, *trust
    )
    assert "FAILED" not in gate.cli("ca", "test")
    types = GO_TYPES if not tls else GO_TYPES[2:3]
    enroll_and_renew(gate, tmp_path / "root", f"STEP{renewal.upper()}{tls}", types, step.root, 2)


def test_micromdm_needs_leave_for_its_single_des(gate: Proxy, mdm: ScepCa, tmp_path: Path) -> None:
    gate.use_scep(mdm.url)
    gate.profile("strict", cert("strict", "ec_prime256v1"), directory="/Strict")
    log = gate.device(tmp_path / "root", "STRICT", "tc-strict", directory="/Strict").sync(code=75)
    assert "single DES, which is not allowed" in log


@pytest.mark.parametrize("given", ["not this one", ""])
@pytest.mark.parametrize("name", ["mdm", "step"])
def test_wrong_and_missing_challenge_at_a_foreign_ca(
    gate: Proxy, tmp_path: Path, name: str, given: str, request: pytest.FixtureRequest
) -> None:
    ca: ScepCa = request.getfixturevalue(name)
    gate.use_scep(ca.url, "--legacy")
    unit = f"CH-{name}-{len(given)}"
    wrong = cert("wrong", "ec_prime256v1")
    wrong["enrollment"]["crypt_challenge_password"] = given
    gate.profile(unit, wrong, directory=f"/{unit}")
    device = gate.device(tmp_path / "root", unit, f"tc-{unit}", directory=f"/{unit}")
    log = device.sync(code=1)
    assert "the CA refused" in log and "badRequest" in log
    assert not (device.certs / "wrong").exists()
    assert gate.enrollments()[0]["state"] == "refused"


def fingerprint(pem: Path) -> str:
    cert = x509.load_pem_x509_certificate(pem.read_bytes())
    return cert.fingerprint(hashes.SHA256()).hex()


# ---- the table of the docs ----------------------------------------------------------------------

MAKERS: dict[str, Callable[[], Any]] = {
    **{
        f"rsa_{bits}": (lambda bits=bits: rsa.generate_private_key(public_exponent=65537, key_size=bits))
        for bits in (2048, 3072, 4096, 8192)
    },
    "ecdsa_ed25519": ed25519.Ed25519PrivateKey.generate,
    "ec_brainpoolP256r1": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "ec_brainpoolP384r1": lambda: ec.generate_private_key(ec.BrainpoolP384R1()),
    "ec_brainpoolP512r1": lambda: ec.generate_private_key(ec.BrainpoolP512R1()),
    "ec_prime256v1": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec_secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "ec_secp384r1": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec_secp521r1": lambda: ec.generate_private_key(ec.SECP521R1()),
}


def request_for(kind: str) -> tuple[Any, bytes]:
    """(public key, PKCS#10 in DER), by another library than ours."""
    key = MAKERS[kind]()
    name = x509.Name([
        x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
        x509.NameAttribute(NameOID.COMMON_NAME, f"peer-{kind}"),
    ])  # fmt: skip
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_attribute(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), CHALLENGE.encode())
    digest = None if kind == "ecdsa_ed25519" else hashes.SHA256()
    return key.public_key(), builder.sign(key, digest).public_bytes(serialization.Encoding.DER)


REASONS = (
    ("unsupported elliptic curve", "no: Go's X.509 does not know the curve"),
    ("badRequest", "no: refused (it makes subject key identifiers for RSA and ECDSA only)"),
)


@pytest.mark.slow
def test_the_table_in_the_docs(gate: Proxy, mdm: ScepCa, step: ScepCa, tmp_path: Path) -> None:
    """Every key type at every CA; what comes out is what docs/interop.md says. IGELCERT_WRITE_TABLE=1 writes it."""
    asked = {kind: request_for(kind) for kind in KEY_TYPES}
    gate.profile("table", *(cert(kind, kind) for kind in KEY_TYPES), directory="/Table")
    device = gate.device(tmp_path / "root", "TABLE", "tc-table", directory="/Table")
    rows: dict[str, list[str]] = {kind: [] for kind in KEY_TYPES}

    def column() -> None:
        for kind, (public, csr) in asked.items():
            status, _, body = gate.ask("POST", f"/.well-known/est/{kind}/simpleenroll", csr, client=device)
            if status == 200:
                import base64

                found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
                assert [each.public_key() for each in found] == [public]
                rows[kind].append("yes")
            else:
                text = body.decode()
                rows[kind].append(
                    next((words for sign, words in REASONS if sign in text), f"no: {text.strip()}")
                )

    for mode in ("standard", "ejbca", "ndes"):
        with scep_lab(tmp_path / mode, mode) as ca:
            gate.use_scep(ca.scep, "--fingerprint", ca.root_fingerprint())
            column()
    gate.use_scep(mdm.url, "--legacy")
    column()
    gate.use_scep(step.url)
    column()
    head = [
        "key type",
        "lab CA",
        "lab CA like EJBCA",
        "lab CA like NDES",
        "micromdm scepserver 2.3.0",
        "step-ca 0.30.2",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {kind} | {' | '.join(cells)} |" for kind, cells in rows.items()]
    table = "\n".join(lines)
    text = TABLE.read_text(encoding="utf-8")
    begin, end = "<!-- scep table: tests/interop/test_scep_peers.py -->\n", "\n<!-- end -->"
    assert begin in text, "docs/interop.md has no place for the table"
    before, rest = text.split(begin, 1)
    if os.environ.get("IGELCERT_WRITE_TABLE"):
        TABLE.write_text(before + begin + table + end + rest.split(end, 1)[1], encoding="utf-8")
    else:
        assert rest.split(end, 1)[0] == table
    assert all(rows[kind][:3] == ["yes"] * 3 for kind in KEY_TYPES), "the lab CA knows all twelve"


# ---- pass-through -------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_front(gate: Proxy) -> Iterator[int]:
    """nginx on plain HTTP before the proxy, for a client that trusts only the system's CAs."""
    port = free_port()
    where = gate.data.parent / f"front-{port}"
    where.mkdir()
    (where / "nginx.conf").write_text(
        f"""daemon off; pid {where}/pid; error_log {where}/log; worker_processes 1;
        events {{}}
        http {{ access_log off; client_body_temp_path {where}/a; proxy_temp_path {where}/b; fastcgi_temp_path {where}/c;
          uwsgi_temp_path {where}/d; scgi_temp_path {where}/e;
          server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass https://localhost:{gate.port};
            proxy_ssl_verify on; proxy_ssl_trusted_certificate {gate.data}/trust.pem; }} }} }}"""
    )
    with running(
        [str(peer("nginx")), "-c", str(where / "nginx.conf"), "-e", str(where / "log")],
        port,
        where / "out",
        where,
    ):
        yield port


@pytest.fixture
def passing(
    gate: Proxy, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Device, LabCa, str]]:
    """A device that may pass requests to the lab CA, and the path for it."""
    name = request.node.name.replace("_", "-")[5:40]
    with scep_lab(tmp_path / "passing", "standard") as ca:
        gate.use_scep(ca.scep, "--fingerprint", ca.root_fingerprint())
        gate.profile(name, cert("lan", "rsa_2048"), directory=f"/{name}")
        gate.cli("profile", "passthrough", name, "on")
        device = gate.device(tmp_path / "device", name.upper(), f"tc-{name}", directory=f"/{name}")
        made = json.loads(gate.cli("device", "scep-url", "--unit-id", device.unit_id, "--json"))
        yield device, ca, made["path"].replace("LABEL", "lan")


def test_scepclient_through_the_proxy(
    gate: Proxy, passing: tuple[Device, LabCa, str], tmp_path: Path
) -> None:
    device, ca, path = passing
    done = scepclient(tmp_path, gate.url + path, CHALLENGE, "go-through", trust=gate.data / "trust.pem")
    assert done.returncode == 0, done.stdout + done.stderr
    got = x509.load_pem_x509_certificate((tmp_path / "client.pem").read_bytes())
    got.verify_directly_issued_by(x509.load_pem_x509_certificate((ca.dir / "issuing.pem").read_bytes()))
    assert len(ca.issued()) == 1
    row = gate.enrollments()[0]
    assert (row["unit_id"], row["state"], row["operation"]) == (device.unit_id, "issued", "scep pass-through")
    assert path.rsplit("/", 1)[1] not in gate.log(), "the secret is in the log"
    (tmp_path / "wrong").mkdir()
    wrong = scepclient(
        tmp_path / "wrong", gate.url + path, "wrong", "go-through", trust=gate.data / "trust.pem"
    )
    assert wrong.returncode != 0
    assert gate.enrollments()[0]["state"] == "refused"
    gate.cli("device", "scep-url", "--unit-id", device.unit_id, "--revoke")
    (tmp_path / "late").mkdir()
    late = scepclient(
        tmp_path / "late", gate.url + path, CHALLENGE, "go-through", trust=gate.data / "trust.pem"
    )
    assert late.returncode != 0 and len(ca.issued()) == 1


def test_strongswan_through_the_proxy(
    gate: Proxy, passing: tuple[Device, LabCa, str], tmp_path: Path
) -> None:
    _, ca, path = passing
    issuing, root = (
        der(ca.dir / "issuing.pem", tmp_path / "i.der"),
        der(ca.dir / "root.pem", tmp_path / "r.der"),
    )
    with plain_front(gate) as port:
        done = strongswan(
            tmp_path,
            f"http://127.0.0.1:{port}{path}",
            CHALLENGE,
            "C=DE, O=Example, CN=swan",
            issuing,
            issuing,
            root,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert x509.load_pem_x509_certificate(done.stdout).subject.rfc4514_string() == "CN=swan,O=Example,C=DE"
    assert len(ca.issued()) == 1 and gate.enrollments()[0]["state"] == "issued"


def test_who_may_pass(gate: Proxy, passing: tuple[Device, LabCa, str], tmp_path: Path) -> None:
    device, _, path = passing
    caps = "?operation=GetCACaps"
    assert gate.ask("GET", path + caps)[0] == 200
    assert gate.ask("GET", "/scep/lan" + caps, client=device)[0] == 200, "by the management certificate"
    assert gate.ask("GET", "/scep/lan" + caps)[0] == 401
    assert gate.ask("GET", "/scep/lan/guessed" + caps)[0] == 403
    assert gate.ask("GET", "/scep/other" + caps, client=device)[0] == 403, "a label that is not assigned"
    assert gate.ask("GET", path + "?operation=Other")[0] == 400
    assert gate.ask("POST", path + "?operation=PKIOperation", b"\x30\x03abc")[0] == 400
    status, _, body = gate.ask("GET", path + "?operation=PKIOperation&message=" + "A" * 6000)
    assert status == 400 and b"message is refused" in body, "a message in the URL is longer than most URLs"
    name = device.unit_id.lower()
    gate.cli("profile", "passthrough", name, "off")
    status, _, body = gate.ask("GET", path + caps)
    assert status == 403 and b"no profile lets this device through" in body


# ---- clients at the lab CA ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    with scep_lab(tmp_path_factory.mktemp("lab"), "standard") as found:
        yield found


def der(pem: Path, to: Path) -> Path:
    openssl("x509", "-in", pem, "-outform", "DER", "-out", to)
    return to


def test_strongswan_at_the_lab_ca(lab: LabCa, tmp_path: Path) -> None:
    issuing, root = (
        der(lab.dir / "issuing.pem", tmp_path / "i.der"),
        der(lab.dir / "root.pem", tmp_path / "r.der"),
    )
    count = len(lab.issued())
    done = strongswan(tmp_path, lab.scep, CHALLENGE, "C=DE, O=Example, CN=swan", issuing, issuing, root)
    assert done.returncode == 0, done.stderr.decode()
    got = x509.load_pem_x509_certificate(done.stdout)
    assert got.subject.rfc4514_string() == "CN=swan,O=Example,C=DE"
    got.verify_directly_issued_by(x509.load_pem_x509_certificate((lab.dir / "issuing.pem").read_bytes()))
    assert len(lab.issued()) == count + 1
    (tmp_path / "wrong").mkdir()
    refused = strongswan(tmp_path / "wrong", lab.scep, "wrong", "C=DE, CN=swan2", issuing, issuing, root)
    assert refused.returncode != 0 and b"badRequest" in refused.stderr
    assert len(lab.issued()) == count + 1


def test_strongswan_reads_our_ca_certificates(lab: LabCa, tmp_path: Path) -> None:
    from tests.support.chain import run

    done = run(peer("strongswan"), "--scepca", "--url", lab.scep, "--caout", tmp_path / "ca.crt", "--force")
    assert done.returncode == 0, done.stderr
    written = {path.read_bytes() for path in tmp_path.glob("ca*.crt")}
    for name in ("root", "issuing"):
        pem = x509.load_pem_x509_certificate((lab.dir / f"{name}.pem").read_bytes())
        assert pem.public_bytes(serialization.Encoding.DER) in written


def test_strongswan_waits_for_a_pending_answer(tmp_path: Path) -> None:
    with scep_lab(tmp_path / "lab", "standard", "--pending", "2s") as lab:
        issuing, root = (
            der(lab.dir / "issuing.pem", tmp_path / "i.der"),
            der(lab.dir / "root.pem", tmp_path / "r.der"),
        )
        done = strongswan(tmp_path, lab.scep, CHALLENGE, "C=DE, O=Example, CN=swan", issuing, issuing, root)
        assert done.returncode == 0, done.stderr.decode()
        assert x509.load_pem_x509_certificate(done.stdout).subject
        assert len(lab.issued()) == 1


def test_scepclient_at_the_lab_ca(lab: LabCa, tmp_path: Path) -> None:
    done = scepclient(tmp_path, lab.scep, CHALLENGE, "go-client")
    assert done.returncode == 0, done.stdout + done.stderr
    got = x509.load_pem_x509_certificate((tmp_path / "client.pem").read_bytes())
    assert re.search("CN=go-client", got.subject.rfc4514_string())
    got.verify_directly_issued_by(x509.load_pem_x509_certificate((lab.dir / "issuing.pem").read_bytes()))
    (tmp_path / "wrong").mkdir()
    assert scepclient(tmp_path / "wrong", lab.scep, "wrong", "go-client").returncode != 0
