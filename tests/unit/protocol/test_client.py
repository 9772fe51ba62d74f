"""The client half and its stream tunnel: set-up, loss, resume, release."""

from __future__ import annotations

from ipaddress import IPv4Interface

import pytest

from opentsm.errors import LocalProtocolError
from opentsm.limits import (
    RECONNECT_EAGER,
    RECONNECT_EAGER_TIME,
    RECONNECT_FIRST,
    RECONNECT_MAX,
    REQUEST_TIMEOUT_STREAM,
    RESUME_ANSWER,
)
from opentsm.protocol import actions as a
from opentsm.protocol.client import RELEASE_TIMEOUT, RETRY_AFTER_MAX
from opentsm.protocol.resume import proof_holds
from opentsm.protocol.states import Client, ClientDdt
from opentsm.types import UNASSIGNED_TSID, Code, Path, PathMode, Service, ServiceAction, Tsid
from opentsm.wire import messages as m
from tests.unit.protocol.conversation import (
    BINDING,
    DDT_TSID,
    FLOW,
    IPV4,
    SECRET,
    STREAM_TSID,
    ClientTalk,
)

ELSEWHERE = IPv4Interface("10.0.9.9/16")


def lost(talk: ClientTalk, reason: str = "reset") -> ClientTalk:
    talk.call("path_lost", Path.STREAM, reason)
    return talk


def back(talk: ClientTalk, binding: bytes = b"B" * 32) -> m.ConfigurationRequest:
    """A new stream; what the client asks on it."""
    talk.clear()
    talk.call("stream_ready", binding=binding)
    return talk.said(m.ConfigurationRequest)[-1]


def test_the_first_request_says_who_we_are() -> None:
    talk = ClientTalk(username="al", password=b"pw", wanted_services=(Service.DDT,), software="x")
    talk.call("stream_ready", binding=BINDING)
    (request,) = talk.said(m.ConfigurationRequest)
    assert (request.tsid, request.client_id, request.username, request.password) == (
        UNASSIGNED_TSID,
        b"me",
        "al",
        b"pw",
    )
    assert request.wanted_services == (Service.DDT,)
    assert request.resume_proof is None


def test_a_grant_opens_the_session_before_anything_is_attached() -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    talk.clear()
    talk.log = [a.Send(Path.STREAM, m.ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1))]
    talk.configure(persistence_ms=60000, inner_mtu=1300)
    assert talk.order[1:] == ["OpenSession", "AttachStream", "Notify", "Notify"]
    (up,) = talk.told(a.TunnelUp)
    assert (up.configuration.lease.ipv4, up.configuration.persistence, up.configuration.inner_mtu) == (
        IPV4,
        60.0,
        1300,
    )
    assert not up.address_changed
    assert talk.told(a.KeepaliveInterval) == [a.KeepaliveInterval(Path.STREAM, 30.0)]
    assert talk.session.state is Client.ACTIVE
    assert talk.session.deadline() is None


@pytest.mark.parametrize("code", [Code.UNAUTHORIZED, Code.NO_ADDRESS, Code.RATE_LIMITED, Code.RESUME_REFUSED])
def test_a_client_that_was_never_in_ends_when_refused(code: Code) -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    talk.refuse(code, text="no", retry_after_ms=1500)
    assert talk.told(a.Terminated) == [a.Terminated(code.label, code, "no", 1.5)]
    assert talk.order[-1] == "SessionClosed"
    assert talk.session.state is Client.CLOSED


def test_a_grant_without_an_address_is_no_grant() -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    request = talk.said(m.ConfigurationRequest)[-1]
    talk.hear(
        Path.STREAM,
        m.ConfigurationResponse(tsid=STREAM_TSID, sequence=request.sequence, code=Code.SUCCESS),
    )
    assert talk.told(a.Terminated)[0].reason == "incomplete-configuration"


