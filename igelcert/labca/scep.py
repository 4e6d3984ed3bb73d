"""The lab CA's SCEP service (RFC 8894). No sockets here.

Three modes. "standard" does what the RFC says. "ejbca" and "ndes" imitate what is known of EJBCA and of Microsoft's
NDES, from descriptions and not from the products: what they do here, the products may do otherwise.

ejbca  alias in the URL; a `message` that is no CA name gives 404; chain with the root first; neither AES nor
       SCEPStandard announced; refusals as HTTP 400 with HTML; RenewalReq refused though Renewal is announced
ndes   separate RA certificates for signing and encryption; no Content-Type at GetCACaps; FAILURE signed with SHA-1,
       without certificates, with one octet of content and an HRESULT; the same key gets its old certificate
       again; one-time challenges of an administration page
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from .. import _der as der
from .. import crypto
from ..codec import pkcs10, pkimessage, scep
from ..codec.cms import certs_only
from ..codec.http import Request, Response, plain_line
from ..codec.pkimessage import Identity, Message
from ..errors import Error, RemoteProtocolError, StorageError
from .authority import Authority
from .ndes import AdminPage

__all__ = ["MODES", "ScepOptions", "ScepService"]

MODES = ("standard", "ejbca", "ndes")
EJBCA_PREFIX = "/ejbca/publicweb/apply/scep/"
NDES_PATHS = ("/certsrv/mscep/mscep.dll", "/certsrv/mscep/mscep.dll/pkiclient.exe")
NDES_ADMIN = "/certsrv/mscep_admin"
CA_NAME = "Lab Issuing CA"
TRANSACTIONS = 100_000
ANSWER_CIPHERS = ("aes-128-cbc", "aes-256-cbc", "des-ede3-cbc")
NTE_BAD_DATA, CERTSRV_E_PASSWORD, CERTSRV_E_BAD_REQUEST = 0x8009_0005, 0x8009_4809, 0x8009_4001

BAD_ALG, BAD_MESSAGE_CHECK, BAD_REQUEST, BAD_CERT_ID = 0, 1, 2, 4


@dataclass(frozen=True, slots=True)
class ScepOptions:
    """validity, pending: seconds. challenge: what every request must carry ("" for none). users: CA mode, where
    each common name is registered beforehand with a challenge of its own, good for one certificate."""

    mode: str = "standard"
    validity: float = 90 * 86_400
    pending: float = 0
    challenge: str = field(default="", repr=False)
    users: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ndes_user: str = ""
    ndes_password: str = field(default="", repr=False)
    delay: float = 0


class _Refusal(Exception):
    """A FAILURE: failInfo, a text, and for NDES an HRESULT."""

    def __init__(self, info: int, text: str, hresult: int = CERTSRV_E_BAD_REQUEST) -> None:
        super().__init__(text)
        self.info = info
        self.text = text
        self.hresult = hresult


@dataclass(slots=True)
class _Transaction:
    csr: bytes
    signer_spki: bytes
    granted: float
    certificate: bytes | None = None


class ScepService:
    def __init__(
        self, authority: Authority, options: ScepOptions, log: Callable[[str], None] = lambda _: None
    ) -> None:
        self._log = log
        self._authority = authority
        self._options = options
        self._lock = threading.RLock()
        self._transactions: dict[str, _Transaction] = {}
        self._by_key: dict[bytes, bytes] = {}
        self._users = dict(options.users)
        self.admin = AdminPage(options.ndes_user, options.ndes_password)
        issuing, root = authority.chain
        ca = Identity(_key(authority.private_file("issuing.key")), issuing)
        self._signer = self._opener = ca
        self._published = [issuing, root]
        self._cas = crypto.CertificateSet([issuing])
        if options.mode == "ejbca":
            self._published = [root, issuing]
        elif options.mode == "ndes":
            sign, encrypt = authority.scep_ra()
            self._signer, self._opener = (Identity(_key(path), cert) for path, cert in (sign, encrypt))
            self._published = [self._signer.cert, self._opener.cert, issuing, root]

    # ---- HTTP -----------------------------------------------------------------------------------

    def answer(self, request: Request, client: bytes | None) -> Response:
        path, _, query = request.path.partition("?")
        if self._options.mode == "ndes" and path.rstrip("/") == NDES_ADMIN:
            return self.admin.answer(request)
        if not self._mine(path):
            return _text(404, "there is no SCEP service at this address")
        try:
            operation, message = scep.read_query(query)
            if operation == "PKIOperation":
                if request.method not in {"GET", "POST"}:
                    return _text(405, "use GET or POST")
                return self._operate(scep.read_operation(request.method, message, request.body))
            if request.method not in {"GET", "HEAD"}:
                return _text(405, "use GET")
            if self._options.mode == "ejbca" and message and message != CA_NAME:
                return _html(404, f"CA {message} does not exist")
            if operation == "GetCACaps":
                return self._caps()
            if operation == "GetCACert":
                return scep.cacert_response(self._published)
        except RemoteProtocolError as err:
            return _text(err.status_hint, str(err))
        except Error as err:
            self._log(f"SCEP: {err}")
            return _text(500, str(err))
        return _text(400, "this operation is not offered here")

    def _mine(self, path: str) -> bool:
        if self._options.mode == "ejbca":
            alias, _, tail = path.removeprefix(EJBCA_PREFIX).partition("/")
            return path.startswith(EJBCA_PREFIX) and bool(alias) and tail == "pkiclient.exe"
        if self._options.mode == "ndes":
            return path.rstrip("/") in NDES_PATHS
        return path == "/scep" or path.startswith("/scep/")

    def _caps(self) -> Response:
        if self._options.mode == "standard":
            words: tuple[str, ...] = (
                "AES",
                "DES3",
                "POSTPKIOperation",
                "Renewal",
                "SCEPStandard",
                "SHA-256",
                "SHA-512",
            )
        else:
            words = ("POSTPKIOperation", "Renewal", "SHA-512", "SHA-256", "SHA-1", "DES3")
        kind = () if self._options.mode == "ndes" else (("Content-Type", "text/plain"),)
        end = "\r\n" if self._options.mode == "ndes" else "\n"
        return Response(200, kind, (end.join(words) + end).encode())

    # ---- messages -------------------------------------------------------------------------------

    def _operate(self, body: bytes) -> Response:
        message = pkimessage.read(body, enclosed=True, weak=True)
        if self._options.mode == "ejbca" and message.kind == pkimessage.RENEWAL_REQ:
            return _html(400, "Unsupported messageType 17")
        cipher = "aes-256-cbc"
        try:
            try:
                content, cipher = message.open(self._opener, weak=True)
            except RemoteProtocolError as err:
                raise _Refusal(BAD_MESSAGE_CHECK, str(err), NTE_BAD_DATA) from None
            with self._authority.at_work(self._options.delay):
                certificate = self._decide(message, content)
        except _Refusal as refusal:
            self._log(f"SCEP {plain_line(message.transaction_id, 64)}: refused: {plain_line(refusal.text)}")
            if self._options.mode == "ejbca" and "password" in refusal.text:
                return _html(400, refusal.text)
            return self._failure(message, refusal)
        if certificate is None:
            return self._reply(message, pkimessage.PENDING)
        return self._reply(message, pkimessage.SUCCESS, certs_only([certificate]), cipher)

    def _decide(self, message: Message, content: bytes) -> bytes | None:
        """The certificate, or None: not yet."""
        if message.kind in {pkimessage.PKCS_REQ, pkimessage.RENEWAL_REQ}:
            return self._enroll(message, content)
        try:
            if message.kind == pkimessage.CERT_POLL:
                pkimessage.read_issuer_and_subject(content)
                return self._poll(message)
            if message.kind == pkimessage.GET_CERT:
                issuer, serial = pkimessage.read_issuer_and_serial(content)
                return self._issued(issuer, serial)
        except RemoteProtocolError as err:
            raise _Refusal(BAD_REQUEST, str(err)) from None
        raise _Refusal(BAD_REQUEST, f"messageType {message.kind} is not offered here")

    def _enroll(self, message: Message, content: bytes) -> bytes | None:
        try:
            csr = pkcs10.parse(content)
        except RemoteProtocolError as err:
            raise _Refusal(BAD_REQUEST, str(err)) from None
        signer = _spki(message.signer)
        if not crypto.spki_type(signer).startswith("rsa_"):
            raise _Refusal(BAD_ALG, "nothing can be encrypted for the key of the signer")
        with self._lock:
            known = self._transactions.get(message.transaction_id)
            if known is not None and known.csr != csr.der:
                raise _Refusal(BAD_REQUEST, "another request has this transactionID")
            if known is not None and known.certificate and _young(known.certificate):
                return known.certificate  # an answer that was lost: no second certificate
            if self._options.mode == "ndes" and (old := self._by_key.get(csr.spki)):
                return old
            if known is None or known.certificate:
                self._authorise(message, csr)
                if len(self._transactions) >= TRANSACTIONS:
                    self._transactions.clear()
                known = _Transaction(csr.der, signer, time.monotonic() + self._options.pending)
                self._transactions[message.transaction_id] = known
            return self._grant(known)

    def _grant(self, known: _Transaction) -> bytes | None:
        if known.certificate is None and known.granted <= time.monotonic():
            csr = pkcs10.parse(known.csr, verify=False)  # verified when it came
            try:
                known.certificate = self._authority.issue(csr, self._options.validity)
            except RemoteProtocolError as err:
                raise _Refusal(BAD_REQUEST, str(err)) from None
            self._by_key[csr.spki] = known.certificate
        return known.certificate

    def _poll(self, message: Message) -> bytes | None:
        with self._lock:
            known = self._transactions.get(message.transaction_id)
            if known is None:
                raise _Refusal(BAD_CERT_ID, "there is no such transaction")
            if known.signer_spki != _spki(message.signer):
                raise _Refusal(BAD_CERT_ID, "the poll is signed by another key than the request")
            return self._grant(known)

    def _issued(self, issuer: bytes, serial: int) -> bytes:
        digits = f"{serial:X}"
        path = self._authority.directory / "issued" / f"{digits.zfill(len(digits) + len(digits) % 2)}.pem"
        ours = crypto.parse_certificate(self._authority.chain[0]).subject_der
        if issuer != ours or serial <= 0 or serial.bit_length() > 160 or not path.exists():
            raise _Refusal(BAD_CERT_ID, "there is no such certificate")
        cert = x509.load_pem_x509_certificate(path.read_bytes())
        return cert.public_bytes(serialization.Encoding.DER)

    def _authorise(self, message: Message, csr: pkcs10.CertificationRequest) -> None:
        """By the challenge password, or by a certificate of ours that is renewed."""
        if self._renews(message, csr):
            return
        given = csr.challenge or ""
        if self._options.users:
            cn = next((value for rdn in csr.subject for oid, value in rdn if oid == "2.5.4.3"), "")
            wanted = self._users.get(cn)
            if wanted is None:
                raise _Refusal(
                    BAD_REQUEST, "nobody of that name is registered, or the password was used already"
                )
            self._compare(given, wanted)
            del self._users[cn]
        elif self._options.mode == "ndes" and not self._options.challenge and self._options.ndes_user:
            if not self.admin.take(given):
                raise _Refusal(
                    BAD_REQUEST, "the challenge is missing, unknown, used or too old", CERTSRV_E_PASSWORD
                )
        elif self._options.challenge:
            self._compare(given, self._options.challenge)

    def _compare(self, given: str, wanted: str) -> None:
        if not given:
            raise _Refusal(BAD_REQUEST, "No password in request", CERTSRV_E_PASSWORD)
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise _Refusal(BAD_REQUEST, "Wrong password in request", CERTSRV_E_PASSWORD)

    def _renews(self, message: Message, csr: pkcs10.CertificationRequest) -> bool:
        """Signed by a certificate that we issued, which still is valid, for the same names."""
        try:
            signer = crypto.parse_certificate(message.signer)
            crypto.verify_chain(signer.der, [], [self._authority.chain[0]], int(time.time()), partial=True)
        except Error:
            return False
        return pkcs10.matches_certificate(csr, signer)

    # ---- answers --------------------------------------------------------------------------------

    def _reply(
        self, message: Message, status: int, content: bytes | None = None, cipher: str = "aes-256-cbc"
    ) -> Response:
        digest = message.digest if message.digest != "sha224" else "sha256"
        body = pkimessage.write(
            pkimessage.CERT_REP,
            content,
            self._signer,
            transaction_id=message.transaction_id,
            sender_nonce=secrets.token_bytes(16),
            recipient_nonce=message.sender_nonce,
            recipient=pkimessage.Recipient(message.signer),
            status=status,
            algorithms=pkimessage.Algorithms(digest, cipher if cipher in ANSWER_CIPHERS else "aes-256-cbc"),
            enclosed=() if self._options.mode == "ndes" else None,
        )
        return Response(200, (("Content-Type", "application/x-pki-message"),), body)

    def _failure(self, message: Message, refusal: _Refusal) -> Response:
        ndes = self._options.mode == "ndes"
        body = pkimessage.write(
            pkimessage.CERT_REP,
            None,
            self._signer,
            transaction_id=message.transaction_id,
            sender_nonce=secrets.token_bytes(16),
            recipient_nonce=message.sender_nonce,
            status=pkimessage.FAILURE,
            fail_info=refusal.info,
            fail_text="" if ndes else refusal.text[:200],
            algorithms=pkimessage.Algorithms("sha1") if ndes else pkimessage.MODERN,
            enclosed=() if ndes else None,
            extra=((pkimessage.HRESULT, der.integer(refusal.hresult)),) if ndes else (),
            dummy=b"\0" if ndes else b"",
        )
        return Response(200, (("Content-Type", "application/x-pki-message"),), body)


def _key(path: Path) -> crypto.Key:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise StorageError(f"{path}: {err.strerror}") from None
    try:
        return crypto.Key.read(handle)
    finally:
        os.close(handle)


def _spki(cert: bytes) -> bytes:
    try:
        return crypto.parse_certificate(cert).spki
    except Error:
        raise _Refusal(BAD_MESSAGE_CHECK, "the signer's certificate is not acceptable") from None


def _young(cert: bytes) -> bool:
    """In the first half of its life: a repeated request means that the answer was lost."""
    found = crypto.parse_certificate(cert)
    return time.time() < (found.not_before + found.not_after) / 2


def _text(status: int, text: str) -> Response:
    return Response(status, (("Content-Type", "text/plain; charset=utf-8"),), (text + "\n").encode())


def _html(status: int, text: str) -> Response:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    page = f"<html><head><title>Error</title></head><body><h1>HTTP Status {status}</h1><p>{escaped}</p></body></html>\n"
    return Response(status, (("Content-Type", "text/html;charset=utf-8"),), page.encode())
