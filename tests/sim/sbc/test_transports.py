"""Whole calls over every pair of transports, and everything that RFC 3261's extensions put into one."""

from __future__ import annotations

import re
from itertools import product

import pytest

from opentsm.sbc.hop import Hop
from tests.sim.sbc.phone import Leg, Phone
from tests.sim.sbc.world import Network, World, the_call

PAIRS = list(product(("udp", "tcp"), repeat=2))


def talking(pair: tuple[str, str], *, early: str = "", late: bool = False) -> tuple[World, Phone, Phone, Leg]:
    """Alice has called Bob; each has the transport given."""
    world = World(Network(seed=3))
    alice = world.phone("alice", "10.64.0.2", transport=pair[0])
    bob = world.phone("bob", "10.64.0.3", transport=pair[1])
    bob.media_port, bob.early = 18000, early
    alice.register()
    bob.register()
    world.network.run(1)
    assert alice.registered == bob.registered == ["200"]
    leg = alice.call("bob", late=late)
    world.network.run(5)
    assert leg.state == bob.calls[leg.call_id].state == "answered"
    return world, alice, bob, leg


def settle(world: World) -> None:
    world.network.run(120)
    world.assert_at_rest()


def port_in(sdp: str) -> int:
    found = re.search(r"^m=audio (\d+)", sdp, re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("who", ["caller", "callee"])
def test_a_call_connects_and_either_party_ends_it(pair: tuple[str, str], who: str) -> None:
    world, alice, bob, leg = talking(pair)
    (relay,) = world.rtp()
    assert (relay.remote_a, relay.remote_b) == (("10.64.0.2", 16000), ("10.64.0.3", 18000))
    if who == "caller":
        alice.hang_up(leg)
    else:
        bob.hang_up(bob.calls[leg.call_id])
    world.network.run(2)
    assert (leg.state, bob.calls[leg.call_id].state) == ("ended", "ended")
    assert (the_call(world).ended_by, the_call(world).reason) == (who, "hung-up")
    assert not {"stray-response", "ack-dropped"} & set(world.events)
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
def test_media_before_the_answer_goes_by_a_reliable_provisional_answer(pair: tuple[str, str]) -> None:
    """PRACK (RFC 3262) passes; the SDP in the 183 is the answer, and the 200 has none."""
    world, alice, bob, leg = talking(pair, early="183")
    assert bob.received == ["INVITE", "PRACK"]
    assert leg.events[-1] == "PRACK 200"
    (relay,) = world.rtp()
    assert (relay.remote_a, relay.remote_b) == (("10.64.0.2", 16000), ("10.64.0.3", 18000))
    alice.hang_up(leg)
    world.network.run(1)
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
def test_an_offer_in_a_provisional_answer_is_answered_in_prack(pair: tuple[str, str]) -> None:
    world, alice, bob, leg = talking(pair, early="183", late=True)
    (relay,) = world.rtp()
    assert (relay.remote_a, relay.remote_b) == (("10.64.0.2", 16000), ("10.64.0.3", 18000))
    assert port_in(leg.far_sdp) == relay.local_a[1]
    assert port_in(bob.bodies[-1]) == relay.local_b[1]
    alice.hang_up(leg)
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("who", ["caller", "callee"])
def test_update_moves_media_to_another_port(pair: tuple[str, str], who: str) -> None:
    world, alice, bob, leg = talking(pair)
    (before,) = world.rtp()
    phone, mine = (alice, leg) if who == "caller" else (bob, bob.calls[leg.call_id])
    phone.update(mine)
    world.network.run(1)
    assert mine.events[-1] == "UPDATE 200"
    (after,) = world.rtp()
    moved, stayed = ("remote_a", "remote_b") if who == "caller" else ("remote_b", "remote_a")
    assert getattr(after, moved) == (phone.address, phone.media_port)
    assert getattr(after, stayed) == getattr(before, stayed)
    alice.hang_up(leg)
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("who", ["caller", "callee"])
def test_hold_by_reinvite_from_either_party(pair: tuple[str, str], who: str) -> None:
    world, alice, bob, leg = talking(pair)
    there = bob.calls[leg.call_id]
    phone, mine, theirs = (alice, leg, there) if who == "caller" else (bob, there, leg)
    phone.hold(mine)
    world.network.run(1)
    assert mine.events[-1] == "200"
    assert "a=sendonly" in theirs.far_sdp
    assert len(world.rtp()) == 1
    alice.hang_up(leg)
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_transfer_and_its_notifications_pass(pair: tuple[str, str]) -> None:
    """REFER (RFC 3515) in the call, NOTIFYs of its subscription back, then the new call."""
    world, alice, bob, leg = talking(pair)
    carol = world.phone("carol", "10.64.0.5", transport=pair[1])
    carol.register()
    world.network.run(1)
    there = bob.calls[leg.call_id]
    alice.in_dialog(leg, "REFER", ["Refer-To: <sip:carol@example.org>", "Referred-By: <sip:a@example.org>"])
    world.network.run(1)
    assert bob.received[-1] == "REFER"
    transfer = bob.call("carol")
    bob.in_dialog(there, "NOTIFY", ["Event: refer", "Subscription-State: active;expires=60"])
    world.network.run(4)
    bob.in_dialog(there, "NOTIFY", ["Event: refer", "Subscription-State: terminated;reason=noresource"])
    world.network.run(1)
    assert transfer.state == "answered"
    assert alice.received[-2:] == ["NOTIFY", "NOTIFY"]
    alice.hang_up(leg)
    world.network.run(1)
    bob.hang_up(transfer)
    world.network.run(1)
    assert len(world.ended) == 2
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", ["INFO", "MESSAGE", "SUBSCRIBE", "NOTIFY", "OPTIONS"])
def test_other_requests_pass_in_both_directions(pair: tuple[str, str], method: str) -> None:
    world, alice, bob, leg = talking(pair)
    alice.in_dialog(leg, method, ["Event: dialog"])
    bob.in_dialog(bob.calls[leg.call_id], method, ["Event: dialog"])
    world.network.run(1)
    assert bob.received[-1] == alice.received[-1] == method
    assert leg.events[-1] == bob.calls[leg.call_id].events[-1] == f"{method} 200"
    alice.hang_up(leg)
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_subscription_outside_of_calls_has_its_notifications(pair: tuple[str, str]) -> None:
    """SUBSCRIBE makes a dialog without a call: its NOTIFYs find their way by the flow token alone."""
    world, alice, bob, _ = talking(pair)
    alice.outside("SUBSCRIBE", "bob")
    world.network.run(1)
    assert bob.received[-1] == "SUBSCRIBE"
    request = bob.requests[-1]
    watcher = Leg(
        request.call_id,
        bob.name,
        f"<{request.from_address.uri}>",
        str(request.contact[0].uri),
        outgoing=False,
    )
    watcher.far_tag = str(request.from_address.parameters["tag"])
    watcher.routes = request.headers.getlist("Record-Route")
    bob.in_dialog(watcher, "NOTIFY", ["Event: presence", "Subscription-State: active"])
    world.network.run(1)
    assert (alice.received[-1], watcher.events[-1]) == ("NOTIFY", "NOTIFY 200")


@pytest.mark.parametrize("pair", PAIRS)
def test_a_session_timer_that_is_refreshed_by_update_keeps_the_call(pair: tuple[str, str]) -> None:
    world, alice, bob, leg = talking(pair)
    bob.more = [("Session-Expires", "90;refresher=uac"), ("Require", "timer")]
    for _ in range(4):
        alice.update(leg)
        world.network.run(80)
        assert leg.state == "answered"
    world.network.run(60)
    assert leg.state == bob.calls[leg.call_id].state == "ended"
    assert the_call(world).reason == "session-timer"
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("others", "code"), [("ring", 200), ("reject603", 603)])
def test_of_two_phones_that_ring_the_first_word_counts(pair: tuple[str, str], others: str, code: int) -> None:
    """A 2xx stops the others with CANCEL, a 6xx too (RFC 3261 section 16.7)."""
    world = World(Network(seed=5))
    alice = world.phone("alice", "10.64.0.2", transport=pair[0])
    bob = world.phone("bob", "10.64.0.3", transport=pair[0])
    desk = world.phone("bob", "10.64.0.4", transport=pair[1])
    bob.behaviour, desk.behaviour = ("answer", "ring") if code == 200 else ("ring", others)
    for phone in (alice, bob, desk):
        phone.register()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    stopped = desk if code == 200 else bob
    assert stopped.calls[leg.call_id].state == "ended"
    assert stopped.received.count("CANCEL") == 1
    assert (leg.state, leg.code) == (("answered", 0) if code == 200 else ("failed", 603))
    if code == 200:
        alice.hang_up(leg)
    settle(world)


