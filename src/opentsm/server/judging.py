"""The server's judgement of what it sends to one client: made when the client reports what it receives.

No timer and no work for clients without flows in mode auto. Each report of such a client is answered by one
of ours, for the client judges the other direction by that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from opentsm.engine.judge import Judge, Reading, Receiver
from opentsm.engine.steering import Decision, explain
from opentsm.types import Flow, Path
from opentsm.wire.messages import PathDecision, PathQuality

SWITCHES_SHOWN: Final = 16
"""Last changes of path that are kept of a client, for the operator: a minute of one that flaps all it can."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Media of a client has moved in one direction.

    Attributes:
        at: on the loop's clock. direction: up (from the client) or down.
        ports: of the flows, where they are known. reason: for people, with the scores of mode auto.
    """

    at: float
    direction: str
    path: Path
    reason: str
    ports: tuple[int, ...] = ()

    def shown(self, now: float) -> dict[str, Any]:
        return {
            "seconds_ago": round(now - self.at, 1),
            "direction": self.direction,
            "path": self.path.name.lower(),
            "reason": self.reason,
            "ports": list(self.ports),
        }


@dataclass(slots=True)
class Downlink:
    """Judge of one client's downlink, and what is to be known of both directions."""

    judge: Judge = field(default_factory=Judge)
    receiver: Receiver = field(default_factory=Receiver)
    decision: Decision | None = None
    switches: deque[Switch] = field(default_factory=lambda: deque(maxlen=SWITCHES_SHOWN))

    def heard(
        self,
        now: float,
        reports: tuple[PathQuality, ...],
        readings: dict[Path, Reading],
        *,
        path: Path,
    ) -> tuple[Decision, tuple[PathQuality, ...]]:
        """A report has come: the decision on what we send, and what we report.

        Args:
            readings: of the tunnels that are there and heard.
            path: on which the report came. One on the datagram tunnel says that the stream is stuck.
        """
        for known in Path:
            found = readings.get(known)
            if found is None or (known is Path.STREAM and path is Path.DATAGRAM):
                self.judge.died(known)
                self.receiver.pause(known)
            elif known is Path.STREAM:
                self.judge.stream_read(now, found)
            else:
                self.judge.datagram_read(now, found)
        self.judge.reported(now, reports)
        self.decision = self.judge.decide(now)
        return self.decision, self.report(now, readings)

    def report(self, now: float, readings: dict[Path, Reading]) -> tuple[PathQuality, ...]:
        """What we received since the last report."""
        ours = (self.receiver.report(now, path, found) for path, found in readings.items())
        return tuple(report for report in ours if report is not None)

    def moved(
        self, now: float, direction: str, path: Path, reason: str, flows: tuple[Flow, ...] = ()
    ) -> Switch:
        """Keep a change of path."""
        switch = Switch(now, direction, path, reason, tuple(sorted({flow.port for flow in flows})))
        self.switches.append(switch)
        return switch

    def client_moved(self, now: float, decision: PathDecision) -> Switch:
        """The client says that it has moved what it sends."""
        return self.moved(now, "up", decision.path, explain(decision))
