"""The addresses of one family of one pool, as integers: which are new, leased and resting.

    never used ──take──> leased ──give_back──> resting ──(quarantine over) take──> leased ...

* *never used* is not stored: a cursor walks the spans, and addresses taken ahead of it by name are
  kept as runs (``_Runs``), so an IPv6 /64 costs as little as a /28.
* *leased* is a set; *resting* is a queue ordered by time of release.
* A rested address is preferred to a never used one. So memory is bounded by the most sessions there
  ever were at once plus those released within one quarantine, never by how many came and went.

Every operation is O(1) in addresses (finding the span of a named address is a binary search over the
configured spans), except ``carry_over``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

MIN_QUARANTINE: Final = 1.0
"""Seconds an address rests even when the pool has nothing else: packets in flight have died out."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """A released address: since when it rests, and who may have it back at once."""

    since: float
    owner: Hashable | None


class _Runs:
    """Disjoint runs of integers, grown one integer at a time, in O(1): only run ends are stored."""

    def __init__(self) -> None:
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}

    def add(self, value: int) -> None:
        """Add an integer that is in no run yet, joining its neighbours' runs."""
        start = self._start_of.pop(value - 1, value)
        end = self._end_of.pop(value + 1, value)
        self._end_of[start] = end
        self._start_of[end] = start

    def pop_starting_at(self, value: int) -> int | None:
        """Remove the run that begins here and return its last integer."""
        end = self._end_of.pop(value, None)
        if end is not None:
            del self._start_of[end]
        return end


class Space:
    """The addresses of one family of one pool, as integers.

    Args:
        spans: disjoint inclusive ranges, in the order in which they are to be used up; at least one.
        quarantine: seconds a released address rests.
    """

    def __init__(self, spans: list[tuple[int, int]], quarantine: float) -> None:
        self._quarantine = quarantine
        self._spans = spans
        self._by_first = sorted(spans)
        self._span = 0
        self._cursor = spans[0][0]
        self._ahead = {first: _Runs() for first, _ in spans}
        self.leased: set[int] = set()
        self.resting: OrderedDict[int, _Rest] = OrderedDict()
        self.exhausted = 0
        self.capacity = sum(last - first + 1 for first, last in spans)
        self.high_water = self.leases = 0

    def has_free(self, now: float) -> bool:
        return self._next_new() is not None or self._has_rested(now, MIN_QUARANTINE)

    def take(self, now: float) -> int | None:
        """An address that rested the full quarantine, else a new one, else the longest rested if it
        rested ``MIN_QUARANTINE``, else None."""
        if self._has_rested(now, self._quarantine):
            value, _ = self.resting.popitem(last=False)
        elif (new := self._next_new()) is not None:
            value = new
            self._cursor += 1
        elif self._has_rested(now, MIN_QUARANTINE):
            value, _ = self.resting.popitem(last=False)
        else:
            self.exhausted += 1
            return None
        self._lease(value)
        return value

    def may_have(self, now: float, value: int, owner: Hashable | None) -> bool:
        """Whether the address is new, has rested, or rests for this owner."""
        if value in self.leased or self.span_of(value) is None:
            return False
        rest = self.resting.get(value)
        if rest is None or now - rest.since >= self._quarantine:
            return True
        return owner is not None and rest.owner == owner

    def take_exact(self, now: float, value: int, owner: Hashable | None) -> bool:
        """Take this very address; False if ``may_have`` says no."""
        if not self.may_have(now, value, owner):
            return False
        if self.resting.pop(value, None) is None:
            self._leave_new(value)
        self._lease(value)
        return True

    def give_back(self, now: float, value: int, owner: Hashable | None) -> bool:
        """Let a leased address rest, kept for its owner; False if it is not leased."""
        if value not in self.leased:
            return False
        self.leased.remove(value)
        self.resting[value] = _Rest(now, owner)
        return True

    def span_of(self, value: int) -> int | None:
        """First address of the span that holds this address."""
        index = bisect_right(self._by_first, value, key=_first)
        if index == 0 or value > self._by_first[index - 1][1]:
            return None
        return self._by_first[index - 1][0]

    def carry_over(self, old: Space) -> None:
        """Take over what ``old`` has leased or rests; linear in the addresses in use."""
        for value in old.leased:
            if self._is_new(value):
                self._leave_new(value)
                self.leased.add(value)
        for value, rest in old.resting.items():
            if self._is_new(value):
                self._leave_new(value)
                self.resting[value] = rest
        self.resting = OrderedDict(sorted(self.resting.items(), key=lambda item: item[1].since))
        self.high_water = max(self.high_water, len(self.leased))

    def _lease(self, value: int) -> None:
        self.leased.add(value)
        self.leases += 1
        self.high_water = max(self.high_water, len(self.leased))

    def _has_rested(self, now: float, least: float) -> bool:
        """Whether the address that has rested longest has done so for ``least`` seconds."""
        if not self.resting:
            return False
        oldest = self.resting[next(iter(self.resting))]
        return now - oldest.since >= least

    def _is_new(self, value: int) -> bool:
        known = value in self.leased or value in self.resting
        return not known and self.span_of(value) is not None

    def _leave_new(self, value: int) -> None:
        """A never used address is taken by name, ahead of the cursor.

        It cannot be behind it: what the cursor has passed is leased or resting for ever after.
        """
        span = self.span_of(value)
        if span is not None:
            self._ahead[span].add(value)

    def _next_new(self) -> int | None:
        """Where the cursor stands, once moved over what was taken ahead of it; None: all used up.

        A run of taken addresses is jumped in one step.
        """
        while self._span < len(self._spans):
            first, last = self._spans[self._span]
            end = self._ahead[first].pop_starting_at(self._cursor)
            if end is not None:
                self._cursor = end + 1
            if self._cursor <= last:
                return self._cursor
            self._span += 1
            if self._span < len(self._spans):
                self._cursor = self._spans[self._span][0]
        return None


def _first(span: tuple[int, int]) -> int:
    return span[0]
