"""Waiting for conditions: what tests and demonstrations do instead of sleeping for a while and hoping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

_LOOK_EVERY: Final = 0.02
"""Seconds between looks: short beside anything a lab does, long beside the look itself."""

T = TypeVar("T")


async def until(condition: Callable[[], T | None], *, within: float = 15.0, what: str = "") -> T:
    """Wait until ``condition()`` is true, and return what it returned.

    Args:
        condition: looked at often; must be cheap and must not wait.
        within: seconds; a guard against waiting for ever, not a measure of speed.
        what: named in the error.

    Raises:
        TimeoutError: it did not become true.
    """
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:g} s: {what or condition}")
        await asyncio.sleep(_LOOK_EVERY)
    return value


def until_now(condition: Callable[[], T | None], *, within: float = 15.0, what: str = "") -> T:
    """``until`` for threads without an event loop."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:g} s: {what or condition}")
        time.sleep(_LOOK_EVERY)
    return value
