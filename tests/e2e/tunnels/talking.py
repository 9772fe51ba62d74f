"""Calls of 50 packets/s each way through tunnels, begun one after the other: what happens to the network
then meets each of them at another moment of its life."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from opentsm.client.endpoint import TunnelDatagramTransport
from opentsm.client.notifications import DdtDisabled, DdtEnabled
from opentsm.client.tunnel import Tunnel, connect
from opentsm.lab.host import Host
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, login

PACKET_TIME = 0.020
STAGGER = 0.337
"""Seconds between the beginnings of two calls: no multiple of any timer."""


@dataclass
class Call:
    """One call: a tunnel with one socket, and a party behind the server."""

    tunnel: Tunnel
    voice: TunnelDatagramTransport
    far: MediaSocket
    up: MediaFlow
    down: MediaFlow
    senders: tuple[MediaSender, ...] = ()
    talking: asyncio.Task[None] | None = None
    switches: list[tuple[float, str]] = field(default_factory=list)

    @property
    def flows(self) -> tuple[MediaFlow, MediaFlow]:
        return self.up, self.down

    async def stop_talking(self) -> None:
        if self.talking is not None:
            await cancel(self.talking)

    async def say(self, packets: int) -> None:
        """A talk spurt of both parties, when nobody talks."""
        await send_all(self.senders, count=packets)

    def lost(self, since: float, before: float = float("inf")) -> tuple[int, int]:
        """Packets (up, down) sent in this time that never came."""
        up, down = (sum(since <= at < before for at in flow.losses()) for flow in self.flows)
        return up, down

    def switched(self, since: float, before: float = float("inf")) -> int:
        return sum(since <= at < before for at, _ in self.switches)


@contextlib.asynccontextmanager
async def calls(
    server: ServerProcess,
    core: Host,
    count: int,
    mode: PathMode = PathMode.DATAGRAM,
    *,
    settled: bool = True,
    stagger: float = STAGGER,
) -> AsyncIterator[list[Call]]:
    """``count`` calls, all talking; with ``settled`` all on the datagram tunnel. For the phone's host."""
    async with contextlib.AsyncExitStack() as stack:
        running: list[Call] = []
        for number in range(count):
            at_phone, at_core = MediaReceiver(), MediaReceiver()
            far = MediaSocket(core.udp(port=4000 + 2 * number), at_core)
            stack.callback(far.close)
            up, down = MediaFlow(100 + number), MediaFlow(200 + number)
            at_core.expect(up)
            at_phone.expect(down)
            tunnel = await stack.enter_async_context(connect(**login(server)))
            voice, _ = await tunnel.create_datagram_endpoint(
                functools.partial(_same, at_phone), remote_addr=(core.ipv4, 4000 + 2 * number), mode=mode
            )
            call = Call(tunnel, voice, far, up, down)
            tunnel.on_notification(_note, call, kinds=(DdtEnabled, DdtDisabled))
            senders = [MediaSender(voice, up), MediaSender(far, down, voice.get_extra_info("sockname"))]
            call.senders = tuple(senders)
            call.talking = spawn("media", send_all(senders, seconds=240))
            stack.push_async_callback(call.stop_talking)
            running.append(call)
            await lasting(stagger)
        if settled:
            await until_all(running, Path.DATAGRAM, within=15, what="the calls to settle")
        await more(running, 75)
        yield running


async def more(running: list[Call], packets: int, *, within: float = 30.0) -> None:
    """Wait until every flow has been heard this many times more."""
    marks = [(flow, len(flow.numbers) + packets) for call in running for flow in call.flows]
    await until(lambda: all(len(flow.numbers) >= mark for flow, mark in marks), within=within, what="media")


async def until_all(running: list[Call], path: Path, *, within: float, what: str) -> dict[int, float]:
    """Wait until every call is on this path; when each was there (by its place in the list)."""
    reached: dict[int, float] = {}

    def look() -> bool:
        for number, call in enumerate(running):
            if call.voice.path is path:
                reached.setdefault(number, time.monotonic())
        return len(reached) == len(running)

    await until(look, within=within, what=what)
    return reached


async def lasting(seconds: float) -> None:
    """The network, or the silence, stays as it is for so long."""
    await asyncio.sleep(seconds)  # tree: allow sleep because the time is the stimulus


def _same(receiver: MediaReceiver) -> MediaReceiver:
    return receiver


def _note(notification: object, call: Call) -> None:
    if isinstance(notification, DdtEnabled):
        call.switches.append((time.monotonic(), "datagram"))
    elif isinstance(notification, DdtDisabled):
        call.switches.append((time.monotonic(), f"stream: {notification.reason}"))
