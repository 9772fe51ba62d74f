"""Media moves between the paths in mid-call and no packet of it is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import pytest

from opentsm.client.endpoint import TunnelDatagramTransport
from opentsm.client.tunnel import Tunnel, connect
from opentsm.lab.accounting import combine
from opentsm.lab.topology import Lab
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, in_host, login, start_echo

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

FLOWS = 200
MOVES = 10


async def open_flows(
    tunnel: Tunnel, echo: tuple[str, int], receiver: MediaReceiver
) -> list[TunnelDatagramTransport]:
    transports = []
    for number in range(FLOWS):
        transport, _ = await tunnel.create_datagram_endpoint(lambda: receiver, remote_addr=echo)
        receiver.expect(MediaFlow(number))
        transports.append(transport)
    return transports


async def move(transports: list[TunnelDatagramTransport], mode: PathMode, path: Path) -> None:
    for transport in transports:
        transport.set_mode(mode)
    await until(lambda: all(t.path is path for t in transports), within=30, what=f"all flows on {path.name}")


def heard_since(flows: list[MediaFlow], marks: dict[int, int]) -> bool:
    return all(len(flow.numbers) >= marks[flow.ssrc] for flow in flows)


def test_200_flows_move_ten_times_without_a_loss_or_a_copy(lab: Lab, server: ServerProcess) -> None:
    echo = start_echo(lab)

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            receiver = MediaReceiver()
            transports = await open_flows(tunnel, echo, receiver)
            flows = [MediaFlow(number) for number in range(FLOWS)]
            for flow in flows:
                receiver.expect(flow)
            senders = [MediaSender(t, f) for t, f in zip(transports, flows, strict=True)]
            talking = spawn("media", send_all(senders, seconds=120))
            await receiver.heard(flows)
            for number in range(MOVES):
                to_datagram = number % 2 == 0
                mode, path = (
                    (PathMode.DATAGRAM, Path.DATAGRAM) if to_datagram else (PathMode.STREAM, Path.STREAM)
                )
                await move(transports, mode, path)
                # Some more packets of every flow on the new path before the next move.
                marks = {flow.ssrc: len(flow.numbers) + 10 for flow in flows}
                await until(functools.partial(heard_since, flows, marks), within=30)
            await cancel(talking)
            sent = sum(len(flow.sent) for flow in flows)
            with contextlib.suppress(TimeoutError):
                await until(lambda: sum(len(f.numbers) for f in flows) >= sent, within=10)
            statistics = tunnel.statistics()
            report = combine([flow.report() for flow in flows])
            ours, theirs = tunnel.plane.core.counters(), server.counters()
            drops = [{n: c for n, c in side.items() if c and n.startswith("drop")} for side in (ours, theirs)]
            assert (report.lost, report.duplicated) == (0, 0), f"{drops} {report}"
            assert statistics.datagram.tx_packets > 0
            assert statistics.stream.tx_packets > 0

    in_host(lab["phone1"], scenario, within=200)


def test_one_ddt_serves_all_flows_and_goes_with_the_last(lab: Lab, server: ServerProcess) -> None:
    echo = start_echo(lab)

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            receiver = MediaReceiver()
            pair = [
                (await tunnel.create_datagram_endpoint(lambda: receiver, remote_addr=echo))[0]
                for _ in range(2)
            ]
            await move(pair, PathMode.DATAGRAM, Path.DATAGRAM)
            with_both = server.tunnels()
            pair[0].close()
            await asyncio.sleep(0)
            assert tunnel.ddt_state == "up"
            pair[1].close()
            await until(lambda: tunnel.ddt_state == "absent", within=20, what="the DDT to be given up")
            assert [row["flow_count"] for row in with_both] == [2]

    in_host(lab["phone1"], scenario)
