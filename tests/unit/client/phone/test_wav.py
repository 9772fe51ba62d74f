from __future__ import annotations

import io
import math
import wave
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.wav import read_wav, resample, write_wav
from opentsm.errors import ConfigError


def made(samples: bytes, *, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    """A file by the standard library."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples)
    return file.getvalue()


def tone(rate: int, hertz: int = 440, seconds: float = 0.5) -> array[int]:
    count = round(rate * seconds)
    return array("h", [round(8000 * math.sin(2 * math.pi * hertz * n / rate)) for n in range(count)])


@given(st.lists(st.integers(-32768, 32767), max_size=50))
def test_what_is_written_is_read(values: list[int]) -> None:
    samples = array("h", values)
    assert read_wav(write_wav(samples)) == samples


def test_the_standard_library_reads_what_we_write() -> None:
    samples = tone(8000)
    with wave.open(io.BytesIO(write_wav(samples))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        assert file.readframes(file.getnframes()) == samples.tobytes()


@pytest.mark.parametrize("rate", [11025, 16000, 22050, 44100, 48000])
def test_other_rates_sound_the_same(rate: int) -> None:
    heard = read_wav(made(tone(rate).tobytes(), rate=rate))
    assert len(heard) in (3999, 4000)
    crossings = sum(a < 0 <= b for a, b in pairwise(heard))
    assert crossings in (219, 220)
    assert max(heard) > 7500


def test_two_channels_are_averaged_and_eight_bits_widened() -> None:
    assert read_wav(made(array("h", [100, 300, -50, 50]).tobytes(), channels=2)) == array("h", [200, 0])
    assert read_wav(made(bytes([128, 129, 0, 255]), width=1)) == array("h", [0, 256, -32768, 32512])


def test_a_tone_above_the_telephone_band_is_damped() -> None:
    assert max(resample(tone(48000, hertz=12000), 48000)) < 2000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"OggS" + bytes(40),
        b"RIFF\0\0\0\0WAVE",
        made(bytes(8), width=4),
        made(b"", rate=4000),
        made(bytes(6), channels=3),
        b"RIFF\0\0\0\0WAVEfmt \x02\0\0\0\1\0data\0\0\0\0",
    ],
)
def test_what_cannot_be_played_says_what_to_do(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"voice\.wav: .*sox"):
        read_wav(data, "voice.wav")


@given(st.binary(max_size=120))
def test_any_bytes_are_a_file_or_a_config_error(data: bytes) -> None:
    whole = b"RIFF\0\0\0\0WAVE" + data
    for candidate in (data, whole, made(bytes(20))[: len(data)] + data):
        try:
            read_wav(candidate)
        except ConfigError:
            continue


def test_a_file_cut_short_is_played_as_far_as_it_goes() -> None:
    samples = tone(8000)
    assert read_wav(write_wav(samples)[:-101]) == samples[:-51]
