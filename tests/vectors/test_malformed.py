"""Hostile and broken input (malformed/): what must be refused is, with one line and in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from igelcert import _der as der
from igelcert import crypto
from igelcert.codec import est, pem, pkcs10
from igelcert.codec.http import Response
from igelcert.errors import Error
from tests.support.vectors import cases, index, load, vector

SECONDS = 2.0  # of processor time


def _csr(data: bytes) -> Any:
    return pkcs10.parse(est.csr_from_request(data))


def _cert(data: bytes) -> list[crypto.Certificate]:
    return [crypto.parse_certificate(each) for each in (pem.decode_pem(data) if pem.is_pem(data) else [data])]


def _cacerts(data: bytes) -> list[crypto.Certificate]:
    return [crypto.parse_certificate(each) for each in est.cacerts_reply(Response(200, (), data))]


def _path(data: bytes) -> Any:
    """As an anchor of its own: refused when it cannot stand in a path."""
    cert = _cert(data)[0]
    return crypto.verify_chain(cert.der, [], [cert.der], max(cert.not_before, 1_500_000_000))


def _path_now(data: bytes) -> Any:
    cert = _cert(data)[0]
    return crypto.verify_chain(cert.der, [], [cert.der], 1_796_000_000)


def _value(data: bytes) -> Any:
    """One value and everything in it."""
    reader = der.Reader(data)
    found = _read(reader)
    reader.end()
    return found


def _read(reader: der.Reader) -> Any:
    kind = reader.peek()
    if kind & 0x20:
        inner = reader.enter(kind)
        found = []
        while not inner.done:
            found.append(_read(inner))
        return found
    readers: dict[int, Callable[[], Any]] = {
        1: reader.boolean, 2: reader.integer, 3: reader.bit_string, 4: reader.octet_string, 5: reader.null, 6: reader.oid,
    }  # fmt: skip
    return readers.get(kind, reader.read)()


CSR_OF_PYCA = ("challenge", "dsa_sha1", "ec_sha256_old_header", "freeipa", "invalid_signature.pem", "long-form-attribute",
               "rsa_md4", "zero-element", "bad-version")  # fmt: skip
# Certificates whose fault shows where they are used.
IN_A_PATH = ("pyca-unsupported_extension_critical.pem", "pyca-nc_ip_invalid_length.pem")
# Stricter than the list: its outer signature algorithm is plain md5, its inner one md5WithRSAEncryption, and
# RFC 5280 4.1.1.2 wants them equal (as cert-alg-mismatch.der has it).
STRICTER = {"pyca-v1_cert.pem"}


def decoder(name: str) -> Callable[[bytes], Any]:
    if name.startswith(("csr-", "body-csr")) or any(name.startswith(f"pyca-{part}") for part in CSR_OF_PYCA):
        return _csr
    if name in IN_A_PATH:
        return _path
    if name == "pyca-invalid_signature_cert.pem":
        # OpenSSL and `cryptography` both find its signature right (the bad one is of a CRL); it has expired
        return _path_now
    if name == "pyca-ec_no_named_curve.pem":
        return lambda data: crypto.spki_type(_cert(data)[0].spki)
    if name.startswith(("cert-", "pyca-")):
        return _cert
    if name.startswith("body-"):
        return _cacerts
    if name.endswith(".ber"):
        return crypto.cms_certificates
    return _value


FILES = cases("malformed", r"(?!certrep-)(?!.*\.json).*")
# Refused by policy, not by the parser: the profile has no such key type, no such name.
POLICY = {"csr-rsa1024.der", "csr-san-wildcard.der", "csr-ca-true.der", "csr-cn-path.der"}


@pytest.mark.parametrize("name", FILES)
def test_malformed(name: str) -> None:
    data = vector(f"malformed/{name}")
    outcome = index()["malformed"][name]
    start = time.process_time()
    try:
        found = decoder(name)(data)
        refused = None
    except (Error, der.DerError) as err:
        found, refused = None, str(err)
    assert time.process_time() - start < SECONDS
    if refused is not None:
        assert refused and "\n" not in refused and refused.isprintable() and len(refused) < 1000
    if name in POLICY:
        assert refused is None
        return
    if (
        outcome.startswith(("must be refused", "refused"))
        and "or read" not in outcome
        and "or escaped" not in outcome
    ):
        assert refused is not None, outcome
    elif name in STRICTER:
        assert refused is not None and "signature algorithm differ" in refused
    elif outcome.startswith(("accepted", "parses")) and "refused plainly" not in outcome:
        assert refused is None, f"{outcome}: {refused}"
    if name == "csr-cn-bmp.der":
        assert found.cn == "dév"
    if name == "csr-challenge-empty.der":
        assert found.challenge is None
    if name == "pyca-challenge.pem":
        assert found.challenge == "challenge me!"
    if name == "pyca-challenge-unstructured.pem":
        assert found.challenge == "beauty"  # as OpenSSL shows it
    if name in {
        "body-cacerts-good.b64",
        "body-cacerts-crlf.b64",
        "body-cacerts-oneline.b64",
        "body-cacerts-padded.b64",
    }:
        assert len(found) == 1
    if name == "cert-date-1949.der":
        assert time.gmtime(found[0].not_before).tm_year == 1950
    if name == "cert-date-9999.der":
        assert time.gmtime(found[0].not_after).tm_year == 9999
    if name in {"csr-cn-newline.der"} and found is not None:
        assert "\n" not in found.subject_text
    if name == "csr-trailing.der" and found is not None:
        assert pkcs10.parse(found.der).der == found.der


@pytest.mark.parametrize("name", sorted(POLICY))
def test_what_policy_refuses(name: str) -> None:
    """The parser reads it; a profile that gives just that much cannot be met by it."""
    from igelcert.errors import SettingsError
    from igelcert.model import CsrSpec, Subject, SubjectAltName

    read = pkcs10.parse(vector(f"malformed/{name}"))
    plain = [value.decode() for kind, value in read.sans if kind == 2 and not value.startswith(b"*")]
    try:
        subject = Subject(cn=read.cn)
    except SettingsError:
        return
    kind = "rsa_2048" if name == "csr-rsa1024.der" else read.key_type
    spec = CsrSpec(kind, subject, SubjectAltName(hostname=tuple(plain)))
    wanted = {"csr-cn-path.der": None}.get(name, True)
    if wanted:
        assert pkcs10.differences(read, spec)


def test_ber_pairs() -> None:
    """Indefinite length is for libcrypto, which reads a CA's answer; our own reader takes DER alone."""
    pairs = load("malformed/ber-pairs.json")
    for pair in (*pairs["accept"], *pairs["refuse"]):
        with pytest.raises(der.DerError):
            _value(bytes.fromhex(pair["ber"]))
    for pair in pairs["accept"]:
        assert _value(bytes.fromhex(pair["der"])) is not None
    for pair in pairs["refuse"]:
        with pytest.raises(Error):
            crypto.cms_certificates(bytes.fromhex(pair["ber"]))
