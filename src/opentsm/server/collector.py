"""Python's cycle collector in a process that is a server: full collections are run when we say.

``engine.collecting`` says when. What is there once the server has started (modules, settings) is taken out of
what is looked at. This changes the whole process, so it is for ``opentsm serve`` and not for programs that
have a server in them.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from opentsm.engine.collecting import Collecting
from opentsm.server.counters import Count

YOUNG: Final = 10_000
"""Objects made (less those freed) between two looks at the young ones: some hundred sessions' worth.
What dies within a set-up is gone before it is looked at: set-ups cost what they do with no collector."""

YOUNG_ROUNDS: Final = 5
"""Looks at the youngest before those that outlived them are looked at once more, for the last time."""

NEVER: Final = 1 << 30
"""Of those rounds before Python itself looks at everything."""

_log: Final = structlog.get_logger("opentsm.server")


class Collector:
    """Takes the collector over from ``begin`` to ``end``.

    Args:
        counts: where collections are counted.
        clients: how many have ever gone, and how many have ever come.

    Attributes:
        pause: seconds the last full collection took.
    """

    def __init__(self, counts: Counter[str], clients: Callable[[], tuple[int, int]]) -> None:
        self.pause = 0.0
        self._counts = counts
        self._clients = clients
        self._before: tuple[int, int, int] | None = None
        self._decision = Collecting(time.monotonic())

    def begin(self) -> None:
        """The server has started; what there is now stays."""
        self._before = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, YOUNG_ROUNDS, NEVER)
        self._decision = Collecting(time.monotonic())

    def look(self) -> None:
        """Collect if it is time."""
        if self._before is None:
            return
        ended, came = self._clients()
        due = self._decision.look(time.monotonic(), ended=ended, moved=ended + came)
        if due is None:
            return
        began = time.monotonic()
        found = gc.collect()
        now = time.monotonic()
        self.pause = now - began
        self._decision.collected(now, ended=ended, pause=self.pause)
        self._counts[Count.COLLECTIONS] += 1
        self._counts[Count.COLLECTIONS_FOUND] += found
        self._counts[Count.COLLECTIONS_MS] += round(1000 * self.pause)
        _log.debug("collected", why=due.value, found=found, seconds=round(self.pause, 3))

    def end(self) -> None:
        """Give it back as it was."""
        if self._before is not None:
            gc.set_threshold(*self._before)
            gc.unfreeze()
            self._before = None
