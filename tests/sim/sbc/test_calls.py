"""Calls between phones through the SBC, as their users see them."""

from __future__ import annotations

import re

import pytest

from opentsm.sbc.parties import ANY_USER, Client
from tests.sim.sbc.world import SERVER, World, the_call, two_phones


def _media(sdp: str) -> tuple[str, int]:
    address = re.search(r"^c=IN IP4 (\S+)", sdp, re.MULTILINE)
    port = re.search(r"^m=audio (\d+)", sdp, re.MULTILINE)
    assert address is not None
    assert port is not None
    return address[1], int(port[1])


def _settle(world: World) -> None:
    """Long enough for every transaction to be forgotten."""
    world.network.run(120)
    world.assert_at_rest()


def test_a_call_connects_carries_media_through_the_relay_and_ends() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    assert alice.registered == bob.registered == ["200"]
    leg = alice.call("bob")
    world.network.run(5)

    assert leg.state == "answered"
    assert bob.calls[leg.call_id].state == "answered"
    (relay,) = world.rtp()
    assert relay.remote_a == ("10.64.0.2", 16000)
    assert relay.remote_b == ("10.64.0.3", 18000)
    # Each phone sends to the port that faces it.
    assert _media(leg.far_sdp) == relay.local_a
    assert _media(bob.calls[leg.call_id].far_sdp) == relay.local_b
    rtcp = next(r for r in world.relays.values() if r.key.part == "rtcp")
    assert rtcp.remote_a == ("10.64.0.2", 16001)
    assert rtcp.local_b == (SERVER, relay.local_b[1] + 1)
    assert {flow.port for flow in world.flows["10.64.0.2"]} == {16000, 16001}
    assert {flow.port for flow in world.flows["10.64.0.3"]} == {18000, 18001}

    alice.hang_up(leg)
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    call = the_call(world)
    assert (call.ended_by, call.reason, call.code) == ("caller", "hung-up", 200)
    assert call.caller.aor == "alice@example.org"
    assert call.callee.aor == "bob@example.org"
    assert call.media.codec == "PCMU"
    _settle(world)


def test_the_callee_can_hang_up() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    bob.hang_up(bob.calls[leg.call_id])
    world.network.run(1)
    assert leg.state == "ended"
    assert the_call(world).ended_by == "callee"
    _settle(world)


def test_a_caller_who_gives_up_is_told_487_and_the_phone_stops_ringing() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "ring"
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(2)
    assert leg.state == "ringing"
    alice.cancel(leg)
    world.network.run(2)
    assert (leg.state, leg.code) == ("failed", 487)
    assert bob.calls[leg.call_id].state == "ended"
    assert the_call(world).reason == "cancelled"
    _settle(world)


def test_a_cancel_that_comes_before_anything_rings_waits_for_the_phone() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "ring"
    world.network.run(1)
    world.network.cut.add(bob.address)
    leg = alice.call("bob")
    world.network.run(0.1)
    alice.cancel(leg)
    world.network.run(0.2)
    titles = [title for source, to, title in world.network.log if (source, to) == ("sbc", bob.address)]
    assert any(title.startswith("INVITE") for title in titles)
    assert not any(title.startswith("CANCEL") for title in titles)
    world.network.cut.clear()
    world.network.run(3)
    assert bob.received.count("CANCEL") == 1
    assert leg.code == 487
    _settle(world)


@pytest.mark.parametrize(("behaviour", "code"), [("busy", 486), ("reject603", 603)])
def test_a_refusal_reaches_the_caller(behaviour: str, code: int) -> None:
    world, alice, bob = two_phones()
    bob.behaviour = behaviour
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(3)
    assert (leg.state, leg.code) == ("failed", code)
    call = the_call(world)
    assert (call.ended_by, call.reason, call.code) == ("callee", "refused", code)
    _settle(world)


def test_an_unknown_user_is_404_and_one_who_is_away_480() -> None:
    world, alice, _ = two_phones()
    world.network.run(1)
    unknown, away = alice.call("nobody"), alice.call("carol")
    world.network.run(1)
    assert (unknown.code, away.code) == (404, 480)
    assert not world.ended
    _settle(world)


def test_an_unregistered_caller_is_403_with_its_tunnel_in_the_log() -> None:
    world, _, bob = two_phones()
    carol = world.phone("carol", "10.64.0.9")
    world.network.run(1)
    leg = carol.call("bob")
    world.network.run(2)
    assert leg.code == 403
    assert bob.received == []
    (note,) = [note for note in world.notes if note.event == "caller-unregistered"]
    assert note.fields["tsid"] == f"{9:016x}"
    assert note.fields["call_id"] == leg.call_id
    _settle(world)


def test_nobody_calls_in_anothers_name() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob", from_user="carol")
    world.network.run(2)
    assert leg.code == 403
    assert world.events["caller-foreign-name"] == 1
    assert bob.received == []


