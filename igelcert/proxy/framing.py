"""Where an HTTP/1.1 request ends (RFC 9112 6): enough to wait for it without a thread.

The parser proper reads the message afterwards; what it does not like it refuses. Here only the length
counts, and limits: nothing beyond them is ever buffered.
"""

from __future__ import annotations

import re

__all__ = [
    "ADMIN_BODY_MAX",
    "CUT",
    "DEVICE_BODY_MAX",
    "HEADER_MAX",
    "Cut",
    "FramingError",
    "expects_continue",
    "request_length",
]

CUT = "igelcert.cut"  # in the environ of the administration: was the body too large to be kept?
HEADER_MAX = 32_768
DEVICE_BODY_MAX = 65_536  # octets of a device's request body
ADMIN_BODY_MAX = 4 << 20
_LINE_MAX = 1_024
_TRAILER_MAX = 4_096
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding[ \t]*:")
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n")


class FramingError(Exception):
    """The request is refused before it is whole."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def request_length(data: bytes | bytearray, body_max: int) -> int | None:
    """Octets of the first request in `data`, None while it is not whole."""
    end = data.find(b"\r\n\r\n", 0, HEADER_MAX)
    if end < 0:
        if len(data) >= HEADER_MAX:
            raise FramingError(431, f"the header of the request is larger than {HEADER_MAX // 1024} KiB")
        return None
    head, start = bytes(data[: end + 2]).lower(), end + 4
    if _CHUNKED.search(head):
        return _chunked_end(data, start, body_max)
    found = _LENGTH.search(head)
    size = int(found[1]) if found else 0
    if size > body_max:
        raise _too_large(body_max)
    return start + size if len(data) >= start + size else None


def expects_continue(data: bytes | bytearray) -> bool:
    """Does the client wait for "100 Continue" before it sends the body (RFC 9110 10.1.1)?"""
    end = data.find(b"\r\n\r\n", 0, HEADER_MAX)
    return end >= 0 and bool(_EXPECT.search(bytes(data[: end + 2]).lower()))


def _too_large(body_max: int) -> FramingError:
    return FramingError(413, f"the body is larger than {body_max // 1024} KiB")


def _chunked_end(data: bytes | bytearray, at: int, body_max: int) -> int | None:
    """The end of a chunked body (RFC 9112 7.1) that begins at `at`."""
    if len(data) - at > 4 * body_max:
        raise _too_large(body_max)
    total = 0
    while True:
        line = data.find(b"\r\n", at, at + _LINE_MAX)
        if line < 0:
            if len(data) - at >= _LINE_MAX:
                raise FramingError(400, "the chunked body does not parse")
            return None
        digits = bytes(data[at:line]).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", digits):
            raise FramingError(400, "the chunked body does not parse")
        size = int(digits, 16)
        total += size
        if total > body_max:
            raise _too_large(body_max)
        at = line + 2
        if size == 0:
            return _trailer_end(data, at)
        at += size + 2
        if len(data) < at:
            return None


def _trailer_end(data: bytes | bytearray, at: int) -> int | None:
    if data[at : at + 2] == b"\r\n":
        return at + 2
    end = data.find(b"\r\n\r\n", at)
    if end < 0 and len(data) - at > _TRAILER_MAX:
        raise FramingError(400, "the trailer of the chunked body is too long")
    return end + 4 if end >= 0 else None


class Cut:
    """A request whose body is too large: all of it is read, its begin and its end alone are kept.

    A form whose file is too large can thus be answered with what else was entered: the file is what is cut.
    """

    KEPT = 65_536  # octets of the body at either side
    BODY_MAX = 256 << 20

    def __init__(self, head: bytes, left: int) -> None:
        self._head, self._left = head, left
        self._begin, self._end = bytearray(), bytearray()

    @classmethod
    def of(cls, data: bytes | bytearray) -> Cut | None:
        """For the request that begins in `data`; None where its body has no length, or nobody has sent it yet."""
        end = data.find(b"\r\n\r\n", 0, HEADER_MAX) + 4
        head = bytes(data[:end])
        found = _LENGTH.search(head)
        if found is None or _CHUNKED.search(head.lower()) or expects_continue(data):
            return None
        size = int(found[1])
        return cls(head, size) if 2 * cls.KEPT <= size <= cls.BODY_MAX else None

    def take(self, data: bytearray) -> bool:
        """Takes what belongs to the body out of `data`; True when that was the last of it."""
        piece = bytes(data[: self._left])
        del data[: len(piece)]
        self._left -= len(piece)
        room = self.KEPT - len(self._begin)
        self._begin += piece[:room]
        self._end += piece[room:]
        del self._end[: -self.KEPT]
        return self._left == 0

    def request(self) -> bytes:
        """The request with the body that was kept, and its length."""
        body = bytes(self._begin + self._end)
        return _LENGTH.sub(b"\r\nContent-Length: %d\r\n" % len(body), self._head, count=1) + body
