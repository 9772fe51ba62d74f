from __future__ import annotations

import struct
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from opentsm.sbc import stun

REQUEST = struct.pack("!HHI12s", 1, 0, stun.MAGIC, b"abcdefghijkl")


def test_a_binding_request_is_answered_with_the_source() -> None:
    assert stun.is_stun(REQUEST)
    for address in ("10.64.0.2", "fd00::2"):
        reply = stun.answer(REQUEST, (address, 5070))
        assert reply is not None
        assert reply[8:20] == b"abcdefghijkl"
        assert int.from_bytes(reply[26:28], "big") ^ (stun.MAGIC >> 16) == 5070
        mask = REQUEST[4:20]
        packed = bytes(a ^ b for a, b in zip(reply[28:], mask, strict=False))
        assert packed == ip_address(address).packed


def test_other_messages_get_no_answer() -> None:
    assert stun.answer(struct.pack("!HHI12s", 0x0101, 0, stun.MAGIC, b"x" * 12), ("10.64.0.2", 1)) is None
    assert stun.answer(REQUEST + b"x", ("10.64.0.2", 1)) is None
    assert not stun.is_stun(b"OPTIONS sip:x SIP/2.0\r\n\r\n")


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    if stun.is_stun(data):
        stun.answer(data, ("10.64.0.2", 1))
