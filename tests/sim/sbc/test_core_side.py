"""Calls between tunnelled phones and the server's own network: trunks, other SIP servers, desk phones."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import pytest

from opentsm.sbc.core import SbcCore
from opentsm.sbc.hop import Hop
from opentsm.sbc.settings import CoreSide, SbcSettings, Trunk
from opentsm.sbc.users import Users
from tests.sim.sbc.phone import Phone
from tests.sim.sbc.world import CORE, SERVER, SETTINGS, Network, World, the_call

PAIRS = list(product(("udp", "tcp"), repeat=2))
DESK_NET = "192.0.2.64/26"


def settings(transport: str = "udp") -> SbcSettings:
    provider = Trunk(
        "provider", "192.0.2.20", transport=transport, domains=("example.net",), numbers=("+", "00")
    )
    mobile = Trunk("mobile", "192.0.2.21", numbers=("+4917",), calls_in=False)
    rest = Trunk("rest", "192.0.2.22", domains=("*",))
    core = CoreSide(CORE[0], media_ports=(40000, 40039), phones=(DESK_NET,))
    return replace(SETTINGS, core=core, trunks=(provider, mobile, rest))


def a_world(
    pair: tuple[str, str] = ("udp", "udp"), settled: SbcSettings | None = None
) -> tuple[World, Phone, Phone]:
    """Alice in her tunnel, registered, and the provider."""
    world = World(Network(seed=9), settings=settled or settings(pair[1]))
    alice = world.phone("alice", "10.64.0.2", transport=pair[0])
    provider = world.phone("pstn", "192.0.2.20", transport=pair[1], core=True)
    provider.domain, provider.media_port = CORE[0], 30000
    alice.register()
    world.network.run(1)
    return world, alice, provider


def settle(world: World) -> None:
    world.network.run(120)
    world.assert_at_rest()


def place(sdp: str) -> tuple[str, int]:
    address = re.search(r"^c=IN IP4 (\S+)", sdp, re.MULTILINE)
    port = re.search(r"^m=audio (\d+)", sdp, re.MULTILINE)
    assert address is not None
    assert port is not None
    return address[1], int(port[1])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("who", ["tunnel", "trunk"])
def test_a_number_that_no_account_has_leaves_by_the_trunk(pair: tuple[str, str], who: str) -> None:
    world, alice, provider = a_world(pair)
    leg = alice.call("+493012345")
    world.network.run(5)
    there = provider.calls[leg.call_id]
    assert leg.state == there.state == "answered"
    assert there.invite is not None
    assert str(there.invite.uri) == "sip:+493012345@192.0.2.20"
    (relay,) = world.rtp()
    assert (relay.core_a, relay.core_b) == (False, True)
    assert (relay.remote_a, relay.remote_b) == (("10.64.0.2", 16000), ("192.0.2.20", 30000))
    # Each sees our address on its own side, and no address of the other side.
    assert place(there.far_sdp) == relay.local_b == (CORE[0], 40000)
    assert place(leg.far_sdp) == relay.local_a
    assert relay.local_a[0] == SERVER
    if who == "tunnel":
        alice.hang_up(leg)
    else:
        provider.hang_up(there)
    world.network.run(2)
    assert leg.state == there.state == "ended"
    call = the_call(world)
    assert (call.callee.trunk, call.ended_by) == ("provider", "caller" if who == "tunnel" else "callee")
    settle(world)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("who", ["tunnel", "trunk"])
def test_a_trunk_calls_a_registered_user(pair: tuple[str, str], who: str) -> None:
    world, alice, provider = a_world(pair)
    leg = provider.call("alice")
    world.network.run(5)
    there = alice.calls[leg.call_id]
    assert leg.state == there.state == "answered"
    (relay,) = world.rtp()
    assert (relay.core_a, relay.core_b) == (True, False)
    assert place(leg.far_sdp) == relay.local_a
    assert relay.local_a[0] == CORE[0]
    assert {flow.port for flow in world.flows["10.64.0.2"]} == {16000, 16001}
    provider.hold(leg)
    world.network.run(1)
    assert "a=sendonly" in there.far_sdp
    if who == "trunk":
        provider.hang_up(leg)
    else:
        alice.hang_up(there)
    world.network.run(2)
    assert leg.state == there.state == "ended"
    assert the_call(world).caller.trunk == "provider"
    settle(world)


@pytest.mark.parametrize(("user", "code"), [("nobody", 404), ("bob", 480), ("+4930", 404)])
def test_what_a_trunk_asks_for_is_here_or_nowhere(user: str, code: int) -> None:
    """No account of that name; one that is away; and a number, which must not leave by a trunk again."""
    world, _, provider = a_world()
    leg = provider.call(user)
    world.network.run(1)
    assert leg.code == code
    settle(world)


def test_the_trunk_with_the_longest_beginning_is_taken() -> None:
    world, alice, provider = a_world()
    mobile = world.phone("mobile", "192.0.2.21", core=True)
    leg = alice.call("tel:+49171234")
    world.network.run(5)
    assert mobile.calls[leg.call_id].state == "answered"
    assert not provider.received


@pytest.mark.parametrize(("uri", "name"), [("sip:x@example.net", "pstn"), ("sip:x@example.com", "rest")])
def test_foreign_domains_have_their_trunk(uri: str, name: str) -> None:
    world, alice, provider = a_world()
    rest = world.phone("rest", "192.0.2.22", core=True)
    leg = alice.call(uri)
    world.network.run(5)
    assert leg.state == "answered"
    callee = provider if name == "pstn" else rest
    assert str(callee.requests[-1].uri) == uri
    alice.hang_up(leg)
    settle(world)


def test_an_account_comes_before_a_trunk() -> None:
    """Bob is away; that he could be a number of somebody else's does not make him one."""
    world, alice, _ = a_world()
    world.settings = settings()
    leg = alice.call("bob")
    world.network.run(1)
    assert leg.code == 480


