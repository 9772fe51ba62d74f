"""The server's answers repeat the request they answer."""

from __future__ import annotations

from opentsm.protocol.actions import Terminated
from opentsm.protocol.server_answers import Refusal, configuration_refused, endpoint, service_answer
from opentsm.types import Code, Service, ServiceAction, Tsid
from opentsm.wire import messages as m


def test_a_refusal_is_said_and_told_alike() -> None:
    refusal = Refusal(Code.RATE_LIMITED, "wait", 2.5)
    request = m.ConfigurationRequest(tsid=Tsid(5), sequence=9)
    assert configuration_refused(request, refusal) == m.ConfigurationResponse(
        tsid=Tsid(5), sequence=9, code=Code.RATE_LIMITED, text="wait", retry_after_ms=2500
    )
    assert refusal.as_event() == Terminated("rate-limited", Code.RATE_LIMITED, "wait", 2.5)


def test_a_service_answer_names_the_service_it_was_asked_for() -> None:
    request = m.ServiceRequest(tsid=Tsid(5), sequence=9, service=Service.DDT, action=ServiceAction.ENABLE)
    answer = service_answer(request, Code.SUCCESS, tunnel_id=Tsid(7))
    assert (answer.tsid, answer.sequence, answer.service, answer.tunnel_id) == (5, 9, Service.DDT, 7)


def test_an_ipv6_zone_stays_here() -> None:
    address, port = endpoint(("fe80::1%eth0", 443))
    assert (str(address), port) == ("fe80::1", 443)
