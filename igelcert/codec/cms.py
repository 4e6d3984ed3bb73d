"""Certs-only messages: the degenerate SignedData of RFC 5652 5.1 as EST carries it (RFC 7030 4.1.3)."""

from __future__ import annotations

from collections.abc import Iterable

from .. import _der as der
from .. import crypto
from ..errors import CryptoError, RemoteProtocolError

__all__ = ["certs_only", "read_certs_only"]

SIGNED_DATA = "1.2.840.113549.1.7.2"
DATA = "1.2.840.113549.1.7.1"
CERTS_MAX = 200


def certs_only(certs: Iterable[bytes]) -> bytes:
    """A SignedData without signers that carries the DER certificates."""
    # certificates [0] IMPLICIT CertificateSet: a SET OF, so DER sorts it
    certificates = der.implicit(0, der.set_of(*certs))
    signed = der.sequence(
        der.integer(1), der.set_of(), der.sequence(der.oid(DATA)), certificates, der.set_of()
    )
    return der.sequence(der.oid(SIGNED_DATA), der.explicit(0, signed))


def read_certs_only(ber: bytes) -> list[bytes]:
    """The certificates of a SignedData in DER or BER, in the order they stand in; may be empty."""
    try:
        return _plain(ber)
    except der.DerError:
        pass  # BER, or more in it than certificates
    try:
        return crypto.cms_certificates(ber)
    except CryptoError as err:
        raise RemoteProtocolError("; ".join(err.reasons[:1]) or str(err), status_hint=400) from None


def _plain(data: bytes) -> list[bytes]:
    """The certificates of what `certs_only` writes, as most servers do: libcrypto would read each certificate and write
    it again, which takes as long as checking its signature. DerError for anything else."""
    outer = der.Reader(data)
    content = outer.enter()
    outer.end()
    if content.oid() != SIGNED_DATA:
        raise der.DerError("no SignedData")
    explicit = content.enter(0xA0)
    content.end()
    signed = explicit.enter()
    explicit.end()
    if signed.integer() != 1 or signed.read(0x31)[1]:
        raise der.DerError("digests are named")
    encapsulated = signed.enter()
    if encapsulated.oid() != DATA:
        raise der.DerError("another content")
    encapsulated.end()
    certificates, found = signed.enter(0xA0), []
    while not certificates.done:
        found.append(certificates.raw(0x30))
        if len(found) > CERTS_MAX:
            raise der.DerError("too many certificates")
    if signed.peek() == 0xA1:
        signed.raw(0xA1)  # revocation lists
    if signed.read(0x31)[1]:
        raise der.DerError("it is signed")
    signed.end()
    return found
