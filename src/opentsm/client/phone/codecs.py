"""The codecs a phone can speak: G.711 always, Opus where its library is installed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, Protocol

from opentsm.client.phone import opus
from opentsm.client.phone.g711 import LAWS, RATE
from opentsm.errors import ConfigError


class Coder(Protocol):
    """A codec's state in one call. Samples are at 8 kHz, typecode ``h``."""

    def encode(self, samples: array[int]) -> bytes: ...
    def decode(self, data: bytes) -> array[int]:
        """Raises RemoteProtocolError where the bytes are none of this codec's."""


class Codec(Protocol):
    """A codec as SDP and RTP know it.

    Attributes:
        encoding: its name in capitals. clock: of its RTP time stamps, Hz, a multiple of 8000.
        payload_type: the one we offer. channels: as its rtpmap has it. parameters: its fmtp; "": none.
    """

    @property
    def encoding(self) -> str: ...
    @property
    def clock(self) -> int: ...
    @property
    def payload_type(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def parameters(self) -> str: ...
    def coder(self) -> Coder: ...


CODECS: Final[dict[str, Codec]] = {
    **LAWS,
    **({opus.OPUS.encoding: opus.OPUS} if opus.why_not() is None else {}),
}
"""What this machine can speak."""

G711: Final = tuple(LAWS)

ORDERS: Final = {"g711": G711, "opus": (opus.OPUS.encoding, *G711)}
"""What is offered, by the name people give it; the far end takes the first that it can speak."""


def order(name: str) -> tuple[str, ...]:
    """The codecs to offer, the wanted one first and G.711 in any case.

    Raises:
        ValueError: there is no such name. ConfigError: its library is not installed.
    """
    if name not in ORDERS:
        raise ValueError(f"{name!r}: {' or '.join(ORDERS)}")
    missing = [codec for codec in ORDERS[name] if codec not in CODECS]
    if missing:
        raise ConfigError(
            f"this machine cannot speak {missing[0].title()}: {opus.why_not()}",
            hint="pip install 'opentsm[opus]', or leave --codec away",
        )
    return ORDERS[name]


def by_map(encoding: str, clock: str, channels: Sequence[str]) -> str | None:
    """A codec's name, from the parts of an rtpmap in capitals (RFC 8866 section 6.6).

    Returns:
        None: we cannot speak it.
    """
    codec = CODECS.get(encoding)
    if codec is None or clock != str(codec.clock):
        return None
    said = list(channels) or ["1"]
    return encoding if said == [str(codec.channels)] else None


def scale(codec: Codec) -> int:
    """Units of the codec's clock in one sample at 8 kHz."""
    return codec.clock // RATE