def test_a_trunk_for_calls_out_may_not_call_in() -> None:
    world, alice, _ = a_world()
    mobile = world.phone("mobile", "192.0.2.21", core=True)
    leg = mobile.call("alice")
    world.network.run(1)
    assert (leg.code, alice.received) == (403, [])
    assert world.events["trunk-calls-out-only"] == 1


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_stranger_on_the_network_is_refused(transport: str) -> None:
    world, alice, _ = a_world()
    stranger = world.phone("mallory", "192.0.2.99", transport=transport, core=True)
    leg = stranger.call("alice")
    world.network.run(2)
    assert (leg.code, alice.received) == (403, [])
    assert world.events["not-tunnelled"] == 1


def test_an_inner_address_outside_of_the_tunnels_is_nobodys() -> None:
    """Anybody on the server's network can write a client's address into a packet's source."""
    world, alice, provider = a_world()
    leg = alice.call("+4930")
    world.network.run(5)
    spoofed = world.phone("alice", "10.64.0.2", port=5070, core=True)
    call = spoofed.call("+4931")
    spoofed.register()
    bye = replace(leg, events=list(leg.events), routes=list(leg.routes))
    spoofed.in_dialog(bye, "BYE")
    world.network.run(2)
    assert call.code == 403
    assert spoofed.registered == ["403"]
    assert bye.events[-1] == "BYE 403"
    assert provider.calls[leg.call_id].state == "answered"
    assert world.events["not-a-party"] == 1


@pytest.mark.parametrize("pair", PAIRS)
def test_a_desk_phone_registers_with_its_password_and_is_called_and_calls(pair: tuple[str, str]) -> None:
    world = World(Network(seed=4), settings=settings())
    alice = world.phone("alice", "10.64.0.2", transport=pair[0])
    desk = world.phone("bob", "192.0.2.70", transport=pair[1], core=True)
    desk.media_port = 18000
    alice.register()
    desk.register()
    world.network.run(1)
    assert desk.registered == ["200"]
    there, back = alice.call("bob"), desk.call("alice")
    world.network.run(5)
    assert there.state == back.state == "answered"
    assert {(relay.core_a, relay.core_b) for relay in world.rtp()} == {(False, True), (True, False)}
    alice.hang_up(there)
    desk.hang_up(back)
    world.network.run(1)
    assert len(world.ended) == 2
    settle(world)


def test_a_desk_phone_needs_the_password_and_the_right_network() -> None:
    world = World(settings=settings())
    wrong = world.phone("bob", "192.0.2.70", core=True)
    elsewhere = world.phone("bob", "192.0.2.5", core=True)
    wrong.password = "guess"
    wrong.register()
    elsewhere.register()
    world.network.run(1)
    assert (wrong.registered, elsewhere.registered) == (["401"], ["403"])
    leg = wrong.call("alice")
    world.network.run(1)
    assert leg.code == 403


def test_a_desk_phone_calls_in_its_own_name_only() -> None:
    world = World(settings=settings())
    desk, alice = world.phone("bob", "192.0.2.70", core=True), world.phone("alice", "10.64.0.2")
    desk.register()
    alice.register()
    world.network.run(1)
    leg = desk.call("alice", from_user="carol")
    world.network.run(1)
    assert (leg.code, world.events["caller-foreign-name"]) == (403, 1)


