"""The integers behind a pool: how much work and memory one operation takes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from opentsm.engine.space import MIN_QUARANTINE, Space

HUGE = 2**64 - 1


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python a call executes: a measure of work that does not depend on the machine."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.fixture
def crowded() -> Space:
    """A /64 with 20,000 addresses taken by name in random order, as after a restart, and some released."""
    space = Space([(1, HUGE)], 30.0)
    values = list(range(1, 20_001))
    random.Random(5).shuffle(values)
    for value in values:
        assert space.take_exact(0.0, value, None)
    for value in values[:5_000]:
        space.give_back(1.0, value, None)
    return space


def test_every_operation_costs_the_same_in_a_crowd_as_alone(crowded: Space) -> None:
    alone = Space([(1, HUGE)], 30.0)
    for space in (alone, crowded):
        taken: list[int | None] = []
        assert lines_run(lambda s=space, t=taken: t.append(s.take(2.0))) <= 40  # type: ignore[misc]
        assert lines_run(lambda s=space, t=taken: s.give_back(3.0, t[0], None)) <= 40  # type: ignore[misc]
        assert lines_run(lambda s=space: s.take(40.0)) <= 40  # type: ignore[misc]
        assert lines_run(lambda s=space: s.take_exact(40.0, 2**40, None)) <= 40  # type: ignore[misc]
        assert lines_run(lambda s=space: s.has_free(40.0)) <= 40  # type: ignore[misc]


def test_the_cursor_jumps_a_run_taken_by_name_in_any_order(crowded: Space) -> None:
    assert crowded.take(2.0) == 20_001


def test_memory_follows_the_sessions_at_once_not_those_that_came_and_went() -> None:
    space = Space([(1, HUGE)], 30.0)
    now = 0.0
    for _ in range(5_000):
        value = space.take(now)
        assert value is not None
        space.give_back(now, value, None)
        now += 1.0
    assert len(space.resting) <= 31
    assert max(space.resting) <= 31, "rested addresses are used again before new ones"


def test_neighbouring_spans_used_in_reverse_order_are_used_up_completely() -> None:
    space = Space([(11, 20), (1, 10)], 30.0)
    for value in (9, 10, 11, 12, 20):
        assert space.take_exact(0.0, value, None)
    rest = [space.take(0.0) for _ in range(16)]
    assert rest == [13, 14, 15, 16, 17, 18, 19, 1, 2, 3, 4, 5, 6, 7, 8, None]


def test_quarantine_is_cut_short_only_when_nothing_else_is_left() -> None:
    space = Space([(1, 2)], 30.0)
    assert (space.take(0.0), space.take(0.0)) == (1, 2)
    space.give_back(10.0, 2, None)
    assert not space.has_free(10.0 + MIN_QUARANTINE / 2)
    assert space.take(10.0 + MIN_QUARANTINE / 2) is None
    assert space.take(10.0 + MIN_QUARANTINE) == 2


def test_has_free_and_take_agree() -> None:
    chance = random.Random(11)
    space = Space([(1, 5), (9, 11)], 10.0)
    held: list[int] = []
    now = 0.0
    for _ in range(3_000):
        now += chance.choice([0.0, 0.3, 1.0, 7.0])
        if held and chance.random() < 0.5:
            space.give_back(now, held.pop(chance.randrange(len(held))), None)
        expected = space.has_free(now)
        value = space.take(now)
        assert (value is not None) == expected
        if value is not None:
            held.append(value)
