"""One picture: packets of a call by path over time, around a block of UDP (``opentsm lab block``).

A call of 50 packets/s each way on the datagram tunnel; the firewall stops UDP, and lets it pass again. Every
tenth of a second the client's user plane is asked how many packets it has sent and received on each path;
what the receivers never got is drawn where it was sent.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from opentsm.client.tunnel import Tunnel, connect
from opentsm.lab.firewall import everything, udp_blocked
from opentsm.lab.serving import PASSWORD, USER, ServerProcess, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Path as TunnelPath
from opentsm.types import PathMode

SLICE: Final = 0.1
"""Seconds of one bar: five packets."""

BEFORE: Final = 2.0
"""Seconds shown before the block, and after the return."""

_COLOURS: Final = {"datagram": "#2b7a78", "stream": "#e09f3e", "lost": "#c1121f"}
_WIDTH, _PANEL, _LEFT, _TOP = 920, 130, 64, 58
_MOST: Final = 12
"""Packets a tenth of a second that a panel has room for: both paths at once."""


@dataclass
class Trace:
    """What was seen. Times in seconds since the first sample.

    Attributes:
        samples: (time, sent by stream, by datagram, received by stream, by datagram), growing counts.
        lost_up, lost_down: when the packets that never came were sent.
        blocked, opened, fell, back: when UDP was stopped and let through, when the call left the DDT and
        was on it again.
    """

    samples: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    lost_up: list[float] = field(default_factory=list)
    lost_down: list[float] = field(default_factory=list)
    blocked: float = 0.0
    opened: float = 0.0
    fell: float = 0.0
    back: float = 0.0


def record(lasts: float = 6.0, rtt: float = 0.040) -> Trace:
    """Place the call.

    Args:
        lasts: seconds without UDP. rtt: of the WAN, seconds.

    Raises:
        PlatformError: no lab, or no server in it.
        TimeoutError: the call did not do what it should.
    """
    with tempfile.TemporaryDirectory(prefix="opentsm-block-") as name, Lab(LabSpec()) as lab:
        folder = Path(name)
        lab.wan().set(delay=rtt / 2)
        make_credentials(folder, lab["server"])
        server = ServerProcess(lab["server"], folder)
        server.start()
        try:
            return lab["phone1"].call(asyncio.run, _call(lab, folder, lasts))
        finally:
            server.stop()


async def _call(lab: Lab, folder: Path, lasts: float) -> Trace:
    core = lab["core"]
    at_phone, at_core = MediaReceiver(), MediaReceiver()
    far = MediaSocket(core.udp(port=4000), at_core)
    up, down = MediaFlow(1), MediaFlow(2)
    at_core.expect(up)
    at_phone.expect(down)
    trace = Trace()
    url = f"tls://{lab['server'].ipv4}:443"
    async with connect(url, username=USER, password=PASSWORD, ca=folder / "ca.pem") as tunnel:
        voice, _ = await tunnel.create_datagram_endpoint(
            lambda: at_phone, remote_addr=(core.ipv4, 4000), mode=PathMode.DATAGRAM
        )
        senders = [MediaSender(voice, up), MediaSender(far, down, voice.get_extra_info("sockname"))]
        talking = spawn("media", send_all(senders))
        try:
            await until(lambda: voice.path is TunnelPath.DATAGRAM, what="the call on the DDT")
            await asyncio.sleep(1.5)  # what goes by both at first is over
            began = time.monotonic()
            sampling = spawn("samples", _sample(tunnel, trace, began))
            await asyncio.sleep(BEFORE)
            trace.blocked = time.monotonic() - began
            await asyncio.to_thread(lab.firewall().apply, udp_blocked())
            await until(lambda: voice.path is TunnelPath.STREAM, what="the fall-back")
            trace.fell = time.monotonic() - began
            await asyncio.sleep(max(0.0, trace.blocked + lasts - (time.monotonic() - began)))
            trace.opened = time.monotonic() - began
            await asyncio.to_thread(lab.firewall().apply, everything())
            await until(lambda: voice.path is TunnelPath.DATAGRAM, within=30, what="the return")
            trace.back = time.monotonic() - began
            await asyncio.sleep(BEFORE)
            await cancel(sampling)
        finally:
            await cancel(talking)
            await asyncio.sleep(0.3)  # what is on its way
            far.close()
    end = trace.samples[-1][0]
    trace.lost_up = [at - began for at in up.losses() if 0 <= at - began < end]
    trace.lost_down = [at - began for at in down.losses() if 0 <= at - began < end]
    return trace


async def _sample(tunnel: Tunnel, trace: Trace, began: float) -> None:
    """Counters of whole tunnels; one that is replaced begins at zero again."""
    total, last = [0, 0, 0, 0], [0, 0, 0, 0]
    number = 0
    while True:
        numbers = tunnel.statistics()
        now = [
            numbers.stream.tx_packets,
            numbers.datagram.tx_packets,
            numbers.stream.rx_packets,
            numbers.datagram.rx_packets,
        ]
        grown = [new - old if new >= old else new for new, old in zip(now, last, strict=True)]
        total = [sum_ + more for sum_, more in zip(total, grown, strict=True)]
        last = now
        trace.samples.append((time.monotonic() - began, *total))  # type: ignore[arg-type]  # four of them
        number += 1
        await asyncio.sleep(max(0.0, began + number * SLICE - time.monotonic()))


def draw(trace: Trace) -> str:
    """The picture as SVG."""
    end = trace.samples[-1][0]
    height = _TOP + 2 * (_PANEL + 34) + 34

    def x(at: float) -> float:
        return _LEFT + at / end * (_WIDTH - _LEFT - 16)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>Packets of a call by path, around a block of UDP and its end</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _legend(),
    ]
    for index, (title, stream, datagram, lost) in enumerate(
        (
            ("client sends, packets per 0.1 s", 1, 2, trace.lost_up),
            ("client receives (first copies)", 3, 4, trace.lost_down),
        )
    ):
        top = _TOP + index * (_PANEL + 34)
        parts.append(_panel(trace, x, top, title, (stream, datagram), lost))
    bottom = _TOP + 2 * (_PANEL + 34) - 14
    seconds = range(int(end) + 1)
    parts += [f'<text x="{x(s):.0f}" y="{bottom + 8}" text-anchor="middle">{s} s</text>' for s in seconds]
    alone, back = trace.fell - trace.blocked, trace.back - trace.opened
    sentence = (
        f"lost: {len(trace.lost_up)} packets up, {len(trace.lost_down)} down; on the stream alone after "
        f"{alone:.2f} s, back {back:.2f} s after the end of the block"
    )
    parts.append(f'<text x="{_LEFT}" y="{bottom + 30}" font-weight="bold">{sentence}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    trace: Trace,
    x: Callable[[float], float],
    top: int,
    title: str,
    columns: tuple[int, int],
    lost: list[float],
) -> str:
    stream, datagram = columns
    floor = top + _PANEL
    scale = _PANEL / _MOST
    parts = [
        f'<rect x="{x(trace.blocked):.1f}" y="{top}" width="{x(trace.opened) - x(trace.blocked):.1f}" '
        f'height="{_PANEL}" fill="#f3d9dc"/>',
        f'<text x="{(x(trace.blocked) + x(trace.opened)) / 2:.0f}" y="{top + 14}" text-anchor="middle" '
        'fill="#8a1c2b">UDP blocked</text>',
        f'<text x="{_LEFT}" y="{top - 6}">{title}</text>',
        f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - 16}" y2="{floor}" stroke="#444"/>',
    ]
    parts += [
        f'<text x="{_LEFT - 8}" y="{floor - packets * scale + 4:.0f}" text-anchor="end">{packets}</text>'
        for packets in (0, 5, 10)
    ]
    for before, after in zip(trace.samples, trace.samples[1:], strict=False):
        wide = max(1.0, x(after[0]) - x(before[0]) - 0.6)
        under = 0.0
        for path, column in (("datagram", datagram), ("stream", stream)):
            # As a rate: a sample that was taken late has seen more packets, over more time.
            rate = (after[column] - before[column]) * SLICE / max(after[0] - before[0], 1e-3)
            tall = min(rate, _MOST - under / scale) * scale
            if tall > 0:
                parts.append(
                    f'<rect x="{x(before[0]):.1f}" y="{floor - under - tall:.1f}" width="{wide:.1f}" '
                    f'height="{tall:.1f}" fill="{_COLOURS[path]}"/>'
                )
            under += tall
    parts += [
        f'<line x1="{x(at):.1f}" y1="{floor + 3}" x2="{x(at):.1f}" y2="{floor + 12}" '
        f'stroke="{_COLOURS["lost"]}" stroke-width="1.6"/>'
        for at in lost
    ]
    return "\n".join(parts)


def _legend() -> str:
    words = {"datagram": "by the datagram tunnel", "stream": "by the stream", "lost": "never arrived"}
    parts, at = [], _LEFT
    for name, text in words.items():
        parts.append(f'<rect x="{at}" y="12" width="12" height="12" fill="{_COLOURS[name]}"/>')
        parts.append(f'<text x="{at + 18}" y="22">{text}</text>')
        at += 190
    return "\n".join(parts)
