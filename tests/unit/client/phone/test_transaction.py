from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.transaction import (
    GIVE_UP,
    TABLES,
    TIMERS,
    Effect,
    Input,
    Kind,
    State,
    Transaction,
)


def started(kind: Kind, *, reliable: bool = False) -> Transaction:
    transaction = Transaction(kind, ("branch", "X"), ("10.0.0.1", 5060), b"message", reliable=reliable)
    transaction.start(0.0)
    return transaction


def repeats(transaction: Transaction, end: float) -> list[float]:
    """When it sends again, if nothing happens."""
    times = []
    while (deadline := transaction.deadline) is not None and deadline <= end:
        while (timer := transaction.due(deadline)) is not None:
            if Effect.SEND in transaction.feed(deadline, timer):
                times.append(deadline)
    return times


def test_an_invite_is_repeated_at_doubling_intervals() -> None:
    """Timer A (RFC 3261 section 17.1.1.2)."""
    transaction = started(Kind.INVITE_CLIENT)
    assert repeats(transaction, 100) == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert transaction.over


def test_other_requests_are_repeated_every_four_seconds_at_most() -> None:
    """Timer E (section 17.1.2.2)."""
    assert repeats(started(Kind.CLIENT), 100) == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]


def test_a_provisional_response_slows_repetition_and_does_not_prolong_life() -> None:
    transaction = started(Kind.CLIENT)
    transaction.feed(0.1, Input.PROVISIONAL)
    assert repeats(transaction, 100) == [4.1, 8.1, 12.1, 16.1, 20.1, 24.1, 28.1]
    assert transaction.over


@pytest.mark.parametrize("happened", [Input.SUCCESS, Input.FAILURE])
def test_final_responses_to_invite_are_repeated_until_acknowledged(happened: Input) -> None:
    """Timer G, and section 13.3.1.4 for 2xx."""
    transaction = started(Kind.INVITE_SERVER)
    transaction.feed(0.0, happened)
    assert repeats(transaction, 8) == [0.5, 1.5, 3.5, 7.5]
    transaction.feed(8.0, Input.ACK)
    assert repeats(transaction, 100) == []
    assert transaction.over


@pytest.mark.parametrize("kind", [Kind.INVITE_CLIENT, Kind.CLIENT])
def test_a_request_on_a_reliable_transport_is_never_repeated(kind: Kind) -> None:
    transaction = started(kind, reliable=True)
    assert repeats(transaction, GIVE_UP - 0.1) == []
    assert not transaction.over
    assert repeats(transaction, GIVE_UP) == []
    assert transaction.over


def test_on_a_reliable_transport_only_a_2xx_to_invite_is_repeated() -> None:
    """RFC 3261 section 13.3.1.4: there may be unreliable transports behind this one."""
    for happened, times in ((Input.SUCCESS, [0.5, 1.5, 3.5, 7.5]), (Input.FAILURE, [])):
        transaction = started(Kind.INVITE_SERVER, reliable=True)
        transaction.feed(0.0, happened)
        assert repeats(transaction, 8) == times
        transaction.feed(8.0, Input.ACK)
        assert repeats(transaction, 8.0) == []
        assert transaction.over


@pytest.mark.parametrize("kind", [Kind.INVITE_CLIENT, Kind.CLIENT, Kind.SERVER])
def test_nobody_waits_for_repetitions_on_a_reliable_transport(kind: Kind) -> None:
    transaction = started(kind, reliable=True)
    transaction.feed(1.0, Input.FAILURE)
    assert repeats(transaction, 1.0) == []
    assert transaction.over


def test_who_gives_up_says_so() -> None:
    for kind, happened in (
        (Kind.INVITE_CLIENT, None),
        (Kind.CLIENT, None),
        (Kind.INVITE_SERVER, Input.SUCCESS),
    ):
        transaction = started(kind)
        if happened is not None:
            transaction.feed(0.0, happened)
        told = []
        while (timer := transaction.due(GIVE_UP)) is not None:
            told.append(Effect.TIMEOUT in transaction.feed(GIVE_UP, timer))
        assert told[-1]


@given(
    st.sampled_from(list(Kind)),
    st.lists(st.tuples(st.sampled_from(list(Input)), st.floats(0, 3)), max_size=30),
)
def test_every_machine_ends_in_bounded_time_once_it_has_an_answer(
    kind: Kind, story: list[tuple[Input, float]]
) -> None:
    """Whatever happens in whatever order: no state is left without a timer or an input that ends it."""
    transaction = started(kind)
    now = 0.0
    for happened, pause in story:
        now += pause
        transaction.feed(now, happened)
    for happened in (Input.FAILURE, Input.ACK):  # at last the owner answers, or the answer comes
        transaction.feed(now, happened)
    repeats(transaction, now + 3 * GIVE_UP)
    assert transaction.over


def test_every_state_with_a_timer_has_a_row_for_it() -> None:
    for (kind, state), timers in TIMERS.items():
        for timer in timers:
            assert (state, timer) in TABLES[kind], (kind, state, timer)
    for kind, table in TABLES.items():
        assert all(state is not State.TERMINATED for state, _ in table), kind
