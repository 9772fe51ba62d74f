"""The user plane's counters of a tunnel, as the judges of both sides read them."""

from __future__ import annotations

from opentsm.engine.judge import Reading
from opentsm.types import Path
from opentsm.userplane._core import TunnelStats


def reading(path: Path, stats: TunnelStats) -> Reading:
    """One reading. On a stream the kernel's round trip is fresher than rare keepalives."""
    stream = path is Path.STREAM
    return Reading(
        sent=stats.tx_records,
        repeated=stats.tcp_retransmits if stream else 0,
        received=stats.rx_records,
        lost=0 if stream else stats.rx_missing,
        packets=stats.rx_packets,
        rtt_us=(stats.tcp_rtt_us or stats.rtt_us) if stream else stats.rtt_us,
        jitter_us=stats.rx_jitter_us,
        silent_s=stats.last_rx_ms / 1000,
        age_s=stats.age_ms / 1000,
    )
