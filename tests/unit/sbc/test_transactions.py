"""The four machines of RFC 3261 section 17, timer by timer."""

from __future__ import annotations

import pytest

from opentsm.sbc.hop import Hop
from opentsm.sbc.message import Request, Response, reply
from opentsm.sbc.transactions import (
    RUNNING,
    TABLE,
    Gone,
    Kind,
    Output,
    Send,
    State,
    TimedOut,
    Transaction,
    TransactionKey,
    Transactions,
    make_ack,
    make_cancel,
)

UDP = Hop("udp", ("10.64.0.1", 5060), ("10.64.0.2", 5060))
TCP = Hop("tcp", ("10.64.0.1", 5060), ("10.64.0.2", 5060))
CLIENT = TransactionKey("client", "z9hG4bK1", "INVITE")
SERVER = TransactionKey("server", "z9hG4bK1@h:5060", "INVITE", "10.64.0.2")


def request(method: str) -> Request:
    made = Request(method, "sip:bob@10.64.0.2")
    made.headers = [
        ("Via", "SIP/2.0/UDP 10.64.0.1;branch=z9hG4bK1"),
        ("Via", "SIP/2.0/UDP 10.64.0.9;branch=z9hG4bK0"),
        ("Route", "<sip:edge;lr>"),
        ("From", "<sip:a@x>;tag=1"),
        ("To", "<sip:b@x>"),
        ("Call-ID", "c"),
        ("CSeq", f"3 {method}"),
    ]
    return made


def sent_times(transactions: Transactions, seconds: float) -> tuple[list[float], list[Output]]:
    """Run the timers from 0; times of repeats, and everything else that came out."""
    times, rest = [], list[Output]()
    while (when := transactions.next_deadline()) is not None and when <= seconds:
        for output in transactions.expire(when):
            if isinstance(output, Send):
                times.append(when)
            else:
                rest.append(output)
    return times, rest


def client(method: str, hop: Hop = UDP) -> tuple[Transactions, Transaction]:
    transactions = Transactions()
    transaction, outputs = transactions.start_client(
        0.0, CLIENT._replace(method=method), hop, request(method)
    )
    assert outputs == [Send(hop, request(method).encode())]
    return transactions, transaction


def server(method: str, hop: Hop = UDP) -> tuple[Transactions, Transaction]:
    transactions = Transactions()
    return transactions, transactions.start_server(0.0, SERVER._replace(method=method), hop, request(method))


def answer(code: int, method: str = "INVITE") -> Response:
    return reply(request(method), code, tag="t")


def test_an_invite_is_repeated_with_doubling_intervals_and_given_up_after_32_seconds() -> None:
    transactions, transaction = client("INVITE")
    times, rest = sent_times(transactions, 100)
    assert times == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert rest == [TimedOut(transaction), Gone(transaction)]
    assert len(transactions) == 0


def test_other_requests_are_repeated_at_most_every_four_seconds() -> None:
    transactions, transaction = client("BYE")
    times, rest = sent_times(transactions, 100)
    assert times == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert rest == [TimedOut(transaction), Gone(transaction)]


def test_a_provisional_answer_slows_other_requests_down_and_stops_an_invite() -> None:
    transactions, transaction = client("BYE")
    assert transactions.response(0.1, transaction, answer(100, "BYE")) == ([], True)
    assert sent_times(transactions, 20)[0] == [0.5, 4.5, 8.5, 12.5, 16.5]
    transactions, transaction = client("INVITE")
    transactions.response(0.1, transaction, answer(180))
    assert sent_times(transactions, 1000) == ([], [])
    assert transaction.state is State.PROCEEDING


def test_a_failure_is_acknowledged_each_time_it_comes_and_told_once() -> None:
    transactions, transaction = client("INVITE")
    busy = answer(486)
    outputs, tell = transactions.response(0.1, transaction, busy)
    assert tell
    assert outputs == [Send(UDP, make_ack(transaction.request, busy).encode())]
    again, tell = transactions.response(0.2, transaction, busy)
    assert (again, tell) == (outputs, False)
    assert sent_times(transactions, 32.0) == ([], [])
    assert sent_times(transactions, 32.2) == ([], [Gone(transaction)])


def test_every_2xx_of_an_invite_is_told_for_a_while() -> None:
    transactions, transaction = client("INVITE")
    for _ in range(3):
        assert transactions.response(0.1, transaction, answer(200)) == ([], True)
    assert transactions.response(0.1, transaction, answer(486)) == ([], False)
    assert sent_times(transactions, 33)[1] == [Gone(transaction)]


