"""Building and opening a pkiMessage (RSA-2048, AES-256, SHA-256) against the bare RSA and AES operations in it, and
against the same with pyasn1 for the structures. Run by scripts/bench."""

from __future__ import annotations

import hashlib
import os
import secrets
import statistics
import time
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pyasn1.codec.der import decoder, encoder
from pyasn1.type import char, univ
from pyasn1_modules import rfc5280, rfc5652

from igelcert import crypto
from igelcert.codec import pkcs10, pkimessage
from igelcert.codec.pkimessage import Identity, Recipient
from igelcert.model import CsrSpec, Subject

__all__ = ["measure"]

BUILD_LIMIT, OPEN_LIMIT, PYASN1_GAIN = 1.2, 1.5, 3.0
ROUNDS, TIMES = 7, 60
VERISIGN = "2.16.840.1.113733.1.9."
PKCS1 = rsa_padding.PKCS1v15()


def _identity(name: str) -> tuple[Identity, RSAPrivateKey]:
    """Ours, and the same key for the other library."""
    key = crypto.Key.generate("rsa_2048")
    handle = os.memfd_create("key")
    try:
        key.write(handle, None)
        theirs = serialization.load_pem_private_key(os.pread(handle, 65_536, 0), None)
    finally:
        os.close(handle)
    assert isinstance(theirs, RSAPrivateKey)
    now = int(time.time())
    subject = pkcs10.encode_name(Subject(cn=name, org="Example", country="DE"))
    cert = pkimessage.self_signed(key, subject, secrets.randbits(63) | 1, now - 60, now + 3600)
    return Identity(key, cert), theirs


def _aes(key: bytes, iv: bytes, data: bytes, *, encrypt: bool) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CBC(iv))
    if encrypt:
        pad = padding.PKCS7(128).padder()
        data = pad.update(data) + pad.finalize()
        run = cipher.encryptor()
        return run.update(data) + run.finalize()
    run = cipher.decryptor()
    plain = run.update(data) + run.finalize()
    unpad = padding.PKCS7(128).unpadder()
    return unpad.update(plain) + unpad.finalize()


# ---- the same with pyasn1 -----------------------------------------------------------------------


def _attribute(oid: str, value: univ.Any) -> rfc5652.Attribute:
    made = rfc5652.Attribute()
    made["attrType"] = univ.ObjectIdentifier(oid)
    made["attrValues"][0] = encoder.encode(value)
    return made


def _name(cert: rfc5280.Certificate) -> rfc5652.IssuerAndSerialNumber:
    made = rfc5652.IssuerAndSerialNumber()
    made["issuer"] = cert["tbsCertificate"]["issuer"]
    made["serialNumber"] = cert["tbsCertificate"]["serialNumber"]
    return made


def _pyasn1_build(
    csr: bytes, client: bytes, key: RSAPrivateKey, server: bytes, public: RSAPublicKey
) -> bytes:
    mine, _ = decoder.decode(client, asn1Spec=rfc5280.Certificate())
    theirs, _ = decoder.decode(server, asn1Spec=rfc5280.Certificate())
    cek, iv = os.urandom(32), os.urandom(16)
    envelope = rfc5652.EnvelopedData()
    envelope["version"] = 0
    ktri = rfc5652.KeyTransRecipientInfo()
    ktri["version"] = 0
    ktri["rid"]["issuerAndSerialNumber"] = _name(theirs)
    ktri["keyEncryptionAlgorithm"]["algorithm"] = univ.ObjectIdentifier("1.2.840.113549.1.1.1")
    ktri["keyEncryptionAlgorithm"]["parameters"] = univ.Any(b"\x05\x00")
    ktri["encryptedKey"] = public.encrypt(cek, PKCS1)
    envelope["recipientInfos"][0]["ktri"] = ktri
    content = envelope["encryptedContentInfo"]
    content["contentType"] = univ.ObjectIdentifier("1.2.840.113549.1.7.1")
    content["contentEncryptionAlgorithm"]["algorithm"] = univ.ObjectIdentifier("2.16.840.1.101.3.4.1.42")
    content["contentEncryptionAlgorithm"]["parameters"] = univ.Any(encoder.encode(univ.OctetString(iv)))
    content["encryptedContent"] = _aes(cek, iv, csr, encrypt=True)
    inner = rfc5652.ContentInfo()
    inner["contentType"] = univ.ObjectIdentifier("1.2.840.113549.1.7.3")
    inner["content"] = encoder.encode(envelope)
    payload = encoder.encode(inner)

    attributes = rfc5652.SignedAttributes()
    values = [
        ("1.2.840.113549.1.9.3", univ.ObjectIdentifier("1.2.840.113549.1.7.1")),
        ("1.2.840.113549.1.9.4", univ.OctetString(hashlib.sha256(payload).digest())),
        (VERISIGN + "2", char.PrintableString("19")),
        (VERISIGN + "7", char.PrintableString("ABC")),
        (VERISIGN + "5", univ.OctetString(bytes(16))),
    ]
    for index, (oid, value) in enumerate(values):
        attributes[index] = _attribute(oid, value)
    signature = key.sign(encoder.encode(attributes), PKCS1, hashes.SHA256())
    signed = rfc5652.SignedData()
    signed["version"] = 1
    digest = rfc5280.AlgorithmIdentifier()
    digest["algorithm"] = univ.ObjectIdentifier("2.16.840.1.101.3.4.2.1")
    signed["digestAlgorithms"][0] = digest
    signed["encapContentInfo"]["eContentType"] = univ.ObjectIdentifier("1.2.840.113549.1.7.1")
    signed["encapContentInfo"]["eContent"] = payload
    signed["certificates"][0]["certificate"] = mine
    info = signed["signerInfos"][0]
    info["version"] = 1
    info["sid"]["issuerAndSerialNumber"] = _name(mine)
    info["digestAlgorithm"]["algorithm"] = univ.ObjectIdentifier("2.16.840.1.101.3.4.2.1")
    for index in range(len(values)):
        info["signedAttrs"][index] = attributes[index]
    info["signatureAlgorithm"]["algorithm"] = univ.ObjectIdentifier("1.2.840.113549.1.1.1")
    info["signature"] = signature
    outer = rfc5652.ContentInfo()
    outer["contentType"] = univ.ObjectIdentifier("1.2.840.113549.1.7.2")
    outer["content"] = encoder.encode(signed)
    return bytes(encoder.encode(outer))


