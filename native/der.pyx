# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""DER (X.690): writing and strict reading. Knows no keys and does no I/O.

Writers return bytes. Reader walks over bytes without copying the parts it only passes; what is not
DER raises DerError. Nesting, integers and object identifiers are bounded, so hostile bytes cost no
more than their length.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

import time as _time

cdef Py_ssize_t MAX_INTEGER = 8192
cdef Py_ssize_t MAX_OID = 128


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


# calendar would bring datetime and locale along, which take as long to load as all of this package's codecs
cdef int _days_of(int year, int month):
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


cdef long long _days_since_1970(long long year, int month, int day):
    """Of the proleptic Gregorian calendar, from the year 1; the year is taken to begin in March."""
    cdef long long shifted = year - (month <= 2)
    cdef long long day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return 365 * shifted + shifted // 4 - shifted // 100 + shifted // 400 + day_of_year - 719468


# ---- writing ------------------------------------------------------------------------------------

cdef bytes _wrap(unsigned char tag, bytes content):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(content)
    cdef Py_ssize_t octets = 0
    cdef Py_ssize_t rest = size
    cdef Py_ssize_t i
    cdef bytes out
    cdef char *at
    if size >= 0x80:
        while rest:
            octets += 1
            rest >>= 8
    out = PyBytes_FromStringAndSize(NULL, 2 + octets + size)
    at = PyBytes_AS_STRING(out)
    at[0] = <char>tag
    if octets == 0:
        at[1] = <char>size
    else:
        at[1] = <char>(0x80 | octets)
        for i in range(octets):
            at[2 + i] = <char>((size >> (8 * (octets - 1 - i))) & 0xFF)
    memcpy(at + 2 + octets, PyBytes_AS_STRING(content), size)
    return out


cpdef bytes tlv(int tag, bytes content):
    """One element with the identifier octet `tag` (tag numbers up to 30)."""
    if not 0 < tag < 256 or tag & 0x1F == 0x1F:
        raise ValueError("not a one-octet tag")
    return _wrap(<unsigned char>tag, content)


def sequence(*parts):
    return _wrap(0x30, b"".join(parts))


def set_of(*parts):
    """SET OF: the elements in ascending order of their encodings (X.690 11.6)."""
    return _wrap(0x31, b"".join(sorted(parts)))


cpdef bytes integer(object value):
    cdef object size = (value + (value < 0)).bit_length() // 8 + 1
    return _wrap(0x02, value.to_bytes(size, "big", signed=True))


def boolean(value):
    return b"\x01\x01\xff" if value else b"\x01\x01\x00"


def null():
    return b"\x05\x00"


cdef dict _oids = {}


cpdef bytes oid(str dotted):
    """OBJECT IDENTIFIER from its dotted form; ValueError when that is none."""
    cdef bytes known = _oids.get(dotted)
    if known is not None:
        return known
    arcs = [int(arc) for arc in dotted.split(".")]
    if len(arcs) < 2 or arcs[0] > 2 or min(arcs) < 0 or (arcs[0] < 2 and arcs[1] > 39):
        raise ValueError(f"{dotted!r} is not an object identifier")
    content = bytearray()
    for arc in [arcs[0] * 40 + arcs[1], *arcs[2:]]:
        groups = [arc & 0x7F]
        arc >>= 7
        while arc:
            groups.append(arc & 0x7F | 0x80)
            arc >>= 7
        content += bytes(reversed(groups))
    known = _wrap(0x06, bytes(content))
    if len(_oids) < 500:
        _oids[dotted] = known
    return known


def octet_string(bytes value):
    return _wrap(0x04, value)


def bit_string(bytes value, int unused=0):
    if not 0 <= unused < 8 or (unused and not value):
        raise ValueError("unused bits")
    return _wrap(0x03, bytes((unused,)) + value)


def utf8(str value):
    return _wrap(0x0C, value.encode("utf-8"))


cdef frozenset _PRINTABLE = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?"
)


def is_printable(str value):
    """Do all characters belong to PrintableString (X.680 41.4)?"""
    return _PRINTABLE.issuperset(value)


def printable(str value):
    if not _PRINTABLE.issuperset(value):
        raise ValueError("not a PrintableString")
    return _wrap(0x13, value.encode("ascii"))


