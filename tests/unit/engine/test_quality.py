"""The E-model against its published values, and paths against calls that were measured."""

from __future__ import annotations

import random

import pytest

from opentsm.engine.quality import (
    G711,
    G711_PLC,
    G729A_VAD,
    MAX_SAMPLES,
    WINDOW_SLOW,
    Codec,
    PathMeter,
    PathSample,
    PathScore,
    late_percent,
    mos,
    r_factor,
    score_path,
    stream_late_percent,
)
from opentsm.types import Path


def test_an_undisturbed_call_has_the_published_rating() -> None:
    """G.107: with every parameter at its default R = 93.2, which is MOS 4.41."""
    assert r_factor(0, 0) == pytest.approx(93.2, abs=0.05)
    assert mos(93.2) == pytest.approx(4.41, abs=0.005)


@pytest.mark.parametrize(
    ("r", "expected"), [(90, 4.34), (80, 4.03), (70, 3.60), (60, 3.10), (50, 2.58), (0, 1.0), (100, 4.5)]
)
def test_mos_for_the_categories_of_quality(r: float, expected: float) -> None:
    """G.107 annex B table B.1 (R 90, 80, 70, 60, 50) and the ends of the scale."""
    assert mos(r) == pytest.approx(expected, abs=0.01)


def test_mos_never_falls_below_one_nor_when_r_rises() -> None:
    values = [mos(r / 10) for r in range(-100, 1101)]
    assert (min(values), max(values)) == (1.0, 4.5)
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("delay", "low", "high"),
    [(50, 91, 93), (100, 90, 92), (150, 89, 91), (200, 85, 88), (250, 78, 81), (400, 60, 64)],
)
def test_delay_costs_what_the_curve_of_g114_shows(delay: float, low: float, high: float) -> None:
    assert low < r_factor(delay, 0) < high


@pytest.mark.parametrize(
    ("loss", "codec", "impairment"),
    [
        (1, G711_PLC, 95 * 1 / (1 + 25.1)),
        (5, G711_PLC, 95 * 5 / (5 + 25.1)),
        (1, G711, 95 * 1 / (1 + 4.3)),
        (0, G729A_VAD, 11.0),
        (2, G729A_VAD, 11.0 + 84 * 2 / (2 + 19.0)),
    ],
)
def test_loss_costs_what_g113_says(loss: float, codec: Codec, impairment: float) -> None:
    assert r_factor(0, 0) - r_factor(0, loss, codec) == pytest.approx(impairment)


def test_bursts_cost_more_than_single_losses() -> None:
    assert r_factor(50, 5, burst_ratio=2.0) < r_factor(50, 5)


def test_more_delay_or_loss_is_never_better_and_r_stays_on_its_scale() -> None:
    for loss in (0.0, 0.5, 3.0, 20.0, 100.0):
        values = [r_factor(delay, loss) for delay in range(0, 3000, 10)]
        assert values == sorted(values, reverse=True)
        assert 0.0 <= values[-1] <= values[0] <= 100.0
    for delay in (0.0, 150.0, 600.0):
        values = [r_factor(delay, loss) for loss in range(101)]
        assert values == sorted(values, reverse=True)
    assert r_factor(-5, -5) == r_factor(0, 0)


def test_late_loss_from_spread() -> None:
    assert late_percent(0) == 0.0
    assert late_percent(60, playout_ms=60) == pytest.approx(5.0)
    assert late_percent(30, playout_ms=60) == pytest.approx(0.25)
    assert late_percent(200) > late_percent(100) > late_percent(50)


# Loss %, RTT ms, and per cent of packets late for a 60 ms play-out buffer: RTP over one TCP connection
# (CUBIC, TCP_NODELAY), five calls of 22.5 s each, independent loss both ways.
MEASURED_LATE = [
    (0.5, 50, 0.7),
    (0.5, 100, 2.9),
    (0.5, 200, 5.9),
    (1, 50, 1.1),
    (1, 100, 5.2),
    (1, 200, 11),
    (2, 50, 2.5),
    (2, 100, 8.9),
    (2, 200, 22),
    (5, 100, 23),
    (5, 200, 52),
]


@pytest.mark.parametrize(("loss", "rtt", "late"), MEASURED_LATE)
def test_late_loss_on_a_stream_agrees_with_measured_calls(loss: float, rtt: float, late: float) -> None:
    assert stream_late_percent(loss, rtt) == pytest.approx(late, rel=0.15, abs=1.0)


def sample(loss: float, rtt: float, jitter: float = 1.0) -> PathSample:
    return PathSample(
        delay_ms=rtt / 2, jitter_ms=jitter, received=round(1000 - loss * 10), lost=round(loss * 10)
    )