@pytest.mark.parametrize("reason", ["connect-failed", "timeout"])
def test_a_first_connection_that_fails_is_the_end(reason: str) -> None:
    talk = ClientTalk()
    talk.call("connect_failed", reason)
    assert talk.did(a.SessionClosed) == [a.SessionClosed(reason)]


def test_a_server_that_does_not_answer_the_first_request_is_given_up() -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    talk.wait(REQUEST_TIMEOUT_STREAM)
    assert talk.did(a.SessionClosed) == [a.SessionClosed("no-answer")]


# -- loss and resume --------------------------------------------------------------------------------------


def test_a_lost_stream_makes_the_session_persistent_and_asks_for_another() -> None:
    talk = lost(ClientTalk().connect())
    assert talk.session.state is Client.PERSISTENT
    assert talk.told(a.StreamLost) == [a.StreamLost("reset")]
    (reconnect,) = talk.did(a.Reconnect)
    assert 0 <= reconnect.after <= RECONNECT_FIRST


def test_reconnects_back_off_to_a_low_ceiling_and_much_later_to_a_high_one() -> None:
    talk = lost(ClientTalk().connect())
    for _ in range(30):
        talk.call("connect_failed", "refused")
    waits = [reconnect.after for reconnect in talk.did(a.Reconnect)]
    assert waits == sorted(waits)
    assert waits[-1] == RECONNECT_EAGER * 0.75  # the jitter given to this client is one half
    talk.wait(RECONNECT_EAGER_TIME)
    talk.call("connect_failed", "refused")
    assert talk.did(a.Reconnect)[-1].after == RECONNECT_MAX * 0.75


def test_a_resume_that_is_swallowed_is_tried_anew_soon() -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.wait(RESUME_ANSWER)
    assert talk.session.state is Client.PERSISTENT
    assert talk.did(a.Reconnect)


# -- another network --------------------------------------------------------------------------------------


def test_in_another_network_the_old_stream_is_kept_until_the_new_one_has_its_place() -> None:
    talk = ClientTalk().connect()
    talk.call("network_changed")
    assert talk.order == ["Reconnect"]
    assert talk.did(a.Reconnect) == [a.Reconnect(0.0)]
    assert talk.session.state is Client.ACTIVE
    talk.clear()
    request = back(talk)
    assert request.resume_proof is not None
    assert proof_holds(request.resume_proof, SECRET, STREAM_TSID, b"B" * 32)
    assert not talk.did(a.CloseTunnel)
    talk.configure(secret=b"n" * 32)
    assert talk.did(a.AttachStream) == [a.AttachStream(STREAM_TSID)]
    assert talk.told(a.Resumed)
    assert not talk.told(a.StreamLost), "it was never without one"


def test_the_ddt_is_made_anew_in_the_new_network_without_waiting() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.call("network_changed")
    back(talk)
    assert not talk.did(a.CloseTunnel), "until there is a stream the old DDT may be the only path that works"
    talk.configure()
    assert talk.session.path(FLOW) is Path.STREAM
    assert talk.said(m.ReleaseRequest)[0].tunnel_id == DDT_TSID
    assert not talk.did(a.CloseTunnel), "what is on its way on it is still taken"
    talk.answer_all(tunnel_id=Tsid(0xD2))
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.DATAGRAM, "released")]
    talk.open_ddt(Tsid(0xD2))
    assert talk.session.path(FLOW) is Path.DATAGRAM


def test_a_stream_whose_own_address_is_gone_is_given_up() -> None:
    talk = ClientTalk().connect()
    talk.call("network_changed", lost=True)
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.STREAM, "network-changed")]
    assert talk.told(a.StreamLost) == [a.StreamLost("network-changed")]
    assert talk.did(a.Reconnect)[0].after <= RECONNECT_FIRST


def test_a_change_in_the_middle_of_a_resume_begins_it_anew() -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.clear()
    talk.call("network_changed")
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.STREAM, "network-changed")]
    assert talk.did(a.Reconnect) == [a.Reconnect(0.0)]
    assert talk.session.state is Client.PERSISTENT


