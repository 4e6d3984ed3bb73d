"""Java's keytool opens the PKCS#12 files that igelcert writes, uses their key and lists their chain."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from igelcert import crypto
from tests.support.est_clients import openssl, run
from tests.support.peers import peer

pytestmark = pytest.mark.peers

PASSWORD = "correct horse: 42"
NAMES = ("thinclient-17", "Issuing", "Root")


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def chain(spki: bytes) -> list[bytes]:
    """Certificate of the key, issuing CA and root, made by `cryptography`; DER."""
    root, issuing = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    today = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    made = []
    for subject, key, issuer, signer in (
        (NAMES[0], serialization.load_der_public_key(spki), NAMES[1], issuing),
        (NAMES[1], issuing.public_key(), NAMES[2], root),
        (NAMES[2], root.public_key(), NAMES[2], root),
    ):
        builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
        builder = builder.public_key(key).serial_number(x509.random_serial_number())  # type: ignore[arg-type]
        builder = builder.not_valid_before(today).not_valid_after(today + datetime.timedelta(days=30))
        constraints = x509.BasicConstraints(ca=subject != NAMES[0], path_length=None)
        cert = builder.add_extension(constraints, critical=True).sign(signer, hashes.SHA256())
        made.append(cert.public_bytes(serialization.Encoding.DER))
    return made


def keytool(*arguments: object) -> str:
    return run(peer("keytool"), "-J-XX:TieredStopAtLevel=1", "-J-Duser.language=en", *arguments).decode()


# The curves of the JDK; secp256k1 and brainpool it does not know.
@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
@pytest.mark.parametrize("key_type", ["ec_prime256v1", "ec_secp521r1", "ecdsa_ed25519", "rsa_2048"])
def test_keytool(tmp_path: Path, key_type: str, legacy: bool) -> None:
    key = crypto.Key.generate(key_type)
    certs = chain(key.spki())
    keystore, password, wrong = tmp_path / "key.p12", tmp_path / "password", tmp_path / "wrong"
    fd = os.open(keystore, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        crypto.write_pfx(
            fd, key, certs[0], certs[1:], crypto.Password(PASSWORD.encode()), "WLAN 1", legacy=legacy
        )
    finally:
        os.close(fd)
    password.write_text(PASSWORD)
    wrong.write_text("wrong horse")
    common = ("-storetype", "PKCS12", "-keystore", keystore)

    shown = keytool("-list", "-v", *common, "-storepass:file", password)
    assert "Your keystore contains 1 entry" in shown
    assert "Alias name: wlan 1" in shown
    assert "Entry type: PrivateKeyEntry" in shown
    assert "Certificate chain length: 3" in shown
    assert re.findall(r"^Owner: CN=(.*)$", shown, re.MULTILINE) == list(NAMES)

    # Java decrypts the key and signs with it.
    request = keytool("-certreq", "-alias", "wlan 1", *common, "-storepass:file", password)
    openssl("req", "-verify", "-noout", stdin=request.encode())
    public = openssl("req", "-noout", "-pubkey", stdin=request.encode())
    assert public == openssl("pkey", "-pubin", "-inform", "DER", "-pubout", stdin=key.spki())

    with pytest.raises(AssertionError, match="password was incorrect"):
        keytool("-list", *common, "-storepass:file", wrong)


def test_bouncy_castle_reads_brainpool(tmp_path: Path) -> None:
    """What the JDK lacks, keytool with Bouncy Castle's own PKCS#12 reader has."""
    key = crypto.Key.generate("ec_brainpoolP384r1")
    certs = chain(key.spki())
    keystore, password = tmp_path / "key.p12", tmp_path / "password"
    fd = os.open(keystore, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        crypto.write_pfx(fd, key, certs[0], certs[1:], crypto.Password(PASSWORD.encode()), "WLAN 1")
    finally:
        os.close(fd)
    password.write_text(PASSWORD)
    jars = ":".join(str(jar) for jar in sorted(peer("bouncycastle").parent.glob("*.jar")))
    bc = ("-providerpath", jars, "-providerclass", "org.bouncycastle.jce.provider.BouncyCastleProvider")
    source = ("-storetype", "PKCS12", "-keystore", keystore, "-storepass:file", password)
    shown = keytool("-list", "-v", *source, *bc, "-providername", "BC")
    assert "Keystore provider: BC" in shown
    assert re.findall(r"^Owner: CN=(.*)$", shown, re.MULTILINE) == list(NAMES)

    copy = tmp_path / "copy.p12"
    keytool(
        "-importkeystore", *bc, "-srckeystore", keystore, "-srcstoretype", "PKCS12", "-srcstorepass:file", password,
        "-srcprovidername", "BC", "-destkeystore", copy, "-deststoretype", "PKCS12", "-deststorepass:file", password,
        "-destprovidername", "BC",
    )  # fmt: skip
    private = openssl("pkcs12", "-legacy", "-in", copy, "-nocerts", "-noenc", "-passin", f"file:{password}")
    public = openssl("pkey", "-pubout", stdin=private)
    assert public == openssl("pkey", "-pubin", "-inform", "DER", "-pubout", stdin=key.spki())
