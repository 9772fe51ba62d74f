"""The built-in voice: a few sentences of English, 8 kHz, the same every time.

Spoken by the speech synthesiser espeak-ng and kept as linear samples, so that what a codec does to them can
be heard and measured. ``scripts/make_speech.py`` has the words and makes the file again.
"""

from __future__ import annotations

import gzip
from array import array
from functools import cache
from importlib.resources import files
from typing import Final

from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.wav import read_wav

FILE: Final = "speech.wav.gz"

LEAD: Final = 0.4
"""Seconds of silence before the first word: receivers settle before there is something to lose."""


@cache
def _samples() -> bytes:
    packed = files(__package__ or "").joinpath(FILE).read_bytes()
    return read_wav(gzip.decompress(packed), FILE).tobytes()


def speech(seconds: float | None = None) -> array[int]:
    """The voice at 8 kHz, repeated or cut to ``seconds``; None: once through."""
    once = array("h", _samples())
    if seconds is None:
        return once
    count = round(seconds * RATE)
    return (once * (count // len(once) + 1))[:count]
