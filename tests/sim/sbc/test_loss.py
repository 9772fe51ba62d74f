"""Calls on a network that loses messages: each one in turn, then by chance."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.sbc.phone import Leg, Phone
from tests.sim.sbc.world import Network, World, the_call, two_phones

Scenario = Callable[[World, Phone, Phone], Leg]


def _plain(world: World, alice: Phone, bob: Phone) -> Leg:
    leg = alice.call("bob")
    world.network.run(20)
    alice.hang_up(leg)
    return leg


def _held(world: World, alice: Phone, bob: Phone) -> Leg:
    leg = alice.call("bob", late=True)
    world.network.run(20)
    alice.hold(leg)
    world.network.run(20)
    bob.hang_up(bob.calls[leg.call_id])
    return leg


def _cancelled(world: World, alice: Phone, bob: Phone) -> Leg:
    bob.behaviour = "ring"
    leg = alice.call("bob")
    world.network.run(5)
    alice.cancel(leg)
    return leg


def _busy(world: World, alice: Phone, bob: Phone) -> Leg:
    bob.behaviour = "busy"
    return alice.call("bob")


SCENARIOS = {"plain": _plain, "held": _held, "cancelled": _cancelled, "busy": _busy}


def _play(name: str, network: Network) -> tuple[World, Leg]:
    world, alice, bob = two_phones(network)
    world.network.run(40)
    assert alice.registered == bob.registered == ["200"]
    leg = SCENARIOS[name](world, alice, bob)
    world.network.run(140)
    return world, leg


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_loss_of_any_one_message_changes_nothing_for_the_users(name: str) -> None:
    calm, expected = _play(name, Network())
    for lost in range(calm.network.sent):
        world, leg = _play(name, Network(lose={lost}))
        title = calm.network.log[lost]
        assert (leg.state, leg.code) == (expected.state, expected.code), title
        call = the_call(world)
        assert (call.ended_by, call.reason) == (calm.ended[0].ended_by, calm.ended[0].reason), title
        world.assert_at_rest()


@pytest.mark.parametrize("seed", range(25))
def test_calls_survive_a_network_that_loses_one_message_in_ten(seed: int) -> None:
    world, leg = _play("plain", Network(seed=seed, loss=0.1))
    assert leg.state == "ended"
    assert the_call(world).reason == "hung-up"
    world.assert_at_rest()


def test_retransmissions_are_damped_not_forwarded() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "ring"
    world.network.run(1)
    world.network.cut.add("10.64.0.2")  # Alice hears nothing and repeats her INVITE...
    leg = alice.call("bob")
    world.network.cut.clear()
    original = world.network.send_back

    def deaf(target: tuple[str, int], data: bytes) -> None:
        if target[0] != alice.address:
            original(target, data)

    world.network.send_back = deaf  # type: ignore[method-assign]
    world.network.run(20)
    repeats = [
        entry for entry in world.network.log if entry[:2] == ("10.64.0.2", "sbc") and "INVITE" in entry[2]
    ]
    assert len(repeats) > 3
    assert bob.received == ["INVITE"]  # ... but Bob's phone is asked once.
    invites = [
        entry for entry in world.network.log if entry[1] == bob.address and entry[2].startswith("INVITE")
    ]
    assert len(invites) == 1
    assert leg.state == "new"
