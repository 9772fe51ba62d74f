"""RTP packets (RFC 3550 section 5) and the arithmetic of their numbers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from opentsm.errors import RemoteProtocolError

VERSION: Final = 2
HEADER: Final = 12
PTIME: Final = 0.020
"""Seconds of speech in one packet (RFC 3551 section 4.2)."""

MAX_PACKET: Final = 1472
"""Bytes of a packet that is looked at: what fits an Ethernet frame; speech needs 172."""


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """One packet. ``sequence`` has 16 bits, ``timestamp`` (in samples) and ``ssrc`` 32."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes = b""
    marker: bool = False

    def build(self) -> bytes:
        return (
            struct.pack(
                "!BBHII",
                VERSION << 6,
                self.marker << 7 | self.payload_type,
                self.sequence,
                self.timestamp,
                self.ssrc,
            )
            + self.payload
        )


def parse_rtp_untrusted(data: bytes) -> RtpPacket:
    """A packet from the network (RFC 3550 section 5.1 and appendix A.1); extensions are skipped.

    Raises:
        RemoteProtocolError: it is none: ``rtp-size``, ``rtp-version``, ``rtp-is-rtcp``, ``rtp-truncated``.
    """
    if not HEADER <= len(data) <= MAX_PACKET:
        raise RemoteProtocolError("rtp-size", f"{len(data)} bytes")
    flags, kind, sequence, timestamp, ssrc = struct.unpack_from("!BBHII", data)
    if flags >> 6 != VERSION:
        raise RemoteProtocolError("rtp-version", str(flags >> 6))
    if 64 <= kind & 0x7F <= 95:  # RTCP on this port (RFC 5761 section 4)
        raise RemoteProtocolError("rtp-is-rtcp")
    payload = data[_payload_begin(data, flags) : len(data) - _padding(data, flags)]
    return RtpPacket(kind & 0x7F, sequence, timestamp, ssrc, payload, bool(kind & 0x80))


def _payload_begin(data: bytes, flags: int) -> int:
    begin = HEADER + 4 * (flags & 0x0F)
    if flags & 0x10:  # header extension: two octets, a length in words, the words
        if len(data) < begin + 4:
            raise RemoteProtocolError("rtp-truncated", "extension")
        begin += 4 + 4 * int.from_bytes(data[begin + 2 : begin + 4], "big")
    if begin + _padding(data, flags) > len(data):
        raise RemoteProtocolError("rtp-truncated")
    return begin


def _padding(data: bytes, flags: int) -> int:
    if not flags & 0x20:
        return 0
    if data[-1] == 0:
        raise RemoteProtocolError("rtp-truncated", "padding of no length")
    return data[-1]


def unwrap(number: int, near: int, bits: int) -> int:
    """The number without its wrap-around: congruent to ``number`` modulo 2**bits and nearest to ``near``."""
    size = 1 << bits
    return near + (number - near + size // 2) % size - size // 2
