"""The server half: set-up, resume, services, the end."""

from __future__ import annotations

from typing import Any

import pytest

from opentsm.errors import LocalProtocolError
from opentsm.limits import CONFIGURATION_DEADLINE
from opentsm.protocol import actions as a
from opentsm.protocol.resume import resume_proof
from opentsm.protocol.server import (
    RELEASE_TIMEOUT,
    RESUME_REFUSALS,
    Kept,
    ServerSession,
    ServerSettings,
    peek_resume,
)
from opentsm.protocol.states import Server, ServerDdt
from opentsm.types import UNASSIGNED_TSID, Code, Path, Service, ServiceAction, Tsid
from opentsm.wire import messages as m
from tests.unit.protocol.conversation import (
    BINDING,
    DDT_TSID,
    FLOW,
    IPV4,
    IPV6,
    LEASE,
    PEER,
    STREAM_TSID,
    ServerTalk,
)

NEW_BINDING = b"N" * 32
NEW_PEER = ("2001:db8::7", 4444)


# -- set-up ----------------------------------------------------------------------------------------


def test_nothing_is_leased_before_the_client_is_known() -> None:
    talk = ServerTalk()
    talk.ask_configuration(client_id=b"me", username="al", password=b"pw", families=m.AddressFamilies.IPV4)
    assert talk.log == [a.Authenticate(b"me", "al", b"pw", False)]
    talk.call("authenticated", "alice")
    assert talk.did(a.Allocate) == [a.Allocate("alice", m.AddressFamilies.IPV4)]
    assert talk.session.tsid is None


def test_a_lease_makes_a_tunnel() -> None:
    talk = ServerTalk(software="srv")
    talk.ask_configuration()
    talk.call("authenticated", "alice")
    talk.clear()
    talk.call("leased", LEASE)
    assert talk.order == ["OpenSession", "AttachStream", "Send", "Notify"]
    (answer,) = talk.said(m.ConfigurationResponse)
    assert (answer.code, answer.tsid, answer.sequence) == (Code.SUCCESS, STREAM_TSID, 1)
    assert (answer.inner_ipv4, answer.inner_ipv6) == (IPV4, IPV6)
    assert answer.offered_services == (Service.SIP, Service.DDT)
    assert answer.observed_address is not None
    assert (str(answer.observed_address[0]), answer.observed_address[1]) == PEER
    assert (answer.persistence_ms, answer.software) == (60000, "srv")
    assert answer.resume_secret is not None
    assert talk.told(a.Configured) == [a.Configured("alice", LEASE, STREAM_TSID)]
    assert (talk.session.tsid, talk.session.lease, talk.session.identity) == (STREAM_TSID, LEASE, "alice")
    assert talk.session.deadline() is None


def test_a_zone_in_the_peers_address_is_not_the_clients_business() -> None:
    talk = ServerTalk()
    talk.call("stream_ready", binding=BINDING, peer=("fe80::1%eth0", 7))
    talk.connect()
    talk.call("resume", resume(talk, 1), binding=NEW_BINDING, peer=("fe80::1%eth0", 7))
    observed = talk.said(m.ConfigurationResponse)[0].observed_address
    assert observed is not None
    assert str(observed[0]) == "fe80::1"


@pytest.mark.parametrize("code", [Code.UNAUTHORIZED, Code.RATE_LIMITED])
def test_a_failed_authentication_is_answered_and_closed(code: Code) -> None:
    talk = ServerTalk()
    talk.ask_configuration()
    talk.clear()
    talk.call("authentication_failed", code, text="no", retry_after=2.5)
    (answer,) = talk.said(m.ConfigurationResponse)
    assert (answer.code, answer.text, answer.retry_after_ms, answer.tsid) == (
        code,
        "no",
        2500,
        UNASSIGNED_TSID,
    )
    assert talk.order == ["Send", "CloseTunnel", "Notify", "SessionClosed"]
    assert talk.session.state is Server.CLOSED


