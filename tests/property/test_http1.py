"""HTTP of the device: any answer, in any pieces, is what http.client reads; anything else is one error of ours."""

from __future__ import annotations

import http.client
import io
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igelcert.codec.http import Request, Response
from igelcert.codec.http1 import ResponseReader, encode_request
from igelcert.errors import LocalProtocolError, RemoteProtocolError

MOST = 4096
NAMES = st.sampled_from(["Content-Type", "Retry-After", "X-A", "x-a", "ETag", "Content-Transfer-Encoding"])
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
HEAD = b"HTTP/1.1 200 OK\r\n"


def read(octets: bytes, cuts: list[int], body_max: int = MOST) -> tuple[Response, bool]:
    """The answer when the octets come in pieces, and then the end."""
    reader = ResponseReader(body_max)
    edges = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    pieces = [octets[start:end] for start, end in itertools.pairwise(edges)]
    for piece in [*(piece for piece in pieces if piece), b""]:
        if (found := reader.receive(piece)) is not None:
            return found, reader.keep
    raise AssertionError("an end without an answer")


def outcome(octets: bytes, cuts: list[int]) -> object:
    try:
        return read(octets, cuts)[0]
    except RemoteProtocolError as err:
        return type(err)


class _Wire:
    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._octets)


def theirs(octets: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    answer = http.client.HTTPResponse(_Wire(octets))  # type: ignore[arg-type]
    answer.begin()
    return answer.status, answer.getheaders(), answer.read()


@st.composite
def answers(draw: Any) -> bytes:
    """Octets of an answer with each kind of framing."""
    body = draw(st.binary(max_size=300))
    status = draw(st.sampled_from([200, 202, 204, 304, 400, 404, 503]))
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    line = draw(st.sampled_from([b"\r\n", b"\n"]))
    first = (
        draw(st.sampled_from([b"HTTP/1.1 %d", b"HTTP/1.1 %d OK", b"HTTP/1.0 %d Not what was wanted"]))
        % status
    )
    before = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue" + line + b"X-Early: 1" + line * 2]))
    if status in {204, 304}:
        framing, body = "length", b""
    if framing == "length":
        fields.append(("Content-Length", str(len(body))))
    elif framing == "chunked":
        fields.append(("Transfer-Encoding", draw(st.sampled_from(["chunked", "Chunked"]))))
        sizes = draw(st.lists(st.integers(1, 60), max_size=8))
        chunks, rest = b"", body
        for size in [*sizes, len(body) or 1]:
            if piece := rest[:size]:
                chunks += (
                    b"%x" % len(piece)
                    + draw(st.sampled_from([b"", b";a=b", b" "]))
                    + b"\r\n"
                    + piece
                    + b"\r\n"
                )
            rest = rest[size:]
        body = chunks + b"0\r\n" + draw(st.sampled_from([b"", b"X-Late: 1" + line])) + line
    head = b"".join(f"{name}: {value}".encode() + line for name, value in fields)
    return bytes(before + first + line + head + line + body)


@given(answers(), st.lists(st.integers(0, 2000), max_size=8))
def test_any_answer_in_any_pieces(octets: bytes, cuts: list[int]) -> None:
    found, _keep = read(octets, cuts)
    assert (found.status, list(found.headers), found.body) == theirs(octets)


@given(answers(), st.data())
def test_hostile_answers(octets: bytes, data: Any) -> None:
    """Whatever the pieces, the outcome is the same: an answer, or our error."""
    spoiled = bytearray(octets)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(spoiled) - 1)) if spoiled else 0
        change = data.draw(st.sampled_from(["cut", "set", "put", "end"]))
        if change == "cut":
            del spoiled[at : at + data.draw(st.integers(1, 9))]
        elif change == "set" and spoiled:
            spoiled[at] = data.draw(st.integers(0, 255))
        elif change == "put":
            spoiled[at:at] = data.draw(
                st.sampled_from([b"\r\n", b"\n\n", b"\0", b":", b"Content-Length: 5\r\n", b"ffff"])
            )
        else:
            del spoiled[at:]
    whole = outcome(bytes(spoiled), [])
    cuts = data.draw(st.lists(st.integers(0, 2000), max_size=12))
    assert outcome(bytes(spoiled), cuts) == whole
    assert outcome(bytes(spoiled), list(range(len(spoiled)))) == whole


