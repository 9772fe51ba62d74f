"""RTCP sender and receiver reports (RFC 3550 section 6), always as compound packets with a CNAME."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from opentsm.errors import RemoteProtocolError

MAX_PACKET: Final = 1472
"""Bytes of a compound packet that is looked at: what fits an Ethernet frame; ours have about 90."""

_SR: Final = 200
_RR: Final = 201
_SDES: Final = 202
_BYE: Final = 203
_CNAME: Final = 1
_UNITS: Final = 1 << 16
"""Middle 32 bits of an NTP time stamp count 1/65536 seconds."""


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """What its sender received of source ``ssrc`` (RFC 3550 section 6.4.1).

    Args:
        fraction: lost since the last report, in 1/256. lost: in all; negative with duplicates.
        highest: extended highest sequence number. jitter: in samples.
        last_sr: middle 32 bits of the last sender report's time, 0: none. delay: since then, 1/65536 s.
    """

    ssrc: int
    fraction: int
    lost: int
    highest: int
    jitter: int
    last_sr: int = 0
    delay: int = 0


@dataclass(frozen=True, slots=True)
class SenderInfo:
    """Clock and counts of a sender: ``ntp`` in 64 bits, ``timestamp`` of the same moment."""

    ntp: int
    timestamp: int
    packets: int
    octets: int

    @property
    def middle(self) -> int:
        return self.ntp >> 16 & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Report:
    """A sender report, or with ``sender`` None a receiver report; ``bye``: its source leaves."""

    ssrc: int
    sender: SenderInfo | None = None
    blocks: tuple[ReportBlock, ...] = ()
    bye: bool = False


def ntp_time(now: float) -> int:
    """A 64-bit NTP time stamp of our clock. It need not be the time of day: a sender may count from any
    moment (RFC 3550 section 6.4.1), and only we ever compare it."""
    return round(now * (1 << 32)) % (1 << 64)


def build_rtcp(report: Report, cname: str) -> bytes:
    """A compound packet: SR or RR, SDES with the CNAME, and BYE where wanted (RFC 3550 section 6.1)."""
    info = report.sender
    body = struct.pack("!I", report.ssrc)
    if info is not None:
        octets = info.octets % (1 << 32)
        body += struct.pack("!QIII", info.ntp, info.timestamp, info.packets % (1 << 32), octets)
    body += b"".join(map(_block, report.blocks))
    name = cname.encode()[:255]
    item = struct.pack("!IBB", report.ssrc, _CNAME, len(name)) + name
    chunk = item + bytes(4 - len(item) % 4)  # ends with one to four zeros
    out = _packet(_RR if info is None else _SR, len(report.blocks), body) + _packet(_SDES, 1, chunk)
    return out + _packet(_BYE, 1, struct.pack("!I", report.ssrc)) if report.bye else out


def parse_rtcp_untrusted(data: bytes) -> Report:
    """The report in a compound packet; of several the first, other kinds of packet are skipped.

    Raises:
        RemoteProtocolError: ``rtcp-size``, ``rtcp-version``, ``rtcp-truncated``, ``rtcp-no-report``.
    """
    if not 8 <= len(data) <= MAX_PACKET or len(data) % 4:
        raise RemoteProtocolError("rtcp-size", f"{len(data)} bytes")
    report: Report | None = None
    bye = False
    at = 0
    while at < len(data):
        flags, kind, words = struct.unpack_from("!BBH", data, at)
        end = at + 4 + 4 * words
        if flags >> 6 != 2:
            raise RemoteProtocolError("rtcp-version", str(flags >> 6))
        if end > len(data):
            raise RemoteProtocolError("rtcp-truncated")
        if kind in (_SR, _RR) and report is None:
            report = _report(kind, flags & 0x1F, data[at + 4 : end])
        bye = bye or kind == _BYE
        at = end
    if report is None:
        raise RemoteProtocolError("rtcp-no-report")
    return Report(report.ssrc, report.sender, report.blocks, bye)


def round_trip(now: float, block: ReportBlock) -> float | None:
    """Seconds there and back, from a block about us (RFC 3550 section 6.4.1, figure 2); None: not known.

    The other side's clock takes no part: it says how long it held our time stamp.
    """
    if block.last_sr == 0:
        return None
    units = ((ntp_time(now) >> 16) - block.last_sr - block.delay) % (1 << 32)
    return units / _UNITS if units < 1 << 31 else None  # "negative": the peer says more than can be true


def delay_units(seconds: float) -> int:
    """A delay since the last sender report, as a block has it."""
    return min(max(0, round(seconds * _UNITS)), (1 << 32) - 1)


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("!BBH", 2 << 6 | count, kind, len(body) // 4) + body


def _block(block: ReportBlock) -> bytes:
    lost = min(max(-(1 << 23), block.lost), (1 << 23) - 1) % (1 << 24)
    counts = block.fraction << 24 | lost
    return struct.pack("!IIIIII", block.ssrc, counts, block.highest, block.jitter, block.last_sr, block.delay)


def _report(kind: int, count: int, body: bytes) -> Report:
    head = 24 if kind == _SR else 4
    if len(body) < head + 24 * count:
        raise RemoteProtocolError("rtcp-truncated")
    sender = SenderInfo(*struct.unpack_from("!QIII", body, 4)) if kind == _SR else None
    blocks = tuple(_read_block(body, head + 24 * number) for number in range(count))
    return Report(int.from_bytes(body[:4], "big"), sender, blocks)


def _read_block(body: bytes, at: int) -> ReportBlock:
    ssrc, counts, highest, jitter, last_sr, delay = struct.unpack_from("!IIIIII", body, at)
    lost = unsigned - (1 << 24) if (unsigned := counts & 0xFFFFFF) >> 23 else unsigned
    return ReportBlock(ssrc, counts >> 24, lost, highest, jitter, last_sr, delay)
