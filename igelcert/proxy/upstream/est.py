"""EST towards the CA (RFC 7030), the proxy being a registration authority with a client certificate.

It always uses /simpleenroll: /simplereenroll is authenticated by the certificate to be renewed, whose key
no registration authority holds.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

from ... import crypto
from ...codec import est, pkcs10
from ...codec.http import Request, Response, plain_reason
from ...errors import Error, SettingsError, TransportError
from ...model import Outcome
from ..keystore import ClientKeystore, open_keystore
from ..tls import load_pair
from .channel import Channel, date
from .config import CaConfig
from .steps import Step, Ticket

__all__ = ["EstUpstream"]

TRUST_HINT = "the keystore must hold the server's web certificate or the CA that issued it"
_NO_CSR = b"\x30\x00"  # parses as DER and is no request: no CA can issue anything for it


class EstUpstream:
    """One EST server. Connections are made when they are needed and kept for the next request."""

    def __init__(self, config: CaConfig, timeout: float) -> None:
        self.config = config
        # its dates are looked at with every request: it may expire while this lives
        self._keystore = open_keystore(config.keystore, config.password, int(time.time()), stored=True)
        tls = _client_context(self._keystore)
        self._channel = Channel(config.est.host, config.est.port, timeout, tls, TRUST_HINT)

    def __repr__(self) -> str:
        return f"<EstUpstream {self._channel.name}>"

    @property
    def _label(self) -> str | None:
        return self.config.est.label or None

    def close(self) -> None:
        self._channel.close()

    def cacerts(self) -> list[bytes]:
        return est.cacerts_reply(self._send(est.cacerts_request(self._label)))

    def enroll(self, csr: pkcs10.CertificationRequest, ticket: Ticket) -> Outcome:
        """As if for the first time: EST keeps nothing between requests, the same one again is a poll."""
        return est.enroll_reply(self._send(est.enroll_request(csr.der, self._label)), int(time.time()))

    def _send(self, request: Request) -> Response:
        if time.time() >= self._keystore.cert.not_after:
            raise TransportError(
                f"the client certificate for the CA ({self._keystore.cert.cn}) has expired",
                link="tls-client",
                hint="get a new keystore from the PKI and run: ca-proxy ca set-est",
            )
        return self._channel.send(request)

    # ---- ca test --------------------------------------------------------------------------------

    def test(self) -> Iterator[Step]:
        """Name, TCP, TLS trust, client certificate, label, CA answer; ends at the first that fails."""
        good = True
        for step in self._channel.test_connection():
            good = step.ok
            yield step
        if good:
            yield from self._test_answers()

    def _test_answers(self) -> Iterator[Step]:
        """Three steps out of two requests: CA certificates, and a request that no CA can grant."""
        certificate, label, answer = "client certificate", "label", "CA answer"
        ours = self._keystore.cert
        try:
            cacerts = self._send(est.cacerts_request(self._label))
            probe = self._send(est.enroll_request(_NO_CSR, self._label)) if cacerts.status == 200 else cacerts
        except TransportError as err:
            yield Step(certificate if err.link == "tls-client" else answer, False, str(err), err.hint)
            return
        except Error as err:
            yield Step(answer, False, str(err), err.hint)
            return
        if probe.status in {401, 403}:
            why = plain_reason(probe)
            yield Step(
                certificate,
                False,
                f"the CA does not let {ours.subject_text} enroll ({probe.status}){': ' + why if why else ''}",
                "give this certificate the right to enroll at the CA (in EJBCA: a role of the RA)",
            )
            return
        yield Step(certificate, True, f"{ours.subject_text}, until {date(ours.not_after)}")
        shown = f"label {self._label!r}" if self._label else "no label"
        if cacerts.status != 200:
            why = plain_reason(cacerts)
            hint = (
                "compare it with the CA, letter by letter: case counts"
                if self._label
                else "does the CA want a label?"
            )
            yield Step(
                label, False, f"with {shown} the CA answers {cacerts.status}{': ' + why if why else ''}", hint
            )
            return
        yield Step(label, True, f"{shown} is served")
        try:
            certs = [crypto.parse_certificate(der) for der in est.cacerts_reply(cacerts)]
        except Error as err:
            yield Step(answer, False, f"the CA certificates cannot be read: {err}", "is this an EST server?")
            return
        names = ", ".join(cert.cn or cert.subject_text for cert in certs)
        yield Step(answer, True, f"{len(certs)} CA certificate{'s' if len(certs) != 1 else ''}: {names}")


def _client_context(keystore: ClientKeystore) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # the keystore may carry the server's own certificate as its trust, with no CA at all
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata="".join(cert.pem() for cert in keystore.trust))
    except ssl.SSLError as err:
        raise SettingsError("--keystore", f"its trusted certificates cannot be used: {err.reason}") from None
    chain = "".join(
        cert.pem() for cert in (keystore.cert, *keystore.chain) if not cert.is_ca or not cert.self_issued
    )
    load_pair(context, chain, lambda fd, password: keystore.key.write(fd, crypto.Password(password, 1000)))
    return context
