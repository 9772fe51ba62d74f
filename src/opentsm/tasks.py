"""The one place that starts asyncio tasks (lint bans ``asyncio.create_task`` elsewhere).

The event loop keeps only a weak reference to a task, so one that nobody holds may be collected half-way;
and a task that fails is silent until it is collected, if it ever is. A task made here has a name, is held
until it ends, and says so when it fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog

T = TypeVar("T")
FailureHandler = Callable[[str, BaseException], None]

_running: Final[set[asyncio.Task[Any]]] = set()
_log: Final = structlog.get_logger(__name__)


def _report(name: str, error: BaseException) -> None:
    _log.error("task failed", task=name, exc_info=error)


def spawn(
    name: str, coroutine: Coroutine[Any, Any, T], *, on_failure: FailureHandler = _report
) -> asyncio.Task[T]:
    """Start a coroutine as a task on the running loop.

    Args:
        name: what the task does, for logs and debuggers.
        coroutine: the work.
        on_failure: called with the name and the exception when the task fails; cancellation is no failure.
            The default writes an error to the log.

    Returns:
        The task; it may be awaited, cancelled or forgotten.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)

    def ended(done: asyncio.Task[T]) -> None:
        _running.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            on_failure(name, error)

    task.add_done_callback(ended)
    return task


async def cancel(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended; what they raise on the way out is not raised here."""
    live = [task for task in tasks if task is not None and not task.done()]
    for task in live:
        task.cancel()
    await asyncio.gather(*live, return_exceptions=True)
