"""Both halves together: the things a user would notice, one by one."""

from __future__ import annotations

import pytest

from opentsm.limits import DDT_LINGER, DDT_RETRY_MAX, DDT_RETRY_MIN
from opentsm.protocol import actions as a
from opentsm.protocol.client import ClientSettings
from opentsm.protocol.server import ServerSettings
from opentsm.protocol.states import Client, ClientDdt, Server, ServerDdt
from opentsm.types import Code, Flow, Path, PathMode, Protocol, Redundancy, Service
from tests.sim.network import Weather
from tests.sim.plane import Plane
from tests.sim.sides import ServerOwner, World

FLOW = Flow(Protocol.UDP, 4000)
WITH_DDT = ServerSettings(services=frozenset({Service.SIP, Service.DDT}))


def world(**weather: object) -> World:
    made = World(7, settings=WITH_DDT, weather=Weather(**weather))  # type: ignore[arg-type]
    made.connect()
    return made


def on_ddt(made: World) -> ServerOwner:
    made.act("set_mode", FLOW, PathMode.DATAGRAM)
    made.clock.run(3.0)
    assert made.client.session.path(FLOW) is Path.DATAGRAM
    return made.peer


def stream(made: World, flows: list[Flow], seconds: float, every: float = 0.02) -> None:
    """Media both ways for a while, while the clock runs."""
    for _ in range(round(seconds / every)):
        for flow in flows:
            made.client.plane.send(flow)
            made.peer.plane.send(flow)
        made.clock.run(every)


def test_two_hundred_flows_move_there_and_back_ten_times_and_not_a_packet_is_lost_or_doubled() -> None:
    made = world(delay=(0.01, 0.08))
    flows = [Flow(Protocol.UDP, 10000 + 2 * n) for n in range(200)]
    for move in range(20):
        for flow in flows:
            made.act("set_mode", flow, PathMode.STREAM if move % 2 else PathMode.DATAGRAM)
        stream(made, flows, 0.5)
    made.clock.run(2.0)
    client, server = made.client.plane, made.peer.plane
    for sender, receiver in ((client, server), (server, client)):
        assert not sender.drops
        assert not receiver.drops
        for flow in flows:
            assert sorted(n for _, n in receiver.received[flow]) == list(range(1, sender.sent[flow] + 1))
            assert set(receiver.by_path[flow]) == set(Path), "both paths were really used"
    assert made.client.opened == 1, "one DDT serves all"


def test_media_goes_on_over_the_ddt_while_the_stream_is_away() -> None:
    made = world()
    peer = on_ddt(made)
    made.weather.down = True
    made.cut()
    stream(made, [FLOW], 5.0)
    assert made.client.session.state is Client.PERSISTENT
    assert peer.session.state is Server.PERSISTENT
    made.weather.down = False
    stream(made, [FLOW], 12.0)
    assert made.client.session.state.value == "active"
    assert made.peer is peer, "the same session"
    made.clock.run(1.0)
    assert len(peer.plane.received[FLOW]) == made.client.plane.sent[FLOW]
    assert made.client.opened == 1


def test_a_client_comes_back_over_a_stream_that_the_server_still_believes_in() -> None:
    made = world()
    peer = made.peer
    old = peer.plane.tunnels[Path.STREAM]
    address = made.client.plane.addresses
    made.cut(server_knows=False)
    made.clock.run(3.0)
    assert made.client.seen(a.Resumed)
    assert made.peer is peer
    assert made.client.plane.addresses == address
    assert not old.alive[1], "the half-dead stream is closed"
    assert peer.session.state is Server.ACTIVE


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_resume_whose_answer_is_lost_costs_nothing(times: int) -> None:
    made = world(delay=(0.1, 0.1))
    peer = made.peer
    for _ in range(times):
        made.cut()
        while not any(isinstance(event, a.Resumed) for event in peer.events):
            made.clock.run(0.01)
        peer.events.clear()  # the server has answered; the answer is on the wire
        made.cut()
    made.clock.run(20.0)
    assert made.client.session.state is Client.ACTIVE
    assert made.peer is peer
    assert not made.client.seen(a.TunnelUp)[1:], "never a fresh tunnel"


def test_clients_of_a_restarted_server_come_back_by_themselves_with_everything() -> None:
    made = world()
    on_ddt(made)
    made.server.restart()
    made.clock.run(10.0)
    first, second = made.client.seen(a.TunnelUp)
    assert (first.address_changed, second.address_changed) == (False, True)
    assert made.client.session.path(FLOW) is Path.DATAGRAM
    assert made.client.plane.addresses == made.peer.plane.addresses


