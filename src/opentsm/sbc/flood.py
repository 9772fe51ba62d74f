"""How many messages one source may send: more are dropped unread, so that they cost nobody else."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

RATE: Final = 500.0
"""Cost a second from one inner address: a trunk that sets up and ends 50 calls a second."""

BURST: Final = 1500.0
"""Cost at once: a trunk that comes back and refreshes everything."""

BYTES_PER_COST: Final = 2048
"""A message costs 1, and 1 more for each so many bytes: reading it takes time by its length."""

MAX_SOURCES: Final = 20_000
"""Sources remembered; the one longest silent is forgotten first, its bucket being full anyway."""


class FloodGate:
    """A token bucket per source address."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, now: float, source: str, size: int = 0) -> bool:
        """Whether a message of ``size`` bytes from this source is to be read."""
        cost = 1.0 + size / BYTES_PER_COST
        left, since = self._buckets.get(source, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        admitted = left >= cost
        self._buckets[source] = (left - cost if admitted else left, now)
        self._buckets.move_to_end(source)
        while len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return admitted
