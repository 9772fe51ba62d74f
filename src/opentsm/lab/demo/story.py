"""The calls: the same speech on the stream, moved to the datagram tunnel in mid-call, through a UDP block."""

from __future__ import annotations

import asyncio
import enum
import gc
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from opentsm.client.phone.call import Call
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.speech import speech
from opentsm.client.tunnel import Tunnel
from opentsm.lab.demo.measure import Fate, Numbers, between, fates, numbers, recording_score
from opentsm.lab.demo.phones import PLAYOUT, Callee, a_phone, call_settings
from opentsm.lab.demo.stage import ALICE, Stage, Wire
from opentsm.lab.waiting import until
from opentsm.types import Path, PathMode

DRAIN: Final = 0.8
"""Seconds between the last packet that counts and hanging up: what is on its way still counts."""

REFRESH: Final = 0.5
"""Seconds between two looks at a running call."""

HEARD: Final = 25
"""Packets each side must have heard before anything is measured: half a second."""


class Action(enum.Enum):
    """What happens at the beginning of a stretch."""

    NOTHING = "nothing"
    DDT = "the media switch is turned"
    BLOCK = "UDP is blocked"
    UNBLOCK = "UDP passes again"


@dataclass(frozen=True, slots=True)
class Stretch:
    """So many seconds of talking after an action."""

    title: str
    seconds: float
    action: Action = Action.NOTHING


@dataclass(frozen=True, slots=True)
class Part:
    """One call. ``coding``: redundancy on the datagram tunnel; see ``Tunnel.set_coding``."""

    letter: str
    title: str
    mode: PathMode
    stretches: tuple[Stretch, ...]
    coding: str = "off"

    @property
    def seconds(self) -> float:
        return sum(stretch.seconds for stretch in self.stretches)


ON_STREAM: Final = Part("a", "forced onto the stream", PathMode.STREAM, (Stretch("on the stream", 16.0),))
SWITCHED: Final = Part(
    "b",
    "the datagram tunnel switched on in mid-call",
    PathMode.STREAM,
    (Stretch("before the switch", 7.0), Stretch("after the switch", 14.0, Action.DDT)),
)
BLOCKED: Final = Part(
    "c",
    "UDP is blocked silently, and later passes again",
    PathMode.DATAGRAM,
    (
        Stretch("on the DDT", 6.0),
        Stretch("UDP blocked", 6.0, Action.BLOCK),
        Stretch("UDP open again", 8.0, Action.UNBLOCK),
    ),
)
PROTECTED: Final = Part(
    "d",
    "the datagram tunnel with redundancy, as much as the measured loss asks for",
    PathMode.DATAGRAM,
    (Stretch("loss is measured", 4.0), Stretch("with redundancy", 12.0)),
    "auto",
)


def script(factor: float = 1.0, *, network: bool = True) -> list[Part]:
    """The calls of a demonstration.

    Args:
        factor: how long they last beside the usual 73 s.
        network: there is one, with a firewall that can block and packets that are lost.
    """
    parts = [ON_STREAM, SWITCHED, *([BLOCKED, PROTECTED] if network else [])]
    return [
        replace(part, stretches=tuple(replace(s, seconds=s.seconds * factor) for s in part.stretches))
        for part in parts
    ]


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a call: seconds since its first packet."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch as it was: seconds since the call's first packet."""

    title: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Direction:
    """Speech one way.

    Args:
        recording: what was heard, from ``heard_from`` samples into the speech on.
        spans: what was measured, in the order of the call's spans.
        skipped: packets that were not sent because this machine was too busy.
    """

    name: str
    packets: list[Fate]
    recording: array[int]
    heard_from: int
    spans: list[Numbers]
    skipped: int


@dataclass(frozen=True, slots=True)
class Played:
    """One call, measured.

    Args:
        wire: packets outside Alice's firewall by kind.
    """

    part: Part
    marks: list[Mark]
    spans: list[Span]
    directions: list[Direction]
    wire: Wire