def test_a_final_answer_to_another_request_is_told_once() -> None:
    transactions, transaction = client("BYE")
    assert transactions.response(0.1, transaction, answer(200, "BYE")) == ([], True)
    assert transactions.response(0.2, transaction, answer(200, "BYE")) == ([], False)
    assert sent_times(transactions, 5.2) == ([], [Gone(transaction)])


def test_the_server_repeats_its_last_answer_to_a_repeated_request() -> None:
    transactions, transaction = server("INVITE")
    assert transactions.request_again(0.0, transaction, "INVITE") == []
    trying = transactions.respond(0.0, transaction, answer(100))
    assert transactions.request_again(0.1, transaction, "INVITE") == trying
    ringing = transactions.respond(0.2, transaction, answer(180))
    assert transactions.request_again(0.3, transaction, "INVITE") == ringing != trying


def test_a_failure_is_repeated_until_the_ack() -> None:
    transactions, transaction = server("INVITE")
    transactions.respond(0.0, transaction, answer(486))
    assert sent_times(transactions, 8)[0] == [0.5, 1.5, 3.5, 7.5]
    assert transactions.request_again(9.0, transaction, "ACK") == []
    assert sent_times(transactions, 13.9) == ([], [])
    assert sent_times(transactions, 14.1) == ([], [Gone(transaction)])
    assert transactions.of_peer("10.64.0.2") == 0


def test_a_failure_nobody_acknowledges_is_forgotten() -> None:
    transactions, transaction = server("INVITE")
    transactions.respond(0.0, transaction, answer(486))
    times, rest = sent_times(transactions, 33)
    assert times == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert rest == [Gone(transaction)]


def test_2xx_answers_pass_and_are_not_repeated_by_the_proxy() -> None:
    transactions, transaction = server("INVITE")
    assert len(transactions.respond(0.0, transaction, answer(200))) == 1
    assert len(transactions.respond(0.5, transaction, answer(200))) == 1
    assert transactions.respond(0.6, transaction, answer(486)) == []
    assert transactions.request_again(0.7, transaction, "INVITE") == []
    assert sent_times(transactions, 33) == ([], [Gone(transaction)])


def test_other_requests_are_absorbed_for_32_seconds_after_the_answer() -> None:
    transactions, transaction = server("BYE")
    first = transactions.respond(0.0, transaction, answer(200, "BYE"))
    assert transactions.request_again(1.0, transaction, "BYE") == first
    assert transactions.respond(2.0, transaction, answer(500, "BYE")) == []
    assert sent_times(transactions, 31.9) == ([], [])
    assert sent_times(transactions, 32.1) == ([], [Gone(transaction)])


def test_a_reliable_transport_needs_no_repeats_and_no_waiting() -> None:
    transactions, transaction = client("INVITE", TCP)
    assert sent_times(transactions, 33) == ([], [TimedOut(transaction), Gone(transaction)])
    transactions, transaction = client("BYE", TCP)
    outputs, tell = transactions.response(0.1, transaction, answer(200, "BYE"))
    assert (outputs, tell) == ([Gone(transaction)], True)
    transactions, transaction = server("INVITE", TCP)
    transactions.respond(0.0, transaction, answer(486))
    assert sent_times(transactions, 31) == ([], [])
    assert transactions.request_again(31.0, transaction, "ACK") == [Gone(transaction)]
    assert transactions.next_deadline() is None


def test_ack_and_cancel_are_built_on_the_invites_branch() -> None:
    invite = request("INVITE")
    ack, cancel = make_ack(invite, answer(486)), make_cancel(invite)
    for made, method in ((ack, "ACK"), (cancel, "CANCEL")):
        assert made.values("Via") == invite.values("Via")[:1]
        assert made.values("Route") == invite.values("Route")
        assert made.get("CSeq") == f"3 {method}"
        assert made.uri == invite.uri
    assert ack.get("To") == "<sip:b@x>;tag=t"
    assert cancel.get("To") == "<sip:b@x>"


@pytest.mark.parametrize("kind", Kind)
def test_every_state_that_waits_has_a_way_out(kind: Kind) -> None:
    states = {state for k, state, _ in TABLE if k is kind}
    for state in states:
        timed = RUNNING.get((kind, state))
        # Only a server transaction waits without a timer: for its user, who always answers.
        assert timed or state in (State.PROCEEDING, State.TRYING)
    assert all(after in states | {State.TERMINATED} for (k, _, _), (after, _) in TABLE.items() if k is kind)
