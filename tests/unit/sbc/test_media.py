"""One call's media, from SDP to relay rules and media flows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.sbc.actions import CloseRelay, MediaAction, MediaFlows, OpenRelay, UpdateRelay
from opentsm.sbc.media import Leg, MediaSession, NoPorts, Pools, PortPool
from opentsm.sbc.parties import Side
from opentsm.sbc.sdp import Description, parse_untrusted
from opentsm.types import Flow, Protocol

SBC = "10.64.0.1"
SBC6 = "fd00::1"
ALICE = Leg(SBC, ("10.64.0.2", "fd00::2"), "10.64.0.2", other=SBC6)
BOB = Leg(SBC, ("10.64.0.3",), "10.64.0.3")
TRUNK = Leg(SBC, (), "192.0.2.10")
CORE_PORTS = PortPool(40000, 40039)


def sdp(*media: str, address: str = "10.64.0.2", more: tuple[str, ...] = ()) -> Description:
    lines = ["v=0", f"c=IN IP{6 if ':' in address else 4} {address}"]
    for line in media:
        lines += [f"m={line}", *more]
    return parse_untrusted("".join(f"{line}\r\n" for line in lines).encode())


def session(callee: Leg = BOB, *, anchoring: bool = True) -> tuple[MediaSession, PortPool]:
    ports = PortPool(20000, 20039)
    return MediaSession(1, Pools(ports, CORE_PORTS), ALICE, callee, anchoring=anchoring), ports


def opened(actions: list[MediaAction]) -> list[OpenRelay]:
    return [action for action in actions if isinstance(action, OpenRelay)]


def closed(actions: list[MediaAction]) -> int:
    return sum(isinstance(action, CloseRelay) for action in actions)


def test_an_offer_and_its_answer_make_a_relay_for_rtp_and_one_for_rtcp() -> None:
    media, ports = session()
    seen, actions = media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    rtp, rtcp = opened(actions)
    assert (rtp.local_a, rtp.local_b) == ((SBC, 20000), (SBC, 20002))
    assert (rtp.remote_a, rtp.remote_b, rtp.rtp) == (("10.64.0.2", 16000), None, True)
    assert (rtcp.remote_a, rtcp.local_b, rtcp.rtp) == (("10.64.0.2", 16001), (SBC, 20003), False)
    assert seen.media[0].port == 20002
    far = [flow.far for action in actions if isinstance(action, MediaFlows) for flow in action.flows]
    assert [str(address) + f":{port}" for address, port in filter(None, far)] == [
        f"{SBC}:20000",
        f"{SBC}:20001",
    ]

    seen, actions = media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 8", address="10.64.0.3"))
    assert seen.media[0].port == 20000
    assert UpdateRelay(rtp.key, None, ("10.64.0.3", 18000)) in actions
    assert media.codec == "PCMA"
    assert ports.free == 18
    actions = media.close()
    assert closed(actions) == 2
    assert {a.address for a in actions if isinstance(a, MediaFlows) and not a.active} == {
        "10.64.0.2",
        "10.64.0.3",
    }
    assert ports.free == 20


def test_muxed_rtcp_needs_no_relay_of_its_own_once_both_agreed() -> None:
    media, _ = session()
    _, actions = media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0", more=("a=rtcp-mux",)))
    assert len(opened(actions)) == 2
    _, actions = media.answer(
        Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="10.64.0.3", more=("a=rtcp-mux",))
    )
    assert closed(actions) == 1


def test_fax_is_relayed_without_rtcp_and_without_being_taken_for_rtp() -> None:
    media, _ = session()
    _, actions = media.offer(Side.CALLER, sdp("image 16004 udptl t38"))
    (relay,) = opened(actions)
    assert not relay.rtp
    media.answer(Side.CALLEE, sdp("image 18004 udptl t38", address="10.64.0.3"))
    assert media.codec == "T38"


def test_a_refused_m_line_and_one_over_tcp_get_no_relay() -> None:
    media, _ = session()
    offer = sdp("audio 16000 RTP/AVP 0", "video 16002 RTP/AVP 96", "application 9 TCP/MSRP *")
    seen, actions = media.offer(Side.CALLER, offer)
    assert len(opened(actions)) == 4
    assert seen.media[2].port == 9
    answer = sdp(
        "audio 18000 RTP/AVP 0", "video 0 RTP/AVP 96", "application 9 TCP/MSRP *", address="10.64.0.3"
    )
    seen, actions = media.answer(Side.CALLEE, answer)
    assert closed(actions) == 2
    assert [line.port for line in seen.media] == [20000, 0, 9]


def test_an_offer_in_mid_call_changes_nothing_until_it_is_answered() -> None:
    media, _ = session()
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="10.64.0.3"))
    media.settle()
    seen, actions = media.offer(Side.CALLEE, sdp("audio 18100 RTP/AVP 0", address="10.64.0.3"))
    assert actions == []
    assert seen.media[0].port == 20000
    media.discard_offer()
    _, actions = media.answer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    assert actions == []
    media.offer(Side.CALLEE, sdp("audio 18200 RTP/AVP 0", address="10.64.0.3"))
    _, actions = media.answer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    updates = [a for a in actions if isinstance(a, UpdateRelay)]
    assert [update.remote_b for update in updates] == [("10.64.0.3", 18200), ("10.64.0.3", 18201)]
    flows = [a for a in actions if isinstance(a, MediaFlows)]
    assert [(a.active, {f.port for f in a.flows}) for a in flows] == [
        (False, {18000, 18001}),
        (True, {18200, 18201}),
    ]


def test_hold_by_address_is_passed_on_and_keeps_the_relay() -> None:
    media, _ = session()
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="10.64.0.3"))
    media.settle()
    seen, _ = media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0", address="0.0.0.0"))
    assert b"c=IN IP4 0.0.0.0" in seen.encode()
    _, actions = media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="10.64.0.3"))
    assert actions == []


def test_streams_can_be_added_and_taken_away() -> None:
    media, ports = session()
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="10.64.0.3"))
    media.settle()
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0", "video 16002 RTP/AVP 96"))
    _, actions = media.answer(
        Side.CALLEE, sdp("audio 18000 RTP/AVP 0", "video 18002 RTP/AVP 96", address="10.64.0.3")
    )
    first = opened(actions)
    assert len(first) == 2
    media.settle()
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0", "video 0 RTP/AVP 96"))
    _, actions = media.answer(
        Side.CALLEE, sdp("audio 18000 RTP/AVP 0", "video 0 RTP/AVP 96", address="10.64.0.3")
    )
    assert closed(actions) == 2
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0", "video 16002 RTP/AVP 96"))
    _, actions = media.answer(
        Side.CALLEE, sdp("audio 18000 RTP/AVP 0", "video 18002 RTP/AVP 96", address="10.64.0.3")
    )
    again = opened(actions)
    assert {relay.key for relay in again}.isdisjoint(relay.key for relay in first)
    media.close()
    assert ports.free == ports.size


@pytest.mark.parametrize(
    ("claimed", "meant"),
    [
        ("192.168.1.7", "10.64.0.2"),
        ("10.64.0.3", "10.64.0.2"),
        ("2001:db8::1", "fd00::2"),
        ("fd00::2", "fd00::2"),
        ("host.lan", "10.64.0.2"),
    ],
)
def test_a_client_receives_on_its_own_inner_address_only(claimed: str, meant: str) -> None:
    media, _ = session()
    _, actions = media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0", address=claimed))
    assert opened(actions)[0].remote_a == (meant, 16000)
    assert media.corrected == (claimed != meant)


def test_the_core_side_may_name_its_media_server() -> None:
    media, _ = session(callee=TRUNK)
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    _, actions = media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="192.0.2.99"))
    assert any(isinstance(a, UpdateRelay) and a.remote_b == ("192.0.2.99", 18000) for a in actions)
    assert not any(isinstance(a, MediaFlows) and a.address == "192.0.2.10" for a in actions)


def test_without_anchoring_only_addresses_are_put_right() -> None:
    media, ports = session(anchoring=False)
    seen, actions = media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0", address="192.168.1.7"))
    assert b"c=IN IP4 10.64.0.2" in seen.encode()
    assert seen.media[0].port == 16000
    flows = (Flow(Protocol.UDP, 16000), Flow(Protocol.UDP, 16001))
    assert actions == [MediaFlows("10.64.0.2", flows, active=True)]
    assert ports.free == ports.size


def test_ports_run_out_by_name_and_come_back() -> None:
    media, ports = session()
    with pytest.raises(NoPorts):
        media.offer(Side.CALLER, sdp(*["audio 16000 RTP/AVP 0"] * 11))
    media.close()
    assert ports.free == ports.size
    taken = ports.take()
    ports.give_back(taken)
    assert ports.take() != taken, "a port rests as long as possible"


LINES = [
    "audio 16000 RTP/AVP 0",
    "video 16002 RTP/AVP 96",
    "image 16004 udptl t38",
    "audio 0 RTP/AVP 0",
    "message 7 TCP/MSRP *",
]
MEDIA = st.lists(st.sampled_from(LINES), min_size=1, max_size=4)
ADDRESS = st.sampled_from(["10.64.0.2", "0.0.0.0", "fd00::2", "192.168.1.1"])
STEP = st.tuples(
    st.sampled_from(["offer", "answer", "settle", "discard", "leg"]), st.sampled_from(Side), MEDIA, ADDRESS
)


@given(st.lists(STEP, max_size=12))
def test_any_course_of_offers_and_answers_ends_with_nothing_left(
    steps: list[tuple[str, Side, list[str], str]],
) -> None:
    media, ports = session()
    relays: set[object] = set()
    locals_in_use: dict[object, tuple[object, object]] = {}
    flows: dict[str, set[Flow]] = {}

    def follow(actions: list[MediaAction]) -> None:
        for action in actions:
            if isinstance(action, OpenRelay):
                assert action.key not in relays
                both = {action.local_a, action.local_b}
                assert all(both.isdisjoint(pair) for pair in locals_in_use.values())
                relays.add(action.key)
                locals_in_use[action.key] = (action.local_a, action.local_b)
            elif isinstance(action, CloseRelay):
                relays.remove(action.key)
                del locals_in_use[action.key]
            elif isinstance(action, UpdateRelay):
                assert action.key in relays
            elif action.active:
                assert flows.setdefault(action.address, set()).isdisjoint(action.flows)
                flows[action.address].update(action.flows)
            else:
                assert flows[action.address] >= set(action.flows)
                flows[action.address].difference_update(action.flows)

    for what, side, lines, address in steps:
        if what == "settle":
            media.settle()
        elif what == "discard":
            media.discard_offer()
        elif what == "leg":
            follow(
                media.set_leg(
                    Side.CALLEE,
                    Leg("192.0.2.10", (), "192.0.2.20", core=True)
                    if side is Side.CALLER
                    else Leg(SBC, (f"10.64.0.{len(lines) + 3}",), f"10.64.0.{len(lines) + 3}"),
                )
            )
        else:
            step = media.offer if what == "offer" else media.answer
            follow(step(side, sdp(*lines, address=address))[1])
    follow(media.close())
    assert not relays
    assert not any(flows.values())
    assert ports.free == ports.size
    assert CORE_PORTS.free == CORE_PORTS.size


# -- every kind of media that there is ---------------------------------------------------------------
SDES = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz|2^20|1:4"
DTLS = (
    "a=fingerprint:sha-256 6B:8B:F0:65:5F:78:E2:51:3B:AC:6F:F3:3F:46:1B:35:DC:B8:5F:64:1A:24:C2:43:F0:A1:58",
    "a=setup:actpass",
    "a=tls-id:89J2LRATQ3ULA24G9AHWVR31VJWSLB68",
)
T38 = (
    "a=T38FaxVersion:0",
    "a=T38MaxBitRate:14400",
    "a=T38FaxRateManagement:transferredTCF",
    "a=T38FaxUdpEC:t38UDPRedundancy",
)
KINDS = {
    "audio": ("audio 16000 RTP/AVP 0 8 101", ("a=rtpmap:101 telephone-event/8000",), True, True),
    "video": ("video 16000 RTP/AVPF 96", ("a=rtpmap:96 VP8/90000", "a=rtcp-fb:96 nack pli"), True, True),
    "fax": ("image 16000 udptl t38", T38, False, False),
    "SRTP with keys in SDP": ("audio 16000 RTP/SAVP 0", (SDES,), True, False),
    "SRTP with keys by DTLS": ("audio 16000 UDP/TLS/RTP/SAVPF 111", DTLS, True, False),
    "real-time text": ("text 16000 RTP/AVP 98", ("a=rtpmap:98 t140/1000",), True, True),
    "RTCP on the same port": ("audio 16000 RTP/AVP 0", ("a=rtcp-mux",), True, True),
    "slides over DTLS": (
        "application 16000 UDP/DTLS/SCTP webrtc-datachannel",
        ("a=sctp-port:5000",),
        False,
        False,
    ),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("address", ["10.64.0.2", "fd00::2"])
def test_every_kind_is_relayed_and_only_its_place_changes(name: str, address: str) -> None:
    line, attributes, rtp, rtcp = KINDS[name]
    media, _ = session()
    seen, actions = media.offer(Side.CALLER, sdp(line, address=address, more=attributes))
    relay = opened(actions)[0]
    assert (relay.rtp, relay.rtcp) == (rtp, rtcp)
    assert relay.remote_a == (address, 16000)
    assert relay.local_a[0] == (SBC6 if ":" in address else SBC)
    kind, _, proto = line.split(" ", 2)
    text = seen.encode().decode()
    assert f"m={kind} {relay.local_b[1]} {proto}\r\n" in text
    assert [one for one in text.split("\r\n") if one.startswith("a=")] == list(attributes)
    assert f"c=IN IP4 {SBC}" in text
    assert address not in text
    answered, _ = media.answer(Side.CALLEE, sdp(line, address="10.64.0.3", more=attributes))
    back = answered.encode().decode()
    assert f"c=IN IP{6 if ':' in address else 4} {relay.local_a[0]}" in back
    assert f"m={kind} {relay.local_a[1]} {proto}\r\n" in back


def test_rtcp_at_a_place_of_its_own_is_relayed_there() -> None:
    media, _ = session()
    seen, actions = media.offer(
        Side.CALLER, sdp("audio 16000 RTP/AVP 0", more=("a=rtcp:17001 IN IP4 10.64.0.2",))
    )
    rtp, rtcp = opened(actions)
    assert (rtp.remote_a, rtcp.remote_a) == (("10.64.0.2", 16000), ("10.64.0.2", 17001))
    assert f"a=rtcp:{rtp.local_b[1] + 1}" in seen.encode().decode()


def test_speech_that_turns_into_fax_keeps_its_relay_and_is_no_longer_read_as_rtp() -> None:
    """A re-INVITE to T.38 (ITU-T T.38 annex D) on the same m-line."""
    media, _ = session()
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="10.64.0.3"))
    media.settle()
    media.offer(Side.CALLEE, sdp("image 18000 udptl t38", address="10.64.0.3"))
    _, actions = media.answer(Side.CALLER, sdp("image 16000 udptl t38"))
    assert opened(actions) == []
    assert closed(actions) == 1, "the relay of RTCP"
    (update,) = [action for action in actions if isinstance(action, UpdateRelay)]
    assert update.follow == (False, False)
    assert media.codec == "T38"


def test_the_core_side_has_ports_of_its_own() -> None:
    core = Leg("192.0.2.10", (), "192.0.2.20", core=True, early=("192.0.2.20",))
    media, ports = session(core)
    free = CORE_PORTS.free
    seen, actions = media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    rtp, rtcp = opened(actions)
    assert (rtp.core_a, rtp.core_b, rtp.local_a[0], rtp.local_b[0]) == (False, True, SBC, "192.0.2.10")
    assert 40000 <= rtp.local_b[1] < rtcp.local_b[1] <= 40039
    assert seen.media[0].port == rtp.local_b[1]
    assert rtp.early_b == ("192.0.2.20",)
    assert (ports.free, CORE_PORTS.free) == (ports.size - 1, free - 1)
    media.close()
    assert (ports.free, CORE_PORTS.free) == (ports.size, free)


def test_a_callee_on_the_other_side_gets_ports_of_that_side() -> None:
    """An inner phone rang first; in the end somebody on the core side answers."""
    media, ports = session()
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    core = Leg("192.0.2.10", (), "192.0.2.20", core=True)
    assert closed(media.set_leg(Side.CALLEE, core)) == 2
    _, actions = media.answer(Side.CALLEE, sdp("audio 30000 RTP/AVP 0", address="192.0.2.20"))
    rtp, _ = opened(actions)
    assert (rtp.core_b, rtp.remote_b) == (True, ("192.0.2.20", 30000))
    assert ports.free == ports.size - 1
    media.close()
    assert ports.free == ports.size


def test_an_answer_is_of_the_family_that_was_offered() -> None:
    """Bob was told an IPv4 place; his IPv6 address would never hear anything."""
    both = Leg(SBC, ("10.64.0.3", "fd00::3"), "10.64.0.3", other=SBC6)
    media, _ = session(both)
    media.offer(Side.CALLER, sdp("audio 16000 RTP/AVP 0"))
    _, actions = media.answer(Side.CALLEE, sdp("audio 18000 RTP/AVP 0", address="fd00::3"))
    update = next(action for action in actions if isinstance(action, UpdateRelay))
    assert update.remote_b == ("10.64.0.3", 18000)
    assert media.corrected == 1
