"""SCEP messages: recorded from other programs, and a generated set with every kind of damage."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

from igelcert import crypto
from igelcert.codec import answer, ndes, pkcs10, pkimessage, scep
from igelcert.codec.http import Response
from igelcert.codec.pem import decode_pem
from igelcert.codec.pkimessage import Identity
from igelcert.errors import CheckError, CryptoError, Error, RemoteProtocolError
from igelcert.model import Issued, Pending, Refused
from tests.support.vectors import cases, load, vector

GEN = "scep/gen/"
TRANSACTION = "A1B2C3D4E5F60718293A4B5C6D7E8F9001122334"
NONCE = bytes(range(16))
NEVER = {"pkcsreq-3des-md5.der"}  # a CA need not allow it, and ours does not


def certificate(name: str) -> bytes:
    return decode_pem(vector(f"{GEN}{name}.crt.pem"))[0]


def private(path: str) -> crypto.Key:
    handle = os.memfd_create("key")
    try:
        os.write(handle, vector(path))
        os.lseek(handle, 0, os.SEEK_SET)
        return crypto.Key.read(handle, b"")
    except CryptoError:
        os.lseek(handle, 0, os.SEEK_SET)
        return crypto.Key.read(handle)
    finally:
        os.close(handle)


def identity(name: str) -> Identity:
    return Identity(private(f"{GEN}{name}.key.pem"), certificate(name))


def expected(name: str) -> dict[str, Any]:
    found = load(GEN + "expected.json").get(name) or load(GEN + "expected-ber.json").get(name)
    assert isinstance(found, dict), name
    return found


def judge(
    data: bytes,
    *,
    opener: str = "device-self",
    signers: tuple[str, ...] = ("ca", "ra-sign"),
    legacy: bool = False,
) -> Issued | Pending | Refused:
    """Everything that the proxy looks at, in its order; raises an Error."""
    known = crypto.CertificateSet(map(certificate, signers))
    reply = scep.operation_reply(Response(200, (), data), known, transaction=TRANSACTION, nonce=NONCE)
    assert not isinstance(reply, Refused)
    mine = identity(opener)
    outcome = scep.outcome(reply, mine, legacy=legacy)
    if isinstance(outcome, Issued):
        issued = crypto.parse_certificate(
            certificate("device-ec-issued" if opener == "transport" else "device-issued")
        )
        bundle = answer.check(outcome.certificates, [certificate("ca")], issued.spki, issued.not_before + 60)
        assert bundle.cert == issued
    return outcome


# ---- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", cases("scep/gen", r"(pkcsreq|renewalreq|certpoll|getcert|getcrl|bad-pkcsreq|ber-pkcsreq).*\.der")
)
def test_requests(name: str) -> None:
    data, want = vector(GEN + name), expected(name)
    opener = identity("ra-enc" if name == "pkcsreq-to-ra.der" else "ca")
    if name in NEVER or name.startswith("bad-pkcsreq-tid"):
        with pytest.raises(RemoteProtocolError):
            pkimessage.read(data, enclosed=True, weak=True).open(opener, weak=True)
        return
    message = pkimessage.read(data, enclosed=True, weak=True)
    content, _cipher = message.open(opener, weak=True)
    assert message.transaction_id == ("APPLE-0A1B2C3D4E5F" if name.startswith("ber-") else TRANSACTION)
    if "messageType" in want:
        assert str(message.kind) == want["messageType"]
        assert message.sender_nonce == bytes.fromhex(want["senderNonce"])
    if name == "bad-pkcsreq-not-csr.der":
        with pytest.raises(RemoteProtocolError):
            pkcs10.parse(content)
    elif name == "certpoll.der":
        issuer, subject = pkimessage.read_issuer_and_subject(content)
        assert issuer == crypto.parse_certificate(certificate("ca")).subject_der
        assert subject == pkcs10.parse(vector(GEN + "csr.der")).subject_der
    elif name in {"getcert.der", "getcrl.der"}:
        issued = crypto.parse_certificate(certificate("device-issued"))
        assert pkimessage.read_issuer_and_serial(content) == (issued.issuer_der, issued.serial)
    elif name == "renewalreq.der":
        assert pkcs10.parse(content).challenge is None
        assert message.signer == certificate("device-issued")
    else:
        want_csr = vector(GEN + (want.get("content") or "csr.der"))
        assert content == want_csr
        assert pkcs10.parse(content).challenge == "s3cret-1"


def test_sha1_and_triple_des_need_leave() -> None:
    data = vector(GEN + "pkcsreq-3des-sha1.der")
    with pytest.raises(RemoteProtocolError, match="SHA-1"):
        pkimessage.read(data, enclosed=True)
    with pytest.raises(RemoteProtocolError, match="triple DES"):
        pkimessage.read(data, enclosed=True, weak=True).open(identity("ca"))


def test_what_is_for_the_ra_does_not_open_for_the_ca() -> None:
    message = pkimessage.read(vector(GEN + "pkcsreq-to-ra.der"), enclosed=True)
    with pytest.raises(RemoteProtocolError, match="somebody else"):
        message.open(identity("ca"))


# ---- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("scep/gen", r"certrep-success.*\.der"))
def test_success(name: str) -> None:
    opener = "transport" if "transport" in name else "device-self"
    legacy = "sha1" in name
    if legacy:
        with pytest.raises(RemoteProtocolError, match="triple DES"):
            judge(vector(GEN + name))
    assert isinstance(judge(vector(GEN + name), opener=opener, legacy=legacy), Issued)


def test_an_answer_with_a_ber_envelope() -> None:
    message = pkimessage.read(
        vector(GEN + "ber-certrep-envelope.der"), crypto.CertificateSet([certificate("ca")])
    )
    found = scep.outcome(message, identity("device-self"))
    assert isinstance(found, Issued) and certificate("device-issued") in found.certificates


def test_an_answer_without_certificates_needs_those_of_getcacert() -> None:
    with pytest.raises(RemoteProtocolError, match="none of the certificates that may sign"):
        judge(vector(GEN + "certrep-success-nocerts.der"), signers=("other-ca",))
    with pytest.raises(RemoteProtocolError, match="none of the certificates that may sign"):
        judge(vector(GEN + "certrep-success-ra.der"), signers=("ca",))


def test_pending() -> None:
    assert isinstance(judge(vector(GEN + "certrep-pending.der")), Pending)


@pytest.mark.parametrize(
    "name", [*cases("scep/gen", r"certrep-failure.*\.der"), "bad-certrep-failinfo99.der"]
)
def test_failure(name: str) -> None:
    found = judge(vector(GEN + name))
    assert isinstance(found, Refused)
    word = expected(name)["failInfo"]
    shown = {
        "0": "badAlg",
        "1": "badMessageCheck",
        "2": "badRequest",
        "3": "badTime",
        "4": "badCertId",
        "99": "99",
    }
    assert shown[word] in found.reason


REFUSALS = {
    "digest": "message digest",
    "nonce": "recipientNonce",
    "nononce": "no recipientNonce",
    "nostatus": "pkiStatus is missing",
    "status9": "pkiStatus 9 is unknown",
    "status-twice": "ambiguous",
    "mt-twice": "ambiguous",
    "tid": "transactionID",
    "type": "messageType 19",
    "signature": "signature does not verify",
    "othersigner": "none of the certificates that may sign",
    "selfsigned-by-device": "none of the certificates that may sign",
    "recipient": "somebody else",
    "padding": "does not decrypt",
    "trailing": "bytes after the end",
    "success-nocontent": "nothing to open",
    "success-emptycerts": "no certificate",
    "wrongkey": "belongs to our key",
    "foreign-cert": "no chain leads",
}


@pytest.mark.parametrize("name", cases("scep/gen", r"bad-certrep-.*\.der"))
def test_damaged_answers(name: str) -> None:
    kind = name.removeprefix("bad-certrep-").removesuffix(".der")
    if kind in {"unsorted", "mt-utf8"}:  # peers send such
        assert isinstance(judge(vector(GEN + name)), Issued)
        return
    if kind == "failinfo99":
        assert "99" in judge(vector(GEN + name)).reason  # type: ignore[union-attr]
        return
    with pytest.raises((RemoteProtocolError, CheckError), match=REFUSALS[kind]):
        judge(vector(GEN + name))


def test_wrong_padding_and_a_wrong_key_are_one_sentence() -> None:
    """No oracle (RFC 8894 7.1): whoever damages an answer learns nothing of which step failed."""
    message = pkimessage.read(vector(GEN + "certrep-success.der"), crypto.CertificateSet([certificate("ca")]))
    impostor = Identity(private(GEN + "transport.key.pem"), certificate("device-self"))
    with pytest.raises(RemoteProtocolError) as wrong_key:
        message.open(impostor)
    with pytest.raises(RemoteProtocolError) as wrong_padding:
        judge(vector(GEN + "bad-certrep-padding.der"))
    assert str(wrong_key.value) == str(wrong_padding.value)


@pytest.mark.parametrize("name", cases("malformed", r"certrep-.*\.der"))
def test_mutants(name: str) -> None:
    from tests.support.vectors import index

    if index()["malformed"][name].startswith("must be refused"):
        with pytest.raises(Error):
            judge(vector("malformed/" + name))
        return
    # damaged outside what is signed: accepted or refused, never another certificate
    with contextlib.suppress(Error):
        judge(vector("malformed/" + name))


# ---- GetCACaps, GetCACert, queries --------------------------------------------------------------


def test_capabilities() -> None:
    rows = load("scep/getcacaps.json")
    assert len(rows) > 10
    for row in rows:
        kind = (("Content-Type", row["content_type"]),) if row["content_type"] else ()
        caps = scep.caps_reply(Response(200, kind, row["body"].encode()))
        assert all(word in caps for word in row["keywords"]), row["server"]
        known = {
            "AES",
            "DES3",
            "GetNextCACert",
            "POSTPKIOperation",
            "Renewal",
            "SCEPStandard",
            "SHA-1",
            "SHA-256",
            "SHA-512",
        }
        for word in known - set(row["keywords"]):
            assert word not in caps or "SCEPStandard" in row["keywords"], (row["server"], word)
    assert scep.caps_reply(Response(404, (), b"AES\nSHA-256")).words == ()


@pytest.mark.parametrize(
    ("words", "legacy", "want"),
    [
        ("SCEPStandard", False, ("sha256", "aes-256-cbc")),
        ("POSTPKIOperation Renewal SHA-512 SHA-256 SHA-1 DES3", False, ("sha256", "aes-256-cbc")),
        ("POSTPKIOperation Renewal SHA-512 SHA-256 SHA-1 DES3", True, ("sha256", "des-ede3-cbc")),
        ("SHA-512 AES", False, ("sha512", "aes-256-cbc")),
        ("SHA-1 DES3", False, None),
        ("SHA-1 DES3", True, ("sha1", "des-ede3-cbc")),
        ("", False, None),
    ],
)
def test_algorithms(words: str, legacy: bool, want: tuple[str, str] | None) -> None:
    caps = scep.Capabilities(tuple(words.split()))
    if want is None:
        with pytest.raises(CheckError, match="neither SHA-256 nor SHA-512"):
            caps.algorithms(legacy=legacy)
    else:
        found = caps.algorithms(legacy=legacy)
        assert (found.digest, found.cipher) == want


def received(name: str) -> list[crypto.Certificate]:
    return scep.cacert_reply(Response(200, (), vector(GEN + name)))


@pytest.mark.parametrize(
    ("name", "recipient", "root"),
    [
        ("getcacert-single.der", "ca", "ca"),
        ("ca.crt.pem", "ca", "ca"),
        ("getcacert-base64.txt", "ca", "ca"),
        ("getcacert-ra.p7", "ra-enc", "ca"),
        ("getcacert-chain.p7", "issuing-ca", None),
        ("getcacert-chain-reversed.p7", "issuing-ca", None),
    ],
)
def test_ca_certificates(name: str, recipient: str, root: str | None) -> None:
    found = scep.authorities(received(name))
    assert found.recipient.der == certificate(recipient)
    assert found.root is not None and found.root.self_issued
    if root:
        assert found.root.der == certificate(root)
    for digits in (32, 40, 64):
        pinned = scep.authorities(received(name), scep.fingerprint_of(found.root, digits))
        assert pinned.root == found.root


@pytest.mark.parametrize("name", ["getcacert-empty.p7", "getcacert-login.html"])
def test_no_ca_certificates(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"no CA certificate|not a certificate"):
        received(name)


def test_two_roots_need_a_fingerprint() -> None:
    certs = received("getcacert-two-self-signed.p7")
    with pytest.raises(CheckError, match="unrelated root"):
        scep.authorities(certs)
    for cert in certs:
        assert scep.authorities(certs, scep.fingerprint_of(cert, 64)).recipient == cert
    with pytest.raises(CheckError, match="none of the server's"):
        scep.authorities(certs, "00" * 20)


def test_next_ca() -> None:
    data = vector(GEN + "getnextcacert.p7")
    known = crypto.CertificateSet([certificate("ca")])
    found = scep.next_cacert_reply(Response(200, (), data), known)
    assert certificate("next-ca") in [cert.der for cert in found]
    with pytest.raises(RemoteProtocolError, match="none of the certificates"):
        scep.next_cacert_reply(Response(200, (), data), crypto.CertificateSet([certificate("other-ca")]))
    bad = bytearray(data)
    bad[-1] ^= 1
    with pytest.raises(RemoteProtocolError, match="signature"):
        scep.next_cacert_reply(Response(200, (), bytes(bad)), known)


def test_queries() -> None:
    rows = load(GEN + "get-queries.json")
    message = vector(GEN + rows["message_file"])
    for row in rows["queries"]:
        try:
            operation, text = scep.read_query(row["query"])
            found = scep.read_operation("GET", text, b"") if operation == "PKIOperation" else None
        except RemoteProtocolError:
            found = None
        if row["accept"] is not None:
            assert (found == message) is row["accept"], row["name"]
        else:
            assert found in {None, message}, row["name"]


# ---- recorded -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["gutmann-req2", "micromdm-PKCSReq", "windows-PKCSReq", "micromdm-CertRep"])
def test_recorded_messages(stem: str) -> None:
    note = load(f"scep/{stem}.json")
    data = vector(f"scep/{stem}.der")
    message = pkimessage.read(data, enclosed=True, weak=True)
    assert str(message.kind) == note["messageType"]
    assert message.transaction_id == note["transactionID"]
    assert message.digest == note["digest"]
    assert message.sender_nonce == (bytes.fromhex(note["senderNonce"]) if "senderNonce" in note else None)
    if "recipientNonce" in note:
        assert message.recipient_nonce == bytes.fromhex(note["recipientNonce"])
    assert len(message.content or b"") == note["content_bytes"]
    if note["digest"] == "sha1":
        with pytest.raises(RemoteProtocolError, match="SHA-1"):
            pkimessage.read(data, enclosed=True)


def test_the_samples_of_the_author_nest() -> None:
    """Level 2 carries level 1, which nobody here can open; level 0 is a request."""
    message = pkimessage.read(vector("scep/gutmann-req2.der"), enclosed=True)
    assert message.content == vector("scep/gutmann-req1.der")
    with pytest.raises(RemoteProtocolError, match="somebody else"):
        message.open(identity("ca"))
    assert pkcs10.parse(vector("scep/gutmann-req0.der")).subject


def test_the_recorded_request_opens() -> None:
    """Of an Apple device; triple DES, so only with leave."""
    message = pkimessage.read(vector("scep/micromdm-PKCSReq.der"), enclosed=True, weak=True)
    ca = Identity(private("scep/micromdm-testca.key"), decode_pem(vector("scep/micromdm-testca.pem"))[0])
    content, cipher = message.open(ca, weak=True)
    assert cipher == "des-ede3-cbc" and pkcs10.parse(content).key_type.startswith("rsa_")
    with pytest.raises(RemoteProtocolError, match="triple DES"):
        message.open(ca)


def test_the_recorded_answer_is_single_des() -> None:
    message = pkimessage.read(vector("scep/micromdm-CertRep.der"), enclosed=True, weak=True)
    assert message.status == pkimessage.SUCCESS
    client = Identity(
        private("scep/micromdm-testclient.key"), decode_pem(vector("scep/micromdm-testclient.pem"))[0]
    )
    with pytest.raises(RemoteProtocolError, match="somebody else"):
        message.open(client, weak=True)
    with pytest.raises(RemoteProtocolError, match="single DES"):
        message.open(client)


@pytest.mark.parametrize("stem", ["env-rsa15", "env-oaep-sha1", "env-oaep-sha256", "env-des-rsa1024"])
def test_envelopes(stem: str) -> None:
    key_of = "env-rsa15" if stem == "env-oaep-sha1" else stem
    key = private(f"scep/{key_of}.key.pem")
    mine = crypto.CertificateSet([decode_pem(vector(f"scep/{key_of}.crt.pem"))[0]])
    try:
        content, cipher = crypto.open_envelope(vector(f"scep/{stem}.der"), key, mine, weak=True)
    except CryptoError:
        assert stem == "env-oaep-sha256", "the one that OpenSSL refuses, too"
        return
    if stem == "env-oaep-sha256":
        # what does not unwrap is taken for a random key (RFC 3218 2.3.2), whose padding fits once in 256 times
        assert content != b"This is a test"
        return
    assert content == b"This is a test"
    if stem == "env-des-rsa1024":
        assert cipher == "des-ede3-cbc"


# ---- NDES ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "challenge"),
    [
        ("mscep_admin-otp.html", "0F1E2D3C4B5A6978"),
        ("mscep_admin-otp-nobom.html", "8796A5B4C3D2E1F0"),
        ("mscep_admin-otp-utf8.html", "0F1E2D3C"),
    ],
)
def test_challenges_of_ndes(name: str, challenge: str) -> None:
    assert ndes.read_challenge(vector(f"scep/ndes/{name}")) == challenge


@pytest.mark.parametrize(
    ("name", "words", "status"),
    [
        ("mscep_admin-denied.html", "not allowed to get challenges", 403),
        ("mscep_admin-full.html", "password cache of NDES is full", 503),
        ("mscep_admin-nopassword.html", "shows no challenge", 502),
    ],
)
def test_no_challenge_of_ndes(name: str, words: str, status: int) -> None:
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        ndes.read_challenge(vector(f"scep/ndes/{name}"))
    assert caught.value.status_hint == status
