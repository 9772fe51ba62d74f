from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.lab.impairment import Drop, GilbertElliott, Impairment, Settings, predict

UDP, TCP, ICMP, ICMPV6, GRE = 17, 6, 1, 58, 47


def run(settings: Settings, count: int, *, seed: int = 1, gap: float = 0.02, length: int = 200) -> list[Any]:
    model = Impairment("up", seed, settings)
    return [model.decide(index * gap, length, UDP) for index in range(count)]


def reasons(decisions: list[Any]) -> list[str]:
    return [decision.reason for decision in decisions if isinstance(decision, Drop)]


def test_a_perfect_wire_delivers_everything_at_once() -> None:
    assert run(Settings(), 3, gap=1.0) == [(0.0,), (1.0,), (2.0,)]


def test_delay_is_added_to_every_packet() -> None:
    assert run(Settings(delay=0.25), 3, gap=1.0) == [(0.25,), (1.25,), (2.25,)]


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.2, 0.5, 1.0])
def test_random_loss_has_the_share_it_was_given(loss: float) -> None:
    count = 20_000
    lost = len(reasons(run(Settings(loss=loss), count)))
    assert abs(lost - loss * count) <= 5 * math.sqrt(count * loss * (1 - loss))


def test_burst_loss_has_the_share_and_the_length_of_its_model() -> None:
    burst = GilbertElliott(enter=0.01, leave=0.25)
    delivered = [not isinstance(d, Drop) for d in run(Settings(burst=burst), 100_000)]
    lost = delivered.count(False)
    bursts = sum(before and not after for before, after in pairwise(delivered))
    assert burst.mean_loss == pytest.approx(0.01 / 0.26)
    assert lost / 100_000 == pytest.approx(burst.mean_loss, rel=0.1)
    assert lost / bursts == pytest.approx(4.0, rel=0.1)


def test_a_bad_state_need_not_lose_everything() -> None:
    burst = GilbertElliott(enter=1.0, leave=0.0, loss_bad=0.3)
    lost = len(reasons(run(Settings(burst=burst), 20_000)))
    assert lost / 20_000 == pytest.approx(0.3, abs=0.02)


def test_both_kinds_of_loss_add_up_and_are_counted_apart() -> None:
    settings = Settings(loss=0.5, burst=GilbertElliott(1.0, 0.0, loss_bad=0.5))
    found = reasons(run(settings, 20_000))
    assert found.count("loss") / 20_000 == pytest.approx(0.5, abs=0.02)
    assert found.count("burst-loss") / 20_000 == pytest.approx(0.25, abs=0.02)


def test_the_same_seed_gives_the_same_fates_and_another_seed_does_not() -> None:
    settings = Settings(loss=0.3, jitter=0.05, keep_order=False, duplicate=0.1)
    assert run(settings, 500, seed=7) == run(settings, 500, seed=7)
    assert run(settings, 500, seed=7) != run(settings, 500, seed=8)


def test_the_directions_differ() -> None:
    settings = Settings(loss=0.5)
    assert predict(settings, 1, "up", "udp", 100) != predict(settings, 1, "down", "udp", 100)


def test_timing_does_not_change_what_is_lost() -> None:
    settings = Settings(loss=0.3, jitter=0.01)
    slow, fast = run(settings, 300, gap=0.02), run(settings, 300, gap=0.0001)
    assert [isinstance(d, Drop) for d in slow] == [isinstance(d, Drop) for d in fast]


def test_other_protocols_in_between_do_not_change_what_udp_meets() -> None:
    settings = Settings(loss=0.3)
    alone = [isinstance(d, Drop) for d in run(settings, 200)]
    model = Impairment("up", 1, settings)
    mixed = []
    for index in range(200):
        for other in [TCP, ICMP, GRE] * (index % 3):
            model.decide(index * 0.02, 1500, other)
        mixed.append(isinstance(model.decide(index * 0.02, 200, UDP), Drop))
    assert mixed == alone


def test_on_a_shared_stream_they_do() -> None:
    settings = Settings(loss=0.5, shared_stream=True)
    model = Impairment("up", 1, settings)
    fates = [isinstance(model.decide(0.0, 100, (UDP, TCP)[i % 2]), Drop) for i in range(200)]
    one_by_one = Impairment("up", 1, settings)
    assert fates == [isinstance(one_by_one.decide(0.0, 100, UDP), Drop) for _ in range(200)]


def test_settings_changed_while_running_do_not_shift_what_comes_after() -> None:
    steady = Impairment("up", 1, Settings(loss=0.3))
    changed = Impairment("up", 1, Settings(loss=0.3))
    before = [steady.decide(0.0, 100, UDP) for _ in range(100)]
    for _ in range(50):
        changed.decide(0.0, 100, UDP)
    changed.settings = Settings(loss=0.9, duplicate=0.5, jitter=0.1, udp="drop")
    for _ in range(25):
        changed.decide(0.0, 100, UDP)
    changed.settings = Settings(loss=0.3)
    tail = [changed.decide(0.0, 100, UDP) for _ in range(25)]
    assert [isinstance(d, Drop) for d in tail] == [isinstance(d, Drop) for d in before[75:]]


