"""Opus (RFC 6716, over RTP: RFC 7587), by libopus where the module ``opuslib_next`` brings it or finds it.

All of the phone's audio is at 8 kHz, so Opus is asked for narrow band; on the wire it is opus/48000/2
whatever it carries (RFC 7587 section 4.1). A quarter of G.711's bytes, and it sounds better.
"""

from __future__ import annotations

import importlib
from array import array
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from opentsm.client.phone.g711 import RATE
from opentsm.errors import RemoteProtocolError

BITRATE: Final = 16_000
"""bit/s. RFC 7587 section 3.1.1 advises 8,000 to 12,000 for speech in narrow band; with a little more the
built-in voice reaches PESQ 4.3, where G.711 has 4.0."""

LONGEST: Final = RATE * 120 // 1000
"""Samples of the longest packet there is: 120 ms (RFC 6716 section 3.2.5)."""

PAYLOAD_TYPE: Final = 107
"""Dynamic (RFC 3551 section 6), one that few others use."""


@cache
def why_not() -> str | None:
    """Why there is no Opus here; None: there is."""
    try:
        importlib.import_module("opuslib_next")
    except Exception as error:  # the module raises errors of its own where it finds no libopus
        return f"opuslib_next cannot be used ({error})"
    return None


@dataclass(frozen=True, slots=True)
class OpusCodec:
    """See ``codecs.Codec``."""

    encoding: str = "OPUS"
    clock: int = 48_000
    payload_type: int = PAYLOAD_TYPE
    channels: int = 2
    parameters: str = "maxplaybackrate=8000;sprop-maxcapturerate=8000;stereo=0;useinbandfec=0"

    def coder(self) -> OpusCoder:
        return OpusCoder()


OPUS: Final = OpusCodec()


class OpusCoder:
    """Encoder and decoder of one call."""

    def __init__(self) -> None:
        library: Any = importlib.import_module("opuslib_next")
        self._error = library.OpusError
        self._encoder = library.Encoder(RATE, 1, "voip")
        self._encoder.bitrate = BITRATE
        self._decoder = library.Decoder(RATE, 1)

    def encode(self, samples: array[int]) -> bytes:
        """2.5, 5, 10, 20, 40 or 60 ms."""
        return bytes(self._encoder.encode(samples.tobytes(), len(samples)))

    def decode(self, data: bytes) -> array[int]:
        """The samples of one packet.

        Raises:
            RemoteProtocolError: ``rtp-opus``: it is none.
        """
        try:
            return array("h", bytes(self._decoder.decode(data, LONGEST)))
        except self._error as error:
            raise RemoteProtocolError("rtp-opus", str(error)) from None
