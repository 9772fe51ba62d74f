"""A call's worth of media between two hosts, both ways, to see what the network in between does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from opentsm.lab.accounting import FlowReport
from opentsm.lab.host import Host
from opentsm.lab.report import PathSeries, Section
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all

_DOWN: int = 1 << 16
_OPENING_TIMEOUT = 2.0
"""Seconds the first packets have to open the NAT before the far end gives up sending back."""

_TAIL = 1.0
"""Seconds after the last packet in which late ones still count."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The flows of a probe: ``up`` from the phone, ``down`` back to it."""

    up: tuple[MediaFlow, ...]
    down: tuple[MediaFlow, ...]

    def reports(self, playout: float = 0.060) -> Mapping[str, FlowReport]:
        """A report for each flow."""
        named = [(f"up {i}", flow) for i, flow in enumerate(self.up, 1)]
        named += [(f"down {i}", flow) for i, flow in enumerate(self.down, 1)]
        return {name: flow.report(playout) for name, flow in named}

    def section(self, title: str) -> Section:
        """A plot of delay and loss, both directions."""
        paths = [
            PathSeries(
                name,
                [point for flow in flows for point in flow.delays()],
                [when for flow in flows for when in flow.losses()],
            )
            for name, flows in (("up", self.up), ("down", self.down))
        ]
        return Section(title, paths, flows=self.reports())


async def probe(
    phone: Host, server: Host, *, flows: int = 1, seconds: float = 5.0, rate: float = 50.0, ipv6: bool = False
) -> ProbeResult:
    """Send media from phone to server and back, on sockets of their own, and account for it.

    The way back goes to wherever the phone's packets seem to come from, as a media relay would. Where
    nothing comes through, nothing is sent back.

    Args:
        phone, server: hosts; the server must be reachable from the phone.
        flows: media flows in each direction.
        seconds: how long.
        rate: packets per second and flow.
        ipv6: over IPv6.
    """
    up = tuple(MediaFlow(index + 1, rate=rate) for index in range(flows))
    down = tuple(MediaFlow(_DOWN + index + 1, rate=rate) for index in range(flows))
    near = MediaReceiver(down)
    far = MediaReceiver(up)
    address = server.ipv6 if ipv6 else server.ipv4
    with contextlib.ExitStack() as opened:
        listening = server.udp(address)
        remote = listening.getsockname()[:2]
        answering = opened.enter_context(contextlib.closing(MediaSocket(listening, far)))
        senders = []
        for flow in up:
            calling = phone.udp(phone.ipv6 if ipv6 else phone.ipv4)
            calling.connect(remote)
            media = opened.enter_context(contextlib.closing(MediaSocket(calling, near)))
            senders.append(MediaSender(media, flow))
        await asyncio.gather(send_all(senders, seconds=seconds), _answer(answering, far, up, down, seconds))
        await asyncio.sleep(_TAIL)
    return ProbeResult(up, down)


async def _answer(
    transport: MediaSocket,
    far: MediaReceiver,
    up: tuple[MediaFlow, ...],
    down: tuple[MediaFlow, ...],
    seconds: float,
) -> None:
    with contextlib.suppress(TimeoutError):  # those that were heard are answered
        await far.heard(up, within=min(_OPENING_TIMEOUT, seconds))
    senders = [
        MediaSender(transport, back, far.sources[there.ssrc])
        for there, back in zip(up, down, strict=True)
        if there.ssrc in far.sources
    ]
    if senders:
        await send_all(senders, seconds=seconds)
