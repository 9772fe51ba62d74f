"""What happened to each packet of a call, for reports and pictures. Times are those of the caller's clock.

Both ends of a call on one machine share the clock, so a sender's records and a receiver's, joined by SSRC and
sequence number, give each packet's delay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opentsm.types import Path

MAX_RECORDS: Final = 400_000
"""Packets remembered in each direction: two hours of a call. Later ones are counted but not listed."""


@dataclass(frozen=True, slots=True)
class SentPacket:
    """A packet that was handed to the tunnel at ``at``; ``path``: the one its flow was on."""

    at: float
    sequence: int
    timestamp: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class ReceivedPacket:
    """A packet that came at ``at``; ``in_time``: before its moment in the play-out buffer.

    ``sequence`` is extended (it does not wrap). ``path``: None where the tunnel does not say.
    """

    at: float
    sequence: int
    timestamp: int
    path: Path | None
    in_time: bool


@dataclass(frozen=True, slots=True)
class PathChange:
    """The switch was turned, or the flow has moved."""

    at: float
    what: str
