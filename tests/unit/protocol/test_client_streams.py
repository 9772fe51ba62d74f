"""Streams beside the main one, as the client makes, keeps and gives them back."""

from __future__ import annotations

from typing import Any

import pytest

from opentsm.limits import REQUEST_TIMEOUT_STREAM, STREAM_RETRY_MAX, STREAM_RETRY_MIN
from opentsm.protocol import actions as a
from opentsm.protocol.resume import join_proof
from opentsm.protocol.states import ClientStream
from opentsm.types import (
    NO_REDUNDANCY,
    UNASSIGNED_TSID,
    Code,
    Path,
    Redundancy,
    Service,
    ServiceAction,
    Spread,
    Tsid,
)
from opentsm.wire import messages as m
from tests.unit.protocol.conversation import BINDING, IPV4, STREAM_TSID, ClientTalk

EXTRA = Tsid(0xE1)
JOIN = b"j" * 32
TWO = Redundancy(Spread.FAN_OUT, 2)


class StreamTalk(ClientTalk):
    """A connected client whose server answers about streams."""

    def __init__(self) -> None:
        super().__init__()
        self.connect()

    def reserve(self, tsid: Tsid | None = EXTRA, code: Code = Code.SUCCESS) -> None:
        """Answer the newest Service Request."""
        request = self.said(m.ServiceRequest)[-1]
        secret = None if tsid is None else JOIN
        answer = m.ServiceResponse(
            tsid=STREAM_TSID, sequence=request.sequence, code=code, tunnel_id=tsid, join_secret=secret
        )
        self.hear(Path.STREAM, answer)

    def extra(self, method: str, *args: Any) -> Any:
        streams = self.session.streams
        order = (*args[:1], self.now, *args[1:]) if method == "ready" else (*args, self.now)
        result = getattr(streams, method)(*order)
        self.log += self.session.actions()
        return result

    def said_on(self, kind: type[Any], tsid: Tsid = EXTRA) -> list[Any]:
        sent = [action.message for action in self.did(a.SendExtra) if action.tsid == tsid]
        return [message for message in sent if isinstance(message, kind)]

    def grant(self, tsid: Tsid = EXTRA, **fields: Any) -> None:
        request = self.said_on(m.ConfigurationRequest, tsid)[-1]
        answer: dict[str, Any] = {"code": Code.SUCCESS, "inner_ipv4": IPV4, **fields}
        self.extra("receive", tsid, m.ConfigurationResponse(tsid=tsid, sequence=request.sequence, **answer))

    def up(self, wish: Redundancy = TWO) -> StreamTalk:
        self.call("set_redundancy", wish)
        for number in range(wish.streams - 1):
            tsid = Tsid(EXTRA + number)
            self.reserve(tsid)
            assert self.extra("ready", tsid, BINDING)
            self.grant(tsid)
        self.clear()
        return self

    @property
    def states(self) -> list[ClientStream]:
        return list(self.session.streams.states)


def test_a_wish_becomes_a_request_a_connection_a_proof_and_a_stream() -> None:
    talk = StreamTalk()
    talk.call("set_redundancy", TWO)
    (request,) = talk.said(m.ServiceRequest)
    assert (request.service, request.action) == (Service.REDUNDANCY, ServiceAction.ENABLE)
    assert request.redundancy == TWO
    talk.reserve()
    assert talk.did(a.OpenExtra) == [a.OpenExtra(EXTRA)]
    assert talk.extra("ready", EXTRA, BINDING)
    (configure,) = talk.said_on(m.ConfigurationRequest)
    assert configure.join_proof == join_proof(JOIN, EXTRA, BINDING)
    assert configure.tsid == EXTRA
    assert talk.order.index("AttachExtra") < talk.order.index("SendExtra"), "media may follow at once"
    assert not talk.did(a.UseExtra)
    talk.grant()
    assert talk.did(a.UseExtra) == [a.UseExtra(EXTRA, used=True)]
    assert talk.did(a.SetSpread) == [a.SetSpread(Spread.FAN_OUT)]
    assert talk.told(a.StreamsChanged)[-1] == a.StreamsChanged(TWO, 2, "joined")