@pytest.mark.parametrize(
    ("loss", "rtt", "better"),
    [
        (0, 20, False),
        (0.5, 30, False),
        (1, 40, False),
        (0, 150, False),
        (2, 100, True),
        (1, 150, True),
        (5, 60, True),
    ],
)
def test_the_stream_loses_where_listening_tests_say_so(loss: float, rtt: float, better: bool) -> None:
    """Measured with PESQ at 60 ms play-out: below 50 ms and 1 % a stream is as good as datagrams; with
    more of both it is clearly worse."""
    stream = score_path(Path.STREAM, sample(loss, rtt))
    datagram = score_path(Path.DATAGRAM, sample(loss, rtt))
    assert (datagram.r - stream.r > 5.0) == better
    assert datagram.r - stream.r > -1.0 or loss > 0


def test_a_stream_has_no_loss_only_lateness() -> None:
    score = score_path(Path.STREAM, sample(2, 100))
    assert score.loss_percent == 0.0
    assert score.late_percent == pytest.approx(stream_late_percent(2, 100))
    assert score_path(Path.DATAGRAM, sample(2, 100)).loss_percent == pytest.approx(2.0)


def test_the_spread_measured_counts_before_that_taken_from_jitter() -> None:
    assert PathSample(delay_ms=10, jitter_ms=20).spread == 60
    assert PathSample(delay_ms=10, jitter_ms=20, spread_ms=5).spread == 5
    bad = score_path(Path.STREAM, PathSample(delay_ms=10, spread_ms=200))
    assert bad.late_percent == pytest.approx(late_percent(200))


def test_nothing_is_known_before_the_first_and_after_the_last_sample() -> None:
    meter = PathMeter(Path.DATAGRAM)
    assert meter.score(0.0) is None
    meter.add(0.0, sample(0, 20))
    assert meter.score(1.0) is not None
    assert meter.score(WINDOW_SLOW) is None


def scored(meter: PathMeter, now: float) -> PathScore:
    score = meter.score(now)
    assert score is not None
    return score


def test_bad_news_counts_at_once_and_good_news_after_the_slow_window() -> None:
    meter = PathMeter(Path.DATAGRAM)
    for second in range(20):
        meter.add(float(second), sample(0, 20))
    good = scored(meter, 19.0).r
    for second in (20, 21):
        meter.add(float(second), sample(20, 20))
    bad = scored(meter, 21.0).r
    assert bad < good - 30
    for second in range(22, 26):
        meter.add(float(second), sample(0, 20))
    assert scored(meter, 25.0).r < good - 5, "the slow window still remembers"
    for second in range(26, 33):
        meter.add(float(second), sample(0, 20))
    assert scored(meter, 32.0).r == pytest.approx(good)


def test_delays_that_swing_between_samples_are_spread() -> None:
    steady, swinging = PathMeter(Path.STREAM), PathMeter(Path.STREAM)
    for tick in range(20):
        steady.add(tick / 10, PathSample(delay_ms=60))
        swinging.add(tick / 10, PathSample(delay_ms=250 if tick % 10 == 9 else 50))
    assert scored(steady, 1.9).late_percent == 0.0
    assert scored(swinging, 1.9).late_percent > 10.0


def test_a_dead_path_says_so_and_starts_over_when_it_lives_again() -> None:
    meter = PathMeter(Path.DATAGRAM)
    meter.add(0.0, sample(0, 20))
    meter.mark_dead()
    dead = scored(meter, 0.1)
    assert (dead.dead, dead.r, str(dead)) == (True, 0.0, "datagram: dead")
    meter.mark_alive()
    assert meter.score(0.2) is None
    meter.add(0.3, sample(0, 20))
    assert str(scored(meter, 0.3)) == "datagram: R 91 (90 ms, 0.0 % lost, 0.0 % late)"


def test_memory_of_a_path_is_bounded() -> None:
    meter = PathMeter(Path.DATAGRAM)
    for tick in range(10 * MAX_SAMPLES):
        meter.add(tick / 1000, sample(0, 20))
    assert len(meter._samples) == MAX_SAMPLES


def test_any_measurement_gives_a_score_on_the_scale() -> None:
    chance = random.Random(4)
    for _ in range(3_000):
        path = chance.choice(list(Path))
        one = PathSample(
            delay_ms=chance.choice([0, 1e-3, 30, 1e4, 1e9]) * chance.random(),
            jitter_ms=chance.choice([0, 1e-9, 5, 1e6]) * chance.random(),
            received=chance.choice([0, 1, 10**9]),
            lost=chance.choice([0, 1, 10**9]),
            spread_ms=chance.choice([None, 0.0, 80.0, 1e9]),
        )
        score = score_path(path, one)
        assert 0.0 <= score.r <= 100.0
        assert 1.0 <= score.mos <= 4.5
        assert 0.0 <= score.late_percent <= 100.0
