"""WAV files (RIFF, PCM) <-> samples at 8 kHz, mono, 16 bit, which is all that G.711 can use.

A file is a user's own, so what is wrong with it is a ConfigError that says what to do.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Final

from opentsm.client.phone.g711 import RATE, Law
from opentsm.errors import ConfigError

MAX_SECONDS: Final = 3600
"""Longest file read or recorded: an hour of speech is 58 MB of samples, and no test call needs more."""

MAX_FILE: Final = MAX_SECONDS * 96_000 * 2 * 2
"""Bytes of a file: an hour in the richest common format (96 kHz, stereo, 16 bit)."""

_PCM: Final = 1
_EXTENSIBLE: Final = 0xFFFE
_G711: Final = {"PCMA": 6, "PCMU": 7}
_HINT: Final = "convert it first, for example: sox INPUT -r 8000 -c 1 -b 16 OUTPUT.wav"


def read_wav(data: bytes, source: str = "") -> array[int]:
    """The samples of a PCM file with 8 or 16 bits, any rate from 8 to 96 kHz and one or two channels.

    Other rates are resampled, channels averaged.

    Args:
        data: the whole file. source: its name, for errors.

    Raises:
        ConfigError: it is no such file.
    """
    if len(data) > MAX_FILE:
        raise ConfigError("longer than an hour of speech", source=source, hint="give a shorter file")
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ConfigError("not a WAV file", source=source, hint=_HINT)
    chunks = _chunks(data)
    if b"fmt " not in chunks or b"data" not in chunks:
        raise ConfigError("a WAV file without format or data", source=source, hint=_HINT)
    channels, rate, bits = _format(chunks[b"fmt "], source)
    samples = _mono(_wide(chunks[b"data"], bits), channels)
    if len(samples) > MAX_SECONDS * rate:
        raise ConfigError("longer than an hour of speech", source=source, hint="give a shorter file")
    return resample(samples, rate)


def write_wav(samples: array[int], law: Law | None = None) -> bytes:
    """A file with these samples (typecode ``h``), 8 kHz mono.

    Args:
        law: G.711 instead of linear samples: half as long, and every player knows it.
    """
    data = _little(samples).tobytes() if law is None else law.encode(samples)
    kind, size = (_PCM, 2) if law is None else (_G711[law.encoding], 1)
    form = (b"fmt ", 16, kind, 1, RATE, size * RATE, size, 8 * size)
    header = (b"RIFF", 36 + len(data) + len(data) % 2, b"WAVE", *form, b"data", len(data))
    return struct.pack("<4sI4s4sIHHIIHH4sI", *header) + data + bytes(len(data) % 2)


def resample(samples: array[int], rate: int) -> array[int]:
    """To 8 kHz. Downwards each sample is the mean over its span, which keeps most of what would alias out."""
    if rate == RATE or not samples:
        return samples
    count = len(samples) * RATE // rate
    sums = array("q", [0])
    total = 0
    for sample in samples:
        total += sample
        sums.append(total)
    out = array("h", bytes(2 * count))
    for index in range(count):
        begin = index * rate // RATE
        end = max(begin + 1, (index + 1) * rate // RATE)
        out[index] = (sums[end] - sums[begin]) // (end - begin)
    return out


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The first chunk of each kind; a last one that is cut short is taken as far as it goes."""
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        found.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return found


def _format(chunk: bytes, source: str) -> tuple[int, int, int]:
    """(channels, rate, bits)."""
    if len(chunk) < 16:
        raise ConfigError("a WAV file with half a format", source=source, hint=_HINT)
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    known = kind == _PCM or (kind == _EXTENSIBLE and chunk[24:26] == b"\x01\x00")
    if not (known and channels in (1, 2) and RATE <= rate <= 96_000 and bits in (8, 16)):
        raise ConfigError(
            f"format {kind}, {channels} channels, {rate} Hz, {bits} bits cannot be played",
            source=source,
            hint=_HINT,
        )
    return channels, rate, bits


def _wide(data: bytes, bits: int) -> array[int]:
    if bits == 8:  # unsigned, silence at 128
        return array("h", [(octet - 128) << 8 for octet in data])
    return _little(array("h", data[: len(data) // 2 * 2]))


def _mono(samples: array[int], channels: int) -> array[int]:
    if channels == 1:
        return samples
    return array(
        "h", [(left + right) // 2 for left, right in zip(samples[0::2], samples[1::2], strict=False)]
    )


def _little(samples: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return samples
    swapped = array("h", samples)  # pragma: no cover - needs a big-endian machine
    swapped.byteswap()  # pragma: no cover
    return swapped  # pragma: no cover
