"""Checks of a CA's answer, before anything is written or passed on: the same on the device and in the proxy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .. import crypto
from ..errors import CheckError, CryptoError, Error
from ..record import record
from .pkcs10 import CertificationRequest

__all__ = ["CLOCK_SKEW", "Bundle", "NoChain", "check"]

CLOCK_SKEW = 3_600  # seconds by which a fresh certificate may begin in our future


@record
class Bundle:
    """A certificate that passed, and the CA certificates to keep: its chain upwards first, then the rest."""

    cert: crypto.Certificate
    cas: tuple[crypto.Certificate, ...]
    warnings: tuple[str, ...]


class NoChain(CheckError):
    """The certificate leads to none of the CA certificates: they may be out of date."""


def check(
    answer: Iterable[bytes],
    cas: Iterable[bytes],
    spki: bytes,
    now: int,
    *,
    request: CertificationRequest | None = None,
    previous: crypto.Certificate | None = None,
) -> Bundle:
    """The certificate for our key out of an answer, with its chain to one of `cas`.

    CheckError says what is wrong: no certificate for the key, no chain, never or no longer valid, not
    yet valid, a CA certificate, the old certificate again. NoChain when it leads to none of `cas`. What the CA
    changed of the request is a warning: CAs rewrite names.
    """
    warnings: list[str] = []
    received = [_parse(der) for der in answer]
    authorities = _unique([_parse(der) for der in cas])
    cert = _pick([c for c in received if c.spki == spki], warnings)
    _dates(cert, now)
    if cert.is_ca:
        raise CheckError("the certificate in the answer is a CA certificate")
    if previous is not None and previous.serial == cert.serial and previous.issuer_der == cert.issuer_der:
        raise CheckError("the CA answered with the old certificate instead of a new one")
    if request is not None:
        warnings += _changes(request, cert)
    anchors = [ca for ca in authorities if ca.self_issued] or authorities
    # anchors are looked at first anyway, and reading a certificate costs as much as checking its signature
    pool = [c.der for c in (*received, *authorities) if c is not cert and c not in anchors]
    # a chain counts at the instant it began, too: the clock may lag by the skew
    moment = max(now, cert.not_before)
    try:
        chain = crypto.verify_chain(
            cert.der,
            pool,
            [ca.der for ca in anchors],
            moment,
            partial=not any(ca.self_issued for ca in authorities),
        )
    except CryptoError as err:
        raise NoChain(
            f"no chain leads from the certificate ({cert.issuer_text}) to a trusted CA: {'; '.join(err.reasons) or err}"
        ) from None
    if not any(ca.self_issued for ca in authorities):
        warnings.append("the CA gave no root certificate: its intermediate is taken as the anchor")
    known = {c.der: c for c in (*received, *authorities)}
    upwards = [known[der] for der in chain[1:]]
    return Bundle(cert, tuple(_unique([*upwards, *authorities])), tuple(warnings))


def _pick(found: list[crypto.Certificate], warnings: list[str]) -> crypto.Certificate:
    """By public key, never by position (a CMS certificate set has no order)."""
    found = _unique(found)
    if not found:
        raise CheckError("no certificate in the answer belongs to our key")
    if len(found) > 1:
        found.sort(key=lambda cert: (cert.not_before, cert.not_after))
        if (found[-1].not_before, found[-1].not_after) == (found[-2].not_before, found[-2].not_after):
            raise CheckError("the answer holds several certificates for our key, none newer than the other")
        warnings.append(f"the answer holds {len(found)} certificates for our key; the newest is taken")
    return found[-1]


def _changes(request: CertificationRequest, cert: crypto.Certificate) -> list[str]:
    mine = Counter(entry for rdn in request.subject for entry in rdn)
    found = []
    if mine != Counter(entry for rdn in cert.subject for entry in rdn):
        found.append(
            f"the CA changed the subject from {request.subject_text or 'none'} to {cert.subject_text or 'none'}"
        )
    if Counter(request.sans) != Counter(cert.sans):
        found.append("the CA changed the subject alternative names")
    return found


def _dates(cert: crypto.Certificate, now: int) -> None:
    if cert.not_after <= now:
        raise CheckError(
            f"the certificate in the answer expired {now - cert.not_after} seconds ago",
            hint="compare the clocks of this machine and the CA",
        )
    if cert.not_before > now + CLOCK_SKEW:
        raise CheckError(
            f"the certificate in the answer is not valid for another {cert.not_before - now} seconds",
            hint="compare the clocks of this machine and the CA",
        )


def _parse(der: bytes) -> crypto.Certificate:
    try:
        return crypto.parse_certificate(der)
    except Error as err:
        raise CheckError(f"a certificate in the answer is damaged: {err}") from None


def _unique(certs: list[crypto.Certificate]) -> list[crypto.Certificate]:
    return list(dict.fromkeys(certs))
