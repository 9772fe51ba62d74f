from __future__ import annotations

import importlib
import random
from array import array

import pytest

from opentsm.client.phone.g711 import PCMU
from opentsm.client.phone.speech import speech
from opentsm.lab import hearing


def silence(samples: int) -> array[int]:
    return array("h", bytes(2 * samples))


def coded(samples: array[int]) -> array[int]:
    return PCMU.decode(PCMU.encode(samples))


@pytest.mark.parametrize("shift", [0, 80, -160, 2400, -3200])
def test_a_stretch_is_found_to_the_slot(shift: int) -> None:
    said = speech()
    recording = silence(8000 + shift) + coded(said)
    reference = said[16000:56000]
    assert hearing.aligned(reference, recording, 8000 + 16000) == coded(reference)


def test_it_is_found_although_much_of_it_is_missing() -> None:
    said = speech()
    heard = coded(said)
    chance = random.Random(3)
    for begin in range(0, len(heard) - 160, 160):
        if chance.random() < 0.2:
            heard[begin : begin + 160] = silence(160)
    found = hearing.aligned(said[:40000], silence(160) + heard, 0)
    assert found == heard[:40000]


def test_what_was_not_recorded_is_silence() -> None:
    assert hearing.cut(array("h", [1, 2, 3]), -2, 4) == array("h", [0, 0, 1, 2])
    assert hearing.cut(array("h", [1, 2, 3]), 1, 4) == array("h", [2, 3, 0, 0])
    assert hearing.cut(array("h", [1, 2, 3]), -9, 4) == silence(4)
    assert hearing.cut(array("h", [1, 2, 3]), 9, 2) == silence(2)


def test_windows_are_equal_and_leave_out_what_is_too_short() -> None:
    assert hearing.windows(0, 16000) == []
    assert hearing.windows(100, 80100) == [(100, 80100)]
    assert hearing.windows(0, 160000) == [(0, 80000), (80000, 160000)]


def test_pesq_knows_g711_from_a_bad_line() -> None:
    if (reason := hearing.why_no_pesq()) is not None:
        pytest.skip(reason)
    said = speech()
    clean = hearing.pesq(said, coded(said))
    assert clean is not None
    assert clean > 3.95
    torn = coded(said)
    for begin in range(0, len(torn), 1600):
        torn[begin : begin + 160] = silence(160)
    bad = hearing.pesq(said, torn)
    assert bad is not None
    assert bad < clean - 1
    assert hearing.pesq(said, silence(len(said))) is None


def test_without_the_package_there_is_a_reason_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(importlib, "import_module", missing)
    hearing.why_no_pesq.cache_clear()
    try:
        assert "numpy" in (hearing.why_no_pesq() or "")
        assert hearing.pesq(speech(1), speech(1)) is None
    finally:
        hearing.why_no_pesq.cache_clear()
