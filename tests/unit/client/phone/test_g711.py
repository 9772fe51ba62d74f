from __future__ import annotations

from array import array
from itertools import pairwise

import pytest

from opentsm.client.phone.g711 import LAWS, PCMA, PCMU, Law

ALL_CODES = bytes(range(256))


def one(law: Law, sample: int) -> int:
    return law.encode(array("h", [sample]))[0]


@pytest.mark.parametrize(
    ("law", "levels"),
    [
        # G.711 tables 1 and 2: ends, first steps and both zeros, as 16-bit samples.
        (
            PCMU,
            {
                0x80: 32124,
                0x00: -32124,
                0xFF: 0,
                0x7F: 0,
                0xFE: 8,
                0x7E: -8,
                0xF0: 120,
                0xEF: 132,
                0x8F: 16764,
            },
        ),
        (PCMA, {0xD5: 8, 0x55: -8, 0xAA: 32256, 0x2A: -32256, 0xD4: 24, 0xC5: 264, 0xBA: 16128, 0xA5: 16896}),
    ],
)
def test_levels_of_the_recommendation(law: Law, levels: dict[int, int]) -> None:
    decoded = law.decode(ALL_CODES)
    assert {code: decoded[code] for code in levels} == levels


@pytest.mark.parametrize(
    ("law", "code"), [(PCMU, "1e0b0b1e9e8b8b9e"), (PCMA, "342121 34b4a1a1b4".replace(" ", ""))]
)
def test_the_digital_milliwatt_keeps_its_octets(law: Law, code: str) -> None:
    """The 1 kHz reference of G.711 tables 5 and 6: eight octets, 0 dBm0."""
    octets = bytes.fromhex(code)
    samples = law.decode(octets)
    assert law.encode(samples) == octets
    assert samples[0:4].tolist() == [-sample for sample in samples[4:8]]
    assert samples[0] == samples[3]
    assert samples[1] == samples[2]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_a_level_encodes_to_its_own_code(law: Law) -> None:
    again = law.encode(law.decode(ALL_CODES))
    wrong = [code for code in ALL_CODES if again[code] != code]
    assert wrong == ([0x7F] if law is PCMU else [])  # mu-law has two zeros, and only the positive is sent


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_every_sample_goes_to_the_nearest_interval(law: Law) -> None:
    """Against a search through all 256 levels; half a step of the chord is the largest error."""
    samples = array("h", range(-32768, 32768))
    decoded = law.decode(law.encode(samples))
    assert all(low <= high for low, high in pairwise(decoded))  # monotonic
    levels = sorted(set(law.decode(ALL_CODES)))
    for index in range(0, 65536, 97):
        sample = samples[index]
        best = min(abs(sample - level) for level in levels)
        # A chord's last interval is not centred between levels: the step there is that of the larger chord.
        assert abs(sample - decoded[index]) <= max(best * 2, best + 4)


@pytest.mark.parametrize(
    ("law", "begins"),
    [
        # First sample of an interval by the tables' decision values (x 4 and x 8), and the code it gets.
        (PCMU, {0: 0xFF, 4: 0xFE, 12: 0xFD, 124: 0xEF, 380: 0xDF, 16252: 0x8F, 32764 - 4 * 128: 0x80}),
        (PCMA, {0: 0xD5, 16: 0xD4, 256: 0xC5, 512: 0xF5, 16384: 0xA5, 31744: 0xAA}),
    ],
)
def test_decision_values_of_the_recommendation(law: Law, begins: dict[int, int]) -> None:
    assert {sample: one(law, sample) for sample in begins} == begins
    # Negative samples by one's complement: -1 is what 0 is on the other side (ITU-T G.191).
    assert {sample: one(law, ~sample) ^ 0x80 for sample in begins} == begins


def test_silence() -> None:
    assert (PCMU.silence, PCMA.silence) == (0xFF, 0xD5)


def test_nothing_is_nothing() -> None:
    assert PCMU.encode(array("h")) == b""
    assert PCMU.decode(b"") == array("h")
