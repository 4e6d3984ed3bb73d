"""What the lab CA's SCEP service answers, read by OpenSSL and by plain HTTP: modes, refusals, who may ask."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7

from igelcert import crypto
from igelcert.codec import pkcs10, pkimessage, scep
from igelcert.codec.http import Response
from igelcert.codec.pkimessage import Identity
from igelcert.model import CsrSpec, Issued, Outcome, Refused, Subject
from tests.support.chain import LabCa, lab_ca
from tests.support.tree import openssl


def get(url: str, data: bytes | None = None) -> Response:
    try:
        with urllib.request.urlopen(url, data=data, timeout=10) as answer:
            return Response(answer.status, tuple(answer.headers.items()), answer.read())
    except urllib.error.HTTPError as err:
        return Response(err.code, tuple(err.headers.items()), err.read())


class Client:
    """A SCEP client of our codec; what OpenSSL and the peers make of the same server stands in tests/interop."""

    def __init__(self, url: str, name: str = "lab-client") -> None:
        self.url = url
        self.key = crypto.Key.generate("rsa_2048")
        self.name = name
        subject = pkcs10.encode_name(Subject(cn=name))
        self.mine = Identity(
            self.key, pkimessage.self_signed(self.key, subject, 77, 1_700_000_000, 2_500_000_000)
        )
        self.cas = scep.authorities(scep.cacert_reply(get(f"{url}?operation=GetCACert")))

    def csr(self, challenge: str = "") -> bytes:
        return pkcs10.build(CsrSpec("rsa_2048", Subject(cn=self.name), challenge=challenge), self.key)

    def send(
        self, kind: int, content: bytes, transaction: str = "T1", *, recipient: bytes = b"", by_get: bool = False,
        signer: Identity | None = None,
    ) -> tuple[Response, Outcome | None]:  # fmt: skip
        mine = signer or self.mine
        message = pkimessage.write(
            kind, content, mine, transaction_id=transaction, sender_nonce=bytes(16),
            recipient=pkimessage.Recipient(recipient or self.cas.recipient.der),
        )  # fmt: skip
        request = scep.operation_request(urllib.parse.urlsplit(self.url).path, message, post=not by_get)
        base = self.url[: -len(urllib.parse.urlsplit(self.url).path)]
        response = get(base + request.path, request.body or None)
        if response.status != 200:
            return response, None
        reply = scep.operation_reply(response, self.cas.signers, transaction=transaction, nonce=bytes(16))
        assert not isinstance(reply, Refused)
        return response, scep.outcome(reply, mine)


def test_ejbca_like(tmp_path: Path) -> None:
    (tmp_path / "challenge").write_text("s3cret\n")
    with lab_ca(
        tmp_path / "ca",
        "--scep",
        "127.0.0.1:0",
        "--scep-mode",
        "ejbca",
        "--scep-challenge-file",
        tmp_path / "challenge",
    ) as ca:
        caps = get(f"{ca.scep}?operation=GetCACaps")
        assert b"AES" not in caps.body and b"SHA-256" in caps.body
        assert get(f"{ca.scep}?operation=GetCACaps&message=nobody").status == 404
        assert get(f"{ca.scep}?operation=GetCACert&message=Lab%20Issuing%20CA").status == 200
        assert get(ca.scep.replace("/lab/", "//") + "?operation=GetCACaps").status == 404
        first = pkcs7.load_der_pkcs7_certificates(get(f"{ca.scep}?operation=GetCACert").body)
        assert len(first) == 2
        client = Client(ca.scep)
        missing, _ = client.send(pkimessage.PKCS_REQ, client.csr())
        assert (
            missing.status == 400 and b"No password in request" in missing.body and b"<html>" in missing.body
        )
        assert client.send(pkimessage.RENEWAL_REQ, client.csr("s3cret"))[0].status == 400
        assert isinstance(client.send(pkimessage.PKCS_REQ, client.csr("s3cret"))[1], Issued)
        assert len(ca.issued()) == 1


def test_ndes_like(tmp_path: Path) -> None:
    with lab_ca(tmp_path / "ca", "--scep", "127.0.0.1:0", "--scep-mode", "ndes") as ca:
        assert get(f"{ca.scep}?operation=GetCACaps").header("Content-Type") == ""
        certs = pkcs7.load_der_pkcs7_certificates(get(f"{ca.scep}?operation=GetCACert").body)
        assert len(certs) == 4
        client = Client(ca.scep)
        assert client.cas.recipient.cn == "Lab RA encryption"
        # encrypted for the CA instead: what NDES cannot open
        issuing = next(c for c in client.cas.cas if c.cn == "Lab Issuing CA")
        response, refused = client.send(pkimessage.PKCS_REQ, client.csr(), recipient=issuing.der)
        assert isinstance(refused, Refused) and "0x80090005" in refused.reason
        (tmp_path / "failure").write_bytes(response.body)
        shown = openssl("cms", "-cmsout", "-print", "-noout", "-inform", "DER", "-in", tmp_path / "failure")
        assert "1.3.6.1.4.1.311.21.33" in shown and "sha1" in shown
        assert "certificates:\n      <ABSENT>" in shown
        # the same key gets the same certificate again
        one = client.send(pkimessage.PKCS_REQ, client.csr(), "T1")[1]
        two = client.send(pkimessage.PKCS_REQ, client.csr(), "T2")[1]
        assert isinstance(one, Issued) and one == two and len(ca.issued()) == 1


def test_ca_mode_knows_its_users(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("lab-client one-time\nother x\n")
    with lab_ca(tmp_path / "ca", "--scep", "127.0.0.1:0", "--scep-users", tmp_path / "users") as ca:
        client = Client(ca.scep)
        assert isinstance(client.send(pkimessage.PKCS_REQ, client.csr("x"), "T1")[1], Refused)
        assert isinstance(client.send(pkimessage.PKCS_REQ, client.csr("one-time"), "T2")[1], Issued)
        assert isinstance(client.send(pkimessage.PKCS_REQ, client.csr("one-time"), "T3")[1], Refused), (
            "it was used"
        )
        stranger = Client(ca.scep, "stranger")
        assert isinstance(stranger.send(pkimessage.PKCS_REQ, stranger.csr("one-time"), "T4")[1], Refused)
        assert len(ca.issued()) == 1


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> LabCa:
    with lab_ca(tmp_path_factory.mktemp("lab") / "ca", "--scep", "127.0.0.1:0") as found:
        yield found  # type: ignore[misc]


def test_by_get(ca: LabCa) -> None:
    client = Client(ca.scep)
    assert isinstance(client.send(pkimessage.PKCS_REQ, client.csr(), "G1", by_get=True)[1], Issued)


def test_one_transaction_is_one_certificate(ca: LabCa) -> None:
    client, before = Client(ca.scep), len(ca.issued())
    csr = client.csr()
    one, two = (client.send(pkimessage.PKCS_REQ, csr, "SAME")[1] for _ in range(2))
    assert isinstance(one, Issued) and one == two and len(ca.issued()) == before + 1
    other = Client(ca.scep)
    refused = other.send(pkimessage.PKCS_REQ, other.csr(), "SAME")[1]
    assert isinstance(refused, Refused) and "another request has this transactionID" in refused.reason


def test_get_cert_and_poll(ca: LabCa) -> None:
    client = Client(ca.scep)
    issued = client.send(pkimessage.PKCS_REQ, client.csr(), "CERT")[1]
    assert isinstance(issued, Issued)
    name = pkimessage.issuer_and_serial(issued.certificates[0])
    assert client.send(pkimessage.GET_CERT, name, "GET")[1] == issued
    poll = pkimessage.issuer_and_subject(
        client.cas.recipient.subject_der, pkcs10.encode_name(Subject(cn="lab-client"))
    )
    assert client.send(pkimessage.CERT_POLL, poll, "CERT")[1] == issued
    unknown = client.send(pkimessage.CERT_POLL, poll, "NEVER SEEN")[1]
    assert isinstance(unknown, Refused) and unknown.reason.startswith("badCertId")
    thief = Client(ca.scep)
    assert isinstance(thief.send(pkimessage.CERT_POLL, poll, "CERT")[1], Refused), "signed by another key"


def test_renewal_by_the_old_certificate(tmp_path: Path) -> None:
    (tmp_path / "challenge").write_text("s3cret\n")
    with lab_ca(
        tmp_path / "ca", "--scep", "127.0.0.1:0", "--scep-challenge-file", tmp_path / "challenge"
    ) as ca:
        client = Client(ca.scep)
        issued = client.send(pkimessage.PKCS_REQ, client.csr("s3cret"), "R1")[1]
        assert isinstance(issued, Issued)
        old = Identity(client.key, issued.certificates[0])
        client.key = crypto.Key.generate("rsa_2048")
        for kind in (pkimessage.RENEWAL_REQ, pkimessage.PKCS_REQ):
            renewed = client.send(kind, client.csr(), f"R{kind}", signer=old)[1]
            assert isinstance(renewed, Issued)
            found = x509.load_der_x509_certificate(renewed.certificates[0])
            assert found.serial_number != x509.load_der_x509_certificate(old.cert).serial_number
        # for another name the old certificate is no leave
        client.name = "somebody-else"
        assert isinstance(client.send(pkimessage.PKCS_REQ, client.csr(), "R9", signer=old)[1], Refused)


@pytest.mark.parametrize(
    ("tail", "data", "status"),
    [
        ("?operation=Nothing", None, 400),
        ("", None, 400),
        ("?operation=PKIOperation", b"", 400),
        ("?operation=PKIOperation", b"junk", 400),
        ("?operation=PKIOperation&message=%00", None, 400),
        ("?operation=GetCACert&operation=GetCACaps", None, 400),
        ("?operation=GetNextCACert", None, 400),
    ],
)
def test_nonsense(ca: LabCa, tail: str, data: bytes | None, status: int) -> None:
    answer = get(ca.scep + tail, data)
    assert answer.status == status and b"Traceback" not in answer.body
    assert get(f"{ca.scep}?operation=GetCACaps").status == 200
