"""TCP in the simulation: connections that deliver in order, in pieces of any size, until they are cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.framing import PING, Framing
from opentsm.sbc.hop import Hop
from opentsm.types import SocketAddress
from tests.sim.sbc.phone import Phone

DELAY = 0.01


class Clock(Protocol):
    def after(self, seconds: float, call: Callable[[], None]) -> None: ...


@dataclass(eq=False)
class Pipe:
    """One connection, with what each end has read so far."""

    phone: Phone
    hop: Hop
    to_sbc: Framing = field(default_factory=Framing)
    to_phone: Framing = field(default_factory=Framing)


class Pipes:
    """All connections between phones and the SBC.

    Args:
        deliver: the SBC's input. unreachable: told when no connection to a hop can be had.
    """

    def __init__(
        self,
        clock: Clock,
        seed: int,
        deliver: Callable[[Hop, bytes], None],
        unreachable: Callable[[Hop], None],
    ) -> None:
        self._clock = clock
        self._random = random.Random(seed)
        self._deliver = deliver
        self._unreachable = unreachable
        self._open: dict[Hop, Pipe] = {}
        self._next_port = 40_000
        self.refuses: set[str] = set()
        self.opened: list[Hop] = []

    def of(self, phone: Phone) -> list[Pipe]:
        return [pipe for pipe in self._open.values() if pipe.phone is phone]

    def cut(self, phone: Phone) -> None:
        """All connections of a phone are gone."""
        for pipe in self.of(phone):
            del self._open[pipe.hop]

    def from_phone(self, phone: Phone, local: SocketAddress, data: bytes) -> None:
        pipes = self.of(phone)
        if pipes:
            pipe = pipes[-1]
        else:
            self._next_port += 1
            pipe = self._add(phone, Hop("tcp", local, (phone.address, self._next_port), phone.core))
        for piece in self._pieces(data):
            self._clock.after(DELAY, lambda piece=piece: self._at_sbc(pipe, piece))  # type: ignore[misc]

    def to_phone(self, hop: Hop, data: bytes, fallback: SocketAddress | None, phones: list[Phone]) -> None:
        goal = hop if fallback is None else replace(hop, remote=fallback)
        pipe = self._open.get(hop) or self._open.get(goal)
        if pipe is None:
            listening = [p for p in phones if (p.address, p.port) == goal.remote and p.transport == "tcp"]
            if not listening or goal.remote[0] in self.refuses:
                self._clock.after(DELAY, lambda: self._unreachable(hop))
                return
            pipe = self._add(listening[0], goal)
        for piece in self._pieces(data):
            self._clock.after(DELAY, lambda piece=piece: self._at_phone(pipe, piece))  # type: ignore[misc]

    def _add(self, phone: Phone, hop: Hop) -> Pipe:
        self.opened.append(hop)
        self._open[hop] = Pipe(phone, hop)
        return self._open[hop]

    def _pieces(self, data: bytes) -> list[bytes]:
        cut = self._random.randrange(len(data) + 1)
        return [piece for piece in (data[:cut], data[cut:]) if piece]

    def _at_sbc(self, pipe: Pipe, piece: bytes) -> None:
        if self._open.get(pipe.hop) is not pipe:
            return
        pipe.to_sbc.feed(piece)
        try:
            while (message := pipe.to_sbc.next_untrusted()) is not None:
                self._deliver(pipe.hop, message)
        except RemoteProtocolError:
            self._open.pop(pipe.hop, None)

    def _at_phone(self, pipe: Pipe, piece: bytes) -> None:
        if self._open.get(pipe.hop) is not pipe:
            return
        pipe.to_phone.feed(piece)
        while (message := pipe.to_phone.next_untrusted()) is not None:
            if message is not PING:
                pipe.phone.receive(message)
