"""From a CSR that policy allows to a certificate: asked once, recorded before it is answered.

The same request again gets the same certificate, so a device that lost the answer, or its power, costs no
second one. Requests that arrive twice at a time are one: the second waits for the first.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass

from ..codec import answer as answers
from ..codec import pkcs10
from ..errors import CheckError, CryptoError, Error, RemoteProtocolError, TransportError
from ..model import Issued, Outcome, Pending, Refused
from . import cacerts
from . import enrollments as records
from .context import Context
from .database import now
from .turns import waiting
from .upstream import Busy, Upstream

__all__ = ["Answer", "relay"]

log = logging.getLogger("igelcert.proxy")

JOIN_SECONDS = 15.0  # how long a second request waits for the first
JOIN_STEP = 0.2
DOWN_RETRY = 60
UNDER_WAY = "this very request is under way"


@dataclass(frozen=True, slots=True)
class Answer:
    """status 200 with a certificate (DER), or another status with a sentence; retry_after in seconds."""

    status: int
    text: str = ""
    certificate: bytes | None = None
    retry_after: int | None = None


def relay(context: Context, ask: records.Ask, version: int) -> Answer:
    """The answer to a request that policy allowed. version: of the CA's configuration."""
    deadline = time.monotonic() + JOIN_SECONDS
    try:
        upstream = context.upstreams.current(version)
    except Error as err:
        # no CA, or one whose keystore no longer opens: nothing that the device could mend
        log.error("the CA cannot be used: %s", err)
        records.refuse(context, ask, "failed", str(err))
        return Answer(503, f"the proxy cannot use its CA: {err}", retry_after=DOWN_RETRY)
    version = upstream.config.version
    if (busy := context.upstreams.gate.full()) is not None:
        row = records.defer(context, ask, version, str(busy), busy.seconds)
        if row is None:
            return Answer(202, str(busy), retry_after=busy.seconds)
    else:
        row = records.claim(context, ask, version)
    while not isinstance(row, records.Ticket):
        if row.state == "issued":
            return Answer(200, certificate=row.certificate)
        if row.state == "pending":
            return Answer(202, row.reason, retry_after=max(1, row.retry_at - row.clock))
        if time.monotonic() >= deadline:
            return Answer(202, UNDER_WAY, retry_after=2)
        with waiting():
            time.sleep(JOIN_STEP)
        row = records.claim(context, ask, version)
    try:
        return _ask(context, upstream, ask, row)
    except records.Lost as err:
        log.warning("%s: %s", ask.unit_id, err)
        return Answer(202, UNDER_WAY, retry_after=2)
    except BaseException:
        if not row.ended:
            with contextlib.suppress(Error):
                records.finish(context, row, "failed", "the proxy was interrupted")
        raise


def _ask(context: Context, upstream: Upstream, ask: records.Ask, ticket: records.Ticket) -> Answer:
    gate = context.upstreams.gate
    try:
        # a place is held for no longer than the CA takes: nobody waits for a turn in it
        with waiting(), context.upstreams.place():
            start = time.monotonic()
            with context.upstreams.exchange():
                # first what its answer is judged by: a certificate that could not be checked would be lost
                cas = cacerts.fresh(context, upstream)
                outcome = upstream.enroll(ask.csr, ticket)
            took = time.monotonic() - start
        if isinstance(outcome, Issued):
            gate.answered(took)
            good = _checked(context, upstream, outcome, ask.csr, cas)
            try:
                fresh = records.issued(
                    context,
                    ticket,
                    good.cert,
                    good.warnings,
                    issuer=good.cas[0].sha256.hex() if good.cas else "",
                    rate=upstream.config.settings.rate,
                )
            except Error:
                log.warning("%s: certificate %s is not recorded", ask.unit_id, good.cert.serial_hex)
                raise
            if not fresh:
                # NDES does so when the same key asks twice
                raise CheckError("the CA gave an old certificate again instead of a new one")
    except Busy as busy:
        return _wait(context, ticket, str(busy), busy.seconds)
    except TransportError as err:
        log.warning("%s: the CA cannot be asked: %s", ask.unit_id, err)
        if seconds := gate.failed():
            return _wait(context, ticket, f"the CA cannot be asked now: {err}", seconds)
        records.finish(context, ticket, "failed", str(err))
        return Answer(503, f"the CA cannot be asked now: {err}", retry_after=DOWN_RETRY)
    except (RemoteProtocolError, CheckError, CryptoError) as err:
        records.finish(context, ticket, "failed", str(err))
        log.warning("%s: the CA's answer is not usable: %s", ask.unit_id, err)
        return Answer(502, f"the CA's answer is not usable: {err}")
    if isinstance(outcome, Issued):
        cert = good.cert
        for warning in good.warnings:
            log.warning("%s: %s", ask.unit_id, warning)
        log.info("%s: certificate %s issued for %s", ask.unit_id, cert.serial_hex, cert.subject_text)
        return Answer(200, certificate=cert.der)
    return _other(context, ticket, outcome)


def _wait(context: Context, ticket: records.Ticket, text: str, seconds: int) -> Answer:
    """The request stays as it is, and comes again."""
    records.finish(context, ticket, "pending", text, retry_in=seconds)
    return Answer(202, text, retry_after=seconds)


def _other(context: Context, ticket: records.Ticket, outcome: Outcome) -> Answer:
    if isinstance(outcome, Pending):
        return _wait(context, ticket, outcome.reason or "it will decide later", outcome.retry_after)
    assert isinstance(outcome, Refused)
    text = f"the CA refused ({outcome.status}): {outcome.reason}"
    log.warning("%s: %s", ticket.ask.unit_id, text)
    overloaded = outcome.status == 429 or outcome.status >= 500
    if overloaded and (seconds := context.upstreams.gate.failed()):
        return _wait(context, ticket, text, max(seconds, outcome.retry_after or 0))
    records.finish(context, ticket, "refused", text)
    if overloaded:
        return Answer(503, text, retry_after=outcome.retry_after or DOWN_RETRY)
    if outcome.status in {401, 407} or 300 <= outcome.status < 400:
        return Answer(502, text)  # between the proxy and its CA; the device did nothing wrong
    return Answer(403, text)


def _checked(
    context: Context,
    upstream: Upstream,
    outcome: Issued,
    csr: pkcs10.CertificationRequest,
    cas: list[bytes],
) -> answers.Bundle:
    """The certificate for this request's key, verified; CheckError says what is wrong with it."""

    def check(cas: list[bytes]) -> answers.Bundle:
        return answers.check(outcome.certificates, cas, csr.spki, now(), request=csr)

    try:
        return check(cas)
    except answers.NoChain:
        # a CA that rolled over since its certificates were fetched
        with context.upstreams.slot():
            cas = cacerts.fresh(context, upstream, anew=True)
        return check(cas)
