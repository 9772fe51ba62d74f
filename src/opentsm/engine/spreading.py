"""Whether media that has to go by stream goes by several at once (service redundancy): the view of seconds.

                stream late by LATE_ON for ON_AFTER, and media has no datagram path that serves
        ┌──────────────────────────────────────────────────────────────────────────────────┐
        │                                                                                  v
    one stream                                                            fan-out over two or three streams
        ^                                                                                  │
        └──────────────────────────────────────────────────────────────────────────────────┘
           media on the datagram path for OFF_AFTER; or the stream in time for GOOD_FOR; or
           streams backed up (copies are no cure for a path that is full), at once

How late a stream is does not depend on how many copies there are, so the cure does not hide the illness: the
decision does not swing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from opentsm.engine.quality import PathScore
from opentsm.types import NO_REDUNDANCY, Redundancy, Spread

LATE_ON: Final = 3.0
"""Per cent of packets late on one stream that make copies worth their bytes: one more point of R than a
listener forgives (G.113: 1 % costs 4 points with loss concealment)."""

LATE_OFF: Final = 1.0
"""Per cent below which a stream serves by itself."""

ON_AFTER: Final = 5.0
"""Seconds the stream must be late, without a datagram path in use: a DDT is made in one or two."""

OFF_AFTER: Final = 10.0
"""Seconds media must have been on the datagram path before the streams are given back: it may die again."""

GOOD_FOR: Final = 60.0
"""Seconds a stream must be in time before it is alone again: loss comes in spells."""

CONGESTED_FOR: Final = 60.0
"""Seconds without copies after they, or anything else, backed the streams up."""

LEFT_LATE: Final = 2.0
"""Per cent still late with two copies that make a third worth its bytes."""

MOST: Final = 3
"""Streams that this decision uses: with 20 % late on each, three leave less than one."""


class SpreadReason(enum.Enum):
    """Why media is spread, or not; one sentence each for logs and people."""

    IN_TIME = "the stream is in time"
    LATE = "the stream is late and there is no datagram path that serves"
    WAITING = "the stream has not been late for long"
    ON_DATAGRAM = "media is on the datagram path"
    CONGESTED = "the streams are backed up, and copies would add to it"
    UNMEASURED = "nothing is known about the stream yet"


@dataclass(frozen=True, slots=True)
class SpreadDecision:
    """How media that goes by stream is to go from now on.

    Attributes:
        redundancy: over how many streams. moved: whether that is a change. reason: why.
        stream: the score that was weighed.
    """

    redundancy: Redundancy
    moved: bool
    reason: SpreadReason
    stream: PathScore | None

    def __str__(self) -> str:
        score = "" if self.stream is None else f" [{self.stream}]"
        return f"redundancy {self.redundancy}: {self.reason.value}{score}"


class Spreading:
    """The decision for one client, and the little it has to remember. It begins with one stream."""

    def __init__(self) -> None:
        self.redundancy = NO_REDUNDANCY
        self._late_since: float | None = None
        self._good_since: float | None = None
        self._datagram_since: float | None = None
        self._congested_until = float("-inf")

    def decide(
        self, now: float, stream: PathScore | None, *, on_datagram: bool, backed_up: bool
    ) -> SpreadDecision:
        """Weigh what is known.

        Args:
            stream: the main stream's score by itself, or None while nothing is known.
            on_datagram: media is on the datagram path, which works.
            backed_up: media went stale waiting for a stream since the last call.
        """
        self._watch(now, stream, on_datagram=on_datagram, backed_up=backed_up)
        wanted, reason = self._judge(now, stream, on_datagram=on_datagram)
        moved = wanted != self.redundancy
        self.redundancy = wanted
        return SpreadDecision(wanted, moved, reason, stream)

    def _watch(self, now: float, stream: PathScore | None, *, on_datagram: bool, backed_up: bool) -> None:
        late = stream is not None and not stream.dead and stream.late_percent >= LATE_ON and not on_datagram
        good = stream is not None and not stream.dead and stream.late_percent < LATE_OFF
        self._late_since = _since(self._late_since, now, late)
        self._good_since = _since(self._good_since, now, good)
        self._datagram_since = _since(self._datagram_since, now, on_datagram)
        if backed_up:
            self._congested_until = now + CONGESTED_FOR

    def _judge(
        self, now: float, stream: PathScore | None, *, on_datagram: bool
    ) -> tuple[Redundancy, SpreadReason]:
        if now < self._congested_until:
            return NO_REDUNDANCY, SpreadReason.CONGESTED
        if self.redundancy == NO_REDUNDANCY:
            return self._judge_single(now, stream, on_datagram=on_datagram)
        if _lasted(self._datagram_since, now, OFF_AFTER):
            return NO_REDUNDANCY, SpreadReason.ON_DATAGRAM
        if _lasted(self._good_since, now, GOOD_FOR):
            return NO_REDUNDANCY, SpreadReason.IN_TIME
        more = max(self.redundancy.streams, 2 if stream is None else _enough(stream.late_percent))
        return Redundancy(Spread.FAN_OUT, more), SpreadReason.LATE

    def _judge_single(
        self, now: float, stream: PathScore | None, *, on_datagram: bool
    ) -> tuple[Redundancy, SpreadReason]:
        if on_datagram:
            return NO_REDUNDANCY, SpreadReason.ON_DATAGRAM
        if stream is None:
            return NO_REDUNDANCY, SpreadReason.UNMEASURED
        if self._late_since is None:
            return NO_REDUNDANCY, SpreadReason.IN_TIME
        if not _lasted(self._late_since, now, ON_AFTER):
            return NO_REDUNDANCY, SpreadReason.WAITING
        return Redundancy(Spread.FAN_OUT, _enough(stream.late_percent)), SpreadReason.LATE


def _since(since: float | None, now: float, holds: bool) -> float | None:
    if not holds:
        return None
    return now if since is None else since


def _lasted(since: float | None, now: float, seconds: float) -> bool:
    return since is not None and now - since >= seconds


def _enough(late_percent: float) -> int:
    """Streams whose copies, late independently, leave little enough: losses of two connections have
    nothing to do with each other unless the path is full."""
    return 2 if late_percent * late_percent / 100.0 <= LEFT_LATE else MOST
