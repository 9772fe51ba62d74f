"""What became of a media flow: pure accounting of packets sent and packets that arrived."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class FlowReport:
    """The fate of one flow, or of several added up. Times in seconds.

    Args:
        sent: packets handed to the transport.
        received: distinct packets that arrived whole.
        lost: sent and never seen.
        duplicated: extra copies.
        reordered: arrived after a packet sent later (RFC 4737 section 3.3).
        late: arrived, but more than the play-out delay after the fastest packet's delay.
        corrupt: not what was sent.
        delay_min, delay_p50, delay_p95, delay_p99, delay_max: one-way delay.
        jitter: interarrival jitter (RFC 3550 section 6.4.1), at the end of the flow.
        longest_gap: longest time between two arrivals: the longest silence a listener had.
        longest_burst: most consecutive packets lost.
    """

    sent: int = 0
    received: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    late: int = 0
    corrupt: int = 0
    delay_min: float = 0.0
    delay_p50: float = 0.0
    delay_p95: float = 0.0
    delay_p99: float = 0.0
    delay_max: float = 0.0
    jitter: float = 0.0
    longest_gap: float = 0.0
    longest_burst: int = 0

    @property
    def loss_share(self) -> float:
        """Lost packets, 0 to 1."""
        return self.lost / self.sent if self.sent else 0.0

    @property
    def missed_share(self) -> float:
        """Packets a listener missed: lost or late, 0 to 1."""
        return (self.lost + self.late) / self.sent if self.sent else 0.0


def account(
    sent: Sequence[float], arrivals: Iterable[tuple[int, float]], *, playout: float = 0.060, corrupt: int = 0
) -> FlowReport:
    """Account for one flow.

    Args:
        sent: send time of packet 0, 1, 2, ...
        arrivals: (packet number, arrival time) in order of arrival, on the same clock.
        playout: play-out delay of the listener's buffer, counted from the fastest packet.
        corrupt: packets already found broken.
    """
    first: dict[int, float] = {}
    duplicated = reordered = 0
    newest = -1
    for number, when in arrivals:
        if not 0 <= number < len(sent):
            corrupt += 1
        elif number in first:
            duplicated += 1
        else:
            first[number] = when
            reordered += number < newest
            newest = max(newest, number)
    delays = [when - sent[number] for number, when in first.items()]
    ordered = sorted(delays)
    return FlowReport(
        sent=len(sent),
        received=len(first),
        lost=len(sent) - len(first),
        duplicated=duplicated,
        reordered=reordered,
        late=sum(delay > ordered[0] + playout for delay in delays),
        corrupt=corrupt,
        delay_min=ordered[0] if ordered else 0.0,
        delay_p50=percentile(ordered, 50),
        delay_p95=percentile(ordered, 95),
        delay_p99=percentile(ordered, 99),
        delay_max=ordered[-1] if ordered else 0.0,
        jitter=_jitter(delays),
        longest_gap=_longest_gap(sorted(first.values())),
        longest_burst=_longest_burst(len(sent), first),
    )


def combine(reports: Sequence[FlowReport]) -> FlowReport:
    """Several flows as one: counts are added; delays, gaps and bursts are those of the worst flow."""
    totals = {"sent", "received", "lost", "duplicated", "reordered", "late", "corrupt"}
    values = {
        item.name: (sum if item.name in totals else max)([getattr(report, item.name) for report in reports])
        for item in fields(FlowReport)
        if reports and item.name != "delay_min"
    }
    heard = [report.delay_min for report in reports if report.received]
    return FlowReport(**values, delay_min=min(heard, default=0.0))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of sorted values; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _jitter(delays: Sequence[float]) -> float:
    estimate = 0.0
    for before, after in pairwise(delays):
        estimate += (abs(after - before) - estimate) / 16
    return estimate


def _longest_gap(times: Sequence[float]) -> float:
    return max((after - before for before, after in pairwise(times)), default=0.0)


def _longest_burst(count: int, arrived: dict[int, float]) -> int:
    longest = run = 0
    for number in range(count):
        run = 0 if number in arrived else run + 1
        longest = max(longest, run)
    return longest