def test_a_tunnel_registers_only_its_own_name() -> None:
    world, alice, _ = two_phones()
    mallory = world.phone("mallory", "10.64.0.66")
    mallory.password = "alice-secret"
    world.network.run(1)
    mallory.register(user="alice")
    world.network.run(1)
    assert mallory.registered == ["403"]
    assert [b.hop.remote[0] for b in world.core.bindings("alice@example.org")] == ["10.64.0.2"]
    assert alice.registered == ["200"]


def test_a_tunnel_may_be_allowed_every_name_it_has_a_password_for() -> None:
    world = World()
    pbx = world.phone("carol", "10.64.0.7")
    world.clients["10.64.0.7"] = Client("pbx", 7, 7, ("10.64.0.7",), frozenset({ANY_USER}))
    pbx.register()
    world.network.run(1)
    assert pbx.registered == ["200"]


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_a_wrong_password_registers_nothing(algorithm: str) -> None:
    world = World()
    alice = world.phone("alice", "10.64.0.2")
    alice.password, alice.algorithm = "guess", algorithm
    alice.register()
    world.network.run(1)
    assert alice.registered == ["401"]
    assert world.events["register-wrong-password"] == 1
    alice.password = "alice-secret"
    alice.register()
    world.network.run(1)
    assert alice.registered == ["401", "200"]


def test_an_expired_registration_is_gone_and_one_withdrawn_too() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    bob.register(expires=0)
    world.network.run(1)
    first = alice.call("bob")
    world.network.run(1)
    assert first.code == 480
    bob.register(expires=60)
    world.network.run(61)
    second = alice.call("bob")
    world.network.run(1)
    assert second.code == 480
    assert world.saved["bob@example.org"] == 0


def test_a_fork_rings_all_phones_and_stops_the_others_when_one_answers() -> None:
    world, alice, bob = two_phones()
    desk = world.phone("bob", "10.64.0.4")
    bob.behaviour, desk.ring_time, desk.media_port = "ring", 2.0, 19000
    desk.register()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(1)
    assert bob.calls[leg.call_id].state == desk.calls[leg.call_id].state == "ringing"
    world.network.run(4)
    assert leg.state == "answered"
    assert desk.calls[leg.call_id].state == "answered"
    assert bob.calls[leg.call_id].state == "ended"
    (relay,) = world.rtp()
    assert relay.remote_b == ("10.64.0.4", 19000)
    assert not world.flows.get("10.64.0.3")
    assert {flow.port for flow in world.flows["10.64.0.4"]} == {19000, 19001}
    alice.hang_up(leg)
    world.network.run(1)
    assert desk.calls[leg.call_id].state == "ended"
    _settle(world)


def test_of_a_forks_failures_the_best_is_told_and_603_ends_it_at_once() -> None:
    world, alice, bob = two_phones()
    desk = world.phone("bob", "10.64.0.4")
    bob.behaviour, desk.behaviour = "ring", "reject603"
    desk.register()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    assert leg.code == 603
    assert bob.calls[leg.call_id].state == "ended"
    _settle(world)


def test_less_wanted_contacts_are_tried_after_the_others() -> None:
    world, alice, bob = two_phones()
    mobile = world.phone("bob", "10.64.0.4")
    bob.behaviour = "busy"
    mobile.register(contact="<sip:bob@10.64.0.4:5060>;q=0.3")
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    assert leg.state == "answered"
    assert mobile.calls[leg.call_id].state == "answered"
    assert bob.received == ["INVITE"]
    alice.hang_up(leg)
    _settle(world)


def test_hold_is_passed_on_and_media_stays_anchored() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    before = world.rtp()
    alice.hold(leg)
    world.network.run(1)
    assert leg.events[-1] == "200"
    assert "a=sendonly" in bob.calls[leg.call_id].far_sdp
    assert _media(bob.calls[leg.call_id].far_sdp) == before[0].local_b
    assert world.rtp() == before
    bob.hang_up(bob.calls[leg.call_id])
    _settle(world)


def test_a_late_offer_is_anchored_too() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob", late=True)
    world.network.run(5)
    assert bob.bodies == [""]
    (relay,) = world.rtp()
    assert (relay.remote_a, relay.remote_b) == (("10.64.0.2", 16000), ("10.64.0.3", 18000))
    assert _media(leg.far_sdp) == relay.local_a
    assert _media(bob.calls[leg.call_id].far_sdp) == relay.local_b
    alice.hang_up(leg)
    _settle(world)


def test_a_wrong_c_line_is_corrected_to_the_inner_source() -> None:
    world, alice, bob = two_phones()
    alice.media_address, bob.media_address = "192.168.1.7", "10.64.0.2"
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    (relay,) = world.rtp()
    assert relay.remote_a == ("10.64.0.2", 16000)
    # Naming somebody else's inner address is no way to have media sent there.
    assert relay.remote_b == ("10.64.0.3", 18000)
    assert world.events["sdp-corrected"] >= 2
    alice.hang_up(leg)
    _settle(world)