def test_a_cancel_goes_by_the_connection_of_its_invite() -> None:
    world, alice, bob, _ = talking(("tcp", "tcp"))
    bob.behaviour = "ring"
    leg = alice.call("bob")
    world.network.run(1)
    alice.cancel(leg)
    world.network.run(1)
    assert (leg.code, bob.received[-1]) == (487, "CANCEL")
    assert len(world.pipes.opened) == 2, "each phone's own connection carried everything"


def test_a_phone_is_called_by_the_connection_it_registered_on() -> None:
    world, alice, bob, leg = talking(("udp", "tcp"))
    (hop,) = world.pipes.opened
    assert hop.remote == (bob.address, 40001), "nobody opened one to the port in its Contact"
    alice.hang_up(leg)
    settle(world)


def test_nothing_is_repeated_on_a_connection() -> None:
    world, alice, _, leg = talking(("tcp", "tcp"))
    alice.hang_up(leg)
    world.network.run(60)
    titles = [title for source, _, title in world.network.log if source == "sbc"]
    assert sum(title.startswith("INVITE ") for title in titles) == 1
    assert sum(title.startswith("BYE ") for title in titles) == 1
    settle(world)


@pytest.mark.parametrize("pair", [("udp", "tcp"), ("tcp", "tcp")])
def test_a_callee_whose_connection_is_gone_is_called_at_the_port_of_its_contact(
    pair: tuple[str, str],
) -> None:
    world, alice, bob, leg = talking(pair)
    alice.hang_up(leg)
    world.network.run(1)
    world.pipes.cut(bob)
    again = alice.call("bob")
    world.network.run(5)
    assert again.state == "answered"
    assert world.pipes.opened[-1] == Hop("tcp", ("10.64.0.1", 5060), (bob.address, 5060))
    alice.hang_up(again)
    world.network.run(1)
    assert bob.calls[again.call_id].state == "ended"
    settle(world)


