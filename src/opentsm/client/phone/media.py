"""One call's audio, both ways, without I/O: packets and the time go in, packets and what was heard come
out."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from opentsm.client.phone import rtcp
from opentsm.client.phone.codecs import Codec, Coder, scale
from opentsm.client.phone.dtmf import Keys, Slot, check_digits, parse_event_untrusted, slots
from opentsm.client.phone.g711 import PCMA, PCMU, RATE
from opentsm.client.phone.playout import SLOT_SAMPLES, PlayoutBuffer, PlayoutCounts
from opentsm.client.phone.reception import Reception
from opentsm.client.phone.records import MAX_RECORDS, ReceivedPacket, SentPacket
from opentsm.client.phone.rtp import PTIME, RtpPacket, parse_rtp_untrusted, unwrap
from opentsm.client.phone.score import Score, score
from opentsm.client.phone.sdp import EVENT_TYPE
from opentsm.client.phone.wav import MAX_SECONDS
from opentsm.errors import RemoteProtocolError
from opentsm.types import Path

FRAME: Final = round(RATE * PTIME)
"""Samples in one packet of ours."""

RTCP_INTERVAL: Final = 2.0
"""Seconds between reports. RFC 3550 section 6.2 asks for 5 s at least, or 360 / bandwidth in kbit/s (4.5 s at
80 kbit/s); a test phone wants round trips more often, and 50 bytes/s are under 1 % of the call."""

MAX_ECHO: Final = 50
"""Frames that wait to be sent back (1 s); older ones are dropped."""


_STATIC: Final = {law.payload_type: law for law in (PCMU, PCMA)}
"""Both laws are understood where one was agreed on: our offer names both, and a peer may change over."""


class Source(Enum):
    """What is said when there is nothing to play."""

    SAMPLES = "samples"
    ECHO = "echo"


@dataclass(frozen=True, slots=True)
class Identity:
    """The numbers a stream begins with; random, from outside (RFC 3550 section 5.1)."""

    ssrc: int
    sequence: int
    timestamp: int
    cname: str = ""


@dataclass(slots=True)
class MediaNumbers:
    """Counters of one call's media.

    Attributes:
        drops: packets that led to nothing, by reason. held: packet times in which we were on hold.
        skipped: packet times that were missed, because this machine was too busy.
    """

    sent: int = 0
    octets: int = 0
    held: int = 0
    skipped: int = 0
    drops: Counter[str] = field(default_factory=Counter)


class MediaSession:
    """Audio of one call.

    Args:
        identity: our stream's first numbers. source: what is said; samples are played once, or again and
            again with ``loop``. playout: seconds of the play-out buffer, None: adaptive.
    """

    def __init__(
        self,
        identity: Identity,
        samples: array[int] | None = None,
        *,
        source: Source = Source.SAMPLES,
        loop: bool = False,
        playout: float | None = 0.060,
    ) -> None:
        self.numbers = MediaNumbers()
        self.sent: list[SentPacket] = []
        self.received: list[ReceivedPacket] = []
        self.heard = array("h")
        self.keys = Keys()
        self.reception: Reception | None = None
        self.round_trip: float | None = None
        self.remote_loss: float | None = None
        self.last_packet: float | None = None
        self.playout = PlayoutBuffer(playout)
        self._identity = identity
        self._samples = samples if samples is not None else array("h")
        self._source = source
        self._loop = loop
        self._position = 0
        self.codec: Codec = PCMU
        self._coder: Coder = self.codec.coder()
        self._near = 0  # last time stamp that has come, unwrapped
        self._type = PCMU.payload_type
        self._event_type: int | None = None
        self._silent = False
        self._ticks = 0
        self._dialling: Iterator[Slot] | None = None
        self._key_begun = identity.timestamp
        self._to_echo: deque[array[int]] = deque(maxlen=2 * MAX_ECHO)
        self._talking = False
        self._next_report = 0.0

    # -- what was agreed ------------------------------------------------------------------------------------

    def use(self, codec: Codec, payload_type: int, event_type: int | None, *, silent: bool = False) -> None:
        """Formats that both sides agreed on; ``silent``: the far end does not listen (hold)."""
        if codec is not self.codec:
            self.codec, self._coder = codec, codec.coder()
        self._type, self._event_type, self._silent = payload_type, event_type, silent

    def dial(self, digits: str) -> None:
        """Send digits, after those that are still on their way.

        Raises:
            ValueError: digits that no key has. The far end may not understand events: then they are not sent.
        """
        before = self._dialling
        new = slots(check_digits(digits))
        self._dialling = new if before is None else (slot for part in (before, new) for slot in part)

    @property
    def exhausted(self) -> bool:
        """Everything there is to say has been said."""
        done = not self._loop and self._position >= len(self._samples)
        return done and self._source is Source.SAMPLES and self._dialling is None

    # -- out ------------------------------------------------------------------------------------------------

    def tick(self, now: float, path: Path | None) -> list[bytes]:
        """One packet time: hear what is due, and what is to be sent now."""
        self.advance(now)
        slot = next(self._dialling, None) if self._dialling is not None else None
        if slot is None:
            self._dialling = None
        timestamp = self._timestamp()
        self._ticks += 1
        frame = self._next_frame(consume=slot is None or slot.speech)
        if self._silent:
            self.numbers.held += 1
            self._talking = False
            return []
        packets = []
        if slot is not None and slot.event is not None and self._event_type is not None:
            if slot.begin:
                self._key_begun = timestamp
            event = replace(slot.event, duration=slot.event.duration * scale(self.codec))
            packets.append(self._packet(self._event_type, self._key_begun, event.build(), slot.begin))
        if slot is None or slot.speech or self._event_type is None:
            packets.append(self._packet(self._type, timestamp, self._coder.encode(frame), not self._talking))
            self._talking = True
        return [self._note_sent(now, packet, path) for packet in packets]

    def skip(self, ticks: int) -> None:
        """Packet times that passed unused: time stamps go on, so the far end hears a gap and no shift."""
        self._ticks += ticks
        self._position += ticks * FRAME
        self.numbers.skipped += ticks

    def report(self, now: float, *, bye: bool = False) -> bytes | None:
        """An RTCP packet if one is due, or if it is the last."""
        if not bye and now < self._next_report:
            return None
        self._next_report = now + RTCP_INTERVAL
        numbers = self.numbers
        info = rtcp.SenderInfo(rtcp.ntp_time(now), self._timestamp(), numbers.sent, numbers.octets)
        blocks = (self.reception.block(now),) if self.reception is not None else ()
        report = rtcp.Report(self._identity.ssrc, info if numbers.sent else None, blocks, bye)
        return rtcp.build_rtcp(report, self._identity.cname)

    # -- in -------------------------------------------------------------------------------------------------

    def receive_untrusted(self, now: float, data: bytes, path: Path | None) -> None:
        """A datagram on the RTP port.

        Raises:
            RemoteProtocolError: it is no RTP, or of a format that was not agreed on.
        """
        packet = parse_rtp_untrusted(data)
        coder = self._coder if packet.payload_type == self._type else self._other_law(packet.payload_type)
        is_event = packet.payload_type in (self._event_type, EVENT_TYPE)
        if coder is None and not is_event:
            raise RemoteProtocolError("rtp-payload-type", str(packet.payload_type))
        sequence = self._count(now, packet)
        if sequence is None:
            raise RemoteProtocolError("rtp-out-of-sequence", str(packet.sequence))
        self.last_packet = now
        if coder is None:
            self.playout.pass_over(now, sequence)
            self.keys.heard(packet, parse_event_untrusted(packet.payload))
            in_time = True
        else:
            samples = coder.decode(packet.payload)
            in_time = self.playout.put(now, sequence, self._in_samples(packet.timestamp), samples)
        if len(self.received) < MAX_RECORDS:
            self.received.append(ReceivedPacket(now, sequence, packet.timestamp, path, in_time))

    def receive_report_untrusted(self, now: float, data: bytes) -> None:
        """A datagram on the RTCP port.

        Raises:
            RemoteProtocolError: it is no RTCP.
        """
        report = rtcp.parse_rtcp_untrusted(data)
        if self.reception is not None and report.ssrc == self.reception.ssrc and report.sender is not None:
            self.reception.heard_sender(report.sender, now)
        for block in report.blocks:
            if block.ssrc == self._identity.ssrc:
                self.round_trip = rtcp.round_trip(now, block) or self.round_trip
                self.remote_loss = block.fraction / 256

    def advance(self, now: float) -> None:
        """Hear what is due by now."""
        self.playout.advance(now)
        for frame in self.playout.take():
            if len(self.heard) < MAX_SECONDS * RATE:
                self.heard.extend(frame.samples)
            if self._source is Source.ECHO:
                self._to_echo.append(frame.samples)

    # -- numbers --------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def counts(self) -> PlayoutCounts:
        return self.playout.counts

    def score(self, one_way: float | None = None) -> Score:
        """How good it sounds here. ``one_way``: seconds, if known better than by half a round trip."""
        half = self.round_trip / 2 if self.round_trip is not None else None
        return score(self.counts, one_way if one_way is not None else half, self.playout.delay)

    # -- helpers --------------------------------------------------------------------------------------------

    def _timestamp(self) -> int:
        """Of the next packet, on the codec's clock."""
        return (self._identity.timestamp + self._ticks * FRAME * scale(self.codec)) % (1 << 32)

    def _in_samples(self, timestamp: int) -> int:
        """A time stamp that has come, on the play-out buffer's clock of 8 kHz, which wraps at 32 bits too."""
        self._near = unwrap(timestamp, self._near, 32)
        return self._near // scale(self.codec) % (1 << 32)

    def _other_law(self, payload_type: int) -> Coder | None:
        """Only on the clock that was agreed on: time stamps must mean the same."""
        return _STATIC.get(payload_type) if self.codec.clock == RATE else None

    def _next_frame(self, *, consume: bool) -> array[int]:
        """The next 20 ms to say: of the samples, or what was heard; silence where there is nothing."""
        frame: array[int] = array("h")
        if self._source is Source.ECHO:
            # Half a frame waits for its other half: filled up with silence it would be a gap in the words.
            if consume and len(self._to_echo) * SLOT_SAMPLES >= FRAME:
                while len(frame) < FRAME:
                    frame.extend(self._to_echo.popleft())
        elif consume and self._samples:
            begin = self._position % len(self._samples) if self._loop else self._position
            frame.extend(self._samples[begin : begin + FRAME])
            self._position += FRAME
        frame.extend(array("h", bytes(2 * (FRAME - len(frame)))))
        return frame

    def _packet(self, payload_type: int, timestamp: int, payload: bytes, marker: bool) -> RtpPacket:
        sequence = (self._identity.sequence + self.numbers.sent) % (1 << 16)
        self.numbers.sent += 1
        self.numbers.octets += len(payload)
        return RtpPacket(payload_type, sequence, timestamp, self._identity.ssrc, payload, marker)

    def _note_sent(self, now: float, packet: RtpPacket, path: Path | None) -> bytes:
        if len(self.sent) < MAX_RECORDS:
            self.sent.append(SentPacket(now, packet.sequence, packet.timestamp, path))
        return packet.build()

    def _count(self, now: float, packet: RtpPacket) -> int | None:
        """Its extended sequence number. Another SSRC is another source: its statistics begin anew."""
        if self.reception is None or self.reception.ssrc != packet.ssrc:
            self.reception = Reception(packet, now, self.codec.clock)
            return packet.sequence
        return self.reception.add(packet, now)
