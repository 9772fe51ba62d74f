"""The circuit breakers of what a server sends to one client, judged when the client reports.

No timer: a client with media reports every two seconds or more often. One whose reports stop has lost its
stream, and what follows from that is the session's business.
"""

from __future__ import annotations

from opentsm.engine.breaker import Breaker, BreakerDecision, ReportedFlow, StreamOutflow
from opentsm.types import Path
from opentsm.userplane._core import TunnelStats
from opentsm.wire.messages import PathQuality

EVERY: float = 1.5
"""Least seconds between two looks: a client in mode auto reports once a second, and half the packets of an
interval are half the proof."""


class Downstream:
    """The breakers of one client's downlink."""

    __slots__ = ("_breakers", "_looked_at", "_outflow", "_received", "_reported", "_tunnels")

    def __init__(self) -> None:
        self._breakers = {path: Breaker() for path in Path}
        self._outflow = StreamOutflow()
        self._reported = ReportedFlow()
        self._tunnels: dict[Path, int | None] = {}
        self._received = 0
        self._looked_at = float("-inf")

    def is_open(self, path: Path) -> bool:
        """Media by this path is held back."""
        return self._breakers[path].open

    def heard(
        self,
        now: float,
        reports: tuple[PathQuality, ...],
        tunnels: dict[Path, tuple[int, TunnelStats]],
        further: list[TunnelStats],
    ) -> list[tuple[Path, BreakerDecision]]:
        """The client has reported; what has changed.

        Args:
            tunnels: id and counters of those there are. further: of the streams beside the main one.
        """
        moved = [
            (path, BreakerDecision(open=False, moved=True, sent=0, arrived=0))
            for path in Path
            if self._is_new(path, tunnels)
        ]
        by_datagram = [report.received for report in reports if report.path is Path.DATAGRAM]
        if not by_datagram:
            # The client holds the path for silent and says nothing of it: path choice sees to that, and what
            # was sent by both tunnels meanwhile has arrived by the other. Judged anew when it speaks of it.
            self._reported, self._received = ReportedFlow(), 0
        self._received += sum(by_datagram)
        if now - self._looked_at < EVERY:
            return moved
        self._looked_at = now
        for path, (_, stats) in tunnels.items():
            if path is Path.STREAM:
                records = stats.tx_records + sum(other.tx_records for other in further)
                seen = self._outflow.since(stats.tx_packets, records, 0 if further else stats.tx_dropped)
            elif by_datagram:
                seen = self._reported.since(stats.tx_records, self._received)
                self._received = 0
            else:
                continue
            if seen is not None and (decision := self._breakers[path].look(now, *seen)).moved:
                moved.append((path, decision))
        return moved

    def _is_new(self, path: Path, tunnels: dict[Path, tuple[int, TunnelStats]]) -> bool:
        """Whether this path has another tunnel than last time, and had its breaker open."""
        tunnel = tunnels[path][0] if path in tunnels else None
        if self._tunnels.get(path) == tunnel:
            return False
        self._tunnels[path] = tunnel
        if path is Path.STREAM:
            self._outflow = StreamOutflow()
        else:
            self._reported, self._received = ReportedFlow(), 0
        return self._breakers[path].reset()
