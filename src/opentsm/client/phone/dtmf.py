"""Digits as RTP events (RFC 4733)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.rtp import PTIME, RtpPacket
from opentsm.errors import RemoteProtocolError

DIGITS: Final = "0123456789*#ABCD"
"""Position = event code (RFC 4733 section 3.2)."""

DURATION: Final = 0.160
"""Seconds of a digit: well over the 40 ms that receivers must accept (ITU-T Q.24)."""

PAUSE: Final = 0.100
"""Seconds between digits."""

END_PACKETS: Final = 3
"""The end of a digit is sent three times (RFC 4733 section 2.5.1.4)."""

MAX_DIGITS: Final = 64
"""Digits in one go: longer than any number people type."""

MAX_HEARD: Final = 1024
"""Digits remembered as heard; a call in which more are dialled is a test of something else."""

_VOLUME: Final = 10
_FRAME: Final = round(RATE * PTIME)


@dataclass(frozen=True, slots=True)
class Event:
    """Payload of one event packet; ``duration`` in samples since the event began."""

    code: int
    duration: int
    end: bool = False
    volume: int = _VOLUME

    def build(self) -> bytes:
        return struct.pack("!BBH", self.code, self.end << 7 | self.volume, self.duration)


def parse_event_untrusted(payload: bytes) -> Event:
    """An event from the network; of several in one packet the first (RFC 4733 section 2.3).

    Raises:
        RemoteProtocolError: ``dtmf-truncated``.
    """
    if len(payload) < 4:
        raise RemoteProtocolError("dtmf-truncated", f"{len(payload)} bytes")
    code, flags, duration = struct.unpack_from("!BBH", payload)
    return Event(code, duration, bool(flags & 0x80), flags & 0x3F)


def check_digits(digits: str) -> str:
    """Digits in the form used here.

    Raises:
        ValueError: there are too many, or characters that no key has.
    """
    wanted = digits.upper()
    if len(wanted) > MAX_DIGITS or any(digit not in DIGITS for digit in wanted):
        raise ValueError(f"{digits!r}: up to {MAX_DIGITS} of {DIGITS}")
    return wanted


@dataclass(frozen=True, slots=True)
class Slot:
    """What goes out in one packet time.

    Args:
        event: the event packet, if there is one. begin: it is the first of its digit (marker bit).
        age: samples since the digit began, so that all packets of it bear the time of its beginning.
        speech: whether the voice is sent too: not while a key is down.
    """

    event: Event | None
    begin: bool
    age: int
    speech: bool


def slots(digits: str) -> Iterator[Slot]:
    """One slot per packet time, from the first digit to the last repetition of the last end."""
    down = round(DURATION / PTIME)
    for digit in check_digits(digits):
        code = DIGITS.index(digit)
        for number in range(1, down + 1):
            event = Event(code, number * _FRAME, end=number == down)
            yield Slot(event, number == 1, (number - 1) * _FRAME, speech=False)
        for number in range(END_PACKETS - 1):
            yield Slot(Event(code, down * _FRAME, end=True), False, (down + number) * _FRAME, speech=True)
        for _ in range(round(PAUSE / PTIME) - END_PACKETS + 1):
            yield Slot(None, False, 0, speech=True)


class Keys:
    """Digits heard: each once, however many packets tell of it."""

    def __init__(self) -> None:
        self.digits = ""
        self._last: int | None = None

    def heard(self, packet: RtpPacket, event: Event) -> str | None:
        """The digit, if this packet is the first to tell of it. Its time stamp is the digit's name."""
        if event.code >= len(DIGITS) or packet.timestamp == self._last:
            return None
        if self._last is not None and (packet.timestamp - self._last) % (1 << 32) >= 1 << 31:
            return None  # a late repetition of an earlier digit
        self._last = packet.timestamp
        digit = DIGITS[event.code]
        if len(self.digits) < MAX_HEARD:
            self.digits += digit
        return digit
