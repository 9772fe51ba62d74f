"""How much recovery data goes with media on a datagram tunnel: one direction, judged by what its receiver
reports.

            loss of RAISE[1] %            of RAISE[2] %
        0 ────────────────────> 1 ─────────────────────> 2      frames repeated per datagram
          <──────────────────── ^ <─────────────────────
            HOLD after the last change, with the slow window below LOWER
                  any ──> one less (and a back-off): loss grew after a raise: the bytes themselves do harm

The sender decides, by the receiver's Quality Reports on what it sends. An application's own choice wins over
all of this. Bytes are bounded by the factor: at most three times those of the media.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from opentsm.types import AUTOMATIC, Coding, Path, Service
from opentsm.wire.messages import PathQuality

RAISE: Final = {1: 1.0, 2: 6.0}
"""Loss in percent, in the fast window, from which this factor is worth its bytes. 1 % is where G.711 with
loss concealment begins to suffer (ITU-T G.113 appendix I: 5 R points); at 6 % factor 1 leaves 0.4 %
unrepaired."""

LOWER: Final = {1: 0.3, 2: 3.0}
"""Loss in the slow window below which this factor is left again: well under what it was raised for, so that a
loss about the threshold does not make it flap."""

WINDOW_FAST: Final = 4.0
"""Seconds of reports that a raise is decided by: two reports."""

WINDOW_SLOW: Final = 20.0
"""Seconds of reports that lowering is decided by."""

LEAST_LOST: Final = 3
"""Packets that must be missing in the fast window before anything is raised: one or two are chance."""

HOLD: Final = 10.0
"""Seconds between a change and the next lowering."""

SETTLE: Final = 4.0
"""Seconds after a raise until the reports show the new state alone."""

GREW_BY: Final = 4.0
GREW_TIMES: Final = 1.8
"""Loss after a raise that is more by so many points, and so many times what it was, is taken as caused by
it."""

BACK_OFF_MIN: Final = 30.0
BACK_OFF_MAX: Final = 300.0
"""Seconds for which nothing is raised after a raise made loss worse; doubles each time."""

REPORTS_END: Final = 15.0
"""Without a report for so long nobody knows whether recovery data is of use: it ends."""

MAX_REPORTS: Final = 64
"""Reports remembered; at one in two seconds the slow window has ten."""


class Reason(enum.Enum):
    """Why the factor is what it is; one phrase each for logs and people."""

    CHOSEN = "the application chose it"
    NOT_AGREED = "the peer has not agreed to it"
    CLEAN = "little is lost"
    LOSS = "loss is repaired"
    HOLD = "the last change was a moment ago"
    RAISED = "loss grew"
    LOWERED = "loss has gone down"
    CONGESTION = "loss grew with the redundancy: fewer bytes instead"
    BACK_OFF = "redundancy made loss worse a while ago"
    NO_REPORTS = "the receiver reports nothing"


@dataclass(frozen=True, slots=True)
class Protection:
    """What a sender does.

    Attributes:
        factor: recovery frames per datagram. fec: they are made for bursts.
        changed: whether that is new. reason: why. loss: percent in the fast window, None while unknown.
    """

    factor: int
    fec: bool
    changed: bool
    reason: Reason
    loss: float | None = None

    def __str__(self) -> str:
        what = f"factor {self.factor}" + (" with FEC" if self.fec and self.factor else "")
        seen = "" if self.loss is None else f" [{self.loss:.1f} % lost]"
        return f"{what}: {self.reason.value}{seen}"


class Redundancy:
    """The decision for one direction of one session.

    Attributes:
        coding: what the application permits or has chosen.
        agreed: services both sides have agreed on.
    """

    def __init__(self, coding: Coding = AUTOMATIC, agreed: Collection[Service] = ()) -> None:
        self.coding = coding
        self.agreed = frozenset(agreed)
        self._factor = 0
        self._now = (0, False)
        self._reports: deque[tuple[float, int, int]] = deque(maxlen=MAX_REPORTS)
        self._changed_at = float("-inf")
        self._before: float | None = None
        self._barred_until = float("-inf")
        self._back_off = BACK_OFF_MIN

    @property
    def decided(self) -> tuple[int, bool]:
        """Factor and FEC of the last decision."""
        return self._now

    def reported(self, now: float, reports: Iterable[PathQuality]) -> None:
        """The receiver's view of what we send."""
        for report in reports:
            if report.path is Path.DATAGRAM:
                self._reports.append((now, report.received, report.lost))

    def path_gone(self) -> None:
        """The datagram tunnel has ended: its loss says nothing about the next one."""
        self._reports.clear()
        self._factor, self._before = 0, None

    def decide(self, now: float) -> Protection:
        """Weigh what is known."""
        factor, reason = self._choose(now)
        loss = self._loss(now, WINDOW_FAST)
        fec = factor > 0 and self.coding.fec and Service.FEC in self.agreed
        changed = (factor, fec) != self._now
        self._now = (factor, fec)
        return Protection(factor, fec, changed, reason, None if loss is None else loss[0])

    def _choose(self, now: float) -> tuple[int, Reason]:
        if Service.REDUNDANCY not in self.agreed:
            return 0, Reason.NOT_AGREED
        if self.coding.factor is not None:
            return self.coding.factor, Reason.CHOSEN
        reason = self._judge(now)
        return self._factor, reason

    def _judge(self, now: float) -> Reason:
        fast = self._loss(now, WINDOW_FAST)
        if fast is None:
            if self._factor and now - self._last_report() > REPORTS_END:
                return self._move(now, 0, None, Reason.NO_REPORTS)
            return Reason.NO_REPORTS
        loss, lost = fast
        if self._made_worse(now, loss):
            self._barred_until = now + self._back_off
            self._back_off = min(2.0 * self._back_off, BACK_OFF_MAX)
            return self._move(now, self._factor - 1, None, Reason.CONGESTION)
        wanted = max((factor for factor, least in RAISE.items() if loss >= least), default=0)
        if wanted > self._factor and lost >= LEAST_LOST:
            if now < self._barred_until:
                return Reason.BACK_OFF
            if now - self._changed_at < SETTLE:
                return Reason.HOLD
            return self._move(now, self._factor + 1, max(loss, self._newest()), Reason.RAISED)
        return self._lower(now)

    def _lower(self, now: float) -> Reason:
        if not self._factor:
            return Reason.CLEAN
        slow = self._loss(now, WINDOW_SLOW)
        if slow is None or slow[0] >= LOWER[self._factor]:
            return Reason.LOSS
        if now - self._changed_at < HOLD:
            return Reason.HOLD
        self._back_off = BACK_OFF_MIN
        return self._move(now, self._factor - 1, None, Reason.LOWERED)

    def _made_worse(self, now: float, loss: float) -> bool:
        """Whether the last raise is what made loss grow. Loss that grows later has causes of its own."""
        if self._before is None or not SETTLE <= now - self._changed_at <= SETTLE + WINDOW_FAST:
            return False
        return loss > self._before + GREW_BY and loss > self._before * GREW_TIMES

    def _move(self, now: float, factor: int, before: float | None, reason: Reason) -> Reason:
        self._factor, self._before, self._changed_at = factor, before, now
        return reason

    def _loss(self, now: float, window: float) -> tuple[float, int] | None:
        """(percent, packets) lost within the window; None: nothing was reported."""
        recent = [(received, lost) for at, received, lost in self._reports if at > now - window]
        received, lost = (sum(column) for column in zip(*recent, strict=True)) if recent else (0, 0)
        return (100.0 * lost / (received + lost), lost) if received + lost else None

    def _newest(self) -> float:
        """Percent in the last report alone: at the onset of a loss the window still shows less than there
        is."""
        _, received, lost = self._reports[-1]
        return 100.0 * lost / (received + lost) if received + lost else 0.0

    def _last_report(self) -> float:
        return self._reports[-1][0] if self._reports else float("-inf")


