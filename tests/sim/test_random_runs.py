"""Hundreds of random lives of one client and one server: switches, cuts, blocks, restarts, all at once.

Each run is made by its seed alone. To see one again:
OPENTSM_SIM_SEED=123 pytest tests/sim/test_random_runs.py
OPENTSM_SIM_RUNS sets how many seeds each test tries.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from opentsm.limits import DDT_LINGER, KEEPALIVE_TIMER_STREAM
from opentsm.protocol import actions as a
from opentsm.protocol.server import ServerSettings
from opentsm.protocol.states import Client, ClientDdt, Server, ServerDdt
from opentsm.types import NO_REDUNDANCY, Code, Flow, Path, PathMode, Protocol, Redundancy, Service
from tests.sim.network import Weather
from tests.sim.sides import ServerOwner, World

RUNS = int(os.environ.get("OPENTSM_SIM_RUNS", "150"))
ONLY = os.environ.get("OPENTSM_SIM_SEED")
BLOCKS = 10

WITH_DDT = ServerSettings(services=frozenset({Service.DDT, Service.SIP, Service.REDUNDANCY}))
WISHES = tuple(map(Redundancy.parse, ("off", "fan-out:2", "fan-out:4", "load-balance:2", "load-balance:3")))
WITHOUT_DDT = ServerSettings(services=frozenset({Service.SIP}))
FLOWS = tuple(Flow(Protocol.UDP, 4000 + 2 * n, ipv6=n == 3) for n in range(4))


def seeds(block: int) -> list[int]:
    return [int(ONLY)] if ONLY else list(range(block, RUNS, BLOCKS))


def each_seed(block: int, run: Callable[[int], None]) -> None:
    for seed in seeds(block):
        try:
            run(seed)
        except Exception as error:
            error.add_note(f"seed {seed}: OPENTSM_SIM_SEED={seed} pytest tests/sim/test_random_runs.py")
            raise


def flip(world: World, chance: random.Random) -> None:
    """One random thing an application does."""
    flow = chance.choice(FLOWS)
    what = chance.random()
    if what < 0.15:
        world.act("set_redundancy", chance.choice(WISHES))
    elif what < 0.7:
        world.act("set_mode", flow, chance.choice(list(PathMode)))
    elif what < 0.8:
        world.act("unset", flow)
    elif what < 0.9:
        world.act("use_path", flow, chance.choice(list(Path)))
    elif what < 0.95:
        judge_downlink(world, chance)
    else:
        world.act("want_ddt", chance.random() < 0.5)


def judge_downlink(world: World, chance: random.Random) -> None:
    """The server's judgement of what it sends, as one of its own; the last one is remembered."""
    world.downlink = chance.choice(list(Path))
    for owner in world.live_sessions():
        owner.session.use_path(world.downlink, world.clock.now, "judged")
        owner.settle()


def talk(world: World, seconds: float, every: float) -> None:
    """Media of every flow in both directions, at a steady pace."""
    clock = world.clock
    until = clock.now + seconds

    def packet() -> None:
        for flow in FLOWS:
            world.client.plane.send(flow)
            for owner in world.live_sessions():
                owner.plane.send(flow)
        if clock.now < until:
            clock.after(every, packet)

    packet()


def check_no_copies(world: World, owners: list[ServerOwner]) -> None:
    for plane in (world.client.plane, *(owner.plane for owner in owners)):
        for flow, numbers in plane.received.items():
            assert len(numbers) == len(set(numbers)), f"{flow} was delivered twice"


def check_in_force(world: World, *, ddt: bool) -> None:
    """Everything the application wishes is so, on both sides, and nothing else is."""
    client, peer = world.client, world.peer
    assert client.session.state is Client.ACTIVE
    assert peer.session.state is Server.ACTIVE
    assert client.plane.addresses == peer.plane.addresses
    wanting = {flow for flow in FLOWS if client.session.mode(flow) is not PathMode.STREAM}
    for flow in wanting if ddt else ():
        auto = client.session.mode(flow) is PathMode.AUTO
        wanted = world.chosen.get(flow) if auto else Path.DATAGRAM
        if wanted is not None:  # else nobody has judged since it stood somewhere
            assert client.session.path(flow) is wanted, f"{flow} is not where it was wished"
        judged = Path(int(peer.plane.rows[flow]))
        assert judged is (world.downlink if auto else Path.DATAGRAM)
    for flow in set(FLOWS) - wanting if ddt else FLOWS:
        assert client.session.path(flow) is Path.STREAM
        assert peer.plane.rows.get(flow, a.SteerMode.STREAM) is a.SteerMode.STREAM
    check_streams(world, offered=ddt)
    if ddt and (wanting or world.whole):
        assert client.session.ddt_state is ClientDdt.UP
        assert peer.session.ddt_state is ServerDdt.UP
        assert client.plane.usable(Path.DATAGRAM) is peer.plane.usable(Path.DATAGRAM) is not None
    else:
        assert client.session.ddt_state in (ClientDdt.ABSENT, ClientDdt.UNAVAILABLE)
        assert peer.session.ddt_state is ServerDdt.ABSENT
        assert Path.DATAGRAM not in client.plane.tunnels


