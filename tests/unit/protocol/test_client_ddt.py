"""The client's DDT: asked for, opened, used, switched, lost, given back."""

from __future__ import annotations

from ipaddress import IPv4Interface

import pytest

from opentsm.limits import (
    DDT_LINGER,
    DDT_RETRY_MAX,
    DDT_RETRY_MIN,
    PAIR_MISSING_WARN,
    REQUEST_ATTEMPTS,
    REQUEST_RTO_INITIAL,
    REQUEST_RTO_MAX,
)
from opentsm.protocol import actions as a
from opentsm.protocol.actions import SteerMode
from opentsm.protocol.client_ddt import DDT_OPEN_TIMEOUT, DDT_SILENT_LIMIT, DDT_STABLE, REQUEST_RTO_MIN
from opentsm.protocol.states import ClientDdt
from opentsm.types import Code, Flow, Path, PathMode, Protocol, Service, ServiceAction, Tsid
from opentsm.wire import messages as m
from tests.unit.protocol.conversation import (
    DDT_TSID,
    FLOW,
    OTHER,
    STREAM_TSID,
    ClientTalk,
)

SECOND = Tsid(0xD2)


def asking(*flows: Flow) -> ClientTalk:
    """Connected; these flows want the DDT and the server has not answered yet."""
    talk = ClientTalk().connect()
    for flow in flows or (FLOW,):
        talk.call("set_mode", flow, PathMode.DATAGRAM)
    return talk


def last_request(talk: ClientTalk) -> m.ServiceRequest:
    return talk.said(m.ServiceRequest)[-1]


# -- the way up -------------------------------------------------------------------------------------------


def test_the_first_flow_asks_for_the_service_and_stays_on_the_stream() -> None:
    talk = asking()
    request = last_request(talk)
    assert (request.tsid, request.service, request.action) == (STREAM_TSID, Service.DDT, ServiceAction.ENABLE)
    assert (request.flows, request.mode) == ((FLOW,), PathMode.DATAGRAM)
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.STREAM)]


def test_the_reserved_tunnel_is_opened_and_configured_and_only_then_the_flow_moves() -> None:
    talk = asking()
    talk.answer(last_request(talk))
    assert talk.told(a.DdtAvailable) == [a.DdtAvailable(True)]
    assert talk.did(a.OpenDatagram) == [a.OpenDatagram(DDT_TSID)]
    talk.clear()
    assert talk.call("datagram_ready", DDT_TSID)
    assert talk.order == ["AttachDatagram", "Send"], "attached before it asks: media may come at once"
    (request,) = talk.said(m.ConfigurationRequest, Path.DATAGRAM)
    assert request.tsid == DDT_TSID
    assert talk.session.path(FLOW) is Path.STREAM
    talk.configure_ddt()
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.DATAGRAM)]
    assert talk.told(a.DdtEnabled) == [a.DdtEnabled((FLOW,))]
    assert talk.told(a.DdtUp) == [a.DdtUp(DDT_TSID)]
    assert talk.told(a.KeepaliveInterval) == [a.KeepaliveInterval(Path.DATAGRAM, 0.5)]


def test_further_flows_need_the_servers_word_and_nothing_else() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("set_mode", OTHER, PathMode.AUTO)
    assert last_request(talk).mode is PathMode.AUTO
    assert talk.session.path(OTHER) is Path.STREAM
    talk.answer(last_request(talk))
    assert talk.session.path(OTHER) is Path.STREAM, "nobody has judged yet"
    talk.call("use_path", OTHER, Path.DATAGRAM)
    assert talk.session.path(OTHER) is Path.DATAGRAM
    assert not talk.did(a.OpenDatagram)


def test_a_ddt_can_be_had_before_there_is_a_flow() -> None:
    talk = ClientTalk().connect()
    talk.call("want_ddt", True)
    assert last_request(talk).flows == ()
    talk.answer_all()
    talk.open_ddt()
    assert talk.session.ddt_state is ClientDdt.UP
    talk.call("want_ddt", False)
    assert last_request(talk).action is ServiceAction.DISABLE
    talk.answer_all()
    talk.wait(DDT_LINGER)
    assert talk.session.ddt_state.value == "releasing"