def ia5(str value):
    return _wrap(0x16, value.encode("ascii"))


def explicit(int number, bytes der):
    """[number] EXPLICIT"""
    return tlv(0xA0 | number, der)


def implicit(int number, bytes der, constructed=None):
    """[number] IMPLICIT: the element's own tag gives way, its content stays."""
    cdef Py_ssize_t head
    reader = Reader(der)
    tag, content = reader.read()
    reader.end()
    form = (tag & 0x20) if constructed is None else (0x20 if constructed else 0)
    return tlv(0x80 | form | number, content)


def utc_time(value):
    return _wrap(0x17, _time.strftime("%y%m%d%H%M%SZ", _time.gmtime(value)).encode())


def generalized_time(value):
    return _wrap(0x18, _time.strftime("%Y%m%d%H%M%SZ", _time.gmtime(value)).encode())


def time(value):
    """RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050. `value`: seconds since 1970."""
    return utc_time(value) if -631152000 <= value < 2524608000 else generalized_time(value)


# ---- reading ------------------------------------------------------------------------------------

cdef dict _CHARSETS = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}


cdef class Reader:
    """Walks over the elements of a DER value. `depth` bounds how often enter() may nest."""

    cdef bytes _data
    cdef const unsigned char *_at
    cdef Py_ssize_t _pos
    cdef Py_ssize_t _end
    cdef int _depth

    def __init__(self, data, int depth=32):
        self._data = bytes(data)
        self._at = <const unsigned char *>PyBytes_AS_STRING(self._data)
        self._pos = 0
        self._end = PyBytes_GET_SIZE(self._data)
        self._depth = depth

    cdef Py_ssize_t _header(self, unsigned char *tag, Py_ssize_t *start) except -1:
        """Tag and content bounds of the next element, which must lie whole in the data."""
        cdef Py_ssize_t pos = self._pos
        cdef Py_ssize_t size, octets, i
        if self._end - pos < 2:
            raise DerError("an element is cut off")
        tag[0] = self._at[pos]
        if tag[0] & 0x1F == 0x1F:
            raise DerError("a tag number is too high")
        if tag[0] == 0:
            raise DerError("end-of-contents octets stand in DER")
        size = self._at[pos + 1]
        pos += 2
        if size >= 0x80:
            octets = size & 0x7F
            if octets == 0:
                raise DerError("the length is indefinite: BER, not DER")
            if octets > 4 or self._end - pos < octets:
                raise DerError("a length is out of bounds")
            size = 0
            for i in range(octets):
                size = size << 8 | self._at[pos + i]
            if size < 0x80 or size >> (8 * (octets - 1)) == 0:
                raise DerError("a length is not in its shortest form")
            pos += octets
        if size > self._end - pos:
            raise DerError("an element is longer than what holds it")
        start[0] = pos
        return pos + size

    @property
    def done(self):
        return self._pos >= self._end

    def peek(self):
        """The identifier octet of the next element; 0 at the end."""
        return self._at[self._pos] if self._pos < self._end else 0

    cdef Py_ssize_t _expect(self, object tag, unsigned char *found, Py_ssize_t *start) except -1:
        cdef Py_ssize_t end = self._header(found, start)
        if tag is not None and found[0] != <int>tag:
            raise DerError(f"tag {found[0]:#04x} stands where {tag:#04x} is expected")
        return end

    def read(self, tag=None):
        """(identifier octet, content) of the next element."""
        cdef unsigned char found
        cdef Py_ssize_t start
        cdef Py_ssize_t end = self._expect(tag, &found, &start)
        self._pos = end
        return found, self._data[start:end]

    def raw(self, tag=None):
        """The next element whole, with its header."""
        cdef unsigned char found
        cdef Py_ssize_t start
        cdef Py_ssize_t begin = self._pos
        self._pos = self._expect(tag, &found, &start)
        return self._data[begin:self._pos]

    def enter(self, tag=0x30):
        """A reader of the content of the next element."""
        cdef unsigned char found
        cdef Py_ssize_t start
        cdef Reader inner
        cdef Py_ssize_t end = self._expect(tag, &found, &start)
        if not found & 0x20:
            raise DerError("an element is primitive where a constructed one is expected")
        if self._depth <= 0:
            raise DerError("the elements are nested too deeply")
        inner = Reader.__new__(Reader)
        inner._data = self._data
        inner._at = self._at
        inner._pos = start
        inner._end = end
        inner._depth = self._depth - 1
        self._pos = end
        return inner

    def optional(self, tag):
        """As enter(), or None where another element stands."""
        return self.enter(tag) if self.peek() == tag else None

    def end(self):
        if self._pos < self._end:
            raise DerError("there are bytes after the end")

    def rest(self):
        """What has not been read yet."""
        return self._data[self._pos:self._end]

    def integer(self, tag=0x02):
        _, content = self.read(tag)
        size = len(content)
        if size == 0 or size > MAX_INTEGER:
            raise DerError("an INTEGER is empty or too long")
        if size > 1 and (content[0] == 0 and content[1] < 0x80 or content[0] == 0xFF and content[1] >= 0x80):
            raise DerError("an INTEGER is not in its shortest form")
        return int.from_bytes(content, "big", signed=True)

    def boolean(self):
        _, content = self.read(0x01)
        if content != b"\x00" and content != b"\xff":
            raise DerError("a BOOLEAN is neither TRUE nor FALSE")
        return content == b"\xff"

    def null(self):
        if self.read(0x05)[1]:
            raise DerError("a NULL is not empty")

    def oid(self):
        """The dotted form; at most 128 octets of content."""
        _, content = self.read(0x06)
        size = len(content)
        if size == 0 or size > MAX_OID or content[size - 1] & 0x80:
            raise DerError("an OBJECT IDENTIFIER is empty, cut off or too long")
        arcs = []
        value = 0
        fresh = True
        for octet in content:
            if fresh and octet == 0x80:
                raise DerError("an arc of an OBJECT IDENTIFIER is not in its shortest form")
            value = value << 7 | octet & 0x7F
            fresh = not octet & 0x80
            if fresh:
                if not arcs:
                    first = min(value // 40, 2)
                    arcs = [first, value - 40 * first]
                else:
                    arcs.append(value)
                value = 0
        return ".".join(map(str, arcs))

    def octet_string(self):
        return self.read(0x04)[1]

    def bit_string(self):
        """(octets, unused bits); the unused bits are zero (X.690 11.2)."""
        _, content = self.read(0x03)
        if not content or content[0] > 7 or (content[0] and len(content) == 1):
            raise DerError("a BIT STRING has a wrong count of unused bits")
        if content[0] and content[len(content) - 1] & ((1 << content[0]) - 1):
            raise DerError("the unused bits of a BIT STRING are not zero")
        return content[1:], content[0]

    def text(self):
        """A character string of any of the usual types, checked against it. Teletex is read as Latin-1."""
        tag, content = self.read()
        charset = _CHARSETS.get(tag)
        if charset is None:
            raise DerError(f"tag {tag:#04x} is not a character string")
        try:
            value = content.decode(charset)
        except UnicodeDecodeError:
            raise DerError("a character string is not valid in its type") from None
        if tag == 0x13 and not _PRINTABLE.issuperset(value):
            raise DerError("a PrintableString holds other characters")
        if tag == 0x12 and value.strip("0123456789 "):
            raise DerError("a NumericString holds other characters")
        return value

    def time(self):
        """UTCTime or GeneralizedTime in the form of RFC 5280, as seconds since 1970."""
        tag, content = self.read()
        digits = content[:-1]
        if content[-1:] != b"Z" or not digits.isdigit() or (tag, len(content)) not in ((0x17, 13), (0x18, 15)):
            raise DerError("a time is not in the form of RFC 5280")
        if tag == 0x17:
            digits = (b"20" if digits[:2] < b"50" else b"19") + digits
        year, month, day = int(digits[:4]), int(digits[4:6]), int(digits[6:8])
        hour, minute, second = int(digits[8:10]), int(digits[10:12]), int(digits[12:14])
        if not (1 <= year and 1 <= month <= 12 and 1 <= day <= _days_of(year, month)
                and hour < 24 and minute < 60 and second < 60):
            raise DerError("a time is no time")
        return ((_days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second
