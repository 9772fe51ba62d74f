"""Changes of files, seen by looking: works on every file system, through symbolic links and bind mounts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

POLL: Final = 1.0
"""Seconds between two looks: a person who saved a file sees it act at once, and ten files cost nothing."""

Signature = tuple[tuple[int, int, int, int] | None, ...]


def signature(paths: Iterable[Path]) -> Signature:
    """What changes when any of these files is rewritten, replaced, made or removed."""
    return tuple(_one(path) for path in paths)


def _one(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


class Watch:
    """Says when a set of files has changed and come to rest.

    A change counts when two looks in a row show the same: an editor or a copy that is half done is left
    alone. It counts once.
    """

    def __init__(self, seen: Signature) -> None:
        self._acted_on = seen
        self._last = seen

    def look(self, now: Signature) -> bool:
        """Whether to act on what the files are now."""
        settled = now == self._last
        self._last = now
        if not settled or now == self._acted_on:
            return False
        self._acted_on = now
        return True

    def acted(self, seen: Signature) -> None:
        """Somebody has acted on this state of the files already, or other files are watched now."""
        self._acted_on = self._last = seen