def test_a_change_ends_the_waiting_for_the_next_attempt() -> None:
    talk = lost(ClientTalk().connect())
    for _ in range(10):
        talk.call("connect_failed", "unreachable")
    talk.clear()
    talk.call("network_changed")
    assert talk.did(a.Reconnect) == [a.Reconnect(0.0)]


def test_a_new_network_that_lets_nothing_through_is_given_up_for_the_old_one() -> None:
    talk = ClientTalk().connect()
    talk.call("network_changed")
    for _ in range(20):
        talk.call("connect_failed", "timeout")
    assert talk.session.state is Client.ACTIVE
    assert 2 < len(talk.did(a.Reconnect)) < 10
    assert not talk.did(a.CloseTunnel)


def test_the_old_stream_may_end_while_the_new_one_is_made() -> None:
    talk = ClientTalk().connect()
    talk.call("network_changed")
    lost(talk)
    assert talk.told(a.StreamLost)
    back(talk)
    talk.configure()
    assert talk.told(a.Resumed)
    assert talk.session.state is Client.ACTIVE


# -- a server that was restarted ----------------------------------------------------------------------------


def test_a_restarted_server_that_kept_our_address_is_told_our_flows_anew() -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    talk.configure(server_epoch=1)
    talk.call("set_mode", FLOW, PathMode.DATAGRAM)
    talk.answer_all()
    talk.open_ddt()
    lost(talk)
    back(talk)
    talk.configure(server_epoch=2)
    assert talk.did(a.AttachStream) == [a.AttachStream(STREAM_TSID, fresh=True)]
    assert talk.told(a.Resumed)
    assert not talk.told(a.TunnelUp)
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.DATAGRAM, "server-restarted")]
    assert not talk.said(m.ReleaseRequest), "it knows of no DDT"
    assert [request.flows for request in talk.said(m.ServiceRequest)] == [(FLOW,)]


def test_the_same_process_is_not_told_anything_twice() -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    talk.configure(server_epoch=1)
    talk.call("set_mode", FLOW, PathMode.DATAGRAM)
    talk.answer_all()
    talk.open_ddt()
    lost(talk)
    back(talk)
    talk.configure(server_epoch=1)
    assert talk.did(a.AttachStream) == [a.AttachStream(STREAM_TSID)]
    assert not talk.did(a.CloseTunnel)
    assert not talk.said(m.ServiceRequest)
    assert talk.session.path(FLOW) is Path.DATAGRAM


def test_the_proof_is_made_for_the_old_tsid_and_the_new_connection() -> None:
    talk = lost(ClientTalk(username="al", password=b"pw").connect())
    request = back(talk)
    assert request.tsid == STREAM_TSID
    assert request.password is None, "a resume needs no password"
    assert request.resume_proof is not None
    assert proof_holds(request.resume_proof, SECRET, STREAM_TSID, b"B" * 32)


def test_a_resumed_session_has_its_address_a_new_tsid_and_a_new_secret() -> None:
    talk = lost(ClientTalk().connect())
    request = back(talk)
    answer = m.ConfigurationResponse(
        tsid=Tsid(0x52),
        sequence=request.sequence,
        code=Code.SUCCESS,
        inner_ipv4=IPV4,
        resume_secret=b"n" * 32,
    )
    talk.hear(Path.STREAM, answer)
    assert len(talk.told(a.Resumed)) == 1
    assert talk.did(a.AttachStream) == [a.AttachStream(Tsid(0x52))]
    assert not talk.did(a.OpenSession)
    request = back(lost(talk))
    assert request.tsid == Tsid(0x52)
    assert request.resume_proof is not None
    assert proof_holds(request.resume_proof, b"n" * 32, Tsid(0x52), b"B" * 32)


