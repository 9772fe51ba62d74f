"""From what a relay counted to what a listener heard: loss, jitter, delay, MOS per direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from opentsm.engine.quality import (
    G711_PLC,
    G729A_VAD,
    G7231_VAD,
    GSM_EFR,
    PLAYOUT_MS,
    PTIME_MS,
    Codec,
    late_percent,
    mos,
    r_factor,
)
from opentsm.types import Path, SocketAddress

MAX_CHANGES: Final = 50
"""Changes of path that one call's record lists; a call that moves more often is listed up to there."""

MAJORITY: Final = 0.5
"""A leg is said to be on the path that carried more than this share of an interval's packets."""

TELEPHONY_CLOCK: Final = 8000
"""Ticks a second of RTP time stamps, where the codec has no other clock (RFC 3551; also G.722)."""

_CLOCKS: Final = {"OPUS": 48000, "L16": 44100, "AMR-WB": 16000, "SPEEX": 16000}

_CODECS: Final = {
    "PCMU": G711_PLC,
    "PCMA": G711_PLC,
    "G729": G729A_VAD,
    "G723": G7231_VAD,
    "GSM": GSM_EFR,
}


class LegCounts(Protocol):
    """What is read of ``RelayLegStats``."""

    @property
    def packets(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def expected(self) -> int: ...
    @property
    def jitter_us(self) -> int: ...
    @property
    def by_datagram(self) -> int: ...
    @property
    def idle_ms(self) -> int: ...
    @property
    def wrong(self) -> int: ...
    @property
    def stranger(self) -> SocketAddress | None: ...
    @property
    def report_blocks(self) -> int: ...
    @property
    def reported_lost(self) -> int: ...
    @property
    def reported_jitter(self) -> int: ...
    @property
    def rtt_us(self) -> int: ...


class Counts(Protocol):
    """What is read of ``RelayStats``."""

    @property
    def a(self) -> LegCounts: ...
    @property
    def b(self) -> LegCounts: ...


def codec_for(name: str) -> Codec:
    """Impairment figures for an SDP codec name. G.711's stand in for codecs without figures of their own,
    which says what the network did to the call rather than what the codec did."""
    return _CODECS.get(name.upper(), G711_PLC)


@dataclass(frozen=True, slots=True)
class Direction:
    """What one party sent, as the other could hear it.

    Attributes:
        packets, octets, lost: as counted at the relay. dropped: came, but had nowhere to go or no right to.
        loss_percent, jitter_ms: of the way from the sender to the relay (RFC 3550).
        delay_ms: mouth to ear; half the tunnels' round trips, one packet and an assumed play-out buffer.
        mos: E-model; None where no packet came.
        datagram_percent: share of packets that came by the sender's datagram tunnel.
    """

    packets: int
    octets: int
    lost: int
    dropped: int
    loss_percent: float
    jitter_ms: float
    delay_ms: float
    mos: float | None
    datagram_percent: float


def direction(legs: Sequence[LegCounts], codec: Codec, network_delay_ms: float) -> Direction:
    """Judge one direction of a call.

    Args:
        legs: the sender's counts, one per RTP stream or relay that the call had; jitter counts by packets.
        network_delay_ms: one way, both tunnels together.
    """
    packets = sum(leg.packets for leg in legs)
    expected, lost = sum(leg.expected for leg in legs), sum(max(0, leg.lost) for leg in legs)
    loss = 100.0 * lost / expected if expected > 0 else 0.0
    jitter = sum(leg.jitter_us * leg.packets for leg in legs) / packets / 1000.0 if packets else 0.0
    delay = network_delay_ms + PTIME_MS + PLAYOUT_MS
    late = late_percent(3.0 * jitter)
    rating = r_factor(delay, loss + late * (100.0 - loss) / 100.0, codec)
    return Direction(
        packets=packets,
        octets=sum(leg.bytes for leg in legs),
        lost=lost,
        dropped=sum(leg.dropped for leg in legs),
        loss_percent=round(loss, 2),
        jitter_ms=round(jitter, 2),
        delay_ms=round(delay, 1),
        mos=round(mos(rating), 2) if packets else None,
        datagram_percent=round(100.0 * sum(leg.by_datagram for leg in legs) / packets, 1) if packets else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Reported:
    """What the listener itself said of one direction, by RTCP receiver reports: all the way to its ears.

    Attributes:
        reports: how many there were. lost, loss_percent: at the last one. jitter_ms: of the last one.
        round_trip_ms: between the relay and the listener; None if it never echoed a sender report.
    """

    reports: int
    lost: int
    loss_percent: float
    jitter_ms: float
    round_trip_ms: float | None


def reported(heard: Sequence[LegCounts], sent: int, codec: str) -> Reported | None:
    """Read the listener's reports.

    Args:
        heard: the listener's own legs, on which its RTCP came. sent: packets that the relay passed on to it.
        codec: SDP name, for the clock that jitter is counted in.
    """
    speaking = [leg for leg in heard if leg.report_blocks]
    if not speaking:
        return None
    last = max(speaking, key=lambda leg: leg.report_blocks)
    lost = max(0, last.reported_lost)
    trips = [leg.rtt_us for leg in speaking if leg.rtt_us]
    return Reported(
        reports=sum(leg.report_blocks for leg in speaking),
        lost=lost,
        loss_percent=round(min(100.0, 100.0 * lost / sent), 2) if sent else 0.0,
        jitter_ms=round(1000.0 * last.reported_jitter / _CLOCKS.get(codec.upper(), TELEPHONY_CLOCK), 2),
        round_trip_ms=round(trips[-1] / 1000.0, 1) if trips else None,
    )


class PathSwitch(Protocol):
    """A change of path of a client's media: when, which way, where to, why."""

    @property
    def at(self) -> float: ...
    @property
    def direction(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def reason(self) -> str: ...


class PathTrace:
    """Which path a leg's media came by, over time: only the changes are kept."""

    def __init__(self) -> None:
        self.changes: list[tuple[float, str]] = []
        self._packets = 0
        self._datagram = 0

    def sample(self, at: float, packets: int, by_datagram: int) -> None:
        """Note counters at ``at`` seconds into the call; an interval without packets says nothing."""
        new, new_datagram = packets - self._packets, by_datagram - self._datagram
        self._packets, self._datagram = packets, by_datagram
        if new <= 0:
            return
        path = "datagram" if new_datagram > MAJORITY * new else "stream"
        changed = not self.changes or self.changes[-1][1] != path
        if changed and len(self.changes) < MAX_CHANGES:
            self.changes.append((round(at, 1), path))
