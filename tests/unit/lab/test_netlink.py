from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from opentsm.lab.netlink import NLM_F_ACK, Request, attribute, attributes, nested, number, text


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=10))
def test_attributes_come_back_as_they_were(pairs: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(attribute(kind, value) for kind, value in pairs))) == pairs


@given(st.binary(max_size=64))
def test_broken_attributes_end_the_list(data: bytes) -> None:
    assert all(len(value) <= len(data) for _, value in attributes(data))


def test_every_attribute_is_padded_to_four_bytes() -> None:
    assert attribute(1, b"abc") == struct.pack("=HH", 7, 1) + b"abc\0"
    assert len(text(1, "wan0")) == 12
    assert number(2, 258) == struct.pack("=HH", 8, 2) + bytes([0, 0, 1, 2])
    assert list(attributes(nested(4, number(1, 5)))) == [(4, number(1, 5))]


def test_a_request_has_its_length_kind_and_sequence() -> None:
    message = Request(10, 3, NLM_F_ACK, 1, b"12345678").encode(77)
    length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", message)
    assert (length, kind, sequence) == (len(message), 10 << 8 | 3, 77)
    assert flags & NLM_F_ACK
