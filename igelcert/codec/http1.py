"""HTTP/1.1 of a client that asks one thing at a time (RFC 9112): octets of a request, and an answer out of octets."""

from __future__ import annotations

from ..errors import LocalProtocolError, RemoteProtocolError
from .http import Headers, Request, Response, plain_line

__all__ = ["ResponseReader", "encode_request"]

HEAD_MAX = 65_536  # octets of a head, of a trailer section, and of what precedes the last answer
LINE_MAX = 4_096  # of the line before a chunk
INTERIM_MAX = 16
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HEX = frozenset(b"0123456789abcdefABCDEF")


def encode_request(request: Request, host: str) -> bytes:
    """The octets of a request. `host`: as the Host field has it; LocalProtocolError for what would end a line."""
    fields = [("Host", host), ("Accept-Encoding", "identity"), *request.headers]
    if request.body or request.method != "GET":
        fields.append(("Content-Length", str(len(request.body))))
    lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    if " " in request.path or any(char < " " or char > "~" for line in lines for char in line):
        raise LocalProtocolError("a request has other than printable ASCII in its head")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + request.body


class ResponseReader:
    """Reads one answer; octets go in as they come, `keep` says afterwards whether another request may follow.

    Errors are RemoteProtocolError, whose message continues the name of the server. No more than the head's bound
    and `body_max` octets are kept.
    """

    def __init__(self, body_max: int) -> None:
        self.keep = False
        self.begun = False  # has anything arrived?
        self._body_max = body_max
        self._data = bytearray()
        self._seen = 0  # octets of _data in which there is no end of a line
        self._head: list[bytes] = []
        self._head_size = 0
        self._interim = 0
        self._status = 0
        self._headers: Headers = ()
        self._body = bytearray()
        self._left: int | None = None  # octets of the body, or of the chunk; None: until the connection ends
        self._step = self._read_head

    def receive(self, data: bytes) -> Response | None:
        """What has arrived, b"" at the end of the connection; the answer when it is whole."""
        self.begun = self.begun or bool(data)
        self._data += data
        while self._step():
            if self._step == self._done:
                self.keep = self.keep and not self._data  # nothing follows an answer unasked
                return Response(self._status, self._headers, bytes(self._body))
        if data:
            return None
        if self._step == self._read_body and self._left is None:
            return Response(self._status, self._headers, bytes(self._body))
        if self._status:
            raise RemoteProtocolError("closed the connection in the middle of its answer")
        raise RemoteProtocolError("does not answer with HTTP")

    # ---- each step: has it come to its end? -----------------------------------------------------

    def _done(self) -> bool:
        return True

    def _line(self, most: int) -> bytes | None:
        end = self._data.find(b"\n", self._seen)  # RFC 9112 2.2: a lone LF may end a line
        if max(end, len(self._data) if end < 0 else 0) > most:
            raise RemoteProtocolError("does not answer with HTTP: a line or head is too long")
        if end < 0:
            self._seen = len(self._data)
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        self._seen = 0
        return line.removesuffix(b"\r")

    def _section(self) -> bool:
        """Lines up to an empty one, in _head."""
        while (line := self._line(HEAD_MAX - self._head_size)) is not None:
            if not line:
                return True
            self._head_size += len(line) + 2
            self._head.append(line)
            if len(self._head) == 1 and self._step == self._read_head:
                _status(line)  # what is not HTTP is not waited for
        return False

    def _read_head(self) -> bool:
        if not self._section():
            return False
        if not self._head:
            raise RemoteProtocolError("does not answer with HTTP")
        version, status = _status(self._head[0])
        headers = _fields(self._head[1:])
        self._head = []
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > INTERIM_MAX:
                raise RemoteProtocolError("answers with other than what was asked for")
            return True
        self._status, self._headers = status, headers
        self._frame(version)
        return True

    def _frame(self, version: bytes) -> None:
        """How long the body is (RFC 9112 6.3)."""
        wishes = _listed(self._headers, "connection")
        self.keep = "close" not in wishes and (version > b"1.0" or "keep-alive" in wishes)
        coding, lengths = (_listed(self._headers, name) for name in ("transfer-encoding", "content-length"))
        self._step = self._read_body
        if self._status in {204, 304}:
            self._left = 0
        elif coding:
            if coding != ["chunked"]:
                raise RemoteProtocolError("answers in a transfer coding that was not asked for")
            self.keep = self.keep and not lengths and version > b"1.0"
            self._step = self._read_size
        elif lengths:
            if len(set(lengths)) > 1 or not (lengths[0].isascii() and lengths[0].isdecimal()):
                raise RemoteProtocolError("does not answer with HTTP: its Content-Length is no number")
            # more digits than any bound has: int() of a long number is work
            self._left = int(lengths[0].lstrip("0")[:20] or "0")
            self._bound(self._left)
        else:
            self.keep = False

    def _bound(self, more: int) -> None:
        if len(self._body) + more > self._body_max:
            raise RemoteProtocolError(f"sent more than {self._body_max >> 20} MiB")

    def _take(self) -> bool:
        """Moves octets of the body; are all there?"""
        count = len(self._data) if self._left is None else min(self._left, len(self._data))
        self._bound(count)
        self._body += self._data[:count]
        del self._data[:count]
        if self._left is None:
            return False
        self._left -= count
        return not self._left

    def _read_body(self) -> bool:
        if not self._take():
            return False
        self._step = self._done
        return True

    def _read_size(self) -> bool:
        line = self._line(LINE_MAX)
        if line is None:
            return False
        digits = line.partition(b";")[0].strip(b" \t")
        if not 0 < len(digits) <= 16 or not _HEX.issuperset(digits):
            raise RemoteProtocolError("does not answer with HTTP: the size of a chunk is no number")
        self._left = int(digits, 16)
        self._bound(self._left)
        self._head_size = 0
        self._step = self._read_chunk if self._left else self._read_trailers
        return True

    def _read_chunk(self) -> bool:
        if not self._take():
            return False
        self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self) -> bool:
        line = self._line(2)
        if line is None:
            return False
        if line:
            raise RemoteProtocolError("does not answer with HTTP: a chunk is longer than its size")
        self._step = self._read_size
        return True

    def _read_trailers(self) -> bool:
        if not self._section():
            return False
        self._step = self._done
        return True