class Teller(Protocol):
    """Where the story is told while it happens."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def status(self, line: str) -> None:
        """A line that the next one replaces."""


@dataclass
class Result:
    """What a run has shown."""

    parts: list[Played] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    left_out: Sequence[str] = ()


def play(stage: Stage, parts: Sequence[Part], teller: Teller) -> Result:
    """Place the calls and measure them.

    Raises:
        OpenTsmError, TimeoutError: a call did not come about.
    """
    result = Result(left_out=stage.left_out)
    with Callee(stage) as bob:
        stage.host(ALICE).call(asyncio.run, _play(stage, bob, parts, teller, result))
    result.records = stage.server.call_records()
    return result


async def _play(stage: Stage, bob: Callee, parts: Sequence[Part], teller: Teller, result: Result) -> None:
    async with a_phone(stage, ALICE) as (tunnel, phone):
        result.addresses = {
            "alice": str(tunnel.inner_address),
            "alice seen by the server": _seen(tunnel),
            "bob": await asyncio.to_thread(bob.ready),
        }
        teller.say(
            f"both phones are registered: alice at {tunnel.inner_address} inside the tunnel "
            f"(the server sees {_seen(tunnel)}), bob at {result.addresses['bob']}"
        )
        for part in parts:
            teller.say(f"({part.letter}) {part.title}: {part.seconds:.0f} s of speech both ways")
            tunnel.set_coding(part.coding)
            bob.expect(part.mode, part.coding)
            with _no_collection():
                raw = await _Performance(stage, phone, bob, part, teller).play()
            teller.status(f"({part.letter}) scoring the recordings ...")
            played = await asyncio.to_thread(raw)
            result.parts.append(played)
            for line in summary(played):
                teller.say(f"    {line}")


class _Performance:
    """One call as it happens."""

    def __init__(self, stage: Stage, phone: Phone, bob: Callee, part: Part, teller: Teller) -> None:
        self._stage = stage
        self._phone = phone
        self._bob = bob
        self._part = part
        self._teller = teller
        self._marks: list[Mark] = []
        self._spans: list[Span] = []

    async def play(self) -> Callable[[], Played]:
        """The call from INVITE to BYE. Returns what measures it, which takes a while."""
        self._stage.weather()
        with self._stage.watch() as wire:
            call = await self._phone.call("bob", call_settings(self._part.mode))
            await call.answered()
            there = await asyncio.to_thread(self._bob.next_call)
            for end in (call, there):
                await until(lambda end=end: len(end.media.received) >= HEARD, what="speech")  # type: ignore[misc]
            if self._part.mode is PathMode.DATAGRAM:
                await _on_datagram(call, there)
            for stretch in self._part.stretches:
                await self._act(stretch.action, call, there)
                await self._talk(stretch, call)
            await asyncio.sleep(DRAIN)
            await call.hang_up()
            await until(lambda: there.report().ended_by, what="the other end of the call")
        return lambda: self._measure(call, there, wire)

    async def _act(self, action: Action, call: Call, there: Call) -> None:
        if action is Action.DDT:
            self._mark(call, "switch turned")
            call.set_mode(PathMode.DATAGRAM)
            self._bob.set_mode(there, PathMode.DATAGRAM)
            await _on_datagram(call, there)
            self._mark(call, "on the datagram tunnel")
        elif action is Action.BLOCK:
            self._mark(call, "UDP blocked")
            await self._stage.block(True)
        elif action is Action.UNBLOCK:
            await self._stage.block(False)
            self._mark(call, "UDP passes again")

    async def _talk(self, stretch: Stretch, call: Call) -> None:
        begin = self._now(call)
        end = begin + stretch.seconds
        while (now := self._now(call)) < end:
            self._teller.status(self._line(stretch, call, end - now))
            await asyncio.sleep(min(REFRESH, end - now))
        self._spans.append(Span(stretch.title, begin, end))

    def _line(self, stretch: Stretch, call: Call, left: float) -> str:
        report = call.report()
        mos = "-" if report.mos is None else f"{report.mos:.2f}"
        return (
            f"({self._part.letter}) {stretch.title}, {left:.0f} s left: alice speaks on the "
            f"{call.path.name.lower()} tunnel and hears MOS {mos} so far, "
            f"{report.lost_percent + report.late_percent:.1f} % lost or late"
        )

    def _now(self, call: Call) -> float:
        return time.monotonic() - call.media.sent[0].at

    def _mark(self, call: Call, label: str) -> None:
        self._marks.append(Mark(self._now(call), label))

    def _measure(self, call: Call, there: Call, wire: Wire) -> Played:
        origin = call.media.sent[0].at
        ends = (("alice to bob", call, there, True), ("bob to alice", there, call, False))
        directions = [
            self._direction(name, speaker, listener, origin, outward)
            for name, speaker, listener, outward in ends
        ]
        return Played(self._part, self._marks, self._spans, directions, wire)

    def _direction(self, name: str, speaker: Call, listener: Call, origin: float, outward: bool) -> Direction:
        sent, received = speaker.media.sent, listener.media.received
        # What was said while hanging up is no part of the story: nobody was listening any more.
        packets = between(fates(sent, received, origin=origin, outward=outward), 0.0, self._spans[-1].end)
        recording = listener.recording
        heard_from = (received[0].timestamp - sent[0].timestamp) % (1 << 32)
        spans = []
        for span in self._spans:
            inside = between(packets, span.begin, span.end)
            score = recording_score(speech(), recording, inside, heard_from)
            spans.append(numbers(inside, PLAYOUT, score))
        return Direction(name, packets, recording, heard_from, spans, speaker.media.numbers.skipped)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Both phones live in this process: a collection of garbage would stop both at once, and be measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _seen(tunnel: Tunnel) -> str:
    """What the server knows of where a client is."""
    seen = tunnel.observed_address
    return "nothing" if seen is None else f"{seen[0]} port {seen[1]}"


async def _on_datagram(call: Call, there: Call) -> None:
    for end in (call, there):
        await until(lambda end=end: end.path is Path.DATAGRAM, within=30, what="the datagram tunnel")  # type: ignore[misc]


def summary(played: Played) -> list[str]:
    """What a call showed, a line for each stretch and direction."""
    return [
        f"{span.title}, {direction.name}: "
        f"{measured.missed_percent:.1f} % lost or late, MOS {measured.mos:.2f}"
        for at, span in enumerate(played.spans)
        for direction in played.directions
        for measured in (direction.spans[at],)
    ]
