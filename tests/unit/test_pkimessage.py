"""pkiMessages against independent readers and writers: OpenSSL's cms, pyasn1-modules."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.der import decoder, encoder
from pyasn1.type import char, univ
from pyasn1_modules import rfc5652

from igelcert import crypto
from igelcert.codec import pkcs10, pkimessage, scep
from igelcert.codec.cms import certs_only
from igelcert.codec.pkimessage import Algorithms, Identity, Recipient
from igelcert.errors import CryptoError, Error, RemoteProtocolError
from igelcert.model import CsrSpec, Subject
from tests.support.tree import openssl

NONCE = bytes(range(16))
VERISIGN = "2.16.840.1.113733.1.9."


def identity(name: str = "client") -> Identity:
    key = crypto.Key.generate("rsa_2048")
    now = int(time.time())
    subject = pkcs10.encode_name(Subject(cn=name, country="DE"))
    return Identity(key, pkimessage.self_signed(key, subject, secrets.randbits(63) | 1, now - 60, now + 3600))


CLIENT, SERVER = identity("client"), identity("server")
DEVICE = crypto.Key.generate("ec_prime256v1")
CSR = pkcs10.build(CsrSpec("ec_prime256v1", Subject(cn="device"), challenge="s3cret"), DEVICE)


def request(algorithms: Algorithms = pkimessage.MODERN) -> bytes:
    return pkimessage.write(
        pkimessage.PKCS_REQ, CSR, CLIENT, transaction_id="ABC-1", sender_nonce=NONCE,
        recipient=Recipient(SERVER.cert), algorithms=algorithms,
    )  # fmt: skip


def pem(where: Path, name: str, mine: Identity) -> tuple[Path, Path]:
    cert, key = where / f"{name}.pem", where / f"{name}.key"
    cert.write_text(crypto.parse_certificate(mine.cert).pem())
    with key.open("wb") as file:
        mine.key.write(file.fileno(), None)
    return cert, key


def test_the_self_signed_certificate(tmp_path: Path) -> None:
    cert, _ = pem(tmp_path, "client", CLIENT)
    assert "OK" in openssl("verify", "-x509_strict", "-CAfile", cert, "-partial_chain", cert)
    found = x509.load_der_x509_certificate(CLIENT.cert)
    found.verify_directly_issued_by(found)
    usage = found.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and usage.value.key_encipherment
    assert not usage.value.key_cert_sign and len(found.extensions) == 1
    assert found.subject.rfc4514_string() == "CN=client,C=DE"


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("cipher", ["aes-128-cbc", "aes-256-cbc", "des-ede3-cbc"])
def test_openssl_reads_what_we_write(tmp_path: Path, digest: str, cipher: str) -> None:
    (tmp_path / "message").write_bytes(request(Algorithms(digest, cipher)))
    cert, _ = pem(tmp_path, "client", CLIENT)
    openssl("cms", "-verify", "-binary", "-inform", "DER", "-in", tmp_path / "message", "-CAfile", cert,
            "-purpose", "any", "-out", tmp_path / "envelope")  # fmt: skip
    server, key = pem(tmp_path, "server", SERVER)
    openssl("cms", "-decrypt", "-binary", "-inform", "DER", "-in", tmp_path / "envelope", "-recip", server,
            "-inkey", key, "-out", tmp_path / "csr")  # fmt: skip
    assert (tmp_path / "csr").read_bytes() == CSR
    shown = openssl("cms", "-cmsout", "-print", "-noout", "-inform", "DER", "-in", tmp_path / "message")
    assert {"sha1": "sha1", "sha256": "sha256", "sha384": "sha384", "sha512": "sha512"}[digest] in shown


@pytest.mark.parametrize("options", [("-aes256",), ("-aes128", "-stream", "-indef"), ("-keyid", "-aes256"),
                                     ("-aes256", "-keyopt", "rsa_padding_mode:oaep")])  # fmt: skip
def test_we_open_what_openssl_writes(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "csr").write_bytes(CSR)
    # -keyid and -keyopt belong to a recipient; with no key identifier in the certificate OpenSSL refuses -keyid
    server = tmp_path / "server.pem"
    key = tmp_path / "server.key"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", server, "-subj", "/CN=s")
    tail = ["-recip", server, *[o for o in options if o.startswith(("-keyid", "-keyopt", "rsa_"))]]
    head = [o for o in options if not o.startswith(("-keyid", "-keyopt", "rsa_"))]
    openssl("cms", "-encrypt", "-binary", *head, "-outform", "DER", "-in", tmp_path / "csr",
            "-out", tmp_path / "envelope", *tail)  # fmt: skip
    with key.open("rb") as file:
        mine = Identity(
            crypto.Key.read(file.fileno()),
            x509.load_pem_x509_certificate(server.read_bytes()).public_bytes(serialization.Encoding.DER),
        )
    data = (tmp_path / "envelope").read_bytes()
    assert crypto.open_envelope(data, mine.key, mine.set)[0] == CSR
    with pytest.raises(CryptoError, match="somebody else"):
        crypto.open_envelope(data, CLIENT.key, CLIENT.set)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_we_verify_what_openssl_signs(tmp_path: Path, digest: str) -> None:
    cert, key = pem(tmp_path, "client", CLIENT)
    (tmp_path / "content").write_bytes(b"content\r\nof any kind")
    for extra in ((), ("-noattr",), ("-stream", "-indef"), ("-nocerts",)):
        openssl("cms", "-sign", "-binary", "-nodetach", "-md", digest, "-outform", "DER", "-signer", cert,
                "-inkey", key, "-in", tmp_path / "content", "-out", tmp_path / "signed", *extra)  # fmt: skip
        opened = crypto.SignedMessage((tmp_path / "signed").read_bytes(), CLIENT.set)
        assert opened.content == b"content\r\nof any kind" and opened.digest == digest
        assert opened.signer == CLIENT.cert and (opened.attributes is None) is (extra == ("-noattr",))
        with pytest.raises(CryptoError, match="none of the certificates"):
            crypto.SignedMessage((tmp_path / "signed").read_bytes(), SERVER.set)


@pytest.mark.parametrize("size", [1, 60, 200, 40_000, 70_000])
def test_certificates_that_are_known_make_no_difference(tmp_path: Path, size: int) -> None:
    """Whether libcrypto parses them again or not: the same is said of the same message. The sizes reach every
    length of a DER length on the way from the outermost element."""
    cert, key = pem(tmp_path, "client", CLIENT)
    more, _ = pem(tmp_path, "server", SERVER)
    (tmp_path / "content").write_bytes(bytes(size))
    for extra in ((), ("-certfile", more), ("-noattr", "-certfile", more), ("-stream", "-indef")):
        openssl("cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-signer", cert, "-inkey", key,
                "-in", tmp_path / "content", "-out", tmp_path / "signed", *extra)  # fmt: skip
        signed = (tmp_path / "signed").read_bytes()
        certs = {CLIENT.cert, SERVER.cert} if more in extra else {CLIENT.cert}
        seen = set()
        for known in ([], [CLIENT.cert], [SERVER.cert, CLIENT.cert]):
            opened = crypto.SignedMessage(signed, crypto.CertificateSet(known), enclosed=True)
            assert opened.content == bytes(size) and set(opened.certs) == certs
            seen.add(
                (opened.content_type, opened.attributes, opened.signer, opened.digest, tuple(opened.certs))
            )
        assert len(seen) == 1
        for changed in (signed[:-1], signed + b"\0", signed[:-1] + bytes([signed[-1] ^ 1])):
            for known in ([CLIENT.cert], [SERVER.cert, CLIENT.cert]):
                with pytest.raises(CryptoError):
                    crypto.SignedMessage(changed, crypto.CertificateSet(known), enclosed=True)


def test_pyasn1_parses_to_the_same_values() -> None:
    data = request()
    outer, rest = decoder.decode(data, asn1Spec=rfc5652.ContentInfo())
    assert not rest and str(outer["contentType"]) == "1.2.840.113549.1.7.2"
    signed, rest = decoder.decode(outer["content"], asn1Spec=rfc5652.SignedData())
    assert not rest and int(signed["version"]) == 1
    assert encoder.encode(signed) == bytes(outer["content"]), "it is DER throughout"
    assert [encoder.encode(each["certificate"]) for each in signed["certificates"]] == [CLIENT.cert]
    (info,) = signed["signerInfos"]
    name = info["sid"]["issuerAndSerialNumber"]
    cert = x509.load_der_x509_certificate(CLIENT.cert)
    assert int(name["serialNumber"]) == cert.serial_number
    assert encoder.encode(name["issuer"]) == cert.issuer.public_bytes()
    found = {str(attr["attrType"]): list(attr["attrValues"]) for attr in info["signedAttrs"]}
    assert all(len(values) == 1 for values in found.values())

    def text(oid: str) -> str:
        return str(decoder.decode(found[oid][0], asn1Spec=char.PrintableString())[0])

    assert text(VERISIGN + "2") == "19" and text(VERISIGN + "7") == "ABC-1"
    nonce, _ = decoder.decode(found[VERISIGN + "5"][0], asn1Spec=univ.OctetString())
    assert bytes(nonce) == NONCE
    assert VERISIGN + "3" not in found and VERISIGN + "6" not in found
    inner, rest = decoder.decode(
        bytes(signed["encapContentInfo"]["eContent"]), asn1Spec=rfc5652.ContentInfo()
    )
    envelope, rest = decoder.decode(inner["content"], asn1Spec=rfc5652.EnvelopedData())
    assert not rest and int(envelope["version"]) == 0
    (ktri,) = envelope["recipientInfos"]
    who = ktri["ktri"]["rid"]["issuerAndSerialNumber"]
    assert int(who["serialNumber"]) == x509.load_der_x509_certificate(SERVER.cert).serial_number
    content = envelope["encryptedContentInfo"]
    assert str(content["contentEncryptionAlgorithm"]["algorithm"]) == "2.16.840.1.101.3.4.1.42"
    assert len(bytes(content["encryptedContent"])) == len(CSR) // 16 * 16 + 16


def test_what_is_written_is_read_the_same() -> None:
    message = pkimessage.read(request(), enclosed=True)
    assert (message.kind, message.transaction_id, message.sender_nonce) == (19, "ABC-1", NONCE)
    assert message.signer == CLIENT.cert and message.digest == "sha256"
    assert message.open(SERVER) == (CSR, "aes-256-cbc")
    refusal = pkimessage.write(
        3, None, SERVER, transaction_id="ABC-1", sender_nonce=bytes(16), recipient_nonce=NONCE, status=2,
        fail_info=2, fail_text="nein, danke", extra=((pkimessage.HRESULT, b"\x02\x05\x00\x80\x09\x48\x09"),), dummy=b"\0",
    )  # fmt: skip
    found = pkimessage.read(refusal, SERVER.set)
    assert (found.status, found.fail_info, found.fail_text, found.hresult) == (
        2,
        2,
        "nein, danke",
        0x80094809,
    )
    words = scep.refusal(found)
    assert "badRequest" in words and "nein, danke" in words and "challenge password" in words


def test_the_next_ca_is_vouched_for_by_the_current_one() -> None:
    body = pkimessage.sign_next_ca(certs_only([CLIENT.cert]), SERVER)
    found = scep.next_cacert_reply(scep.Response(200, (), body), SERVER.set)
    assert [each.der for each in found] == [CLIENT.cert]
    with pytest.raises(RemoteProtocolError, match="none of the certificates"):
        scep.next_cacert_reply(scep.Response(200, (), body), CLIENT.set)


def test_no_two_messages_share_a_key() -> None:
    first, second = (pkimessage.read(request(), enclosed=True).content for _ in range(2))
    assert first and second and first[-64:] != second[-64:]


@pytest.mark.parametrize("kind", ["ec_prime256v1", "ecdsa_ed25519"])
def test_only_rsa_opens(kind: str) -> None:
    key = crypto.Key.generate(kind)
    now = int(time.time())
    cert = pkimessage.self_signed(key, pkcs10.encode_name(Subject(cn="ec")), 5, now, now + 60)
    assert not pkimessage.encipherment_allowed(crypto.parse_certificate(cert))
    with pytest.raises(CryptoError, match="not RSA"):
        crypto.Envelope(Recipient(cert).set, "aes-256-cbc", b"x")


GOOD = request()


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_octet_never_passes_unseen(place: int, change: int) -> None:
    """Refused, or it says exactly what the good one says: only what no signature covers may differ."""
    bad = GOOD[:place] + bytes([GOOD[place] ^ change]) + GOOD[place + 1 :]
    try:
        message = pkimessage.read(bad, CLIENT.set)
        content = message.open(SERVER)[0]
    except RemoteProtocolError:
        return
    assert content == CSR and message.transaction_id == "ABC-1" and message.signer == CLIENT.cert


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_junk_is_refused_in_one_line(data: bytes) -> None:
    for read in (
        lambda: pkimessage.read(data, enclosed=True),
        lambda: scep.cacert_reply(scep.Response(200, (), data)),
    ):
        with pytest.raises(Error) as caught:
            read()
        assert "\n" not in str(caught.value)
