"""Media where UDP is blocked: one stream, several with copies, several in turn; measured in one network each.

Calls through tunnels of their own, 50 packets/s each way, a WAN with delay and loss, TCP and nothing else
through the firewall. Every variant meets the same seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from opentsm.client.tunnel import Tunnel, connect
from opentsm.lab.accounting import FlowReport, combine
from opentsm.lab.firewall import udp_blocked
from opentsm.lab.impairment import Settings
from opentsm.lab.report import text_table
from opentsm.lab.serving import PASSWORD, USER, ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import PathMode, Redundancy

PLAYOUT: Final = 0.060
"""Seconds a listener's buffer waits: what comes later is late."""

SETTLE: Final = 3.0
"""Seconds for what is on its way when the calls end."""

ECHO: Final = ("10.64.0.1", 7)
"""The server's inner echo."""

VARIANTS: Final = ("off", "fan-out:2", "fan-out:3", "load-balance:2", "load-balance:4")


@dataclass(frozen=True, slots=True)
class Network:
    """The WAN of one measurement. Times in seconds, loss 0 to 1 per packet and direction."""

    rtt: float = 0.120
    loss: float = 0.02
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one variant's media, and what it cost.

    Attributes:
        up, down: all calls of one direction added up.
        bytes_per_packet: outer bytes (IP and all) in either direction for each packet of media.
    """

    variant: str
    congestion: str
    up: FlowReport
    down: FlowReport
    bytes_per_packet: float

    @property
    def in_time(self) -> tuple[float, float]:
        """Per cent that a listener with PLAYOUT hears, up and down."""
        return 100.0 * (1.0 - self.up.missed_share), 100.0 * (1.0 - self.down.missed_share)


def measure(variant: str, *, network: Network, calls: int, seconds: float, congestion: str = "") -> Outcome:
    """Run one variant in a lab of its own.

    Args:
        variant: ``off``, ``fan-out:N``, ``load-balance:N``.
        congestion: congestion control of both ends; empty: the kernel's default.
    """
    redundancy = Redundancy.parse(variant)
    wan = Settings(delay=network.rtt / 2, loss=network.loss)
    with Lab(LabSpec(seed=network.seed, wan=wan)) as lab, tempfile.TemporaryDirectory() as folder:
        make_credentials(Path(folder), lab["server"])
        shape = Shape(services=("SIP", "redundancy"), congestion=congestion)
        server = ServerProcess(lab["server"], Path(folder), shape)
        server.start()
        lab.firewall().apply(udp_blocked())
        try:
            run = _Run(lab, server, redundancy, calls, seconds, congestion)
            reports = lab["phone1"].call(asyncio.run, run.go())
        finally:
            server.stop()
        outer = sum(getattr(lab.wan().stats(), side).bytes_out for side in ("up", "down"))
    packets = sum(report.sent for report in reports)
    return Outcome(variant, congestion, *reports, outer / packets)


class _Run:
    """The calls of one measurement, inside the phone's host."""

    def __init__(
        self,
        lab: Lab,
        server: ServerProcess,
        redundancy: Redundancy,
        calls: int,
        seconds: float,
        congestion: str,
    ) -> None:
        self._core = lab["core"]
        self._server = server
        self._redundancy = redundancy
        self._calls = calls
        self._seconds = seconds
        self._options: dict[str, Any] = {
            "servers": f"tls://{server.host.ipv4}:{server.shape.port}",
            "username": USER,
            "password": PASSWORD,
            "ca": server.folder / "ca.pem",
            "redundancy": redundancy,
            "congestion_control": congestion or None,
        }

    async def go(self) -> tuple[FlowReport, FlowReport]:
        """Both directions' reports."""
        ups = [MediaFlow(2 * number) for number in range(self._calls)]
        downs = [MediaFlow(2 * number + 1) for number in range(self._calls)]
        at_phone, at_core = MediaReceiver(downs), MediaReceiver(ups)
        async with contextlib.AsyncExitStack() as stack:
            senders = []
            for number, (up, down) in enumerate(zip(ups, downs, strict=True)):
                tunnel = await stack.enter_async_context(connect(**self._options))
                port = 4000 + 2 * number
                far = MediaSocket(self._core.udp(port=port), at_core)
                stack.callback(far.close)
                voice, _ = await tunnel.create_datagram_endpoint(
                    lambda: at_phone, remote_addr=(self._core.ipv4, port)
                )
                senders.append(MediaSender(voice, up))
                senders.append(MediaSender(far, down, voice.get_extra_info("sockname")))
                await until(self._has_streams(tunnel), what=f"the streams of call {number + 1}")
            await send_all(senders, seconds=self._seconds)
            await asyncio.sleep(SETTLE)
        return tuple(combine([f.report(PLAYOUT) for f in flows]) for flows in (ups, downs))  # type: ignore[return-value]

    def _has_streams(self, tunnel: Tunnel) -> Callable[[], bool]:
        return lambda: tunnel.streams == self._redundancy.streams