def test_the_configuration_request_is_sent_again_until_it_is_answered() -> None:
    talk = asking()
    talk.answer_all()
    talk.call("datagram_ready", DDT_TSID)
    talk.wait(REQUEST_RTO_INITIAL)
    talk.wait(2 * REQUEST_RTO_INITIAL)
    requests = talk.said(m.ConfigurationRequest, Path.DATAGRAM)
    assert len(requests) == 3
    assert len(set(requests)) == 1, "a retransmission is the same request"
    talk.configure_ddt()
    assert talk.session.ddt_state is ClientDdt.UP
    talk.configure_ddt()
    assert talk.session.counts["unexpected-response"] == 0, "the answer to a copy is an answer too"


@pytest.mark.parametrize(
    ("rtt", "rto"),
    [(None, REQUEST_RTO_INITIAL), (0.2, 0.6), (0.001, REQUEST_RTO_MIN), (9.0, REQUEST_RTO_MAX)],
)
def test_a_known_round_trip_time_sets_the_first_retransmission(rtt: float | None, rto: float) -> None:
    talk = asking()
    talk.answer_all()
    talk.call("datagram_ready", DDT_TSID, rtt=rtt)
    deadline = talk.session.deadline()
    assert deadline is not None
    assert deadline.reason == "ddt-retransmit"
    assert deadline.at - talk.now == pytest.approx(rto)


# -- no ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.SERVICE_UNAVAILABLE, Code.UNKNOWN_SERVICE])
def test_an_unavailable_service_is_not_asked_for_again_in_this_tunnel(code: Code) -> None:
    talk = asking()
    talk.answer(last_request(talk), code)
    assert talk.told(a.DdtAvailable) == [a.DdtAvailable(False)]
    talk.clear()
    talk.call("set_mode", OTHER, PathMode.DATAGRAM)
    talk.call("set_mode", FLOW, PathMode.STREAM)
    talk.call("set_mode", FLOW, PathMode.AUTO)
    talk.wait(1000)
    assert talk.said(m.ServiceRequest) == []
    assert talk.session.path(FLOW) is Path.STREAM


def test_a_new_tunnel_asks_again() -> None:
    talk = asking()
    talk.answer(last_request(talk), Code.SERVICE_UNAVAILABLE)
    talk.call("path_lost", Path.STREAM, "reset")
    talk.call("stream_ready", binding=bytes(32))
    talk.refuse(Code.RESUME_REFUSED)
    assert len(talk.said(m.ServiceRequest)) == 1
    talk.configure()
    assert len(talk.said(m.ServiceRequest)) == 2
    assert last_request(talk).flows == (FLOW,)


def test_a_flow_too_many_stays_on_the_stream_and_the_others_go_on() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("set_mode", OTHER, PathMode.DATAGRAM)
    talk.answer(last_request(talk), Code.NOT_ALLOWED)
    talk.clear()
    talk.wait(1000)
    assert talk.said(m.ServiceRequest) == []
    assert talk.session.path(FLOW) is Path.DATAGRAM
    assert talk.session.path(OTHER) is Path.STREAM


@pytest.mark.parametrize("code", [Code.INTERNAL_ERROR, Code.RATE_LIMITED, Code.WRONG_STATE])
def test_a_server_in_trouble_is_asked_again_later(code: Code) -> None:
    talk = asking()
    talk.answer(last_request(talk), code)
    talk.clear()
    talk.wait(DDT_RETRY_MIN)
    assert last_request(talk).flows == (FLOW,)


def test_success_without_a_tunnel_is_not_success() -> None:
    talk = asking()
    talk.answer(last_request(talk), tunnel_id=None)
    assert talk.session.ddt_state is ClientDdt.WAITING


def test_an_error_response_means_the_service_is_not_known() -> None:
    talk = asking()
    sequence = last_request(talk).sequence
    talk.hear(Path.STREAM, m.ErrorResponse(tsid=STREAM_TSID, sequence=sequence, code=Code.UNKNOWN_TYPE))
    assert talk.told(a.DdtAvailable) == [a.DdtAvailable(False)]


# -- failures ---------------------------------------------------------------------------------------------


def assert_given_up(talk: ClientTalk, reason: str) -> None:
    """The tunnel is closed, the server is told on the stream, the flow is on the stream, a retry is due."""
    assert a.CloseTunnel(Path.DATAGRAM, reason) in talk.log
    assert talk.said(m.ReleaseRequest)[-1].tunnel_id == DDT_TSID
    assert talk.said(m.ReleaseRequest)[-1].tsid == STREAM_TSID
    assert talk.session.path(FLOW) is Path.STREAM
    deadline = talk.session.deadline()
    assert deadline is not None
    assert deadline.reason == "ddt-retry"


