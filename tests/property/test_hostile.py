"""Hostile bytes into every decoder: only our own errors come out, each in one line."""

from __future__ import annotations

import base64
import datetime
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from hypothesis import given, settings
from hypothesis import strategies as st

from igelcert import crypto
from igelcert.codec import est, pem, pkcs10
from igelcert.codec.http import Response, parse_retry_after, plain_line, plain_reason
from igelcert.errors import Error
from igelcert.proxy.framing import Cut, FramingError, request_length
from igelcert.settings import parse_settings


@functools.cache
def good() -> dict[str, bytes]:
    """Valid inputs, made without our code."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "seed"),
                      x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Example")])  # fmt: skip
    san = x509.SubjectAlternativeName([x509.DNSName("seed.example"), x509.RFC822Name("a@example")])
    now = datetime.datetime(2026, 1, 1)
    cert = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now).not_valid_after(now + datetime.timedelta(9000)).add_extension(san, False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(san, False)
        .sign(key, hashes.SHA256())
    )
    der = serialization.Encoding.DER
    plain = serialization.NoEncryption()
    cms = pkcs7.serialize_certificates([cert], der)
    return {
        "cert": cert.public_bytes(der),
        "csr": csr.public_bytes(der),
        "cms": cms,
        "cms64": base64.encodebytes(cms),
        "csr64": base64.encodebytes(csr.public_bytes(der)),
        "pem": cert.public_bytes(serialization.Encoding.PEM),
        "pfx": pkcs12.serialize_key_and_certificates(b"x", key, cert, None, plain),
        "key": key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
        "spki": key.public_key().public_bytes(der, serialization.PublicFormat.SubjectPublicKeyInfo),
        "attrs": base64.b64encode(bytes.fromhex("301406092a864886f70d01090706072a8648ce3d0201")),
        "settings": json.dumps({"certs": [{"friendly_name": "x", "key": {"type": "rsa_2048"}}]}).encode(),
        "http": b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        "chunked": b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    }  # fmt: skip


def read_key(data: bytes) -> None:
    fd = os.memfd_create("key")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        crypto.Key.read(fd, b"x")
    finally:
        os.close(fd)


def text(data: bytes) -> str:
    return data.decode("latin-1")


def framing(data: bytes) -> None:
    try:
        request_length(bytearray(data), 65_536)
    except FramingError as err:
        assert 400 <= err.status < 600 and "\n" not in err.sentence


DECODERS: dict[str, tuple[str, Callable[[bytes], Any]]] = {
    "parse_certificate": ("cert", crypto.parse_certificate),
    "cms_certificates": ("cms", crypto.cms_certificates),
    "read_pfx": ("pfx", lambda data: crypto.read_pfx(data, b"")),
    "read_key": ("key", read_key),
    "spki_type": ("spki", crypto.spki_type),
    "verify": ("spki", lambda data: crypto.verify(good()["spki"], data, b"tbs", data)),
    "pkcs10.parse": ("csr", pkcs10.parse),
    "csr_from_request": ("csr64", lambda data: est.csr_from_request(data, text(data[:20]))),
    "enroll_reply": ("cms64", lambda data: est.enroll_reply(Response(200, (), data), 0)),
    "cacerts_reply": ("cms64", lambda data: est.cacerts_reply(Response(200, (), data))),
    "cacerts_reply of PEM": ("pem", lambda data: est.cacerts_reply(Response(200, (), data))),
    "csrattrs_reply": ("attrs", lambda data: est.csrattrs_reply(Response(200, (), data))),
    "refusal": (
        "pem",
        lambda data: est.enroll_reply(Response(500, (("Content-Type", "text/html"),), data), 0),
    ),
    "body_to_der": ("csr64", est.body_to_der),
    "decode_pem": ("pem", pem.decode_pem),
    "route": ("http", lambda data: est.route(text(data))),
    "parse_retry_after": ("http", lambda data: parse_retry_after(text(data), 0)),
    "plain_line": ("http", lambda data: plain_line(text(data))),
    "plain_reason": (
        "http",
        lambda data: plain_reason(Response(400, (("Content-Type", "application/json"),), data)),
    ),
    "settings": ("settings", parse_settings),
    "framing": ("http", framing),
    "framing, chunked": ("chunked", framing),
}


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """The seed with octets changed, removed, doubled, or cut off."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "drop", "double"]))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at + 1 :]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 16))]
        else:
            data[at:at] = data[at : at + 64]
    return bytes(data)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=120)
@given(data=st.data())
def test_only_our_errors(name: str, data: st.DataObject) -> None:
    seed, decode = DECODERS[name]
    octets = data.draw(st.one_of(st.binary(max_size=300), damaged(good()[seed])))
    try:
        decode(octets)
    except Error as err:
        assert str(err) and "\n" not in str(err) and str(err).isprintable()


@pytest.mark.parametrize("name", DECODERS)
def test_the_seed_itself_is_read(name: str) -> None:
    """Or the damage above would only ever be seen by the outermost check."""
    if name in {"verify", "refusal", "route", "parse_retry_after"}:
        pytest.skip("its seed is not a valid input")
    DECODERS[name][1](good()[DECODERS[name][0]])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [1 << 16, 3 << 20])
def test_size_alone_does_no_harm(name: str, size: int) -> None:
    decode = DECODERS[name][1]
    for octets in (b"\x30\x80" * (size // 2), b"A" * size, b"{" * size, b"\0" * size):
        try:
            decode(octets)
        except Error as err:
            assert len(str(err)) < 2000


@given(st.data())
def test_a_request_is_whole_exactly_at_its_end(data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=200))
    head = f"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    if data.draw(st.booleans()):
        parts = [body[at : at + 7] for at in range(0, len(body), 7)]
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    whole = head + body
    for end in range(len(whole)):
        assert request_length(bytearray(whole[:end]), 65_536) is None
    assert request_length(bytearray(whole + b"GET / HTTP/1.1\r\n"), 65_536) == len(whole)


@given(st.integers(0, 400_000), st.lists(st.integers(500, 200_000), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_a_body_that_is_too_large_keeps_its_begin_and_its_end(more: int, pieces: list[int]) -> None:
    size = 2 * Cut.KEPT + more
    body = bytes(at * 7 % 251 for at in range(1000)) * (size // 1000 + 1)
    head = f"POST /ca HTTP/1.1\r\nHost: a\r\ncontent-LENGTH:  {size} \r\nX: y\r\n\r\n".encode()
    cut = Cut.of(head)
    assert cut is not None
    rest, at, turn, done = bytearray(), 0, 0, False
    while not done:
        piece = pieces[turn % len(pieces)]
        rest = bytearray(body[at : min(at + piece, size)])
        at, turn = at + piece, turn + 1
        if at >= size:
            rest += b"GET / HTTP/1.1\r\n"
        done = cut.take(rest)
    assert rest == b"GET / HTTP/1.1\r\n", "what comes after it is not its own"
    request = cut.request()
    kept = 2 * Cut.KEPT
    assert request == head.replace(
        f"content-LENGTH:  {size} ".encode(), f"Content-Length: {kept}".encode()
    ) + (body[: Cut.KEPT] + body[size - Cut.KEPT : size])
    assert request_length(bytearray(request), kept) == len(request)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 99999999999999\r\n",
        b"Content-Length: 9000000\r\nExpect: 100-continue\r\n",
        b"Content-Length: 9000000\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ],
)
def test_what_is_not_even_read_when_it_is_too_large(head: bytes) -> None:
    assert Cut.of(b"POST /ca HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n") is None
