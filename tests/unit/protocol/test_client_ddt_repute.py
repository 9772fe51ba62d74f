"""A DDT that comes and goes: tried again soon while that is worth it, trusted again ever later."""

from __future__ import annotations

import pytest

from opentsm.limits import DDT_RETRY_MAX, DDT_RETRY_MIN
from opentsm.protocol import actions as a
from opentsm.protocol.client_ddt import (
    DDT_PROVING_MAX,
    DDT_PROVING_MIN,
    DDT_REPUTE,
    MEDIA_DATAGRAM,
)
from opentsm.protocol.states import ClientDdt
from opentsm.types import Code, Path, PathMode
from opentsm.wire import messages as m
from opentsm.wire.codec import encode
from tests.unit.protocol.conversation import DDT_TSID, FLOW, ClientTalk


def fall_and_rise(talk: ClientTalk) -> float:
    """The DDT falls silent and is heard again; seconds until media is on it again."""
    talk.call("path_silent", Path.DATAGRAM)
    talk.answer_all()
    assert talk.session.path(FLOW) is Path.STREAM
    talk.call("path_alive", Path.DATAGRAM)
    began = talk.now
    talk.answer_all()
    if talk.session.ddt_state is ClientDdt.PROVING:
        deadline = talk.session.deadline()
        assert deadline is not None
        assert deadline.reason == "ddt-proving"
        talk.wait(deadline.at - talk.now)
        talk.answer_all()
    assert talk.session.path(FLOW) is Path.DATAGRAM
    return talk.now - began


def test_the_more_often_it_falls_the_longer_it_must_live_before_media_returns() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    waits = [fall_and_rise(talk) for _ in range(6)]
    assert waits == pytest.approx(
        [0, DDT_PROVING_MIN, 2 * DDT_PROVING_MIN, 4 * DDT_PROVING_MIN, 8 * DDT_PROVING_MIN, DDT_PROVING_MAX]
    )


def test_while_it_proves_itself_the_server_knows_and_a_silence_begins_it_anew() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    fall_and_rise(talk)
    talk.call("path_silent", Path.DATAGRAM)
    talk.answer_all()
    talk.clear()
    talk.call("path_alive", Path.DATAGRAM)
    assert talk.said(m.ServiceRequest) == [], "held as before: nothing new to tell"
    talk.wait(DDT_PROVING_MIN - 0.1)
    talk.call("path_silent", Path.DATAGRAM)
    talk.call("path_alive", Path.DATAGRAM)
    talk.wait(DDT_PROVING_MIN - 0.1)
    assert talk.session.path(FLOW) is Path.STREAM
    talk.wait(0.2)
    assert talk.session.path(FLOW) is Path.DATAGRAM
    assert talk.said(m.ServiceRequest)[-1].mode is PathMode.DATAGRAM


def test_falls_are_forgotten() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    fall_and_rise(talk)
    fall_and_rise(talk)
    talk.wait(DDT_REPUTE + 1)
    assert fall_and_rise(talk) == 0


def test_a_flow_that_leaves_while_it_proves_itself_lets_it_linger() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    fall_and_rise(talk)
    talk.call("path_silent", Path.DATAGRAM)
    talk.answer_all()
    talk.call("path_alive", Path.DATAGRAM)
    talk.call("set_mode", FLOW, PathMode.STREAM)
    talk.answer_all()
    assert talk.session.ddt_state.value == "lingering"
    talk.call("set_mode", FLOW, PathMode.DATAGRAM)
    talk.answer_all()
    assert talk.session.ddt_state.value == "proving"


def fail_to_open(talk: ClientTalk) -> float:
    """From a failure to the next try; seconds."""
    talk.answer_all()
    deadline = talk.session.deadline()
    assert deadline is not None
    assert deadline.reason == "ddt-retry"
    waited = deadline.at - talk.now
    talk.wait(waited)
    talk.answer_all()
    talk.call("path_lost", Path.DATAGRAM, "timeout")
    return waited


def test_a_path_that_just_worked_is_tried_often_for_a_minute_and_then_ever_less() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.DATAGRAM, "refused")
    waits = [fail_to_open(talk) for _ in range(40)]
    soon = int(DDT_REPUTE / DDT_RETRY_MIN)
    assert waits[:soon] == [DDT_RETRY_MIN] * soon
    assert waits[soon : soon + 6] == pytest.approx([DDT_RETRY_MIN, 4.0, 8.0, 16.0, 32.0, DDT_RETRY_MAX])
    assert waits[-1] == DDT_RETRY_MAX


def test_a_network_that_never_had_udp_is_not_asked_so_often() -> None:
    talk = ClientTalk().connect()
    talk.call("set_mode", FLOW, PathMode.DATAGRAM)
    talk.answer_all()
    talk.call("path_lost", Path.DATAGRAM, "timeout")
    assert [fail_to_open(talk) for _ in range(3)] == [DDT_RETRY_MIN, 4.0, 8.0]


def test_the_request_on_the_datagram_tunnel_is_as_large_as_media_and_the_answer_too() -> None:
    talk = ClientTalk().connect()
    talk.call("set_mode", FLOW, PathMode.DATAGRAM)
    talk.answer_all()
    talk.call("datagram_ready", DDT_TSID)
    (request,) = talk.said(m.ConfigurationRequest, Path.DATAGRAM)
    assert len(encode(request)) == MEDIA_DATAGRAM
    answer = m.ConfigurationResponse(
        tsid=request.tsid, sequence=request.sequence, code=Code.SUCCESS, padding=request.padding
    )
    assert len(encode(answer)) >= MEDIA_DATAGRAM
    assert [e.tsid for e in talk.did(a.OpenDatagram)] == [DDT_TSID]
