"""Mode AUTO on either side: readings of both tunnels and the peer's reports -> scores -> the path to send by.

Each side judges its own sending direction and decides for it alone, so the directions of a call may differ:

    what counts   on the stream                           on the datagram tunnel
    loss          segments we sent again (TCP_INFO)       the peer's report: gaps in our record numbers
    delay         half of TCP's smoothed round trip       half of our probes' round trip
    variation     the peer's report: how unevenly         the same
                  our probes came

A path without such measurements is unknown, and media does not move to what is unknown (``steering``).
Reordered datagrams are no loss; what reordering costs a listener shows as variation. TCP's own variation of
the round trip is not used: it has the peer's delayed acknowledgements in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from opentsm.engine.quality import PathMeter, PathSample, PathScore
from opentsm.engine.steering import Decision, Steering
from opentsm.types import Path
from opentsm.wire.messages import PathQuality

REPORT_FRESH: Final = 5.0
"""Seconds for which a report's variation counts: some of them may be late behind a lost segment."""

BEFORE_ALIVE: Final = 0.5
"""Seconds that a report may reach back before a datagram tunnel was known to live: its two ends do not learn
it at the same moment. One that reaches further back speaks of a hole that is over."""

STALLED: Final = 3.0
"""Seconds without a byte on a stream that is probed every second: three probes and their answers wait behind
a hole in it, and so does media. For a listener it is dead, whatever TCP still hopes for."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of one tunnel since it began, at one moment.

    Attributes:
        sent, received: records. repeated: TCP segments sent again. lost: datagrams that never came.
        packets: inner packets received. rtt_us: smoothed round trip, 0 while unknown.
        jitter_us: how unevenly the peer's probes come. silent_s: since the last byte. age_s: of the tunnel.
    """

    sent: int = 0
    repeated: int = 0
    received: int = 0
    lost: int = 0
    packets: int = 0
    rtt_us: int = 0
    jitter_us: int = 0
    silent_s: float = 0.0
    age_s: float = 0.0


class Judge:
    """One side's view of both paths for what it sends.

    Args:
        path: where its flows in mode AUTO are now.
    """

    def __init__(self, path: Path = Path.STREAM) -> None:
        self._meters = {path: PathMeter(path) for path in Path}
        self._steering = Steering(path)
        self._sent_before: Reading | None = None
        self._datagram: Reading | None = None
        self._alive_since = 0.0
        self._jitter_ms: dict[Path, tuple[float, float]] = {}

    @property
    def path(self) -> Path:
        """Where the flows in mode AUTO belong."""
        return self._steering.path

    def stream_read(self, now: float, reading: Reading) -> None:
        """A new reading of the stream: what TCP had to send again of ours."""
        meter = self._meters[Path.STREAM]
        if reading.silent_s > STALLED:
            self.died(Path.STREAM)
            return
        meter.mark_alive()
        before, self._sent_before = self._sent_before, reading
        if before is None or reading.sent < before.sent or reading.rtt_us == 0:
            return  # the first one, or another connection than last time
        meter.add(
            now,
            PathSample(
                delay_ms=reading.rtt_us / 2000,
                jitter_ms=self._jitter(Path.STREAM, now),
                received=reading.sent - before.sent,
                lost=max(0, reading.repeated - before.repeated),
            ),
        )

    def datagram_read(self, now: float, reading: Reading) -> None:
        """A new reading of the datagram tunnel, which is there and heard."""
        if self._datagram is None:
            self._alive_since = now
        self._meters[Path.DATAGRAM].mark_alive()
        self._datagram = reading

    def reported(self, now: float, reports: Iterable[PathQuality]) -> None:
        """What the peer receives of what we send."""
        for report in reports:
            self._jitter_ms[report.path] = (now, report.jitter_us / 1000)
            reading = self._datagram
            since = now - report.interval_ms / 1000
            if report.path is Path.DATAGRAM and reading is not None:
                rtt = reading.rtt_us or report.delay_us
                if rtt and report.received + report.lost and since >= self._alive_since - BEFORE_ALIVE:
                    self._meters[Path.DATAGRAM].add(now, _datagram_sample(rtt, report))

    def died(self, path: Path) -> None:
        """The tunnel of this path is gone, or silent."""
        self._meters[path].mark_dead()
        self._jitter_ms.pop(path, None)
        if path is Path.STREAM:
            self._sent_before = None
        else:
            self._datagram = None

    def scores(self, now: float) -> tuple[PathScore | None, PathScore | None]:
        """(stream, datagram) as known now."""
        return self._meters[Path.STREAM].score(now), self._meters[Path.DATAGRAM].score(now)

    def decide(self, now: float) -> Decision:
        """Weigh what is known."""
        return self._steering.decide(now, *self.scores(now))

    def _jitter(self, path: Path, now: float) -> float:
        at, jitter = self._jitter_ms.get(path, (now, 0.0))
        return jitter if now - at < REPORT_FRESH else 0.0


class Receiver:
    """What we tell the peer of what we receive on each path: the difference since the last report."""

    def __init__(self) -> None:
        self._before: dict[Path, tuple[float, Reading]] = {}
        self._paused: set[Path] = set()

    def pause(self, path: Path) -> None:
        """There is nothing to report of this path now: it is silent, or has no tunnel."""
        self._paused.add(path)

    def report(self, now: float, path: Path, reading: Reading) -> PathQuality | None:
        """The report on one path; None when there is nothing to compare with: it was silent, and what it lost
        then is known to everybody."""
        found = self._before.get(path)
        self._before[path] = (now, reading)
        if found is None or found[1].received > reading.received:  # a tunnel since its beginning
            at, before = now - reading.age_s, Reading()
        else:
            at, before = found
        silent = path in self._paused and before.received > 0
        self._paused.discard(path)
        if now <= at or silent:
            return None
        return PathQuality(
            path=path,
            interval_ms=min(round((now - at) * 1000), _U32),
            received=reading.received - before.received,
            # Those thought lost that came after all may make it less than last time.
            lost=max(0, reading.lost - before.lost) if path is Path.DATAGRAM else 0,
            jitter_us=min(reading.jitter_us, _U32),
            delay_us=min(reading.rtt_us, _U32),
        )


_U32: Final = 0xFFFF_FFFF


def _datagram_sample(rtt_us: int, report: PathQuality) -> PathSample:
    return PathSample(
        delay_ms=rtt_us / 2000,
        jitter_ms=report.jitter_us / 1000,
        received=report.received,
        lost=report.lost,
    )
