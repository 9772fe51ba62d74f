"""Decisions as conversations, and bounds on flapping over thousands of random histories."""

from __future__ import annotations

import random

import pytest

from opentsm.engine.quality import PathScore, mos
from opentsm.engine.steering import (
    FORGIVE_AFTER,
    HOLD_DOWN,
    HYSTERESIS,
    RETURN_MAX,
    Decision,
    Reason,
    Steering,
)
from opentsm.types import Path

S, D = Path.STREAM, Path.DATAGRAM

Rating = float | str | None
"""What a path is rated in these tests: R, "dead", or None for unknown."""


def score(path: Path, rating: Rating) -> PathScore | None:
    if rating is None:
        return None
    if isinstance(rating, str):
        return PathScore(path, 0.0, 100.0, 0.0, 0.0, 1.0, dead=True)
    return PathScore(path, 80.0, 0.0, 0.0, rating, mos(rating))


def decide(steering: Steering, now: float, stream: Rating, datagram: Rating) -> Decision:
    return steering.decide(now, score(S, stream), score(D, datagram))


@pytest.mark.parametrize(
    ("start", "stream", "datagram", "path", "reason"),
    [
        (S, None, None, S, Reason.UNMEASURED),
        (S, 60.0, None, S, Reason.UNMEASURED),
        (S, None, 90.0, S, Reason.UNMEASURED),
        (S, 80.0, 80.0 + HYSTERESIS, S, Reason.ALIKE),
        (S, 80.0, 80.1 + HYSTERESIS, D, Reason.BETTER),
        (S, 20.0, "dead", S, Reason.ALIKE),
        (S, "dead", 10.0, D, Reason.DEAD),
        (S, "dead", None, S, Reason.ALL_DEAD),
        (S, "dead", "dead", S, Reason.ALL_DEAD),
        (D, 80.0, 78.0, D, Reason.ALIKE),
        (D, 90.0, 60.0, S, Reason.BETTER),
        (D, 10.0, "dead", S, Reason.DEAD),
        (D, None, "dead", S, Reason.DEAD),
        (D, "dead", "dead", D, Reason.ALL_DEAD),
        (D, 95.0, None, D, Reason.UNMEASURED),
        (D, "dead", 10.0, D, Reason.ALIKE),
    ],
)
def test_first_decision(start: Path, stream: Rating, datagram: Rating, path: Path, reason: Reason) -> None:
    decision = decide(Steering(start), 0.0, stream, datagram)
    assert (decision.path, decision.reason, decision.moved) == (path, reason, path is not start)


def test_a_move_for_quality_waits_for_the_hold_down_and_says_until_when() -> None:
    steering = Steering()
    assert decide(steering, 0.0, 50.0, 90.0).moved
    waiting = decide(steering, 1.0, 90.0, 50.0)
    assert (waiting.moved, waiting.reason, waiting.again_at) == (False, Reason.HOLD_DOWN, HOLD_DOWN)
    assert decide(steering, HOLD_DOWN, 90.0, 50.0).moved


def test_a_dead_path_is_left_at_once_and_not_trusted_at_once() -> None:
    steering = Steering()
    assert decide(steering, 0.0, 50.0, 90.0).path is D
    assert decide(steering, 0.1, 50.0, "dead").path is S
    back_off = decide(steering, 0.2, 50.0, 90.0)
    assert (back_off.reason, back_off.again_at) == (Reason.BACK_OFF, 0.1 + HOLD_DOWN)
    assert decide(steering, 0.1 + HOLD_DOWN, 50.0, 90.0).path is D


def test_each_death_doubles_the_wait_up_to_a_minute_and_a_long_life_forgives() -> None:
    steering = Steering()
    now, waits = 0.0, []
    for _ in range(6):
        assert decide(steering, now, 50.0, 90.0).path is D
        assert decide(steering, now, 50.0, "dead").path is S
        again_at = decide(steering, now, 50.0, 90.0).again_at
        assert again_at is not None
        waits.append(again_at - now)
        now = again_at
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, RETURN_MAX, RETURN_MAX])
    assert decide(steering, now, 50.0, 90.0).path is D
    now += FORGIVE_AFTER
    assert decide(steering, now, 50.0, "dead").path is S
    assert decide(steering, now, 50.0, 90.0).again_at == pytest.approx(now + HOLD_DOWN)


def test_a_path_that_stays_dead_is_one_death() -> None:
    steering = Steering(D)
    for tick in range(100):
        decide(steering, tick / 10, 50.0, "dead")
    assert decide(steering, 10.0, 50.0, 90.0).moved


def test_a_decision_explains_itself() -> None:
    steering = Steering()
    text = str(decide(steering, 0.0, 50.0, 90.0))
    assert text.startswith("moved to datagram: the other path was clearly better [stream: R 50 (80 ms")
    assert str(decide(steering, 0.0, None, "dead")) == "moved to stream: the path was dead [datagram: dead]"
    assert str(Steering().decide(0.0, None, None)) == (
        "stays on stream: too little is known about the other path yet"
    )


def random_history(seed: int) -> list[tuple[float, Rating, Rating]]:
    """Ratings at random moments: wandering, jumping, dying, unknown."""
    chance = random.Random(seed)
    now, found = 0.0, []
    ratings: dict[Path, Rating] = {S: 80.0, D: 80.0}
    for _ in range(200):
        now += chance.choice([0.05, 0.2, 1.0, 3.0])
        for path in Path:
            kind = chance.random()
            if kind < 0.05:
                ratings[path] = "dead"
            elif kind < 0.08:
                ratings[path] = None
            elif kind < 0.3:
                ratings[path] = chance.uniform(0, 93)
        found.append((now, ratings[S], ratings[D]))
    return found


def test_no_history_makes_it_flap() -> None:
    """Over 2,000 seeded histories: moves for quality are a hold-down apart, moves off a path need its
    death, a dead path is never chosen, and nothing moves without being better by the hysteresis."""
    moves = 0
    for seed in range(2_000):
        steering = Steering()
        last_move = -HOLD_DOWN
        for now, stream, datagram in random_history(seed):
            before = steering.path
            ratings = {S: stream, D: datagram}
            decision = decide(steering, now, stream, datagram)
            here, there = ratings[before], ratings[D if before is S else S]
            if decision.moved:
                moves += 1
                assert there != "dead"
                if decision.reason is Reason.BETTER:
                    assert isinstance(here, float)
                    assert isinstance(there, float)
                    assert there - here > HYSTERESIS
                    assert now - last_move >= HOLD_DOWN - 1e-9
                else:
                    assert here == "dead"
                last_move = now
            elif here == "dead":
                assert there == "dead" or (there is None and before is S)
    assert moves > 2_000, "the histories must make it move at all"


def test_a_datagram_path_that_dies_every_second_costs_ever_fewer_moves() -> None:
    steering = Steering()
    moves = []
    for tick in range(6_000):
        now = tick / 10
        datagram: Rating = "dead" if tick % 10 < 3 else 92.0
        if decide(steering, now, 60.0, datagram).moved:
            moves.append(now)
    assert len(moves) <= 2 * (4 + 600 / RETURN_MAX)
    assert len([at for at in moves if at > 300]) <= 2 * (300 / RETURN_MAX + 1)


def test_noise_within_the_hysteresis_moves_nothing() -> None:
    chance = random.Random(9)
    for start in Path:
        steering = Steering(start)
        for tick in range(5_000):
            stream, datagram = (85.0 + chance.uniform(-2.4, 2.4) for _ in range(2))
            assert not decide(steering, tick / 10, stream, datagram).moved
