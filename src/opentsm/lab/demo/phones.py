"""The two phones: real user agents on real tunnels. Bob's lives in a thread that stands at his place."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Final

from opentsm.client.phone.call import Call, CallSettings
from opentsm.client.phone.core import Account
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.speech import speech
from opentsm.client.tunnel import Tunnel, connect
from opentsm.errors import PlatformError
from opentsm.lab.demo.stage import BOB, Stage
from opentsm.lab.serving import PASSWORD, SIP_DOMAIN
from opentsm.tasks import cancel, spawn
from opentsm.types import PathMode

PLAYOUT: Final = 0.060
"""Seconds of both phones' play-out buffers: three packets, a usual fixed buffer."""

PATIENCE: Final = 30.0
"""Seconds for the other phone to do what it must do next."""


def call_settings(mode: PathMode) -> CallSettings:
    """Both phones say the same speech, again and again."""
    return CallSettings(samples=speech(), loop=True, playout=PLAYOUT, mode=mode)


@asynccontextmanager
async def a_phone(stage: Stage, user: str) -> AsyncIterator[tuple[Tunnel, Phone]]:
    """A registered phone on a tunnel of the user's."""
    ca = stage.server.folder / "ca.pem"
    tunnel = connect(stage.url, username=user, password=PASSWORD, ca=ca, families="ipv4", coding="off")
    async with tunnel as up:
        told = up.configuration.lease.sip_server
        if told is None:
            raise PlatformError("the server of the demonstration names no SIP server")
        account = Account(user, SIP_DOMAIN, PASSWORD)
        async with Phone(up, account, server=(str(told[0]), told[1])) as phone:
            await phone.register()
            yield up, phone


class Callee:
    """Bob: takes each call. Use as a context manager; the rest may be called from any thread."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._tunnel: Tunnel | None = None
        self._ready: Future[str] = Future()
        self._calls: queue.Queue[Call] = queue.Queue()
        self._mode = PathMode.STREAM
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=BOB)

    def __enter__(self) -> Callee:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._loop is not None and self._over is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def ready(self) -> str:
        """Wait until he is registered; his inner address.

        Raises:
            Exception: whatever kept him from it.
        """
        return self._ready.result(PATIENCE)

    def expect(self, mode: PathMode, coding: str) -> None:
        """The next call begins with his media switch like this, and with this coding on the DDT."""
        self._mode = mode
        if self._loop is not None and self._tunnel is not None:
            self._loop.call_soon_threadsafe(self._tunnel.set_coding, coding)

    def next_call(self) -> Call:
        """His end of the call that was placed."""
        return self._calls.get(timeout=PATIENCE)

    def set_mode(self, call: Call, mode: PathMode) -> None:
        """Turn his media switch."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(call.set_mode, mode)

    def _run(self) -> None:
        try:
            self._stage.host(BOB).call(asyncio.run, self._live())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with a_phone(self._stage, BOB) as (tunnel, phone):
            self._tunnel = tunnel
            taking = spawn("bob takes calls", self._take_calls(phone))
            self._ready.set_result(str(tunnel.inner_address))
            await self._over.wait()
            await cancel(taking)

    async def _take_calls(self, phone: Phone) -> None:
        while True:
            incoming = await phone.next_call()
            self._calls.put(await phone.answer(incoming, call_settings(self._mode)))