def test_a_handshake_that_fails() -> None:
    talk = asking()
    talk.answer_all()
    talk.call("path_lost", Path.DATAGRAM, "refused")
    assert_given_up(talk, "refused")


def test_a_handshake_that_never_ends() -> None:
    talk = asking()
    talk.answer_all()
    talk.wait(DDT_OPEN_TIMEOUT)
    assert_given_up(talk, "ddt-open")


def test_a_configuration_that_is_never_answered() -> None:
    talk = asking()
    talk.answer_all()
    talk.call("datagram_ready", DDT_TSID)
    talk.wait(20)
    assert len(talk.said(m.ConfigurationRequest, Path.DATAGRAM)) == REQUEST_ATTEMPTS
    assert a.CloseTunnel(Path.DATAGRAM, "no-answer") in talk.log


def test_another_inner_address_is_refused() -> None:
    talk = asking()
    talk.answer_all()
    talk.open_ddt(address=IPv4Interface("10.0.0.99/16"))
    assert_given_up(talk, "other-address")
    assert not talk.told(a.DdtEnabled)


def test_a_configuration_that_is_denied() -> None:
    talk = asking()
    talk.answer_all()
    talk.call("datagram_ready", DDT_TSID)
    talk.configure_ddt(code=Code.WRONG_STATE)
    assert_given_up(talk, "wrong-state")


def test_a_ddt_that_dies_puts_its_flows_back_at_once() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.DATAGRAM, "dtls-error")
    assert_given_up(talk, "dtls-error")
    assert talk.told(a.DdtDisabled) == [a.DdtDisabled((FLOW,), "dtls-error")]
    assert talk.told(a.DdtDown) == [a.DdtDown(DDT_TSID, "dtls-error")]


def test_a_ddt_comes_back_by_itself() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.DATAGRAM, "reset")
    talk.answer_all()
    talk.wait(DDT_RETRY_MIN)
    assert last_request(talk).flows == (FLOW,)
    talk.answer_all(tunnel_id=SECOND)
    talk.open_ddt(SECOND)
    assert talk.session.path(FLOW) is Path.DATAGRAM


def test_retries_back_off_to_a_ceiling_and_never_end() -> None:
    talk = asking()
    waits = []
    for number in range(9):
        talk.answer_all(tunnel_id=Tsid(0x900 + number))
        talk.call("path_lost", Path.DATAGRAM, "refused")
        talk.answer_all()
        deadline = talk.session.deadline()
        assert deadline is not None
        waits.append(deadline.at - talk.now)
        talk.wait(waits[-1])
    expected = [min(DDT_RETRY_MIN * 2**n, DDT_RETRY_MAX) for n in range(9)]
    assert waits == pytest.approx(expected)


def test_a_ddt_that_lived_long_makes_the_next_failure_a_first_one() -> None:
    talk = asking()
    for number in range(4):
        talk.answer_all(tunnel_id=Tsid(0x900 + number))
        talk.call("path_lost", Path.DATAGRAM, "refused")
        talk.answer_all()
        deadline = talk.session.deadline()
        assert deadline is not None
        talk.wait(deadline.at - talk.now)
    talk.answer_all()
    talk.open_ddt()
    talk.wait(DDT_STABLE)
    talk.call("path_lost", Path.DATAGRAM, "reset")
    talk.answer_all()
    deadline = talk.session.deadline()
    assert deadline is not None
    assert deadline.at - talk.now == pytest.approx(DDT_RETRY_MIN)


def test_nothing_is_retried_when_nobody_wants_it_any_more() -> None:
    talk = asking()
    talk.answer_all()
    talk.call("path_lost", Path.DATAGRAM, "refused")
    talk.call("set_mode", FLOW, PathMode.STREAM)
    talk.answer_all()
    talk.clear()
    talk.wait(1000)
    assert talk.log == []
    assert talk.session.ddt_state is ClientDdt.ABSENT


def test_a_tunnel_that_was_not_asked_for_is_turned_away() -> None:
    talk = asking()
    assert not talk.call("datagram_ready", DDT_TSID)
    talk.answer_all()
    assert not talk.call("datagram_ready", SECOND)
    assert talk.session.counts["wrong-tsid"] == 2


# -- silence ----------------------------------------------------------------------------------------------


