"""Who agrees to what of redundancy, FEC and header compression, and when coded frames may be sent."""

from __future__ import annotations

import pytest

from opentsm.protocol import actions as a
from opentsm.types import NO_CODING, Code, Coding, Path, Service, ServiceAction
from opentsm.wire import messages as m
from tests.unit.protocol.conversation import BINDING, ClientTalk, ServerTalk

ALL = (Service.REDUNDANCY, Service.FEC, Service.HEADER_COMPRESSION)


def last(talk: ClientTalk | ServerTalk) -> a.SetCoding:
    return [action for action in talk.log if isinstance(action, a.SetCoding)][-1]


def asked(talk: ClientTalk) -> list[m.ServiceRequest]:
    return [one for one in talk.said(m.ServiceRequest) if one.service in ALL]


def up(offered: tuple[Service, ...] = ALL, coding: Coding | None = None) -> ClientTalk:
    talk = ClientTalk()
    if coding is not None:
        talk.call("set_coding", coding)
    talk.call("stream_ready", binding=BINDING)
    talk.configure(offered_services=offered)
    return talk


def test_the_client_asks_for_what_is_offered_and_takes_it_from_then_on() -> None:
    talk = up((Service.REDUNDANCY, Service.HEADER_COMPRESSION))
    requests = asked(talk)
    assert [(one.service, one.action) for one in requests] == [
        (Service.REDUNDANCY, ServiceAction.ENABLE),
        (Service.HEADER_COMPRESSION, ServiceAction.ENABLE),
    ]
    assert all(one.coding == Coding() for one in requests)
    assert last(talk).takes == {Service.REDUNDANCY, Service.HEADER_COMPRESSION}
    assert not last(talk).sends, "not before the server has agreed"


def test_it_sends_what_was_granted_and_forgets_what_was_refused() -> None:
    talk = up()
    redundancy, fec, compression = asked(talk)
    talk.answer(redundancy)
    talk.answer(fec, Code.SERVICE_UNAVAILABLE)
    talk.answer(compression)
    granted = frozenset({Service.REDUNDANCY, Service.HEADER_COMPRESSION})
    assert (last(talk).takes, last(talk).sends) == (granted, granted)
    talk.clear()
    talk.call("set_coding", Coding(1))
    assert {one.service for one in asked(talk)} == granted, "what was refused is not asked for again"


def test_nothing_is_asked_that_is_not_offered_or_not_wanted() -> None:
    assert asked(up((Service.DDT,))) == []
    assert asked(up(coding=NO_CODING)) == []
    assert [one.service for one in asked(up(coding=Coding(0)))] == [Service.HEADER_COMPRESSION]


def test_the_application_s_choice_reaches_the_server_and_the_user_plane() -> None:
    talk = up()
    for request in asked(talk):
        talk.answer(request)
    talk.clear()
    talk.call("set_coding", Coding(2, fec=False, compress=False))
    by_service = {one.service: one for one in asked(talk)}
    assert by_service[Service.REDUNDANCY].action is ServiceAction.ENABLE
    assert by_service[Service.REDUNDANCY].coding == Coding(2, fec=False, compress=False)
    assert by_service[Service.FEC].action is ServiceAction.DISABLE
    assert by_service[Service.HEADER_COMPRESSION].action is ServiceAction.DISABLE
    assert last(talk).sends == {Service.REDUNDANCY}
    assert last(talk).coding.factor == 2


def test_a_lost_stream_leaves_the_agreement_and_the_next_one_asks_again() -> None:
    talk = up()
    for request in asked(talk):
        talk.answer(request)
    talk.clear()
    talk.call("path_lost", Path.STREAM, "reset")
    assert not [action for action in talk.log if isinstance(action, a.SetCoding)], "the DDT goes on as it was"
    talk.call("stream_ready", binding=BINDING)
    talk.configure(offered_services=ALL)
    assert not last(talk).sends, "the server may have begun anew"
    for request in asked(talk):
        talk.answer(request)
    assert last(talk).sends == set(ALL)


def test_the_end_ends_it() -> None:
    talk = up()
    for request in asked(talk):
        talk.answer(request)
    talk.call("close")
    talk.answer(talk.said(m.ReleaseRequest)[-1])
    assert not last(talk).takes


def test_the_server_takes_and_sends_what_it_grants() -> None:
    talk = ServerTalk(ALL).connect()
    answer = talk.ask_service(service=Service.REDUNDANCY, coding=Coding(1))
    assert answer.code is Code.SUCCESS
    agreed = frozenset({Service.REDUNDANCY})
    assert last(talk) == a.SetCoding(agreed, agreed, Coding(1))
    talk.ask_service(ServiceAction.DISABLE, service=Service.REDUNDANCY, coding=Coding(0))
    assert not last(talk).takes


@pytest.mark.parametrize("service", ALL)
def test_what_is_not_assigned_is_refused_and_changes_nothing(service: Service) -> None:
    talk = ServerTalk((Service.DDT,)).connect()
    answer = talk.ask_service(service=service, coding=Coding(1))
    assert answer.code is Code.SERVICE_UNAVAILABLE
    assert not [action for action in talk.log if isinstance(action, a.SetCoding)]
