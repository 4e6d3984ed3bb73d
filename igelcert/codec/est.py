"""EST (RFC 7030, clarified by RFC 8951 and RFC 9908): messages of both ends as pure functions."""

from __future__ import annotations

import binascii
from collections.abc import Iterable

from .. import _der as der
from ..errors import LocalProtocolError, RemoteProtocolError
from ..model import Issued, Outcome, Pending, Refused, is_ca_label
from ..record import record, replace
from .cms import certs_only, read_certs_only
from .http import Request, Response, parse_retry_after, plain_line, plain_reason
from .pem import decode_pem, is_pem

__all__ = [
    "OPERATIONS",
    "CsrAttrs",
    "body_to_der",
    "cacerts_reply",
    "cacerts_request",
    "certs_response",
    "csr_from_request",
    "csrattrs_reply",
    "csrattrs_request",
    "csrattrs_response",
    "enroll_reply",
    "enroll_request",
    "error_response",
    "path",
    "pending_response",
    "route",
    "valid_label",
]

OPERATIONS = ("cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs")
WELL_KNOWN = "/.well-known/est"
MAX_CSR = 65_536
MAX_BODY = 1 << 20


def valid_label(label: str) -> bool:
    """A CA label (RFC 7030 3.2.2): letters, digits, "_" and "-", and never the name of an operation."""
    return is_ca_label(label) and label not in OPERATIONS


def path(operation: str, label: str | None = None) -> str:
    """The path of an operation; the label is percent-encoded."""
    if operation not in OPERATIONS or label in OPERATIONS:
        raise LocalProtocolError(f"{label or operation!r} cannot stand there in an EST path")
    if not label:
        return f"{WELL_KNOWN}/{operation}"
    if not label.isascii() or not label.isalnum():
        from urllib.parse import quote  # takes long to load; most names are plain

        label = quote(label, safe="")
    return f"{WELL_KNOWN}/{label}/{operation}"


def route(raw_path: str, *, decoded: bool = False) -> tuple[str, str | None] | None:
    """(operation, label) of a request path without its query, or None when it is no EST path.

    `decoded`: the percent-encoding was taken off already (WSGI's PATH_INFO).
    """
    rest = raw_path.removeprefix(WELL_KNOWN + "/")
    if rest == raw_path:
        return None
    label, _, operation = rest.rpartition("/")
    if operation not in OPERATIONS or (label and (label in OPERATIONS or "/" in label)):
        return None
    if not label:
        return (operation, None) if rest == operation else None
    if decoded:
        return operation, label
    from urllib.parse import unquote_to_bytes

    try:
        return operation, unquote_to_bytes(label).decode("utf-8")
    except UnicodeDecodeError:
        return None


def body_to_der(body: bytes) -> bytes:
    """DER (or BER) out of a body: base64 in any line form, PEM armour, or bare binary.

    RFC 8951 3: Content-Transfer-Encoding is ignored. A byte order mark is passed over.
    """
    if len(body) > MAX_BODY:
        raise RemoteProtocolError("the body is larger than 1 MiB", status_hint=413)
    if body[:1] == b"\x30" and len(body) > 1 and (body[1] >= 0x80 or body[1] + 2 == len(body)):
        return body
    text = b"".join(body.removeprefix(b"\xef\xbb\xbf").split())
    if not text:
        raise RemoteProtocolError("the body is empty")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        kind = "HTML" if text[:1] == b"<" else "neither base64 nor DER"
        raise RemoteProtocolError(f"the body is {kind}") from None


# ---- client -------------------------------------------------------------------------------------


def cacerts_request(label: str | None = None) -> Request:
    return Request("GET", path("cacerts", label), (("Accept", "application/pkcs7-mime"),))


def csrattrs_request(label: str | None = None) -> Request:
    return Request("GET", path("csrattrs", label), (("Accept", "application/csrattrs"),))


def enroll_request(csr: bytes, label: str | None = None, *, renew: bool = False) -> Request:
    """/simpleenroll or /simplereenroll with a PKCS#10 in base64 (RFC 7030 4.2)."""
    headers = (("Content-Type", "application/pkcs10"), ("Content-Transfer-Encoding", "base64"))
    operation = "simplereenroll" if renew else "simpleenroll"
    return Request("POST", path(operation, label), headers, binascii.b2a_base64(csr, newline=False))


