"""``opentsm lab demo``: one call through a bad network, measured.

A phone behind a NAT and a firewall that lets only the server's port 443 through; a WAN with 120 ms round trip
and 2 % loss each way; a TSM server; somebody to talk to behind it. The same voice (G.711, 50 packets a
second, both ways) goes on the stream first, moves to the datagram tunnel in mid-call, loses UDP without a
word from anybody, and gets it back. Everything printed is measured in this run.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from opentsm.client.endpoint import TunnelDatagramTransport
from opentsm.client.tunnel import Tunnel, connect
from opentsm.engine.quality import mos, r_factor
from opentsm.lab.accounting import FlowReport
from opentsm.lab.capture import Capture
from opentsm.lab.firewall import tcp_443_only, tcp_udp_443
from opentsm.lab.report import Event, PathSeries, Section, html_report, text_table
from opentsm.lab.serving import PASSWORD, USER, ServerProcess, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import DatagramSink, MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Path as TunnelPath
from opentsm.types import PathMode

ROUND_TRIP: Final = 0.120
LOSS: Final = 0.02
PLAYOUT: Final = 0.060
"""A listener's play-out buffer in seconds: what comes later than this after the fastest packet is useless."""

TALK_PORT: Final = 4000

Say = Callable[[str], None]
Meanwhile = Callable[[], Awaitable[None]]


@dataclass
class Phase:
    """One stretch of the call and what was measured in it."""

    title: str
    mark: str
    up: MediaFlow
    down: MediaFlow
    paths: list[TunnelPath] = field(default_factory=list)

    def reports(self) -> dict[str, FlowReport]:
        return {"to the core": self.up.report(PLAYOUT), "to the phone": self.down.report(PLAYOUT)}


class Tagged:
    """A transport that remembers by which tunnel each packet left."""

    def __init__(self, transport: TunnelDatagramTransport) -> None:
        self._transport = transport
        self.paths: list[TunnelPath] = []

    def sendto(self, data: bytes, addr: tuple[str, int] | None = None, /) -> None:
        self.paths.append(self._transport.path)
        self._transport.sendto(data, addr)


@dataclass
class Call:
    """Both ends of the voice, in this process; the network between them is the lab's."""

    tunnel: Tunnel
    voice: TunnelDatagramTransport
    at_phone: MediaReceiver
    at_core: MediaReceiver
    core: DatagramSink
    phone: tuple[str, int]
    phases: list[Phase] = field(default_factory=list)

    async def talk(self, title: str, mark: str, seconds: float, meanwhile: Meanwhile | None = None) -> None:
        """Talk both ways for a while, at least until ``meanwhile`` is over: nobody stops talking for us."""
        number = 2 * len(self.phases) + 1
        phase = Phase(title, mark, MediaFlow(number), MediaFlow(number + 1))
        self.phases.append(phase)
        self.at_core.expect(phase.up)
        self.at_phone.expect(phase.down)
        tagged = Tagged(self.voice)
        phase.paths = tagged.paths
        senders = [MediaSender(tagged, phase.up), MediaSender(self.core, phase.down, self.phone)]
        talking = spawn("demo-voice", send_all(senders))
        try:
            if meanwhile is not None:
                await meanwhile()
            await until(lambda: len(phase.up.sent) >= seconds * phase.up.rate, within=seconds + 60)
        finally:
            await cancel(talking)


@asynccontextmanager
async def a_call(lab: Lab, server: ServerProcess) -> AsyncIterator[Call]:
    """A tunnel from the phone, and a media socket at each end of it."""
    core = lab["core"]
    arguments = {"username": USER, "password": PASSWORD, "ca": server.folder / "ca.pem", "families": "ipv4"}
    async with connect(f"tls://{server.host.ipv4}:443", **arguments) as tunnel:  # type: ignore[arg-type]
        at_phone, at_core = MediaReceiver(), MediaReceiver()
        far = MediaSocket(core.udp(port=TALK_PORT), at_core)
        voice, _ = await tunnel.create_datagram_endpoint(
            lambda: at_phone, remote_addr=(core.ipv4, TALK_PORT), mode=PathMode.STREAM
        )
        try:
            yield Call(tunnel, voice, at_phone, at_core, far, voice.get_extra_info("sockname"))
        finally:
            far.close()


