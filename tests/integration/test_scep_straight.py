"""A device straight at a SCEP CA, without a proxy: RSA keys, renewal signed by the old key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.support.chain import LabCa, lab_ca, run
from tests.support.servers import PASSWORD, TRUST, Host, device
from tests.support.tree import check_certificate

CHALLENGE = "Tr0ub4dor"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    place = tmp_path_factory.mktemp("scep")
    (place / "challenge").write_text(CHALLENGE + "\n")
    with lab_ca(
        place / "ca", "--scep", "127.0.0.1:0", "--scep-https", "127.0.0.1:0",
        "--scep-challenge-file", place / "challenge",
    ) as found:  # fmt: skip
        yield found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return device(tmp_path / "root", "tc-scep", "SCEPSTRAIGHT")


def wish(ca: LabCa, key_type: str = "rsa_2048", challenge: str = CHALLENGE, **scep: Any) -> dict[str, Any]:
    target = {"url": ca.scep, "fingerprint": ca.root_fingerprint(), **scep}
    return {
        "friendly_name": "lan",
        "subject": {"org": "Example", "country": "DE"},
        "key": {"type": key_type, "crypt_password": PASSWORD},
        "enrollment": {"proto": "scep", "scep": target, "crypt_challenge_password": challenge},
    }


def certificate(host: Host) -> x509.Certificate:
    return x509.load_pem_x509_certificate((host.home() / "cert.pem").read_bytes())


def test_enroll_and_renew(ca: LabCa, host: Host) -> None:
    host.wants(wish(ca, fingerprint=ca.root_fingerprint("sha1")))
    host.do("apply")
    check_certificate(host.root, "lan", "rsa_2048", PASSWORD)
    first = certificate(host)
    assert first.subject.rfc4514_string() == "CN=tc-scep,O=Example,C=DE"
    # the old key signs the renewal, so that the CA needs no challenge
    host.wants(wish(ca, challenge="used up long ago"))
    log = host.do("renew", "--force")
    second = certificate(host)
    assert second.serial_number != first.serial_number and second.public_key() != first.public_key()
    check_certificate(host.root, "lan", "rsa_2048", PASSWORD)
    shown = run("igel-certs", "status", "--root", host.root, "--json").stdout
    for text in (log, shown, ca.log()):
        assert CHALLENGE not in text and "used up" not in text


def test_over_https(ca: LabCa, host: Host) -> None:
    host.trust((ca.dir / "root.pem").read_bytes())
    host.wants(wish(ca, "rsa_3072", url=ca.scep_https, ca_file=TRUST, fingerprint=""))
    host.do("apply")
    check_certificate(host.root, "lan", "rsa_3072", PASSWORD)


def test_pending_is_asked_after(tmp_path: Path, host: Host) -> None:
    with lab_ca(tmp_path / "ca", "--scep", "127.0.0.1:0", "--pending", "5s") as ca:
        host.wants(wish(ca))
        assert "not decided" in host.do("apply", "--verbose", code=75)
        assert not host.home().exists() and ca.issued() == []
        time.sleep(5)
        host.do("renew", "--force")
        check_certificate(host.root, "lan", "rsa_2048", PASSWORD)
        assert len(ca.issued()) == 1


@pytest.mark.parametrize("kind", ["ec_prime256v1", "ecdsa_ed25519", "ec_brainpoolP384r1"])
def test_other_keys_are_told_the_way_out(ca: LabCa, host: Host, kind: str) -> None:
    host.wants(wish(ca, kind))
    log = host.do("apply", code=78)
    assert "takes RSA" in log and "igelums" in log
    assert not host.home().exists()


@pytest.mark.parametrize(
    ("change", "words", "code"),
    [
        (
            {"fingerprint": "00" * 32},
            "none of the server's CA certificates has the configured fingerprint",
            1,
        ),
        ({"fingerprint": ""}, "anybody between could pose as the CA", 78),
        ({"url": "http://127.0.0.1:9/scep"}, "nothing listens", 75),
        ({"fingerprint": "12345"}, "fingerprint", 78),
    ],
)
def test_what_goes_wrong_is_said(
    ca: LabCa, host: Host, change: dict[str, Any], words: str, code: int
) -> None:
    before = len(ca.issued())
    host.wants(wish(ca, **change))
    assert words in host.do("apply", code=code)
    assert len(ca.issued()) == before and not host.home().exists()


def test_a_wrong_challenge(ca: LabCa, host: Host) -> None:
    host.wants(wish(ca, challenge="not this one"))
    log = host.do("apply", code=1)
    assert "refused" in log and "Wrong password" in log and "not this one" not in log