def test_streams_are_asked_for_one_after_the_other() -> None:
    talk = StreamTalk().up(Redundancy(Spread.LOAD_BALANCE, 4))
    assert talk.states == [ClientStream.UP] * 3
    assert talk.session.streams.up == 3


def test_one_that_is_lost_is_told_of_and_made_anew_after_ever_longer_times() -> None:
    talk = StreamTalk().up()
    waits = []
    for _ in range(9):
        talk.clear()
        talk.extra("lost", EXTRA, "reset")
        assert [r.tunnel_id for r in talk.said(m.ReleaseRequest)] == [EXTRA]
        talk.answer(talk.said(m.ReleaseRequest)[0])
        talk.clear()
        start = talk.now
        while not talk.said(m.ServiceRequest):
            talk.wait(0.5)
        waits.append(talk.now - start)
        talk.reserve()
    assert waits[:3] == pytest.approx([STREAM_RETRY_MIN, 2 * STREAM_RETRY_MIN, 4 * STREAM_RETRY_MIN], abs=0.5)
    assert max(waits) <= STREAM_RETRY_MAX + 0.5


def test_a_server_without_the_service_is_asked_once() -> None:
    talk = StreamTalk()
    talk.call("set_redundancy", TWO)
    talk.reserve(None, Code.SERVICE_UNAVAILABLE)
    assert talk.told(a.StreamsChanged)[-1].reason == "service-unavailable"
    talk.clear()
    talk.wait(600)
    talk.call("set_redundancy", Redundancy(Spread.FAN_OUT, 3))
    assert not talk.said(m.ServiceRequest)


@pytest.mark.parametrize(
    "answer", [{"code": Code.RESUME_REFUSED}, {"inner_ipv4": None}], ids=["refused", "other-address"]
)
def test_a_stream_that_is_not_ours_is_closed_and_never_used(answer: dict[str, Any]) -> None:
    talk = StreamTalk()
    talk.call("set_redundancy", TWO)
    talk.reserve()
    talk.extra("ready", EXTRA, BINDING)
    talk.grant(**answer)
    assert [c.tsid for c in talk.did(a.CloseExtra)] == [EXTRA]
    assert not talk.did(a.UseExtra)
    assert talk.states[0] is ClientStream.WAITING


def test_media_goes_on_by_the_others_while_the_main_stream_is_away_and_after() -> None:
    talk = StreamTalk().up()
    talk.call("path_lost", Path.STREAM, "reset")
    assert not talk.did(a.CloseExtra)
    assert not talk.did(a.SetSpread)
    assert talk.told(a.StreamsChanged)[-1].up == 1
    talk.call("stream_ready", binding=BINDING)
    talk.configure()
    assert talk.states[0] is ClientStream.UP
    assert not talk.did(a.CloseExtra)


def test_a_request_that_was_left_behind_in_another_network_is_made_again() -> None:
    talk = StreamTalk()
    talk.call("set_redundancy", TWO)
    talk.call("network_changed")
    talk.call("stream_ready", binding=BINDING)
    talk.configure()
    assert [r.redundancy for r in talk.said(m.ServiceRequest)] == [TWO, TWO]
    talk.reserve()
    assert talk.did(a.OpenExtra) == [a.OpenExtra(EXTRA)]


@pytest.mark.parametrize("named", [EXTRA, STREAM_TSID, UNASSIGNED_TSID])
def test_a_server_that_names_a_stream_there_is_already_gets_no_second_one(named: Tsid) -> None:
    talk = StreamTalk().up()
    talk.call("set_redundancy", Redundancy(Spread.FAN_OUT, 3))
    talk.reserve(named)
    assert not talk.did(a.OpenExtra)
    assert not talk.did(a.CloseExtra)
    assert talk.states == [ClientStream.UP, ClientStream.WAITING, ClientStream.ABSENT]


