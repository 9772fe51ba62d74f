"""Streams beside the main one, as the server reserves, joins and lets them go."""

from __future__ import annotations

import pytest

from opentsm.limits import MAX_STREAMS, RESERVATION_LIFETIME
from opentsm.protocol import actions as a
from opentsm.protocol.resume import join_proof
from opentsm.protocol.server_streams import LEAVE_TIMEOUT, peek_join
from opentsm.protocol.states import Server, ServerStream
from opentsm.types import Code, Path, Redundancy, Service, ServiceAction, Spread, Tsid
from opentsm.wire import messages as m
from tests.unit.protocol.conversation import BINDING, IPV4, STREAM_TSID, ServerTalk

OTHER_BINDING = b"o" * 32
TWO = Redundancy(Spread.FAN_OUT, 2)
SERVICES = (Service.SIP, Service.DDT, Service.REDUNDANCY, Service.NAGLE)


class StreamTalk(ServerTalk):
    def __init__(self, services: tuple[Service, ...] = SERVICES) -> None:
        super().__init__(services)
        self.connect()

    def enable(self, redundancy: Redundancy | None = TWO) -> m.ServiceResponse:
        return self.ask_service(ServiceAction.ENABLE, service=Service.REDUNDANCY, redundancy=redundancy)

    def request(self, answer: m.ServiceResponse, binding: bytes = OTHER_BINDING) -> m.ConfigurationRequest:
        """The first message on the new stream."""
        assert answer.tunnel_id is not None
        assert answer.join_secret is not None
        proof = join_proof(answer.join_secret, answer.tunnel_id, binding)
        return m.ConfigurationRequest(tsid=answer.tunnel_id, sequence=1, join_proof=proof)

    def join(self) -> Tsid:
        request = self.request(self.enable())
        assert self.session.verify_join(request, OTHER_BINDING)
        self.call("join", request)
        return request.tsid

    def on_extra(self, tsid: Tsid, message: m.Message) -> None:
        self.session.streams.receive(tsid, message, self.now)
        self.log += self.session.actions()


def test_a_join_is_answered_before_any_media() -> None:
    talk = StreamTalk()
    tsid = talk.join()
    kinds = [k for k in talk.order if "Extra" in k]
    assert kinds == ["ReserveExtra", "UnreserveExtra", "AttachExtra", "SendExtra", "UseExtra"]
    (sent,) = talk.did(a.SendExtra)
    assert isinstance(sent.message, m.ConfigurationResponse)
    assert (sent.message.code, sent.message.inner_ipv4) == (Code.SUCCESS, IPV4)
    assert talk.did(a.SetSpread) == [a.SetSpread(Spread.FAN_OUT)]
    assert talk.session.streams.states == {tsid: ServerStream.UP}


def test_a_proof_is_good_once_for_its_own_connection_and_in_the_hands_of_its_owner_only() -> None:
    talk = StreamTalk()
    answer = talk.enable()
    good = talk.request(answer)
    assert peek_join(good) == answer.tunnel_id
    assert not talk.session.verify_join(good, BINDING), "another connection"
    stolen = m.ConfigurationRequest(
        tsid=good.tsid, sequence=1, join_proof=join_proof(bytes(32), good.tsid, OTHER_BINDING)
    )
    assert not talk.session.verify_join(stolen, OTHER_BINDING)
    elsewhere = m.ConfigurationRequest(tsid=STREAM_TSID, sequence=1, join_proof=good.join_proof)
    assert not talk.session.verify_join(elsewhere, OTHER_BINDING)
    assert talk.session.verify_join(good, OTHER_BINDING)
    talk.call("join", good)
    assert not talk.session.verify_join(good, OTHER_BINDING), "used"


def test_no_more_streams_are_reserved_than_asked_for_and_never_more_than_may_be() -> None:
    talk = StreamTalk()
    most = Redundancy(Spread.LOAD_BALANCE, MAX_STREAMS)
    answers = [talk.enable(most) for _ in range(MAX_STREAMS + 2)]
    assert [a.tunnel_id is not None for a in answers] == [True] * (MAX_STREAMS - 1) + [False] * 3
    assert all(answer.code == Code.SUCCESS for answer in answers)


