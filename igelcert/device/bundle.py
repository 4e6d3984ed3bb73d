"""Checks of an answer, before anything is written (facts: after any answer)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import crypto
from ..errors import CheckError, CryptoError, Error

__all__ = ["BUILD_TIME", "CLOCK_SKEW", "Bundle", "check", "clock_is_sane"]

# No clock of a device is right before this program was made.
BUILD_TIME = 1_795_000_000  # 2026-11-18
CLOCK_SKEW = 3_600  # seconds by which a fresh certificate may begin in our future


@dataclass(frozen=True, slots=True)
class Bundle:
    """A certificate that passed, and the CA certificates to keep: its chain upwards first, then the rest."""

    cert: crypto.Certificate
    cas: tuple[crypto.Certificate, ...]
    warnings: tuple[str, ...]


def clock_is_sane(now: int, floor: int = 0) -> bool:
    """Is the clock at or after the program's build and `floor` (say, the management certificate's begin)?"""
    return now >= max(BUILD_TIME, floor) - CLOCK_SKEW


def check(
    answer: Iterable[bytes],
    cas: Iterable[bytes],
    spki: bytes,
    now: int,
    *,
    subject_der: bytes | None = None,
    previous: crypto.Certificate | None = None,
) -> Bundle:
    """The certificate for our key out of an answer, with its chain to one of `cas`.

    CheckError says what is wrong: no certificate for the key, no chain, never or no longer valid, not
    yet valid, a CA certificate, the old certificate again.
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
    if subject_der is not None and cert.subject_der != subject_der:
        warnings.append(f"the CA changed the subject: {cert.subject_text}")
    anchors = [ca for ca in authorities if ca.self_issued] or authorities
    pool = [c.der for c in (*received, *authorities)]
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
        raise CheckError(
            f"no chain leads from the certificate ({cert.issuer_text}) to a trusted CA: {'; '.join(err.reasons) or err}"
        ) from None
    if not any(ca.self_issued for ca in authorities):
        warnings.append("the CA gave no root certificate: its intermediate is taken as the anchor")
    upwards = [_parse(der) for der in chain[1:]]
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


def _dates(cert: crypto.Certificate, now: int) -> None:
    if cert.not_after <= now:
        raise CheckError(f"the certificate in the answer expired {now - cert.not_after} seconds ago")
    if cert.not_before > now + CLOCK_SKEW:
        raise CheckError(
            f"the certificate in the answer is not valid for another {cert.not_before - now} seconds",
            hint="compare the clocks of the device and the CA",
        )


def _parse(der: bytes) -> crypto.Certificate:
    try:
        return crypto.parse_certificate(der)
    except Error as err:
        raise CheckError(f"a certificate in the answer is damaged: {err}") from None


def _unique(certs: list[crypto.Certificate]) -> list[crypto.Certificate]:
    return list(dict.fromkeys(certs))
