"""The PROXY protocol, versions 1 and 2 (haproxy.org/download/2.9/doc/proxy-protocol.txt): who is behind a balancer that
passes TLS through.

The header comes before the handshake, and only from addresses that are configured to send it: from these it must come,
and from nobody else is it one. Nothing beyond it is read: what follows is the client's TLS. Of its attachments (TLV)
only the form is looked at; the proxy uses none.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct

__all__ = ["Preface", "PrefaceError", "missing", "source"]

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE_MAX = 107  # octets of version 1, with its end
MORE_MAX = 2_048  # octets of version 2 behind the first sixteen
_SHORTEST = 8  # what both versions have at least
_TCP4, _TCP6, _UNSPEC = 0x11, 0x21, 0x00
_SIZES = {_TCP4: 12, _TCP6: 36, _UNSPEC: 0}
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")


class PrefaceError(Exception):
    """It is no header of the PROXY protocol, or none that is taken here. The text says why."""


class Preface:
    """The header of one connection, as it comes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def read(self, sock: socket.socket) -> tuple[str, int] | None:
        """As `source`. BlockingIOError: more has to come; ConnectionError: the connection ended; PrefaceError."""
        while size := missing(self._data):
            data = sock.recv(size)
            if not data:
                raise ConnectionAbortedError("closed before the PROXY header was whole")
            self._data += data
        return source(bytes(self._data))


def missing(data: bytes | bytearray) -> int:
    """How many octets more surely belong to the header that begins so; 0: it is whole. PrefaceError."""
    size = len(data)
    if size < _SHORTEST:
        return _SHORTEST - size
    if data.startswith(SIGNATURE[:_SHORTEST]):
        if size < 16:
            return 16 - size
        if not data.startswith(SIGNATURE):
            raise PrefaceError("it does not begin as a PROXY header does")
        more = int.from_bytes(data[14:16])
        if more > MORE_MAX:
            raise PrefaceError(f"the PROXY header is longer than {MORE_MAX} octets")
        return 16 + more - size
    if not data.startswith(b"PROXY "):
        raise PrefaceError("it does not begin as a PROXY header does")
    if data.endswith(b"\r\n"):
        return 0
    if b"\n" in data or size >= LINE_MAX:
        raise PrefaceError(f"the PROXY header is no line of at most {LINE_MAX} octets")
    return 1 if data.endswith(b"\r") else 2


def source(header: bytes) -> tuple[str, int] | None:
    """Address and port of the client, of a whole header. None: the connection is the balancer's own, or of somebody whom
    it does not name. PrefaceError."""
    return _line(header) if header.startswith(b"PROXY ") else _binary(header)


def _line(header: bytes) -> tuple[str, int] | None:
    try:
        words = header[:-2].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise PrefaceError("the PROXY header is not ASCII") from None
    if words[1] == "UNKNOWN":
        return None
    kinds = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}
    if words[1] not in kinds or len(words) != 6:
        raise PrefaceError("the PROXY header names no TCP connection")
    addresses = []
    for text in words[2:4]:
        try:
            if "%" in text:  # a zone, which Python would take: nobody behind a balancer has one
                raise ValueError
            addresses.append(str(kinds[words[1]](text)))
        except ValueError:
            raise PrefaceError("the PROXY header holds what is no address") from None
    for text in words[4:]:
        if not _PORT.fullmatch(text) or int(text) > 65_535:
            raise PrefaceError("the PROXY header holds what is no port")
    return addresses[0], int(words[4])


def _binary(header: bytes) -> tuple[str, int] | None:
    version, command, kind = header[12] >> 4, header[12] & 15, header[13]
    if version != 2 or command > 1:
        raise PrefaceError("the PROXY header has a version or a command that there is not")
    if command == 0:  # LOCAL: a check of the balancer's; what else it says must be passed over
        return None
    if kind not in _SIZES:
        raise PrefaceError("the PROXY header is of a connection that is not TCP")
    rest = header[16:]
    if len(rest) < _SIZES[kind]:
        raise PrefaceError("the PROXY header is too short for its addresses")
    _check_attachments(rest[_SIZES[kind] :] if kind != _UNSPEC else b"")
    if kind == _UNSPEC:
        return None
    width = 4 if kind == _TCP4 else 16
    (port,) = struct.unpack_from("!H", rest, 2 * width)
    return str(ipaddress.ip_address(rest[:width])), port


def _check_attachments(data: bytes) -> None:
    """Type, length, value: one after the other, to the very end."""
    at = 0
    while at < len(data):
        if at + 3 > len(data):
            raise PrefaceError("an attachment of the PROXY header is cut")
        at += 3 + int.from_bytes(data[at + 1 : at + 3])
    if at != len(data):
        raise PrefaceError("an attachment of the PROXY header is cut")
