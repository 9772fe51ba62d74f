"""The play-out buffer: what a listener hears of packets that come too late, out of order, or not at all.

Speech is heard in slots of 10 ms. A slot has its moment; what of it has not come by then is concealed, and
counted as *late* if it comes after all and as *lost* if it never does. Every verdict follows from time stamps
and times of arrival alone: when ``advance`` is called makes no difference to what is heard, so a busy event
loop cannot make a network look worse than it is.

*Fixed*: a slot's moment is ``delay`` seconds after the quickest packet of the last WINDOW seconds would have
brought it. *Adaptive*: the delay follows what 98 in 100 packets of the window need. When the moment has to
move (clocks drift; the path changes), it moves by whole slots, in silence or where there is a gap anyway.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.rtp import unwrap

SLOT: Final = 0.010
"""Seconds of one slot: the shortest packet time in use, so that packets of 10, 20, 30, ... ms all fit."""

SLOT_SAMPLES: Final = round(RATE * SLOT)

WINDOW: Final = 2.0
"""Seconds of arrivals that decide where the moment should be: longer than a TCP stall, so that one does not
move it; short enough that a change of path is followed within two seconds."""

DELAY_MIN: Final = 0.020
DELAY_MAX: Final = 0.400
"""Bounds of the adaptive delay: one packet; and what G.114 calls the end of what is acceptable."""

MAX_AHEAD: Final = 500
"""Slots a packet may lie ahead of or behind what is played (5 s). Farther away it is another stream."""

MAX_MISSING: Final = 3000
"""Gaps that are remembered in case they are filled late (30 s)."""

QUIET: Final = 200
"""Mean magnitude under which a slot is silence: about -44 dB below full scale."""

_TOLERANCE: Final = 2 * SLOT
"""How wrong the moment may be before it is moved."""

_WINDOW_PACKETS: Final = 400
"""Arrivals kept: twice what WINDOW holds of the shortest packets."""

_EDGE: Final = 1e-9
"""Seconds that do not matter: moments are sums of floating-point numbers."""


class Kind(Enum):
    """What was heard in a slot."""

    PLAYED = "played"
    CONCEALED = "concealed"
    INSERTED = "inserted"


@dataclass(frozen=True, slots=True)
class Frame:
    """One slot as it was heard."""

    samples: array[int]
    kind: Kind


@dataclass(slots=True)
class PlayoutCounts:
    """Slots of the stream by what became of them; 100 a second.

    Attributes:
        played: in time. late: came after their moment. lost: never came.
        skipped: came in time and were left out, in silence, to shorten the delay.
        inserted: silence or repetition put in to lengthen it. unsent: the sender was silent.
        duplicates: came more than once. restarts: times the stream began anew.
        odd: packets whose length is no whole number of slots.
    """

    played: int = 0
    late: int = 0
    lost: int = 0
    skipped: int = 0
    inserted: int = 0
    unsent: int = 0
    duplicates: int = 0
    restarts: int = 0
    odd: int = 0

    @property
    def expected(self) -> int:
        return self.played + self.late + self.lost + self.skipped

    @property
    def late_percent(self) -> float:
        return 100.0 * self.late / self.expected if self.expected else 0.0

    @property
    def lost_percent(self) -> float:
        return 100.0 * self.lost / self.expected if self.expected else 0.0


class Concealer:
    """Fills gaps with the last 20 ms heard, softer each time, and silence after 60 ms."""

    _GAINS: Final = (0.9, 0.8, 0.6, 0.4, 0.25, 0.1)

    def __init__(self) -> None:
        self._last: deque[array[int]] = deque(maxlen=2)
        self._run = 0

    def heard(self, samples: array[int]) -> None:
        self._last.append(samples)
        self._run = 0

    def conceal(self) -> array[int]:
        run, self._run = self._run, self._run + 1
        if run >= len(self._GAINS) or not self._last:
            return array("h", bytes(2 * SLOT_SAMPLES))
        gain = self._GAINS[run]
        return array("h", [int(gain * sample) for sample in self._last[run % len(self._last)]])


class PlayoutBuffer:
    """One stream's buffer.

    Args:
        delay: seconds, or None for adaptive.
    """

    def __init__(self, delay: float | None = 0.060) -> None:
        self.fixed = delay
        self._counts = PlayoutCounts()
        self._concealer = Concealer()
        self._heard: list[Frame] = []
        self._waiting: dict[int, array[int]] = {}
        self._missing: dict[int, None] = {}
        self._unsent: set[int] = set()  # slots to come in which the sender was silent
        self._transits: deque[tuple[float, float]] = deque(maxlen=_WINDOW_PACKETS)
        self._origin: int | None = None  # time stamp of slot 0, unwrapped
        self._near = 0  # last time stamp, unwrapped
        self._start = 0.0  # moment of the first tick
        self._ticks = 0  # slots heard
        self._cursor = 0  # slot of the stream that is next
        self._highest = -1  # newest slot that has come
        self._newest: tuple[int, int] | None = None  # sequence number and end of the newest packet

    # -- in -------------------------------------------------------------------------------------------------

    def put(self, now: float, sequence: int, timestamp: int, samples: array[int]) -> bool:
        """A packet has come.

        Args:
            now: its time of arrival. sequence: extended. timestamp: as in the packet, 32 bits.

        Returns:
            Whether all of it came in time.
        """
        self.advance(now)
        if not samples or len(samples) % SLOT_SAMPLES:
            self._counts.odd += 1
            return False
        slot = self._locate(now, timestamp)
        self._note_transit(now, now - slot * SLOT)
        self._note_silence(sequence, slot, len(samples) // SLOT_SAMPLES)
        late = 0
        for begin in range(0, len(samples), SLOT_SAMPLES):
            late += not self._store(slot + begin // SLOT_SAMPLES, samples[begin : begin + SLOT_SAMPLES])
        return late == 0

    def pass_over(self, now: float, sequence: int) -> None:
        """A packet of the stream that carries no speech (an event) has come."""
        self.advance(now)
        if self._newest is not None and sequence == self._newest[0] + 1:
            self._newest = (sequence, self._newest[1])

    # -- out ------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Hear every slot whose moment has come."""
        while self._origin is not None and self._moment(self._ticks) <= now + _EDGE:
            self._tick()
            self._ticks += 1

    def take(self) -> list[Frame]:
        """What was heard since the last call."""
        heard, self._heard = self._heard, []
        return heard

    @property
    def next_moment(self) -> float | None:
        return None if self._origin is None else self._moment(self._ticks)

    @property
    def delay(self) -> float:
        """Seconds between the quickest packet of the window and its moment."""
        if not self._transits:
            return self.fixed if self.fixed is not None else DELAY_MIN
        return self._offset - min(transit for _, transit in self._transits)

    @property
    def counts(self) -> PlayoutCounts:
        """So far. A gap counts as lost once something newer has come; it may still turn out late."""
        known = self._counts
        gaps = sum(slot < self._highest for slot in self._missing)
        return PlayoutCounts(
            known.played,
            known.late,
            known.lost + gaps,
            known.skipped,
            known.inserted,
            known.unsent,
            known.duplicates,
            known.restarts,
            known.odd,
        )

    # -- the clock ------------------------------------------------------------------------------------------

    def _moment(self, tick: int) -> float:
        return self._start + tick * SLOT

    @property
    def _offset(self) -> float:
        """Moment of slot 0, were it still to come."""
        return self._moment(self._ticks) - self._cursor * SLOT

    def _note_transit(self, now: float, transit: float) -> None:
        """The window ends with the newest packet: what has stopped teaches nothing new."""
        self._transits.append((now, transit))
        while self._transits[0][0] < now - WINDOW:
            self._transits.popleft()

    def _target(self) -> float:
        """What ``_offset`` should be."""
        if not self._transits:
            return self._offset
        if self.fixed is not None:
            return min(transit for _, transit in self._transits) + self.fixed
        ordered = sorted(transit for _, transit in self._transits)
        needed = ordered[(len(ordered) - 1) * 98 // 100] - ordered[0] + SLOT
        return ordered[0] + min(max(needed, DELAY_MIN), DELAY_MAX)

    # -- one slot -------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        samples = self._waiting.get(self._cursor)
        if samples is None or _is_quiet(samples):
            error = self._offset - self._target()
            if error <= -_TOLERANCE:
                self._insert()
                return
            if error >= _TOLERANCE and samples is not None:
                self._skip()
        self._hear()

    def _hear(self) -> None:
        """The slot that is next, or something in its place."""
        slot, self._cursor = self._cursor, self._cursor + 1
        samples = self._waiting.pop(slot, None)
        if samples is None:
            if slot in self._unsent:
                self._unsent.discard(slot)
                self._counts.unsent += 1
            else:
                self._remember_gap(slot)
            self._heard.append(Frame(self._concealer.conceal(), Kind.CONCEALED))
            return
        self._counts.played += 1
        self._concealer.heard(samples)
        self._heard.append(Frame(samples, Kind.PLAYED))

    def _insert(self) -> None:
        self._counts.inserted += 1
        self._heard.append(Frame(self._concealer.conceal(), Kind.INSERTED))

    def _skip(self) -> None:
        del self._waiting[self._cursor]
        self._cursor += 1
        self._counts.skipped += 1

    def _remember_gap(self, slot: int) -> None:
        self._missing[slot] = None
        if len(self._missing) > MAX_MISSING:
            oldest = next(iter(self._missing))
            del self._missing[oldest]
            self._counts.lost += oldest < self._highest

    # -- one packet -----------------------------------------------------------------------------------------

    def _locate(self, now: float, timestamp: int) -> int:
        """The slot where a packet begins; the first packet, and any that is far off, begins a stream."""
        if self._origin is None:
            self._begin(now)
            return self._adopt(timestamp, 0)
        near = unwrap(timestamp, self._near, 32)
        slot = (near - self._origin) // SLOT_SAMPLES
        if abs(slot - self._cursor) > MAX_AHEAD:
            self._counts.restarts += 1
            self._transits.clear()
            self._newest = None
            behind = round((self._delay_wanted() - (self._moment(self._ticks) - now)) / SLOT)
            return self._adopt(timestamp, max(self._highest + 1, self._cursor + behind))
        self._near = near
        return slot

    def _begin(self, now: float) -> None:
        self._start = now + self._delay_wanted()

    def _delay_wanted(self) -> float:
        return self.fixed if self.fixed is not None else 2 * DELAY_MIN

    def _adopt(self, timestamp: int, slot: int) -> int:
        """From now on this time stamp stands for this slot."""
        self._near = timestamp
        self._origin = timestamp - slot * SLOT_SAMPLES
        return slot

    def _note_silence(self, sequence: int, slot: int, length: int) -> None:
        """Between packets with neighbouring numbers nothing was sent, so nothing was lost."""
        if self._newest is not None and sequence == self._newest[0] + 1:
            for gap in range(self._newest[1], min(slot, self._newest[1] + 2 * MAX_AHEAD)):
                if gap in self._missing:
                    del self._missing[gap]
                    self._counts.unsent += 1
                elif gap >= self._cursor:
                    self._unsent.add(gap)
        if self._newest is None or sequence > self._newest[0]:
            self._newest = (sequence, slot + length)

    def _store(self, slot: int, samples: array[int]) -> bool:
        self._highest = max(self._highest, slot)
        if slot >= self._cursor:
            self._counts.duplicates += slot in self._waiting
            self._waiting.setdefault(slot, samples)
            return True
        if slot in self._missing:
            del self._missing[slot]
            self._counts.late += 1
            return False
        self._counts.duplicates += 1
        return True


def _is_quiet(samples: array[int]) -> bool:
    return sum(map(abs, samples)) < QUIET * SLOT_SAMPLES


def parse_playout(text: str) -> float | None:
    """``60ms``, ``0.06s``, ``60`` (milliseconds) or ``adaptive`` (None).

    Raises:
        ValueError: neither, or not between 0 and 2 seconds.
    """
    word = text.strip().lower()
    if word == "adaptive":
        return None
    scale = 0.001
    if word.endswith("ms"):
        word = word[:-2]
    elif word.endswith("s"):
        word, scale = word[:-1], 1.0
    seconds = float(word) * scale
    if not 0.0 <= seconds <= 2.0:
        raise ValueError(f"{text!r} is not between 0 and 2 seconds")
    return seconds