def check_streams(world: World, *, offered: bool) -> None:
    """There are as many streams as are wished, both sides know the same ones, and spread media alike."""
    client, peer = world.client, world.peer
    wish = client.session.streams.wish if offered else NO_REDUNDANCY
    assert client.session.streams.up == wish.streams - 1
    assert sorted(client.plane.extras) == sorted(peer.plane.extras)
    assert len(client.plane.used) == len(peer.plane.used) == wish.streams - 1
    assert client.plane.spread is peer.plane.spread is wish.spread
    assert not world.server.joins, "a reservation is left"


def tracked(world: World) -> None:
    """Keep a plain model of the application's calls beside the real thing."""
    act = world.act

    def acting(method: str, *args: object) -> None:
        if method == "use_path" and isinstance(args[0], Flow) and isinstance(args[1], Path):
            if world.client.session.mode(args[0]) is PathMode.AUTO:
                world.chosen[args[0]] = args[1]
        elif method in ("set_mode", "unset") and isinstance(args[0], Flow):
            if args[1:] != (PathMode.AUTO,):
                world.chosen.pop(args[0], None)
        elif method == "want_ddt":
            world.whole = bool(args[0])
        act(method, *args)

    world.act = acting  # type: ignore[method-assign]


def calm_run(seed: int) -> None:
    """A network that only delays, and reorders datagrams: not one packet may be lost or doubled."""
    world = World(seed, settings=WITH_DDT, weather=Weather(delay=(0.005, 0.25)))
    tracked(world)
    peer = world.connect()
    talk(world, 20.0, 0.05)
    for _ in range(40):
        world.clock.run(world.random.choice((0.0, 0.01, 0.3, 1.0)))
        flip(world, world.random)
    world.clock.run(20.0)
    judge_downlink(world, world.random)
    world.clock.run(20.0)
    check_no_copies(world, [peer])
    for plane, other in ((world.client.plane, peer.plane), (peer.plane, world.client.plane)):
        assert not plane.drops, plane.drops
        for flow in FLOWS:
            numbers = [number for _, number in sorted(other.received[flow])]
            assert numbers == list(range(1, plane.sent[flow] + 1))
    check_in_force(world, ddt=True)
    assert not world.counts()


def disturb(world: World, chance: random.Random) -> None:
    """One random thing that happens to a network or a server."""
    what = chance.random()
    weather = world.weather
    if what < 0.25:
        weather.blocked = not weather.blocked
    elif what < 0.45:
        world.cut(server_knows=chance.random() < 0.6)
    elif what < 0.55:
        weather.down = not weather.down
    elif what < 0.75:
        weather.loss = chance.choice((0.0, 0.02, 0.3))
        weather.duplication = chance.choice((0.0, 0.1))
        weather.delay = chance.choice(((0.005, 0.01), (0.05, 0.3), (0.4, 0.8)))
    elif what < 0.78:
        world.cut_extra()
    elif what < 0.8:
        world.server.restart()
    elif what < 0.85 and world.server.owners:
        owner = chance.choice(world.server.owners)
        owner.session.terminate(Code.SHUTTING_DOWN, world.clock.now)
        owner.settle()
    elif tunnel := world.client.plane.tunnels.get(Path.DATAGRAM):
        world.client.ended(tunnel, "reset") if chance.random() < 0.5 else tunnel.close(1)


def heal(world: World) -> None:
    weather = world.weather
    weather.blocked = weather.down = False
    weather.loss = weather.duplication = 0.0
    weather.delay = (0.01, 0.03)


def stormy_run(seed: int, settings: ServerSettings = WITH_DDT) -> None:
    """Anything goes; when the weather is fine again, so is everything else."""
    world = World(seed, settings=settings)
    tracked(world)
    world.connect()
    owners: list[ServerOwner] = []
    talk(world, 60.0, 0.2)
    for _ in range(60):
        world.clock.run(world.random.choice((0.0, 0.05, 0.5, 3.0)))
        owners += [owner for owner in world.server.owners if owner not in owners]
        if world.random.random() < 0.6:
            flip(world, world.random)
        else:
            disturb(world, world.random)
    heal(world)
    world.clock.run(200.0)
    judge_downlink(world, world.random)
    world.clock.run(1.0)
    check_no_copies(world, owners)
    check_in_force(world, ddt=Service.DDT in settings.services)
    assert world.client.messages < 3000
    assert world.client.opened < 200
    world.clock.run(KEEPALIVE_TIMER_STREAM + WITH_DDT.persistence + DDT_LINGER)
    assert world.server.owners == [world.peer], "sessions nobody came back for are over"
    assert len(world.server.leased) == 1, "and their addresses are back in the pool"


@pytest.mark.parametrize("block", range(BLOCKS))
def test_nothing_is_lost_or_doubled_on_a_network_that_only_delays(block: int) -> None:
    each_seed(block, calm_run)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_storm_ends_with_the_applications_wishes_in_force(block: int) -> None:
    each_seed(block, stormy_run)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_without_the_service_everything_stays_on_the_stream_whatever_happens(block: int) -> None:
    each_seed(block, lambda seed: stormy_run(seed, WITHOUT_DDT))
