"""Where a message goes whose connection is gone."""

from __future__ import annotations

import pytest

from opentsm.sbc import dialling
from opentsm.sbc.hop import Hop
from opentsm.sbc.message import Request
from opentsm.types import SocketAddress

TCP = Hop("tcp", ("10.64.0.1", 5060), ("10.64.0.2", 41234))


@pytest.mark.parametrize(
    ("uri", "route", "goal"),
    [
        ("sip:bob@10.64.0.2:5080;transport=tcp", "", ("10.64.0.2", 5080)),
        ("sip:bob@10.64.0.2", "", ("10.64.0.2", 5060)),
        ("sip:bob@192.0.2.1:5080", "", None),
        ("sip:bob@192.0.2.1", "<sip:10.64.0.2:5070;lr>", ("10.64.0.2", 5070)),
        ("sip:bob@10.64.0.2", "<sip:192.0.2.1;lr>", None),
        ("tel:+49", "", None),
        ("sip:bob@10.64.0.2:99999", "", None),
    ],
)
def test_a_request_goes_to_the_same_neighbour_or_nowhere(
    uri: str, route: str, goal: SocketAddress | None
) -> None:
    request = Request("BYE", uri, headers=[("Route", route)] if route else [])
    found = dialling.for_request(TCP, request)
    assert found == goal or (goal is None and found is not None and found[0] == TCP.remote[0])


@pytest.mark.parametrize(("sent_by", "port"), [("10.9.9.9:5080", 5080), ("host.example", 5060)])
def test_an_answer_goes_to_the_source_at_the_vias_port(sent_by: str, port: int) -> None:
    request = Request("BYE", "sip:a@b", headers=[("Via", f"SIP/2.0/TCP {sent_by};branch=z9hG4bK1")])
    assert dialling.for_answers(TCP, request) == ("10.64.0.2", port)


def test_datagrams_need_no_connection() -> None:
    udp = Hop("udp", TCP.local, TCP.remote)
    request = Request("BYE", "sip:a@10.64.0.2", headers=[("Via", "SIP/2.0/UDP 10.64.0.2;branch=z9hG4bK1")])
    assert dialling.for_request(udp, request) is dialling.for_answers(udp, request) is None