def test_a_refused_resume_becomes_a_fresh_request_on_the_same_stream() -> None:
    talk = lost(ClientTalk(username="al", password=b"pw").connect())
    back(talk)
    talk.refuse(Code.RESUME_REFUSED)
    request = talk.said(m.ConfigurationRequest)[-1]
    assert (request.tsid, request.password, request.resume_proof) == (UNASSIGNED_TSID, b"pw", None)
    talk.configure(address=ELSEWHERE)
    assert talk.did(a.OpenSession) == [a.OpenSession((ELSEWHERE.ip,))]
    assert talk.told(a.TunnelUp)[0].address_changed
    assert not talk.did(a.CloseTunnel)


def test_a_refused_secret_is_never_used_again() -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.refuse(Code.RESUME_REFUSED)
    lost(talk)
    request = back(talk)
    assert (request.tsid, request.resume_proof) == (UNASSIGNED_TSID, None)


def test_the_same_address_again_keeps_the_sockets() -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.refuse(Code.RESUME_REFUSED)
    talk.configure()
    assert not talk.did(a.OpenSession)
    assert not talk.told(a.TunnelUp)[0].address_changed


def test_a_resume_that_brings_another_address_is_a_new_tunnel() -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.configure(address=ELSEWHERE)
    assert talk.told(a.TunnelUp)[0].address_changed
    assert not talk.told(a.Resumed)


def test_without_a_secret_there_is_nothing_to_resume() -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    talk.configure(secret=None)
    assert back(lost(talk)).tsid == UNASSIGNED_TSID
    talk.configure()
    assert talk.told(a.TunnelUp)
    assert not talk.told(a.Resumed)


@pytest.mark.parametrize("code", [Code.NO_ADDRESS, Code.TOO_MANY_TUNNELS, Code.RATE_LIMITED])
def test_a_client_that_was_in_waits_and_tries_again_when_refused_for_now(code: Code) -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.refuse(code, retry_after_ms=7000)
    assert talk.session.state is Client.PERSISTENT
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.STREAM, code.label)]
    assert talk.did(a.Reconnect)[-1].after >= 7.0


def test_a_server_cannot_send_a_client_away_for_days() -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.refuse(Code.RATE_LIMITED, retry_after_ms=2**32 - 1)
    assert talk.did(a.Reconnect)[-1].after <= RETRY_AFTER_MAX + RECONNECT_MAX


@pytest.mark.parametrize("code", [Code.UNAUTHORIZED, Code.UNSUPPORTED_VERSION, Code.NOT_ALLOWED])
def test_a_client_that_was_in_ends_when_refused_for_good(code: Code) -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    talk.refuse(code)
    assert talk.did(a.SessionClosed) == [a.SessionClosed(code.label)]


def test_a_new_stream_that_breaks_while_resuming_is_tried_again_with_the_same_secret() -> None:
    talk = lost(ClientTalk().connect())
    back(talk)
    lost(talk)
    assert talk.did(a.Reconnect)
    request = back(talk)
    assert request.resume_proof is not None
    assert proof_holds(request.resume_proof, SECRET, STREAM_TSID, b"B" * 32)


def test_a_client_told_not_to_come_back_ends() -> None:
    talk = lost(ClientTalk(reconnect=False).connect())
    assert talk.did(a.SessionClosed) == [a.SessionClosed("reset")]
    assert not talk.did(a.Reconnect)


def test_a_silent_stream_is_given_up() -> None:
    talk = ClientTalk().connect()
    talk.call("path_silent", Path.STREAM)
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.STREAM, "path-silent")]
    assert talk.session.state is Client.PERSISTENT


def test_a_request_without_an_answer_gives_the_stream_up() -> None:
    talk = ClientTalk().connect()
    talk.call("set_mode", FLOW, PathMode.DATAGRAM)
    talk.wait(REQUEST_TIMEOUT_STREAM)
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.STREAM, "no-answer")]
    assert talk.session.state is Client.PERSISTENT


# -- the end ----------------------------------------------------------------------------------------------


