"""SCEP (RFC 8894) over HTTP: capabilities, CA certificates, PKI operations, for both ends, as pure functions."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from .. import crypto
from ..errors import CheckError, CryptoError, RemoteProtocolError
from ..model import Issued, Outcome, Pending, Refused
from ..record import record
from . import pkimessage
from .cms import certs_only, read_certs_only
from .http import Request, Response, plain_line, plain_reason
from .pem import decode_pem, is_pem
from .pkimessage import Algorithms, Identity, Message

__all__ = [
    "Authorities",
    "Capabilities",
    "authorities",
    "cacert_reply",
    "cacert_request",
    "cacert_response",
    "caps_reply",
    "caps_request",
    "fingerprint_of",
    "next_cacert_reply",
    "next_cacert_request",
    "operation_reply",
    "operation_request",
    "outcome",
    "read_operation",
    "read_query",
    "refusal",
    "transaction_id",
]

MAX_BODY = 1 << 20
MAX_QUERY = 64 * 1024
MAX_CERTS = 20
POLL_SECONDS = 60  # SCEP has no Retry-After of its own
_WORDS = {
    word.lower(): word
    for word in (
        "AES",
        "DES3",
        "GetNextCACert",
        "POSTPKIOperation",
        "Renewal",
        "SCEPStandard",
        "SHA-1",
        "SHA-256",
        "SHA-512",
    )
}
_STANDARD = ("AES", "SHA-256", "POSTPKIOperation")  # what SCEPStandard stands for (3.5.2)
_KINDS = {
    "getcacaps": "GetCACaps",
    "getcacert": "GetCACert",
    "getnextcacert": "GetNextCACert",
    "pkioperation": "PKIOperation",
}


# ---- capabilities -------------------------------------------------------------------------------


@record
class Capabilities:
    """What a server announces (RFC 8894 3.5.2), in its order; words unknown here are left out."""

    words: tuple[str, ...] = ()

    def __contains__(self, word: str) -> bool:
        return word in self.words or ("SCEPStandard" in self.words and word in _STANDARD)

    @property
    def post(self) -> bool:
        return "POSTPKIOperation" in self

    def algorithms(self, *, legacy: bool) -> Algorithms:
        """What to write for this server; CheckError when it takes only what is not allowed (`legacy`).

        A server that knows SHA-2 is taken to open AES even where it does not say so, as EJBCA does not. With
        `legacy` what it announces decides, down to SHA-1 and triple DES.
        """
        digest = "sha256" if "SHA-256" in self else "sha512" if "SHA-512" in self else "sha1"
        if digest == "sha1" and not legacy:
            raise CheckError(
                "the server announces neither SHA-256 nor SHA-512",
                hint="if it is an old server that you trust, let the proxy speak SHA-1 and triple DES with it:"
                " ca-proxy ca set-scep --legacy",
            )
        return Algorithms(digest, "des-ede3-cbc" if legacy and "AES" not in self else "aes-256-cbc")


def caps_request(path: str, message: str = "") -> Request:
    return _get(path, "GetCACaps", message)


def caps_reply(response: Response) -> Capabilities:
    """An empty answer or an error means: no capability (RFC 8894 3.5.2). The content type is ignored."""
    if response.status != 200:
        return Capabilities()
    text = response.body[:65_536].decode("utf-8", "replace").removeprefix("\ufeff")
    found = (_WORDS.get(line.strip().lower()) for line in text.splitlines())
    return Capabilities(tuple(dict.fromkeys(word for word in found if word)))


# ---- CA certificates ----------------------------------------------------------------------------


@record
class Authorities:
    """The certificates of a GetCACert answer by what they are for.

    root: the one that the fingerprint is of; None when the answer ends in an intermediate. recipient: requests
    are encrypted for it. signers: may sign answers. cas: CA certificates alone, for the device.
    """

    everything: tuple[crypto.Certificate, ...]
    recipient: crypto.Certificate
    root: crypto.Certificate | None
    cas: tuple[crypto.Certificate, ...]

    @property
    def signers(self) -> crypto.CertificateSet:
        """Made anew with every call: keep it."""
        return crypto.CertificateSet(cert.der for cert in self.everything)


def cacert_request(path: str, message: str = "") -> Request:
    return _get(path, "GetCACert", message)


def cacert_reply(response: Response) -> list[crypto.Certificate]:
    """Certificates of a GetCACert answer: one in DER, or a certs-only message; PEM and base64 are taken, too.

    What the bytes are decides, not the content type: servers leave it out.
    """
    if response.status != 200:
        why = plain_reason(response)
        raise RemoteProtocolError(
            f"asked for its CA certificates, the server answered {response.status}{': ' + why if why else ''}",
            status_hint=502,
        )
    certs = _certificates(response.body)
    if not certs:
        raise RemoteProtocolError("the server's answer holds no CA certificate", status_hint=502)
    if len(certs) > MAX_CERTS:
        raise RemoteProtocolError(f"the server sent more than {MAX_CERTS} CA certificates", status_hint=502)
    try:
        return [crypto.parse_certificate(each) for each in certs]
    except CryptoError as err:
        raise RemoteProtocolError(
            f"a CA certificate of the server is damaged: {err}", status_hint=502
        ) from None


def _certificates(body: bytes) -> list[bytes]:
    if is_pem(body):
        return decode_pem(body)
    if body[:1] != b"\x30":
        text = b"".join(body.split())
        try:
            body = binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            body = b""
        if body[:1] != b"\x30":
            raise RemoteProtocolError(
                "the server's answer is not a certificate"
                + (" but a web page: is the URL right?" if text[:1] == b"<" else ""),
                status_hint=502,
            )
    try:
        return [crypto.parse_certificate(body).der]
    except CryptoError:
        return read_certs_only(body)


def fingerprint_of(cert: crypto.Certificate, digits: int) -> str:
    """The fingerprint with that many hexadecimal digits (32: MD5, 40: SHA-1, 64: SHA-256), lower case."""
    name = {32: "md5", 40: "sha1", 64: "sha256"}[digits]
    return hashlib.new(name, cert.der, usedforsecurity=False).hexdigest()


def authorities(certs: list[crypto.Certificate], fingerprint: str = "") -> Authorities:
    """Sorts a GetCACert answer. fingerprint: hexadecimal digits of the root's, "" when none is pinned.

    CheckError: the fingerprint is of none of them, two unrelated roots without one, nobody to encrypt for.
    """
    certs = list(dict.fromkeys(certs))
    roots = [cert for cert in certs if cert.self_issued and _signed_by(cert, cert)]
    if fingerprint:
        root = next(
            (c for c in certs if hmac.compare_digest(fingerprint_of(c, len(fingerprint)), fingerprint)), None
        )
        if root is None:
            shown = "; ".join(
                f"{c.cn or c.subject_text}: {fingerprint_of(c, len(fingerprint))}" for c in roots or certs
            )
            raise CheckError(
                "none of the server's CA certificates has the configured fingerprint",
                hint=f"compare with the CA's operator; the server shows {shown}",
            )
    elif len(roots) > 1:
        raise CheckError(
            f"the server shows {len(roots)} unrelated root certificates",
            hint="give the fingerprint of the right one: ca-proxy ca set-scep --fingerprint",
        )
    else:
        root = roots[0] if roots else None
    related = [c for c in certs if root is None or _leads_to(c, root, certs)]
    recipient = _recipient(related)
    cas = [cert for cert in related if cert.is_ca or cert is root]
    return Authorities(tuple(related), recipient, root, tuple(cas or related))


def _recipient(certs: list[crypto.Certificate]) -> crypto.Certificate:
    """By key usage, never by position; an RA before a CA (RFC 8894 3.1, and what NDES wants).

    A server that shows nothing with keyEncipherment, as micromdm's does, decrypts with its CA all the same.
    """
    able = [cert for cert in certs if pkimessage.encipherment_allowed(cert)]
    registration = [cert for cert in able if not cert.is_ca]
    if registration:
        marked = [c for c in registration if c.key_usage >= 0]
        return (marked or registration)[0]
    cas = able or [cert for cert in certs if cert.is_ca and cert.key_type.startswith("rsa_")]
    if not cas:
        raise CheckError(
            "none of the server's certificates may be encrypted for (RSA, keyUsage keyEncipherment)",
            hint="the CA or RA certificate of a SCEP server needs an RSA key",
        )
    # the CA that issues: no other one stands below it
    return next((cert for cert in cas if not _issued_some(cert, certs)), cas[0])


def _issued_some(cert: crypto.Certificate, certs: list[crypto.Certificate]) -> bool:
    return any(c != cert and c.is_ca and c.issuer_der == cert.subject_der for c in certs)


def _signed_by(cert: crypto.Certificate, issuer: crypto.Certificate) -> bool:
    try:
        crypto.verify_chain(cert.der, [], [issuer.der], cert.not_before, partial=True)
    except CryptoError:
        return False
    return True


def _leads_to(cert: crypto.Certificate, root: crypto.Certificate, pool: list[crypto.Certificate]) -> bool:
    if cert == root:
        return True
    try:
        moment = max(cert.not_before, root.not_before)
        crypto.verify_chain(cert.der, [c.der for c in pool], [root.der], moment, partial=True)
    except CryptoError:
        return False
    return True


def cacert_response(certs: Iterable[bytes]) -> Response:
    """One certificate bare, several as a certs-only message (RFC 8894 4.2.1)."""
    found = list(certs)
    if len(found) == 1:
        return Response(200, (("Content-Type", "application/x-x509-ca-cert"),), found[0])
    return Response(200, (("Content-Type", "application/x-x509-ca-ra-cert"),), certs_only(found))


def next_cacert_request(path: str, message: str = "") -> Request:
    return _get(path, "GetNextCACert", message)


def next_cacert_reply(
    response: Response, signers: crypto.CertificateSet, *, weak: bool = False
) -> list[crypto.Certificate]:
    """The CA certificates of the roll-over, vouched for by the current CA (RFC 8894 4.6)."""
    if response.status != 200:
        raise RemoteProtocolError(
            f"asked for its next CA certificates, the server answered {response.status}", status_hint=502
        )
    content = pkimessage.read_next_ca(response.body, signers, weak=weak)
    return [crypto.parse_certificate(each) for each in read_certs_only(content)]


# ---- PKI operations -----------------------------------------------------------------------------


def _get(path: str, operation: str, message: str) -> Request:
    tail = f"&message={quote(message, safe='')}" if message else ""
    return Request("GET", f"{path}{'&' if '?' in path else '?'}operation={operation}{tail}")


def operation_request(path: str, message: bytes, *, post: bool) -> Request:
    """PKIOperation (RFC 8894 4.3): raw binary by POST, escaped base64 by GET."""
    if post:
        target = f"{path}{'&' if '?' in path else '?'}operation=PKIOperation"
        return Request("POST", target, (("Content-Type", "application/x-pki-message"),), message)
    return _get(path, "PKIOperation", binascii.b2a_base64(message, newline=False).decode())


def operation_reply(
    response: Response,
    signers: crypto.CertificateSet,
    *,
    transaction: str,
    nonce: bytes,
    legacy: bool = False,
) -> Message | Refused:
    """The CertRep to our request, verified and matched; Refused for an HTTP refusal (EJBCA's pages, NDES's).

    A signature with SHA-1 passes: servers of today still write it, NDES for its refusals, Go's for everything.
    RemoteProtocolError for an answer that is not to our request, or not from the CA.
    """
    if response.status != 200:
        reason = plain_reason(response) or f"HTTP status {response.status}"
        return Refused(response.status, reason)
    if response.body[:1] != b"\x30":
        raise RemoteProtocolError(
            f"the server answered with no pkiMessage: {plain_reason(response, 160) or 'nothing'}",
            status_hint=502,
        )
    found = pkimessage.read(response.body, signers, weak=True)
    if found.kind != pkimessage.CERT_REP:
        raise RemoteProtocolError(
            f"the answer has messageType {found.kind} instead of 3 (CertRep)", status_hint=502
        )
    if found.transaction_id != transaction:
        raise RemoteProtocolError("the answer's transactionID is that of another request", status_hint=502)
    if found.recipient_nonce is None:
        raise RemoteProtocolError("the answer has no recipientNonce", status_hint=502)
    if not hmac.compare_digest(found.recipient_nonce, nonce):
        raise RemoteProtocolError(
            "the answer's recipientNonce is not the senderNonce of our request: an old answer?",
            status_hint=502,
        )
    if found.status is None:
        raise RemoteProtocolError("the answer's pkiStatus is missing", status_hint=502)
    if found.status not in {pkimessage.SUCCESS, pkimessage.FAILURE, pkimessage.PENDING}:
        raise RemoteProtocolError(f"the answer's pkiStatus {found.status} is unknown", status_hint=502)
    return found


def outcome(message: Message, mine: Identity, *, legacy: bool = False) -> Outcome:
    """What a CertRep says: Issued, Pending or Refused. `mine`: who signed the request; the answer is for it."""
    if message.status == pkimessage.PENDING:
        return Pending(POLL_SECONDS)
    if message.status == pkimessage.FAILURE:
        return Refused(403, refusal(message))
    content, _cipher = message.open(mine, weak=legacy)
    found = read_certs_only(content)
    if not found:
        raise RemoteProtocolError("the answer says success and holds no certificate", status_hint=502)
    return Issued(tuple(found))


_HRESULTS = {  # of NDES and the certification authority behind it, by what can be done
    0x80090005: "bad data: the request is encrypted for the wrong certificate, or the NDES service lost its keys",
    0x800B0100: "the message has no usable signature",
    0x80092013: "the revocation server is offline",
    0x80094012: "the NDES service account may not enroll for the certificate template",
    0x80094800: "the certificate template of NDES is not offered by the CA",
    0x80094809: "the challenge password is missing, wrong, used or expired",
    0x80090009: "bad flags",
    0x80070005: "access denied to the NDES service account at the CA",
    0x800706BA: "the CA behind NDES cannot be reached",
    0x80094001: "the subject name or another part of the request is not acceptable to the CA",
    0x80070057: "the request is malformed",
    0x8007000D: "the data of the request is invalid",
}


def refusal(message: Message) -> str:
    """A FAILURE in words: failInfo, what the server adds, NDES's HRESULT."""
    if message.fail_info is None:
        reason = "no reason given"
    else:
        reason = pkimessage.FAIL_REASONS.get(
            message.fail_info, f"failInfo {message.fail_info}, which is unknown"
        )
    if message.fail_text:
        reason += f" ({message.fail_text})"
    if message.hresult is not None:
        known = _HRESULTS.get(message.hresult)
        reason += f" [NDES: 0x{message.hresult:08X}{', ' + known if known else ''}]"
    return reason