def test_while_the_ddt_is_silent_media_uses_the_stream_and_the_server_knows() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_silent", Path.DATAGRAM)
    assert talk.session.path(FLOW) is Path.STREAM
    assert talk.told(a.DdtDisabled) == [a.DdtDisabled((FLOW,), "path-silent")]
    request = last_request(talk)
    assert (request.action, request.mode) == (ServiceAction.ENABLE, PathMode.STREAM)
    talk.answer_all()
    talk.clear()
    talk.call("path_alive", Path.DATAGRAM)
    assert talk.session.path(FLOW) is Path.DATAGRAM
    assert last_request(talk).mode is PathMode.DATAGRAM


def test_a_ddt_silent_for_too_long_is_replaced() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_silent", Path.DATAGRAM)
    talk.answer_all()
    talk.wait(DDT_SILENT_LIMIT)
    assert_given_up(talk, "ddt-silent")


# -- switching --------------------------------------------------------------------------------------------


def test_back_to_the_stream_is_immediate() -> None:
    talk = ClientTalk().with_ddt(FLOW, OTHER)
    talk.call("set_mode", FLOW, PathMode.STREAM)
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.STREAM)]
    assert talk.told(a.DdtDisabled) == [a.DdtDisabled((FLOW,), "switched")]
    request = last_request(talk)
    assert (request.action, request.flows, request.mode) == (ServiceAction.DISABLE, (FLOW,), PathMode.STREAM)
    assert talk.session.path(OTHER) is Path.DATAGRAM


@pytest.mark.parametrize("flips", [1, 2, 7, 8])
def test_however_often_the_switch_is_flipped_the_last_position_wins(flips: int) -> None:
    talk = asking()
    for n in range(flips):
        talk.call("set_mode", FLOW, PathMode.STREAM if n % 2 == 0 else PathMode.DATAGRAM)
    assert len(talk.said(m.ServiceRequest)) == 1, "one request in flight per flow"
    talk.answer_all()
    if talk.did(a.OpenDatagram):
        talk.open_ddt()
        talk.answer_all()
    talk.wait(DDT_LINGER)
    talk.answer_all()
    wished = Path.STREAM if flips % 2 else Path.DATAGRAM
    assert talk.session.path(FLOW) is wished
    assert talk.session.ddt_state is (ClientDdt.UP if wished is Path.DATAGRAM else ClientDdt.ABSENT)


def test_a_wish_withdrawn_before_the_answer_opens_no_tunnel() -> None:
    talk = asking()
    talk.call("set_mode", FLOW, PathMode.STREAM)
    talk.answer_all()
    assert not talk.did(a.OpenDatagram)
    assert talk.session.ddt_state is ClientDdt.ABSENT


def test_a_wish_that_comes_back_before_the_server_knew_it_was_gone_is_not_lost() -> None:
    talk = asking()
    talk.call("set_mode", FLOW, PathMode.STREAM)
    talk.answer(last_request(talk))  # the tunnel is named, and nobody wants it
    talk.call("set_mode", FLOW, PathMode.DATAGRAM)
    talk.answer_all()
    assert talk.did(a.OpenDatagram) == [a.OpenDatagram(DDT_TSID)]


def test_a_refused_withdrawal_is_as_good_as_done() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("unset", FLOW)
    assert talk.did(a.Unsteer) == [a.Unsteer(FLOW)]
    talk.answer(last_request(talk), Code.INTERNAL_ERROR)
    assert talk.session.ddt_state is ClientDdt.LINGERING


def test_in_auto_the_quality_engine_chooses() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("set_mode", FLOW, PathMode.AUTO)
    talk.answer_all()
    talk.clear()
    talk.call("use_path", FLOW, Path.STREAM)
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.STREAM)]
    talk.call("use_path", FLOW, Path.DATAGRAM)
    assert talk.session.path(FLOW) is Path.DATAGRAM
    assert not talk.said(m.ServiceRequest), "the server judges what it sends by itself"
    talk.wait(1000)
    assert talk.session.ddt_state is ClientDdt.UP


def test_the_engines_choice_means_nothing_for_a_flow_the_application_has_switched() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("use_path", FLOW, Path.STREAM)
    assert talk.session.path(FLOW) is Path.DATAGRAM


# -- the way down -----------------------------------------------------------------------------------------


def lingering() -> ClientTalk:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("unset", FLOW)
    talk.answer_all()
    assert talk.session.ddt_state is ClientDdt.LINGERING
    talk.clear()
    return talk


