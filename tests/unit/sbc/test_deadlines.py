from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opentsm.sbc.deadlines import SLACK, Deadlines

STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.floats(0, 100))), max_size=60)


@given(STEPS, st.floats(0, 100))
def test_what_is_due_comes_out_in_order_and_once(steps: list[tuple[str, float | None]], now: float) -> None:
    deadlines: Deadlines[str] = Deadlines()
    model: dict[str, float] = {}
    for key, when in steps:
        if when is None:
            deadlines.cancel(key)
            model.pop(key, None)
        else:
            deadlines.set(key, when)
            model[key] = when
    assert deadlines.next() == (min(model.values()) if model else None)
    popped = []
    while (key_due := deadlines.pop_due(now)) is not None:
        popped.append(key_due)
    assert sorted(popped) == sorted(key for key, when in model.items() if when <= now)
    assert [model[key] for key in popped] == sorted(model[key] for key in popped)
    assert len(deadlines) == len(model) - len(popped)


def test_deadlines_moved_again_and_again_take_no_more_room() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for number in range(50 * SLACK):
        deadlines.set(number % 3, float(number))
    assert len(deadlines._heap) <= 2 * 3 + SLACK + 1
