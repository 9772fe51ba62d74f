from __future__ import annotations

import pytest

from opentsm.client.phone.playout import PlayoutCounts
from opentsm.client.phone.score import score


def test_late_and_lost_cost_the_same_and_delay_costs_too() -> None:
    clean = score(PlayoutCounts(played=1000), 0.05, 0.06)
    lost = score(PlayoutCounts(played=950, lost=50), 0.05, 0.06)
    late = score(PlayoutCounts(played=950, late=50), 0.05, 0.06)
    slow = score(PlayoutCounts(played=1000), 0.4, 0.06)
    assert clean.delay_ms == pytest.approx(130)
    assert clean.mos == pytest.approx(4.3, abs=0.1)
    assert lost.r == late.r < clean.r
    assert (lost.lost_percent, lost.late_percent) == (5.0, 0.0)
    assert slow.mos < clean.mos


def test_nothing_known_is_taken_as_no_delay() -> None:
    assert score(PlayoutCounts(), None, 0.06).delay_ms == pytest.approx(80)
