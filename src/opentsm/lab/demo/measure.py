"""What became of a call's packets, and what a listener had of it. Pure: records in, numbers out.

Both phones run on one machine and share its clock, so a sender's records and a receiver's, joined by sequence
number, give each packet's way and delay.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.records import ReceivedPacket, SentPacket
from opentsm.client.phone.rtp import PTIME
from opentsm.client.phone.score import judge
from opentsm.lab.accounting import percentile
from opentsm.lab.hearing import aligned, pesq, windows
from opentsm.types import Path

MOS_WIDTH: Final = 3.0
"""Seconds that one point of the MOS curve looks at: 150 packets, so that one lost packet is 0.7 %."""

MOS_STEP: Final = 0.25

_STAMPS: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one packet.

    Args:
        sent, came: seconds on the reader's clock; ``came`` None: never.
        in_time: before its moment in the play-out buffer.
        path: the tunnel by which it crossed the bad network.
        position: samples of speech that were said before it.
    """

    sent: float
    came: float | None
    in_time: bool
    path: Path
    position: int

    @property
    def delay(self) -> float:
        """Seconds on the way; 0 where it never came."""
        return 0.0 if self.came is None else self.came - self.sent


@dataclass(frozen=True, slots=True)
class Numbers:
    """One direction of one stretch of a call.

    Args:
        lost, late: packets that never came, or too late to be heard.
        gap: longest run of such packets, seconds.
        delay_min, delay_p50, delay_p95: one-way, seconds, from program to program.
        mos: E-model over delay and loss. pesq: of the recording, None: not scored.
    """

    packets: int
    by_path: dict[Path, int]
    lost: int
    late: int
    gap: float
    delay_min: float
    delay_p50: float
    delay_p95: float
    mos: float
    pesq: float | None = None

    @property
    def missed_percent(self) -> float:
        """Speech that was not heard."""
        return 100.0 * (self.lost + self.late) / self.packets if self.packets else 0.0

    @property
    def datagram_percent(self) -> float:
        """Packets that crossed the bad network by the datagram tunnel."""
        return 100.0 * self.by_path.get(Path.DATAGRAM, 0) / self.packets if self.packets else 0.0


def fates(
    sent: Sequence[SentPacket], received: Iterable[ReceivedPacket], *, origin: float, outward: bool
) -> list[Fate]:
    """Join both ends' records. A call has fewer than 65,536 packets, so 16-bit numbers are names.

    Args:
        origin: what is to be 0 on the reader's clock.
        outward: the sender is the phone behind the bad network, so the sender's path is the one that counts;
            else the receiver's, and a lost packet is taken to have gone the way of the one before it.
    """
    first_copies: dict[int, ReceivedPacket] = {}
    for packet in received:
        first_copies.setdefault(packet.sequence & 0xFFFF, packet)
    begin = sent[0].timestamp if sent else 0
    path, found = Path.STREAM, []
    for one in sent:
        copy = first_copies.get(one.sequence)
        known = one.path if outward else copy.path if copy is not None else None
        path = known if known is not None else path
        came = None if copy is None else copy.at - origin
        in_time = copy is not None and copy.in_time
        found.append(Fate(one.at - origin, came, in_time, path, (one.timestamp - begin) % _STAMPS))
    return found


def between(packets: Iterable[Fate], begin: float, end: float) -> list[Fate]:
    """Those sent from ``begin`` to before ``end``."""
    return [packet for packet in packets if begin <= packet.sent < end]


def numbers(packets: Sequence[Fate], playout: float, score: float | None = None) -> Numbers:
    """What a listener had of these packets.

    Args:
        playout: seconds of the listener's buffer. score: of the recording, if it was scored.
    """
    delays = sorted(packet.delay for packet in packets if packet.came is not None)
    lost = sum(packet.came is None for packet in packets)
    late = sum(packet.came is not None and not packet.in_time for packet in packets)
    total = max(1, len(packets))
    quickest = delays[0] if delays else 0.0
    verdict = judge(quickest + playout, 100.0 * late / total, 100.0 * lost / total)
    return Numbers(
        packets=len(packets),
        by_path={path: sum(packet.path is path for packet in packets) for path in Path},
        lost=lost,
        late=late,
        gap=PTIME * longest_gap(packets),
        delay_min=quickest,
        delay_p50=percentile(delays, 50),
        delay_p95=percentile(delays, 95),
        mos=verdict.mos,
        pesq=score,
    )


def longest_gap(packets: Iterable[Fate]) -> int:
    """Most packets in a row that were not heard."""
    longest = run = 0
    for packet in packets:
        run = 0 if packet.in_time else run + 1
        longest = max(longest, run)
    return longest


def mos_over_time(packets: Sequence[Fate], playout: float) -> list[tuple[float, float]]:
    """(time, MOS) every MOS_STEP seconds, each over the MOS_WIDTH seconds around it."""
    if not packets or packets[-1].sent - packets[0].sent < MOS_WIDTH:
        return []
    points, first, last = [], 0, 0
    at = packets[0].sent + MOS_WIDTH / 2
    while at + MOS_WIDTH / 2 <= packets[-1].sent:
        while packets[first].sent < at - MOS_WIDTH / 2:
            first += 1
        while packets[last].sent < at + MOS_WIDTH / 2:
            last += 1
        points.append((at, numbers(packets[first:last], playout).mos))
        at += MOS_STEP
    return points


def recording_score(
    source: array[int], recording: array[int], packets: Sequence[Fate], heard_from: int
) -> float | None:
    """PESQ of the speech in these packets, the mean over stretches of about ten seconds.

    Args:
        source: what is said, again and again.
        recording: what was heard of it; it begins with the first packet that came, ``heard_from`` samples
            into the speech.
    """
    if not packets:
        return None
    scores = []
    for begin, end in windows(packets[0].position, packets[-1].position + round(PTIME * RATE)):
        reference = repeated(source, begin, end)
        score = pesq(reference, aligned(reference, recording, begin - heard_from))
        if score is not None:
            scores.append(score)
    return sum(scores) / len(scores) if scores else None


def repeated(source: array[int], begin: int, end: int) -> array[int]:
    """Samples ``begin`` to ``end`` of ``source`` said again and again."""
    start = begin % len(source)
    times = (start + end - begin) // len(source) + 1
    return (source * times)[start : start + end - begin]