def test_no_address_is_a_clear_answer() -> None:
    talk = ServerTalk()
    talk.ask_configuration()
    talk.call("authenticated", "alice")
    talk.call("lease_refused", Code.NO_ADDRESS)
    assert talk.said(m.ConfigurationResponse)[0].code is Code.NO_ADDRESS
    assert talk.did(a.SessionClosed) == [a.SessionClosed("no-address")]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_client_that_does_not_get_on_is_closed(steps: int) -> None:
    talk = ServerTalk()
    if steps > 0:
        talk.ask_configuration()
    if steps > 1:
        talk.call("authenticated", "alice")
    talk.wait(CONFIGURATION_DEADLINE)
    assert talk.did(a.SessionClosed) == [a.SessionClosed("configuration-timeout")]


def test_a_lease_that_comes_too_late_goes_back() -> None:
    talk = ServerTalk()
    talk.ask_configuration()
    talk.call("authenticated", "alice")
    talk.call("path_lost", Path.STREAM, "reset")
    assert talk.did(a.SessionClosed) == [a.SessionClosed("reset")]
    assert not talk.did(a.ReleaseLease)
    talk.clear()
    talk.call("leased", LEASE)
    assert talk.log == [a.ReleaseLease(LEASE)]


def test_a_verdict_that_comes_too_late_does_nothing() -> None:
    talk = ServerTalk()
    talk.ask_configuration()
    talk.call("path_lost", Path.STREAM, "reset")
    talk.clear()
    talk.call("authenticated", "alice")
    talk.call("authentication_failed", Code.UNAUTHORIZED)
    assert talk.log == []


def test_the_password_is_forgotten_once_it_was_used() -> None:
    talk = ServerTalk().connect()
    assert talk.session._request is None


def test_a_second_configuration_request_is_answered_and_has_no_effect() -> None:
    talk = ServerTalk()
    talk.ask_configuration()
    talk.clear()
    talk.ask_configuration()
    assert talk.order == ["Send"]
    assert talk.said(m.ConfigurationResponse)[0].code is Code.WRONG_STATE
    talk = ServerTalk().connect()
    talk.ask_configuration(tsid=STREAM_TSID)
    assert talk.said(m.ConfigurationResponse)[0].code is Code.WRONG_STATE
    assert talk.session.state is Server.ACTIVE


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message", "name"),
    [
        (Path.STREAM, m.ReleaseRequest(tsid=Tsid(1), sequence=1), "wrong-tsid"),
        (Path.STREAM, m.ServiceRequest(tsid=UNASSIGNED_TSID, sequence=1, service=3, action=1), "wrong-tsid"),
        (Path.DATAGRAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=1), "wrong-tsid"),
        (Path.DATAGRAM, m.ConfigurationRequest(tsid=Tsid(1), sequence=1), "wrong-tsid"),
        (Path.STREAM, m.ConfigurationResponse(tsid=STREAM_TSID, sequence=1, code=0), "unexpected-message"),
        (Path.STREAM, m.ReleaseResponse(tsid=STREAM_TSID, sequence=1, code=0), "not-allowed-now"),
        (Path.STREAM, m.ServiceResponse(tsid=STREAM_TSID, sequence=9, code=0), "unexpected-response"),
    ],
)
def test_what_should_not_come_is_counted_and_changes_nothing(
    path: Path, message: m.Message, name: str
) -> None:
    talk = ServerTalk().with_ddt()
    talk.hear(path, message)
    assert dict(talk.session.counts) == {name: 1}
    assert talk.log == []
    assert (talk.session.state, talk.session.ddt_state) == (Server.ACTIVE, ServerDdt.UP)


