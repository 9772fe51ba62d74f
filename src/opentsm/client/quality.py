"""Mode AUTO at the client: counters of both tunnels -> samples -> scores -> the path.

``PathJudge`` is pure: counters and the time come in, a decision comes out. Who calls it is ``monitor``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from opentsm.client.statistics import round_trip_us
from opentsm.engine.quality import PathMeter, PathSample
from opentsm.engine.steering import Decision, Steering
from opentsm.types import Path
from opentsm.userplane._core import TunnelStats
from opentsm.wire.messages import PathQuality

REPORT_FRESH: Final = 5.0
"""Seconds for which the server's report of what it receives counts: twice the longest interval of ours."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What of a tunnel's counters grows: one reading."""

    received: int
    lost: int
    packets: int

    @classmethod
    def of(cls, path: Path, stats: TunnelStats) -> Counted:
        """On a stream what is counted is what we send: only there TCP says what was lost."""
        if path is Path.STREAM:
            return cls(stats.tx_records, stats.tcp_retransmits, stats.rx_packets)
        return cls(stats.rx_records, stats.rx_lost, stats.rx_packets)

    def since(self, before: Counted) -> tuple[int, int]:
        """(received, lost) between two readings; losses that were late after all do not go below zero."""
        return max(0, self.received - before.received), max(0, self.lost - before.lost)


class PathJudge:
    """Both paths' meters and the steering over them.

    Args:
        path: where the first flow in mode AUTO is now.
    """

    def __init__(self, path: Path = Path.STREAM) -> None:
        self._meters = {path: PathMeter(path) for path in Path}
        self._steering = Steering(path)
        self._before: dict[Path, Counted] = {}
        self._reports: dict[Path, tuple[float, PathQuality]] = {}

    @property
    def path(self) -> Path:
        """Where the flows in mode AUTO belong."""
        return self._steering.path

    def reported(self, now: float, reports: Iterable[PathQuality]) -> None:
        """The server's view of what we send."""
        for report in reports:
            self._reports[report.path] = (now, report)

    def died(self, path: Path) -> None:
        """The tunnel of this path is gone, or silent."""
        self._meters[path].mark_dead()
        self._before.pop(path, None)

    def measured(self, now: float, path: Path, stats: TunnelStats) -> None:
        """A new reading of a tunnel that lives."""
        meter = self._meters[path]
        meter.mark_alive()
        rtt = round_trip_us(path, stats)
        counted = Counted.of(path, stats)
        before = self._before.get(path)
        self._before[path] = counted
        if before is None or rtt == 0:
            return
        if counted.received < before.received:  # another tunnel than last time
            return
        received, lost = counted.since(before)
        meter.add(now, self._sample(now, path, stats, received, lost, rtt))

    def decide(self, now: float) -> Decision:
        """Weigh what is known."""
        scores = {path: meter.score(now) for path, meter in self._meters.items()}
        return self._steering.decide(now, scores[Path.STREAM], scores[Path.DATAGRAM])

    def _sample(
        self, now: float, path: Path, stats: TunnelStats, received: int, lost: int, rtt: int
    ) -> PathSample:
        """The worse of what we receive and what the server says it receives."""
        jitter = stats.rtt_var_us / 1000 if path is Path.DATAGRAM else 0.0
        at, report = self._reports.get(path, (now - REPORT_FRESH, None))
        if report is not None and now - at < REPORT_FRESH:
            jitter = max(jitter, report.jitter_us / 1000)
            if path is Path.DATAGRAM and _ratio(report.received, report.lost) > _ratio(received, lost):
                received, lost = report.received, report.lost
        return PathSample(delay_ms=rtt / 2000, jitter_ms=jitter, received=received, lost=lost)


def quality_report(path: Path, stats: TunnelStats, before: Counted, interval: float) -> PathQuality:
    """What we tell the server about one path over the last ``interval`` seconds."""
    now = Counted.of(path, stats)
    return PathQuality(
        path=path,
        interval_ms=round(interval * 1000),
        received=max(0, now.packets - before.packets),
        lost=now.since(before)[1] if path is Path.DATAGRAM else 0,
        jitter_us=stats.rtt_var_us,
        delay_us=round_trip_us(path, stats),
    )


def _ratio(received: int, lost: int) -> float:
    return lost / (received + lost) if received + lost else 0.0
