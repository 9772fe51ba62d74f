"""When media is held back, and when it flows again."""

from __future__ import annotations

import random

import pytest

from opentsm.engine.breaker import (
    ARRIVES,
    FORGIVE_AFTER,
    INTERVAL,
    INTERVALS,
    MAX_PROOF,
    MIN_SENT,
    NOTHING,
    PROBE_EVERY,
    Breaker,
    ReportedFlow,
    StreamOutflow,
)

CALL = 100
"""Packets of one G.711 call in an interval."""
PROBES = round(INTERVAL / PROBE_EVERY)


class Path:
    """A breaker over time; ``share`` of what it lets through arrives."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.now = 0.0
        self.moves: list[tuple[float, bool]] = []

    def go(self, intervals: int, share: float, call: int = CALL) -> bool:
        for _ in range(intervals):
            self.now += INTERVAL
            sent = min(call, PROBES) if self.breaker.open else call
            decision = self.breaker.look(self.now, sent, round(share * sent))
            if decision.moved:
                self.moves.append((self.now, decision.open))
        return self.breaker.open


def test_a_collapsed_path_is_relieved_after_two_intervals_and_taken_up_again_by_itself() -> None:
    path = Path()
    assert not path.go(100, 1.0)
    assert not path.go(INTERVALS - 1, 0.0)
    assert path.go(1, 0.0)
    assert path.breaker.look(path.now, PROBES, 0).every == PROBE_EVERY
    assert path.go(50, 0.0)
    assert not path.go(1, 1.0)
    assert not path.go(50, 1.0)


@pytest.mark.parametrize("share", [NOTHING + 0.01, 0.3, 0.95])
def test_a_bad_path_is_no_collapsed_one(share: float) -> None:
    assert not Path().go(1000, share)


def test_a_pause_in_speech_proves_nothing() -> None:
    assert not Path().go(100, 0.0, call=MIN_SENT - 1)
    path = Path()
    path.go(INTERVALS - 1, 0.0)
    path.go(5, 0.0, call=0)
    assert path.go(1, 0.0), "nor does it clear what was seen before"


def test_some_probes_that_arrive_are_not_enough() -> None:
    path = Path()
    path.go(INTERVALS, 0.0)
    assert path.go(20, ARRIVES - 0.2)
    assert not path.go(1, ARRIVES)


def test_one_that_collapses_again_and_again_has_to_prove_itself_longer() -> None:
    path = Path()
    proofs = []
    for _ in range(6):
        path.go(INTERVALS, 0.0)
        count = 0
        while path.breaker.open:
            path.go(1, 1.0)
            count += 1
        proofs.append(count)
    assert proofs == [1, 2, 4, 8, MAX_PROOF, MAX_PROOF]
    path.go(round(FORGIVE_AFTER / INTERVAL) + 1, 1.0)
    path.go(INTERVALS, 0.0)
    assert not path.go(1, 1.0), "forgiven"


def test_it_is_never_open_for_long_on_a_path_that_works() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        path = Path()
        for _ in range(100):
            path.go(chance.randint(1, 10), chance.choice((0.0, 0.05, 0.2, 0.6, 1.0)))
        path.go(MAX_PROOF, 1.0)
        assert not path.breaker.open, seed


def test_another_tunnel_begins_with_a_closed_one() -> None:
    path = Path()
    path.go(INTERVALS, 0.0)
    assert path.breaker.reset()
    assert not path.breaker.reset()


class TestStream:
    def test_a_queue_that_stands_still_lets_nothing_through(self) -> None:
        outflow = StreamOutflow()
        assert outflow.since(0, 0, 0) is None
        assert outflow.since(100, 100, 0) == (100, 100)
        assert outflow.since(200, 100, 0) == (100, 0)
        assert outflow.since(300, 105, 95) == (100, 5), "stale, when it moved at last"

    def test_many_packets_in_a_record_are_no_loss(self) -> None:
        outflow = StreamOutflow()
        outflow.since(0, 0, 0)
        assert outflow.since(5_000, 250, 0) == (5_000, 5_000)

    def test_another_connection_begins_anew(self) -> None:
        outflow = StreamOutflow()
        outflow.since(1_000, 900, 3)
        assert outflow.since(10, 10, 0) is None
        assert outflow.since(20, 20, 0) == (10, 10)


def test_a_datagram_tunnel_is_judged_by_what_its_receiver_says() -> None:
    flow = ReportedFlow()
    assert flow.since(50, 40) is None
    assert flow.since(160, 3) == (110, 3)
    assert flow.since(5, 5) is None, "another tunnel"