def test_a_server_that_stops_politely_is_come_back_to() -> None:
    made = world()
    on_ddt(made)
    made.peer.session.terminate(Code.SHUTTING_DOWN, made.clock.now, retry_after=1.0)
    made.peer.settle()
    made.clock.run(0.5)
    assert not made.server.leased
    made.clock.run(10.0)
    assert made.client.session.path(FLOW) is Path.DATAGRAM


def test_where_udp_is_blocked_the_flow_stays_on_the_stream_and_the_tries_get_rare() -> None:
    made = world(blocked=True)
    made.act("set_mode", FLOW, PathMode.DATAGRAM)
    made.clock.run(3600.0)
    assert made.client.session.path(FLOW) is Path.STREAM
    assert 3600 / (DDT_RETRY_MAX + 10) - 2 <= made.client.opened <= 3600 / DDT_RETRY_MAX + 6
    assert made.client.seen(a.PairMissing), "the server has said so too"
    made.weather.blocked = False
    made.clock.run(DDT_RETRY_MAX + 10)
    assert made.client.session.path(FLOW) is Path.DATAGRAM


def test_a_ddt_that_is_blocked_in_mid_call_gives_its_flow_back_and_takes_it_again() -> None:
    made = world()
    peer = on_ddt(made)
    made.weather.blocked = True
    stream(made, [FLOW], 4.0)
    assert made.client.session.path(FLOW) is Path.STREAM
    assert peer.plane.rows[FLOW] is a.SteerMode.STREAM
    sent = made.client.plane.sent[FLOW]
    stream(made, [FLOW], 4.0)
    made.clock.run(0.5)
    late = [n for _, n in peer.plane.received[FLOW] if n > sent]
    assert len(late) == made.client.plane.sent[FLOW] - sent, "on the stream nothing is lost"
    made.weather.blocked = False
    made.clock.run(20.0)
    assert made.client.session.path(FLOW) is Path.DATAGRAM


def test_a_hole_of_two_seconds_is_sat_out_on_the_same_ddt() -> None:
    made = world()
    on_ddt(made)
    made.weather.blocked = True
    made.clock.run(3.0)
    made.weather.blocked = False
    made.clock.run(3.0)
    assert made.client.session.path(FLOW) is Path.DATAGRAM
    assert made.client.opened == 1


def test_a_ddt_the_server_lost_is_made_anew() -> None:
    made = world()
    peer = on_ddt(made)
    tunnel = peer.plane.tunnels[Path.DATAGRAM]
    tunnel.alive[1] = False  # the server's end dies without a goodbye
    peer.ended(tunnel, "dtls-error")
    made.clock.run(10.0 + DDT_RETRY_MIN)
    assert made.client.session.path(FLOW) is Path.DATAGRAM
    assert peer.session.ddt_state is ServerDdt.UP
    assert made.client.opened == 2


def test_the_last_flow_takes_the_ddt_with_it_after_a_linger() -> None:
    made = world()
    peer = on_ddt(made)
    made.act("unset", FLOW)
    made.clock.run(DDT_LINGER - 1)
    assert made.client.session.ddt_state is ClientDdt.LINGERING
    made.clock.run(2.0)
    assert made.client.session.ddt_state.value == "absent"
    assert peer.session.ddt_state is ServerDdt.ABSENT
    assert set(peer.plane.tunnels) == {Path.STREAM}


def test_without_the_service_the_client_knows_and_the_flow_stays() -> None:
    made = World(1, settings=ServerSettings(services=frozenset({Service.SIP})))
    made.connect()
    made.act("set_mode", FLOW, PathMode.DATAGRAM)
    stream(made, [FLOW], 5.0)
    made.clock.run(1.0)
    assert made.client.seen(a.DdtAvailable) == [a.DdtAvailable(False)]
    assert set(made.peer.plane.by_path[FLOW]) == {Path.STREAM}
    assert made.client.opened == 0


@pytest.mark.parametrize(("up", "down"), [(u, d) for u in Path for d in Path])
def test_in_auto_each_side_chooses_for_what_it_sends(up: Path, down: Path) -> None:
    made = world()
    peer = made.peer
    made.act("set_mode", FLOW, PathMode.AUTO)
    stream(made, [FLOW], 3.0)
    made.act("use_path", FLOW, up)
    peer.session.use_path(down, made.clock.now, "judged")
    peer.settle()
    stream(made, [FLOW], 1.0)
    for plane in (made.client.plane, peer.plane):
        plane.by_path.clear()
    stream(made, [FLOW], 1.0)
    assert set(peer.plane.by_path[FLOW]) == {up}
    assert set(made.client.plane.by_path[FLOW]) == {down}
    assert peer.session.ddt_state is ServerDdt.UP


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    made = world()
    on_ddt(made)
    made.act("close")
    made.clock.run(1.0)
    assert made.client.closed == "local-close"
    assert made.server.owners == []
    assert made.server.leased == []


