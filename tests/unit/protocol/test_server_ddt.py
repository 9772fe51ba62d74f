"""The server's side of a DDT: reservation, configuration, rows, the missing pair."""

from __future__ import annotations

import pytest

from opentsm.limits import (
    MAX_FLOWS_PER_SESSION,
    PAIR_MISSING_REPEAT,
    PAIR_MISSING_WARN,
    RESERVATION_LIFETIME,
)
from opentsm.protocol import actions as a
from opentsm.protocol.actions import SteerMode
from opentsm.protocol.resume import resume_proof
from opentsm.protocol.server_ddt import DDT_SILENT_LIMIT, REMEMBERED_RESPONSES
from opentsm.protocol.states import Server, ServerDdt
from opentsm.types import Code, Flow, Path, PathMode, Protocol, ServiceAction, Tsid
from opentsm.wire import messages as m
from tests.unit.protocol.conversation import (
    BINDING,
    DDT_TSID,
    FLOW,
    IPV4,
    IPV6,
    OTHER,
    PEER,
    STREAM_TSID,
    ServerTalk,
)

ENABLE, DISABLE = ServiceAction.ENABLE, ServiceAction.DISABLE
SECOND = Tsid(0xD2)


def release(talk: ServerTalk, tunnel_id: Tsid = DDT_TSID) -> None:
    talk.hear(Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=talk.sequence(), tunnel_id=tunnel_id))


def resume(talk: ServerTalk) -> None:
    proof = resume_proof(bytes([1]) * 32, STREAM_TSID, BINDING)
    message = m.ConfigurationRequest(tsid=STREAM_TSID, sequence=talk.sequence(), resume_proof=proof)
    talk.call("resume", message, binding=BINDING, peer=PEER)


# -- the way up ------------------------------------------------------------------------------------


def test_enabling_reserves_a_tunnel_before_it_is_named() -> None:
    talk = ServerTalk().connect()
    answer = talk.ask_service(ENABLE, FLOW, mode=PathMode.DATAGRAM)
    assert (answer.code, answer.tunnel_id) == (Code.SUCCESS, DDT_TSID)
    assert talk.did(a.ReserveDatagram) == [a.ReserveDatagram(DDT_TSID, RESERVATION_LIFETIME)]
    assert talk.order.index("ReserveDatagram") < talk.order.index("Send")
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.STREAM)]


def test_further_flows_share_the_tunnel() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    assert talk.ask_service(ENABLE, OTHER).tunnel_id == DDT_TSID
    assert len(talk.did(a.ReserveDatagram)) == 1


def test_the_ddt_has_the_streams_addresses_and_flows_move_when_it_is_configured() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW, mode=PathMode.DATAGRAM)
    talk.ask_service(ENABLE, OTHER, mode=PathMode.AUTO)
    assert talk.call("datagram_ready", DDT_TSID)
    assert talk.session.ddt_state is ServerDdt.READY
    talk.clear()
    talk.ask_ddt_configuration()
    (answer,) = talk.said(m.ConfigurationResponse, Path.DATAGRAM)
    assert (answer.tsid, answer.code) == (DDT_TSID, Code.SUCCESS)
    assert (answer.inner_ipv4, answer.inner_ipv6) == (IPV4, IPV6)
    assert answer.keepalive_datagram_ms == 1000
    assert talk.order[0] == "AttachDatagram"
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.DATAGRAM)]
    assert talk.told(a.DdtUp) == [a.DdtUp(DDT_TSID)]


def test_a_flow_that_comes_while_the_ddt_is_being_made_waits_on_the_stream() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.call("datagram_ready", DDT_TSID)
    talk.clear()
    talk.ask_service(ENABLE, OTHER, mode=PathMode.DATAGRAM)
    assert talk.did(a.Steer) == [a.Steer(OTHER, SteerMode.STREAM)]


def test_a_copy_of_the_request_gets_the_same_answer_and_has_no_effect() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    sequence = talk._sequence
    talk.ask_ddt_configuration(sequence=sequence)
    talk.ask_ddt_configuration(sequence=sequence)
    assert talk.order == ["Send", "Send"]
    assert len(set(talk.said(m.ConfigurationResponse, Path.DATAGRAM))) == 1


def test_few_answers_are_remembered() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    for _ in range(10 * REMEMBERED_RESPONSES):
        talk.ask_ddt_configuration()
    assert len(talk.session._ddt._answers) == REMEMBERED_RESPONSES


@pytest.mark.parametrize("tsid", [Tsid(7), STREAM_TSID])
def test_only_the_reserved_tunnel_is_let_in(tsid: Tsid) -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    assert not talk.call("datagram_ready", tsid)
    assert talk.call("datagram_ready", DDT_TSID)
    assert not talk.call("datagram_ready", DDT_TSID), "a reservation is used once"
    assert talk.session.counts["wrong-tsid"] == 2


