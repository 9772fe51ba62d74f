"""Random lives of several clients that roam, and of a server that is killed: with a store and without.

Each run is made by its seed alone. OPENTSM_SIM_RUNS sets how many seeds each test tries; OPENTSM_SIM_SEED
picks one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from itertools import pairwise

import pytest

from opentsm.limits import DDT_LINGER, DDT_RETRY_MAX, KEEPALIVE_TIMER_STREAM
from opentsm.protocol import actions as a
from opentsm.protocol.client import ClientSettings
from opentsm.protocol.server import ServerSettings
from opentsm.protocol.states import Client, ClientDdt, Server
from opentsm.types import Flow, Path, PathMode, Protocol, Service
from tests.sim.network import Weather
from tests.sim.sides import ClientOwner, ServerOwner, World

RUNS = int(os.environ.get("OPENTSM_SIM_RUNS", "60"))
ONLY = os.environ.get("OPENTSM_SIM_SEED")
BLOCKS = 4
CLIENTS = 3
POOL = 12
FLOW = Flow(Protocol.UDP, 4000)
WITH_DDT = ServerSettings(services=frozenset({Service.SIP, Service.DDT}), epoch=1)


def each_seed(block: int, run: Callable[[int], None]) -> None:
    for seed in [int(ONLY)] if ONLY else range(block, RUNS, BLOCKS):
        try:
            run(seed)
        except Exception as error:
            error.add_note(f"seed {seed}: OPENTSM_SIM_SEED={seed} pytest tests/sim/test_roaming_runs.py")
            raise


class Town:
    """Several clients of one server."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, settings=WITH_DDT)
        self.world.server.pool = POOL
        more = [ClientOwner(self.world, ClientSettings(client_id=b"%d" % n)) for n in range(1, CLIENTS)]
        self.clients = [self.world.client, *more]
        self.excused: set[ClientOwner] = set()
        """Clients that may come back with a fresh address, as their session could not be kept."""
        for client in self.clients:
            client.connect()
        self.run(2.0)
        for client in self.clients:
            client.session.set_mode(FLOW, PathMode.DATAGRAM, self.world.clock.now)
            client.settle()
        self.run(3.0)

    def run(self, seconds: float) -> None:
        self.world.clock.run(seconds)
        self.check_addresses()

    def check_addresses(self) -> None:
        """Never two owners of one address, and the pool knows exactly what is held."""
        held = [o.session.lease for o in self.world.server.owners if o.session.lease is not None]
        addresses = [address for lease in held for address in lease.addresses]
        assert len(addresses) == len(set(addresses)), "two sessions own one address"
        leased = self.world.server.leased
        assert len(leased) == len(set(leased)), "an address was leased twice"

    def owner(self, client: ClientOwner) -> ServerOwner | None:
        configuration = client.session.configuration
        return None if configuration is None else self.world.server.find(configuration.tsid)

    def kill(self, *, store: bool) -> None:
        saved = self.world.server.saved
        for client in self.clients:
            configuration = client.session.configuration
            if not store or configuration is None or configuration.tsid not in saved:
                self.excused.add(client)
        self.world.server.restart(store=store)

    def talk(self, seconds: float, every: float = 0.1) -> None:
        until = self.world.clock.now + seconds

        def packet() -> None:
            for client in self.clients:
                client.plane.send(FLOW)
                owner = self.owner(client)
                if owner is not None and owner.session.state is Server.ACTIVE:
                    owner.plane.send(FLOW)
            if self.world.clock.now < until:
                self.world.clock.after(every, packet)

        packet()

    def disturb(self, *, store: bool) -> None:
        world, chance = self.world, self.world.random
        client = chance.choice(self.clients)
        what = chance.random()
        if what < 0.4:
            works = chance.random() < 0.4
            world.roam(client, works=works, lost=not works and chance.random() < 0.5)
        elif what < 0.5 and (tunnel := client.plane.tunnels.get(Path.STREAM)):
            tunnel.cut(server_knows=chance.random() < 0.5)
            world.clock.after(KEEPALIVE_TIMER_STREAM, functools.partial(world.idle, tunnel))
        elif what < 0.6 and (tunnel := client.plane.tunnels.get(chance.choice(list(Path)))):
            world.swallow(client, tunnel)
        elif what < 0.7:
            world.weather.down = not world.weather.down
        elif what < 0.8:
            world.weather.delay = chance.choice(((0.005, 0.01), (0.06, 0.06), (0.2, 0.6)))
        else:
            self.kill(store=store)

    def heal(self) -> None:
        self.world.weather.down = False
        self.world.weather.delay = (0.01, 0.03)


