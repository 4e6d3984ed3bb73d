"""NSS (pk12util, certutil) imports the cert.pfx of a device, lists its chain and signs with its key."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.est_clients import openssl, run
from tests.support.peers import peer
from tests.support.servers import PASSWORD, Host, LabCa, device, lab_ca, straight

pytestmark = pytest.mark.peers

# What NSS can sign with: this version refuses Ed25519 keys, and imports those of other curves in vain.
KEY_TYPES = ("rsa_2048", "rsa_3072", "ec_prime256v1", "ec_secp384r1", "ec_secp521r1")
LOGIN = {"username": "devices", "crypt_password": "enroll me"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    place = tmp_path_factory.mktemp("nss")
    (place / "password").write_text(LOGIN["crypt_password"] + "\n")
    with lab_ca(
        place / "ca", "--est-user", LOGIN["username"], "--est-password-file", place / "password"
    ) as made:
        yield made


@pytest.fixture(scope="module", params=["modern", "legacy"])
def host(lab: LabCa, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A device with that pfx_encryption and a certificate of each type."""
    peer("pk12util")
    made = device(tmp_path_factory.mktemp("host") / "root", "tc-nss", "NSS1", pfx_encryption=request.param)
    made.trust((lab.dir / "root.pem").read_bytes())
    made.wants(*(straight(kind, lab.port, kind, **LOGIN) for kind in KEY_TYPES))
    made.do("apply", timeout=120)
    shown = subprocess.run(
        ["openssl", "pkcs12", "-info", "-noout", "-in", made.home("rsa_2048") / "cert.pfx", "-passin",
         f"pass:{PASSWORD}"],
        capture_output=True, text=True, timeout=30, check=True,
    ).stderr  # fmt: skip
    assert {"modern": "AES-256-CBC", "legacy": "pbeWithSHA1And3-KeyTripleDES-CBC"}[request.param] in shown
    return made


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_pk12util(host: Host, tmp_path: Path, key_type: str) -> None:
    pk12util, certutil = peer("pk12util"), peer("certutil")
    pfx, cert = host.home(key_type) / "cert.pfx", host.home(key_type) / "cert.pem"
    password, wrong, pin = tmp_path / "password", tmp_path / "wrong", tmp_path / "pin"
    password.write_text(PASSWORD)
    wrong.write_text("wrong horse")
    pin.write_text("of the database")
    place = tmp_path / "db"
    place.mkdir()
    database = ("-d", f"sql:{place}")
    run(certutil, "-N", *database, "-f", pin)

    refused = subprocess.run(
        [str(pk12util), "-i", str(pfx), *database, "-k", str(pin), "-w", str(wrong)],
        capture_output=True,
        timeout=30,
    )
    assert refused.returncode != 0 and run(certutil, "-L", *database).count(b"u,u,u") == 0
    run(pk12util, "-i", pfx, *database, "-k", pin, "-w", password)

    listed = run(certutil, "-L", *database).decode()
    assert re.search(rf"^{key_type} +u,u,u$", listed, re.MULTILINE), listed
    authorities = re.findall(r"^(Lab [A-Za-z]+ CA)\b.* ,, *$", listed, re.MULTILINE)
    assert sorted(authorities) == ["Lab Issuing CA", "Lab Root CA"], listed
    stored = run(certutil, "-L", *database, "-n", key_type, "-a")
    assert openssl("x509", "-outform", "DER", stdin=stored) == openssl("x509", "-outform", "DER", "-in", cert)

    # NSS decrypted the key: it signs a request with it
    noise = tmp_path / "noise"
    noise.write_bytes(b"\0" * 64)
    request = run(
        certutil, "-R", *database, "-k", key_type, "-s", "CN=signed by NSS", "-f", pin, "-a", "-z", noise
    )
    pem = request[request.index(b"-----BEGIN") :]
    openssl("req", "-verify", "-noout", stdin=pem)
    assert openssl("req", "-noout", "-pubkey", stdin=pem) == openssl("x509", "-noout", "-pubkey", "-in", cert)
