"""A peer in a thread of its own, for programs that run an event loop themselves, or wait."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentsm.admin.certificates import Issued
from opentsm.types import Service
from tests.unit.client.peer import Peer, running_peer

Ready = tuple[Peer, asyncio.AbstractEventLoop, asyncio.Event]


@contextmanager
def peer_in_a_thread(
    certificate: Issued, services: frozenset[Service] = frozenset({Service.DDT})
) -> Iterator[Peer]:
    """A peer that is listening, and serves while the caller waits."""
    ready: queue.Queue[Ready] = queue.Queue()

    async def serve() -> None:
        async with running_peer(certificate, services) as peer:
            over = asyncio.Event()
            ready.put((peer, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    peer, loop, over = ready.get(timeout=30)
    try:
        yield peer
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