@pytest.mark.parametrize("path", list(Path))
def test_unknown_types_and_keepalives_are_answered_where_they_came(path: Path) -> None:
    talk = ServerTalk().with_ddt()
    tsid = STREAM_TSID if path is Path.STREAM else DDT_TSID
    talk.hear(path, m.UnknownMessage(tsid=tsid, sequence=4, type=77))
    talk.hear(path, m.KeepaliveRequest(tsid=tsid, sequence=5, timestamp=6))
    assert talk.said(m.Message, path) == [
        m.ErrorResponse(tsid=tsid, sequence=4, code=Code.UNKNOWN_TYPE),
        m.KeepaliveResponse(tsid=tsid, sequence=5, timestamp=6),
    ]


def test_quality_reports_go_both_ways() -> None:
    reports = (m.PathQuality(Path.STREAM, 1000, 50, 1, 200, 30000),)
    talk = ServerTalk().connect()
    talk.call("send_quality", reports)
    assert talk.said(m.QualityReport)[0].reports == reports
    talk.hear(Path.STREAM, m.QualityReport(tsid=STREAM_TSID, sequence=1, reports=reports))
    assert talk.told(a.QualityReported) == [a.QualityReported(reports)]


# -- services --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "action", "code"),
    [
        (Service.SIP, ServiceAction.ENABLE, Code.SUCCESS),
        (Service.FEC, ServiceAction.ENABLE, Code.SERVICE_UNAVAILABLE),
        (Service.FEC, ServiceAction.QUERY, Code.SERVICE_UNAVAILABLE),
        (4711, ServiceAction.ENABLE, Code.UNKNOWN_SERVICE),
        (Service.SIP, 99, Code.BAD_REQUEST),
        (Service.DDT, ServiceAction.PAIR_MISSING, Code.NOT_ALLOWED),
        (Service.DDT, ServiceAction.QUERY, Code.SUCCESS),
    ],
)
def test_every_service_request_has_its_code_and_the_tunnel_goes_on(
    service: int, action: int, code: Code
) -> None:
    talk = ServerTalk().connect()
    answer = talk.ask_service(action, service=service)
    assert (answer.code, answer.service) == (code, service)
    assert answer.tunnel_id is None
    assert bool(answer.offered_services) is (action == ServiceAction.QUERY)
    assert (talk.session.state, talk.session.ddt_state) == (Server.ACTIVE, ServerDdt.ABSENT)


def test_ddt_that_is_not_assigned_is_unavailable() -> None:
    talk = ServerTalk(services=(Service.SIP,)).connect()
    answer = talk.ask_service(ServiceAction.ENABLE, FLOW)
    assert (answer.code, answer.tunnel_id) == (Code.SERVICE_UNAVAILABLE, None)
    assert talk.order == ["Send"]
    assert talk.session.deadline() is None


# -- life cycle ------------------------------------------------------------------------------------


def resume(talk: ServerTalk, secret: int, **fields: Any) -> m.ConfigurationRequest:
    """A resume request made with the n-th secret this server gave."""
    binding = fields.pop("binding", NEW_BINDING)
    proof = resume_proof(bytes([secret]) * 32, STREAM_TSID, binding)
    return m.ConfigurationRequest(
        tsid=fields.pop("tsid", STREAM_TSID), sequence=talk.sequence(), resume_proof=proof
    )


def verifies(talk: ServerTalk, message: m.Message, binding: bytes = NEW_BINDING) -> bool:
    verified: bool = talk.session.verify_resume(message, binding)
    assert talk.session.actions() == [], "looking changes nothing"
    return verified


def resumed(talk: ServerTalk, secret: int) -> None:
    talk.call("resume", resume(talk, secret), binding=NEW_BINDING, peer=NEW_PEER)


@pytest.mark.parametrize("how", ["lost", "idle", "silent"])
def test_without_its_stream_a_session_is_persistent_and_then_over(how: str) -> None:
    talk = ServerTalk().connect()
    if how == "lost":
        talk.call("path_lost", Path.STREAM, "reset")
    else:
        talk.call(f"path_{how}", Path.STREAM)
        assert [close.path for close in talk.did(a.CloseTunnel)] == [Path.STREAM]
    assert talk.session.state is Server.PERSISTENT
    assert len(talk.told(a.StreamLost)) == 1
    talk.wait(59)
    assert not talk.did(a.ReleaseLease)
    talk.wait(1)
    assert talk.did(a.ReleaseLease) == [a.ReleaseLease(LEASE)]
    assert talk.did(a.SessionClosed) == [a.SessionClosed("persistence-time-over")]


