"""Bounded room for expensive checks: some run, some wait, and the next one is turned away at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from opentsm.limits import AUTH_CONCURRENCY
from opentsm.types import Code

from .model import BUSY, AuthenticationFailed

T = TypeVar("T")

MAX_WAITING: Final = 64
"""Checks that may wait. At 100 ms each and four at once the last of them waits 1.6 seconds, well inside
the client's configuration deadline; who comes after it is better told to come back than kept waiting."""

BUSY_RETRY_AFTER: Final = 2.0
"""Seconds after which a client that found no room may try again: by then a full queue has drained."""


class Slots:
    """Threads for checks that take CPU time and memory, with a bounded queue in front.

    Args:
        running: checks at once.
        waiting: checks that may wait for their turn.
    """

    def __init__(self, *, running: int = AUTH_CONCURRENCY, waiting: int = MAX_WAITING) -> None:
        self._executor = ThreadPoolExecutor(running, thread_name_prefix="opentsm-auth")
        self._semaphore = asyncio.Semaphore(running)
        self._room = running + waiting
        self._inside = 0
        self.turned_away = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a turn.

        Raises:
            AuthenticationFailed: as many wait as may (``busy``); at once, without waiting.
        """
        if self._inside >= self._room:
            self.turned_away += 1
            raise AuthenticationFailed(Code.RATE_LIMITED, BUSY, retry_after=BUSY_RETRY_AFTER)
        self._inside += 1
        try:
            async with self._semaphore:
                yield
        finally:
            self._inside -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Run work in a thread, for use inside a slot.

        A caller that is cancelled leaves its slot only when the thread is done: a client that hangs up
        in the middle must not make room for more work than the machine was meant to do at once.
        """
        future = asyncio.wrap_future(self._executor.submit(work))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def close(self) -> None:
        """Take no more work; what runs is left to finish by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)
