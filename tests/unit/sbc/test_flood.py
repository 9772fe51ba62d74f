from __future__ import annotations

from opentsm.sbc.flood import BYTES_PER_COST, MAX_SOURCES, FloodGate


def test_a_source_has_a_burst_and_then_its_rate() -> None:
    gate = FloodGate(rate=10.0, burst=20.0)
    assert sum(gate.admits(0.0, "a") for _ in range(100)) == 20
    assert gate.admits(0.0, "b")
    assert sum(gate.admits(1.0, "a") for _ in range(100)) == 10


def test_long_messages_count_for_more() -> None:
    gate = FloodGate(rate=0.0, burst=20.0)
    assert sum(gate.admits(0.0, "a", 3 * BYTES_PER_COST) for _ in range(100)) == 5


def test_sources_are_forgotten_before_they_take_too_much_room() -> None:
    gate = FloodGate()
    for number in range(MAX_SOURCES + 10):
        gate.admits(0.0, str(number))
    assert len(gate._buckets) == MAX_SOURCES