@pytest.mark.parametrize("half_dead", [False, True])
def test_a_proof_brings_the_session_back_even_over_a_half_dead_stream(half_dead: bool) -> None:
    talk = ServerTalk().connect()
    if not half_dead:
        talk.call("path_lost", Path.STREAM, "reset")
    message = resume(talk, 1)
    assert peek_resume(message) == STREAM_TSID
    assert verifies(talk, message)
    talk.clear()
    talk.call("resume", message, binding=NEW_BINDING, peer=NEW_PEER)
    assert talk.order == ["AttachStream", "Send", "Notify"]
    (answer,) = talk.said(m.ConfigurationResponse)
    assert (answer.code, answer.tsid, answer.sequence) == (Code.SUCCESS, STREAM_TSID, message.sequence)
    assert (answer.inner_ipv4, answer.inner_ipv6) == (IPV4, IPV6)
    assert answer.resume_secret == bytes([2]) * 32
    assert answer.observed_address is not None
    assert str(answer.observed_address[0]) == NEW_PEER[0]
    assert talk.told(a.Resumed) == [a.Resumed()]
    assert talk.session.state is Server.ACTIVE
    talk.wait(1000)
    assert talk.session.state is Server.ACTIVE, "the persistence timer is off"


def test_the_old_secret_is_good_until_the_client_shows_it_has_the_new_one() -> None:
    talk = ServerTalk().connect()
    resumed(talk, 1)
    assert verifies(talk, resume(talk, 1)), "the answer may have been lost with its stream"
    assert verifies(talk, resume(talk, 2))
    talk.hear(Path.STREAM, m.KeepaliveRequest(tsid=STREAM_TSID, sequence=9))
    assert not verifies(talk, resume(talk, 1))
    assert verifies(talk, resume(talk, 2))


def test_a_proof_made_with_the_new_secret_voids_the_old_one() -> None:
    talk = ServerTalk().connect()
    resumed(talk, 1)
    resumed(talk, 2)
    assert not verifies(talk, resume(talk, 1))


def test_a_stolen_tsid_is_worth_nothing() -> None:
    talk = ServerTalk().connect()
    good = resume(talk, 1)
    stolen = m.ConfigurationRequest(tsid=STREAM_TSID, sequence=1, resume_proof=bytes(32))
    assert not verifies(talk, stolen)
    assert not verifies(talk, good, binding=BINDING), "a proof is bound to its connection"
    assert not verifies(talk, resume(talk, 1, tsid=Tsid(7)))
    assert not verifies(talk, m.ConfigurationRequest(tsid=STREAM_TSID, sequence=1))
    assert not verifies(talk, m.KeepaliveRequest(tsid=STREAM_TSID, sequence=1))
    with pytest.raises(LocalProtocolError):
        talk.session.resume(stolen, talk.now, binding=NEW_BINDING, peer=NEW_PEER)
    assert talk.session.state is Server.ACTIVE


def test_a_session_that_is_over_cannot_be_resumed() -> None:
    talk = ServerTalk().connect()
    talk.call("path_lost", Path.STREAM, "reset")
    talk.wait(60)
    assert not verifies(talk, resume(talk, 1))


@pytest.mark.parametrize(
    "message",
    [
        m.ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1),
        m.ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1, resume_proof=bytes(32)),
        m.ConfigurationRequest(tsid=STREAM_TSID, sequence=1),
        m.KeepaliveRequest(tsid=STREAM_TSID, sequence=1),
    ],
)
def test_most_messages_want_no_session_back(message: m.Message) -> None:
    assert peek_resume(message) is None