def cacerts_reply(response: Response) -> list[bytes]:
    """CA certificates of a /cacerts answer, at least one."""
    if response.status != 200:
        raise RemoteProtocolError(_unexpected("CA certificates", response), status_hint=502)
    return _certificates(response)


def enroll_reply(response: Response, now: int) -> Outcome:
    """Issued, Pending (202) or Refused. RemoteProtocolError for a 200 that carries no certificate."""
    if response.status == 200:
        return Issued(tuple(_certificates(response)))
    if response.status == 202:
        wait = parse_retry_after(response.header("Retry-After"), now)
        return Pending(wait, plain_reason(response))
    wait_for = response.header("Retry-After")
    retry = parse_retry_after(wait_for, now) if wait_for and response.status in {429, 502, 503, 504} else None
    return Refused(response.status, plain_reason(response) or f"HTTP status {response.status}", retry)


def _certificates(response: Response) -> list[bytes]:
    if is_pem(response.body):
        # some servers armour the CMS, some send bare certificates
        blocks = decode_pem(response.body, "PKCS7") or decode_pem(response.body)
        certs = [cert for block in blocks for cert in _certs_of(block)]
    else:
        certs = _certs_of(body_to_der(response.body))
    if not certs:
        raise RemoteProtocolError("the answer carries no certificate", status_hint=502)
    return certs


def _certs_of(data: bytes) -> list[bytes]:
    """Certificates of a CMS message; a bare certificate stands for itself."""
    try:
        outer = der.Reader(data).enter()
        bare = outer.peek() == 0x30
    except der.DerError:
        bare = False
    return [data] if bare else read_certs_only(data)


def _unexpected(what: str, response: Response) -> str:
    reason = plain_reason(response)
    return f"asked for {what}, the server answered {response.status}" + (f": {reason}" if reason else "")


# ---- csrattrs -----------------------------------------------------------------------------------

CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
TEMPLATE = "1.2.840.113549.1.9.16.2.61"  # id-aa-certificationRequestInfoTemplate, RFC 9908
_KEY_WISHES = {
    "1.2.840.10045.3.1.7": "ec_prime256v1",
    "1.3.132.0.34": "ec_secp384r1",
    "1.3.132.0.35": "ec_secp521r1",
    "1.3.132.0.10": "ec_secp256k1",
    "1.3.36.3.3.2.8.1.1.7": "ec_brainpoolP256r1",
    "1.3.36.3.3.2.8.1.1.11": "ec_brainpoolP384r1",
    "1.3.36.3.3.2.8.1.1.13": "ec_brainpoolP512r1",
    "1.3.101.112": "ecdsa_ed25519",
}
_EC = "1.2.840.10045.2.1"
_RSA = "1.2.840.113549.1.1.1"


@record
class CsrAttrs:
    """What a server would like in a CSR (RFC 7030 4.5.2). All of it is advice.

    oids: every OID named, in order. key_types: wishes in our names. extensions: (OID, critical, value)
    of an extensionRequest with ready values. wants_challenge: challengePassword is asked for, which in
    EST means binding to the TLS session. template: an RFC 9908 template is in it.
    """

    oids: tuple[str, ...] = ()
    key_types: tuple[str, ...] = ()
    extensions: tuple[tuple[str, bool, bytes], ...] = ()
    wants_challenge: bool = False
    template: bool = False
    warnings: tuple[str, ...] = ()


def csrattrs_reply(response: Response) -> CsrAttrs:
    """204, 404 and an empty list all mean: no wishes (RFC 7030 4.5.2)."""
    if response.status in {204, 404} or (response.status == 200 and not response.body.strip()):
        return CsrAttrs()
    if response.status != 200:
        raise RemoteProtocolError(_unexpected("CSR attributes", response), status_hint=502)
    try:
        return _read_csrattrs(der.Reader(body_to_der(response.body)))
    except der.DerError as err:
        raise RemoteProtocolError(f"the CSR attributes do not parse: {err}", status_hint=502) from None


