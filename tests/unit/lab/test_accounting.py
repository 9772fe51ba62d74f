from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.lab.accounting import FlowReport, account, combine, percentile

SENT = [i * 0.02 for i in range(10)]


def arrivals(numbers: list[int], delay: float = 0.03) -> list[tuple[int, float]]:
    return [(n, SENT[n] + delay) for n in numbers]


def test_a_whole_flow_has_nothing_to_complain_about() -> None:
    report = account(SENT, arrivals(list(range(10))))
    assert (report.sent, report.received, report.lost, report.late, report.reordered) == (10, 10, 0, 0, 0)
    assert [report.delay_p50, report.delay_max] == pytest.approx([0.03, 0.03])
    assert report.jitter == pytest.approx(0.0)
    assert report.longest_gap == pytest.approx(0.02)


def test_losses_and_their_longest_run() -> None:
    report = account(SENT, arrivals([0, 1, 5, 7, 8]))
    assert (report.lost, report.longest_burst) == (5, 3)
    assert report.loss_share == 0.5
    assert report.longest_gap == pytest.approx(0.08)


def test_copies_are_counted_once_and_apart() -> None:
    report = account(SENT, arrivals([0, 0, 1, 1, 1, *range(2, 10)]))
    assert (report.received, report.duplicated, report.lost) == (10, 3, 0)


def test_a_packet_after_a_newer_one_is_reordered() -> None:
    report = account(SENT, [(0, 0.1), (2, 0.2), (1, 0.3), (3, 0.4), *((n, 0.5) for n in range(4, 10))])
    assert report.reordered == 1


def test_late_is_counted_from_the_fastest_packet() -> None:
    times = [(n, SENT[n] + (0.1 if n != 4 else 0.1601)) for n in range(10)]
    assert account(SENT, times, playout=0.060).late == 1
    assert account(SENT, times, playout=0.061).late == 0
    assert account(SENT, times, playout=0.060).missed_share == pytest.approx(0.1)


def test_packets_nobody_sent_are_corrupt() -> None:
    assert account(SENT, [(99, 1.0)], corrupt=2).corrupt == 3


def test_a_silent_flow_has_a_report_too() -> None:
    report = account(SENT, [])
    assert (report.lost, report.delay_max, report.longest_burst) == (10, 0.0, 10)
    assert account([], []) == FlowReport()


def test_several_flows_add_up_and_show_the_worst() -> None:
    good = account(SENT, arrivals(list(range(10)), 0.01))
    bad = account(SENT, arrivals([0, 9], 0.2))
    total = combine([good, bad, account(SENT, [])])
    assert (total.sent, total.lost) == (30, 18)
    assert total.delay_max == pytest.approx(0.2)
    assert total.delay_min == pytest.approx(0.01)
    assert combine([]) == FlowReport()


@given(st.lists(st.integers(0, 9), max_size=40))
def test_every_packet_is_accounted_for(numbers: list[int]) -> None:
    report = account(SENT, arrivals(numbers))
    assert report.received + report.lost == report.sent
    assert report.received + report.duplicated == len(numbers)
    assert report.reordered < max(report.received, 1)


@given(st.lists(st.floats(0, 1e3), min_size=1))
def test_percentiles_are_values_that_occurred(values: list[float]) -> None:
    ordered = sorted(values)
    assert percentile(ordered, 100) == ordered[-1]
    assert percentile(ordered, 0) == ordered[0]
    assert percentile(ordered, 50) in ordered
