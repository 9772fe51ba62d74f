"""When Python's cycle collector looks at everything: rarely, in quiet moments, for a bounded share of time.

Left alone it looks at every object each time their number has grown by a quarter, and holds the control
plane meanwhile, the longer the more sessions there are, while clients come in. A session needs no collector
(it has no reference cycles, which a test holds us to), so what full collections find is the rest: cycles of
exceptions, of the admin side, of libraries. That is bounded by how many clients have gone, and by time.
"""

from __future__ import annotations

import enum
from typing import Final

MOST_ENDED: Final = 5_000
"""Clients gone since the last full collection that make one due: if each left a cycle of 20 KiB after all,
that is 100 MB."""

LONGEST_WAIT: Final = 3_600.0
"""Seconds after which one is due whatever happened."""

SHORTEST_WAIT: Final = 60.0
"""Seconds between two at least."""

SHARE: Final = 1 / 500
"""Of the time at most is spent in them: one that took a second is not repeated within eight minutes."""

QUIET: Final = 20.0
"""Clients coming and going per second below which nobody notices a pause."""

PATIENCE: Final = 300.0
"""Seconds that one which is due waits for quiet."""


class Due(enum.Enum):
    """Why a full collection is run; one phrase each."""

    QUIET = "due, and few clients come and go"
    OVERDUE = "due, and no quiet came"


class Collecting:
    """The decision.

    Args:
        now: when everything was last collected; seconds on any steady clock, as everywhere here.
    """

    __slots__ = ("_due_since", "_ended", "_last", "_looked_at", "_moved", "_pause")

    def __init__(self, now: float) -> None:
        self._last = self._looked_at = now
        self._ended = self._moved = 0
        self._pause = 0.0
        self._due_since: float | None = None

    def look(self, now: float, *, ended: int, moved: int) -> Due | None:
        """Whether to collect now; asked every few seconds.

        Args:
            ended: clients that have ever gone. moved: clients that have ever come or gone.
        """
        rate = (moved - self._moved) / max(now - self._looked_at, 1e-3)
        self._looked_at, self._moved = now, moved
        if not self._is_due(now, ended):
            self._due_since = None
            return None
        if self._due_since is None:
            self._due_since = now
        if rate < QUIET:
            return Due.QUIET
        return Due.OVERDUE if now - self._due_since >= PATIENCE else None

    def collected(self, now: float, *, ended: int, pause: float) -> None:
        """It was done.

        Args:
            pause: seconds it took.
        """
        self._last, self._ended, self._pause, self._due_since = now, ended, pause, None

    def _is_due(self, now: float, ended: int) -> bool:
        since = now - self._last
        if since < max(SHORTEST_WAIT, self._pause / SHARE):
            return False
        return since >= LONGEST_WAIT or ended - self._ended >= MOST_ENDED
