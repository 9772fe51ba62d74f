"""The SBC's process is killed in mid-call: the next one hands on what the parties say, and their media."""

from __future__ import annotations

import json

from tests.sim.sbc.world import World, the_call, two_phones


def test_a_call_goes_on_and_is_ended_properly() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    before = {(r.key.part, r.local_a, r.local_b, r.remote_a, r.remote_b) for r in world.relays.values()}
    flows = {address: set(known) for address, known in world.flows.items()}
    world.restart()
    after = {(r.key.part, r.local_a, r.local_b, r.remote_a, r.remote_b) for r in world.relays.values()}
    assert after == before
    assert world.flows == flows
    world.network.run(100)
    alice.hang_up(leg)
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    call = the_call(world)
    assert (call.ended_by, call.reason, call.code) == ("caller", "hung-up", 200)
    assert call.caller.aor == "alice@example.org"
    assert call.answered is not None
    assert call.ended is not None
    assert call.ended - call.answered > 100, "the time before the restart counts"
    assert call.media.codec == "PCMU"
    assert not world.kept
    world.network.run(120)
    world.assert_at_rest()


def test_a_call_can_be_changed_after_any_number_of_restarts() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    for port in (16100, 16200):
        world.restart()
        alice.update(leg)  # her media moves to another port
        world.network.run(2)
        (relay,) = world.rtp()
        assert relay.remote_a == ("10.64.0.2", port)
    world.restart()
    (relay,) = world.rtp()
    assert relay.remote_a == ("10.64.0.2", 16200), "the change is what was kept"
    bob.hang_up(bob.calls[leg.call_id])
    world.network.run(1)
    assert leg.state == "ended"
    assert the_call(world).ended_by == "callee"
    world.network.run(120)
    world.assert_at_rest()


def test_new_calls_take_none_of_its_ports_or_names() -> None:
    world, alice, _ = two_phones()
    carol = world.phone("carol", "10.64.0.4")
    carol.register()
    world.network.run(1)
    first = alice.call("bob")
    world.network.run(5)
    world.restart()
    second = carol.call("bob")
    world.network.run(5)  # the world asserts that no port is used twice
    assert len(world.rtp()) == 2
    for phone, leg in ((alice, first), (carol, second)):
        phone.hang_up(leg)
    world.network.run(200)
    assert len(world.ended) == 2
    world.assert_at_rest()


def test_a_party_whose_tunnel_is_gone_costs_the_other_one_its_call_at_once() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    del world.clients["10.64.0.2"]
    world.restart()
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    assert the_call(world).reason == "tunnel-lost"
    world.network.run(120)
    world.assert_at_rest()


def test_a_call_that_rings_is_not_kept_and_its_phone_can_be_called_again() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "ring"
    world.network.run(1)
    alice.call("bob")
    world.network.run(2)
    assert not world.kept
    world.restart()
    assert not world.relays
    bob.behaviour = "answer"
    again = alice.call("bob")
    world.network.run(5)
    assert again.state == "answered"


def test_what_cannot_be_read_is_left_out_and_named() -> None:
    world, alice, _ = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    good = json.loads(world.kept[leg.call_id])
    for spoil in ("media", "caller", "times"):
        world.kept[f"no {spoil}"] = json.dumps({key: value for key, value in good.items() if key != spoil})
    world.kept["stolen ports"] = json.dumps({**good, "call_id": "other"})
    world.restart()
    assert world.events["call-not-taken-up"] == 4
    assert world.events["call-taken-up"] == 1
    world.kept = {leg.call_id: world.kept[leg.call_id]}
    alice.hang_up(leg)
    world.network.run(120)
    world.assert_at_rest()
    assert isinstance(world, World)
