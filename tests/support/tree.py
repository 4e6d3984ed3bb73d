"""What a finished certificate tree must be, by OpenSSL's judgement."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

__all__ = ["check_certificate", "new_csr", "openssl", "snapshot"]

OPENSSL_NAMES = {
    "ec_prime256v1": "prime256v1", "ec_secp256k1": "secp256k1", "ec_secp384r1": "secp384r1",
    "ec_secp521r1": "secp521r1", "ec_brainpoolP256r1": "brainpoolP256r1", "ec_brainpoolP384r1": "brainpoolP384r1",
    "ec_brainpoolP512r1": "brainpoolP512r1", "ecdsa_ed25519": "ED25519", "rsa_2048": "(2048 bit", "rsa_3072": "(3072 bit",
    "rsa_4096": "(4096 bit", "rsa_8192": "(8192 bit",
}  # fmt: skip


def openssl(*args: str | Path, code: int | None = 0) -> str:
    """stdout of the openssl program; its exit code must be `code` (None: any but 0)."""
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, timeout=60)
    good = done.returncode != 0 if code is None else done.returncode == code
    assert good, f"openssl {args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def new_csr(path: Path, subject: str, san: str = "", *options: str) -> bytes:
    """A request over a new P-256 key (other `-newkey` options by `options`), DER, made by OpenSSL; key beside it."""
    kind = options or ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    names = ("-addext", f"subjectAltName={san}") if san else ()
    openssl("req", "-new", *kind, "-nodes", "-keyout", path.with_suffix(".key"), "-utf8", "-subj", subject, *names,
            "-outform", "DER", "-out", path)  # fmt: skip
    return path.read_bytes()


def snapshot(*places: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every file below, links as links."""
    found = {}
    for place in places:
        for path in sorted([place, *place.rglob("*")]):
            info = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if path.is_symlink():
                content = os.readlink(path).encode()
            found[str(path)] = (info.st_mode, content)
    return found


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def check_certificate(root: Path, name: str, key_type: str, password: str, *, authorities: int = 2) -> None:
    """The five kinds of files of one certificate: modes, contents, and that they belong together."""
    home = root / "wfs/igel-certs" / name
    files = {path.name for path in home.iterdir()}
    assert files == {"cert.pem", "cert.pfx", "pkey.pem", "cacerts.pem", "cacerts"}
    assert _mode(root / "wfs/igel-certs") == _mode(home.resolve()) == _mode(home / "cacerts") == 0o700
    assert _mode(home / "pkey.pem") == _mode(home / "cert.pfx") == 0o600
    assert _mode(home / "cert.pem") == _mode(home / "cacerts.pem") == 0o644
    assert all(_mode(path) == 0o644 for path in (home / "cacerts").iterdir())

    cert = x509.load_pem_x509_certificate((home / "cert.pem").read_bytes())
    bundle = x509.load_pem_x509_certificates((home / "cacerts.pem").read_bytes())
    single = [x509.load_pem_x509_certificate(path.read_bytes()) for path in (home / "cacerts").iterdir()]
    assert len(bundle) == authorities and set(bundle) == set(single)
    for path in (home / "cacerts").iterdir():
        issuer = x509.load_pem_x509_certificate(path.read_bytes())
        assert path.name == issuer.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value + ".pem"

    public = openssl("x509", "-in", home / "cert.pem", "-noout", "-pubkey")
    assert openssl("pkey", "-in", home / "pkey.pem", "-passin", f"pass:{password}", "-pubout") == public
    openssl("pkey", "-in", home / "pkey.pem", "-passin", "pass:not the password", "-noout", code=None)
    assert (home / "pkey.pem").read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    structure = openssl("asn1parse", "-in", home / "pkey.pem")
    for part in ("PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc", "INTEGER           :0186A0"):
        assert part in structure
    assert OPENSSL_NAMES[key_type] in openssl("x509", "-in", home / "cert.pem", "-noout", "-text")

    key, leaf, others = pkcs12.load_key_and_certificates((home / "cert.pfx").read_bytes(), password.encode())
    assert key is not None and leaf == cert and set(others) == set(bundle)
    assert key.public_key() == cert.public_key()
    openssl("pkcs12", "-in", home / "cert.pfx", "-passin", "pass:not the password", "-noout", code=None)
    openssl("pkcs12", "-in", home / "cert.pfx", "-passin", f"pass:{password}", "-noout")
    openssl("verify", "-CApath", root / "etc/ssl/certs", home / "cert.pem")