def roaming_run(seed: int, *, store: bool) -> None:
    """Clients roam, streams break or go dead, the server is killed; then the weather is fine."""
    town = Town(seed)
    world = town.world
    before = {client: client.plane.addresses for client in town.clients}
    town.talk(60.0)
    for _ in range(40):
        town.run(world.random.choice((0.0, 0.01, 0.05, 0.5, 2.0)))
        town.disturb(store=store)
    town.heal()
    town.run(KEEPALIVE_TIMER_STREAM + DDT_RETRY_MAX + WITH_DDT.persistence + DDT_LINGER)
    tsids = set()
    for client in town.clients:
        owner = town.owner(client)
        assert client.session.state is Client.ACTIVE
        assert owner is not None
        assert owner.session.state is Server.ACTIVE
        assert owner.plane.addresses == client.plane.addresses
        assert client.session.ddt_state is ClientDdt.UP
        assert client.session.path(FLOW) is Path.DATAGRAM
        tsids.add(owner.session.tsid)
        fresh = [event.address_changed for event in client.seen(a.TunnelUp)[1:]]
        if client not in town.excused:
            assert not fresh, "a session that was kept was lost"
            assert client.plane.addresses == before[client]
        for numbers in client.plane.received.values():
            assert len(numbers) == len(set(numbers)), "a packet was delivered twice"
    assert len(tsids) == CLIENTS
    assert len(world.server.owners) == CLIENTS, "sessions nobody came back for are over"
    assert len(world.server.leased) == CLIENTS, "and their addresses are back in the pool"
    assert set(world.server.saved) == tsids, "and the store has forgotten them"
    assert not world.server.reserved, "no reserved datagram tunnel is left"


@pytest.mark.parametrize("block", range(BLOCKS))
def test_with_a_store_everybody_keeps_an_address_through_everything(block: int) -> None:
    each_seed(block, lambda seed: roaming_run(seed, store=True))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_without_a_store_everybody_comes_back_with_a_clean_address(block: int) -> None:
    each_seed(block, lambda seed: roaming_run(seed, store=False))


DELAY = 0.05
STEP = 0.01


@pytest.mark.parametrize("store", [False, True], ids=["same-process", "killed"])
@pytest.mark.parametrize("roams", [False, True], ids=["cut", "roam"])
def test_whatever_message_of_a_resume_is_lost_the_session_is_not(store: bool, roams: bool) -> None:
    """The first stream ends; while the client comes back, the second one ends, too, at every moment of it."""
    moments = [step * STEP for step in range(round(8 * DELAY / STEP))]
    for first, second in [(0.0, moment) for moment in moments] + list(pairwise(moments)):
        world = World(3, settings=WITH_DDT, weather=Weather(delay=(DELAY, DELAY)))
        world.connect()
        world.clock.run(1.0)
        addresses, tsid = world.client.plane.addresses, world.peer.session.tsid
        for moment in (first, second):
            world.clock.run(moment)
            if store:
                world.server.restart(store=True)
            elif roams:
                world.roam(world.client, works=False, lost=True)
            else:
                world.cut()
        world.clock.run(20.0)
        assert world.client.session.state is Client.ACTIVE
        assert world.client.plane.addresses == addresses, f"lost after {first} and {second} s"
        assert world.peer.session.tsid == tsid
        assert not world.client.seen(a.TunnelUp)[1:]