def transaction_id(spki: bytes) -> str:
    """The same for the same key (RFC 8894 3.2.1.1), so that a repeated request is known as one."""
    return hashlib.sha256(spki).hexdigest().upper()[:40]


# ---- server -------------------------------------------------------------------------------------


def read_query(query: str) -> tuple[str, str]:
    """(operation, message) of a query string as it stands in the URL; operation "" for one unknown here.

    "+" stays "+": macOS sends base64 unescaped. RemoteProtocolError when the operation is missing or twice there.
    """
    if len(query) > MAX_QUERY:
        raise RemoteProtocolError("the query is longer than allowed", status_hint=414)
    found: dict[str, str] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name not in {"operation", "message"}:
            continue
        if name in found:
            raise RemoteProtocolError(f"{name} is given twice")
        try:
            found[name] = unquote_to_bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            raise RemoteProtocolError(f"{name} is not UTF-8") from None
    if "operation" not in found:
        raise RemoteProtocolError("the operation is missing")
    return _KINDS.get(found["operation"].lower(), ""), found.get("message", "")


def read_operation(method: str, message: str, body: bytes) -> bytes:
    """The pkiMessage of a PKIOperation: the body of a POST, the query's base64 of a GET."""
    if method == "POST":
        if not body:
            raise RemoteProtocolError("the body is empty")
        return body
    text = "".join(message.split()).replace("-", "+").replace("_", "/").rstrip("=")
    if not text:
        raise RemoteProtocolError("the message is missing")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError(f"the message is not base64: {plain_line(message, 40)!r}") from None