def test_the_ddt_lingers_then_is_given_back_then_closed() -> None:
    talk = lingering()
    talk.wait(DDT_LINGER - 0.1)
    assert talk.log == []
    talk.wait(0.2)
    (request,) = talk.said(m.ReleaseRequest)
    assert (request.tsid, request.tunnel_id) == (STREAM_TSID, DDT_TSID)
    assert not talk.did(a.CloseTunnel), "the server may still be sending"
    talk.answer(request)
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.DATAGRAM, "released")]
    assert talk.told(a.DdtDown) == [a.DdtDown(DDT_TSID, "released")]
    assert talk.session.deadline() is None


def test_the_linger_starts_only_when_the_server_knows() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("unset", FLOW)
    assert talk.session.ddt_state is ClientDdt.UP
    talk.answer_all()
    assert talk.session.ddt_state.value == "lingering"


def test_a_flow_that_comes_while_the_ddt_lingers_has_it_at_once() -> None:
    talk = lingering()
    talk.call("set_mode", OTHER, PathMode.DATAGRAM)
    talk.answer_all()
    assert talk.session.path(OTHER) is Path.DATAGRAM
    talk.wait(1000)
    assert talk.session.ddt_state is ClientDdt.UP


def test_a_flow_that_comes_while_the_ddt_is_given_back_gets_a_new_one() -> None:
    talk = lingering()
    talk.wait(DDT_LINGER)
    talk.call("set_mode", OTHER, PathMode.DATAGRAM)
    assert not talk.said(m.ServiceRequest)
    talk.answer_all(tunnel_id=SECOND)
    assert talk.did(a.OpenDatagram) == [a.OpenDatagram(SECOND)]


@pytest.mark.parametrize("what", ["path_lost", "path_silent", "pair-missing", "release"])
def test_a_lingering_ddt_that_fails_is_dropped_without_a_retry(what: str) -> None:
    talk = lingering()
    if what == "path_lost":
        talk.call("path_lost", Path.DATAGRAM, "reset")
    elif what == "path_silent":
        talk.call("path_silent", Path.DATAGRAM)
    elif what == "release":
        talk.hear(Path.DATAGRAM, m.ReleaseRequest(tsid=DDT_TSID, sequence=1))
    else:
        talk.wait(DDT_LINGER - 0.1)
        talk.call("path_alive", Path.DATAGRAM)
        talk.now += PAIR_MISSING_WARN
        pair_missing(talk)
    assert talk.session.ddt_state is ClientDdt.ABSENT
    assert a.OpenDatagram not in [type(action) for action in talk.log]


# -- what the server says ---------------------------------------------------------------------------------


def pair_missing(talk: ClientTalk) -> None:
    warning = m.ServiceRequest(
        tsid=STREAM_TSID, sequence=70, service=Service.DDT, action=ServiceAction.PAIR_MISSING
    )
    talk.hear(Path.STREAM, warning)


def test_a_pair_the_server_misses_is_made_anew() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.wait(PAIR_MISSING_WARN)
    pair_missing(talk)
    assert talk.said(m.ServiceResponse)[0].code is Code.SUCCESS
    assert talk.told(a.PairMissing) == [a.PairMissing()]
    assert_given_up(talk, "pair-missing")


def test_a_warning_that_crossed_our_coming_up_is_old_news() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    pair_missing(talk)
    assert talk.told(a.PairMissing) == [a.PairMissing()]
    assert talk.session.path(FLOW) is Path.DATAGRAM


def test_another_tunnel_named_by_the_server_replaces_ours() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("set_mode", OTHER, PathMode.DATAGRAM)
    talk.answer(last_request(talk), tunnel_id=SECOND)
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.DATAGRAM, "replaced")]
    assert talk.did(a.OpenDatagram) == [a.OpenDatagram(SECOND)]
    assert talk.session.path(FLOW) is Path.STREAM
    talk.open_ddt(SECOND)
    assert {talk.session.path(FLOW), talk.session.path(OTHER)} == {Path.DATAGRAM}


@pytest.mark.parametrize("path", list(Path))
def test_a_server_can_take_the_ddt_back(path: Path) -> None:
    talk = ClientTalk().with_ddt(FLOW)
    on_stream = path is Path.STREAM
    message = m.ReleaseRequest(
        tsid=STREAM_TSID if on_stream else DDT_TSID, sequence=5, tunnel_id=DDT_TSID if on_stream else None
    )
    talk.hear(path, message)
    assert talk.said(m.ReleaseResponse, path)[0].sequence == 5
    assert_given_up(talk, "released-by-server")


# -- with and without a stream ------------------------------------------------------------------------------