def _read_csrattrs(reader: der.Reader) -> CsrAttrs:
    outer = reader.enter()
    reader.end()
    oids: list[str] = []
    wishes: list[str] = []
    extensions: list[tuple[str, bool, bytes]] = []
    while not outer.done:
        if outer.peek() == 0x06:
            oids.append(outer.oid())
            continue
        if outer.peek() != 0x30:  # neither an OID nor an attribute: nothing that anybody could follow
            outer.raw()
            continue
        attribute = outer.enter()
        kind = attribute.oid()
        oids.append(kind)
        values = attribute.enter(0x31)
        attribute.end()
        while not values.done:
            if kind == _EC and values.peek() == 0x06:
                curve = values.oid()
                wishes.append(_KEY_WISHES.get(curve, curve))
            elif kind == _RSA and values.peek() == 0x02:
                wishes.append(f"rsa_{values.integer()}")
            elif kind == EXTENSION_REQUEST and values.peek() == 0x30:
                extensions += _ready_extensions(values.enter())
            else:
                values.raw()
    wishes += [_KEY_WISHES[oid] for oid in oids if oid in _KEY_WISHES]
    types = tuple(dict.fromkeys(wishes))
    warnings = []
    if len(types) > 1:
        warnings.append(f"the server asks for several key types at once ({', '.join(types)}); ours stays")
    challenge = CHALLENGE_PASSWORD in oids
    if challenge:
        warnings.append(
            "the server asks to bind the CSR to the TLS session (tls-unique): unsupported, it does not exist in TLS 1.3"
        )
    return CsrAttrs(tuple(oids), types, tuple(extensions), challenge, TEMPLATE in oids, tuple(warnings))


def _ready_extensions(reader: der.Reader) -> list[tuple[str, bool, bytes]]:
    """Extensions with values; an entry that only names one (RFC 8951's example) has none."""
    found = []
    while not reader.done:
        if reader.peek() != 0x30:
            reader.raw()
            continue
        extension = reader.enter()
        oid = extension.oid()
        critical = extension.boolean() if extension.peek() == 0x01 else False
        if extension.peek() == 0x04:
            found.append((oid, critical, extension.octet_string()))
    return found


# ---- server -------------------------------------------------------------------------------------


def csr_from_request(body: bytes, content_type: str = "") -> bytes:
    """DER of the PKCS#10 in an enrollment body; parameters of the content type are ignored.

    PEM armour, which clients in the field send, is taken off.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise RemoteProtocolError("the body is multipart; a PKCS#10 is expected", status_hint=415)
    if len(body) > MAX_CSR:
        raise RemoteProtocolError(f"the request is larger than {MAX_CSR // 1024} KiB", status_hint=413)
    if is_pem(body):
        blocks = decode_pem(body, "CERTIFICATE REQUEST")
        if len(blocks) != 1:
            raise RemoteProtocolError(f"the PEM body holds {len(blocks)} certificate requests, not one")
        return blocks[0]
    return body_to_der(body)


def certs_response(certs: Iterable[bytes], *, enroll: bool = False) -> Response:
    """A certs-only answer. `enroll`: exactly the issued certificate (RFC 7030 4.2.3).

    In one line (RFC 8951; RFC 4648 3.1): strongSwan reads no other.
    """
    text = binascii.b2a_base64(certs_only(certs), newline=False)
    kind = "application/pkcs7-mime; smime-type=certs-only" if enroll else "application/pkcs7-mime"
    return Response(200, (("Content-Type", kind), ("Content-Transfer-Encoding", "base64")), text)


def csrattrs_response(oids: Iterable[str]) -> Response:
    """The OIDs as advice; 204 when there are none."""
    wishes = [der.oid(oid) for oid in oids]
    if not wishes:
        return Response(204)
    body = binascii.b2a_base64(der.sequence(*wishes))
    return Response(
        200, (("Content-Type", "application/csrattrs"), ("Content-Transfer-Encoding", "base64")), body
    )


def pending_response(seconds: int, text: str) -> Response:
    """202: come back with the same request (RFC 7030 4.2.3); seconds, as some clients read no dates."""
    answer = error_response(202, text)
    return replace(answer, headers=(*answer.headers, ("Retry-After", str(max(1, seconds)))))


def error_response(status: int, text: str, retry_after: int | None = None) -> Response:
    """One plain sentence as text."""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain; charset=utf-8"),)
    if retry_after is not None:
        headers += (("Retry-After", str(max(1, retry_after))),)
    return Response(status, headers, (plain_line(text, 1000) + "\n").encode())
