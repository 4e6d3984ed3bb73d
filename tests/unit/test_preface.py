"""Headers of the PROXY protocol: the specification's own, and what is none."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igelcert.proxy.addresses import among
from igelcert.proxy.preface import LINE_MAX, MORE_MAX, SIGNATURE, Preface, PrefaceError, missing, source

FOUR = socket.inet_pton(socket.AF_INET, "203.0.113.9") + socket.inet_pton(socket.AF_INET, "192.0.2.1")
SIX = socket.inet_pton(socket.AF_INET6, "2001:db8::9") + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
PORTS = struct.pack("!HH", 40_000, 8_443)
TLV = b"\x04\x00\x03abc"


def two(kind: int, rest: bytes, command: int = 0x21, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(rest) if length is None else length) + rest


GOOD = {
    "v1 TCP4": (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 8443\r\n", ("203.0.113.9", 40_000)),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::9 2001:db8::1 40000 8443\r\n", ("2001:db8::9", 40_000)),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1 unknown, longest": (
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(b"f...f", b"ffff:" * 5 + b"ffff"),
        None),
    "v2 TCP4": (two(0x11, FOUR + PORTS), ("203.0.113.9", 40_000)),
    "v2 TCP6": (two(0x21, SIX + PORTS), ("2001:db8::9", 40_000)),
    "v2 attachments": (two(0x11, FOUR + PORTS + TLV + b"\x20\x00\x00"), ("203.0.113.9", 40_000)),
    "v2 local": (two(0x00, b"", 0x20), None),
    "v2 local with something": (two(0x11, b"whatever", 0x20), None),
    "v2 unspecified": (two(0x00, b"anything"), None),
}  # fmt: skip
BAD = {
    "HTTP": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "v1 endless": b"PROXY TCP4 " + b"1" * 200,
    "v1 no CR": b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 8443\n",
    "v1 UDP": b"PROXY UDP4 203.0.113.9 192.0.2.1 40000 8443\r\n",
    "v1 wrong family": b"PROXY TCP4 2001:db8::9 2001:db8::1 40000 8443\r\n",
    "v1 no address": b"PROXY TCP4 203.0.113.999 192.0.2.1 40000 8443\r\n",
    "v1 zone": b"PROXY TCP6 fe80::1%eth0\x00 2001:db8::1 40000 8443\r\n",
    "v1 port": b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 8443\r\n",
    "v1 signed port": b"PROXY TCP4 203.0.113.9 192.0.2.1 -1 8443\r\n",
    "v1 two blanks": b"PROXY TCP4  203.0.113.9 192.0.2.1 40000 8443\r\n",
    "v1 a word more": b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 8443 x\r\n",
    "v1 not ASCII": b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 8443\xff\r\n",
    "v2 signature": SIGNATURE[:-1] + b"X" + two(0x11, FOUR + PORTS)[12:],
    "v2 version 1": two(0x11, FOUR + PORTS, 0x11),
    "v2 command 2": two(0x11, FOUR + PORTS, 0x22),
    "v2 UDP": two(0x12, FOUR + PORTS),
    "v2 socket of Unix": two(0x31, bytes(216)),
    "v2 too short for addresses": two(0x11, FOUR),
    "v2 IPv6 of IPv4's length": two(0x21, FOUR + PORTS),
    "v2 too long": two(0x11, FOUR + PORTS, length=MORE_MAX + 1),
    "v2 longest": two(0x11, FOUR + PORTS, length=65_535),
    "v2 cut attachment": two(0x11, FOUR + PORTS + TLV[:-1]),
    "v2 cut head of an attachment": two(0x11, FOUR + PORTS + TLV + b"\x04\x00"),
    "v2 attachment that is too long": two(0x11, FOUR + PORTS + b"\x04\xff\xffabc"),
}  # fmt: skip


def fed(octets: bytes) -> tuple[tuple[str, int] | None, bytes]:
    """What a header says that comes over a socket, and what is left there."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(octets)
        ours.setblocking(False)
        found = Preface().read(ours)
        try:
            return found, ours.recv(4096)
        except BlockingIOError:
            return found, b""


@pytest.mark.parametrize("name", GOOD)
def test_who_is_behind_it(name: str) -> None:
    header, expected = GOOD[name]
    assert fed(header + b"\x16\x03\x01") == (expected, b"\x16\x03\x01"), "what follows is TLS, and is left"


@pytest.mark.parametrize("name", GOOD)
def test_it_may_come_octet_by_octet(name: str) -> None:
    header, expected = GOOD[name]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        preface = Preface()
        for octet in header[:-1]:
            theirs.sendall(bytes([octet]))
            with pytest.raises(BlockingIOError):
                preface.read(ours)
        theirs.sendall(header[-1:])
        assert preface.read(ours) == expected


@pytest.mark.parametrize("name", BAD)
def test_what_is_none(name: str) -> None:
    with pytest.raises(PrefaceError):
        fed(BAD[name] + bytes(LINE_MAX))


@pytest.mark.parametrize("name", GOOD)
def test_one_that_is_cut_says_nothing(name: str) -> None:
    header, _ = GOOD[name]
    for size in range(len(header)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(header[:size])
            theirs.close()
            with pytest.raises(ConnectionError):
                Preface().read(ours)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda rest: two(0x11, rest)),
                 st.binary(max_size=120).map(lambda rest: b"PROXY " + rest)))  # fmt: skip
def test_whatever_comes_is_bounded(octets: bytes) -> None:
    """It is whole, or wants more, or is refused; it never takes what is beyond it."""
    taken = 0
    try:
        while size := missing(octets[:taken]):
            taken += size
            assert taken <= 16 + MORE_MAX
            if taken > len(octets):
                return
        source(octets[:taken])
    except PrefaceError:
        pass


def test_addresses_among_networks() -> None:
    named = ("192.0.2.0/24", "2001:db8::1")
    for address in ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "2001:db8::1%eth0"):
        assert among(named, address)
    for address in ("192.0.3.7", "2001:db8::2", "unknown", ""):
        assert not among(named, address)
    assert not among((), "192.0.2.7")
