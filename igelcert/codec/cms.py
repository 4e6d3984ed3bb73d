"""Certs-only messages: the degenerate SignedData of RFC 5652 5.1 as EST carries it (RFC 7030 4.1.3)."""

from __future__ import annotations

from collections.abc import Iterable

from .. import _der as der
from .. import crypto
from ..errors import CryptoError, RemoteProtocolError

__all__ = ["certs_only", "read_certs_only"]

SIGNED_DATA = "1.2.840.113549.1.7.2"
DATA = "1.2.840.113549.1.7.1"


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
        return crypto.cms_certificates(ber)
    except CryptoError as err:
        raise RemoteProtocolError("; ".join(err.reasons[:1]) or str(err), status_hint=400) from None
