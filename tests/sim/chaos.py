"""One half of the protocol against a peer, a network and an application that do anything that may happen, at
any time: each step is one input, answers come late, twice, or with any code. What must hold, holds after each
step. The halves themselves: chaos_client.py, chaos_server.py."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from ipaddress import IPv4Interface
from typing import Any

from opentsm.limits import MAX_STREAMS
from opentsm.protocol import actions as a
from opentsm.protocol.actions import SteerMode
from opentsm.types import NO_REDUNDANCY, Code, Flow, Path, Protocol, Redundancy, Spread, Tsid
from opentsm.wire import messages as m

FLOWS = tuple(Flow(Protocol.UDP, 4000 + 2 * n) for n in range(3))
LEASES = (IPv4Interface("10.0.0.2/16"), IPv4Interface("10.0.0.3/16"))
WISHES = (
    NO_REDUNDANCY,
    Redundancy(Spread.FAN_OUT, 2),
    Redundancy(Spread.LOAD_BALANCE, 2),
    Redundancy(Spread.FAN_OUT, MAX_STREAMS),
)
TICKS_AT_ONCE = 50
SUCCESS_SHARE = 0.8


class Further:
    """The further streams of a session as the user plane has them."""

    def __init__(self) -> None:
        self.reserved: set[Tsid] = set()
        self.open: set[Tsid] = set()
        self.attached: set[Tsid] = set()
        self.used: set[Tsid] = set()
        self.leaving: set[Tsid] = set()
        """Used once, and no longer."""
        self.known: list[Tsid] = []
        """All that ever were."""
        self.spread = Spread.SINGLE

    def __repr__(self) -> str:
        return f"further streams {vars(self)}"

    def carry_out(self, action: a.Action) -> None:
        match action:
            case a.OpenExtra():
                assert action.tsid not in self.open, f"{action.tsid} is opened twice"
                self.open.add(action.tsid)
                self.known.append(action.tsid)
            case a.ReserveExtra():
                self.reserved.add(action.tsid)
                self.known.append(action.tsid)
            case a.UnreserveExtra():
                self.reserved.remove(action.tsid)
            case a.AttachExtra():
                assert action.tsid not in self.attached, f"{action.tsid} is attached twice"
                self.open.add(action.tsid)
                self.attached.add(action.tsid)
            case a.UseExtra():
                assert action.tsid in self.attached, f"{action.tsid} is used before it is ours"
                now, before = (self.used, self.leaving) if action.used else (self.leaving, self.used)
                now.add(action.tsid)
                before.discard(action.tsid)
            case a.CloseExtra():
                for those in (self.open, self.attached, self.used, self.leaving):
                    those.discard(action.tsid)
            case a.SetSpread():
                self.spread = action.spread


class Half(ABC):
    """What both halves share: time, tunnels, and the checks."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 1000.0
        self.session: Any = None
        self.asked: list[tuple[Path, m.Message]] = []
        self.rows: dict[Flow, SteerMode] = {}
        self.attached: set[Path] = set()
        self.further = Further()
        self.said_further: list[tuple[Tsid, m.Message]] = []
        self.closed = True
        self.lives = 0
        # Each seed is another mood: one network falls silent all the time, one server refuses everything.
        moods = (0.0, 0.2, 1.0, 1.0, 5.0)
        self.moods = {name: weight * chance.choice(moods) for name, weight in self.weights.items()}
        self.success = chance.choice((0.5, SUCCESS_SHARE, 0.97, 1.0))
        self.flows = FLOWS[: chance.choice((1, 1, 3))]
        self.mute = chance.random() < 0.1
        self.parting = chance.choice((0.0, 1.0, 5.0))
        self.forgetful = chance.choice((0.0, 0.0, 0.02, 0.3))
        self.pauses = chance.choice(((0.001, 0.1), (0.1, 1.0), (0.001, 0.1, 1.0, 7.0, 40.0)))

    def begin(self) -> None:
        self.asked.clear()
        self.rows.clear()
        self.attached.clear()
        self.further = Further()
        self.said_further.clear()
        self.closed = False
        self.lives += 1

    def drain(self) -> None:
        """Carry out, and check what must hold."""
        while actions := self.session.actions():
            for action in actions:
                late = isinstance(action, a.ReleaseLease | a.CloseTunnel)
                assert late or not self.closed, f"{action} after the end"
                self.carry_out(action)
        for flow, mode in self.rows.items():
            on_datagram = mode is SteerMode.DATAGRAM
            assert not on_datagram or Path.DATAGRAM in self.attached, (
                f"{flow} is on a tunnel that is not there"
            )
        self.check_further()

    @abstractmethod
    def wish(self) -> Redundancy:
        """What the client wants of further streams, as this half knows it."""

    def check_further(self) -> None:
        """Further streams end with their session; what is spread has more than one stream to go by."""
        further = self.further
        assert not self.closed or not further.open | further.reserved, f"{further} after the end"
        spread = self.wish().spread if further.used else Spread.SINGLE
        assert self.closed or further.spread is spread, f"{further} for the wish {self.wish()}"
        assert len(further.open) - len(further.leaving) < MAX_STREAMS, further

    def carry_out(self, action: a.Action) -> None:
        match action:
            case a.Send():
                self.asked = [*self.asked[-20:], (action.path, action.message)]
            case a.Steer():
                self.rows[action.flow] = action.mode
            case a.Unsteer():
                del self.rows[action.flow]
            case a.AttachDatagram():
                self.attached.add(Path.DATAGRAM)
            case a.CloseTunnel():
                self.attached.discard(action.path)
            case a.SendExtra():
                assert action.tsid in self.further.open, f"{action} on a stream that is not there"
                self.said_further = [*self.said_further[-20:], (action.tsid, action.message)]
            case a.SessionClosed():
                self.closed = True
                self.rows.clear()
            case _:
                self.further.carry_out(action)

    def wait(self) -> None:
        """Time passes, often just until the next timer."""
        deadline = self.session.deadline()
        if deadline is not None and self.chance.random() < 0.6:
            self.now = max(self.now, deadline.at)
        else:
            self.now += self.chance.choice(self.pauses)
        for _ in range(TICKS_AT_ONCE):
            deadline = self.session.deadline()
            if self.closed or deadline is None or deadline.at > self.now:
                return
            self.session.tick(self.now)
            self.drain()
        raise AssertionError(f"the deadline does not move on: {deadline}")

    def code(self) -> Code:
        if self.chance.random() < self.success:
            return Code.SUCCESS
        codes: list[Code] = [*Code, *[Code.RESUME_REFUSED] * 3]
        return self.chance.choice(codes)

    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.closed and self.chance.random() < 0.5:  # else what comes too late comes
                self.begin()
            if self.session is None:
                continue
            name = self.chance.choices(list(self.moods), list(self.moods.values()))[0]
            getattr(self, name)()
            self.drain()

    weights: dict[str, int] = {}  # noqa: RUF012 - one per class, never written

    def lose(self) -> None:
        path = self.chance.choice(list(Path))
        if path is Path.DATAGRAM:
            self.attached.discard(path)
            for flow in self.rows:
                # The user plane falls back by itself; the session follows at once.
                self.rows[flow] = SteerMode.STREAM
        self.session.path_lost(path, "reset", self.now)

    def silence(self) -> None:
        self.session.path_silent(self.chance.choice((Path.DATAGRAM, Path.DATAGRAM, Path.STREAM)), self.now)

    def life(self) -> None:
        self.session.path_alive(Path.DATAGRAM, self.now)

    def lose_further(self) -> None:
        """A further stream is reset, falls silent, or could not be made; or it was gone already."""
        if self.further.known:
            self.session.streams.lost(self.some_further(), self.chance.choice(("reset", "silent")), self.now)

    def some_further(self) -> Tsid:
        """Mostly one that is there."""
        there = sorted(self.further.open)
        return self.chance.choice(there if there and self.chance.random() < 0.9 else self.further.known)