def test_closing_releases_and_waits_for_the_answer() -> None:
    talk = ClientTalk().connect()
    talk.call("close")
    (request,) = talk.said(m.ReleaseRequest)
    assert not talk.did(a.SessionClosed)
    talk.answer(request)
    assert talk.order[-3:] == ["CloseTunnel", "Notify", "SessionClosed"]
    assert talk.told(a.Terminated) == [a.Terminated("local-close")]


def test_closing_does_not_wait_long() -> None:
    talk = ClientTalk().connect()
    talk.call("close")
    talk.wait(RELEASE_TIMEOUT)
    assert talk.did(a.SessionClosed) == [a.SessionClosed("local-close")]


@pytest.mark.parametrize("state", [Client.CONNECTING, Client.CONFIGURING, Client.PERSISTENT, Client.RESUMING])
def test_closing_without_a_configured_stream_is_immediate(state: Client) -> None:
    talk = ClientTalk()
    if state is Client.CONFIGURING:
        talk.call("stream_ready", binding=BINDING)
    elif state is not Client.CONNECTING:
        lost(talk.connect())
        if state is Client.RESUMING:
            back(talk)
    assert talk.session.state is state
    talk.call("close")
    assert talk.did(a.SessionClosed) == [a.SessionClosed("local-close")]
    assert talk.session.deadline() is None


def test_a_server_that_stops_is_come_back_to() -> None:
    talk = ClientTalk().connect()
    talk.hear(
        Path.STREAM,
        m.ReleaseRequest(tsid=STREAM_TSID, sequence=9, code=Code.SHUTTING_DOWN, retry_after_ms=3000),
    )
    assert talk.said(m.ReleaseResponse)[0].sequence == 9
    assert talk.session.state is Client.PERSISTENT
    assert talk.did(a.Reconnect)[0].after >= 3.0


def test_a_server_that_stops_takes_its_ddt_along() -> None:
    talk = ClientTalk().with_ddt(FLOW)
    talk.hear(Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=9, code=Code.SHUTTING_DOWN))
    assert [close.path for close in talk.did(a.CloseTunnel)] == [Path.DATAGRAM, Path.STREAM]
    assert talk.session.path(FLOW) is Path.STREAM


def test_a_server_that_releases_us_for_good_ends_the_session() -> None:
    talk = ClientTalk().connect()
    talk.hear(
        Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=9, code=Code.NOT_ALLOWED, text="banned")
    )
    assert talk.said(m.ReleaseResponse)
    assert talk.told(a.Terminated) == [a.Terminated("not-allowed", Code.NOT_ALLOWED, "banned")]


def test_a_closed_session_does_nothing_any_more() -> None:
    talk = ClientTalk()
    talk.call("close")
    talk.clear()
    talk.call("unset", FLOW)
    talk.call("want_ddt", True)
    talk.call("use_path", FLOW, Path.STREAM)
    talk.call("path_lost", Path.DATAGRAM, "reset")
    talk.call("close")
    with pytest.raises(LocalProtocolError):
        talk.session.set_mode(FLOW, PathMode.DATAGRAM, talk.now)
    assert talk.log == []
    talk.call("stream_ready", binding=BINDING)
    assert talk.log == [a.CloseTunnel(Path.STREAM, "session-closed")]


# -- messages ---------------------------------------------------------------------------------------------


def test_keepalives_are_answered_with_their_timestamp() -> None:
    talk = ClientTalk().connect()
    talk.hear(Path.STREAM, m.KeepaliveRequest(tsid=STREAM_TSID, sequence=4, timestamp=99))
    assert talk.said(m.KeepaliveResponse) == [m.KeepaliveResponse(tsid=STREAM_TSID, sequence=4, timestamp=99)]


def test_an_unknown_type_is_answered_with_an_error() -> None:
    talk = ClientTalk().connect()
    talk.hear(Path.STREAM, m.UnknownMessage(tsid=STREAM_TSID, sequence=4, type=77))
    assert talk.said(m.ErrorResponse) == [
        m.ErrorResponse(tsid=STREAM_TSID, sequence=4, code=Code.UNKNOWN_TYPE)
    ]


