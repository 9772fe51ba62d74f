"""Numbers of one tunnel, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opentsm.types import NO_REDUNDANCY, Path, Redundancy
from opentsm.userplane._core import TunnelStats


@dataclass(frozen=True, slots=True)
class PathStatistics:
    """One path since its present tunnel began. Packets and bytes are inner ones.

    Attributes:
        lost: packets of the server's that never came (datagram), segments of ours sent again (stream).
        delay_ms: smoothed round trip, None while unknown. jitter_ms: its variation.
        queue_bytes: waiting to be sent. dropped: given up while waiting.
        age: seconds since the tunnel came up.
    """

    path: Path
    up: bool
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    lost: int = 0
    loss_percent: float = 0.0
    delay_ms: float | None = None
    jitter_ms: float | None = None
    reordered: int = 0
    duplicates: int = 0
    queue_bytes: int = 0
    dropped: int = 0
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Both paths, and what was dropped why.

    Attributes:
        coding: redundancy, FEC and header compression: ``factor``, ``recovered``, ...
        (``UserPlane.coding_stats``).
        further: streams beside the main one. redundancy: what media on streams is wished to be.
        session_drops: inner packets dropped by the user plane for this tunnel.
        control_drops: control messages dropped, by name.
    """

    stream: PathStatistics
    datagram: PathStatistics
    coding: Mapping[str, int] = field(default_factory=dict)
    further: tuple[PathStatistics, ...] = ()
    redundancy: Redundancy = NO_REDUNDANCY
    session_drops: Mapping[str, int] = field(default_factory=dict)
    control_drops: Mapping[str, int] = field(default_factory=dict)


def path_statistics(path: Path, stats: TunnelStats | None) -> PathStatistics:
    """The user plane's counters of a tunnel as a path's statistics; None: there is no such tunnel."""
    if stats is None:
        return PathStatistics(path, up=False)
    lost = stats.rx_lost if path is Path.DATAGRAM else stats.tcp_retransmits
    seen = stats.rx_records if path is Path.DATAGRAM else stats.tx_records
    rtt = round_trip_us(path, stats)
    return PathStatistics(
        path=path,
        up=True,
        rx_packets=stats.rx_packets,
        rx_bytes=stats.rx_bytes,
        tx_packets=stats.tx_packets,
        tx_bytes=stats.tx_bytes,
        lost=lost,
        loss_percent=100.0 * lost / (lost + seen) if lost + seen else 0.0,
        delay_ms=rtt / 1000 if rtt else None,
        jitter_ms=stats.rtt_var_us / 1000 if stats.rtt_us else None,
        reordered=stats.rx_reordered,
        duplicates=stats.rx_duplicates,
        queue_bytes=stats.queue_bytes + stats.tcp_unsent,
        dropped=stats.tx_dropped,
        age=stats.age_ms / 1000,
    )


def round_trip_us(path: Path, stats: TunnelStats) -> int:
    """Microseconds; 0 while unknown. On a stream the kernel's figure is fresher than rare keepalives."""
    if path is Path.STREAM and stats.tcp_rtt_us:
        return stats.tcp_rtt_us
    return stats.rtt_us
