"""Wishes, what the server was told, and rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.errors import LocalProtocolError
from opentsm.limits import MAX_FLOWS_PER_SESSION
from opentsm.protocol.actions import SteerMode
from opentsm.protocol.client_flows import FLOWS_PER_REQUEST, Batch, FlowBook, Told
from opentsm.types import Flow, Path, PathMode, Protocol, ServiceAction

FLOWS = [Flow(Protocol.UDP, 4000 + n) for n in range(100)]
A, B = FLOWS[:2]


def told(book: FlowBook, *, may_enable: bool = True, held: bool = False) -> Batch | None:
    """The next request, sent and answered with success."""
    batch = book.next_batch(may_enable=may_enable, held=held)
    if batch is not None:
        book.sent(batch)
        book.answered(batch, done=True)
    return batch


def test_a_wish_becomes_one_request() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    batch = told(book)
    assert batch == Batch(Told.DATAGRAM, (A,))
    assert (batch.action, batch.mode, batch.flows) == (ServiceAction.ENABLE, PathMode.DATAGRAM, (A,))
    assert told(book) is None


def test_flows_with_the_same_wish_share_requests() -> None:
    book = FlowBook()
    for flow in FLOWS:
        book.wish(flow, PathMode.AUTO)
    sizes = []
    while batch := told(book):
        sizes.append(len(batch.keys))
    assert sizes == [FLOWS_PER_REQUEST, FLOWS_PER_REQUEST, 100 - 2 * FLOWS_PER_REQUEST]


def test_the_tunnel_as_a_whole_is_asked_for_alone() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    book.wish(None, PathMode.DATAGRAM)
    book.wish(B, PathMode.DATAGRAM)
    batches = [told(book), told(book)]
    assert [batch.keys for batch in batches if batch] == [(A, B), (None,)]


def test_only_the_newest_wish_is_told_once_the_answer_is_there() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    first = book.next_batch(may_enable=True, held=False)
    assert first is not None
    book.sent(first)
    for mode in (PathMode.STREAM, PathMode.AUTO, PathMode.STREAM, PathMode.AUTO):
        book.wish(A, mode)
        assert book.next_batch(may_enable=True, held=False) is None, "one request in flight per flow"
    book.answered(first, done=True)
    assert told(book) == Batch(Told.AUTO, (A,))


def test_a_tunnel_is_asked_for_again_through_a_flow_the_server_knows() -> None:
    book = FlowBook()
    assert book.again() is None
    book.wish(A, PathMode.DATAGRAM)
    assert book.again() is None, "the ordinary request will do"
    told(book)
    again = book.again()
    assert again == Batch(Told.DATAGRAM, (A,))
    seen = [book.asking]
    book.sent(again)
    seen.append(book.asking)
    assert book.again() is None
    book.lost([again])
    seen.append(book.asking)
    assert seen == [False, True, False]


def test_back_to_the_stream_keeps_the_row_and_unset_forgets_it() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    told(book)
    book.wish(A, PathMode.STREAM)
    batch = told(book)
    assert batch is not None
    assert (batch.action, batch.mode) == (ServiceAction.DISABLE, PathMode.STREAM)
    book.wish(A, None)
    batch = told(book)
    assert batch is not None
    assert (batch.action, batch.mode) == (ServiceAction.DISABLE, None)
    assert book.idle


def test_a_flow_that_never_left_the_stream_is_not_talked_about() -> None:
    book = FlowBook()
    book.wish(A, PathMode.STREAM)
    book.wish(A, None)
    assert told(book) is None
    assert book.idle


def test_enabling_waits_while_no_ddt_can_be_asked_for_and_disabling_does_not() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    told(book)
    book.wish(B, PathMode.DATAGRAM)
    assert told(book, may_enable=False) is None
    book.wish(A, PathMode.STREAM)
    assert told(book, may_enable=False) == Batch(Told.MEDIA, (A,))
    book.touch_wanting()
    assert told(book) == Batch(Told.DATAGRAM, (B,))


def test_a_silent_ddt_is_held_and_comes_back() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    told(book)
    book.touch_wanting()
    batch = told(book, held=True)
    assert batch is not None
    assert (batch.action, batch.mode) == (ServiceAction.ENABLE, PathMode.STREAM)
    book.touch_wanting()
    assert told(book) == Batch(Told.DATAGRAM, (A,))


def test_a_refused_flow_is_not_asked_for_again_until_its_next_wish() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    batch = book.next_batch(may_enable=True, held=False)
    assert batch is not None
    book.sent(batch)
    book.refused(batch)
    book.touch_wanting()
    assert told(book) is None
    assert book.idle
    book.wish(A, PathMode.DATAGRAM)
    assert told(book) == batch


def test_a_request_lost_with_its_stream_is_told_again() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    batch = book.next_batch(may_enable=True, held=False)
    assert batch is not None
    book.sent(batch)
    book.lost([batch])
    assert told(book) == batch


def test_a_fresh_tunnel_is_told_everything_again() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    book.wish(B, PathMode.STREAM)
    told(book)
    book.server_forgot()
    assert told(book) == Batch(Told.DATAGRAM, (A,))
    assert told(book) is None


def test_rows_follow_wish_confirmation_and_tunnel() -> None:
    book = FlowBook()
    book.wish(A, PathMode.DATAGRAM)
    assert book.steering(up=True) == [(A, None, SteerMode.STREAM)]
    told(book)
    assert book.steering(up=True) == [(A, SteerMode.STREAM, SteerMode.DATAGRAM)]
    assert book.path(A) is Path.DATAGRAM
    book.touch_wanting()
    assert book.steering(up=False) == [(A, SteerMode.DATAGRAM, SteerMode.STREAM)]
    book.wish(A, None)
    assert book.steering(up=True) == [(A, SteerMode.STREAM, None)]
    assert book.steering(up=True) == []


def test_auto_uses_the_chosen_path_and_the_choice_goes_with_the_mode() -> None:
    book = FlowBook()
    assert not book.choose(A, Path.STREAM)
    book.wish(A, PathMode.AUTO)
    told(book)
    book.steering(up=True)
    assert book.path(A) is Path.STREAM, "nobody has judged yet"
    assert book.choose(A, Path.DATAGRAM)
    book.steering(up=True)
    assert book.path(A) is Path.DATAGRAM
    book.wish(A, PathMode.STREAM)
    book.steering(up=True)
    book.wish(A, PathMode.AUTO)
    book.steering(up=True)
    assert book.path(A) is Path.STREAM
    book.wish(A, PathMode.DATAGRAM)
    book.steering(up=True)
    book.wish(A, PathMode.AUTO)
    book.steering(up=True)
    assert book.path(A) is Path.DATAGRAM, "where it was"


def test_there_is_a_most_of_flows() -> None:
    book = FlowBook()
    for port in range(1, MAX_FLOWS_PER_SESSION + 1):
        book.wish(Flow(Protocol.UDP, port), PathMode.STREAM)
    with pytest.raises(LocalProtocolError, match="unset one"):
        book.wish(Flow(Protocol.TCP, 1), PathMode.STREAM)
    book.wish(Flow(Protocol.UDP, 1), PathMode.AUTO)


def test_flows_that_come_and_go_without_a_server_leave_nothing_behind() -> None:
    book = FlowBook()
    for port in range(1, 5000):
        book.wish(Flow(Protocol.UDP, port), PathMode.DATAGRAM)
        book.wish(Flow(Protocol.UDP, port), None)
        book.steering(up=False)
    sizes = {name: len(value) for name, value in vars(book).items() if hasattr(value, "__len__")}
    assert set(sizes.values()) == {0}, sizes


modes = st.sampled_from((*PathMode, None))


@given(st.lists(st.tuples(st.sampled_from(FLOWS[:3]), modes, st.sampled_from(("ok", "lost", "wait")))))
def test_whatever_happens_the_newest_wishes_end_up_with_the_server(
    steps: list[tuple[Flow, PathMode | None, str]],
) -> None:
    """A plain model of the server beside the book: after the last answers both agree."""
    book = FlowBook()
    server: dict[Flow, PathMode | None] = {}
    flying: list[Batch] = []

    def land(outcome: str) -> None:
        while flying:
            batch = flying.pop(0)
            if outcome == "lost":
                book.lost([batch])
                continue
            for flow in batch.flows:
                server[flow] = batch.mode if batch.action is ServiceAction.ENABLE else None
            book.answered(batch, done=True)

    def send() -> None:
        while batch := book.next_batch(may_enable=True, held=False):
            book.sent(batch)
            flying.append(batch)

    wishes: dict[Flow, PathMode | None] = {}
    for flow, mode, outcome in steps:
        wishes[flow] = mode
        book.wish(flow, mode)
        send()
        if outcome != "wait":
            land(outcome)
    for _ in range(3):
        send()
        land("ok")
    for flow, mode in wishes.items():
        assert server.get(flow) == (None if mode is PathMode.STREAM else mode)