def test_a_resume_nobody_accepts_is_refused_and_a_fresh_request_is_welcome() -> None:
    talk = ServerTalk()
    talk.ask_configuration(tsid=Tsid(0x77), resume_proof=bytes(32))
    (answer,) = talk.said(m.ConfigurationResponse)
    assert (answer.code, answer.tsid) == (Code.RESUME_REFUSED, 0x77)
    talk.connect()
    assert talk.session.state is Server.ACTIVE


def test_guessing_proofs_on_one_connection_comes_to_an_end() -> None:
    talk = ServerTalk()
    for _ in range(RESUME_REFUSALS):
        assert talk.session.state is Server.WAITING
        talk.ask_configuration(tsid=Tsid(0x77), resume_proof=bytes(32))
    assert talk.did(a.SessionClosed) == [a.SessionClosed("resume-refused")]


# -- the end ---------------------------------------------------------------------------------------


def test_a_client_that_releases_has_its_answer_and_its_address_is_free() -> None:
    talk = ServerTalk().connect()
    talk.hear(Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=9))
    assert talk.order == ["Send", "CloseTunnel", "ReleaseLease", "Notify", "SessionClosed"]
    assert talk.said(m.ReleaseResponse)[0].sequence == 9
    assert talk.told(a.Terminated) == [a.Terminated("released-by-client")]


@pytest.mark.parametrize("end", ["answer", "silence", "lost"])
def test_a_server_that_stops_says_so_and_waits_a_moment(end: str) -> None:
    talk = ServerTalk().connect()
    talk.call("terminate", Code.SHUTTING_DOWN, retry_after=1.0, text="bye")
    (request,) = talk.said(m.ReleaseRequest)
    assert (request.tsid, request.code, request.retry_after_ms) == (STREAM_TSID, Code.SHUTTING_DOWN, 1000)
    assert not talk.did(a.SessionClosed)
    if end == "answer":
        talk.hear(
            Path.STREAM, m.ReleaseResponse(tsid=STREAM_TSID, sequence=request.sequence, code=Code.SUCCESS)
        )
    elif end == "silence":
        talk.wait(RELEASE_TIMEOUT)
    else:
        talk.call("path_lost", Path.STREAM, "reset")
    assert talk.did(a.ReleaseLease) == [a.ReleaseLease(LEASE)]
    assert talk.told(a.Terminated) == [a.Terminated("shutting-down", Code.SHUTTING_DOWN, "bye", 1.0)]
    assert talk.session.deadline() is None


def test_a_wrong_answer_to_a_release_does_not_end_it() -> None:
    talk = ServerTalk().connect()
    talk.call("terminate", Code.NOT_ALLOWED)
    talk.hear(Path.STREAM, m.ReleaseResponse(tsid=STREAM_TSID, sequence=999, code=Code.SUCCESS))
    assert talk.session.counts["unexpected-response"] == 1
    assert talk.session.state is Server.RELEASING


def test_a_client_being_set_up_is_told_why_not() -> None:
    talk = ServerTalk()
    talk.ask_configuration()
    talk.call("terminate", Code.SHUTTING_DOWN)
    assert talk.said(m.ConfigurationResponse)[0].code is Code.SHUTTING_DOWN
    assert talk.did(a.SessionClosed)


def test_a_persistent_session_ends_without_a_word() -> None:
    talk = ServerTalk().connect()
    talk.call("path_lost", Path.STREAM, "reset")
    talk.call("terminate", Code.SHUTTING_DOWN)
    assert not talk.said(m.ReleaseRequest)
    assert talk.did(a.SessionClosed) == [a.SessionClosed("shutting-down")]


def test_a_closed_session_does_nothing_any_more() -> None:
    talk = ServerTalk().connect()
    talk.hear(Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=9))
    talk.clear()
    talk.hear(Path.STREAM, m.ReleaseRequest(tsid=STREAM_TSID, sequence=9))
    talk.ask_configuration(tsid=STREAM_TSID)
    talk.call("path_lost", Path.STREAM, "reset")
    talk.call("path_lost", Path.DATAGRAM, "reset")
    talk.call("terminate", Code.SHUTTING_DOWN)
    talk.call("tick")
    assert talk.log == []