def test_quality_reports_go_both_ways() -> None:
    reports = (m.PathQuality(Path.DATAGRAM, 1000, 50, 1, 200, 30000),)
    talk = ClientTalk().connect()
    talk.call("send_quality", reports)
    assert talk.said(m.QualityReport)[0].reports == reports
    talk.hear(Path.STREAM, m.QualityReport(tsid=STREAM_TSID, sequence=1, reports=reports))
    assert talk.told(a.QualityReported) == [a.QualityReported(reports)]


@pytest.mark.parametrize(
    ("path", "message", "name"),
    [
        (Path.STREAM, m.KeepaliveRequest(tsid=Tsid(1), sequence=1), "wrong-tsid"),
        (Path.DATAGRAM, m.KeepaliveRequest(tsid=STREAM_TSID, sequence=1), "wrong-tsid"),
        (Path.STREAM, m.ConfigurationRequest(tsid=STREAM_TSID, sequence=1), "unexpected-message"),
        (Path.STREAM, m.ServiceResponse(tsid=STREAM_TSID, sequence=99, code=0), "unexpected-response"),
        (Path.STREAM, m.ReleaseResponse(tsid=STREAM_TSID, sequence=99, code=0), "unexpected-response"),
        (Path.STREAM, m.ErrorResponse(tsid=STREAM_TSID, sequence=99, code=7), "unexpected-response"),
        (Path.STREAM, m.ConfigurationResponse(tsid=STREAM_TSID, sequence=99, code=0), "not-allowed-now"),
        (Path.DATAGRAM, m.ServiceResponse(tsid=STREAM_TSID, sequence=1, code=0), "unexpected-message"),
    ],
)
def test_what_should_not_come_is_counted_and_changes_nothing(
    path: Path, message: m.Message, name: str
) -> None:
    talk = ClientTalk().connect()
    talk.hear(path, message)
    assert dict(talk.session.counts) == {name: 1}
    assert talk.log == []
    assert talk.session.state is Client.ACTIVE


def test_an_error_instead_of_a_configuration_is_a_refusal() -> None:
    talk = ClientTalk()
    talk.call("stream_ready", binding=BINDING)
    talk.hear(Path.STREAM, m.ErrorResponse(tsid=UNASSIGNED_TSID, sequence=1, code=Code.UNSUPPORTED_VERSION))
    assert talk.did(a.SessionClosed) == [a.SessionClosed("unsupported-version")]


def test_an_error_instead_of_a_release_answer_is_good_enough() -> None:
    talk = ClientTalk().connect()
    talk.call("close")
    (request,) = talk.said(m.ReleaseRequest)
    talk.hear(
        Path.STREAM, m.ErrorResponse(tsid=STREAM_TSID, sequence=request.sequence, code=Code.UNKNOWN_TYPE)
    )
    assert talk.did(a.SessionClosed) == [a.SessionClosed("local-close")]


def test_a_server_cannot_ask_a_client_for_services() -> None:
    talk = ClientTalk().connect()
    talk.hear(
        Path.STREAM,
        m.ServiceRequest(tsid=STREAM_TSID, sequence=3, service=Service.DDT, action=ServiceAction.ENABLE),
    )
    assert talk.said(m.ServiceResponse)[0].code is Code.NOT_ALLOWED
    assert talk.session.ddt_state is ClientDdt.ABSENT


def test_what_the_session_says_of_itself() -> None:
    talk = ClientTalk().with_ddt()
    assert talk.session.mode(FLOW) is PathMode.DATAGRAM
    assert talk.session.path(FLOW) is Path.DATAGRAM
    assert talk.session.ddt_state is ClientDdt.UP
    configuration = talk.session.configuration
    assert configuration is not None
    assert configuration.tsid == STREAM_TSID
    assert DDT_TSID != STREAM_TSID
