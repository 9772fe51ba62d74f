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
                    Side.CALLEE, Leg(SBC, (f"10.64.0.{len(lines) + 3}",), f"10.64.0.{len(lines) + 3}")
                )
            )
        else:
            step = media.offer if what == "offer" else media.answer
            follow(step(side, sdp(*lines, address=address))[1])
    follow(media.close())
    assert not relays
    assert not any(flows.values())
    assert ports.free == ports.size