def test_a_configuration_request_before_the_tunnel_is_there_is_dropped() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.ask_ddt_configuration()
    assert talk.session.counts["wrong-tsid"] == 1
    assert talk.session.ddt_state is ServerDdt.RESERVED


def test_a_reservation_nobody_uses_ends() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.wait(RESERVATION_LIFETIME)
    assert talk.did(a.UnreserveDatagram) == [a.UnreserveDatagram(DDT_TSID)]
    assert talk.ask_service(ENABLE, FLOW).tunnel_id == SECOND


def test_a_tunnel_that_is_never_configured_is_closed() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.call("datagram_ready", DDT_TSID)
    talk.wait(RESERVATION_LIFETIME)
    assert [close.path for close in talk.did(a.CloseTunnel)] == [Path.DATAGRAM]
    assert not talk.told(a.DdtDown), "it was never up"


# -- rows ------------------------------------------------------------------------------------------


def test_in_mode_auto_our_own_judgement_moves_what_we_send_and_says_why() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    judging = [talk.session.judges]
    talk.ask_service(ENABLE, OTHER, mode=PathMode.AUTO)
    judging.append(talk.session.judges)
    assert judging == [False, True]
    talk.clear()
    talk.call("use_path", Path.DATAGRAM, reason="because")
    assert talk.did(a.Steer) == [a.Steer(OTHER, SteerMode.DATAGRAM)]
    assert talk.told(a.MediaMoved) == [a.MediaMoved((OTHER,), Path.DATAGRAM, "because")]
    talk.clear()
    talk.call("use_path", Path.DATAGRAM, reason="again")
    assert not talk.did(a.Steer)
    talk.ask_service(ENABLE, OTHER, mode=PathMode.DATAGRAM)
    talk.call("use_path", Path.STREAM, reason="worse")
    assert not talk.did(a.Steer), "a switch by the application wins"
    talk.call("path_silent", Path.DATAGRAM)
    (moved,) = talk.told(a.MediaMoved)
    assert (set(moved.flows), moved.path) == ({FLOW, OTHER}, Path.STREAM)
    assert moved.reason == "the datagram tunnel is silent"


def test_modes_become_rows() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.ask_service(ENABLE, FLOW, mode=PathMode.STREAM)
    talk.ask_service(ENABLE, FLOW)
    talk.ask_service(DISABLE, FLOW, mode=PathMode.STREAM)
    talk.ask_service(DISABLE, FLOW)
    modes = [action.mode for action in talk.did(a.Steer)]
    assert modes == [SteerMode.STREAM, SteerMode.DATAGRAM, SteerMode.STREAM]
    assert talk.did(a.Unsteer) == [a.Unsteer(FLOW)]


def test_a_disabled_flow_that_was_never_known_makes_no_row() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    assert talk.ask_service(DISABLE, OTHER, mode=PathMode.STREAM).code is Code.SUCCESS
    assert not talk.did(a.Steer)


def test_too_many_flows_are_refused_whole() -> None:
    talk = ServerTalk().connect()
    for start in range(0, MAX_FLOWS_PER_SESSION, 32):
        flows = [Flow(Protocol.UDP, 1 + start + n) for n in range(32)]
        assert talk.ask_service(ENABLE, *flows).code is Code.SUCCESS
    talk.clear()
    one_too_many = Flow(Protocol.TCP, 1)
    answer = talk.ask_service(ENABLE, Flow(Protocol.UDP, 1), one_too_many)
    assert (answer.code, answer.tunnel_id) == (Code.NOT_ALLOWED, None)
    assert talk.order == ["Send"]
    talk.ask_service(DISABLE, Flow(Protocol.UDP, 1))
    assert talk.ask_service(ENABLE, one_too_many).code is Code.SUCCESS


# -- the way down ----------------------------------------------------------------------------------


def assert_down(talk: ServerTalk, reason: str) -> None:
    assert talk.did(a.Steer) == [a.Steer(FLOW, SteerMode.STREAM)]
    assert talk.did(a.CloseTunnel) == [a.CloseTunnel(Path.DATAGRAM, reason)]
    assert talk.told(a.DdtDown) == [a.DdtDown(DDT_TSID, reason)]
    assert talk.session.ddt_state is ServerDdt.ABSENT
    assert talk.session.ddt_tsid is None


def test_a_client_gives_its_ddt_back_on_the_stream() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    release(talk)
    assert_down(talk, "released")
    assert talk.said(m.ReleaseResponse)[0].tunnel_id == DDT_TSID
    assert talk.session.state is Server.ACTIVE


def test_a_client_gives_its_ddt_back_on_the_ddt() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.hear(Path.DATAGRAM, m.ReleaseRequest(tsid=DDT_TSID, sequence=9))
    assert talk.said(m.ReleaseResponse, Path.DATAGRAM)[0].sequence == 9
    assert_down(talk, "released")


