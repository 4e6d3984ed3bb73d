"""PKCS#10 certification requests (RFC 2986): building, strict reading, comparing with what was meant.

One file for both ends: what `build` writes is what `parse` reads, and the proxy's policy compares with
`differences`.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

from .. import _der as der
from .. import crypto
from ..errors import CryptoError, LocalProtocolError, RemoteProtocolError
from ..model import CsrSpec, Subject, SubjectAltName
from ..record import field, record
from .http import plain_line

__all__ = [
    "CertificationRequest",
    "build",
    "differences",
    "encode_name",
    "encode_san",
    "matches_certificate",
    "parse",
    "same_names",
]

MAX_CSR = 65_536
MAX_NAMES = 200

COUNTRY = "2.5.4.6"
CN = "2.5.4.3"
EMAIL = "1.2.840.113549.1.9.1"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
SUBJECT_ALT_NAME = "2.5.29.17"
BASIC_CONSTRAINTS = "2.5.29.19"
# Extensions a CSR may ask for without changing who the certificate is for: key identifier, usages.
HARMLESS = {"2.5.29.14", "2.5.29.15", "2.5.29.37"}

# GeneralName (RFC 5280 4.2.1.6): context tags
OTHER, RFC822, DNS, X400, DIRECTORY, EDI, URI, IP, RID = range(9)
_KINDS = {RFC822: "e-mail address", DNS: "host name", URI: "URI", IP: "IP address", OTHER: "other name",
          DIRECTORY: "directory name", X400: "X.400 address", EDI: "EDI party", RID: "registered ID"}  # fmt: skip
_NAMES = {oid: name for name, oid, _ in Subject.FIELDS}
_SHORT = {"2.5.4.6": "C", "2.5.4.8": "ST", "2.5.4.7": "L", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.3": "CN",
          EMAIL: "emailAddress"}  # fmt: skip
_BOUNDS = {oid: bound for _, oid, bound in Subject.FIELDS}

Rdn = tuple[tuple[str, str], ...]


# ---- building -----------------------------------------------------------------------------------


def encode_name(subject: Subject) -> bytes:
    """The Name: one attribute an RDN, UTF8String but for country and e-mail (RFC 5280 appendix A)."""
    rdns = []
    for oid, value in subject.attributes():
        text = der.printable(value) if oid == COUNTRY else der.ia5(value) if oid == EMAIL else der.utf8(value)
        rdns.append(der.set_of(der.sequence(der.oid(oid), text)))
    return der.sequence(*rdns)


def encode_san(san: SubjectAltName) -> bytes:
    """GeneralNames (RFC 5280 4.2.1.6)."""
    names = [der.tlv(0x80 | DNS, name.encode("ascii")) for name in san.hostname]
    names += [der.tlv(0x80 | IP, ipaddress.ip_address(address).packed) for address in san.ip]
    names += [der.tlv(0x80 | RFC822, email.encode("ascii")) for email in san.email]
    names += [der.tlv(0x80 | URI, uri.encode("ascii")) for uri in san.uri]
    return der.sequence(*names)


def build(spec: CsrSpec, key: crypto.Key) -> bytes:
    """The signed request, DER. The signature hash is the one that fits the key."""
    if key.type != spec.key_type:
        raise LocalProtocolError(f"the key is of type {key.type}, the request wants {spec.key_type}")
    attributes = []
    name = encode_name(spec.subject)
    if spec.san:
        # RFC 5280 4.2.1.6: critical where the subject is empty
        critical = () if spec.subject.attributes() else (der.boolean(True),)
        extension = der.sequence(der.oid(SUBJECT_ALT_NAME), *critical, der.octet_string(encode_san(spec.san)))
        attributes.append(_attribute(EXTENSION_REQUEST, der.sequence(extension)))
    if spec.challenge:
        # RFC 2985 5.4.1: PrintableString where possible
        write = der.printable if der.is_printable(spec.challenge) else der.utf8
        attributes.append(_attribute(CHALLENGE_PASSWORD, write(spec.challenge)))
    info = der.sequence(der.integer(0), name, key.spki(), der.implicit(0, der.set_of(*attributes)))
    algorithm, signature = key.sign(info)
    return der.sequence(info, algorithm, der.bit_string(signature))


def _attribute(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.set_of(value))


# ---- reading ------------------------------------------------------------------------------------


@record
class CertificationRequest:
    """A request that was read. subject: RDNs of (OID, value). sans: (GeneralName tag, value), IP packed,
    other kinds as DER. extensions: (OID, critical, value DER) besides the SAN."""

    der: bytes = field(repr=False)
    subject: tuple[Rdn, ...]
    sans: tuple[tuple[int, bytes], ...]
    spki: bytes = field(repr=False)
    key_type: str
    challenge: str | None = field(repr=False)
    extensions: tuple[tuple[str, bool, bytes], ...] = field(repr=False)
    signature_algorithm: str
    subject_der: bytes = field(repr=False)

    @property
    def cn(self) -> str:
        return next((value for rdn in self.subject for oid, value in rdn if oid == CN), "")

    @property
    def subject_text(self) -> str:
        """RFC 4514-like, the last part first, on one line."""
        rdns = (
            "+".join(f"{_SHORT.get(oid, oid)}={value}" for oid, value in rdn)
            for rdn in reversed(self.subject)
        )
        return plain_line(",".join(rdns))


def parse(data: bytes, *, verify: bool = True) -> CertificationRequest:
    """Reads strictly what a device may send; proves possession of the key unless told otherwise.

    Refused: ambiguous names (two CNs), empty or over-long values, NUL and control characters, anything
    given twice, versions above 2, keys nobody may use, hashes older than SHA-1.
    """
    if len(data) > MAX_CSR:
        raise RemoteProtocolError(
            f"the certification request is larger than {MAX_CSR // 1024} KiB", status_hint=413
        )
    try:
        return _parse(data, verify)
    except der.DerError as err:
        raise RemoteProtocolError(f"this is not a PKCS#10 certification request: {err}") from None


def _parse(data: bytes, verify: bool) -> CertificationRequest:
    reader = der.Reader(data)
    request = reader.enter()
    reader.end()
    info_raw = request.raw(0x30)
    algorithm = request.raw(0x30)
    signature, unused = request.bit_string()
    request.end()
    if unused:
        raise RemoteProtocolError("the signature of the request is not whole octets")
    info = der.Reader(info_raw).enter()
    if info.integer() not in (0, 1, 2):  # 0 by RFC 2986; Apple has sent 2
        raise RemoteProtocolError("the version of the certification request is not 0")
    subject_der = info.raw(0x30)
    subject = _read_name(subject_der)
    spki = info.raw(0x30)
    # the attributes are not OPTIONAL, yet some writers leave an empty field out
    challenge, extensions = (None, {}) if info.done else _read_attributes(info.enter(0xA0))
    info.end()
    san = extensions.pop(SUBJECT_ALT_NAME, None)
    sans = _read_san(san[1]) if san else ()
    if not subject and not sans:
        raise RemoteProtocolError("the request has neither a subject nor a subject alternative name")
    key_type = _key_type(spki)
    if verify:
        _prove(spki, algorithm, info_raw, signature)
    return CertificationRequest(
        der=data,
        subject=subject,
        sans=sans,
        spki=spki,
        key_type=key_type,
        challenge=challenge,
        extensions=tuple((oid, critical, value) for oid, (critical, value) in extensions.items()),
        signature_algorithm=der.Reader(algorithm).enter().oid(),
        subject_der=subject_der,
    )


def _key_type(spki: bytes) -> str:
    try:
        found = crypto.spki_type(spki)
    except CryptoError as err:
        raise RemoteProtocolError(f"the public key of the request is not acceptable: {_why(err)}") from None
    if found.startswith(("dsa_", "unknown")):
        raise RemoteProtocolError(f"the key type {found} is not supported")
    return found


def _prove(spki: bytes, algorithm: bytes, info: bytes, signature: bytes) -> None:
    try:
        crypto.verify(spki, algorithm, info, signature)
    except CryptoError as err:
        raise RemoteProtocolError(
            f"the signature of the certification request is not valid: {_why(err)}"
        ) from None


def _why(err: CryptoError) -> str:
    return err.reasons[0] if err.reasons else err.text


def _read_name(data: bytes) -> tuple[Rdn, ...]:
    names = der.Reader(data).enter()
    rdns: list[Rdn] = []
    while not names.done:
        entries = []
        rdn = names.enter(0x31)
        while not rdn.done:
            entry = rdn.enter()
            oid = entry.oid()
            entries.append((oid, _name_value(oid, entry.text())))
            entry.end()
        if not entries:
            raise RemoteProtocolError("the subject has an empty part")
        rdns.append(tuple(entries))
        if len(rdns) > MAX_NAMES:
            raise RemoteProtocolError("the subject has too many parts")
    if sum(oid == CN for rdn in rdns for oid, _ in rdn) > 1:
        raise RemoteProtocolError("the subject has more than one common name: which one counts is ambiguous")
    return tuple(rdns)


def _name_value(oid: str, value: str) -> str:
    shown = _SHORT.get(oid, oid)
    if not value:
        raise RemoteProtocolError(f"the subject has an empty {shown}")
    if len(value) > _BOUNDS.get(oid, 32_768):
        raise RemoteProtocolError(f"the {shown} of the subject has {len(value)} characters, too many")
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in value):
        raise RemoteProtocolError(f"the {shown} of the subject holds a control character")
    return value


def _read_attributes(attributes: der.Reader) -> tuple[str | None, dict[str, tuple[bool, bytes]]]:
    """challengePassword and requested extensions; other attributes are passed over, none may come twice."""
    seen: set[str] = set()
    challenge = None
    extensions: dict[str, tuple[bool, bytes]] = {}
    while not attributes.done:
        attribute = attributes.enter()
        oid = attribute.oid()
        values = attribute.enter(0x31)
        attribute.end()
        if oid in seen:
            raise RemoteProtocolError(f"the attribute {oid} is given twice")
        seen.add(oid)
        if values.done:
            raise RemoteProtocolError(f"the attribute {oid} has no value")
        if oid == CHALLENGE_PASSWORD:
            challenge = values.text()
            if len(challenge) > 255:  # RFC 2985: ub-challengePassword
                raise RemoteProtocolError("the challenge password is longer than 255 characters")
        elif oid == EXTENSION_REQUEST:
            extensions = _read_extensions(values.enter())
        else:
            continue
        if not values.done:
            raise RemoteProtocolError(f"the attribute {oid} has more than one value")
    return challenge or None, extensions


def _read_extensions(reader: der.Reader) -> dict[str, tuple[bool, bytes]]:
    found: dict[str, tuple[bool, bytes]] = {}
    while not reader.done:
        extension = reader.enter()
        oid = extension.oid()
        critical = extension.boolean() if extension.peek() == 0x01 else False
        value = extension.octet_string()
        extension.end()
        if oid in found:
            raise RemoteProtocolError(f"the extension {oid} is asked for twice")
        if len(found) >= 50:
            raise RemoteProtocolError("the request asks for too many extensions")
        found[oid] = (critical, value)
    return found


def _read_san(value: bytes) -> tuple[tuple[int, bytes], ...]:
    outer = der.Reader(value)
    names = outer.enter()
    outer.end()
    found: list[tuple[int, bytes]] = []
    while not names.done:
        if len(found) >= MAX_NAMES:
            raise RemoteProtocolError("the subject alternative name holds too many names")
        tag = names.peek()
        kind = tag & 0x1F
        if tag & 0xC0 != 0x80 or kind > RID:
            raise RemoteProtocolError("the subject alternative name does not parse")
        if kind in {RFC822, DNS, URI, IP}:
            content = names.read(0x80 | kind)[1]
            _check_san(kind, content)
            found.append((kind, content))
        else:
            found.append((kind, names.raw()))
    if not found:
        raise RemoteProtocolError("the subject alternative name is empty")
    return tuple(found)


def _check_san(kind: int, content: bytes) -> None:
    if kind == IP:
        if len(content) not in (4, 16):
            raise RemoteProtocolError("an IP address of the request is neither 4 nor 16 bytes long")
    elif not content or any(octet < 0x21 or octet > 0x7E for octet in content):
        raise RemoteProtocolError(
            f"a {_KINDS[kind]} of the request is empty or holds a character that may not stand there"
        )


# ---- comparing ----------------------------------------------------------------------------------


def differences(csr: CertificationRequest, spec: CsrSpec) -> list[str]:
    """What the request has other than the specification, in plain words; empty when it is just that.

    Structural: every subject attribute and every alternative name counts, of whatever kind, and how
    often it is there. Order does not; host names compare without case.
    """
    found = []
    if csr.key_type != spec.key_type:
        found.append(f"the key type is {csr.key_type}, the profile gives {spec.key_type}")
    have = Counter(entry for rdn in csr.subject for entry in rdn)
    want = Counter(spec.subject.attributes())
    for (oid, value), _ in (have - want).items():
        given = [wanted for other, wanted in want if other == oid]
        tail = f"the profile gives {plain_line(given[0], 80)!r}" if given else "the profile gives none"
        found.append(f"subject {_SHORT.get(oid, oid)} is {plain_line(value, 80)!r}, {tail}")
    for (oid, value), _ in (want - have).items():
        if not any(other == oid for other, _ in have):
            found.append(
                f"subject {_SHORT.get(oid, oid)} {plain_line(value, 80)!r} of the profile is missing"
            )
    found += _san_differences(Counter(map(_comparable, csr.sans)), Counter(_spec_names(spec.san)))
    for oid, _critical, content in csr.extensions:
        if oid == BASIC_CONSTRAINTS:
            if _asks_for_ca(content):
                found.append("it asks to become a certification authority")
        elif oid not in HARMLESS:
            found.append(f"it asks for the extension {oid}, which the profile does not give")
    return found


def _san_differences(have: Counter[tuple[int, bytes]], want: Counter[tuple[int, bytes]]) -> list[str]:
    extra = [
        f"subject alternative name: the {_KINDS[kind]} {_shown(kind, value)} is not in the profile"
        for kind, value in have - want
    ]
    missing = [
        f"subject alternative name: the {_KINDS[kind]} {_shown(kind, value)} of the profile is missing"
        for kind, value in want - have
    ]
    return extra + missing


def _asks_for_ca(value: bytes) -> bool:
    """Anything but a plain "no" counts as yes."""
    try:
        basic = der.Reader(value).enter()
        return not basic.done and (basic.peek() != 0x01 or basic.boolean() or not basic.done)
    except der.DerError:
        return True


def _comparable(name: tuple[int, bytes]) -> tuple[int, bytes]:
    kind, value = name
    return (kind, value.lower().removesuffix(b".")) if kind == DNS else name


def _spec_names(san: SubjectAltName) -> list[tuple[int, bytes]]:
    names = [(DNS, name.encode()) for name in san.hostname]
    names += [(IP, ipaddress.ip_address(address).packed) for address in san.ip]
    names += [(RFC822, email.encode()) for email in san.email]
    return names + [(URI, uri.encode()) for uri in san.uri]


def _shown(kind: int, value: bytes) -> str:
    if kind == IP:
        return str(ipaddress.ip_address(value))
    if kind in {RFC822, DNS, URI}:
        return plain_line(value.decode("ascii", "replace"), 80)
    return f"({len(value)} bytes)"


def same_names(cert: crypto.Certificate, spec: CsrSpec) -> bool:
    """Would a request of that specification carry the certificate's subject and SAN?"""
    mine = Counter(entry for rdn in cert.subject for entry in rdn)
    names = Counter(map(_comparable, cert.sans))
    return mine == Counter(spec.subject.attributes()) and names == Counter(_spec_names(spec.san))


def matches_certificate(csr: CertificationRequest, cert: crypto.Certificate) -> bool:
    """Subject and SAN identical: what /simplereenroll demands (RFC 7030 4.2.2)."""
    mine = Counter(entry for rdn in csr.subject for entry in rdn)
    theirs = Counter(entry for rdn in cert.subject for entry in rdn)
    return mine == theirs and Counter(map(_comparable, csr.sans)) == Counter(map(_comparable, cert.sans))
