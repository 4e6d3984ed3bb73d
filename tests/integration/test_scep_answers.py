"""Answers of a SCEP CA that were damaged, replayed or lost on the way, and a proxy that is killed meanwhile."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from igelcert import crypto
from igelcert.codec import pkcs10, pkimessage
from igelcert.model import CsrSpec, Subject
from tests.support.chain import Device, LabCa, Proxy, lab_ca, proxy, run
from tests.support.meddler import Meddler, meddler
from tests.support.tree import new_csr, openssl

CERT = {
    "friendly_name": "lan",
    "subject": {"auto_cn": "off", "cn": "tc-answers", "org": "Example"},
    "subjaltname": {"auto_hostname": False},
    "key": {"type": "ec_prime256v1"},
}
ENROLL = "/.well-known/est/lan/simpleenroll"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCa]:
    with lab_ca(tmp_path_factory.mktemp("ca") / "ca", "--scep", "127.0.0.1:0") as found:
        yield found


@pytest.fixture(scope="module")
def middle(ca: LabCa) -> Iterator[Meddler]:
    with meddler(ca.scep) as found:
        yield found


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, ca: LabCa, middle: Meddler) -> Iterator[Proxy]:
    # one process: what one has heard of the CA, the others have still to ask for
    with proxy(tmp_path_factory.mktemp("answers") / "proxy", "processes = 1") as found:
        found.use_scep(middle.url, "--fingerprint", ca.root_fingerprint(), "--poll", "1")
        found.profile("answers", CERT, directory="/")
        yield found


@pytest.fixture(scope="module")
def device(gate: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return gate.device(tmp_path_factory.mktemp("device") / "root", "ANSWERS", "tc-a")


@pytest.fixture(autouse=True)
def honest(middle: Meddler) -> Iterator[None]:
    yield
    middle.twist = lambda body: body


def csr(where: Path) -> bytes:
    return new_csr(where / "request.der", "/O=Example/CN=tc-answers")


def issued(body: bytes) -> Any:
    found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
    assert len(found) == 1
    return found[0]


def flip(offset: int) -> Callable[[bytes], bytes]:
    def twist(body: bytes) -> bytes:
        place = offset if offset >= 0 else len(body) + offset
        return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]

    return twist


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (lambda body: body[: len(body) // 2], "not a CMS message"),
        (lambda body: body[:-1], "not a CMS message"),
        (lambda body: body + b"\0", "bytes after the end"),
        (flip(-3), "signature does not verify"),
        (flip(200), ""),
        (lambda body: b"", "no pkiMessage"),
        (lambda body: b"<html>busy</html>", "busy"),
    ],
    ids=["half", "one octet short", "trailing", "signature", "content", "empty", "html"],
)
def test_damaged_answers_are_refused_with_the_reason(
    gate: Proxy, device: Device, middle: Meddler, tmp_path: Path, twist: Callable[[bytes], bytes], reason: str
) -> None:
    middle.twist = twist
    status, _, body = gate.ask("POST", ENROLL, csr(tmp_path), client=device)
    assert status == 502, body
    assert b"the CA's answer is not usable" in body and reason.encode() in body


def test_a_replayed_answer_is_refused(
    gate: Proxy, device: Device, middle: Meddler, ca: LabCa, tmp_path: Path
) -> None:
    assert gate.ask("POST", ENROLL, csr(tmp_path), client=device)[0] == 200
    old = middle.answers[-1]
    middle.twist = lambda _: old
    status, _, body = gate.ask("POST", ENROLL, csr(tmp_path), client=device)
    assert status == 502 and b"transactionID is that of another request" in body


def test_an_old_answer_to_the_same_transaction_is_refused(
    gate: Proxy, device: Device, middle: Meddler, tmp_path: Path
) -> None:
    """The nonce is what tells: the transaction is the same when the same request is sent again."""
    request = csr(tmp_path)
    middle.twist = lambda _: None
    assert gate.ask("POST", ENROLL, request, client=device)[0] == 503
    old = middle.answers[-1]
    middle.twist = lambda _: old
    status, _, body = gate.ask("POST", ENROLL, request, client=device)
    assert status == 502 and b"recipientNonce" in body


def test_an_answer_signed_by_a_stranger_is_refused(
    gate: Proxy, device: Device, middle: Meddler, tmp_path: Path
) -> None:
    with lab_ca(tmp_path / "stranger", "--scep", "127.0.0.1:0") as stranger:
        # first an honest one: what is known of the CA is known then
        assert gate.ask("POST", ENROLL, csr(tmp_path), client=device)[0] == 200
        request, taken = csr(tmp_path), []

        def twist(body: bytes) -> bytes:
            taken.append(body)
            return body

        # the stranger answers the very request: it cannot open it, yet signs a refusal
        target, middle.target = middle.target, stranger.scep.rsplit("/", 1)[0]
        try:
            middle.twist = twist
            status, _, body = gate.ask("POST", ENROLL, request, client=device)
        finally:
            middle.target = target
    assert taken and status == 502
    assert b"none of the certificates that may sign" in body


def test_a_device_cannot_pose_as_the_ra(
    gate: Proxy, device: Device, middle: Meddler, ca: LabCa, tmp_path: Path
) -> None:
    """On plain HTTP, with its own certificate of that CA: it would read the challenge passwords of others."""
    request = new_csr(tmp_path / "ra.der", "/O=Example/CN=tc-answers", "", "-newkey", "rsa:2048")
    mine = {**CERT, "friendly_name": "ra", "key": {"type": "rsa_2048"}}
    gate.profile("answers", CERT, mine, directory="/")
    status, _, body = gate.ask("POST", ENROLL.replace("lan", "ra"), request, client=device)
    assert status == 200, body
    own = issued(body)

    def twist(cas: bytes) -> bytes:
        found = [*pkcs7.load_der_pkcs7_certificates(cas), own]
        return pkcs7.serialize_certificates(found, Encoding.DER)

    seen = len(middle.answers)
    middle.twist_cas = twist
    try:
        # the configuration is set again, so that what is known of the server is forgotten
        gate.use_scep(middle.url, "--fingerprint", ca.root_fingerprint(), "--poll", "1")
        status, _, body = gate.ask("POST", ENROLL, csr(tmp_path), client=device)
        assert status == 502 and b"a device's certificate" in body, body
        done = run("ca-proxy", "ca", "test", env={"CA_PROXY_DATA": str(gate.data)})
        assert done.returncode == 1 and "somebody may stand between" in done.stdout
    finally:
        middle.twist_cas = lambda body: body
    assert len(middle.answers) == seen, "nothing was encrypted for it"
    gate.use_scep(middle.url, "--fingerprint", ca.root_fingerprint(), "--poll", "1")
    assert gate.ask("POST", ENROLL, csr(tmp_path), client=device)[0] == 200


def test_a_lost_answer_costs_no_second_certificate(
    gate: Proxy, device: Device, middle: Meddler, ca: LabCa, tmp_path: Path
) -> None:
    before = len(ca.issued())
    request = csr(tmp_path)
    middle.twist = lambda _: None
    status, headers, body = gate.ask("POST", ENROLL, request, client=device)
    assert status == 503 and "retry-after" in headers and b"broke off" in body
    assert len(ca.issued()) == before + 1, "the CA has issued it"
    middle.twist = lambda answer: answer
    status, _, body = gate.ask("POST", ENROLL, request, client=device)
    assert status == 200
    assert len(ca.issued()) == before + 1
    made = x509.load_pem_x509_certificate(max(ca.issued(), key=os.path.getmtime).read_bytes())
    assert issued(body) == made
    # and once more, now out of the proxy's own record
    count = len(middle.answers)
    assert issued(gate.ask("POST", ENROLL, request, client=device)[2]) == made
    assert len(middle.answers) == count


def test_killed_between_pending_and_issue(tmp_path: Path) -> None:
    with lab_ca(tmp_path / "ca", "--scep", "127.0.0.1:0", "--pending", "5s") as ca:
        request = csr(tmp_path)
        data = tmp_path / "proxy"
        with proxy(data) as gate:
            gate.use_scep(ca.scep, "--poll", "1")
            gate.profile("answers", CERT, directory="/")
            device = gate.device(tmp_path / "root", "KILLED", "tc-k")
            status, headers, _ = gate.ask("POST", ENROLL, request, client=device)
            assert status == 202 and headers["retry-after"] == "1"
            # not asked to stop: killed, with its worker
            pid = json.loads((data / "run.json").read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            time.sleep(1.5)
        assert ca.issued() == []
        (data / "run.json").unlink(missing_ok=True)
        with proxy(data) as gate:
            deadline = time.monotonic() + 30
            while (answer := gate.ask("POST", ENROLL, request, client=device))[0] == 202:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert answer[0] == 200, answer
        assert len(ca.issued()) == 1
        assert issued(answer[2]) == x509.load_pem_x509_certificate(ca.issued()[0].read_bytes())


def test_an_old_certificate_again_is_refused(tmp_path: Path) -> None:
    """NDES gives the certificate that it has for a key; what was given out once is no answer to another request."""
    first = csr(tmp_path)
    again = tmp_path / "again.der"
    openssl("req", "-new", "-key", tmp_path / "request.key", "-subj", "/O=Example/CN=tc-answers",
            "-outform", "DER", "-out", again)  # fmt: skip
    with (
        lab_ca(tmp_path / "ca", "--scep", "127.0.0.1:0", "--scep-mode", "ndes") as ca,
        proxy(tmp_path / "proxy") as gate,
    ):
        gate.use_scep(ca.scep, "--fingerprint", ca.root_fingerprint())
        gate.profile("answers", CERT, directory="/")
        device = gate.device(tmp_path / "root", "OLDCERT", "tc-o")
        assert gate.ask("POST", ENROLL, first, client=device)[0] == 200
        assert again.read_bytes() != first
        status, _, body = gate.ask("POST", ENROLL, again.read_bytes(), client=device)
        assert status == 502 and b"an old certificate again" in body
        assert len(ca.issued()) == 1


def test_a_transaction_belongs_to_the_device_that_began_it(gate: Proxy, ca: LabCa, tmp_path: Path) -> None:
    """In pass-through: nobody polls for another device's certificate, or counts as its owner."""
    gate.use_scep(ca.scep, "--fingerprint", ca.root_fingerprint())
    gate.profile("passing", {**CERT, "friendly_name": "pass", "key": {"type": "rsa_2048"}}, directory="/Pass")
    gate.cli("profile", "passthrough", "passing", "on")
    key = crypto.Key.generate("rsa_2048")
    subject = Subject(cn="tc-pass")
    name = pkcs10.encode_name(subject)
    mine = pkimessage.Identity(key, pkimessage.self_signed(key, name, 7, 1_700_000_000, 2_500_000_000))
    issuing = x509.load_pem_x509_certificate((ca.dir / "issuing.pem").read_bytes()).public_bytes(Encoding.DER)
    message = pkimessage.write(
        pkimessage.PKCS_REQ, pkcs10.build(CsrSpec("rsa_2048", subject), key), mine, transaction_id="ONE",
        sender_nonce=bytes(16), recipient=pkimessage.Recipient(issuing),
    )  # fmt: skip
    where = "/scep/pass?operation=PKIOperation"
    owner, other = (
        gate.device(tmp_path / unit, unit, f"tc-{unit}", directory="/Pass") for unit in ("PASS1", "PASS2")
    )
    assert gate.ask("POST", where, message, client=owner)[0] == 200
    status, _, body = gate.ask("POST", where, message, client=other)
    assert status == 403 and b"another device uses this transactionID" in body
    assert gate.ask("POST", where, message, client=owner)[0] == 200