def test_a_callee_whose_connection_cannot_be_remade_is_480_at_once() -> None:
    world, alice, bob, leg = talking(("udp", "tcp"))
    alice.hang_up(leg)
    world.network.run(1)
    world.pipes.cut(bob)
    world.pipes.refuses.add(bob.address)
    again = alice.call("bob")
    world.network.run(1)
    assert again.code == 480
    settle(world)


def test_an_answer_whose_connection_is_gone_takes_a_new_one_to_the_sender() -> None:
    """RFC 3261 section 18.2.2: to the source address, at the port that its Via names."""
    world, alice, bob, leg = talking(("tcp", "udp"))
    bob.ring_time = 3.0
    second = alice.call("bob")
    world.network.run(1)
    world.pipes.cut(alice)
    world.network.run(5)
    assert second.state == "answered"
    assert world.pipes.opened[-1].remote == (alice.address, 5060)
    for one in (leg, second):
        alice.hang_up(one)
    settle(world)


def test_a_message_on_a_stream_without_its_length_is_refused() -> None:
    world, alice, _, _ = talking(("tcp", "udp"))
    hop = world.pipes.opened[0]
    request = (
        "OPTIONS sip:example.org SIP/2.0\r\nVia: SIP/2.0/TCP 10.64.0.2;branch=z9hG4bKx\r\n"
        "From: <sip:a@b>;tag=1\r\nTo: <sip:example.org>\r\nCall-ID: nolen\r\nCSeq: 1 OPTIONS\r\n\r\n"
    )
    world.act(world.core.receive(world.network.now, hop, request.encode()))
    assert world.events["sip-bad-content-length"] == 1
    world.network.run(1)
    assert alice.answers[-1] == 400


@pytest.mark.parametrize("seed", range(6))
def test_a_call_between_transports_survives_a_lossy_network_on_the_udp_side(seed: int) -> None:
    world = World(Network(seed=seed, loss=0.1))
    pair = PAIRS[1 + seed % 2]
    alice = world.phone("alice", "10.64.0.2", transport=pair[0])
    bob = world.phone("bob", "10.64.0.3", transport=pair[1])
    alice.register()
    bob.register()
    world.network.run(20)
    leg = alice.call("bob")
    world.network.run(40)
    assert leg.state == bob.calls[leg.call_id].state == "answered"
    alice.hang_up(leg)
    world.network.run(200)
    assert bob.calls[leg.call_id].state == "ended"
    world.assert_at_rest()
