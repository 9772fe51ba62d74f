"""Many deadlines, of which only the next one matters."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SLACK: Final = 1024
"""Dead entries the heap may hold before it is worth sweeping."""


class Deadlines(Generic[K]):
    """One deadline per key; setting it again moves it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._live: dict[K, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: K) -> bool:
        return key in self._live

    def set(self, key: K, when: float) -> None:
        self._count += 1
        self._live[key] = self._count
        heapq.heappush(self._heap, (when, self._count, key))
        if len(self._heap) > 2 * len(self._live) + SLACK:
            self._heap = [item for item in self._heap if self._live.get(item[2]) == item[1]]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        self._live.pop(key, None)

    def next(self) -> float | None:
        """When the earliest is due, or None."""
        self._sweep()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> K | None:
        """The earliest that is due, which is forgotten; None if none is."""
        self._sweep()
        if not self._heap or self._heap[0][0] > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._live[key]
        return key

    def _sweep(self) -> None:
        while self._heap and self._live.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
