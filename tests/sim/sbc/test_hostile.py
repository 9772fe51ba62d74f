"""Hostile and odd SIP, of the kinds that RFC 4475 collects: what comes back, and that other calls live on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opentsm.sbc.hop import Hop
from opentsm.sbc.settings import CoreSide, Trunk
from tests.sim.sbc.phone import Leg, Phone
from tests.sim.sbc.world import CORE, SERVER, SETTINGS, World, two_phones

MALLORY = ("10.64.0.66", 5060)


def _message(
    start: str = "OPTIONS sip:example.org SIP/2.0",
    *,
    via: str = "SIP/2.0/UDP 10.64.0.66:5060;branch=z9hG4bKodd",
    cseq: str = "7 OPTIONS",
    to: str = "<sip:bob@example.org>",
    from_: str = "<sip:mallory@example.org>;tag=m1",
    more: str = "",
    body: str = "",
    length: str | None = None,
) -> bytes:
    text = (
        f"{start}\r\nVia: {via}\r\nFrom: {from_}\r\nTo: {to}\r\nCall-ID: odd-1\r\nCSeq: {cseq}\r\n{more}"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n{body}"
    )
    return text.encode()


def _in_call() -> tuple[World, Phone, Phone, Leg]:
    """Alice and Bob talk; Mallory is registered, too."""
    world, alice, bob = two_phones()
    world.phone("mallory", MALLORY[0]).register()
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(5)
    assert leg.state == "answered"
    return world, alice, bob, leg


def _codes(world: World, data: bytes, source: tuple[str, int] = MALLORY) -> list[int]:
    """Final answers to one datagram."""
    heard: list[bytes] = []
    original = world.network.send_back

    def listen(target: tuple[str, int], data: bytes) -> None:
        if target == source:
            heard.append(data)
        original(target, data)

    world.network.send_back = listen  # type: ignore[method-assign]
    phone = world.network.phones.pop(source, None)
    world.receive(source, data)
    world.network.run(0.2)
    if phone is not None:
        world.network.phones[source] = phone
    world.network.send_back = original  # type: ignore[method-assign]
    codes = [int(data.split(b" ", 2)[1]) for data in heard if data.startswith(b"SIP/2.0")]
    return [code for code in dict.fromkeys(codes) if code != 100]


def _still_works(world: World, alice: Phone, bob: Phone, leg: Leg) -> None:
    assert bob.calls[leg.call_id].state == "answered"
    assert len(world.rtp()) == 1
    alice.hang_up(leg)
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    world.network.run(150)
    world.assert_at_rest()


UDP = "SIP/2.0/UDP 10.64.0.66:5060"
OURS = f"SIP/2.0/UDP {SERVER}:5060"


def _text_to_bob(more: str) -> bytes:
    return _message("MESSAGE sip:bob@example.org SIP/2.0", cseq="7 MESSAGE", more=more)


def _text_to_nobody(number: int) -> bytes:
    via = f"{UDP};branch=z9hG4bKf{number}"
    return _message("MESSAGE sip:nobody@example.org SIP/2.0", via=via, cseq="1 MESSAGE")


VALID = {
    "odd white space and folding": (
        b"OPTIONS sip:example.org SIP/2.0\r\nTO :\r\n sip:bob@example.org ;   x-a = 1 \r\n"
        b'from   : "A \\" quote" <sip:mallory@example.org>\r\n  ;\r\n  tag = 98asjd8\r\nCaLL-Id: odd.1\r\n'
        b"cseq: 0009\r\n  OPTIONS\r\nv:  SIP  / 2.0  /UDP\r\n    10.64.0.66;branch=z9hG4bKk\r\nl: 0\r\n\r\n",
        200,
    ),
    "unusual characters in tokens": (
        _message(via=f"{UDP};branch=z9hG4bK.-!%25*_+`'~x", more="X-!%*_+`'~: odd\r\n"),
        200,
    ),
    "escapes in the user part": (_message("MESSAGE sip:b%6Fb@example.org SIP/2.0", cseq="7 MESSAGE"), 200),
    "escaped NUL in a user": (_message("MESSAGE sip:no%00body@example.org SIP/2.0", cseq="7 MESSAGE"), 404),
    "semicolon in a user": (_message("MESSAGE sip:bob;par=1@example.org SIP/2.0", cseq="7 MESSAGE"), 404),
    "commas and many Vias on one line": (
        _message(
            via=f"{UDP};branch=z9hG4bKc1, SIP/2.0/TCP 192.0.2.1;branch=z9hG4bKc2 ,SIP/2.0/UDP x.example;a=b"
        ),
        200,
    ),
    "a transport nobody has heard of": (_message(via="SIP/2.0/UNKNOWN 10.64.0.66;branch=z9hG4bKt"), 200),
    "header parameters in capitals": (_message(via=f"{UDP};RPORT;BRANCH=z9hG4bKcap"), 200),
    "an unknown method": (_message("NEWMETHOD sip:bob@example.org SIP/2.0", cseq="7 NEWMETHOD"), 200),
    "octets behind the body": (_message(length="0") + b"INVITE sip:bob@example.org SIP/2.0\r\n\r\n", 200),
    "no reason phrase needed, nor Max-Forwards": (_message(), 200),
    "text that is no UTF-8": (_message(more="Subject: X\r\n").replace(b"X", b"\xff\xfe\xa0"), 200),
    "a parameter called self": (_message(via=f"{UDP};branch=z9hG4bKself2;x=1;self=2"), 200),
    "tel in the Request-URI": (_message("MESSAGE tel:+15551234 SIP/2.0", cseq="7 MESSAGE"), 404),
}


@pytest.mark.parametrize("name", sorted(VALID))
def test_odd_but_legal_requests_are_served(name: str) -> None:
    world, alice, bob, leg = _in_call()
    data, code = VALID[name]
    assert _codes(world, data) == [code]
    _still_works(world, alice, bob, leg)


INVALID = {
    "Content-Length beyond the end": (_message(length="9999"), [400]),
    "negative Content-Length": (_message(length="-1"), [400]),
    "two different lengths": (_message(more="Content-Length: 4\r\n"), [400]),
    "huge CSeq": (_message(cseq="36893488147419103232 OPTIONS"), [400]),
    "CSeq of another method": (_message(cseq="7 INVITE"), [400]),
    "two CSeqs": (_message(more="CSeq: 8 OPTIONS\r\n"), [400]),
    "two Froms": (_message(more="From: <sip:alice@example.org>;tag=x\r\n"), [400]),
    "a quote that is not closed": (_message(to='"Mr. Bob <sip:bob@example.org>'), [400]),
    "a bracket that is not closed": (_message(to="<sip:bob@example.org"), [400]),
    "a URI in brackets as Request-URI": (_message("OPTIONS <sip:example.org> SIP/2.0"), [400]),
    "white space in the Request-URI": (_message("OPTIONS sip:example.org; lr SIP/2.0"), [400]),
    "two spaces in the start line": (_message("OPTIONS  sip:example.org  SIP/2.0"), [400]),
    "another version": (_message("OPTIONS sip:example.org SIP/7.0"), [505]),
    "a scheme we do not route": (_message("MESSAGE soap.beep://bob SIP/2.0", cseq="7 MESSAGE"), [416]),
    "a host with an underscore and a colon": (_message("OPTIONS sip:exa_mple:org SIP/2.0"), [400]),
    "a missing From": (_message().replace(b"From:", b"Frim:"), [400]),
    "Max-Forwards used up": (_text_to_bob("Max-Forwards: 0\r\n"), [483]),
    "Max-Forwards that is no number": (_message(more="Max-Forwards: many\r\n"), [400]),
    "an extension that proxies must know": (_message(more="Proxy-Require: magic, wand\r\n"), [420]),
    "a Route to a stranger": (
        _message("MESSAGE sip:x@192.0.2.9 SIP/2.0", cseq="7 MESSAGE", more="Route: <sip:192.0.2.9;lr>\r\n"),
        [403],
    ),
    "a forged flow token": (
        _message(
            "MESSAGE sip:bob@10.64.0.3 SIP/2.0",
            cseq="7 MESSAGE",
            more=f"Route: <sip:AAAA@{SERVER}:5060;lr>\r\n",
        ),
        [400],
    ),
    "a Via that is none": (_message(via="nonsense"), []),
    "a CANCEL of nothing": (_message("CANCEL sip:bob@example.org SIP/2.0", cseq="7 CANCEL"), [481]),
    "a BYE of no call": (
        _message("BYE sip:bob@example.org SIP/2.0", cseq="7 BYE", to="<sip:bob@example.org>;tag=no"),
        [481],
    ),
    "a control character": (_message(more="Subject: a\x01b\r\n"), []),
    "a bare line feed": (_message(more="Subject: a\nVia: b\r\n"), []),
    "no empty line": (b"OPTIONS sip:example.org SIP/2.0\r\nVia: x\r\n", []),
    "a response nobody waits for": (_message("SIP/2.0 200 OK", via=f"{OURS};branch=z9hG4bKx"), []),
    "a response for somebody else": (_message("SIP/2.0 200 OK", via="SIP/2.0/UDP 192.0.2.1;a=b"), []),
    "a response code beyond all": (_message("SIP/2.0 4294967301 better not break"), []),
    "an ACK of nothing": (_message("ACK sip:bob@example.org SIP/2.0", cseq="7 ACK"), []),
    "too many header lines": (_message(more="X: y\r\n" * 500), []),
    "too long": (_message(more="X: " + "y" * 40_000 + "\r\n"), []),
    "REGISTER with * and no zero": (
        _message("REGISTER sip:example.org SIP/2.0", cseq="7 REGISTER", more="Contact: *\r\n"),
        [403],
    ),
    "SDP that is none": (
        _message(
            "INVITE sip:bob@example.org SIP/2.0",
            cseq="7 INVITE",
            more="Content-Type: application/sdp\r\nContact: <sip:mallory@10.64.0.66>\r\n",
            body="hello",
        ),
        [488],
    ),
    "SDP with a thousand m-lines": (
        _message(
            "INVITE sip:bob@example.org SIP/2.0",
            cseq="7 INVITE",
            more="Content-Type: application/sdp\r\nContact: <sip:mallory@10.64.0.66>\r\n",
            body="v=0\r\nc=IN IP4 10.64.0.66\r\n" + "m=audio 9 RTP/AVP 0\r\n" * 400,
        ),
        [488],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(INVALID))
def test_malformed_requests_are_refused_or_dropped_by_name(name: str) -> None:
    world, alice, bob, leg = _in_call()
    before = sum(world.events.values())
    data, codes = INVALID[name]
    assert _codes(world, data) == codes
    if name != "a BYE of no call":
        assert sum(world.events.values()) > before
    _still_works(world, alice, bob, leg)


def test_a_third_party_cannot_end_a_call_though_it_knows_its_tags() -> None:
    world, alice, bob, leg = _in_call()
    stolen = _message(
        "BYE sip:bob@10.64.0.3 SIP/2.0",
        cseq="900 BYE",
        from_=f"<sip:alice@example.org>;tag={leg.own_tag}",
        to=f"<sip:bob@example.org>;tag={leg.far_tag}",
    ).replace(b"odd-1", leg.call_id.encode())
    assert _codes(world, stolen) == [403]
    assert world.events["not-a-party"] == 1
    _still_works(world, alice, bob, leg)


def test_a_stolen_call_id_and_tag_do_not_touch_the_call() -> None:
    world, alice, bob, leg = _in_call()
    mallory = world.network.phones[MALLORY]
    stolen = mallory.call("bob", call_id=leg.call_id, tag=leg.own_tag)
    world.network.run(1)
    assert stolen.code == 403
    assert world.events["call-id-collision"] == 1
    _still_works(world, alice, bob, leg)


def test_a_stolen_branch_cancels_nothing() -> None:
    world, alice, bob = two_phones()
    bob.behaviour = "ring"
    world.network.run(1)
    leg = alice.call("bob")
    world.network.run(2)
    cancel = _message(
        "CANCEL sip:bob@example.org SIP/2.0",
        via=f"SIP/2.0/UDP 10.64.0.2:5060;branch={leg.events[1]};rport",
        cseq=f"{leg.sequence} CANCEL",
    )
    assert _codes(world, cancel) == [481]
    assert bob.calls[leg.call_id].state == "ringing"


def test_a_flood_from_one_client_costs_the_others_nothing() -> None:
    world, alice, bob, leg = _in_call()
    for number in range(6000):
        world.receive(MALLORY, _text_to_nobody(number))
    assert world.events["sip-flood"] > 3000
    third = world.phone("carol", "10.64.0.8")
    third.register()
    world.network.run(1)
    assert third.registered == ["200"]
    second = third.call("bob")
    world.network.run(4)
    assert second.state == "answered"
    third.hang_up(second)
    world.network.run(1)
    _still_works(world, alice, bob, leg)


def test_one_client_cannot_take_every_transaction() -> None:
    world, alice, bob, leg = _in_call()
    number = 0
    for _ in range(20):
        for _ in range(400):
            number += 1
            world.receive(MALLORY, _text_to_nobody(number))
        world.network.run(0.8)
    assert world.events["overload"] > 0
    assert _codes(world, _text_to_nobody(number + 1)) == [503]
    second = alice.call("bob")
    world.network.run(3)
    assert second.state == "answered"
    alice.hang_up(second)
    world.network.run(1)
    _still_works(world, alice, bob, leg)


def test_a_loop_is_found_and_a_spiral_is_none() -> None:
    world, alice, bob = two_phones()
    world.network.run(1)
    alice.outside("MESSAGE", "bob")
    caught: list[bytes] = []
    bob.receive = caught.append  # type: ignore[method-assign,assignment]
    world.network.run(0.5)
    # Bob sends what he got back to where it came from: the SBC would send it to him again, for ever.
    looped = caught[0].replace(b"MESSAGE sip:bob@10.64.0.3:5060", b"MESSAGE sip:bob@example.org", 1)
    top = b"Via: SIP/2.0/UDP 10.64.0.3:5060;branch=z9hG4bKloop\r\nVia:"
    assert _codes(world, looped.replace(b"Via:", top, 1), ("10.64.0.3", 5060)) == [482]
    # To another user it is a spiral; it fails only because it is not in Bob's name.
    onward = looped.replace(b"MESSAGE sip:bob@example.org", b"MESSAGE sip:carol@example.org", 1)
    top = b"Via: SIP/2.0/UDP 10.64.0.3:5060;branch=z9hG4bKspiral\r\nVia:"
    assert _codes(world, onward.replace(b"Via:", top, 1), ("10.64.0.3", 5060)) == [403]


def test_when_the_ports_are_used_up_the_next_call_is_503_and_the_others_go_on() -> None:
    world, alice, _ = two_phones()
    world.network.run(1)
    legs = []
    for _ in range(50):
        legs.append(alice.call("bob"))
        world.network.run(0.2)
    world.network.run(3)
    assert {leg.state for leg in legs} == {"answered"}
    extra = alice.call("bob")
    world.network.run(1)
    assert extra.code == 503
    alice.hang_up(legs[0])
    world.network.run(1)
    again = alice.call("bob")
    world.network.run(3)
    assert again.state == "answered"
    for leg in [*legs[1:], again]:
        alice.hang_up(leg)
    world.network.run(150)
    world.assert_at_rest()


def _mutate(data: bytes, seed: int) -> bytes:
    """A valid message with a few things wrong."""
    chance = random.Random(seed)
    mutated = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(mutated))
        kind = chance.randrange(5)
        if kind == 0:
            mutated[at] = chance.randrange(256)
        elif kind == 1:
            del mutated[at : at + chance.randint(1, 30)]
        elif kind == 2:
            mutated[at:at] = bytes(chance.choices(b' ;,<>"=@:\r\n%\\\0\xff[]', k=chance.randint(1, 8)))
        elif kind == 3:
            other = chance.randrange(len(mutated))
            mutated[at:at] = mutated[other : other + 40]
        else:
            mutated[at:at] = b"9" * chance.randint(1, 30)
        if not mutated:
            break
    return bytes(mutated)


@pytest.mark.fuzz
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_mutated_traffic_of_a_call_never_stops_another_call(seed: int) -> None:
    world, alice, bob, leg = _in_call()
    for phone in world.network.phones.values():
        phone.lenient = True
    recorded = _record_a_call(seed % 3 == 0)
    for number, data in enumerate(recorded):
        world.receive(MALLORY, _mutate(data, seed + number))
        world.network.run(0.1)
    alice.in_dialog(leg, "INFO")
    world.network.run(1)
    assert leg.events[-1] == "INFO 200"
    alice.hang_up(leg)
    world.network.run(1)
    assert bob.calls[leg.call_id].state == "ended"
    # A call whose BYE was damaged stands until its day is over.
    world.network.run(25 * 3600)
    assert world.core.sizes()["calls"] == 0
    assert world.core.sizes()["transactions"] == 0
    assert world.core.sizes()["media-ports-free"] == 100


def _record_a_call(late: bool) -> list[bytes]:
    """What Mallory's phone and those it talks to would send for a registration and a call."""
    world = World()
    mallory, bob = world.phone("mallory", MALLORY[0]), world.phone("bob", "10.64.0.3")
    recorded: list[bytes] = []
    original = world.network.send

    def send(source: tuple[str, int], data: bytes) -> None:
        recorded.append(data)
        original(source, data)

    world.network.send = send  # type: ignore[method-assign]
    mallory.register()
    bob.register()
    world.network.run(1)
    leg = mallory.call("bob", late=late)
    world.network.run(3)
    mallory.hold(leg)
    mallory.hang_up(leg)
    world.network.run(1)
    return recorded


