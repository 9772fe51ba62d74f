"""What a recording sounds like beside what was said: alignment, and PESQ (ITU-T P.862) where it is installed.

PESQ compares two files of 8 to 12 s that begin together. A recording is made after the play-out buffer, which
moves by whole slots of 10 ms, so each stretch is first found in the recording to the slot.
"""

from __future__ import annotations

import importlib
from array import array
from functools import cache
from typing import Any, Final

from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.playout import SLOT_SAMPLES

REACH: Final = 0.4
"""Seconds a stretch may lie from where it is expected: the longest delay of the adaptive buffer."""

STRIDE: Final = 4
"""Of a stretch every fourth sample is compared: plenty to find one lag of eighty."""

SHORTEST: Final = 3.0
"""Seconds of speech below which PESQ's verdict depends on the words more than on the network."""

WINDOW: Final = 10.0
"""Seconds of speech scored at once (P.862.3 advises 8 to 12 s)."""


@cache
def why_no_pesq() -> str | None:
    """Why speech cannot be scored; None: it can."""
    for name in ("numpy", "pesq"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"the Python package {name} is not installed ({error}); requirements/quality.txt has it"
    return None


def pesq(reference: array[int], degraded: array[int]) -> float | None:
    """Narrow-band PESQ as MOS-LQO (P.862.1), 1.0 to 4.5; G.711 reaches about 4.0.

    Returns:
        None: it is not installed, or there is no speech in it to compare.
    """
    if why_no_pesq() is not None or not any(degraded):
        return None
    judge: Any = importlib.import_module("pesq")
    numpy: Any = importlib.import_module("numpy")
    try:
        return float(judge.pesq(RATE, numpy.array(reference), numpy.array(degraded), "nb"))
    except judge.PesqError:  # no utterance found
        return None


def aligned(reference: array[int], recording: array[int], expected: int, reach: float = REACH) -> array[int]:
    """The stretch of ``recording`` that corresponds to ``reference``, as long as it.

    Args:
        reference: what was said.
        expected: sample of the recording at which it should begin.
        reach: seconds to look before and behind.

    Returns:
        Where the recording has nothing, silence.
    """
    steps = round(reach * RATE / SLOT_SAMPLES)
    starts = [expected + step * SLOT_SAMPLES for step in sorted(range(-steps, steps + 1), key=abs)]
    best = max(starts, key=lambda start: _likeness(reference, recording, start))
    return cut(recording, best, len(reference))


def cut(samples: array[int], start: int, length: int) -> array[int]:
    """``length`` samples from ``start``, silence where there are none."""
    before = array("h", bytes(2 * min(length, max(0, -start))))
    found = samples[max(0, start) : max(0, start + length)]
    return before + found + array("h", bytes(2 * max(0, length - len(before) - len(found))))


def _likeness(reference: array[int], recording: array[int], start: int) -> int:
    first = max(0, -start)
    ours, theirs = reference[first::STRIDE], recording[start + first :: STRIDE]
    return sum(map(int.__mul__, ours, theirs))


def windows(begin: int, end: int) -> list[tuple[int, int]]:
    """Samples ``begin`` to ``end`` in equal stretches of about WINDOW; none where it is too short."""
    length = end - begin
    if length < SHORTEST * RATE:
        return []
    count = max(1, round(length / (WINDOW * RATE)))
    return [(begin + length * n // count, begin + length * (n + 1) // count) for n in range(count)]