@pytest.mark.parametrize(
    ("octets", "body", "keep"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\nab", b"ab", True),
        (HEAD + b"Content-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\n", b"ab", False),
        (HEAD + b"Content-Length: 2, 2\r\nContent-Length: 2\r\n\r\nab", b"ab", True),
        (HEAD + b"Content-Length: 0000002\r\n\r\nab", b"ab", True),
        (HEAD + b"Connection: Close\r\nContent-Length: 2\r\n\r\nab", b"ab", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", b"ab", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab", b"ab", True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", b"ab", True),
        # RFC 9112 6.3: the coding counts, and the connection is not used again
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n2\r\nab\r\n0\r\n\r\n", b"ab", False),
        (HEAD + b"\r\nab", b"ab", False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", b"", True),
        (b"HTTP/1.1 204\r\n\r\n", b"", True),
    ],
)  # fmt: skip
def test_where_an_answer_ends(octets: bytes, body: bytes, keep: bool) -> None:
    answer, kept = read(octets, [])
    assert (answer.body, kept) == (body, keep)


def test_a_folded_field() -> None:
    octets = HEAD + b"X-A: one\r\n  two\r\n\tthree\r\nContent-Length: 0\r\n\r\n"
    assert read(octets, [])[0].header("x-a") == "one two three"


@pytest.mark.parametrize(
    ("octets", "says"),
    [
        (b"", "does not answer with HTTP"),
        (b"\r\n", "does not answer with HTTP"),
        (b"SSH-2.0-OpenSSH_9\r\n", "with HTTP: SSH-2.0"),
        (b"HTTP/2 200\r\n\r\n", "with HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "with HTTP"),
        (b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n", "with HTTP"),
        (b"HTTP/1.1 600 OK\r\n\r\n", "with HTTP"),
        (HEAD + b"no field\r\n\r\n", "is no field"),
        (HEAD + b"a b: c\r\n\r\n", "is no field"),
        (HEAD + b"X: " + b"a" * 70_000, "too long"),
        (HEAD + b"X: a\r\n" * 20_000, "too long"),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc", "is no number"),
        (HEAD + b"Content-Length: -2\r\n\r\nab", "is no number"),
        (HEAD + b"Content-Length: \xb2\r\n\r\nab", "is no number"),
        (HEAD + b"Content-Length: 4097\r\n\r\n", "sent more than"),
        (HEAD + b"Content-Length: " + b"9" * 10_000 + b"\r\n\r\n", "sent more than"),
        (HEAD + b"\r\n" + b"a" * 4097, "sent more than"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"a" * 4096 + b"\r\n1\r\n", "sent more than"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "sent more than"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "is no number"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n", "is no number"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", "longer than its size"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5_000, "too long"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding"),
        (HEAD + b"Content-Length: 3\r\n\r\nab", "in the middle"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "in the middle"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "other than what was asked"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "other than what was asked"),
    ],
)  # fmt: skip
def test_what_is_no_answer(octets: bytes, says: str) -> None:
    for cuts in ([], list(range(0, len(octets), 7))):
        with pytest.raises(RemoteProtocolError) as caught:
            read(octets, cuts)
        assert says in str(caught.value) and str(caught.value).isprintable()


def test_a_request() -> None:
    request = Request("POST", "/a?b=c", (("Prefer", "wait=1"),), b"\0\r\n")
    assert encode_request(request, "host:8443") == (
        b"POST /a?b=c HTTP/1.1\r\nHost: host:8443\r\nAccept-Encoding: identity\r\n"
        b"Prefer: wait=1\r\nContent-Length: 3\r\n\r\n\0\r\n"
    )
    assert b"Content-Length" not in encode_request(Request("GET", "/"), "host")
    assert encode_request(Request("POST", "/"), "host").endswith(b"Content-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "value"),
    [("/a b", ""), ("/a\r\nX: y", ""), ("/", "a\nX: y"), ("/", "a\0"), ("/\u20ac", ""), ("/", "\xe4")],
)
def test_a_request_that_would_say_more(path: str, value: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_request(Request("GET", path, (("X-A", value),)), "host")
    assert "X: y" not in str(caught.value)
