"""SCEP's pkiMessage (RFC 8894 3): SignedData over EnvelopedData, written and read, for both ends.

The DER is composed here from primitives of the core, which also opens what arrives, BER included. Keys stay
behind `crypto.Key`; nonces, serial numbers and times come from the caller.
"""

from __future__ import annotations

from collections.abc import Iterable

from .. import _der as der
from .. import crypto
from ..errors import CryptoError, RemoteProtocolError
from ..record import record
from .http import plain_line

__all__ = [
    "CERT_POLL",
    "CERT_REP",
    "FAILURE",
    "FAIL_REASONS",
    "GET_CERT",
    "GET_CRL",
    "MODERN",
    "PENDING",
    "PKCS_REQ",
    "RENEWAL_REQ",
    "SUCCESS",
    "Algorithms",
    "Identity",
    "Message",
    "Recipient",
    "encipherment_allowed",
    "issuer_and_serial",
    "issuer_and_subject",
    "read",
    "read_issuer_and_serial",
    "read_issuer_and_subject",
    "read_next_ca",
    "self_signed",
    "sign_next_ca",
    "write",
]

# messageType (3.2.1.2), pkiStatus (3.2.1.3)
CERT_REP, RENEWAL_REQ, PKCS_REQ, CERT_POLL, GET_CERT, GET_CRL = 3, 17, 19, 20, 21, 22
SUCCESS, FAILURE, PENDING = 0, 2, 3
FAIL_REASONS = {  # failInfo (3.2.1.4)
    0: "badAlg: an algorithm of the request is unknown or not supported",
    1: "badMessageCheck: the integrity check of the request failed",
    2: "badRequest: the transaction is not permitted or not supported",
    3: "badTime: the signing time is too far from the CA's clock",
    4: "badCertId: no certificate or request matches",
}
MAX_TRANSACTION_ID = 255
NONCE_SIZE = 16

_SIGNED, _ENVELOPED, _DATA = "1.2.840.113549.1.7.2", "1.2.840.113549.1.7.3", "1.2.840.113549.1.7.1"
_RSA = "1.2.840.113549.1.1.1"
_DIGESTS = {
    "sha1": "1.3.14.3.2.26",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
}
_CIPHERS = {
    "aes-128-cbc": "2.16.840.1.101.3.4.1.2",
    "aes-256-cbc": "2.16.840.1.101.3.4.1.42",
    "des-ede3-cbc": "1.2.840.113549.3.7",
}
_CONTENT_TYPE, _MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
_SIGNING_TIME = "1.2.840.113549.1.9.5"
_VERISIGN = "2.16.840.1.113733.1.9."
_MESSAGE_TYPE, _STATUS, _FAIL_INFO = _VERISIGN + "2", _VERISIGN + "3", _VERISIGN + "4"
_SENDER_NONCE, _RECIPIENT_NONCE, _TRANSACTION = _VERISIGN + "5", _VERISIGN + "6", _VERISIGN + "7"
_FAIL_TEXT = "1.3.6.1.5.5.7.24.1"  # id-scep-failInfoText
HRESULT = "1.3.6.1.4.1.311.21.33"  # of Microsoft's NDES: why it refused
_KNOWN = {_MESSAGE_TYPE, _STATUS, _FAIL_INFO, _SENDER_NONCE, _RECIPIENT_NONCE, _TRANSACTION, _FAIL_TEXT}

NOBODY = crypto.CertificateSet(())
KEY_ENCIPHERMENT = 0x20  # KU_KEY_ENCIPHERMENT as X509_get_key_usage() has it
DATA_ENCIPHERMENT = 0x10


@record
class Algorithms:
    """What messages are written with. digest: "sha1" .. "sha512"; cipher: as in `crypto.Envelope`."""

    digest: str = "sha256"
    cipher: str = "aes-256-cbc"

    @property
    def weak(self) -> bool:
        return self.digest == "sha1" or self.cipher == "des-ede3-cbc"


MODERN = Algorithms()


class Identity:
    """A key with its certificate (DER): who signs a message, or opens one."""

    __slots__ = ("cert", "key", "name", "set")

    def __init__(self, key: crypto.Key, cert: bytes) -> None:
        self.key = key
        self.cert = cert
        self.name = issuer_and_serial(cert)
        self.set = crypto.CertificateSet([cert])


class Recipient:
    """Whom messages are encrypted for: a certificate (DER) with an RSA key."""

    __slots__ = ("cert", "name", "set")

    def __init__(self, cert: bytes) -> None:
        self.cert = cert
        self.name = issuer_and_serial(cert)
        self.set = crypto.CertificateSet([cert])


