"""How good a path is for a voice: the E-model, and what measurements of a path say through it.

E-model: ITU-T G.107 (06/2015), narrow band, all parameters at their defaults (its table 3) except
delay and loss. Codec figures: ITU-T G.113 (11/2007) appendix I.

A path is judged by what a phone at its end would hear, so three things count:

* *mouth-to-ear delay*: the path's one-way delay, one packet of speech and the play-out buffer;
* *loss*: datagrams that never came;
* *late loss*: packets that came after their turn in the play-out buffer. On a stream this is the
  whole loss: TCP delivers everything, but what was sent behind a lost segment waits for it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from opentsm.types import Path

PLAYOUT_MS: Final = 60.0
"""Play-out buffer assumed at the receiver: three packets of 20 ms, a usual fixed buffer."""

PTIME_MS: Final = 20.0
"""Speech in one packet (RFC 3551 default)."""

WINDOW_FAST: Final = 2.0
"""Seconds of the window in which a path that turns bad is noticed."""

WINDOW_SLOW: Final = 10.0
"""Seconds of the window that a path must be good through to be believed again."""

MAX_SAMPLES: Final = 128
"""Samples kept per path: the slow window at ten a second, and some."""

R_BEST: Final = 100.0
R_WORST: Final = 0.0

# Intermediate results of G.107 clauses 7.2 and 7.3 that depend on nothing we vary.
_RO: Final = 94.7688
"""Basic signal-to-noise ratio (equation 7-2) at default values."""
_IS: Final = 1.4136
"""Simultaneous impairment factor (equation 7-8) at default values."""
_TELR: Final = 65.0
"""Talker echo loudness rating, dB."""
_WEPL: Final = 110.0
"""Weighted echo path loss, dB."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Equipment impairment of a codec (G.113 appendix I).

    Args:
        ie: impairment without loss. bpl: packet-loss robustness; larger is more robust.
    """

    name: str
    ie: float
    bpl: float


G711_PLC: Final = Codec("G.711 with PLC", 0.0, 25.1)
G711: Final = Codec("G.711 without PLC", 0.0, 4.3)
G729A_VAD: Final = Codec("G.729A with VAD", 11.0, 19.0)
G7231_VAD: Final = Codec("G.723.1 6.3 kbit/s with VAD", 15.0, 16.1)
GSM_EFR: Final = Codec("GSM-EFR", 5.0, 10.0)


def r_factor(
    one_way_delay_ms: float, loss_percent: float, codec: Codec = G711_PLC, burst_ratio: float = 1.0
) -> float:
    """Transmission rating R of G.107, 0 (unusable) to about 93.2 (undisturbed).

    Args:
        one_way_delay_ms: mouth to ear.
        loss_percent: packets the listener does not get in time, 0 to 100.
        burst_ratio: 1 for independent loss, more for bursts (G.107 equation 7-29).
    """
    delay = max(0.0, one_way_delay_ms)
    impairments = _IS + _talker_echo(delay) + _listener_echo(delay) + _delay(delay)
    r = _RO - impairments - _equipment(min(max(loss_percent, 0.0), 100.0), codec, burst_ratio)
    return min(max(r, R_WORST), R_BEST)


def mos(r: float) -> float:
    """Mean opinion score for a rating: 1.0 to 4.5 (G.107 annex B, equation B-4).

    The polynomial dips under 1 for R below 6.5; it is held at 1 there.
    """
    if r <= R_WORST:
        return 1.0
    if r >= R_BEST:
        return 4.5
    return max(1.0, 1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6)


def late_percent(spread_ms: float, playout_ms: float = PLAYOUT_MS) -> float:
    """Packets that miss their turn, from how much later than the median the slowest 5 % come.

    Takes the excess delay to be memoryless, the distribution with one number; then 5 % beyond
    ``spread_ms`` (p95 - p50) fixes the share beyond the play-out buffer.
    """
    if spread_ms <= 0.0:
        return 0.0
    return 100.0 * math.exp(math.log(0.05) * playout_ms / spread_ms)


def stream_late_percent(loss_percent: float, rtt_ms: float, playout_ms: float = PLAYOUT_MS) -> float:
    """Packets that miss their turn on a TCP stream whose segments are lost at this rate.

    A lost segment is noticed when a later one is acknowledged and a quarter of a round trip has
    passed without it (RACK's reordering window, RFC 8985 section 6.2), so its repeat arrives one
    packet time and 1.25 RTT after its turn. What was sent meanwhile waits behind it, the later sent
    the less; those that wait longer than the play-out buffer are late. Agrees within a few per cent
    with calls measured at 0.5 to 5 % loss and 50 to 200 ms RTT (see the unit test).
    """
    stall = 1.25 * rtt_ms + PTIME_MS
    late_per_loss = max(0.0, (stall - playout_ms) / PTIME_MS)
    return min(100.0, loss_percent * late_per_loss)


@dataclass(frozen=True, slots=True)
class PathSample:
    """What was seen of one path in one interval.

    Attributes:
        delay_ms: one-way delay (half the round trip where nothing better is known).
        jitter_ms: interarrival jitter as in RFC 3550 section 6.4.1, or the round trip's variation.
        received, lost: packets in the interval; on a stream ``lost`` are retransmitted segments.
        spread_ms: p95 - p50 of the delay, where it was measured; else it is taken from the jitter.
    """

    delay_ms: float
    jitter_ms: float = 0.0
    received: int = 0
    lost: int = 0
    spread_ms: float | None = None

    @property
    def spread(self) -> float:
        """p95 - p50. With memoryless excess delay the mean deviation is 1/3 of the 95th percentile."""
        return 3.0 * self.jitter_ms if self.spread_ms is None else self.spread_ms


@dataclass(frozen=True, slots=True)
class PathScore:
    """Judgement of one path.

    Attributes:
        delay_ms: mouth to ear. loss_percent: never came. late_percent: came too late.
        r, mos: the E-model's verdict. dead: nothing gets through at all (then R is 0).
        packets: how many it rests on, None where that does not matter.
    """

    path: Path
    delay_ms: float
    loss_percent: float
    late_percent: float
    r: float
    mos: float
    dead: bool = False
    packets: int | None = None

    def __str__(self) -> str:
        if self.dead:
            return f"{self.path.name.lower()}: dead"
        return (
            f"{self.path.name.lower()}: R {self.r:.0f} ({self.delay_ms:.0f} ms, "
            f"{self.loss_percent:.1f} % lost, {self.late_percent:.1f} % late)"
        )


def score_path(
    path: Path, sample: PathSample, *, playout_ms: float = PLAYOUT_MS, codec: Codec = G711_PLC
) -> PathScore:
    """Judge a path by one set of measurements."""
    sent = sample.received + sample.lost
    loss = 100.0 * sample.lost / sent if sent else 0.0
    late = late_percent(sample.spread, playout_ms)
    if path is Path.STREAM:
        late = max(late, stream_late_percent(loss, 2.0 * sample.delay_ms, playout_ms))
        loss = 0.0
    delay = sample.delay_ms + PTIME_MS + playout_ms
    r = r_factor(delay, loss + late * (100.0 - loss) / 100.0, codec)
    return PathScore(path, delay, loss, late, r, mos(r), packets=sent)


class PathMeter:
    """Samples of one path over time, judged through two windows.

    The score is the worse of a fast and a slow window: bad news counts within ``WINDOW_FAST``
    seconds, good news only after ``WINDOW_SLOW``.
    """

    def __init__(self, path: Path, *, playout_ms: float = PLAYOUT_MS, codec: Codec = G711_PLC) -> None:
        self.path = path
        self._playout_ms = playout_ms
        self._codec = codec
        self._samples: deque[tuple[float, PathSample]] = deque(maxlen=MAX_SAMPLES)
        self._dead = False

    def add(self, now: float, sample: PathSample) -> None:
        self._samples.append((now, sample))
        self._forget(now)

    def mark_dead(self) -> None:
        """Nothing gets through. What was measured before says nothing about afterwards."""
        self._dead = True
        self._samples.clear()

    def mark_alive(self) -> None:
        self._dead = False

    def score(self, now: float) -> PathScore | None:
        """The judgement now, or None while nothing is known."""
        if self._dead:
            return PathScore(self.path, 0.0, 100.0, 0.0, R_WORST, 1.0, dead=True)
        self._forget(now)
        scores = [
            score_path(self.path, sample, playout_ms=self._playout_ms, codec=self._codec)
            for window in (WINDOW_FAST, WINDOW_SLOW)
            if (sample := self._merged(now - window)) is not None
        ]
        if not scores:
            return None
        return replace(min(scores, key=lambda score: score.r), packets=scores[-1].packets)

    def _forget(self, now: float) -> None:
        while self._samples and self._samples[0][0] <= now - WINDOW_SLOW:
            self._samples.popleft()

    def _merged(self, since: float) -> PathSample | None:
        """One sample for all those after ``since``: sums of counts, means of delays, and the widest
        of the measured spread and that of the samples' own delays."""
        recent = [sample for at, sample in self._samples if at > since]
        if not recent:
            return None
        count = len(recent)
        delays = sorted(sample.delay_ms for sample in recent)
        spread = max(
            _mean([sample.spread for sample in recent]), delays[(count - 1) * 19 // 20] - delays[count // 2]
        )
        return PathSample(
            delay_ms=_mean(delays),
            jitter_ms=_mean([sample.jitter_ms for sample in recent]),
            received=sum(sample.received for sample in recent),
            lost=sum(sample.lost for sample in recent),
            spread_ms=spread,
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _talker_echo(delay: float) -> float:
    """Idte, equations 7-17 to 7-22; T is the one-way delay."""
    terv = (
        _TELR
        - 40.0 * math.log10((1.0 + delay / 10.0) / (1.0 + delay / 150.0))
        + 6.0 * math.exp(-0.3 * delay**2)
    )
    re = 80.0 + 2.5 * (terv - 14.0)
    half = (_RO - re) / 2.0
    return (half + math.hypot(half, 10.0) - 1.0) * -math.expm1(-delay)


def _listener_echo(delay: float) -> float:
    """Idle, equations 7-24 and 7-25; Tr is the round trip."""
    rle: float = 10.5 * (_WEPL + 7.0) * (2.0 * delay + 1.0) ** -0.25
    half = (_RO - rle) / 2.0
    return half + math.hypot(half, 13.0)


def _delay(delay: float) -> float:
    """Idd, equations 7-26 to 7-28: what delay costs though there be no echo."""
    if delay <= 100.0:
        return 0.0
    x = math.log2(delay / 100.0)
    idd: float = 25.0 * ((1.0 + x**6) ** (1 / 6) - 3.0 * (1.0 + (x / 3.0) ** 6) ** (1 / 6) + 2.0)
    return idd


def _equipment(loss: float, codec: Codec, burst_ratio: float) -> float:
    """Ie,eff, equation 7-29."""
    if loss == 0.0:
        return codec.ie
    return codec.ie + (95.0 - codec.ie) * loss / (loss / burst_ratio + codec.bpl)
