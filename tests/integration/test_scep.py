"""The whole chain with a SCEP CA behind the proxy: the lab CA in its three modes, over real sockets."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from igelcert.model import KEY_TYPES
from tests.support.chain import LabCa, Proxy, lab_ca, ok, proxy, run
from tests.support.tree import check_certificate

PASSWORD = "correct horse"
CHALLENGE = "Tr0ub4dor"
MODES = ("standard", "ejbca", "ndes")


def cert(
    name: str, key_type: str = "ec_prime256v1", challenge: str = CHALLENGE, **more: Any
) -> dict[str, Any]:
    return {
        "friendly_name": name,
        "subject": {"org": "Example", "country": "DE"},
        "key": {"type": key_type, "crypt_password": PASSWORD},
        "enrollment": {"crypt_challenge_password": challenge} if challenge else {},
        **more,
    }


@contextlib.contextmanager
def scep_ca(where: Path, mode: str, *options: str | Path) -> Iterator[LabCa]:
    where.mkdir(parents=True, exist_ok=True)
    secret = where / "challenge"
    secret.write_text(CHALLENGE + "\n")
    with lab_ca(
        where / "ca", "--scep", "127.0.0.1:0", "--scep-https", "127.0.0.1:0", "--scep-mode", mode,
        "--scep-challenge-file", secret, *options,
    ) as ca:  # fmt: skip
        yield ca


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("scep-proxy") / "proxy") as found:
        yield found


@pytest.fixture(scope="module", params=MODES)
def ca(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, gate: Proxy
) -> Iterator[LabCa]:
    with scep_ca(tmp_path_factory.mktemp(request.param), request.param) as found:
        gate.use_scep(found.scep, "--fingerprint", found.root_fingerprint())
        yield found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_key_types(gate: Proxy, ca: LabCa, root: Path) -> None:
    unit = f"SCEP{ca.scep.count('/')}{ca.port}"
    types = [
        kind for kind in KEY_TYPES if kind != "rsa_8192"
    ]  # that one: test_scep_peers.py, where others make the key
    gate.profile(unit, *(cert(kind, kind) for kind in types), directory=f"/Scep/{unit}")
    device = gate.device(root, unit, f"tc-{unit.lower()}", directory=f"/Scep/{unit}")
    device.sync(timeout=200)
    issuing = x509.load_pem_x509_certificate((ca.dir / "issuing.pem").read_bytes())
    for kind in types:
        check_certificate(root, kind, kind, PASSWORD)
        issued = x509.load_pem_x509_certificate((device.certs / kind / "cert.pem").read_bytes())
        assert issued.subject.rfc4514_string() == f"CN={device.hostname},O=Example,C=DE"
        issued.verify_directly_issued_by(issuing)
    assert len(ca.issued()) == len(types)
    # and a renewal of one that no SCEP client of a device could ask for
    before = device.certs / "ecdsa_ed25519/cert.pem"
    first = x509.load_pem_x509_certificate(before.read_bytes())
    ok("igel-certs", "renew", "ecdsa_ed25519", "--force", "--root", root)
    second = x509.load_pem_x509_certificate(before.read_bytes())
    assert second.serial_number != first.serial_number and second.public_key() != first.public_key()


@pytest.mark.parametrize("given", ["wrong", ""])
def test_wrong_and_missing_challenge_are_told_in_plain_words(
    gate: Proxy, ca: LabCa, root: Path, given: str
) -> None:
    unit = f"CH{given or 'none'}{ca.port}".upper()
    gate.profile(unit, cert("lan", challenge=given), directory=f"/Ch/{unit}")
    device = gate.device(root, unit, f"tc-{unit.lower()}", directory=f"/Ch/{unit}")
    before = len(ca.issued())
    log = device.sync(code=1)
    assert re.search("the CA refused .*(password|challenge)", log, re.IGNORECASE), log
    assert "<" not in log.split("refused", 1)[1], "HTML of the CA in the log"
    assert CHALLENGE not in log
    assert len(ca.issued()) == before
    assert not (device.certs / "lan").exists()
    shown = gate.cli("enrollments")
    assert "refused" in shown and CHALLENGE not in shown


def test_no_secret_in_logs(gate: Proxy, ca: LabCa) -> None:
    for text in (gate.log(), ca.log(), gate.cli("ca", "show"), gate.cli("enrollments", "--json")):
        assert CHALLENGE not in text and PASSWORD not in text


# ---- the server's certificates ------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    with scep_ca(tmp_path_factory.mktemp("plain"), "standard") as found:
        yield found


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256"])
def test_fingerprints(gate: Proxy, plain: LabCa, name: str) -> None:
    digits = plain.root_fingerprint(name).upper()
    gate.use_scep(plain.scep, "--fingerprint", ":".join(digits[i : i + 2] for i in range(0, len(digits), 2)))
    out = gate.cli("ca", "test")
    assert "FAILED" not in out and "has the configured fingerprint" in out
    assert "requests are encrypted for Lab Issuing CA" in out


def test_a_wrong_fingerprint_stops_everything(gate: Proxy, plain: LabCa, root: Path) -> None:
    gate.use_scep(plain.scep, "--fingerprint", "00" * 32)
    done = run("ca-proxy", "ca", "test", env={"CA_PROXY_DATA": str(gate.data)})
    assert (
        done.returncode == 1
        and "none of the server's CA certificates has the configured fingerprint" in done.stdout
    )
    assert plain.root_fingerprint() in done.stdout
    gate.profile("fp", cert("lan"), directory="/Fp")
    device = gate.device(root, "FPWRONG", "tc-fp", directory="/Fp")
    before = len(plain.issued())
    log = device.sync(code=75)
    assert "fingerprint" in log
    assert len(plain.issued()) == before


def test_over_https(gate: Proxy, plain: LabCa, root: Path) -> None:
    gate.use_scep(
        plain.scep_https, "--certificate", plain.dir / "root.pem", "--fingerprint", plain.root_fingerprint()
    )
    assert "TLS trust" in gate.cli("ca", "test")
    gate.profile("tls", cert("lan"), directory="/Tls")
    gate.device(root, "OVERTLS", "tc-tls", directory="/Tls").sync()
    check_certificate(root, "lan", "ec_prime256v1", PASSWORD)


def test_https_without_its_ca_says_so(gate: Proxy, plain: LabCa) -> None:
    gate.use_scep(plain.scep_https, "--fingerprint", plain.root_fingerprint())
    done = run("ca-proxy", "ca", "test", env={"CA_PROXY_DATA": str(gate.data)})
    assert done.returncode == 1 and "not trusted" in done.stdout and "--certificate" in done.stdout


def test_who_signs_and_who_decrypts_is_shown(gate: Proxy, tmp_path: Path) -> None:
    with scep_ca(tmp_path, "ndes") as ca:
        gate.use_scep(ca.scep)
        out = gate.cli("ca", "test")
        assert "requests are encrypted for Lab RA encryption" in out and "Lab RA signing" in out
        assert ca.root_fingerprint() in out, "what could be configured"
        shown = json.loads(gate.cli("ca", "show", "--json"))
        assert shown["kind"] == "scep" and shown["fingerprint"] is None


# ---- waiting, and answers that get lost ---------------------------------------------------------


def test_a_pending_request_survives_the_proxy(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with scep_ca(tmp_path, "standard", "--pending", "4s") as ca:
        with proxy(tmp_path / "proxy") as gate:
            gate.use_scep(ca.scep, "--poll", "1", "--fingerprint", ca.root_fingerprint())
            gate.profile("wait", cert("lan"), directory="/")
            device = gate.device(root, "WAITING", "tc-wait")
            assert "not decided" in device.sync(code=75)
            assert gate.enrollments()[0]["state"] == "pending"
        assert ca.issued() == []
        with proxy(tmp_path / "proxy", port=gate.port) as gate:
            for _ in range(40):
                if run("rmagent", "sync", "--root", root).returncode == 0:
                    break
                time.sleep(0.5)
            check_certificate(root, "lan", "ec_prime256v1", PASSWORD)
            assert len(ca.issued()) == 1
            assert gate.enrollments()[0]["state"] == "issued"
