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

MAX_CHANGES: Final = 50
"""Changes of path that one call's record lists; a call that moves more often is listed up to there."""

MAJORITY: Final = 0.5
"""A leg is said to be on the path that carried more than this share of an interval's packets."""

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
