"""Reading IP headers and writing the ICMP errors a router sends. Pure.

These are packets of the lab's own hosts, but a broken one must not stop the emulator: what cannot
be read is ``None``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

PROTOCOL_NAMES: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_ICMP, _ICMPV6 = 1, 58
_EXTENSION_HEADERS: Final = frozenset({0, 43, 60})
"""IPv6 hop-by-hop, routing, destination options: same layout, skipped (RFC 8200 section 4)."""

_MAX_EXTENSIONS: Final = 8
"""More extension headers than any honest packet has; bounds the walk."""

_QUOTE_V4: Final = 28 + 64
"""Bytes of the offending packet quoted in ICMPv4: RFC 1812 wants as much as fits 576; this is plenty
for the receiver to find its socket."""

_QUOTE_V6: Final = 1232
"""The same for ICMPv6: as much as fits the minimum MTU of 1280 (RFC 4443 section 2.4)."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the lab wants to know of an IP packet.

    Args:
        version: 4 or 6.
        protocol: IANA number of the transport.
        source, destination: addresses as text.
        transport: offset of the transport header.
        fragment: whether it is a fragment other than the first (no transport header).
    """

    version: int
    protocol: int
    source: str
    destination: str
    transport: int
    fragment: bool


def parse(packet: bytes) -> Header | None:
    """Read the IP header; None where there is no whole one."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return _parse_v4(packet)
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return _parse_v6(packet)
    return None


def _parse_v4(packet: bytes) -> Header | None:
    length = (packet[0] & 15) * 4
    if length < 20 or len(packet) < length:
        return None
    fragment = (packet[6] & 0x1F) << 8 | packet[7]
    source, destination = str(ip_address(packet[12:16])), str(ip_address(packet[16:20]))
    return Header(4, packet[9], source, destination, length, fragment != 0)


def _parse_v6(packet: bytes) -> Header | None:
    protocol, offset, fragment = packet[6], 40, False
    for _ in range(_MAX_EXTENSIONS):
        if len(packet) < offset + 8:
            break
        if protocol in _EXTENSION_HEADERS:
            protocol, offset = packet[offset], offset + 8 + packet[offset + 1] * 8
        elif protocol == 44:
            fragment = (packet[offset + 2] << 8 | packet[offset + 3]) >> 3 != 0
            protocol, offset = packet[offset], offset + 8
        else:
            break
    source, destination = str(ip_address(packet[8:24])), str(ip_address(packet[24:40]))
    return Header(6, protocol, source, destination, offset, fragment)


def protocol_name(number: int) -> str:
    return PROTOCOL_NAMES.get(number, str(number))


def is_routable(packet: bytes) -> bool:
    """Whether a WAN would carry it: link-scope and multicast packets never leave their link."""
    if len(packet) < 20:
        return False
    if packet[0] >> 4 == 4:
        return packet[16] < 224 and packet[16:18] != b"\xa9\xfe"
    return len(packet) >= 40 and packet[24] != 0xFF and not (packet[24] == 0xFE and packet[25] & 0xC0 == 0x80)


def forbids_fragmentation(packet: bytes) -> bool:
    """IPv6, or IPv4 with the DF bit: a router answers "too big" instead of cutting it."""
    return packet[0] >> 4 == 6 or bool(packet[6] & 0x40)


def unreachable(packet: bytes, router: str, *, admin: bool = False) -> bytes | None:
    """ICMP destination unreachable about ``packet``.

    Args:
        packet: the offending packet.
        router: source address of the error, of the packet's family.
        admin: "administratively prohibited" instead of "port unreachable".

    Returns:
        the error packet, or None where none may be sent (RFC 1122 section 3.2.2: no errors about errors).
    """
    if packet[0] >> 4 == 4:
        return _icmp_v4(packet, router, 13 if admin else 3, 0)
    return _icmp_v6(packet, router, 1, 1 if admin else 4, 0)


def too_big(packet: bytes, router: str, mtu: int) -> bytes | None:
    """ICMP "fragmentation needed" (RFC 1191) or ICMPv6 "packet too big" (RFC 4443 section 3.2)."""
    if packet[0] >> 4 == 4:
        return _icmp_v4(packet, router, 4, mtu)
    return _icmp_v6(packet, router, 2, 0, mtu)


def _icmp_v4(packet: bytes, router: str, code: int, rest: int) -> bytes | None:
    header = parse(packet)
    if header is None or header.fragment or _is_error_message(packet, header):
        return None
    body = struct.pack("!BBHI", 3, code, 0, rest) + packet[:_QUOTE_V4]
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    head = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0, 64, _ICMP, 0)
    head += ip_address(router).packed + packet[12:16]
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def _icmp_v6(packet: bytes, router: str, kind: int, code: int, rest: int) -> bytes | None:
    header = parse(packet)
    if header is None or header.fragment or _is_error_message(packet, header):
        return None
    body = struct.pack("!BBHI", kind, code, 0, rest) + packet[:_QUOTE_V6]
    source = ip_address(router).packed
    pseudo = source + packet[8:24] + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    return struct.pack("!IHBB", 0x6 << 28, len(body), _ICMPV6, 64) + source + packet[8:24] + body


def _is_error_message(packet: bytes, header: Header) -> bool:
    if header.transport >= len(packet):
        return False
    kind = packet[header.transport]
    if header.protocol == _ICMP:
        return kind not in (0, 8, 13, 14)
    return header.protocol == _ICMPV6 and kind < 128


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
