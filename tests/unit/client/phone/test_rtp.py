from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.rtp import RtpPacket, parse_rtp_untrusted, unwrap
from opentsm.errors import RemoteProtocolError

packets = st.builds(
    RtpPacket,
    st.integers(0, 63) | st.integers(96, 127),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=300),
    st.booleans(),
)


@given(packets)
def test_what_is_built_is_parsed(packet: RtpPacket) -> None:
    assert parse_rtp_untrusted(packet.build()) == packet


def test_the_header_is_that_of_rfc_3550() -> None:
    data = RtpPacket(0, 0x1234, 0x01020304, 0xDEADBEEF, b"\xff", marker=True).build()
    assert data.hex() == "8080123401020304deadbeefff"


@given(packets, st.integers(1, 20), st.lists(st.integers(0, 0xFFFFFFFF), max_size=15), st.binary(max_size=16))
def test_padding_sources_and_extensions_are_stripped(
    packet: RtpPacket, padding: int, sources: list[int], extension: bytes
) -> None:
    data = bytearray(packet.build())
    data[0] |= 0x20 | 0x10 | len(sources)
    words = extension[: len(extension) // 4 * 4]
    middle = b"".join(s.to_bytes(4, "big") for s in sources)
    middle += b"\xbe\xde" + (len(words) // 4).to_bytes(2, "big") + words
    whole = bytes(data[:12]) + middle + bytes(data[12:]) + bytes(padding - 1) + bytes([padding])
    assert parse_rtp_untrusted(whole) == packet


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "rtp-size"),
        ("80" * 11, "rtp-size"),
        ("40" + "00" * 11, "rtp-version"),
        ("80c8" + "00" * 10, "rtp-is-rtcp"),
        ("8f00" + "00" * 10, "rtp-truncated"),
        ("9000" + "00" * 10, "rtp-truncated"),
        ("9000" + "00" * 10 + "0000ffff", "rtp-truncated"),
        ("a000" + "00" * 10, "rtp-truncated"),
        ("a000" + "00" * 10 + "09", "rtp-truncated"),
    ],
)
def test_what_is_no_rtp_has_a_name(text: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_rtp_untrusted(bytes.fromhex(text))
    assert caught.value.reason == reason


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x80\x00", b"\xbf\x80"]))
def test_any_bytes_are_rtp_or_a_remote_error(data: bytes, start: bytes) -> None:
    try:
        packet = parse_rtp_untrusted(start + data)
    except RemoteProtocolError:
        return
    assert len(packet.payload) <= len(data)


@given(st.integers(-(10**9), 10**9), st.integers(-32767, 32767))
def test_unwrapped_numbers_go_on_across_the_wrap(near: int, step: int) -> None:
    assert unwrap((near + step) % (1 << 16), near, 16) == near + step
