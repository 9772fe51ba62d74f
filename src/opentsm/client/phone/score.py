"""What a listener would say: the E-model (``opentsm.engine.quality``) over what was really heard."""

from __future__ import annotations

from dataclasses import dataclass

from opentsm.client.phone.playout import PlayoutCounts
from opentsm.engine.quality import G711_PLC, PTIME_MS, mos, r_factor


@dataclass(frozen=True, slots=True)
class Score:
    """One direction of a call.

    Attributes:
        delay_ms: mouth to ear: network, one packet, play-out buffer.
        late_percent, lost_percent: of what was sent. r, mos: the E-model's verdict.
    """

    delay_ms: float
    late_percent: float
    lost_percent: float
    r: float
    mos: float


def score(counts: PlayoutCounts, one_way: float | None, playout: float) -> Score:
    """Judge what was heard.

    Args:
        counts: of the play-out buffer. one_way: seconds through the network, None: unknown, taken as 0.
        playout: seconds in the buffer.
    """
    return judge((one_way or 0.0) + playout, counts.late_percent, counts.lost_percent)


def judge(delay: float, late_percent: float, lost_percent: float) -> Score:
    """The verdict on ``delay`` seconds (network and buffer) and on what was not heard in time."""
    delay_ms = 1000.0 * delay + PTIME_MS
    r = r_factor(delay_ms, late_percent + lost_percent, G711_PLC)
    return Score(delay_ms, late_percent, lost_percent, r, mos(r))