@dataclass(frozen=True, slots=True)
class Applied:
    """A session's coding as the user plane is told it (the arguments of ``set_coding``)."""

    factor: int = 0
    fec: bool = False
    compress: bool = False
    take_recovery: bool = False
    take_compressed: bool = False


class Coder:
    """One session's coding: what is agreed, and what is decided within that.

    Attributes:
        protection: the last decision about what is sent.
    """

    def __init__(self) -> None:
        self.protection = Protection(0, False, False, Reason.NOT_AGREED)
        self._redundancy = Redundancy()
        self._takes: frozenset[Service] = frozenset()

    @property
    def agreed(self) -> frozenset[Service]:
        """The services we may send by."""
        return self._redundancy.agreed

    def agree(
        self, now: float, takes: Iterable[Service], sends: Iterable[Service], coding: Coding
    ) -> Applied:
        """Both sides have agreed anew."""
        self._takes = frozenset(takes)
        self._redundancy.agreed = frozenset(sends)
        self._redundancy.coding = coding
        self.decide(now)
        return self.applied

    def reported(self, now: float, reports: Iterable[PathQuality]) -> None:
        """See ``Redundancy.reported``."""
        self._redundancy.reported(now, reports)

    def path_gone(self) -> None:
        """See ``Redundancy.path_gone``."""
        self._redundancy.path_gone()

    def decide(self, now: float) -> Protection:
        """See ``Redundancy.decide``."""
        self.protection = self._redundancy.decide(now)
        return self.protection

    @property
    def applied(self) -> Applied:
        """What holds now."""
        return Applied(
            factor=self.protection.factor,
            fec=self.protection.fec,
            compress=Service.HEADER_COMPRESSION in self.agreed,
            take_recovery=Service.REDUNDANCY in self._takes,
            take_compressed=Service.HEADER_COMPRESSION in self._takes,
        )
