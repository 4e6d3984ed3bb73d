"""Our DER against pyasn1's, on random structures."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyasn1.codec.der import decoder, encoder
from pyasn1.type import char, tag, univ

from igelcert import _der as der

# Each strategy gives (what we write, the pyasn1 value, how we read it back)
Case = tuple[bytes, Any, Any]

integers = st.one_of(st.integers(), st.integers(-(1 << 2100), 1 << 2100))
arcs = st.lists(st.integers(0, 1 << 40), max_size=8)
oids = st.one_of(
    st.tuples(st.sampled_from(["0", "1"]), st.integers(0, 39), arcs),
    st.tuples(st.just("2"), st.integers(0, 1 << 30), arcs),
).map(lambda each: ".".join([each[0], str(each[1]), *map(str, each[2])]))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
PRINTABLE = "ABCXYZabcxyz0123456789 '()+,-./:=?"


def bits(value: tuple[bytes, int]) -> tuple[bytes, int]:
    """Whole octets and unused bits, which DER wants to be zero."""
    data, unused = value
    if not data:
        return data, 0
    return data[:-1] + bytes([data[-1] & (0xFF << unused) & 0xFF]), unused


bit_strings = st.tuples(st.binary(max_size=200), st.integers(0, 7)).map(bits)


def of_bits(value: tuple[bytes, int]) -> Any:
    data, unused = value
    text = "".join(f"{octet:08b}" for octet in data)
    return univ.BitString("'" + text[: len(text) - unused] + "'B")


leaves = st.one_of(
    integers.map(lambda v: (der.integer(v), univ.Integer(v), v)),
    st.booleans().map(lambda v: (der.boolean(v), univ.Boolean(v), v)),
    st.just((der.null(), univ.Null(""), None)),
    oids.map(lambda v: (der.oid(v), univ.ObjectIdentifier(v), v)),
    st.binary(max_size=400).map(lambda v: (der.octet_string(v), univ.OctetString(v), v)),
    bit_strings.map(lambda v: (der.bit_string(*v), of_bits(v), v)),
    texts.map(lambda v: (der.utf8(v), char.UTF8String(v), v)),
    st.text(PRINTABLE, max_size=100).map(lambda v: (der.printable(v), char.PrintableString(v), v)),
    st.text(st.characters(max_codepoint=127), max_size=100).map(lambda v: (der.ia5(v), char.IA5String(v), v)),
)


def nested(children: Any) -> Any:
    def sequence(parts: list[Case]) -> Case:
        made = univ.Sequence()
        for index, part in enumerate(parts):
            made.setComponentByPosition(index, part[1])
        return der.sequence(*(part[0] for part in parts)), made, [part[2] for part in parts]

    def explicit(value: tuple[int, Case]) -> Case:
        number, part = value
        inner = encoder.encode(part[1])
        # pyasn1 does not re-tag a filled value: the wrapping octets are its own, though
        holder = univ.Any(inner).subtype(
            explicitTag=tag.Tag(tag.tagClassContext, tag.tagFormatConstructed, number)
        )
        return der.explicit(number, part[0]), holder, (number, part[2])

    return st.one_of(
        st.lists(children, min_size=1, max_size=6).map(sequence),
        st.tuples(st.integers(0, 30), children).map(explicit),
    )


structures = st.recursive(leaves, nested, max_leaves=25)


@settings(max_examples=400)
@given(structures)
def test_what_we_write_is_what_pyasn1_writes(case: Case) -> None:
    ours, theirs, _ = case
    assert ours == encoder.encode(theirs)


@settings(max_examples=200)
@given(structures)
def test_pyasn1_reads_what_we_write(case: Case) -> None:
    value, rest = decoder.decode(case[0])
    assert rest == b""
    assert encoder.encode(value) == case[0]


def read(reader: der.Reader) -> Any:
    """One value as the strategies have it."""
    kind = reader.peek()
    if kind == 0x30:
        inner = reader.enter()
        found = []
        while not inner.done:
            found.append(read(inner))
        return found
    if kind & 0xE0 == 0xA0:
        inner = reader.enter(kind)
        value = (kind & 0x1F, read(inner))
        inner.end()
        return value
    readers: dict[int, Any] = {
        0x01: reader.boolean,
        0x02: reader.integer,
        0x03: reader.bit_string,
        0x04: reader.octet_string,
        0x05: reader.null,
        0x06: reader.oid,
    }
    return readers.get(kind, reader.text)()


@settings(max_examples=400)
@given(structures)
def test_we_read_what_pyasn1_writes(case: Case) -> None:
    reader = der.Reader(encoder.encode(case[1]))
    assert read(reader) == case[2]
    reader.end()


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=8))
def test_a_set_is_sorted_as_der_wants(values: list[bytes]) -> None:
    theirs = univ.SetOf(componentType=univ.OctetString())
    theirs.extend(values)
    assert der.set_of(*map(der.octet_string, values)) == encoder.encode(theirs)


@settings(max_examples=300)
@given(structures, st.data())
def test_damage_is_a_der_error_or_another_value(case: Case, data: st.DataObject) -> None:
    """Never another exception, and never reading beyond the end."""
    octets = bytearray(case[0])
    for _ in range(data.draw(st.integers(1, 3))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    del octets[data.draw(st.integers(1, len(octets))) :]
    try:
        reader = der.Reader(bytes(octets))
        value = read(reader)
        reader.end()
    except der.DerError:
        return
    assert value != case[2] or bytes(octets) == case[0]


@pytest.mark.parametrize(
    "bad",
    [
        "0201",
        "02020001",
        "0202ff80",
        "3080020101 0000",
        "30810102",
        "0101 02",
        "0601 80",
        "030108",
        "03020780" + "ff",
        "1f8101",
    ],
)
def test_what_is_not_der_is_refused(bad: str) -> None:
    with pytest.raises(der.DerError):
        reader = der.Reader(bytes.fromhex(bad.replace(" ", "")))
        read(reader)
        reader.end()


@pytest.mark.parametrize("month", range(14))
@given(st.integers(1, 9999))
@example(1900)
@example(2000)
@example(2023)
@example(2024)
def test_days_are_those_of_the_calendar(month: int, year: int) -> None:
    """Against datetime; leap years by the rule of 1582, from the year 1 on."""
    for day in (0, 1, 28, 29, 30, 31, 32):
        same_day(year, month, day)


def same_day(year: int, month: int, day: int) -> None:
    text = b"%04d%02d%02d101112Z" % (year, month, day)
    try:
        moment = datetime.datetime(year, month, day, 10, 11, 12, tzinfo=datetime.UTC)
    except ValueError:
        with pytest.raises(der.DerError):
            der.Reader(der.tlv(0x18, text)).time()
        return
    assert der.Reader(der.tlv(0x18, text)).time() == round(moment.timestamp())
