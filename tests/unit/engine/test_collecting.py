"""When a full collection is run: due by clients gone or by time, in a quiet moment, for a bounded share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opentsm.engine.collecting import (
    LONGEST_WAIT,
    MOST_ENDED,
    PATIENCE,
    SHARE,
    SHORTEST_WAIT,
    Collecting,
    Due,
)

EVERY = 10.0


def test_a_server_where_nothing_happens_collects_once_an_hour() -> None:
    collecting = Collecting(0.0)
    assert collecting.look(LONGEST_WAIT - 1, ended=10, moved=20) is None
    assert collecting.look(LONGEST_WAIT, ended=10, moved=20) is Due.QUIET
    collecting.collected(LONGEST_WAIT, ended=10, pause=0.1)
    assert collecting.look(LONGEST_WAIT + EVERY, ended=10, moved=20) is None


def test_many_clients_gone_make_one_due() -> None:
    collecting = Collecting(0.0)
    collecting.look(SHORTEST_WAIT, ended=MOST_ENDED - 1, moved=2 * MOST_ENDED)
    assert collecting.look(SHORTEST_WAIT + 1, ended=MOST_ENDED - 1, moved=2 * MOST_ENDED) is None
    assert collecting.look(SHORTEST_WAIT + 2, ended=MOST_ENDED, moved=2 * MOST_ENDED) is Due.QUIET


def test_clients_that_only_come_make_none_due() -> None:
    collecting = Collecting(0.0)
    assert all(collecting.look(n * EVERY, ended=0, moved=n * 10_000) is None for n in range(1, 300))


def test_one_that_is_due_waits_for_quiet_but_not_for_ever() -> None:
    collecting = Collecting(0.0)
    found = [(n * EVERY, collecting.look(n * EVERY, ended=n * 1_000, moved=n * 2_000)) for n in range(1, 60)]
    waits = next(at for at, due in found if due is not None)
    assert dict(found)[waits] is Due.OVERDUE
    assert waits == SHORTEST_WAIT + PATIENCE


@given(
    st.lists(
        st.tuples(st.floats(1.0, 600.0), st.integers(0, 20_000), st.floats(0.0, 5.0)),
        min_size=1,
        max_size=200,
    )
)
def test_collections_never_take_more_than_their_share(steps: list[tuple[float, int, float]]) -> None:
    collecting, now, ended = Collecting(0.0), 0.0, 0
    last, last_pause = 0.0, 0.0
    for wait, gone, pause in steps:
        now, ended = now + wait, ended + gone
        if collecting.look(now, ended=ended, moved=2 * ended) is None:
            continue
        assert now - last >= SHORTEST_WAIT
        assert last_pause <= SHARE * (now - last) + 1e-9
        collecting.collected(now, ended=ended, pause=pause)
        last, last_pause = now, pause