def test_a_resume_that_was_overtaken_by_a_newer_one_changes_nothing() -> None:
    talk = ServerTalk().connect()
    late, newer = resume(talk, 1), resume(talk, 1)
    talk.call("resume", newer, binding=NEW_BINDING, peer=NEW_PEER)
    assert not verifies(talk, late), "its stream has been given up"
    assert not verifies(talk, newer), "a request is granted once"
    assert verifies(talk, resume(talk, 2)), "the secret the client holds is good"


# -- a session of an earlier process ------------------------------------------------------------------------


def restored(generation: int, *, persistence: float = 60.0) -> ServerTalk:
    """A session that was written down with this generation, in a new process."""
    talk = ServerTalk()
    kept = Kept(STREAM_TSID, "alice", LEASE, generation, max(0, generation - 1))
    settings = ServerSettings(persistence=persistence, epoch=7)
    entropy = talk.session._entropy
    talk.session = ServerSession.restored(settings, kept, talk.now, entropy=entropy)
    talk.log = talk.session.actions()
    return talk


def test_what_is_kept_of_a_session_brings_it_back() -> None:
    before = ServerTalk().connect()
    resumed(before, 1)
    kept = before.session.kept
    assert kept == Kept(STREAM_TSID, "alice", LEASE, 1, 0)
    talk = restored(kept.generation)
    assert talk.did(a.OpenSession) == [a.OpenSession(LEASE.addresses)]
    message = resume(talk, 2)
    assert verifies(talk, message)
    talk.call("resume", message, binding=NEW_BINDING, peer=NEW_PEER)
    (answer,) = talk.said(m.ConfigurationResponse)
    assert (answer.tsid, answer.inner_ipv4, answer.inner_ipv6) == (STREAM_TSID, IPV4, IPV6)
    assert answer.server_epoch == 7
    assert answer.resume_secret == bytes([3]) * 32, "the generation after the one that was written"
    assert talk.session.identity == "alice"


@pytest.mark.parametrize(
    ("secret", "good"), [(3, False), (4, True), (5, True), (6, True), (9, True), (10, False)]
)
def test_a_write_or_an_answer_that_was_lost_with_the_process_costs_nothing(secret: int, good: bool) -> None:
    talk = restored(4)  # generation n has the secret n + 1 here
    assert verifies(talk, resume(talk, secret)) is good


def test_answers_that_were_lost_one_after_the_other_and_then_the_process_cost_nothing() -> None:
    before = ServerTalk().connect()
    for _ in range(5):
        resumed(before, 1)  # the answer never comes
    kept = before.session.kept
    assert kept is not None
    assert (kept.generation, kept.proved) == (5, 0)
    talk = ServerTalk()
    talk.session = ServerSession.restored(ServerSettings(), kept, talk.now, entropy=before.session._entropy)
    talk.session.actions()
    assert verifies(talk, resume(talk, 1))
    assert not verifies(talk, resume(talk, 3)), "a secret that was superseded"


def test_of_a_restored_session_too_only_the_newest_secret_stays_good() -> None:
    talk = restored(4)
    resumed(talk, 5)
    talk.hear(Path.STREAM, m.KeepaliveRequest(tsid=STREAM_TSID, sequence=9))
    assert [n for n in range(1, 12) if verifies(talk, resume(talk, n))] == [6]


def test_a_client_that_does_not_come_back_after_a_restart_loses_its_address_in_the_usual_time() -> None:
    talk = restored(0)
    talk.wait(59)
    assert not talk.did(a.SessionClosed)
    talk.wait(1)
    assert talk.did(a.ReleaseLease) == [a.ReleaseLease(LEASE)]
    assert talk.session.kept is None