@record
class Message:
    """A pkiMessage whose signature verified. kind: messageType; content: the EnvelopedData, None without one.

    signer: certificate of the key that signed; certs: all enclosed. hresult: of NDES, 32 bits.
    """

    kind: int
    transaction_id: str
    sender_nonce: bytes | None
    recipient_nonce: bytes | None
    status: int | None
    fail_info: int | None
    fail_text: str
    hresult: int | None
    content: bytes | None
    signer: bytes
    certs: tuple[bytes, ...]
    digest: str

    def open(self, mine: Identity, *, weak: bool = False) -> tuple[bytes, str]:
        """What the message carries, and its cipher. RemoteProtocolError."""
        if not self.content:
            raise RemoteProtocolError("the message carries nothing to open")
        try:
            return crypto.open_envelope(self.content, mine.key, mine.set, weak=weak)
        except CryptoError as err:
            raise RemoteProtocolError(f"the message cannot be opened: {_why(err)}") from None


def encipherment_allowed(cert: crypto.Certificate) -> bool:
    """May messages be encrypted for it? RSA, and keyUsage, where there is one, with keyEncipherment."""
    if not cert.key_type.startswith("rsa_"):
        return False
    return cert.key_usage < 0 or bool(cert.key_usage & KEY_ENCIPHERMENT)


def self_signed(key: crypto.Key, subject_der: bytes, serial: int, not_before: int, not_after: int) -> bytes:
    """The self-signed certificate of a client that has none yet (RFC 8894 2.3); DER.

    keyUsage: digitalSignature and keyEncipherment, as the answer is encrypted for it.
    """
    usage = der.octet_string(der.bit_string(b"\xa0", 5))
    extensions = der.sequence(der.sequence(der.oid("2.5.29.15"), der.boolean(True), usage))
    algorithm = _algorithm_of(key)  # it stands in what is signed, too
    tbs = der.sequence(
        der.explicit(0, der.integer(2)),
        der.integer(serial),
        algorithm,
        subject_der,
        der.sequence(der.time(not_before), der.time(not_after)),
        subject_der,
        key.spki(),
        der.explicit(3, extensions),
    )
    _, signature = key.sign_with("sha256", tbs) if key.type.startswith("rsa_") else key.sign(tbs)
    return der.sequence(tbs, algorithm, der.bit_string(signature))


def _algorithm_of(key: crypto.Key) -> bytes:
    if key.type.startswith("rsa_"):
        return der.sequence(der.oid("1.2.840.113549.1.1.11"), der.null())
    return key.sign(b"")[0]


def issuer_and_serial(cert: bytes) -> bytes:
    """IssuerAndSerialNumber (RFC 5652 10.2.4) of a DER certificate: how a recipient or signer is named, and the
    content of GetCert."""
    tbs = der.Reader(cert).enter().enter()
    tbs.optional(0xA0)
    serial = tbs.raw(0x02)
    tbs.raw()
    return der.sequence(tbs.raw(0x30), serial)


def issuer_and_subject(issuer_der: bytes, subject_der: bytes) -> bytes:
    """The content of a CertPoll (RFC 8894 3.3.3)."""
    return der.sequence(issuer_der, subject_der)


def read_issuer_and_serial(data: bytes) -> tuple[bytes, int]:
    try:
        whole = der.Reader(data)
        inner = whole.enter()
        issuer, serial = inner.raw(0x30), inner.integer()
        inner.end()
        whole.end()
    except der.DerError as err:
        raise RemoteProtocolError(f"the content names no certificate: {err}") from None
    return issuer, serial


def read_issuer_and_subject(data: bytes) -> tuple[bytes, bytes]:
    try:
        whole = der.Reader(data)
        inner = whole.enter()
        issuer, subject = inner.raw(0x30), inner.raw(0x30)
        inner.end()
        whole.end()
    except der.DerError as err:
        raise RemoteProtocolError(f"the content names no issuer and subject: {err}") from None
    return issuer, subject


# ---- writing ------------------------------------------------------------------------------------