def test_a_stranger_with_a_stolen_tsid_gets_nothing_and_harms_nobody() -> None:
    made = world()
    peer = on_ddt(made)
    thief = World(99, settings=WITH_DDT, client=ClientSettings(client_id=b"thief"))
    thief.server, thief.clock, thief.client.clock = made.server, made.clock, made.clock
    thief.client.session._requests.tsid = peer.session.tsid or thief.client.session._requests.tsid
    thief.client.session._secret = b"?" * 32
    thief.client.session._machine._state = Client.PERSISTENT
    thief.client.connect()
    stream(made, [FLOW], 2.0)
    made.clock.run(1.0)
    assert peer.session.state is Server.ACTIVE
    assert len(peer.plane.received[FLOW]) == made.client.plane.sent[FLOW]
    assert made.counts()["resume-refused"] == 1
    theirs = thief.client.session.configuration
    assert theirs is not None, "it may come in by the front door"
    assert set(theirs.lease.addresses).isdisjoint(made.client.plane.addresses)


def test_a_run_is_made_by_its_seed_alone() -> None:
    def history(seed: int) -> list[str]:
        made = World(seed, settings=WITH_DDT, weather=Weather(loss=0.2, duplication=0.2, delay=(0.01, 0.3)))
        made.connect()
        made.act("set_mode", FLOW, PathMode.DATAGRAM)
        made.clock.run(60.0)
        return [repr(event) for event in (*made.client.events, *made.peer.events)]

    assert history(5) == history(5)
    assert history(5) != history(6)


def with_streams(text: str, **weather: object) -> World:
    services = frozenset({Service.SIP, Service.DDT, Service.REDUNDANCY})
    made = World(7, settings=ServerSettings(services=services), weather=Weather(**weather))  # type: ignore[arg-type]
    made.connect()
    made.act("set_redundancy", Redundancy.parse(text))
    made.clock.run(3.0)
    assert (
        made.client.session.streams.up
        == made.peer.session.streams.up
        == made.client.session.streams.wish.streams - 1
    )
    return made


def delivered(sender: Plane, receiver: Plane) -> list[int]:
    return sorted(number for _, number in receiver.received[FLOW])


@pytest.mark.parametrize("text", ["fan-out:2", "load-balance:3"])
def test_media_goes_on_while_the_main_stream_is_away_for_long(text: str) -> None:
    made = with_streams(text)
    stream(made, [FLOW], 1.0)
    client, server, peer = made.client.plane, made.peer.plane, made.peer
    made.weather.down = True
    made.cut()
    for _ in range(500):
        client.send(FLOW)
        server.send(FLOW)
        made.clock.run(0.02)
    made.weather.down = False
    made.clock.run(15.0)
    assert made.peer is peer, "resumed"
    for sender, receiver in ((client, server), (server, client)):
        assert sender.drops["no-path"] == 0
        got = delivered(sender, receiver)
        assert len(got) == len(set(got))
        # Without copies, those that were on the wire of the stream that broke are gone: a round trip's worth.
        assert sender.sent[FLOW] - len(got) <= (0 if text.startswith("fan-out") else 5)


def test_the_loss_of_a_further_stream_costs_nothing_and_it_comes_back() -> None:
    made = with_streams("fan-out:3")
    for _ in range(6):
        made.cut_extra()
        stream(made, [FLOW], 3.0)
    made.clock.run(70.0)
    client, server = made.client.plane, made.peer.plane
    for sender, receiver in ((client, server), (server, client)):
        assert delivered(sender, receiver) == list(range(1, sender.sent[FLOW] + 1))
    assert made.client.session.streams.up == 2
    assert client.copies_dropped > 0, "copies were really sent"


def test_a_restarted_server_is_asked_for_its_streams_again() -> None:
    made = with_streams("fan-out:2")
    made.server.restart()
    made.clock.run(30.0)
    assert made.client.session.streams.up == made.peer.session.streams.up == 1
    assert sorted(made.client.plane.extras) == sorted(made.peer.plane.extras)