def test_giving_back_something_else_is_answered_and_does_nothing() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    release(talk, Tsid(7))
    assert talk.order == ["Send"]
    assert talk.session.ddt_state is ServerDdt.UP


def test_a_ddt_that_dies_puts_its_flows_back() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.DATAGRAM, "dtls-error")
    assert_down(talk, "dtls-error")


def test_an_idle_ddt_is_closed() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.call("path_idle", Path.DATAGRAM)
    assert_down(talk, "idle")


def test_a_silent_ddt_is_kept_for_a_while() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.call("path_silent", Path.DATAGRAM)
    talk.call("path_alive", Path.DATAGRAM)
    assert [action.mode for action in talk.did(a.Steer)] == [SteerMode.STREAM, SteerMode.DATAGRAM]
    talk.clear()
    talk.call("path_silent", Path.DATAGRAM)
    assert talk.ask_service(ENABLE, FLOW).tunnel_id == DDT_TSID
    talk.wait(DDT_SILENT_LIMIT)
    assert_down(talk, "ddt-silent")


def test_a_new_ddt_after_the_old_one_has_another_name() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    release(talk)
    assert talk.ask_service(ENABLE, FLOW).tunnel_id == SECOND


def test_a_release_undoes_a_reservation() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    release(talk)
    assert talk.did(a.UnreserveDatagram) == [a.UnreserveDatagram(DDT_TSID)]


# -- with and without a stream ---------------------------------------------------------------------


def test_a_ddt_lives_on_without_its_stream() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.call("path_lost", Path.STREAM, "reset")
    talk.ask_ddt_configuration()
    assert talk.said(m.ConfigurationResponse, Path.DATAGRAM)
    talk.clear()
    resume(talk)
    assert talk.session.ddt_state is ServerDdt.UP
    assert not talk.did(a.Steer)
    assert not talk.did(a.CloseTunnel)


def test_a_reservation_for_the_old_streams_key_is_void_after_a_resume() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.call("path_lost", Path.STREAM, "reset")
    resume(talk)
    assert talk.did(a.UnreserveDatagram) == [a.UnreserveDatagram(DDT_TSID)]
    assert talk.ask_service(ENABLE, FLOW).tunnel_id == SECOND


def test_the_ddt_ends_with_its_session() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.hear(Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=9))
    assert talk.told(a.DdtDown) == [a.DdtDown(DDT_TSID, "released-by-client")]
    assert talk.order[-1] == "SessionClosed"


# -- the missing pair ------------------------------------------------------------------------------


def warnings(talk: ServerTalk) -> list[m.ServiceRequest]:
    return [r for r in talk.said(m.ServiceRequest) if r.action is ServiceAction.PAIR_MISSING]


@pytest.mark.parametrize("flows", [(), (FLOW,)])
def test_a_client_without_its_datagram_half_is_warned(flows: tuple[Flow, ...]) -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, *flows)
    talk.wait(PAIR_MISSING_WARN - 0.1)
    assert not warnings(talk)
    talk.wait(0.1)
    assert len(warnings(talk)) == 1
    assert talk.told(a.PairMissing) == [a.PairMissing()]


def test_the_warning_is_repeated_seldom() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    for _ in range(100):
        talk.wait(PAIR_MISSING_WARN)
        talk.ask_service(ENABLE, FLOW)
        for warning in warnings(talk):
            talk.hear(
                Path.STREAM,
                m.ServiceResponse(tsid=STREAM_TSID, sequence=warning.sequence, code=Code.SUCCESS),
            )
    assert len(warnings(talk)) == 1 + int(99 * PAIR_MISSING_WARN / PAIR_MISSING_REPEAT)


def test_a_ddt_that_died_is_missed_too() -> None:
    talk = ServerTalk().with_ddt(FLOW)
    talk.wait(1000)
    assert not warnings(talk)
    talk.call("path_lost", Path.DATAGRAM, "reset")
    talk.wait(PAIR_MISSING_WARN)
    assert len(warnings(talk)) == 1


def test_nobody_is_warned_of_what_nobody_wants() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.ask_service(ENABLE)
    talk.ask_service(DISABLE, FLOW)
    talk.ask_service(DISABLE)
    talk.wait(1000)
    assert not warnings(talk)


def test_nobody_is_warned_without_a_stream_and_the_check_goes_on_after_it() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.call("path_lost", Path.STREAM, "reset")
    talk.wait(50)
    assert not warnings(talk)
    resume(talk)
    talk.wait(PAIR_MISSING_WARN)
    assert len(warnings(talk)) == 1


def test_a_client_that_never_answers_is_warned_a_bounded_number_of_times() -> None:
    talk = ServerTalk().connect()
    talk.ask_service(ENABLE, FLOW)
    talk.wait(100 * PAIR_MISSING_REPEAT)
    assert 2 <= len(warnings(talk)) <= 8