def write(
    kind: int,
    content: bytes | None,
    signer: Identity,
    *,
    transaction_id: str,
    sender_nonce: bytes,
    recipient: Recipient | None = None,
    recipient_nonce: bytes | None = None,
    status: int | None = None,
    fail_info: int | None = None,
    fail_text: str = "",
    algorithms: Algorithms = MODERN,
    enclosed: Iterable[bytes] | None = None,
    extra: Iterable[tuple[str, bytes]] = (),
    dummy: bytes = b"",
) -> bytes:
    """A pkiMessage, DER. content: what is enveloped for `recipient`; None: nothing.

    enclosed: certificates to carry, by default the signer's. extra: more signed attributes (OID, DER value).
    dummy: octets to carry in place of an envelope (RFC 8894 3.3.2.2 allows none; NDES sends one).
    """
    payload = dummy
    if content is not None:
        if recipient is None:
            raise ValueError("who is it for?")
        payload = _envelope(content, recipient, algorithms.cipher)
    attributes = [
        _attribute(_MESSAGE_TYPE, der.printable(str(kind))),
        _attribute(_TRANSACTION, der.printable(transaction_id)),
        _attribute(_SENDER_NONCE, der.octet_string(sender_nonce)),
    ]
    if recipient_nonce is not None:
        attributes.append(_attribute(_RECIPIENT_NONCE, der.octet_string(recipient_nonce)))
    if status is not None:
        attributes.append(_attribute(_STATUS, der.printable(str(status))))
    if fail_info is not None:
        attributes.append(_attribute(_FAIL_INFO, der.printable(str(fail_info))))
    if fail_text:
        attributes.append(_attribute(_FAIL_TEXT, der.utf8(fail_text)))
    attributes += [_attribute(oid, value) for oid, value in extra]
    certs = [signer.cert] if enclosed is None else list(enclosed)
    return _sign(payload or None, _DATA, signer, algorithms.digest, attributes, certs)


def sign_next_ca(certs_only: bytes, signer: Identity, digest: str = "sha256") -> bytes:
    """The answer to GetNextCACert (RFC 8894 4.6.1.1): a certs-only message signed by the current CA."""
    return _sign(certs_only, _SIGNED, signer, digest, [], [signer.cert])


def _attribute(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.set_of(value))


def _envelope(content: bytes, recipient: Recipient, cipher: str) -> bytes:
    """EnvelopedData (RFC 5652 6.1), version 0: the recipient by issuer and serial number, as every server reads it."""
    parts = crypto.Envelope(recipient.set, cipher, content)
    wrapping = der.sequence(der.oid(_RSA), der.null())
    ktri = der.sequence(der.integer(0), recipient.name, wrapping, der.octet_string(parts.wrapped))
    algorithm = der.sequence(der.oid(_CIPHERS[cipher]), der.octet_string(parts.iv))
    inner = der.sequence(der.oid(_DATA), algorithm, der.tlv(0x80, parts.sealed))
    return der.sequence(
        der.oid(_ENVELOPED), der.explicit(0, der.sequence(der.integer(0), der.set_of(ktri), inner))
    )


def _sign(
    payload: bytes | None,
    content_type: str,
    signer: Identity,
    digest: str,
    attributes: list[bytes],
    certs: list[bytes],
) -> bytes:
    """SignedData (RFC 5652 5.1), version 1. The signature is over the attributes as a SET OF (5.4)."""
    digest_alg = der.sequence(der.oid(_DIGESTS[digest]), der.null())
    signed = der.set_of(
        _attribute(_CONTENT_TYPE, der.oid(content_type)),
        _attribute(_MESSAGE_DIGEST, der.octet_string(_hash(digest, payload or b""))),
        *attributes,
    )
    algorithm, signature = signer.key.sign_with(digest, signed)
    if signer.key.type.startswith("rsa_"):
        algorithm = der.sequence(der.oid(_RSA), der.null())  # RFC 3370 3.2: what old servers expect
    info = der.sequence(
        der.integer(1),
        signer.name,
        digest_alg,
        der.tlv(0xA0, der.Reader(signed).read()[1]),
        algorithm,
        der.octet_string(signature),
    )
    content = [der.oid(content_type)]
    if payload is not None:
        content.append(der.explicit(0, der.octet_string(payload)))
    enclosed = [der.implicit(0, der.set_of(*certs))] if certs else []
    return der.sequence(
        der.oid(_SIGNED),
        der.explicit(
            0,
            der.sequence(
                der.integer(1), der.set_of(digest_alg), der.sequence(*content), *enclosed, der.set_of(info)
            ),
        ),
    )


def _hash(digest: str, data: bytes) -> bytes:
    import hashlib

    return hashlib.new(digest, data, usedforsecurity=digest != "sha1").digest()


# ---- reading ------------------------------------------------------------------------------------


