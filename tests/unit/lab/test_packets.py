from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.lab.packets import (
    checksum,
    forbids_fragmentation,
    is_routable,
    parse,
    protocol_name,
    too_big,
    unreachable,
)


def udp4(
    source: str = "192.0.2.1", destination: str = "192.0.2.2", body: bytes = b"hello", *, flags: int = 0x4000
) -> bytes:
    datagram = struct.pack("!HHHH", 1000, 443, 8 + len(body), 0) + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, flags, 64, 17, 0)
    return head + ip_address(source).packed + ip_address(destination).packed + datagram


def packet6(
    body: bytes, protocol: int = 17, source: str = "2001:db8::1", destination: str = "2001:db8::2"
) -> bytes:
    head = struct.pack("!IHBB", 0x6 << 28, len(body), protocol, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + body


def test_an_ipv4_header_is_read() -> None:
    header = parse(udp4())
    assert header is not None
    assert (header.version, protocol_name(header.protocol), header.transport) == (4, "udp", 20)
    assert (header.source, header.destination, header.fragment) == ("192.0.2.1", "192.0.2.2", False)


def test_a_later_fragment_has_no_ports() -> None:
    header = parse(udp4(flags=0x0010))
    assert header is not None
    assert header.fragment


def test_ipv6_extension_headers_are_skipped() -> None:
    hop_by_hop = bytes([60, 0, 1, 4, 0, 0, 0, 0])
    options = bytes([17, 1]) + bytes(14)
    header = parse(packet6(hop_by_hop + options + b"12345678", protocol=0))
    assert header is not None
    assert (header.protocol, header.transport) == (17, 40 + 8 + 16)


def test_an_ipv6_fragment_header_is_understood() -> None:
    first = parse(packet6(bytes([17, 0, 0, 1, 0, 0, 0, 9]) + b"12345678", protocol=44))
    later = parse(packet6(bytes([17, 0, 0, 16, 0, 0, 0, 9]) + b"12345678", protocol=44))
    assert first is not None
    assert later is not None
    assert (first.fragment, later.fragment) == (False, True)


@given(st.binary(max_size=120))
def test_anything_can_be_looked_at(data: bytes) -> None:
    header = parse(data)
    assert header is None or header.version == data[0] >> 4
    is_routable(data)
    if len(data) >= 40 and data[0] >> 4 in (4, 6):
        router = "192.0.2.9" if data[0] >> 4 == 4 else "2001:db8::9"
        error = unreachable(data, router)
        assert error is None or len(error) <= 1280


@pytest.mark.parametrize(
    ("packet", "routable"),
    [
        (udp4(), True),
        (udp4(destination="224.0.0.251"), False),
        (udp4(destination="255.255.255.255"), False),
        (udp4(destination="169.254.1.1"), False),
        (packet6(b""), True),
        (packet6(b"", destination="ff02::16"), False),
        (packet6(b"", destination="fe80::1"), False),
        (b"", False),
    ],
)
def test_link_scope_packets_are_not_for_a_wan(packet: bytes, routable: bool) -> None:
    assert is_routable(packet) is routable


def test_an_ipv4_error_quotes_the_packet_and_adds_up() -> None:
    error = unreachable(udp4(), "198.18.1.1")
    assert error is not None
    header = parse(error)
    assert header is not None
    assert (header.source, header.destination) == ("198.18.1.1", "192.0.2.1")
    assert error[20:22] == bytes([3, 3])
    assert checksum(error[:20]) == 0
    assert checksum(error[20:]) == 0
    assert error[28:] == udp4()


def test_an_ipv6_error_adds_up_over_its_pseudo_header() -> None:
    offending = packet6(b"\x03\xe8\x01\xbb" + bytes(2000))
    error = unreachable(offending, "2001:db8::9", admin=True)
    assert error is not None
    assert len(error) == 1280
    assert error[40:42] == bytes([1, 1])
    pseudo = error[8:40] + struct.pack("!II", len(error) - 40, 58)
    assert checksum(pseudo + error[40:]) == 0


def test_too_big_carries_the_mtu() -> None:
    four, six = too_big(udp4(), "198.18.1.1", 1280), too_big(packet6(b"12345678"), "2001:db8::9", 1280)
    assert four is not None
    assert six is not None
    assert four[20:28][:2] + four[26:28] == bytes([3, 4]) + struct.pack("!H", 1280)
    assert six[40:42] + six[44:48] == bytes([2, 0]) + struct.pack("!I", 1280)


def test_there_are_no_errors_about_errors() -> None:
    first = unreachable(udp4(), "198.18.1.1")
    assert first is not None
    assert unreachable(first, "198.18.1.1") is None
    echo = packet6(bytes([128, 0, 0, 0, 0, 0, 0, 0]), protocol=58)
    assert unreachable(echo, "2001:db8::9") is not None
    assert unreachable(packet6(bytes([1, 4, 0, 0, 0, 0, 0, 0]), protocol=58), "2001:db8::9") is None


def test_df_and_ipv6_forbid_fragmentation() -> None:
    assert forbids_fragmentation(udp4())
    assert not forbids_fragmentation(udp4(flags=0))
    assert forbids_fragmentation(packet6(b""))
