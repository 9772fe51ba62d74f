"""A call on random networks: reflex and sessions together, with what must hold for a listener.

The reflex of the user plane is modelled after ``rust/src/tables/doubt.rs`` (silence, alert, both paths, first
copy counts); sessions, tables and the proving of a DDT are the real ones. Each run is made by its seed alone:
OPENTSM_SIM_SEED=123 pytest tests/sim/test_random_networks.py
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from opentsm.protocol.server import ServerSettings
from opentsm.protocol.states import ClientDdt
from opentsm.types import Flow, Path, PathMode, Protocol, Service
from tests.sim.network import Weather
from tests.sim.seeds import FAILED_ONCE, ONLY, RUNS, named
from tests.sim.sides import Owner, World

FLOW = Flow(Protocol.UDP, 4000)
WITH_DDT = ServerSettings(services=frozenset({Service.DDT, Service.SIP}))
PACKET = 0.02
SUSPICION = 0.08
DOUBT_LASTS = 0.5
EXPECTING = 1.5
LOST_PER_CHANGE = 0.3
"""Seconds of media one change of the network may cost: the reflex, and the longest way there and back."""

SWITCHES_PER_MINUTE = 12
"""Of one call, whatever UDP does: falls cost ever longer proofs (client_ddt.DDT_PROVING_MIN)."""

BLOCKS = 10


@dataclass(frozen=True)
class Numbered:
    """One packet of media, as the application sent it."""

    number: int
    copy: bool


@dataclass(eq=False)
class Voice:
    """One side's media and its reflex."""

    owner: Owner
    sent: int = 0
    heard: set[int] = field(default_factory=set)
    delivered: list[int] = field(default_factory=list)
    doubt_until: float = 0.0
    last_datagram: float = float("-inf")
    last_media: float = float("-inf")
    last_sent: float = float("-inf")
    last_alert: float = float("-inf")

    def send(self, now: float) -> None:
        """The next packet, by the path of its row, or by both while in doubt."""
        plane = self.owner.plane
        self.sent += 1
        datagram, stream = plane.usable(Path.DATAGRAM), plane.usable(Path.STREAM)
        if datagram is not None and int(plane.rows.get(FLOW, 0)) == Path.DATAGRAM:
            if now - self.last_sent > EXPECTING:
                self.doubt_until = now + DOUBT_LASTS
            self.last_sent = now
            datagram.send(plane.side, Numbered(self.sent, copy=False))
            if now < self.doubt_until and stream is not None:
                stream.send(plane.side, Numbered(self.sent, copy=True))
        elif stream is not None:
            stream.send(plane.side, Numbered(self.sent, copy=False))
        elif datagram is not None:
            datagram.send(plane.side, Numbered(self.sent, copy=False))

    def take(self, path: Path, packet: Numbered, now: float) -> None:
        if path is Path.DATAGRAM:
            self.last_datagram = self.last_media = now
        elif packet.copy:
            self.last_media = now
        if packet.number not in self.heard:
            self.heard.add(packet.number)
            self.delivered.append(packet.number)

    def look(self, now: float) -> bool:
        """True: it is time to tell the peer that nothing is heard."""
        expecting = now - self.last_media < EXPECTING
        if not expecting or now - self.last_datagram < SUSPICION:
            return False
        self.doubt_until = now + DOUBT_LASTS
        alert = now - self.last_alert >= 0.1
        if alert:
            self.last_alert = now
        return alert


class Alert:
    """A Path Alert."""