def read(
    ber: bytes, signers: crypto.CertificateSet = NOBODY, *, enclosed: bool = False, weak: bool = False
) -> Message:
    """A pkiMessage, DER or BER, its signature verified; RemoteProtocolError says what is wrong with it.

    signers: certificates that may have signed it (a CA's, of GetCACert). enclosed: the one inside may, too
    (a client's). weak: SHA-1 is accepted.
    """
    try:
        opened = crypto.SignedMessage(ber, signers, enclosed=enclosed, weak=weak)
    except CryptoError as err:
        raise RemoteProtocolError(f"the message is refused: {_why(err)}") from None
    if opened.attributes is None:
        raise RemoteProtocolError("the message has no signed attributes: it is no pkiMessage")
    if opened.content_type != _DATA:
        raise RemoteProtocolError("the message carries another content type than data")
    try:
        values = _attributes(opened.attributes)
        return Message(
            kind=_number(values, _MESSAGE_TYPE, "messageType"),
            transaction_id=_transaction_id(values),
            sender_nonce=_nonce(values, _SENDER_NONCE),
            recipient_nonce=_nonce(values, _RECIPIENT_NONCE),
            status=_number(values, _STATUS, "pkiStatus") if _STATUS in values else None,
            fail_info=_number(values, _FAIL_INFO, "failInfo") if _FAIL_INFO in values else None,
            fail_text=plain_line(_text(values[_FAIL_TEXT])) if _FAIL_TEXT in values else "",
            hresult=_hresult(values),
            content=opened.content or None,
            signer=opened.signer,
            certs=tuple(opened.certs),
            digest=opened.digest,
        )
    except der.DerError as err:
        raise RemoteProtocolError(f"a signed attribute does not parse: {err}") from None


def read_next_ca(ber: bytes, signers: crypto.CertificateSet, *, weak: bool = False) -> bytes:
    """The certs-only message that a GetNextCACert answer carries, signed by one of `signers`."""
    try:
        opened = crypto.SignedMessage(ber, signers, weak=weak)
    except CryptoError as err:
        raise RemoteProtocolError(f"the next CA certificates are refused: {_why(err)}") from None
    if not opened.content:
        raise RemoteProtocolError("the answer carries no next CA certificates")
    if opened.content[:1] != b"\x30":
        raise RemoteProtocolError("the answer does not carry certificates")
    return opened.content


def _attributes(data: bytes) -> dict[str, bytes]:
    """Value of each attribute that counts here; each may be there once, with one value."""
    found: dict[str, bytes] = {}
    reader = der.Reader(data)
    while not reader.done:
        attribute = reader.enter()
        oid = attribute.oid()
        if oid not in _KNOWN and oid != HRESULT:
            continue
        values = attribute.enter(0x31)
        attribute.end()
        value = values.raw()
        if not values.done or oid in found:
            raise RemoteProtocolError(f"the signed attribute {oid} has two values: ambiguous")
        found[oid] = value
    return found


def _text(value: bytes) -> str:
    reader = der.Reader(value)
    text = reader.text()
    reader.end()
    return text


def _number(values: dict[str, bytes], oid: str, name: str) -> int:
    if oid not in values:
        raise RemoteProtocolError(f"the {name} is missing")
    text = _text(values[oid])
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise RemoteProtocolError(f"the {name} {plain_line(text, 20)!r} is no number")
    return int(text)


def _transaction_id(values: dict[str, bytes]) -> str:
    if _TRANSACTION not in values:
        raise RemoteProtocolError("the transactionID is missing")
    if len(values[_TRANSACTION]) > MAX_TRANSACTION_ID + 4:
        raise RemoteProtocolError(f"the transactionID is longer than {MAX_TRANSACTION_ID} characters")
    try:
        text = _text(values[_TRANSACTION])
    except der.DerError:
        text = ""
    if not text or not text.isascii() or not text.isprintable():
        raise RemoteProtocolError("the transactionID is empty or holds characters that none may have")
    return text


def _nonce(values: dict[str, bytes], oid: str) -> bytes | None:
    if oid not in values:
        return None
    reader = der.Reader(values[oid])
    nonce = reader.octet_string()
    reader.end()
    if not 1 <= len(nonce) <= 64:  # 16 by the RFC; older peers send 8, or 20
        raise RemoteProtocolError("a nonce is empty or too long")
    return nonce


def _hresult(values: dict[str, bytes]) -> int | None:
    """NDES sends it as an INTEGER or as text; what is neither is passed over."""
    value = values.get(HRESULT)
    if value is None:
        return None
    try:
        reader = der.Reader(value)
        if reader.peek() == 0x02:
            return reader.integer() & 0xFFFF_FFFF
        if reader.peek() == 0x04:
            octets = reader.octet_string()
            return int.from_bytes(octets, "little") if len(octets) == 4 else None
        return int(_text(value), 0) & 0xFFFF_FFFF
    except ValueError:
        return None


def _why(err: CryptoError) -> str:
    return err.reasons[0] if err.reasons else err.text