def _pyasn1_open(data: bytes, key: RSAPrivateKey, signer: RSAPublicKey) -> bytes:
    outer, _ = decoder.decode(data, asn1Spec=rfc5652.ContentInfo())
    signed, _ = decoder.decode(outer["content"], asn1Spec=rfc5652.SignedData())
    info = signed["signerInfos"][0]
    attributes = rfc5652.SignedAttributes()
    for index, each in enumerate(info["signedAttrs"]):
        attributes[index] = each
    signer.verify(bytes(info["signature"]), encoder.encode(attributes), PKCS1, hashes.SHA256())
    payload = bytes(signed["encapContentInfo"]["eContent"])
    inner, _ = decoder.decode(payload, asn1Spec=rfc5652.ContentInfo())
    envelope, _ = decoder.decode(inner["content"], asn1Spec=rfc5652.EnvelopedData())
    cek = key.decrypt(bytes(envelope["recipientInfos"][0]["ktri"]["encryptedKey"]), PKCS1)
    content = envelope["encryptedContentInfo"]
    iv, _ = decoder.decode(content["contentEncryptionAlgorithm"]["parameters"], asn1Spec=univ.OctetString())
    return _aes(cek, bytes(iv), bytes(content["encryptedContent"]), encrypt=False)


# ---- measuring ----------------------------------------------------------------------------------


def _microseconds(*functions: Callable[[], object]) -> list[float]:
    """Medians of rounds in turn, so that a busy moment hits all alike."""
    rows = []
    for _ in range(ROUNDS):
        row = []
        for function in functions:
            start = time.perf_counter()
            for _ in range(TIMES):
                function()
            row.append((time.perf_counter() - start) / TIMES * 1e6)
        rows.append(row)
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def measure() -> bool:
    """Prints the figures; False when one misses its aim."""
    client, client_key = _identity("client")
    server, server_key = _identity("server")
    device = crypto.Key.generate("rsa_2048")
    csr = pkcs10.build(CsrSpec("rsa_2048", Subject(cn="device", org="Example"), challenge="s3cret"), device)
    recipient = Recipient(server.cert)
    public, signer = server_key.public_key(), client_key.public_key()
    cek, iv, digest = os.urandom(32), os.urandom(16), os.urandom(300)
    wrapped, sealed = public.encrypt(cek, PKCS1), _aes(cek, iv, csr, encrypt=True)
    signature = client_key.sign(digest, PKCS1, hashes.SHA256())

    def build() -> bytes:
        return pkimessage.write(
            pkimessage.PKCS_REQ,
            csr,
            client,
            transaction_id="ABC",
            sender_nonce=bytes(16),
            recipient=recipient,
        )

    def build_floor() -> None:
        client_key.sign(digest, PKCS1, hashes.SHA256())
        public.encrypt(cek, PKCS1)
        _aes(cek, iv, csr, encrypt=True)

    message = build()

    def open_() -> bytes:
        return pkimessage.read(message, client.set).open(server)[0]

    def open_floor() -> None:
        signer.verify(signature, digest, PKCS1, hashes.SHA256())
        server_key.decrypt(wrapped, PKCS1)
        _aes(cek, iv, sealed, encrypt=False)

    def other_build() -> bytes:
        return _pyasn1_build(csr, client.cert, client_key, server.cert, public)

    def other_open() -> bytes:
        return _pyasn1_open(message, server_key, signer)

    assert open_() == csr == other_open()
    assert pkimessage.read(other_build(), client.set).open(server)[0] == csr
    good = True
    rows = (
        ("build", BUILD_LIMIT, (build, build_floor, other_build)),
        ("open", OPEN_LIMIT, (open_, open_floor, other_open)),
    )
    for name, limit, functions in rows:
        ours, floor, pyasn1 = _microseconds(*functions)
        fits = ours / floor <= limit and pyasn1 / ours >= PYASN1_GAIN
        good = good and fits
        print(
            f"pkiMessage {name:<5} {ours:7.0f} us   bare operations {floor:6.0f} us   ratio {ours / floor:5.2f} "
            f"(aim {limit})   with pyasn1 {pyasn1:6.0f} us   {pyasn1 / ours:4.1f} times as long (aim {PYASN1_GAIN:g})   "
            f"{'within' if fits else 'MISSES'} its aim"
        )
    start = time.perf_counter()
    for _ in range(5):
        crypto.Key.generate("rsa_2048")
    key_time = (time.perf_counter() - start) / 5 * 1e6
    subject = pkcs10.encode_name(Subject(cn="client"))
    (cert_time,) = _microseconds(lambda: pkimessage.self_signed(client.key, subject, 1, 0, 1))
    print(
        f"transport  key {key_time:9.0f} us   certificate for it {cert_time:6.0f} us   ratio {key_time / cert_time:5.0f}: "
        "so a key serves many requests, and each has a certificate of its own"
    )
    return good
