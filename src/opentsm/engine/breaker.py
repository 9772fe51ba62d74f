"""The circuit breaker of media (RFC 8083 in spirit): what nobody can receive does not go on loading a path.

              nearly nothing of what was sent arrived, INTERVALS times in a row
    closed ────────────────────────────────────────────────────────────────────> open: PROBE_EVERY seconds
       ^                                                                             │   one packet, no more
       └─────────────────────────────────────────────────────────────────────────────┘
              half of the probes arrived, once; after each relapse twice as often as before

RFC 8083 lets a sender whose receiver reports nothing new for several reporting intervals cease (sections 4.1
and 4.2). Here it goes on with a few packets a second, so that the call comes back by itself when the path
does. One breaker judges one path of one session, by what its receiver reports (a datagram tunnel) or by what
leaves the machine at all (a stream: TCP delivers what it takes, so a collapsed path shows as a queue that
stands still; of several streams of a session, one that moves is enough).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INTERVALS: Final = 2
"""Intervals in a row without media arriving: the fewest that RFC 8083 section 4.2 allows."""

INTERVAL: Final = 2.0
"""Seconds between two looks: that of quality reports. Two of them outlast every reflex of path choice."""

NOTHING: Final = 0.10
"""Share of what was sent that counts as nearly nothing: one packet in ten is noise to a listener."""

ARRIVES: Final = 0.5
"""Share of the probes that must arrive for the path to be believed."""

MIN_SENT: Final = 20
"""Packets of one interval below which a closed breaker does not judge: a pause in speech proves nothing."""

PROBE_EVERY: Final = 0.5
"""Seconds between packets while it is open: four an interval, and less than a keepalive's load."""

FORGIVE_AFTER: Final = 120.0
"""Seconds without a relapse after which the first good interval closes it again."""

MAX_PROOF: Final = 8
"""Good intervals that are asked for at most: a path that collapses all the time is tried again four times a
minute."""


@dataclass(frozen=True, slots=True)
class BreakerDecision:
    """What the breaker does from now on.

    Attributes:
        open: media is held back, but for a packet each PROBE_EVERY. moved: whether that is a change.
        sent, arrived: what it was judged by.
    """

    open: bool
    moved: bool
    sent: int
    arrived: int

    @property
    def every(self) -> float:
        """Seconds between packets that pass; 0: all do."""
        return PROBE_EVERY if self.open else 0.0

    def __str__(self) -> str:
        state = "media is held back" if self.open else "media flows"
        return f"{state}: {self.arrived} of {self.sent} packets arrived"


class Breaker:
    """The breaker of media on one path. Closed at first."""

    def __init__(self) -> None:
        self.open = False
        self._count = 0
        self._proof = 1
        self._opened_at = float("-inf")

    def look(self, now: float, sent: int, arrived: int) -> BreakerDecision:
        """Judge one interval.

        Args:
            sent: packets of media given to the path. arrived: of those, what got through.
        """
        before = self.open
        if self.open:
            self._look_for_life(sent, arrived)
        else:
            self._look_for_death(now, sent, arrived)
        return BreakerDecision(self.open, self.open is not before, sent, arrived)

    def reset(self) -> bool:
        """The path is another one now; whether the breaker was open."""
        was_open, self.open, self._count = self.open, False, 0
        return was_open

    def _look_for_death(self, now: float, sent: int, arrived: int) -> None:
        if sent < MIN_SENT:
            return
        self._count = self._count + 1 if arrived <= NOTHING * sent else 0
        if self._count < INTERVALS:
            return
        relapse = now - self._opened_at < FORGIVE_AFTER
        self._proof = min(2 * self._proof, MAX_PROOF) if relapse else 1
        self.open, self._opened_at, self._count = True, now, 0

    def _look_for_life(self, sent: int, arrived: int) -> None:
        if sent == 0:
            return
        self._count = self._count + 1 if arrived >= ARRIVES * sent else 0
        if self._count >= self._proof:
            self.open, self._count = False, 0


class StreamOutflow:
    """What has left by a stream since the last look, from its counters."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None

    def since(self, packets: int, records: int, dropped: int) -> tuple[int, int] | None:
        """(sent, arrived) since the last look; None for the first of a connection.

        Args:
            packets: inner packets ever queued. records: TLS records ever written by all streams, which hold
                any number of them. dropped: packets ever dropped while they waited, if there is one stream.
        """
        before, self._before = self._before, (packets, records, dropped)
        if before is None or packets < before[0]:
            return None
        sent = packets - before[0]
        stands_still = records == before[1]
        return sent, 0 if stands_still else max(0, sent - max(0, dropped - before[2]))


class ReportedFlow:
    """What has arrived by a datagram tunnel, from our counter of records and the receiver's reports."""

    def __init__(self) -> None:
        self._before: int | None = None

    def since(self, records: int, received: int) -> tuple[int, int] | None:
        """(sent, arrived) between two reports; None for the first of a tunnel.

        Args:
            records: records ever sent. received: what the newest report says came since the one before.
        """
        before, self._before = self._before, records
        if before is None or records < before:
            return None
        return records - before, received
