from __future__ import annotations

from opentsm.lab.demo.story import BLOCKED, ON_STREAM, SWITCHED, Action, script, summary
from opentsm.types import PathMode
from tests.unit.lab.demo.made_up import played


def test_the_script_is_four_calls_and_two_where_there_is_no_network() -> None:
    assert [part.letter for part in script()] == ["a", "b", "c", "d"]
    assert [part.letter for part in script(network=False)] == ["a", "b"]
    assert sum(part.seconds for part in script(0.5)) * 2 == sum(part.seconds for part in script())
    # With setting up and scoring it must stay under two minutes.
    assert sum(part.seconds for part in script()) < 80


def test_the_first_call_never_leaves_the_stream_and_the_second_does() -> None:
    assert ON_STREAM.mode is PathMode.STREAM
    assert all(stretch.action is Action.NOTHING for stretch in ON_STREAM.stretches)
    assert [stretch.action for stretch in SWITCHED.stretches] == [Action.NOTHING, Action.DDT]
    assert BLOCKED.mode is PathMode.DATAGRAM


def test_a_call_is_told_in_a_line_for_each_stretch_and_direction() -> None:
    lines = summary(played())
    assert len(lines) == 4
    assert lines[0].startswith("before the switch, alice to bob: 10.0 % lost or late, MOS ")