class CallOn:
    """One call over a world whose owners' media and alerts go by the world's tunnels."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sides = (Voice(world.client), Voice(world.peer))
        self.changes: list[float] = []
        self.switches: list[float] = []
        self._path = Path.STREAM
        for mine in self.sides:
            self._hook(mine)

    def _hook(self, mine: Voice) -> None:
        arrived = mine.owner.arrived

        def take(tunnel, item):  # type: ignore[no-untyped-def]
            if isinstance(item, Numbered):
                mine.take(tunnel.path, item, self.world.clock.now)
            elif isinstance(item, Alert):
                mine.doubt_until = self.world.clock.now + DOUBT_LASTS
            else:
                if tunnel.path is Path.DATAGRAM and tunnel in mine.owner.plane.attached:
                    mine.last_datagram = self.world.clock.now
                arrived(tunnel, item)

        mine.owner.arrived = take  # type: ignore[method-assign]

    def talk(self, seconds: float) -> None:
        """Both sides, 50 packets/s."""
        clock = self.world.clock
        until = clock.now + seconds

        def tick() -> None:
            for mine in self.sides:
                mine.send(clock.now)
                stream = mine.owner.plane.usable(Path.STREAM)
                if mine.look(clock.now) and stream is not None:
                    stream.send(mine.owner.plane.side, Alert())
            path = self.world.client.session.path(FLOW)
            if path is not self._path:
                self._path = path
                self.switches.append(clock.now)
            if clock.now < until:
                clock.after(PACKET, tick)

        tick()
        clock.run(seconds)


def run(seed: int) -> CallOn:
    """One call of a minute or so on one network that changes its mind."""
    chance = random.Random(seed)
    low = chance.choice((0.002, 0.01, 0.03, 0.06))
    world = World(seed, settings=WITH_DDT, weather=Weather(delay=(low, low * 1.2)))
    world.connect()
    call = CallOn(world)
    world.act("set_mode", FLOW, PathMode.DATAGRAM)
    call.talk(3.0)
    period = chance.choice((1.8, 2.0, 2.5, 3.0))
    for _ in range(20 if chance.random() < 0.3 else 0):  # it comes and goes, like a bad antenna
        world.weather.blocked = not world.weather.blocked
        call.changes.append(world.clock.now)
        call.talk(period)
    for _ in range(chance.randrange(3, 25)):
        what = chance.random()
        if what < 0.6:
            world.weather.blocked = not world.weather.blocked
            call.changes.append(world.clock.now)
        elif what < 0.75:
            world.weather.duplication = chance.choice((0.0, 0.1))
        call.talk(chance.choice((0.1, 0.7, 2.0, 2.0, 5.0, 12.0)))
    world.weather.blocked = False
    call.changes.append(world.clock.now)
    world.weather.duplication = 0.0
    call.talk(45.0)
    return call


def check(call: CallOn) -> None:
    """What must hold for the two who talk."""
    for mine, other in (call.sides, call.sides[::-1]):
        assert len(mine.delivered) == len(set(mine.delivered)), "a frame was delivered twice"
        missing = sorted(set(range(1, other.sent - 20)) - mine.heard)
        allowed = len(call.changes) * LOST_PER_CHANGE / PACKET
        assert len(missing) <= allowed, f"{len(missing)} packets lost in {len(call.changes)} changes"
        assert longest_run(missing) * PACKET <= 2 * LOST_PER_CHANGE, "silence while the stream works"
    for at in call.switches:
        assert sum(at <= other < at + 60.0 for other in call.switches) <= SWITCHES_PER_MINUTE, "it flaps"
    assert call.world.client.session.path(FLOW) is Path.DATAGRAM, "the call is back where it belongs"
    assert call.world.client.session.ddt_state is ClientDdt.UP


def longest_run(numbers: list[int]) -> int:
    """Most numbers in a row."""
    longest, current, last = 0, 0, -1
    for number in numbers:
        current = current + 1 if number == last + 1 else 1
        longest, last = max(longest, current), number
    return longest


@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_udp_does_the_call_goes_on(block: int) -> None:
    seeds = [ONLY] if ONLY is not None else [*FAILED_ONCE["network"], *range(RUNS)][block::BLOCKS]
    for seed in seeds:
        with named(seed, "tests/sim/test_random_networks.py"):
            check(run(seed))