def _status(line: bytes) -> tuple[bytes, int]:
    """Version and status of RFC 9112 4's status line; its reason is for nobody."""
    start, version, rest = line[:5], line[5:8], line[8:]
    code = rest[1:4]
    good = start == b"HTTP/" and version in {b"1.0", b"1.1"} and rest[:1] == b" " and len(code) == 3
    if not good or not code.isdigit() or code[0] not in b"12345" or rest[4:5] not in {b"", b" "}:
        said = plain_line(line[:200].decode("latin-1"), 80)
        raise RemoteProtocolError(
            f"does not answer with HTTP: {said}" if said else "does not answer with HTTP"
        )
    return version, int(code)


def _fields(lines: list[bytes]) -> Headers:
    fields: list[tuple[str, str]] = []
    for line in lines:
        text = line.decode("latin-1")
        if text[0] in " \t" and fields:  # RFC 9112 5.2: a folded line
            name, value = fields[-1]
            fields[-1] = (name, f"{value} {text.strip()}".strip())
            continue
        name, colon, value = text.partition(":")
        if not colon or not name or not _TOKEN.issuperset(line[: len(name)]):
            raise RemoteProtocolError("does not answer with HTTP: a line of its head is no field")
        fields.append((name, value.strip(" \t")))
    return tuple(fields)


def _listed(headers: Headers, name: str) -> list[str]:
    """The members of a list field, in lower case."""
    found = (part.strip() for key, value in headers if key.lower() == name for part in value.split(","))
    return [part.lower() for part in found if part]
