"""G.711: one octet per sample (ITU-T G.711, 11/1988).

Samples are signed 16 bit numbers in native byte order; the 14 (mu-law) and 13 (A-law) bits that the
Recommendation speaks of are their upper bits. Both directions are table look-ups: 160 samples cost a few
microseconds, so pure Python keeps up with hundreds of calls.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

RATE: Final = 8000
"""Samples per second (G.711 section 2)."""

_UNSIGNED: Final = 0x10000


@dataclass(frozen=True, slots=True)
class Law:
    """One of the two encoding laws.

    Attributes:
        payload_type, encoding, clock, channels: as RTP and SDP know it (RFC 3551 section 6).
        silence: the code of sample 0.
    """

    clock = RATE
    channels = 1
    parameters = ""

    encoding: str
    payload_type: int
    silence: int
    _encode: bytes
    _first: bytes
    _second: bytes

    def coder(self) -> Law:
        """It has no state."""
        return self

    def encode(self, samples: array[int]) -> bytes:
        """Samples (typecode ``h``) -> one octet each."""
        return bytes(map(self._encode.__getitem__, array("H", samples.tobytes())))

    def decode(self, data: bytes) -> array[int]:
        """Octets -> samples (typecode ``h``). Every octet is a valid code."""
        out = bytearray(2 * len(data))
        out[0::2] = data.translate(self._first)
        out[1::2] = data.translate(self._second)
        return array("h", bytes(out))


def _mulaw(bits: int) -> tuple[int, int]:
    """(where its interval begins, level) of a chord and a step, as magnitudes (G.711 table 2)."""
    step, chord = bits & 0x0F, bits >> 4
    return 4 * max(0, (((2 * step + 32) << chord) - 33)), 4 * (((2 * step + 33) << chord) - 33)


def _alaw(bits: int) -> tuple[int, int]:
    """The same for A-law (table 1); its first two chords are one straight line."""
    step, chord = bits & 0x0F, bits >> 4
    start, shift = (32, chord - 1) if chord else (0, 0)
    return 8 * ((2 * step + start) << shift), 8 * ((2 * step + start + 1) << shift)


def _law(encoding: str, payload_type: int, inverted: int, interval: Callable[[int], tuple[int, int]]) -> Law:
    """The tables of a law; ``inverted`` are the bits that are sent inverted, sign bit 1 for positive."""
    intervals = [interval(bits) for bits in range(128)]
    begins = [begin for begin, _ in intervals]
    encode = bytearray(_UNSIGNED)
    for magnitude in range(0x8000):
        bits = bisect_right(begins, magnitude) - 1
        encode[magnitude] = (0x80 | bits) ^ inverted
        # Negative samples by their one's complement, as in ITU-T G.191's reference: -1 is the first of its
        # interval as 0 is the first of its own.
        encode[~magnitude % _UNSIGNED] = bits ^ inverted
    levels = array("h", bytes(2 * 256))
    for bits, (_, level) in enumerate(intervals):
        levels[(0x80 | bits) ^ inverted] = level
        levels[bits ^ inverted] = -level
    octets = levels.tobytes()
    return Law(encoding, payload_type, encode[0], bytes(encode), octets[0::2], octets[1::2])


PCMU: Final = _law("PCMU", 0, 0x7F, _mulaw)
PCMA: Final = _law("PCMA", 8, 0x55, _alaw)

LAWS: Final = {law.encoding: law for law in (PCMU, PCMA)}