def test_media_goes_on_over_the_ddt_while_the_stream_is_away() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.STREAM, "reset")
    assert talk.session.path(FLOW) is Path.DATAGRAM
    assert not talk.did(a.CloseTunnel)
    talk.call("stream_ready", binding=bytes(32))
    talk.configure()
    assert talk.told(a.Resumed)
    assert talk.session.path(FLOW) is Path.DATAGRAM
    assert not talk.said(m.ServiceRequest), "nothing has changed, so nothing is asked"


def test_a_flow_whose_request_was_lost_stays_where_it_works() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("set_mode", FLOW, PathMode.AUTO)
    talk.call("path_lost", Path.STREAM, "reset")
    assert talk.session.path(FLOW) is Path.DATAGRAM
    talk.call("stream_ready", binding=bytes(32))
    talk.configure()
    assert last_request(talk).mode is PathMode.AUTO


@pytest.mark.parametrize("opened", [False, True])
def test_a_ddt_half_made_when_the_stream_went_is_made_anew(opened: bool) -> None:
    talk = asking()
    if opened:
        talk.answer_all()
    talk.call("path_lost", Path.STREAM, "reset")
    assert talk.session.ddt_state is ClientDdt.ABSENT
    assert bool(talk.did(a.CloseTunnel)) is opened
    talk.call("stream_ready", binding=bytes(32))
    talk.configure()
    assert [r.tunnel_id for r in talk.said(m.ReleaseRequest)] == ([DDT_TSID] if opened else [])
    assert last_request(talk).flows == (FLOW,)


def test_a_ddt_that_died_without_a_stream_is_told_when_there_is_one_again() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.STREAM, "reset")
    talk.call("path_lost", Path.DATAGRAM, "reset")
    assert not talk.said(m.ReleaseRequest)
    talk.call("stream_ready", binding=bytes(32))
    talk.configure()
    assert [request.tunnel_id for request in talk.said(m.ReleaseRequest)] == [DDT_TSID]


def test_a_release_that_went_down_with_its_stream_is_told_again() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.DATAGRAM, "reset")
    talk.call("path_lost", Path.STREAM, "reset")
    talk.clear()
    talk.call("stream_ready", binding=bytes(32))
    talk.configure()
    assert [request.tunnel_id for request in talk.said(m.ReleaseRequest)] == [DDT_TSID]


def test_a_lingering_ddt_waits_for_a_stream_to_be_given_back_on() -> None:
    talk = lingering()
    talk.call("path_lost", Path.STREAM, "reset")
    talk.wait(10 * DDT_LINGER)
    assert talk.session.ddt_state is ClientDdt.LINGERING
    talk.call("stream_ready", binding=bytes(32))
    talk.configure()
    talk.wait(DDT_LINGER)
    assert talk.said(m.ReleaseRequest)


def test_a_fresh_tunnel_makes_a_fresh_ddt() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.STREAM, "reset")
    talk.call("stream_ready", binding=bytes(32))
    talk.refuse(Code.RESUME_REFUSED)
    talk.configure()
    assert a.CloseTunnel(Path.DATAGRAM, "new-tunnel") in talk.log
    assert not talk.said(m.ReleaseRequest), "the new server session knows of no old DDT"
    assert last_request(talk).flows == (FLOW,)
    assert talk.told(a.DdtDisabled) == [a.DdtDisabled((FLOW,), "new-tunnel")]


def test_rows_are_set_again_in_a_session_with_another_address() -> None:
    talk = ClientTalk().connect()
    talk.call("set_mode", FLOW, PathMode.STREAM)
    talk.call("path_lost", Path.STREAM, "reset")
    talk.call("stream_ready", binding=bytes(32))
    talk.refuse(Code.RESUME_REFUSED)
    talk.log = [x for x in talk.log if not isinstance(x, a.Steer)]
    talk.configure(address=IPv4Interface("10.0.9.9/16"))
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.STREAM)]


def test_hundreds_of_flows_need_few_requests() -> None:
    talk = ClientTalk().connect()
    flows = [Flow(Protocol.UDP, 10000 + n) for n in range(400)]
    for flow in flows:
        talk.call("set_mode", flow, PathMode.DATAGRAM)
    assert len(talk.said(m.ServiceRequest)) == 64, "the rest waits until answers come"
    asked = talk.said(m.ServiceRequest)
    talk.clear()
    for request in asked:
        talk.answer(request)
    assert len(talk.said(m.ServiceRequest)) == 7
    talk.answer_all()
    talk.open_ddt()
    assert {talk.session.path(flow) for flow in flows} == {Path.DATAGRAM}