def test_after_the_end_nothing_more_is_said_of_streams() -> None:
    talk = StreamTalk().up()
    talk.call("close")
    talk.answer(talk.said(m.ReleaseRequest)[0])
    assert talk.told(a.StreamsChanged)[-1].up == 0
    talk.clear()
    assert not talk.extra("ready", EXTRA, BINDING)
    talk.extra("lost", EXTRA, "reset")
    assert talk.log == []


def test_a_fresh_tunnel_closes_them_and_asks_again() -> None:
    talk = StreamTalk().up()
    talk.call("path_lost", Path.STREAM, "reset")
    talk.call("stream_ready", binding=BINDING)
    talk.refuse(Code.RESUME_REFUSED)
    talk.clear()
    talk.log += [
        a.Send(Path.STREAM, m.ConfigurationRequest(tsid=STREAM_TSID, sequence=talk.session._core._sequence))
    ]
    talk.configure()
    assert [c.tsid for c in talk.did(a.CloseExtra)] == [EXTRA]
    assert len(talk.said(m.ServiceRequest)) == 1


def test_giving_back_stops_sending_first_and_closes_when_the_server_has_answered() -> None:
    talk = StreamTalk().up()
    talk.call("set_redundancy", NO_REDUNDANCY)
    assert talk.did(a.UseExtra) == [a.UseExtra(EXTRA, used=False)]
    assert talk.did(a.SetSpread) == [a.SetSpread(Spread.SINGLE)]
    (release,) = talk.said_on(m.ReleaseRequest)
    assert not talk.did(a.CloseExtra), "what the server has still sent is on its way"
    assert [r.action for r in talk.said(m.ServiceRequest)] == [ServiceAction.DISABLE]
    talk.extra("receive", EXTRA, m.ReleaseResponse(tsid=EXTRA, sequence=release.sequence, code=Code.SUCCESS))
    assert [c.tsid for c in talk.did(a.CloseExtra)] == [EXTRA]


def test_a_reservation_that_is_no_longer_wanted_is_given_back() -> None:
    talk = StreamTalk()
    talk.call("set_redundancy", TWO)
    talk.call("set_redundancy", NO_REDUNDANCY)
    talk.reserve()
    assert [r.tunnel_id for r in talk.said(m.ReleaseRequest)] == [EXTRA]
    assert [c.tsid for c in talk.did(a.CloseExtra)] == [EXTRA]
    assert talk.states == [ClientStream.ABSENT] * 3


def test_a_stream_that_never_comes_up_is_given_up() -> None:
    talk = StreamTalk()
    talk.call("set_redundancy", TWO)
    talk.reserve()
    talk.wait(REQUEST_TIMEOUT_STREAM + 0.1)
    assert talk.states[0] is ClientStream.WAITING


def test_messages_with_another_tsid_and_strange_ones_change_nothing() -> None:
    talk = StreamTalk().up()
    talk.extra("receive", EXTRA, m.ReleaseRequest(tsid=STREAM_TSID, sequence=1))
    talk.extra("receive", Tsid(9), m.ReleaseRequest(tsid=Tsid(9), sequence=1))
    talk.extra("receive", EXTRA, m.ServiceRequest(tsid=EXTRA, sequence=1, service=1, action=1))
    talk.extra("receive", EXTRA, m.ConfigurationResponse(tsid=EXTRA, sequence=999, code=Code.SUCCESS))
    assert talk.states[0] is ClientStream.UP
    counts = talk.session.counts
    assert (counts["wrong-tsid"], counts["unexpected-message"], counts["unexpected-response"]) == (2, 1, 1)


def test_nagle_is_set_when_the_server_has_said_yes() -> None:
    talk = StreamTalk()
    for code, granted in ((Code.SERVICE_UNAVAILABLE, False), (Code.SUCCESS, True)):
        talk.clear()
        talk.call("set_nagle", True)
        talk.reserve(None, code)
        assert talk.told(a.NagleSet) == [a.NagleSet(True, granted)]
        assert talk.did(a.SetNagle) == ([a.SetNagle(True)] if granted else [])