@pytest.mark.fuzz
@given(data=st.binary(max_size=600))
def test_any_bytes_are_survived(data: bytes) -> None:
    world = World()
    world.phone("alice", "10.64.0.2")
    actions = world.core.receive(1.0, Hop("udp", (SERVER, 5060), ("10.64.0.2", 5060)), data)
    assert len(actions) <= 3


@pytest.mark.fuzz
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), core=st.booleans())
def test_mutated_traffic_on_connections_never_stops_another_call(seed: int, core: bool) -> None:
    """The same by TCP, cut in pieces anywhere, from a tunnel or from a stranger on the server's own network;
    and the call that must not notice is one over a trunk."""
    provider = Trunk("provider", "192.0.2.20", numbers=("+",))
    side = CoreSide(CORE[0], media_ports=(40000, 40099), phones=("192.0.2.0/24",))
    world = World(settings=replace(SETTINGS, core=side, trunks=(provider,)))
    alice, trunk = world.phone("alice", "10.64.0.2"), world.phone("pstn", "192.0.2.20", core=True)
    alice.register()
    world.network.run(1)
    leg = alice.call("+4930")
    world.network.run(5)
    assert leg.state == "answered"
    for phone in world.network.phones.values():
        phone.lenient = True
    address = "192.0.2.66" if core else MALLORY[0]
    mallory = world.phone("mallory", address, transport="tcp", core=core)
    mallory.lenient = True
    chance = random.Random(seed)
    for number, data in enumerate(_record_a_call(seed % 3 == 0)):
        over_tcp = data.replace(b"SIP/2.0/UDP", b"SIP/2.0/TCP").replace(MALLORY[0].encode(), address.encode())
        mutated = over_tcp if chance.random() < 0.3 else _mutate(over_tcp, seed + number)
        world.receive((address, 5060), mutated)
        world.network.run(0.1)
    alice.in_dialog(leg, "INFO")
    world.network.run(1)
    assert leg.events[-1] == "INFO 200"
    alice.hang_up(leg)
    world.network.run(1)
    assert trunk.calls[leg.call_id].state == "ended"
    world.network.run(25 * 3600)
    assert world.core.sizes()["calls"] == 0
    assert world.core.sizes()["transactions"] == 0
