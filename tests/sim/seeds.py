"""Which seeds the random runs try: fresh ones, and all that ever found something."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

RUNS = int(os.environ.get("OPENTSM_SIM_RUNS", "150"))
ONLY = int(os.environ["OPENTSM_SIM_SEED"]) if "OPENTSM_SIM_SEED" in os.environ else None

FAILED_ONCE: dict[str, tuple[int, ...]] = {
    "chaos": (),
    "network": (),
}
"""By test; each with what it found, so that it is not taken for a number."""


@contextlib.contextmanager
def named(seed: int, test: str) -> Iterator[None]:
    """What goes wrong inside says how to see it again."""
    try:
        yield
    except Exception as error:
        error.add_note(f"seed {seed}: OPENTSM_SIM_SEED={seed} pytest {test}")
        raise
