"""What the numbers in received packets say about the way they came (RFC 3550 appendix A)."""

from __future__ import annotations

from typing import Final

from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.rtcp import ReportBlock, SenderInfo, delay_units
from opentsm.client.phone.rtp import RtpPacket, unwrap

MAX_DROPOUT: Final = 3000
"""Sequence numbers a stream may jump ahead and still be the same stream (RFC 3550 appendix A.1)."""

MAX_MISORDER: Final = 100
"""How far behind the newest a packet may come and still belong to it (the same)."""


class Reception:
    """Counts, loss and jitter of one source, with the first packet heard as its beginning.

    Args:
        clock: of the packets' time stamps, Hz.

    Attributes:
        received: packets, duplicates and all.
        jitter: interarrival jitter in units of the clock (section 6.4.1).
        reordered: packets that came after a later one. restarts: jumps that made it a new stream.
    """

    def __init__(self, packet: RtpPacket, arrival: float, clock: int = RATE) -> None:
        self._clock = clock
        self.ssrc = packet.ssrc
        self.jitter = 0.0
        self.received = 0
        self.reordered = 0
        self.restarts = 0
        self._base = self._highest = packet.sequence
        self._suspect: int | None = None
        self._transit: float | None = None
        self._last_timestamp = packet.timestamp
        self._reported = (0, 0)
        self._sender_report: tuple[int, float] | None = None
        self._done_expected = 0
        self.add(packet, arrival)

    @property
    def highest(self) -> int:
        """Extended highest sequence number."""
        return self._highest

    @property
    def expected(self) -> int:
        """Packets the source has sent since its first one that was heard (appendix A.3)."""
        return self._done_expected + self._highest - self._base + 1

    @property
    def lost(self) -> int:
        """Expected minus received; negative where packets were duplicated."""
        return self.expected - self.received

    @property
    def jitter_ms(self) -> float:
        return 1000.0 * self.jitter / self._clock

    def add(self, packet: RtpPacket, arrival: float) -> int | None:
        """Count a packet that came at ``arrival`` seconds.

        Returns:
            Its extended sequence number, or None: it fits nothing yet and is not counted (appendix A.1: a
            jump is believed when the next packet follows it).
        """
        sequence = unwrap(packet.sequence, self._highest, 16)
        step = sequence - self._highest
        if step >= MAX_DROPOUT or step < -MAX_MISORDER:
            if packet.sequence != self._suspect:
                self._suspect = (packet.sequence + 1) % (1 << 16)
                return None
            sequence = self._restart(sequence)
        elif step < 0:
            self.reordered += 1
        self._suspect = None
        self._highest = max(self._highest, sequence)
        self.received += 1
        self._update_jitter(packet.timestamp, arrival)
        return sequence

    def heard_sender(self, info: SenderInfo, arrival: float) -> None:
        """A sender report of this source."""
        self._sender_report = (info.middle, arrival)

    def block(self, now: float) -> ReportBlock:
        """What is to be reported now; fractions count from the last call (appendix A.3)."""
        expected = self.expected - self._reported[0]
        received = self.received - self._reported[1]
        self._reported = (self.expected, self.received)
        lost = expected - received
        fraction = min(255, (lost << 8) // expected) if expected > 0 and lost > 0 else 0
        last_sr, heard = self._sender_report or (0, now)
        return ReportBlock(
            self.ssrc,
            fraction,
            self.lost,
            self._highest % (1 << 32),
            int(self.jitter),
            last_sr,
            delay_units(now - heard),
        )

    def _restart(self, sequence: int) -> int:
        """The source began anew elsewhere; what it had is kept, the packet that raised suspicion too."""
        self.restarts += 1
        self._done_expected = self.expected
        self._base = self._highest = sequence - 1
        self.received += 1
        self._transit = None
        return sequence

    def _update_jitter(self, timestamp: int, arrival: float) -> None:
        """Appendix A.8, in floating point."""
        self._last_timestamp = unwrap(timestamp, self._last_timestamp, 32)
        transit = arrival * self._clock - self._last_timestamp
        if self._transit is not None:
            self.jitter += (abs(transit - self._transit) - self.jitter) / 16.0
        self._transit = transit
