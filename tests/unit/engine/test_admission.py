"""A guesser is slowed down; everybody else is not."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from opentsm.engine.admission import AttemptLimiter
from opentsm.limits import AUTH_ATTEMPTS_PER_MINUTE


def test_a_source_may_fail_so_often_and_then_waits() -> None:
    limiter = AttemptLimiter()
    for _ in range(AUTH_ATTEMPTS_PER_MINUTE):
        assert limiter.check("192.0.2.1", 0.0) is None
        limiter.failed("192.0.2.1", 0.0)
    wait = limiter.check("192.0.2.1", 0.0)
    assert wait is not None
    assert wait == pytest.approx(60.0 / AUTH_ATTEMPTS_PER_MINUTE)
    assert limiter.check("192.0.2.2", 0.0) is None
    assert limiter.check("192.0.2.1", wait + 0.001) is None
    assert limiter.statistics().refused == 1


def test_over_an_hour_no_more_guesses_than_the_rate_allows() -> None:
    limiter = AttemptLimiter(attempts=10, per_seconds=60.0)
    guesses = 0
    for tick in range(36_000):
        if limiter.check("192.0.2.1", tick / 10) is None:
            limiter.failed("192.0.2.1", tick / 10)
            guesses += 1
    assert 600 <= guesses <= 610


def test_a_success_forgives_no_failure() -> None:
    limiter = AttemptLimiter(attempts=3, per_seconds=60.0)
    for _ in range(3):
        limiter.failed("192.0.2.1", 0.0)
        limiter.succeeded("192.0.2.1", 0.0)
    assert limiter.check("192.0.2.1", 0.0) is not None


def test_successes_alone_are_never_slowed_and_take_no_memory() -> None:
    limiter = AttemptLimiter(attempts=3)
    for _ in range(1_000):
        assert limiter.check("192.0.2.1", 0.0) is None
        limiter.succeeded("192.0.2.1", 0.0)
    assert limiter.statistics().tracked == 0
    assert limiter.statistics().successes == 1_000


def test_a_full_bucket_is_forgotten_at_the_next_success() -> None:
    limiter = AttemptLimiter(attempts=3, per_seconds=60.0)
    limiter.failed("192.0.2.1", 0.0)
    limiter.succeeded("192.0.2.1", 10.0)
    assert limiter.statistics().tracked == 1
    limiter.succeeded("192.0.2.1", 20.0)
    assert limiter.statistics().tracked == 0


def test_failures_in_flight_together_cost_at_most_two_refills() -> None:
    limiter = AttemptLimiter(attempts=10, per_seconds=60.0)
    for _ in range(500):
        limiter.failed("192.0.2.1", 0.0)
    wait = limiter.check("192.0.2.1", 0.0)
    assert wait is not None
    assert 60.0 < wait <= 120.0


def test_ipv6_counts_by_subscriber_and_mapped_addresses_as_ipv4() -> None:
    limiter = AttemptLimiter(attempts=2, per_seconds=60.0)
    limiter.failed("2001:db8:1:2::1", 0.0)
    limiter.failed(ip_address("2001:db8:1:2:ffff::9"), 0.0)
    assert limiter.check("2001:db8:1:2::77", 0.0) is not None
    assert limiter.check("2001:db8:1:3::1", 0.0) is None
    limiter.failed("::ffff:192.0.2.1", 0.0)
    limiter.failed("192.0.2.1", 0.0)
    assert limiter.check("::ffff:192.0.2.1", 0.0) is not None
    limiter.failed("fe80::1%eth0", 0.0)
    limiter.failed("fe80::1%eth1", 0.0)
    assert limiter.check("fe80::1", 0.0) is not None


def test_an_ipv4_address_and_the_subnet_of_the_same_number_are_two() -> None:
    limiter = AttemptLimiter(attempts=1, per_seconds=60.0)
    limiter.failed("0.0.0.1", 0.0)
    assert limiter.check("0:0:0:1::5", 0.0) is None


def test_memory_is_bounded_and_the_oldest_is_forgotten_first() -> None:
    limiter = AttemptLimiter(attempts=1, per_seconds=60.0, tracked=100)
    base = ip_address("10.0.0.0")
    for number in range(100):
        limiter.failed(base + number, 0.0)
    limiter.failed(base, 1.0)  # the first failed again: now the second is the oldest
    limiter.failed(base + 100, 1.0)
    assert limiter.check(base, 1.0) is not None
    assert limiter.check(base + 1, 1.0) is None
    for number in range(10_000):
        limiter.failed(base + number, 2.0)
    assert limiter.statistics().tracked == 100
    assert limiter.statistics().forgotten > 9_000


def test_the_wait_that_is_told_is_long_enough_and_not_longer() -> None:
    chance = random.Random(1)
    limiter = AttemptLimiter(attempts=5, per_seconds=30.0)
    now = 0.0
    for _ in range(2_000):
        now += chance.random() * 4
        wait = limiter.check("192.0.2.1", now)
        if wait is None:
            limiter.failed("192.0.2.1", now)
        else:
            assert limiter.check("192.0.2.1", now + wait * 0.99) is not None
            assert limiter.check("192.0.2.1", now + wait + 1e-6) is None
