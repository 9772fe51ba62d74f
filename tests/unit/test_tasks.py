"""opentsm.tasks: tasks that are held, named and heard when they fail."""

from __future__ import annotations

import asyncio
import gc
import weakref

from opentsm.tasks import cancel, spawn


async def test_a_task_nobody_holds_runs_to_its_end() -> None:
    """It waits for something that only it refers to, which is how tasks get collected half-way."""
    waited_for: list[weakref.ref[asyncio.Future[None]]] = []
    done = asyncio.Event()

    async def work() -> None:
        future = asyncio.get_running_loop().create_future()
        waited_for.append(weakref.ref(future))
        await future
        done.set()

    spawn("work", work())
    await asyncio.sleep(0)
    gc.collect()
    future = waited_for[0]()
    assert future is not None
    future.set_result(None)
    await done.wait()


async def test_a_task_bears_its_name_and_gives_its_result() -> None:
    async def seven() -> int:
        return 7

    task = spawn("count", seven())
    assert task.get_name() == "count"
    assert await task == 7


async def test_a_failure_is_reported_once_with_the_name() -> None:
    failures: list[tuple[str, str]] = []
    reported = asyncio.Event()

    def on_failure(name: str, error: BaseException) -> None:
        failures.append((name, str(error)))
        reported.set()

    async def break_down() -> None:
        raise ValueError("no more paper")

    spawn("printer", break_down(), on_failure=on_failure)
    await reported.wait()
    assert failures == [("printer", "no more paper")]


async def test_cancellation_is_no_failure_and_cancel_waits_for_the_end() -> None:
    failures: list[str] = []
    cleaned: list[str] = []

    async def serve() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append("socket closed")

    task = spawn("serve", serve(), on_failure=lambda name, error: failures.append(name))
    await asyncio.sleep(0)
    await cancel(task, None)
    assert cleaned == ["socket closed"]
    assert failures == []
    assert task.cancelled()


async def test_cancel_swallows_what_a_task_raises_on_its_way_out() -> None:
    heard: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise OSError("disk full") from None

    task = spawn("stubborn", stubborn(), on_failure=lambda name, error: heard.append(str(error)))
    await asyncio.sleep(0)
    await cancel(task)
    assert heard == ["disk full"]
