"""SCEP towards the CA (RFC 8894). The proxy signs with a transport key, which lets device keys of every type travel.

What a request is known by (transaction, transport key, the certificate for it) is kept before it is sent. After a
pending answer, and after one that was lost, the CA is asked with CertPoll what became of it; where it knows
nothing of that, the very request is sent again under the same transactionID.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from ... import crypto
from ...codec import pkcs10, pkimessage, scep
from ...codec.http import Response, plain_reason
from ...codec.pkimessage import Algorithms, Identity, Message
from ...codec.scep import Authorities, Capabilities
from ...errors import CheckError, Error, RemoteProtocolError
from ...model import Outcome, Pending, Refused, Subject
from .channel import Channel, client_context, date
from .config import CaConfig
from .scepkeys import TransportKeys
from .steps import Step, Ticket

__all__ = ["ScepUpstream"]

TRUST_HINT = "give the certificate of the web server, or of its CA: ca-proxy ca set-scep --certificate"
FRESH_SECONDS = 3600  # capabilities and CA certificates of the server are asked for again after that
CERTIFICATE_DAYS = 30  # of the self-signed one: it must outlive a pending request
BACKDATE = 3600


@dataclass(frozen=True, slots=True)
class _Server:
    """What the server said of itself, and what follows for our messages."""

    caps: Capabilities
    algorithms: Algorithms
    authorities: Authorities
    recipient: pkimessage.Recipient
    signers: crypto.CertificateSet
    at: float


@dataclass(slots=True)
class _State:
    """A request under way, as it is kept. key: name of the transport key; cert: its certificate, base64."""

    key: str
    cert: str
    transaction: str
    pending: bool = False


class ScepUpstream:
    """One SCEP server. Its capabilities and certificates are fetched when they are needed, and kept an hour."""

    def __init__(
        self,
        config: CaConfig,
        timeout: float,
        keys: TransportKeys,
        given_out: Callable[[crypto.Certificate], bool],
    ) -> None:
        """given_out: did a device get that certificate from us?"""
        self.config = config
        self._keys = keys
        self._given_out = given_out
        tls, host, port, self._path = config.scep.where
        context = client_context(config.scep.certificate) if tls else None
        self._channel = Channel(host, port, timeout, context, TRUST_HINT)
        self._lock = threading.Lock()
        self._known: _Server | None = None

    def __repr__(self) -> str:
        return f"<ScepUpstream {self._channel.name}>"

    def close(self) -> None:
        self._channel.close()

    def cacerts(self) -> list[bytes]:
        """CheckError, too: when they are not those of the configured fingerprint."""
        return [cert.der for cert in self._server(anew=True).authorities.cas]

    # ---- what the server is ---------------------------------------------------------------------

    def _server(self, *, anew: bool = False) -> _Server:
        with self._lock:
            found = self._known
        if found is not None and not anew and time.monotonic() - found.at < FRESH_SECONDS:
            return found
        caps = scep.caps_reply(self._channel.send(scep.caps_request(self._path, self.config.scep.profile)))
        algorithms = caps.algorithms(legacy=self.config.scep.legacy)
        authorities = scep.authorities(self._certificates(), self.config.scep.fingerprint)
        found = _Server(
            caps,
            algorithms,
            authorities,
            pkimessage.Recipient(authorities.recipient.der),
            authorities.signers,
            time.monotonic(),
        )
        with self._lock:
            self._known = found
        return found

    def _certificates(self) -> list[crypto.Certificate]:
        """The answer to GetCACert. An RA is known by nothing but its issuer, so a device that stands between could
        show its own certificate as the RA's, and open requests with their challenge passwords: CheckError."""
        reply = self._channel.send(scep.cacert_request(self._path, self.config.scep.profile))
        certs = scep.cacert_reply(reply)
        if stranger := next((cert for cert in certs if not cert.is_ca and self._given_out(cert)), None):
            raise CheckError(
                f"the server shows a device's certificate ({stranger.subject_text or stranger.serial_hex}) as its own",
                hint="somebody may stand between: look who answers at that address; https is safer",
            )
        return certs

    def _forget(self) -> None:
        """What is known of the server may be out of date: its RA certificates change, too."""
        with self._lock:
            self._known = None

    # ---- enrolling ------------------------------------------------------------------------------

    def enroll(self, csr: pkcs10.CertificationRequest, ticket: Ticket) -> Outcome:
        """Asks, or asks again what became of it. Issued, Pending or Refused, as the CA has it."""
        self._keys.prepare()  # beside what is asked of the server below
        try:
            server = self._server()
            return self._enroll(server, csr, ticket)
        except (RemoteProtocolError, CheckError):
            self._forget()
            raise

    def _enroll(self, server: _Server, csr: pkcs10.CertificationRequest, ticket: Ticket) -> Outcome:
        resumed = self._resume(ticket)
        outcome = self._poll(server, csr, *resumed) if resumed else None
        state, mine = resumed or self._begin(csr)
        if outcome is None:
            state.pending = False
            ticket.keep(json.dumps(asdict(state)))
            renewing = ticket.renewal and self.config.scep.renewal == "renewalreq"
            kind = pkimessage.RENEWAL_REQ if renewing else pkimessage.PKCS_REQ
            outcome = self._exchange(server, kind, csr.der, state, mine)
        if isinstance(outcome, Pending):
            if not state.pending:
                state.pending = True
                ticket.keep(json.dumps(asdict(state)))
            return Pending(self.config.scep.poll, outcome.reason or "the CA has not decided yet")
        if isinstance(outcome, Refused):
            self._forget()
        return outcome

    def _begin(self, csr: pkcs10.CertificationRequest) -> tuple[_State, Identity]:
        name, key = self._keys.current()
        moment = int(time.time())
        # RFC 8894 2.3: the subject of the request; one without a subject needs a name all the same
        subject = csr.subject_der if csr.subject else pkcs10.encode_name(Subject(cn="igelcert"))
        serial = secrets.randbits(63) | 1
        cert = pkimessage.self_signed(
            key, subject, serial, moment - BACKDATE, moment + CERTIFICATE_DAYS * 86_400
        )
        transaction = hashlib.sha256(csr.spki + cert).hexdigest()[:40].upper()
        return _State(name, base64.b64encode(cert).decode(), transaction), Identity(key, cert)

    def _resume(self, ticket: Ticket) -> tuple[_State, Identity] | None:
        """What was kept; None when there is nothing, or its key is gone."""
        if not ticket.value:
            return None
        try:
            state = _State(**json.loads(ticket.value))
            cert = base64.b64decode(state.cert)
        except (ValueError, TypeError):
            return None
        key = self._keys.get(state.key)
        return None if key is None else (state, Identity(key, cert))

    def _poll(
        self, server: _Server, csr: pkcs10.CertificationRequest, state: _State, mine: Identity
    ) -> Outcome | None:
        """What became of a request; None: the server knows nothing of it, so it must be sent again."""
        issuer = next((c for c in server.authorities.cas if c.is_ca), server.authorities.recipient)
        ca = server.authorities.recipient if server.authorities.recipient.is_ca else issuer
        content = pkimessage.issuer_and_subject(ca.subject_der, csr.subject_der)
        outcome = self._exchange(server, pkimessage.CERT_POLL, content, state, mine)
        if not isinstance(outcome, Refused):
            return outcome
        # of a request that was never seen to be pending, a refusal says that the server takes no polls or
        # never got it; of one that was, only "badCertId" says so
        if not state.pending or outcome.reason.startswith("badCertId"):
            return None
        return outcome

    def _exchange(self, server: _Server, kind: int, content: bytes, state: _State, mine: Identity) -> Outcome:
        nonce = secrets.token_bytes(pkimessage.NONCE_SIZE)
        message = pkimessage.write(
            kind,
            content,
            mine,
            transaction_id=state.transaction,
            sender_nonce=nonce,
            recipient=server.recipient,
            algorithms=server.algorithms,
        )
        response = self._channel.send(scep.operation_request(self._path, message, post=server.caps.post))
        reply = scep.operation_reply(response, server.signers, transaction=state.transaction, nonce=nonce)
        if isinstance(reply, Refused):
            return reply
        return scep.outcome(reply, mine, legacy=self.config.scep.legacy)

    # ---- pass-through ---------------------------------------------------------------------------

    def ask(self, operation: str) -> Response:
        """The server's own answer to GetCACaps, GetCACert or GetNextCACert, for a client behind us."""
        make = {
            "GetCACaps": scep.caps_request,
            "GetCACert": scep.cacert_request,
            "GetNextCACert": scep.next_cacert_request,
        }[operation]
        return self._channel.send(make(self._path, self.config.scep.profile))

    def relay(self, data: bytes, message: Message) -> tuple[Response, Message | Refused]:
        """A client's pkiMessage as it is, with what the outside of the answer says: it is the CA's, and to this."""
        server = self._server()
        response = self._channel.send(scep.operation_request(self._path, data, post=server.caps.post))
        reply = scep.operation_reply(
            response,
            server.signers,
            transaction=message.transaction_id,
            nonce=message.sender_nonce or b"",
        )
        return response, reply

    # ---- ca test --------------------------------------------------------------------------------

    def test(self) -> Iterator[Step]:
        """Name, TCP, TLS trust, capabilities, CA certificates with their fingerprint; ends at the first that fails."""
        good = True
        for step in self._channel.test_connection():
            good = step.ok
            yield step
        if good:
            yield from self._test_answers()

    def _test_answers(self) -> Iterator[Step]:
        settings = self.config.scep
        try:
            response = self._channel.send(scep.caps_request(self._path, settings.profile))
            caps = scep.caps_reply(response)
        except Error as err:
            yield Step("capabilities", False, str(err), err.hint)
            return
        if response.status != 200:
            why = plain_reason(response)
            yield Step(
                "capabilities",
                False,
                f"asked for its capabilities, the server answers {response.status}{': ' + why if why else ''}",
                "compare the URL with the CA, letter by letter"
                + (f", and the profile {settings.profile!r}" if settings.profile else ""),
            )
            return
        try:
            algorithms = caps.algorithms(legacy=settings.legacy)
        except CheckError as err:
            yield Step(
                "capabilities", False, f"{err} ({' '.join(caps.words) or 'it announces nothing'})", err.hint
            )
            return
        way = "POST" if caps.post else "GET"
        yield Step(
            "capabilities",
            True,
            f"{' '.join(caps.words)}; requests go by {way} with {algorithms.cipher} and {algorithms.digest}",
        )
        try:
            certs = self._certificates()
        except Error as err:
            yield Step("CA certificates", False, str(err), err.hint)
            return
        names = ", ".join(cert.cn or cert.subject_text for cert in certs)
        yield Step(
            "CA certificates", True, f"{len(certs)} certificate{'s' if len(certs) != 1 else ''}: {names}"
        )
        try:
            found = scep.authorities(certs, settings.fingerprint)
        except CheckError as err:
            yield Step(
                "fingerprint" if settings.fingerprint else "CA certificates", False, str(err), err.hint
            )
            return
        yield _fingerprint_step(found, settings.fingerprint)
        signers = [c for c in found.everything if c.key_usage < 0 or c.key_usage & 0x80] or found.everything
        yield Step(
            "who does what",
            True,
            f"requests are encrypted for {_shown(found.recipient)}; answers may be signed by "
            + ", ".join(_shown(cert) for cert in signers),
        )


def _fingerprint_step(found: Authorities, fingerprint: str) -> Step:
    root = found.root
    if root is None:
        return Step("fingerprint", True, "not configured, and the server shows no root certificate")
    if fingerprint:
        return Step("fingerprint", True, f"{_shown(root)} has the configured fingerprint")
    return Step(
        "fingerprint",
        True,
        f"not configured; that of {_shown(root)} is {scep.fingerprint_of(root, 64)} (SHA-256)",
    )


def _shown(cert: crypto.Certificate) -> str:
    return f"{cert.cn or cert.subject_text} (until {date(cert.not_after)})"
