"""Every row of every table is taken by the simulations: a row that never is, is either dead or untested."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from opentsm.protocol import states as s
from opentsm.protocol.core import Machine
from tests.sim.chaos import Half
from tests.sim.chaos_client import ClientHalf
from tests.sim.chaos_server import ServerHalf
from tests.sim.seeds import FAILED_ONCE, ONLY, RUNS, named

Taken = set[tuple[str, str, str]]
STEPS = 300
MOST = 2500
"""Lives of each half after which a row that was never taken is called dead; some 1,000 are enough today."""


@contextmanager
def recorded() -> Iterator[Taken]:
    """All rows that any machine takes meanwhile."""
    names = {id(table): name for name, table in s.TABLES.items()}
    taken: Taken = set()
    original = Machine.step

    def step(self: Machine[Any, Any], owner: object, given: Any, now: float, cause: Any = None) -> bool:
        state = self.state
        if not self._table[state, given].ignored:
            taken.add((names[id(self._table)], state.value, given.value))
        return original(self, owner, given, now, cause)

    Machine.step = step  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        Machine.step = original  # type: ignore[method-assign]


def rows() -> Taken:
    return {
        (name, state.value, given.value)
        for name, table in s.TABLES.items()
        for (state, given), row in table.items()
        if not row.ignored
    }


def chaos(kind: type[Half], seed: int) -> Half:
    half = kind(random.Random(seed))
    with named(seed, "tests/sim/test_every_row.py"):
        half.steps(STEPS)
    return half


def test_every_row_is_taken() -> None:
    with recorded() as taken:
        missing = rows()
        for seed in range(MOST):
            for kind in (ClientHalf, ServerHalf):
                chaos(kind, seed)
            missing -= taken
            if not missing:
                break
    assert not missing, "\n".join(map(str, sorted(missing)))


@pytest.mark.parametrize("kind", [ClientHalf, ServerHalf])
def test_whatever_comes_in_whatever_order_what_must_hold_holds(kind: type[Half]) -> None:
    seeds = [ONLY] if ONLY is not None else [*FAILED_ONCE["chaos"], *range(10_000, 10_000 + 2 * RUNS)]
    for seed in seeds:
        assert chaos(kind, seed).lives > 0