@pytest.mark.parametrize("redundancy", [None, Redundancy()])
def test_a_request_without_a_wish_is_a_bad_request(redundancy: Redundancy | None) -> None:
    talk = StreamTalk()
    assert talk.enable(redundancy).code == Code.BAD_REQUEST
    assert not talk.did(a.ReserveExtra)


def test_where_the_service_is_not_assigned_there_is_none() -> None:
    talk = StreamTalk((Service.SIP,))
    answer = talk.enable()
    assert (answer.code, answer.tunnel_id, answer.join_secret) == (Code.SERVICE_UNAVAILABLE, None, None)


def test_a_reservation_is_forgotten_in_time() -> None:
    talk = StreamTalk()
    request = talk.request(talk.enable())
    talk.wait(RESERVATION_LIFETIME + 0.1)
    assert talk.did(a.UnreserveExtra) == [a.UnreserveExtra(request.tsid)]
    assert not talk.session.verify_join(request, OTHER_BINDING)


def test_streams_outlive_the_main_one_and_end_with_the_session() -> None:
    talk = StreamTalk()
    tsid = talk.join()
    talk.clear()
    talk.call("path_lost", Path.STREAM, "reset")
    assert (talk.session.state, talk.did(a.CloseExtra)) == (Server.PERSISTENT, [])
    talk.wait(61)
    assert talk.did(a.SessionClosed)
    assert [c.tsid for c in talk.did(a.CloseExtra)] == [tsid]
    assert talk.order.index("CloseExtra") < talk.order.index("SessionClosed")
    talk.clear()
    talk.session.streams.lost(tsid, "closed", talk.now)
    assert talk.session.actions() == [], "its connection's end comes behind"


def test_a_stream_that_is_given_back_gets_its_answer_behind_the_last_media() -> None:
    talk = StreamTalk()
    tsid = talk.join()
    talk.clear()
    talk.on_extra(tsid, m.ReleaseRequest(tsid=tsid, sequence=9))
    assert talk.order[0] == "UseExtra"
    assert [type(s.message) for s in talk.did(a.SendExtra)] == [m.ReleaseResponse]
    assert not talk.did(a.CloseExtra), "the client closes it"
    talk.wait(LEAVE_TIMEOUT + 0.1)
    assert [c.tsid for c in talk.did(a.CloseExtra)] == [tsid], "or we do"
    assert talk.session.streams.states == {}


def test_what_the_client_says_on_the_main_stream_counts_too() -> None:
    talk = StreamTalk()
    tsid = talk.join()
    talk.hear(Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=50, tunnel_id=tsid))
    assert [c.tsid for c in talk.did(a.CloseExtra)] == [tsid]
    assert talk.did(a.SetSpread)[-1] == a.SetSpread(Spread.SINGLE)
    assert talk.session.state is Server.ACTIVE


def test_wrong_messages_on_a_further_stream_end_nothing() -> None:
    talk = StreamTalk()
    tsid = talk.join()
    talk.clear()
    talk.on_extra(tsid, m.ReleaseRequest(tsid=STREAM_TSID, sequence=1))
    talk.on_extra(tsid, m.ConfigurationRequest(tsid=tsid, sequence=2))
    talk.on_extra(tsid, m.QualityReport(tsid=tsid, sequence=3))
    talk.on_extra(tsid, m.UnknownMessage(tsid=tsid, sequence=4, type=99))
    assert talk.session.streams.states == {tsid: ServerStream.UP}
    answered = [(type(s.message), s.message.code) for s in talk.did(a.SendExtra)]  # type: ignore[attr-defined]
    assert answered == [(m.ErrorResponse, Code.WRONG_STATE), (m.ErrorResponse, Code.UNKNOWN_TYPE)]
    counts = talk.session.counts
    assert counts == {"wrong-tsid": 1, "not-allowed-now": 1, "unexpected-message": 1, "unknown-type": 1}


def test_nagle_is_switched_by_whoever_may() -> None:
    talk = StreamTalk()
    assert talk.ask_service(ServiceAction.ENABLE, service=Service.NAGLE).code == Code.SUCCESS
    assert talk.ask_service(ServiceAction.DISABLE, service=Service.NAGLE).code == Code.SUCCESS
    assert talk.did(a.SetNagle) == [a.SetNagle(True), a.SetNagle(False)]
    assert (
        StreamTalk((Service.SIP,)).ask_service(ServiceAction.ENABLE, service=Service.NAGLE).code
        == Code.SERVICE_UNAVAILABLE
    )
