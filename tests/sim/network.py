"""A fake clock and a bad network with a seed: stream pipes that can be cut, datagram pipes that lose."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from opentsm.types import Path, Tsid


class Clock:
    """Virtual time: callbacks in order of time, and of scheduling where times are equal."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = until


@dataclass
class Weather:
    """What the network is like at this moment.

    ``blocked``: no datagram passes. ``down``: no new stream can be connected.
    """

    delay: tuple[float, float] = (0.01, 0.02)
    loss: float = 0.0
    duplication: float = 0.0
    blocked: bool = False
    down: bool = False


class End(Protocol):
    """What a pipe tells the program at one of its ends."""

    def arrived(self, tunnel: Tunnel, item: Any) -> None: ...
    def ended(self, tunnel: Tunnel, reason: str) -> None: ...


@dataclass(eq=False)
class Tunnel:
    """One outer connection. ``ends[0]`` is the client's, ``ends[1]`` the server's."""

    path: Path
    clock: Clock
    random: random.Random
    weather: Weather
    ends: list[End | None]
    tsid: Tsid | None = None
    binding: bytes = bytes(32)
    alive: list[bool] = field(default_factory=lambda: [True, True])
    swallowed: bool = False
    _last: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _records: int = 0
    _seen: set[int] = field(default_factory=set)

    def send(self, side: int, item: Any) -> None:
        """One frame from the end ``side`` to the other."""
        if not self.alive[side]:
            return
        if self.path is Path.STREAM:
            self._send_in_order(side, item)
        else:
            self._send_if_lucky(side, item)

    def _send_in_order(self, side: int, item: Any) -> None:
        when = max(self.clock.now + self.random.uniform(*self.weather.delay), self._last[side])
        self._last[side] = when
        self.clock.at(when, lambda: self._deliver(side, item))

    def _send_if_lucky(self, side: int, item: Any) -> None:
        self._records += 1
        record = self._records
        copies = 1 + (self.random.random() < self.weather.duplication)
        for _ in range(copies):
            if self.swallowed or self.weather.blocked or self.random.random() < self.weather.loss:
                continue
            delay = self.random.uniform(*self.weather.delay)
            self.clock.after(delay, lambda: self._deliver_once(side, record, item))

    def _deliver_once(self, side: int, record: int, item: Any) -> None:
        """DTLS drops replayed records; so does this."""
        if record not in self._seen:
            self._seen.add(record)
            self._deliver(side, item)

    def _deliver(self, side: int, item: Any) -> None:
        other = 1 - side
        end = self.ends[other]
        if self.alive[other] and end is not None:
            end.arrived(self, item)

    def close(self, side: int, reason: str = "peer-closed") -> None:
        """This end closes; the other hears of it behind what was sent (a datagram goodbye may be lost)."""
        if not self.alive[side]:
            return
        self.alive[side] = False
        other = 1 - side
        if self.path is Path.STREAM:
            when = max(self.clock.now + self.random.uniform(*self.weather.delay), self._last[side])
            self.clock.at(when, lambda: self._end(other, reason))
        elif not self.weather.blocked and self.random.random() >= self.weather.loss:
            self.clock.after(self.random.uniform(*self.weather.delay), lambda: self._end(other, reason))

    def cut(self, *, server_knows: bool) -> None:
        """The connection breaks: what is on the wire is gone; the server may not notice for long."""
        self._last = [float("inf")] * 2  # whatever is still sent never arrives
        for side in (0, 1) if server_knows else (0,):
            self._end(side, "reset")
        if not server_knows:
            self.ends[0] = None

    def swallow(self) -> None:
        """A box on the way takes everything from now on and delivers nothing; no end is told."""
        self._last = [float("inf")] * 2
        self.swallowed = True

    def _end(self, side: int, reason: str) -> None:
        end = self.ends[side]
        if self.alive[side] and end is not None:
            self.alive[side] = False
            end.ended(self, reason)
