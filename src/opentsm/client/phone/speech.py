"""A built-in voice: a few seconds of speech-like sound, made by formant synthesis, the same every time.

It says nothing. It has what measures of speech quality look for: a gliding pitch, vowels with three formants,
fricative noise, syllables of 100 to 300 ms and pauses. The synthesiser is the cascade of second-order
resonators described by D. Klatt (J. Acoust. Soc. Am. 67, 1980), reduced to what a telephone carries.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from opentsm.client.phone.g711 import RATE

PEAK: Final = 16000
"""Loudest sample: about -6 dB below full scale, as recorded speech is."""

LEAD: Final = 0.5
"""Seconds of silence before the first syllable: receivers settle before there is something to lose."""

# First three formants of vowels, Hz: rounded means for men (Peterson & Barney 1952).
_VOWELS: Final = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
_BANDWIDTHS: Final = (70, 100, 150)

# Syllables: a vowel, optionally after a hiss (s, f); "," and "." are pauses. Two "sentences".
_PHRASES: Final = ("sa o ,i u fe sa ,o .", "e u sa i ,fo a se ,u a .")
_PAUSES: Final = {",": 0.12, ".": 0.7}


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of one kind of sound: a vowel, a hiss or nothing (""), and its length."""

    sound: str
    seconds: float


@cache
def _samples() -> bytes:
    voice = array("d")
    noise = _noise()
    for phrase in _PHRASES:
        for number, segment in enumerate(_segments(phrase)):
            voice.extend(_sound(segment, 135.0 - 4.0 * (number % 9), noise))
    loudest = max(map(abs, voice))
    lead = array("h", bytes(2 * int(LEAD * RATE)))
    return (lead + array("h", [round(PEAK * sample / loudest) for sample in voice])).tobytes()


def speech(seconds: float | None = None) -> array[int]:
    """The voice at 8 kHz, repeated or cut to ``seconds``; None: once through."""
    once = array("h", _samples())
    if seconds is None:
        return once
    count = round(seconds * RATE)
    return (once * (count // len(once) + 1))[:count]


def _segments(phrase: str) -> Iterator[_Segment]:
    for number, mark in enumerate(phrase.replace(" ", "")):
        if mark in _PAUSES:
            yield _Segment("", _PAUSES[mark])
        elif mark in _VOWELS:
            yield _Segment(mark, 0.16 + 0.03 * (number % 5))
        else:
            yield _Segment(mark, 0.09)


def _sound(segment: _Segment, pitch: float, noise: Iterator[float]) -> array[float]:
    count = int(segment.seconds * RATE)
    if not segment.sound:
        return array("d", bytes(8 * count))
    if segment.sound in _VOWELS:
        source = _glottis(count, pitch)
        for frequency, bandwidth in zip(_VOWELS[segment.sound], _BANDWIDTHS, strict=True):
            source = _resonate(source, frequency, bandwidth)
        return _shape(source, 1.0)
    hiss = array("d", [next(noise) for _ in range(count)])
    return _shape(_resonate(hiss, 3000 if segment.sound == "s" else 2200, 900), 0.12)


def _glottis(count: int, pitch: float) -> array[float]:
    """Pulses whose pitch falls by a fifth over the syllable, softened as by Klatt's low-pass."""
    out = array("d", bytes(8 * count))
    phase = soft = 0.0
    for index in range(count):
        phase += pitch * (1.0 - 0.2 * index / count) / RATE
        pulse = 0.0
        if phase >= 1.0:
            phase -= 1.0
            pulse = 1.0
        soft = 0.9 * soft + pulse
        out[index] = soft - 0.9 * (out[index - 1] if index else 0.0)
    return out


def _resonate(samples: array[float], frequency: float, bandwidth: float) -> array[float]:
    """Second-order resonator with unit gain at 0 Hz (Klatt 1980, equations 1 and 2)."""
    radius = math.exp(-math.pi * bandwidth / RATE)
    c = -radius * radius
    b = 2.0 * radius * math.cos(2.0 * math.pi * frequency / RATE)
    a = 1.0 - b - c
    out = array("d")
    before = earlier = 0.0
    for sample in samples:
        before, earlier = a * sample + b * before + c * earlier, before
        out.append(before)
    return out


def _shape(samples: array[float], level: float) -> array[float]:
    """To one peak for all, with 15 ms of rise and fall so that nothing clicks."""
    peak = max(map(abs, samples)) or 1.0
    edge = min(int(0.015 * RATE), len(samples) // 2)
    last = len(samples) - 1
    return array(
        "d",
        (s * level / peak * min(1.0, (i + 1) / edge, (last - i + 1) / edge) for i, s in enumerate(samples)),
    )


def _noise() -> Iterator[float]:
    """White noise from a linear congruential generator (constants of Knuth's MMIX): always the same."""
    state = 1
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield (state >> 40) / 2**23 - 1.0
