"""From SIP to the ports on which media is expected."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from opentsm.client.callbook import CANCELLED, MAX_CALLS, RINGING, UNUSED, CallBook
from opentsm.client.signalling import Message
from opentsm.sbc.sdp import parse_untrusted
from opentsm.types import Flow, Protocol
from tests.unit.client.test_signalling import sdp

OWN = "10.64.1.10"
FAR = "10.64.0.2"


def flow(port: int, ipv6: bool = False) -> Flow:
    return Flow(Protocol.UDP, port, ipv6=ipv6)


class Calls:
    """A book that is fed by short words."""

    def __init__(self) -> None:
        self.book = CallBook([ip_address(OWN), ip_address("fd00:64::10")])
        self.now = 0.0

    def pass_by(
        self, sent: bool, method: str, status: int = 0, body: bytes = b"", call: str = "one", v6: bool = False
    ) -> set[Flow]:
        message = Message(method, status, call, parse_untrusted(body) if body else None)
        self.book.receive(message, sent=sent, ipv6=v6, now=self.now)
        return self.book.flows()

    def sent(self, method: str, status: int = 0, body: bytes = b"", **more: object) -> set[Flow]:
        return self.pass_by(True, method, status, body, **more)  # type: ignore[arg-type]

    def came(self, method: str, status: int = 0, body: bytes = b"", **more: object) -> set[Flow]:
        return self.pass_by(False, method, status, body, **more)  # type: ignore[arg-type]


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_a_call_out_from_its_offer_to_its_bye(calls: Calls) -> None:
    pair = {flow(4000), flow(4001)}
    assert calls.sent("INVITE", body=sdp(4000, OWN)) == pair
    assert calls.came("INVITE", 180) == pair
    assert calls.came("INVITE", 200, sdp(30000, FAR)) == pair
    assert calls.sent("ACK") == pair
    assert calls.sent("BYE") == set()
    assert len(calls.book) == 0


def test_a_call_in_is_known_by_its_answer_and_what_the_far_end_says_adds_nothing(calls: Calls) -> None:
    assert calls.came("INVITE", body=sdp(30000, FAR)) == set()
    assert len(calls.book) == 1
    assert calls.sent("INVITE", 200, sdp(4000, OWN)) == {flow(4000), flow(4001)}
    assert calls.came("BYE") == set()


def test_a_late_offer_stands_in_the_answer(calls: Calls) -> None:
    calls.came("INVITE")
    assert calls.sent("INVITE", 200, sdp(4000, OWN)) == {flow(4000), flow(4001)}
    assert calls.came("ACK", body=sdp(30000, FAR, "a=rtcp-mux")) == {flow(4000), flow(4001)}


def test_the_port_counts_where_the_address_is_wrong(calls: Calls) -> None:
    assert calls.sent("INVITE", body=sdp(4000, "192.168.1.5")) == {flow(4000), flow(4001)}
    wrong = sdp(5000, "192.168.1.5")
    assert flow(5000, True) in calls.sent("INVITE", body=wrong, call="two", v6=True)
    own = sdp(6000).replace(b"c=IN IP4 10.64.1.10", b"c=IN IP6 fd00:64::10")
    assert flow(6000, True) in calls.sent("INVITE", body=own, call="three")


def test_rtcp_by_name_and_on_one_port_with_rtp(calls: Calls) -> None:
    assert calls.sent("INVITE", body=sdp(4000, OWN, "a=rtcp:4444")) == {flow(4000), flow(4444)}
    calls.sent("BYE")
    muxed = sdp(4000, OWN, "a=rtcp-mux")
    assert calls.sent("INVITE", body=muxed) == {flow(4000), flow(4001)}, "not before it is agreed"
    assert calls.came("INVITE", 200, sdp(30000, FAR, "a=rtcp-mux")) == {flow(4000)}


def test_video_fax_and_what_is_refused(calls: Calls) -> None:
    more = ("m=video 5000 RTP/AVP 96", "m=image 6000 udptl t38", "m=message 7000 TCP/MSRP *")
    everything = {flow(port) for port in (4000, 4001, 5000, 5001, 6000)}
    assert calls.sent("INVITE", body=sdp(4000, OWN, *more)) == everything
    answer = sdp(30000, FAR, "m=video 0 RTP/AVP 96", "m=image 30010 udptl t38", "m=message 0 TCP/MSRP *")
    assert calls.came("INVITE", 200, answer) == {flow(4000), flow(4001), flow(6000)}


def test_a_reinvite_moves_ports_when_it_is_accepted(calls: Calls) -> None:
    old, new = {flow(4000), flow(4001)}, {flow(5000), flow(5001)}
    calls.sent("INVITE", body=sdp(4000, OWN))
    calls.came("INVITE", 200, sdp(30000, FAR))
    assert calls.sent("INVITE", body=sdp(5000, OWN)) == old | new
    assert calls.came("INVITE", 491) == old
    calls.sent("INVITE", body=sdp(5000, OWN))
    assert calls.came("INVITE", 200, sdp(30000, FAR)) == new


def test_a_refused_call_and_a_challenged_one(calls: Calls) -> None:
    calls.sent("INVITE", body=sdp(4000, OWN))
    assert calls.came("INVITE", 407) == set()
    assert calls.sent("ACK") == set()
    assert calls.sent("INVITE", body=sdp(4000, OWN)) == {flow(4000), flow(4001)}
    assert calls.came("INVITE", 486) == set()


def test_a_refused_update_leaves_the_first_offer_alone(calls: Calls) -> None:
    calls.sent("INVITE", body=sdp(4000, OWN))
    calls.sent("UPDATE", body=sdp(4000, OWN))
    assert calls.came("UPDATE", 491) == {flow(4000), flow(4001)}


def test_a_cancelled_call_may_still_be_answered_for_a_while(calls: Calls) -> None:
    calls.sent("INVITE", body=sdp(4000, OWN))
    calls.sent("CANCEL")
    calls.book.expire(CANCELLED - 1)
    assert calls.came("INVITE", 200, sdp(30000, FAR)) == {flow(4000), flow(4001)}
    calls.sent("INVITE", body=sdp(5000, OWN), call="two")
    calls.sent("CANCEL", call="two")
    calls.book.expire(CANCELLED)
    assert calls.book.flows() == {flow(4000), flow(4001)}


def test_who_says_no_more_is_forgotten_and_who_talks_is_not(calls: Calls) -> None:
    calls.sent("INVITE", body=sdp(4000, OWN))
    calls.now = 100.0
    calls.came("INVITE", 180)
    calls.book.expire(100.0 + RINGING - 1)
    assert len(calls.book) == 1
    calls.came("INVITE", 200, sdp(30000, FAR))
    calls.book.used([flow(4000)], 400.0)
    calls.book.used([flow(9)], 900.0)
    calls.book.expire(400.0 + UNUSED - 1)
    assert len(calls.book) == 1
    calls.book.expire(400.0 + UNUSED)
    assert len(calls.book) == 0


def test_strangers_and_numbers_are_bounded(calls: Calls) -> None:
    assert calls.came("INVITE", 200, sdp(30000, FAR)) == set()
    assert calls.sent("UPDATE", body=sdp(4000, OWN)) == set()
    for number in range(MAX_CALLS + 5):
        calls.came("INVITE", call=str(number))
    assert len(calls.book) == MAX_CALLS
    calls.came("INVITE", 180, call="5")  # heard of again: "6" is now the oldest
    calls.came("INVITE", call="new")
    assert flow(4000) in calls.sent("INVITE", 200, sdp(4000, OWN), call="5")
    assert flow(5000) not in calls.sent("INVITE", 200, sdp(5000, OWN), call="6")
