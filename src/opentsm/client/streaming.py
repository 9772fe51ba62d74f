"""How a client's streams are to be: the arguments of ``connect`` that are about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opentsm.errors import ConfigError
from opentsm.types import Redundancy

_MIN_AGE: Final = 0.02
_MAX_AGE: Final = 10.0


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """A client's streams.

    Args:
        redundancy: media on several of them; None: mode AUTO decides.
        congestion_control: name of the kernel's algorithm, or None for its default.
    """

    redundancy: Redundancy | None = None
    congestion_control: str | None = None


def make_stream_settings(
    redundancy: Redundancy | str | None,
    congestion_control: str | None,
) -> StreamSettings:
    """The arguments of ``connect``.

    Raises:
        ConfigError: one of them cannot be.
    """
    if congestion_control is not None and not congestion_control.replace("_", "").isalnum():
        raise ConfigError(f"congestion_control: {congestion_control!r}", hint="a name such as bbr or cubic")
    return StreamSettings(parse_redundancy(redundancy), congestion_control)


def check_media_age(seconds: float) -> float:
    """The age if it can be one.

    Raises:
        ConfigError: it cannot.
    """
    if not _MIN_AGE <= seconds <= _MAX_AGE:
        raise ConfigError(f"media age: {_MIN_AGE:g} to {_MAX_AGE:g} s")
    return seconds


def parse_redundancy(given: Redundancy | str | None) -> Redundancy | None:
    """``auto`` (or None), ``off``, ``fan-out:N``, ``load-balance:N``.

    Raises:
        ConfigError: it is none of these.
    """
    if given is None or isinstance(given, Redundancy):
        return given
    if given.strip().lower() == "auto":
        return None
    try:
        return Redundancy.parse(given)
    except ValueError as error:
        hint = "or auto: on while UDP is blocked and the stream is late"
        raise ConfigError(f"redundancy: {error}", hint=hint) from None
