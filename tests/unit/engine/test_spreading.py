"""When media goes by several streams, and when no longer."""

from __future__ import annotations

import random

import pytest

from opentsm.engine.quality import PathScore
from opentsm.engine.spreading import (
    CONGESTED_FOR,
    GOOD_FOR,
    LATE_ON,
    OFF_AFTER,
    ON_AFTER,
    SpreadDecision,
    Spreading,
    SpreadReason,
)
from opentsm.types import NO_REDUNDANCY, Path, Redundancy, Spread

TWO, THREE = Redundancy(Spread.FAN_OUT, 2), Redundancy(Spread.FAN_OUT, 3)


def score(late: float) -> PathScore:
    return PathScore(Path.STREAM, 140.0, 0.0, late, 70.0, 3.6)


class Call:
    """One judgement a second."""

    def __init__(self) -> None:
        self.spreading = Spreading()
        self.now = 0.0

    def go(
        self, seconds: float, late: float | None, *, on_datagram: bool = False, backed_up: bool = False
    ) -> SpreadDecision:
        for _ in range(round(seconds)):
            self.now += 1.0
            stream = None if late is None else score(late)
            last = self.spreading.decide(self.now, stream, on_datagram=on_datagram, backed_up=backed_up)
        return last


def test_a_late_stream_without_a_datagram_path_gets_company_after_a_while() -> None:
    call = Call()
    assert call.go(ON_AFTER, 11.0).reason is SpreadReason.WAITING
    decision = call.go(1, 11.0)
    assert (decision.redundancy, decision.moved, decision.reason) == (TWO, True, SpreadReason.LATE)
    assert "11.0 % late" in str(decision)
    assert not call.go(1, 11.0).moved


@pytest.mark.parametrize(("late", "streams"), [(LATE_ON, TWO), (11.0, TWO), (20.0, THREE), (40.0, THREE)])
def test_there_are_as_many_as_it_takes(late: float, streams: Redundancy) -> None:
    assert Call().go(ON_AFTER + 1, late).redundancy == streams


@pytest.mark.parametrize("late", [None, 0.0, LATE_ON - 0.1])
def test_a_stream_in_time_stays_alone(late: float | None) -> None:
    assert Call().go(300, late).redundancy == NO_REDUNDANCY


def test_it_ends_when_media_has_been_on_the_datagram_path_for_a_while() -> None:
    call = Call()
    call.go(ON_AFTER + 1, 11.0)
    assert call.go(OFF_AFTER, 11.0, on_datagram=True).redundancy == TWO, "it may die again at once"
    decision = call.go(1, 11.0, on_datagram=True)
    assert (decision.redundancy, decision.reason) == (NO_REDUNDANCY, SpreadReason.ON_DATAGRAM)


def test_it_ends_when_the_stream_has_been_in_time_for_long() -> None:
    call = Call()
    call.go(ON_AFTER + 1, 11.0)
    assert call.go(GOOD_FOR, 0.2).redundancy == TWO
    assert call.go(1, 0.2).reason is SpreadReason.IN_TIME


def test_copies_are_no_cure_for_a_path_that_is_full() -> None:
    call = Call()
    call.go(ON_AFTER + 1, 11.0)
    decision = call.go(1, 11.0, backed_up=True)
    assert (decision.redundancy, decision.reason) == (NO_REDUNDANCY, SpreadReason.CONGESTED)
    assert call.go(CONGESTED_FOR - 1, 11.0).redundancy == NO_REDUNDANCY
    assert call.go(2, 11.0).redundancy == TWO


def test_it_does_not_swing_however_the_network_does() -> None:
    """At most one way and back in as long as the shortest spell that ends it."""
    for seed in range(200):
        chance = random.Random(seed)
        call, moves = Call(), 0
        for _ in range(600):
            late = chance.choice((0.0, 0.5, 4.0, 11.0, 30.0))
            moves += call.go(1, late, on_datagram=chance.random() < 0.3).moved
        assert moves <= 2 * 600 / (ON_AFTER + OFF_AFTER)
