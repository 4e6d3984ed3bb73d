"""EST bodies: the RFCs' own examples, recorded ones of libest, and answers of every kind (est/, est/gen/)."""

from __future__ import annotations

import base64
import calendar
import re

import pytest
from cryptography import x509
from pyasn1.codec.der import decoder
from pyasn1.type import univ

from igelcert import crypto
from igelcert.codec import answer, est, pem, pkcs10
from igelcert.codec.http import Response
from igelcert.errors import CheckError, Error, RemoteProtocolError
from igelcert.model import Issued, Pending, Refused
from tests.support.vectors import cases, load, vector

AT = 1_796_000_000  # 2026-11-30
GEN = "est/gen/"


def body(name: str) -> Response:
    return Response(200, (), vector(name))


def csr(name: str) -> pkcs10.CertificationRequest:
    return pkcs10.parse(est.csr_from_request(vector(name), "application/pkcs10"))


def certs(name: str) -> list[crypto.Certificate]:
    return [crypto.parse_certificate(der) for der in est.cacerts_reply(body(name))]


# ---- certificates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", cases("est", r".*\.crt") + [f"gen/{name}" for name in cases("est/gen", r".*\.crt\.pem")]
)
def test_certificate_files(name: str) -> None:
    data = vector(f"est/{name}")
    found = [crypto.parse_certificate(der) for der in pem.decode_pem(data)]
    theirs = x509.load_pem_x509_certificates(data)
    assert [cert.serial for cert in found] == [cert.serial_number for cert in theirs]
    assert len(found) == (2 if "multicacerts" in name else 1)


@pytest.mark.parametrize("name", ["rfc7030-a1-cacerts.b64", "rfc7030-a1-cacerts.der"])
def test_the_cacerts_of_rfc_7030(name: str) -> None:
    found = certs(f"est/{name}")
    about = load("est/rfc7030-a1-cacerts.json")
    assert sorted(f"subject=CN = {cert.cn}" for cert in found) == sorted(
        line.strip() for line in about["subjects"]
    )
    assert len(found) == about["certificates"] == 4
    assert {cert.cn for cert in found} == {f"estExampleCA {kind}" for kind in ("OwO", "OwN", "NwO", "NwN")}
    assert any(cert.serial_hex == "9A58DE75193B7A9C" or cert.serial == 0x9A58DE75193B7A9C for cert in found)


def test_the_enrollment_of_rfc_7030() -> None:
    request = csr("est/rfc7030-a3-simpleenroll-request.b64")
    assert (request.cn, request.key_type, request.challenge) == (
        "demostep4 1368141352",
        "rsa_2048",
        "+rrCir/7+EYu50T4",
    )
    outcome = est.enroll_reply(body("est/rfc7030-a3-simpleenroll-response.b64"), AT)
    assert isinstance(outcome, Issued) and len(outcome.certificates) == 1
    cert = crypto.parse_certificate(outcome.certificates[0])
    assert (cert.serial, cert.spki) == (21, request.spki) and "estExampleCA NwN" in cert.issuer_text


def test_a_recorded_answer() -> None:
    outcome = est.enroll_reply(body("est/libest-tc2-new-cert.pkcs7b64"), AT)
    assert isinstance(outcome, Issued) and len(outcome.certificates) == 1


@pytest.mark.parametrize(
    ("name", "count"),
    [("cacerts-chain.b64", 2), ("cacerts-intermediate-only.b64", 1), ("cacerts-rollover.b64", 4)],
)
def test_cacerts(name: str, count: int) -> None:
    found = certs(GEN + name)
    assert len(found) == count
    if name == "cacerts-rollover.b64":
        # by key and not by name: two anchors, two links
        assert len({cert.subject_der for cert in found}) == 1
        anchors = [cert for cert in found if _self_signed(cert)]
        assert len(anchors) == 2 and len({cert.spki for cert in anchors}) == 2


def _self_signed(cert: crypto.Certificate) -> bool:
    try:
        return crypto.verify_chain(cert.der, [], [cert.der], AT) == [cert.der]
    except Error:
        return False