def test_reseeding_begins_again() -> None:
    model = Impairment("up", 3, Settings(loss=0.5))
    first = [isinstance(model.decide(0.0, 100, UDP), Drop) for _ in range(50)]
    model.reseed(3)
    assert [isinstance(model.decide(0.0, 100, UDP), Drop) for _ in range(50)] == first


def test_prediction_is_what_the_model_does() -> None:
    settings = Settings(loss=0.2, burst=GilbertElliott(0.05, 0.3))
    done = [not isinstance(d, Drop) for d in run(settings, 400, seed=5)]
    assert predict(settings, 5, "up", "udp", 400) == done


@given(
    jitter=st.floats(0, 1),
    delay=st.floats(0, 1),
    seed=st.integers(),
    gaps=st.lists(st.floats(0, 0.1), max_size=80),
)
def test_kept_order_means_no_packet_overtakes_another(
    jitter: float, delay: float, seed: int, gaps: list[float]
) -> None:
    model = Impairment("up", seed, Settings(delay=delay, jitter=jitter))
    now, last = 0.0, 0.0
    for gap in gaps:
        now += gap
        decision = model.decide(now, 100, UDP)
        assert not isinstance(decision, Drop)
        assert now + delay <= decision[0]
        assert last <= decision[0] <= max(last, now + delay + jitter)
        last = decision[0]


def test_jitter_without_order_lets_packets_overtake() -> None:
    times = [d[0] for d in run(Settings(jitter=0.1, keep_order=False), 200)]
    assert any(after < before for before, after in pairwise(times))


def test_normal_jitter_never_makes_a_packet_arrive_before_it_was_sent() -> None:
    decisions = run(Settings(delay=0.01, jitter=0.05, jitter_shape="normal", keep_order=False), 5_000)
    extra = [decision[0] - index * 0.02 for index, decision in enumerate(decisions)]
    assert min(extra) == pytest.approx(0.0, abs=1e-9)
    assert sorted(extra)[len(extra) // 2] == pytest.approx(0.01, abs=0.005)


def test_duplicates_have_their_share() -> None:
    copies = sum(len(d) - 1 for d in run(Settings(duplicate=0.1), 10_000))
    assert copies / 10_000 == pytest.approx(0.1, abs=0.015)


def test_reordering_holds_some_packets_back_while_later_ones_pass() -> None:
    decisions = run(Settings(reorder=0.1, reorder_delay=0.05), 10_000)
    held = [round(d[0] - i * 0.02, 9) for i, d in enumerate(decisions) if d[0] > i * 0.02 + 1e-6]
    assert len(held) / 10_000 == pytest.approx(0.1, abs=0.015)
    assert set(held) == {0.05}


def test_a_rate_limit_spaces_packets_by_their_length() -> None:
    decisions = run(Settings(rate=80_000, queue_bytes=10_000), 4, gap=0.0, length=1000)
    assert [d[0] for d in decisions] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_full_queue_drops_and_room_comes_back_with_time() -> None:
    model = Impairment("up", 1, Settings(rate=80_000, queue_bytes=2_000))
    fates = [model.decide(0.0, 1000, UDP) for _ in range(4)]
    assert reasons(fates) == ["queue-full", "queue-full"]
    assert model.decide(0.2, 1000, UDP) == pytest.approx((0.3,))


def test_all_protocols_share_one_bottleneck() -> None:
    model = Impairment("up", 1, Settings(rate=80_000))
    assert model.decide(0.0, 1000, TCP) == pytest.approx((0.1,))
    assert model.decide(0.0, 1000, UDP) == pytest.approx((0.2,))


@pytest.mark.parametrize(
    ("fate", "reason", "answer"),
    [
        ("drop", "blocked-udp", None),
        ("reject", "rejected-udp", "port"),
        ("reject-admin", "rejected-udp", "admin"),
    ],
)
def test_a_blocked_protocol_is_stopped_and_the_others_pass(fate: Any, reason: str, answer: Any) -> None:
    model = Impairment("up", 1, Settings(udp=fate))
    assert model.decide(0.0, 100, UDP) == Drop(reason, answer)
    assert model.decide(0.0, 100, TCP) == (0.0,)
    assert model.decide(0.0, 100, GRE) == (0.0,)


def test_icmp_means_both_versions() -> None:
    model = Impairment("up", 1, Settings(icmp="drop"))
    assert isinstance(model.decide(0.0, 100, ICMP), Drop)
    assert isinstance(model.decide(0.0, 100, ICMPV6), Drop)


def test_large_packets_are_answered_or_vanish() -> None:
    assert Impairment("up", 1, Settings(mtu=1280)).decide(0, 1281, UDP) == Drop("too-big", "too-big")
    silent = Settings(mtu=1280, mtu_signal=False)
    assert Impairment("up", 1, silent).decide(0, 1281, UDP) == Drop("mtu-black-hole")
    assert Impairment("up", 1, silent).decide(0, 1280, UDP) == (0,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": 1.5},
        {"duplicate": -0.1},
        {"delay": 40.0 * 1000},
        {"jitter": -1},
        {"rate": 0},
        {"mtu": 20},
        {"udp": "maybe"},
        {"jitter_shape": "odd"},
        {"queue_bytes": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_burst_probabilities_are_checked() -> None:
    with pytest.raises(ValueError, match="leave"):
        GilbertElliott(0.1, 25)