def test_a_phone_that_answers_from_another_address_has_its_call() -> None:
    world, alice, bob = two_phones()
    other = ("10.64.0.30", 5060)
    world.clients["10.64.0.30"] = Client("bob", 3, 3, ("10.64.0.30",))
    world.network.run(1)
    bob_sends = world.network.send

    def send(source: tuple[str, int], data: bytes) -> None:
        bob_sends(other if source[0] == bob.address else source, data)

    world.network.send = send  # type: ignore[method-assign]
    world.network.phones[other] = bob
    leg = alice.call("bob")
    world.network.run(5)
    assert leg.state == "answered"
    (relay,) = world.rtp()
    assert relay.remote_b == ("10.64.0.30", 18000)
    alice.hang_up(leg)
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    _settle(world)


@pytest.mark.parametrize("method", ["INFO", "REFER", "UPDATE", "PRACK", "OPTIONS", "NOTIFY"])
def test_requests_within_a_call_pass_both_ways(method: str) -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    extra = ["Refer-To: <sip:carol@example.org>"] if method == "REFER" else []
    alice.in_dialog(leg, method, extra)
    bob.in_dialog(bob.calls[leg.call_id], method, extra)
    world.network.run(1)
    assert bob.received[-1] == alice.received[-1] == method
    assert leg.events[-1] == bob.calls[leg.call_id].events[-1] == f"{method} 200"
    alice.hang_up(leg)
    _settle(world)


def test_a_phone_without_a_route_set_still_reaches_the_other() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    leg.routes = []
    alice.hang_up(leg)
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    _settle(world)


def test_messages_and_options_pass_outside_of_calls() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    alice.outside("MESSAGE", "bob")
    alice.outside("OPTIONS", "bob")
    world.network.run(1)
    assert bob.received == ["MESSAGE", "OPTIONS"]
    assert alice.answers[-2:] == [200, 200]
    _settle(world)


def test_a_dead_phone_is_408_after_the_invites_patience() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "silent"
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(31)
    assert leg.state == "new"
    world.network.run(3)
    assert leg.code == 408
    assert the_call(world).reason == "no-answer"
    _settle(world)


def test_a_phone_that_rings_for_ever_is_cancelled_by_timer_c() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "ring"
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(184)
    assert leg.state == "ringing"
    world.network.run(5)
    assert bob.calls[leg.call_id].state == "ended"
    assert leg.state == "failed"
    _settle(world)


def test_a_lost_tunnel_ends_the_call_for_the_other_side() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    world.network.cut.add(alice.address)
    world.act(world.core.client_lost(world.network.now, [alice.address]))
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    call = the_call(world)
    assert (call.ended_by, call.reason) == ("caller", "tunnel-lost")
    assert world.saved["alice@example.org"] == 0
    _settle(world)


def test_a_lost_tunnel_stops_its_phone_from_being_called() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "ring"
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(2)
    world.network.cut.add(bob.address)
    world.act(world.core.client_lost(world.network.now, [bob.address]))
    world.network.run(1)
    assert leg.code == 480
    again = alice.call("bob")
    world.network.run(1)
    assert again.code == 480
    _settle(world)


def test_an_inner_address_that_was_leased_anew_gets_no_calls_for_its_last_owner() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    world.clients[bob.address] = Client("mallory", 66, 66, (bob.address,))
    leg = alice.call("bob")
    world.network.run(1)
    assert leg.code == 480
    assert bob.received == []


def test_a_call_whose_session_timer_is_not_refreshed_ends_for_both() -> None:
    world, alice, bob = two_phones()
    bob.more = [("Session-Expires", "90;refresher=uac"), ("Require", "timer")]
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(80)
    alice.hold(leg)  # a re-INVITE refreshes
    world.network.run(100)
    assert leg.state == "answered"
    world.network.run(30)
    assert leg.state == bob.calls[leg.call_id].state == "ended"
    assert the_call(world).reason == "session-timer"
    _settle(world)


def test_two_calls_at_once_between_the_same_phones_stay_two_calls() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    first, second = alice.call("bob"), bob.call("alice")
    world.network.run(5)
    assert first.state == second.state == "answered"
    assert len(world.rtp()) == 2
    alice.hang_up(first)
    world.network.run(1)
    assert second.state == "answered"
    bob.hang_up(second)
    _settle(world)


def test_when_two_phones_answer_at_once_the_first_has_the_call_and_its_media() -> None:
    world, alice, bob = two_phones()
    desk = world.phone("bob", "10.64.0.4")
    desk.media_port = 19000
    desk.register()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(3)
    assert bob.calls[leg.call_id].state == desk.calls[leg.call_id].state == "answered"
    first, second = sorted((bob, desk), key=lambda p: p.media_port != world.rtp()[0].remote_b[1])  # type: ignore[index]
    # Alice hangs up on the late one, as she must; the call with the first goes on.
    leg.far_tag, leg.target = second.calls[leg.call_id].own_tag, f"sip:bob@{second.address}:5060"
    alice.in_dialog(leg, "BYE")
    world.network.run(1)
    assert not world.ended
    assert len(world.rtp()) == 1
    first.hang_up(first.calls[leg.call_id])
    world.network.run(1)
    assert the_call(world).ended_by == "callee"
    _settle(world)