def test_a_trunk_that_cannot_be_reached_is_an_error_at_once() -> None:
    world, alice, provider = a_world(("udp", "tcp"))
    world.pipes.refuses.add(provider.address)
    leg = alice.call("+4930")
    world.network.run(1)
    assert leg.code == 500  # a 503 of one trunk is no word about all of us (RFC 3261 section 16.7)
    settle(world)


def test_a_trunk_asks_whether_we_are_there() -> None:
    world, _, provider = a_world()
    ping = (
        "OPTIONS sip:192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.20:5060;branch=z9hG4bKping\r\n"
        "From: <sip:192.0.2.20>;tag=1\r\nTo: <sip:192.0.2.10>\r\nCall-ID: ping\r\nCSeq: 1 OPTIONS\r\n"
        "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    )
    world.receive((provider.address, 5060), ping.encode())
    world.network.run(1)
    assert provider.answers == [200]


def test_when_the_core_ports_are_used_up_the_next_call_is_503_and_inner_calls_go_on() -> None:
    world, alice, _ = a_world()
    bob = world.phone("bob", "10.64.0.3")
    bob.register()
    world.network.run(1)
    legs = [alice.call(f"+49{n}") for n in range(21)]
    world.network.run(5)
    assert [leg.code for leg in legs] == [0] * 20 + [503]
    inside = alice.call("bob")
    world.network.run(5)
    assert inside.state == "answered"
    for leg in [*legs[:20], inside]:
        alice.hang_up(leg)
    settle(world)


def test_a_call_over_a_trunk_can_be_ended_after_a_restart() -> None:
    """The new process knows nothing of the call; the flow token in its Route leads on."""
    world, alice, provider = a_world()
    leg = alice.call("+4930")
    world.network.run(5)
    users = Users.from_passwords("example.org", {"alice": "alice-secret"})
    world.core = SbcCore(world.settings, users, world.clients.get, key=b"k" * 32, new_id=world.network.word)
    provider.hang_up(provider.calls[leg.call_id])
    world.network.run(1)
    assert leg.state == "ended"


def test_where_the_kernel_routes_a_trunk_reaches_the_inner_address() -> None:
    """Core side `tun`: no sockets of the kernel's, inner ports towards the trunk too."""
    world = World(settings=replace(settings(), core=None))
    alice, trunk = world.phone("alice", "10.64.0.2"), world.phone("pstn", "192.0.2.20", core=True)
    trunk.core, trunk.domain = False, SERVER
    alice.register()
    world.network.run(1)
    out, into = alice.call("+4930"), trunk.call("alice")
    world.network.run(5)
    assert out.state == into.state == "answered"
    assert not any(relay.core_a or relay.core_b for relay in world.rtp())
    assert {relay.local_b[0] for relay in world.rtp()} == {SERVER}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("code", [401, 407])
def test_a_trunks_challenge_is_answered_with_our_account(pair: tuple[str, str], code: int) -> None:
    account = replace(settings(pair[1]).trunks[0], username="4930", password="s3cret")
    world, alice, provider = a_world(pair, replace(settings(pair[1]), trunks=(account,)))
    provider.demands, provider.demand_code = "4930:s3cret", code
    leg = alice.call("+49301")
    world.network.run(5)
    assert leg.state == "answered"
    assert provider.received == ["INVITE", "INVITE"]
    assert code not in alice.answers[2:], "she is not asked for our account"
    alice.hang_up(leg)
    world.network.run(2)
    assert provider.calls[leg.call_id].state == "ended"
    settle(world)


@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_challenge_that_cannot_be_answered_is_the_callers_to_see(password: str) -> None:
    account = replace(settings().trunks[0], username="4930" if password else "", password=password)
    world, alice, provider = a_world(settled=replace(settings(), trunks=(account,)))
    provider.demands = "4930:s3cret"
    leg = alice.call("+49301")
    world.network.run(2)
    assert leg.code == 407
    assert len(provider.received) == (2 if password else 1)
    settle(world)


def test_tokens_keep_the_two_sides_apart() -> None:
    tokens = World().core._shared.tokens
    inside, outside = (Hop("tcp", CORE, ("10.64.0.2", 5060), core) for core in (False, True))
    assert tokens.token(inside) != tokens.token(outside)
    assert tokens.hop_untrusted(tokens.token(outside)) == outside
