"""Which path a flow in mode AUTO takes: the view of seconds above the user plane's reflexes.

                       datagram dead, or stream better by HYSTERESIS
                     ┌──────────────────────────────────────────────┐
                     v                                              │
                  STREAM                                         DATAGRAM
                     │                                              ^
                     └──────────────────────────────────────────────┘
                       stream dead, or datagram better by HYSTERESIS

A move for quality waits until ``HOLD_DOWN`` seconds have passed since the last move. A move off a
dead path does not wait; but the path it left is not gone back to, for quality, before its own
back-off is over, and that doubles with every death. So a path that dies and revives all the time
costs ever fewer moves.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from opentsm.engine.quality import PathScore
from opentsm.types import Path
from opentsm.wire.messages import PathDecision

HYSTERESIS: Final = 5.0
"""R points by which the other path must be better: half of what a listener notices (G.109 puts a
category of quality at 10), and more than the noise of a 2 s window."""

HOLD_DOWN: Final = 5.0
"""Seconds between two moves for quality: as long as the windows need to fill with the new state."""

ENOUGH: Final = 80
"""Datagrams of media size that must have been seen of a datagram path before media moves to it. A path looks
good beside a poor stream with 7 % lost: at 20 % loss fewer than six of 80 are lost once in 2,000 times, but
fewer than three of 40 once in 120, which a large server would see all day."""

RETURN_MAX: Final = 60.0
"""Longest back-off before a path that died is tried again while the other one works."""

FORGIVE_AFTER: Final = 120.0
"""A path that has not died for this many seconds starts over with the shortest back-off."""


class Reason(enum.Enum):
    """Why the path is what it is; one sentence each for logs and people."""

    UNMEASURED = "too little is known about the other path yet"
    ALIKE = "the other path is not better by enough"
    HOLD_DOWN = "the other path is better, but the last move was a moment ago"
    BACK_OFF = "the other path is better, but it died a moment ago"
    BETTER = "the other path was clearly better"
    DEAD = "the path was dead"
    ALL_DEAD = "the path is dead and there is no other that works"


REASON_NUMBERS: Final = {Reason.BETTER: 1, Reason.DEAD: 2}
"""Reasons for a move (docs/protocol.md, "Quality")."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the flow belongs from now on.

    Attributes:
        path: the path to use. moved: whether that is a change.
        reason: why. stream, datagram: the scores that were weighed.
        again_at: when deciding again can give another answer though no score changes, or None.
    """

    path: Path
    moved: bool
    reason: Reason
    stream: PathScore | None
    datagram: PathScore | None
    again_at: float | None = None

    def told(self) -> PathDecision:
        """The move, as the peer is told of it."""
        stream, datagram = (None if s is None else round(s.r) for s in (self.stream, self.datagram))
        return PathDecision(self.path, REASON_NUMBERS[self.reason], stream, datagram)

    def __str__(self) -> str:
        scores = ", ".join(str(score) for score in (self.stream, self.datagram) if score is not None)
        verb = "moved to" if self.moved else "stays on"
        return f"{verb} {self.path.name.lower()}: {self.reason.value}" + (f" [{scores}]" if scores else "")


def explain(decision: PathDecision) -> str:
    """A decision of the peer's in words."""
    names = {number: reason.value for reason, number in REASON_NUMBERS.items()}
    reason = names.get(decision.reason, f"reason {decision.reason}")
    ratings = [
        f"{path.name.lower()}: R {r}"
        for path, r in ((Path.STREAM, decision.stream_r), (Path.DATAGRAM, decision.datagram_r))
        if r is not None
    ]
    scores = f" [{', '.join(ratings)}]" if ratings else ""
    return f"moved to {decision.path.name.lower()}: {reason}{scores}"


class Steering:
    """The decision for one client's flows in mode AUTO, and the little it has to remember.

    Args:
        path: where they are now; a call begins on the stream.
    """

    def __init__(self, path: Path = Path.STREAM) -> None:
        self.path = path
        self._moved_at: float | None = None
        self._graves = {Path.STREAM: _Grave(), Path.DATAGRAM: _Grave()}

    def decide(self, now: float, stream: PathScore | None, datagram: PathScore | None) -> Decision:
        """Weigh both paths.

        None: nothing is known of a path, or (datagram) it does not exist yet. A tunnel that is gone
        is dead, not unknown: say so with ``PathMeter.mark_dead``.
        """
        scores = {Path.STREAM: stream, Path.DATAGRAM: datagram}
        for path, score in scores.items():
            self._graves[path].watch(now, score)
        move, reason, again_at = self._judge(now, scores[self.path], scores[_other(self.path)])
        if move:
            self.path = _other(self.path)
            self._moved_at = now
        return Decision(self.path, move, reason, stream, datagram, again_at)

    def _judge(
        self, now: float, here: PathScore | None, there: PathScore | None
    ) -> tuple[bool, Reason, float | None]:
        if here is not None and here.dead:
            return self._leave_dead(there)
        if there is None or here is None or not _known(there):
            return False, Reason.UNMEASURED, None
        if there.dead or there.r - here.r <= HYSTERESIS:
            return False, Reason.ALIKE, None
        grave = self._graves[_other(self.path)]
        if now < grave.until:
            return False, Reason.BACK_OFF, grave.until
        if self._moved_at is not None and now < self._moved_at + HOLD_DOWN:
            return False, Reason.HOLD_DOWN, self._moved_at + HOLD_DOWN
        return True, Reason.BETTER, None

    def _leave_dead(self, there: PathScore | None) -> tuple[bool, Reason, float | None]:
        """The stream is always there, so an unmeasured stream is better than a dead datagram path;
        the datagram path may not exist, so it must have been heard."""
        unheard = there is None and self.path is Path.STREAM
        if unheard or (there is not None and there.dead):
            return False, Reason.ALL_DEAD, None
        return True, Reason.DEAD, None


class _Grave:
    """Deaths of one path: how long it is not to be trusted."""

    def __init__(self) -> None:
        self.until = float("-inf")
        self._dead = False
        self._died_at = float("-inf")
        self._back_off = HOLD_DOWN

    def watch(self, now: float, score: PathScore | None) -> None:
        dead = score is not None and score.dead
        if dead and not self._dead:
            recent = now - self._died_at < FORGIVE_AFTER
            self._back_off = min(self._back_off * 2.0, RETURN_MAX) if recent else HOLD_DOWN
            self._died_at = now
            self.until = now + self._back_off
        self._dead = dead


def _known(score: PathScore) -> bool:
    """A stream always delivers, sooner or later; of a datagram path enough must have been seen."""
    return score.dead or score.path is Path.STREAM or score.packets is None or score.packets >= ENOUGH


def _other(path: Path) -> Path:
    return Path.DATAGRAM if path is Path.STREAM else Path.STREAM