@pytest.mark.parametrize("name", ["cacerts-empty.b64", "cacerts-html.txt"])
def test_cacerts_that_are_none(name: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        certs(GEN + name)
    assert "\n" not in str(caught.value)


# ---- requests -------------------------------------------------------------------------------------

REQUESTS = {
    "libest-midsize.csr": "ec_prime256v1",
    "libest-pkcs10_4096_req.p10.b64": "rsa_4096",
    "libest-pkcs10_ecdsa256.p10.b64": "ec_prime256v1",
    "libest-pkcs10_rsa2048.p10.b64": "rsa_2048",
    "libest-pkcs10_stale_pop.p10.b64": "rsa_1024",
    "rfc7030-a3-simpleenroll-request.b64": "rsa_2048",
    "rfc7030-a4-serverkeygen-request.b64": "rsa_2048",
    "gen/enroll-request.b64": "ec_prime256v1",
}


@pytest.mark.parametrize("name", REQUESTS)
def test_request(name: str) -> None:
    found = csr(f"est/{name}")
    assert found.key_type == REQUESTS[name]
    theirs = x509.load_der_x509_csr(found.der)
    assert found.cn == theirs.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    assert (found.challenge is not None) == ("stale_pop" in name or "rfc7030" in name) or found.challenge


@pytest.mark.parametrize(
    ("name", "sentence"),
    # the altered octet of the first stands in a name, which is read before the signature is looked at
    [("libest-pkcs10_corrupt.p10.b64", "control character"), ("libest-pkcs10_dsa1024.p10.b64", "dsa")],
)
def test_request_that_must_be_refused(name: str, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError, match=sentence):
        csr(f"est/{name}")


# ---- answers to an enrollment ---------------------------------------------------------------------

# The CA of these left the alternative name of the request out, which is said; and what else is odd.
SAN = "the CA changed the subject alternative names"
GOOD = {"one": "", "chain": "", "chain-reversed": "", "other-name": "the CA changed the subject from",
        "two-for-one-key": "2 certificates for our key"}  # fmt: skip
BAD = {"other-key": "key", "foreign-ca": "chain", "expired": "expired"}


def judged(name: str) -> answer.Bundle:
    request = csr(f"{GEN}enroll-request.b64")
    outcome = est.enroll_reply(body(f"{GEN}enroll-response-{name}.b64"), AT)
    assert isinstance(outcome, Issued)
    cas = pem.decode_pem(vector(f"{GEN}root.crt.pem")) + pem.decode_pem(vector(f"{GEN}issuing-ca.crt.pem"))
    return answer.check(outcome.certificates, cas, request.spki, AT, request=request)


@pytest.mark.parametrize("name", GOOD)
def test_answer(name: str) -> None:
    try:
        found = judged(name)
    except CheckError:
        assert name == "two-for-one-key"  # neither is newer: refusing is right, silence would not be
        return
    assert found.cert.spki == csr(f"{GEN}enroll-request.b64").spki
    assert SAN in found.warnings
    rest = [warning for warning in found.warnings if warning != SAN]
    assert bool(rest) == bool(GOOD[name]) and all(GOOD[name] in warning for warning in rest)


@pytest.mark.parametrize("name", BAD)
def test_answer_that_must_be_refused(name: str) -> None:
    with pytest.raises(CheckError, match=BAD[name]):
        judged(name)


def test_every_answer_is_tried() -> None:
    vector("INDEX.md")
    assert set(cases("est/gen", r"enroll-response-.*")) == {
        f"enroll-response-{name}.b64" for name in (*GOOD, *BAD)
    }


HTTP_CASES = ["retry in seconds", "retry at a date", "no Retry-After", "absurd Retry-After", "negative Retry-After",
              "manual approval text", "401 basic", "401 digest", "400 text", "400 html", "403", "404 label", "503 busy",
              "500 CMC error", "204 csrattrs", "404 csrattrs", "200 empty enrol", "redirect same origin",
              "redirect elsewhere"]  # fmt: skip


@pytest.mark.parametrize("name", HTTP_CASES)
def test_http_answer(name: str) -> None:
    every = load("est/gen/http-answers.json")
    assert [each["name"] for each in every] == HTTP_CASES
    about = next(each for each in every if each["name"] == name)
    response = Response(about["status"], tuple(about["headers"].items()), about["body"].encode())
    if "csrattrs" in name:
        assert est.csrattrs_reply(response) == est.CsrAttrs()
        return
    now = 1_987_977_599 - 600 + 29_354_400  # any moment: only the header counts
    if name == "retry at a date":
        now = calendar.timegm((2032, 12, 31, 23, 49, 59))
    if name == "200 empty enrol":
        with pytest.raises(RemoteProtocolError, match="empty"):
            est.enroll_reply(response, now)
        return
    outcome = est.enroll_reply(response, now)
    if about["status"] == 202:
        assert isinstance(outcome, Pending)
        wanted = {
            "retry in seconds": 120,
            "retry at a date": 600,
            "absurd Retry-After": 86_400,
            "manual approval text": 3600,
        }
        assert outcome.retry_after == wanted.get(name, 60)
        assert outcome.reason == about["body"]
        return
    assert isinstance(outcome, Refused) and outcome.status == about["status"]
    texts = {"400 text": "Schlüssel zu kurz", "400 html": "Bad Request Username not found"}
    if name in texts:
        assert re.sub(r"\s+", " ", outcome.reason) == texts[name]
    assert outcome.reason and outcome.retry_after == (30 if name == "503 busy" else None)


# ---- csrattrs -------------------------------------------------------------------------------------

ATTRS: dict[str, set[str]] = {
    "est/libest-test_1024_nopop.csrattrs.b64": set(),
    "est/libest-test_1025_nopop.csrattrs.b64": set(),
    "est/libest-test_all_attr.csrattrs.b64": set(),
    "est/libest-test_attr1.csrattrs.b64": {est.CHALLENGE_PASSWORD, "1.3.132.0.34"},
    "est/libest-test_attr2.csrattrs.b64": set(),
    "est/libest-test_attr_nopop.csrattrs.b64": set(),
    "est/libest-test_attr_nopoppop.csrattrs.b64": {est.CHALLENGE_PASSWORD},
    "est/libest-test_attr_pop.csrattrs.b64": {est.CHALLENGE_PASSWORD},
    "est/rfc7030-a2-csrattrs.b64": {"2.999.1", est.CHALLENGE_PASSWORD, "2.999.2"},
    "est/rfc8951-4.5.2-csrattrs.b64": {est.CHALLENGE_PASSWORD, est.EXTENSION_REQUEST, "1.2.840.10045.4.3.3"},
    "est/rfc9908-harkins01.csrattrs.b64": {est.CHALLENGE_PASSWORD, "1.2.840.113549.1.1.1"},
    "est/rfc9908-harkins02.csrattrs.b64": {"1.2.840.10045.2.1", "2.5.4.5"},
    "est/rfc9908-harkins03.csrattrs.b64": {"1.2.840.10045.2.1", "1.2.840.113549.1.9.20"},
    "est/rfc9908-realistic-acp.csrattrs.b64": {est.EXTENSION_REQUEST},
    "est/rfc9908-rfc7030-example01.csrattrs.b64": {est.CHALLENGE_PASSWORD, "1.3.6.1.1.1.1.22"},
    "est/gen/csrattrs-contradiction.b64": set(),
    "est/gen/csrattrs-extreq-san.b64": {est.EXTENSION_REQUEST},
    "est/gen/csrattrs-rsa3072.b64": set(),
    "est/gen/csrattrs-template-and-legacy.b64": {est.TEMPLATE},
    "est/gen/csrattrs-template.b64": {est.TEMPLATE},
}  # fmt: skip
EMPTY = {"est/libest-test_attr2.csrattrs.b64"}  # which pyasn1 does not take for a sequence
TYPES = {
    "est/rfc7030-a2-csrattrs.b64": ("ec_brainpoolP384r1",),
    "est/rfc8951-4.5.2-csrattrs.b64": ("ec_secp384r1",),
    "est/rfc9908-harkins01.csrattrs.b64": ("rsa_4096",),
    "est/rfc9908-harkins02.csrattrs.b64": ("ec_secp384r1",),
    "est/rfc9908-harkins03.csrattrs.b64": ("ec_secp521r1",),
    "est/gen/csrattrs-rsa3072.b64": ("rsa_3072",),
    "est/gen/csrattrs-contradiction.b64": ("ec_secp384r1", "rsa_2048"),
}


@pytest.mark.parametrize("name", ATTRS)
def test_csrattrs(name: str) -> None:
    found = est.csrattrs_reply(body(name))
    assert ATTRS[name] <= set(found.oids)
    assert found.wants_challenge == (est.CHALLENGE_PASSWORD in found.oids)
    assert found.template == ("template" in name)
    if name in TYPES:
        assert found.key_types == TYPES[name]
    if "contradiction" in name:
        assert any("several key types" in warning for warning in found.warnings)
    if found.wants_challenge:
        assert any("tls-unique" in warning and "unsupported" in warning for warning in found.warnings)
    if "extreq-san" in name:
        assert [oid for oid, _, _ in found.extensions] == [pkcs10.SUBJECT_ALT_NAME]
    if name.endswith("attr2.csrattrs.b64"):
        assert found == est.CsrAttrs()
    theirs, rest = decoder.decode(base64.b64decode(vector(name)))
    assert rest == b""
    entries = [theirs[at] for at in range(len(theirs))] if name not in EMPTY else []
    kinds = (univ.SequenceOf, univ.Sequence)  # pyasn1 takes a SEQUENCE of equal things for a SEQUENCE OF
    wanted = [each[0] if isinstance(each, kinds) else each for each in entries]
    assert list(found.oids) == [str(each) for each in wanted if isinstance(each, univ.ObjectIdentifier)]


@pytest.mark.parametrize("name", ["est/libest-test_attr7.csrattrs.b64", "est/gen/csrattrs-not-sequence.b64"])
def test_csrattrs_that_must_be_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        est.csrattrs_reply(body(name))


def test_every_csrattrs_is_tried() -> None:
    vector("INDEX.md")
    listed = {
        f"{folder}/{name}" for folder in ("est", "est/gen") for name in cases(folder, r".*csrattrs.*\.b64")
    }
    assert listed <= set(ATTRS) | {"est/libest-test_attr7.csrattrs.b64", "est/gen/csrattrs-not-sequence.b64"}