@dataclass(frozen=True, slots=True)
class Start:
    """One set-up with UDP blocked from the beginning. Times in seconds.

    Attributes:
        up: from ``connect`` to a tunnel that may be used. heard: to the first media that came back.
    """

    rtt: float
    up: float
    heard: float

    @property
    def limit(self) -> float:
        """Four round trips and 50 ms: the longest that ``up`` may take."""
        return 4 * self.rtt + 0.050


def blocked_starts(rtts: Sequence[float], *, times: int = 1) -> list[Start]:
    """Set tunnels up, with media that wants the datagram tunnel at once, where no datagram passes."""
    with Lab(LabSpec()) as lab, tempfile.TemporaryDirectory() as folder:
        make_credentials(Path(folder), lab["server"])
        server = ServerProcess(lab["server"], Path(folder), Shape(services=("SIP", "DDT", "redundancy")))
        server.start()
        lab.firewall().apply(udp_blocked())
        try:
            return [_start(lab, server, rtt) for rtt in rtts for _ in range(times)]
        finally:
            server.stop()


def _start(lab: Lab, server: ServerProcess, rtt: float) -> Start:
    lab.wan().set(delay=rtt / 2)

    async def go() -> Start:
        receiver, flow = MediaReceiver(), MediaFlow(1)
        receiver.expect(flow)
        begun = time.monotonic()
        tunnel = await connect(
            f"tls://{server.host.ipv4}:{server.shape.port}",
            username=USER,
            password=PASSWORD,
            ca=server.folder / "ca.pem",
        )
        up = time.monotonic() - begun
        try:
            # The server's own echo: the way to it is the tunnel and nothing else.
            voice, _ = await tunnel.create_datagram_endpoint(
                lambda: receiver, remote_addr=ECHO, mode=PathMode.AUTO
            )
            talking = spawn("media", send_all([MediaSender(voice, flow)], seconds=30))
            await receiver.heard([flow], within=30)
            await cancel(talking)
            return Start(rtt, up, flow.arrived[0] - begun)
        finally:
            await tunnel.close()

    return lab["phone1"].call(asyncio.run, go())


def start_table(starts: Sequence[Start]) -> str:
    """For people."""
    rows = [
        tuple(f"{seconds * 1e3:.0f} ms" for seconds in (one.rtt, one.up, one.limit, one.heard))
        for one in starts
    ]
    return text_table(rows, ("round trip", "tunnel up after", "limit", "first media back after"))


def table(outcomes: Sequence[Outcome]) -> str:
    """For people: what was heard in time, and the price."""
    rows = []
    for one in outcomes:
        up, down = one.in_time
        delays = f"{one.up.delay_p95 * 1e3:.0f} / {one.down.delay_p95 * 1e3:.0f} ms"
        lost = f"{one.up.lost + one.down.lost} of {one.up.sent + one.down.sent}"
        name = f"{one.variant} ({one.congestion})" if one.congestion else one.variant
        rows.append((name, f"{up:.1f} %", f"{down:.1f} %", delays, lost, f"{one.bytes_per_packet:.0f}"))
    heads = ("streams", "in time up", "in time down", "p95 delay up / down", "lost", "outer bytes per packet")
    return text_table(rows, heads)
