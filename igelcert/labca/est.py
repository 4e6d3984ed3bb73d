"""The lab CA's EST service (RFC 7030): who may ask for what, and the answer. No sockets here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import threading
import time
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from .. import crypto
from ..codec import est, pkcs10
from ..codec.http import Request, Response
from ..errors import Error, RemoteProtocolError
from ..record import replace
from .authority import CMC_RA, Authority

__all__ = ["EstService", "Options"]

PENDING_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Options:
    """validity: seconds of what is issued. pending: seconds for which a request is first answered 202. delay: seconds that
    a request takes. user, password: HTTP Basic for devices without a proxy. csrattrs: OIDs to advise."""

    validity: float = 90 * 86_400
    pending: float = 0
    user: str = ""
    password: str = field(default="", repr=False)
    csrattrs: tuple[str, ...] = ()
    delay: float = 0


class EstService:
    def __init__(self, authority: Authority, options: Options) -> None:
        self._authority = authority
        self._options = options
        self._waiting: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def answer(self, request: Request, client: bytes | None) -> Response:
        """The answer to a request; `client` is the verified TLS client certificate, DER."""
        target = est.route(request.path.partition("?")[0])
        if target is None:
            return est.error_response(404, "this is an EST server: /.well-known/est/[label/]operation")
        operation, _label = target  # any label is accepted: there is one CA
        try:
            if operation == "cacerts":
                return self._get(request) or est.certs_response(self._authority.chain)
            if operation == "csrattrs":
                return self._get(request) or est.csrattrs_response(self._options.csrattrs)
            if operation in {"simpleenroll", "simplereenroll"}:
                with self._authority.at_work(self._options.delay):
                    return self._enroll(request, client, operation == "simplereenroll")
        except RemoteProtocolError as err:
            return est.error_response(err.status_hint, str(err))
        except Error as err:
            return est.error_response(500, str(err))
        return est.error_response(501, f"{operation} is not offered here")

    @staticmethod
    def _get(request: Request) -> Response | None:
        if request.method in {"GET", "HEAD"}:
            return None
        return est.error_response(405, "use GET")

    def _enroll(self, request: Request, client: bytes | None, renew: bool) -> Response:
        if request.method != "POST":
            return est.error_response(405, "use POST")
        cert = x509.load_der_x509_certificate(client) if client else None
        trusted = (cert is not None and not self._own_device(cert)) or self._basic(request)
        if not trusted and cert is None:
            return self._challenge(request)
        csr = pkcs10.parse(est.csr_from_request(request.body, request.header("Content-Type")))
        if not trusted and client is not None:
            if not renew:
                return est.error_response(403, "this client certificate may only renew itself")
            if not pkcs10.matches_certificate(csr, crypto.parse_certificate(client)):
                return est.error_response(
                    403, "subject or alternative names differ from the certificate to renew"
                )
        wait = self._wait(csr.der)
        if wait > 0:
            # no body: Bouncy Castle reads none here, and then takes the connection for broken
            return replace(est.pending_response(int(wait) + 1, ""), body=b"")
        return est.certs_response([self._authority.issue(csr, self._options.validity)], enroll=True)

    def _challenge(self, request: Request) -> Response:
        refusal = est.error_response(401, "a client certificate or a password is needed")
        if self._options.user and not request.header("Authorization"):
            # Bouncy Castle gives up on a first challenge that has a body
            refusal = Response(401)
        return replace(refusal, headers=(*refusal.headers, ("WWW-Authenticate", 'Basic realm="lab-ca"')))

    def _own_device(self, cert: x509.Certificate) -> bool:
        """A certificate of this CA that is not the RA's: TLS has verified it against our CAs or others."""
        try:
            cert.verify_directly_issued_by(self._authority.issuing)
        except (ValueError, TypeError, InvalidSignature):
            return False
        try:
            usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            return True
        return CMC_RA not in usage

    def _basic(self, request: Request) -> bool:
        scheme, _, value = request.header("Authorization").partition(" ")
        if scheme.lower() != "basic" or not self._options.user:
            return False
        try:
            given = base64.b64decode(value.strip(), validate=True)
        except binascii.Error:
            return False
        return hmac.compare_digest(given, f"{self._options.user}:{self._options.password}".encode())

    def _wait(self, csr: bytes) -> float:
        """Seconds until this very request is granted."""
        if not self._options.pending:
            return 0
        key = hashlib.sha256(csr).digest()
        with self._lock:
            if len(self._waiting) >= PENDING_MAX:
                self._waiting.clear()
            granted = self._waiting.setdefault(key, time.monotonic() + self._options.pending)
        return granted - time.monotonic()
