from __future__ import annotations

from array import array
from itertools import pairwise

from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.speech import LEAD, speech


def loud(samples: array[int]) -> list[bool]:
    """Of each 20 ms, whether something is said."""
    return [sum(map(abs, samples[n : n + 160])) > 160 * 200 for n in range(0, len(samples), 160)]


def test_it_is_the_same_every_time_and_as_long_as_wanted() -> None:
    assert speech(3.0) == speech(3.0)
    assert len(speech(2.5)) == 2.5 * RATE
    assert len(speech(30)) == 30 * RATE
    assert speech(30)[: len(speech())] == speech()


def test_it_has_speech_pauses_and_a_quiet_beginning() -> None:
    samples = speech()
    assert 8 * RATE < len(samples) < 12 * RATE
    assert 12_000 < max(map(abs, samples)) < 20_000  # loud, and far from clipping
    assert not any(loud(samples[: int(LEAD * RATE)]))
    said = loud(samples)
    assert 0.4 < sum(said) / len(said) < 0.9
    changes = sum(a != b for a, b in pairwise(said))
    assert changes > 10