async def play(lab: Lab, server: ServerProcess, say: Say, seconds: float) -> list[Phase]:
    """The whole story. Returns its phases."""
    firewall, address = lab.firewall(), lab["server"].ipv4
    async with a_call(lab, server) as call:
        inner = call.tunnel.inner_address
        say(f"tunnel up: inner address {inner}, seen by the server as {call.tunnel.observed_address}")
        await call.talk("stream only", "on the stream", seconds)

        async def move() -> None:
            say(f"{seconds:g} s on the TLS stream done; asking for the datagram tunnel in mid-call")
            call.voice.set_mode(PathMode.DATAGRAM)
            await call.tunnel.wait_ddt_enabled(call.voice)
            say(f"media is on the datagram tunnel: DTLS, same port 443, same inner address {inner}")

        async def block() -> None:
            say("the firewall stops passing UDP, silently")
            await asyncio.to_thread(firewall.apply, tcp_443_only(address))
            await until(lambda: call.voice.path is TunnelPath.STREAM, what="the fall-back")
            say("media is back on the stream by itself")

        async def unblock() -> None:
            await asyncio.to_thread(firewall.apply, tcp_udp_443(address))
            await until(
                lambda: call.voice.path is TunnelPath.DATAGRAM, within=60, what="the return of the DDT"
            )
            say("UDP passes again, and media has returned to the datagram tunnel by itself")

        await call.talk("moved to datagram", "DDT asked for", seconds, move)
        await call.talk("UDP blocked", "UDP blocked", seconds / 2, block)
        await call.talk("UDP back", "UDP open again", seconds / 2, unblock)
        # What is on its way when the last word is spoken still counts.
        await asyncio.sleep(4 * ROUND_TRIP)
        return call.phases


def table(phases: list[Phase]) -> str:
    """What a listener had of each phase."""
    rows = [
        (
            phase.title,
            direction,
            report.sent,
            f"{report.loss_share * 100:.1f}",
            f"{report.missed_share * 100:.1f}",
            f"{report.delay_p50 * 1e3:.0f}",
            f"{report.delay_p95 * 1e3:.0f}",
            f"{listener_mos(report):.2f}",
        )
        for phase in phases
        for direction, report in phase.reports().items()
    ]
    columns = ("phase", "direction", "packets", "lost %", "lost+late %", "p50 ms", "p95 ms", "MOS")
    return text_table(rows, columns)


def listener_mos(report: FlowReport) -> float:
    """E-model score (ITU-T G.107) of one direction, heard through the play-out buffer."""
    mouth_to_ear = (report.delay_min + PLAYOUT) * 1e3
    return mos(r_factor(mouth_to_ear, report.missed_share * 100))


def page(phases: list[Phase]) -> str:
    """The report as one HTML file: what went where, when, and how late."""
    marks = [Event(phase.up.sent[0], phase.mark) for phase in phases if phase.up.sent]
    start = marks[0].time if marks else 0.0
    marks = [Event(mark.time - start, mark.label) for mark in marks]
    flows = {f"{p.title}, {name}": report for p in phases for name, report in p.reports().items()}
    up = Section("Voice from the phone, by the tunnel it left in", _by_path(phases, start), marks, flows)
    down = PathSeries(
        "to the phone",
        [(when - start, delay) for p in phases for when, delay in p.down.delays()],
        [when - start for p in phases for when in p.down.losses()],
    )
    return html_report(
        "OpenTSM: a call through a bad network", [up, Section("Voice to the phone", [down], marks)]
    )


def _by_path(phases: list[Phase], start: float) -> list[PathSeries]:
    names = {TunnelPath.STREAM: "stream (TLS/TCP 443)", TunnelPath.DATAGRAM: "datagram tunnel (DTLS/UDP 443)"}
    series = []
    for path, name in names.items():
        delays, losses = [], []
        for phase in phases:
            went = dict(zip(phase.up.sent, phase.paths, strict=False))
            delays += [(when - start, delay) for when, delay in phase.up.delays() if went.get(when) is path]
            losses += [when - start for when in phase.up.losses() if went.get(when) is path]
        series.append(PathSeries(name, delays, losses))
    return series


def outer_summary(wire: Capture) -> str:
    """What an observer outside the firewall saw: the proof that it was one port."""
    counts: dict[str, int] = {}
    for packet in wire.packets:
        port = 443 if 443 in (packet.source_port, packet.destination_port) else "other"
        name = f"{packet.protocol.upper()}/{port}" if packet.protocol in ("tcp", "udp") else packet.protocol
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} packets {name}" for name, count in sorted(counts.items()))


def run(say: Say, report: Path, *, seconds: float = 12.0, seed: int = 7) -> str:
    """Make the lab, play, write the report. Returns the table.

    Args:
        say: told what happens, line by line.
        report: the HTML file to write.
        seconds: length of the first two phases; the others take half as long.
        seed: of the network's losses.

    Raises:
        PlatformError: no lab can be made here; the message says what to do.
    """
    with tempfile.TemporaryDirectory(prefix="opentsm-demo-") as folder, Lab(LabSpec(seed=seed)) as lab:
        say("lab up: phone - firewall (NAT, only port 443) - WAN - server - core")
        lab.wan().set(delay=ROUND_TRIP / 2, loss=LOSS)
        lab.firewall().apply(tcp_udp_443(lab["server"].ipv4))
        make_credentials(Path(folder), lab["server"])
        server = ServerProcess(lab["server"], Path(folder))
        server.start()
        say(
            f"TSM server listens on {lab['server'].ipv4}:443; "
            f"WAN: {ROUND_TRIP * 1e3:.0f} ms RTT, {LOSS:.0%} loss each way"
        )
        with lab["firewall1"].capture("wan0") as wire:
            phases = lab["phone1"].call(asyncio.run, play(lab, server, say, seconds))
        server.stop()
        say(f"outside the firewall: {outer_summary(wire)}")
        report.write_text(page(phases))
        return table(phases)
