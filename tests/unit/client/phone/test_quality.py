"""What is recorded, judged as a listener would (ITU-T P.862), where that can be installed."""

from __future__ import annotations

import random
from array import array

import pytest

from opentsm.client.phone.media import Identity, MediaSession
from opentsm.client.phone.speech import speech
from opentsm.types import Path

CLEAN = 3.9
"""G.711's ceiling is about 4.0; less than this is a fault of the phone's."""


def heard(samples: array[int], *, loss: float = 0.0, late: float = 0.0) -> array[int]:
    """One direction of a call: samples through two media sessions and a network."""
    chance = random.Random(7)
    speaker = MediaSession(Identity(1, 0, 0), samples)
    listener = MediaSession(Identity(2, 0, 0), playout=0.06)
    flying: list[tuple[float, bytes]] = []
    for n in range(len(samples) // 160):
        for packet in speaker.tick(n * 0.02, Path.STREAM):
            if chance.random() >= loss:
                flying.append((n * 0.02 + 0.03 + (0.2 if chance.random() < late else 0.0), packet))
    for arrival, packet in sorted(flying):
        listener.receive_untrusted(arrival, packet, None)
    listener.advance(len(samples) / 8000 + 1.0)
    return listener.heard[: len(samples)]


def pesq(reference: array[int], degraded: array[int]) -> float:
    judge = pytest.importorskip("pesq")
    numpy = pytest.importorskip("numpy")
    return float(judge.pesq(8000, numpy.array(reference), numpy.array(degraded), "nb"))


def test_a_clean_call_sounds_as_good_as_g711_can() -> None:
    samples = speech(10)
    assert pesq(samples, heard(samples)) >= CLEAN


def test_loss_and_lateness_are_heard() -> None:
    samples = speech(12)
    scores = [
        pesq(samples, heard(samples, loss=loss, late=late)) for loss, late in ((0, 0), (0.05, 0), (0.1, 0.1))
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[2] > 1.0
