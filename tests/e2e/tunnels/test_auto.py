"""Mode auto on real networks: each direction goes where it is better off, and everybody can read why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from opentsm.client.notifications import PathSwitched
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, in_host
from tests.e2e.tunnels.talking import Call, calls, more

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

CALLS = 2


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec()) as lab:
        lab.wan().set(delay=0.060)
        yield lab


def switches(running: list[Call]) -> list[list[PathSwitched]]:
    """What each call is told from now on."""
    told: list[list[PathSwitched]] = []
    for call in running:
        mine: list[PathSwitched] = []
        call.tunnel.on_notification(_keep, mine, kinds=(PathSwitched,))
        told.append(mine)
    return told


def _keep(notification: object, mine: list[PathSwitched]) -> None:
    assert isinstance(notification, PathSwitched)
    mine.append(notification)


def of_server(server: ServerProcess) -> list[list[dict[str, Any]]]:
    return [tunnel["switches"] for tunnel in server.tunnels()]


def test_both_directions_leave_a_stream_that_stumbles_and_say_why(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], CALLS, PathMode.AUTO, settled=False) as running:
            told = switches(running)
            assert all(call.voice.path is Path.STREAM for call in running)
            await asyncio.to_thread(lab.wan().set, loss=0.03)
            both = {("up", Path.DATAGRAM), ("down", Path.DATAGRAM)}
            await until(
                lambda: all({(s.direction, s.path) for s in one} >= both for one in told),
                within=60,
                what="both directions of both calls on the datagram tunnel",
            )
            for one in told:
                up = next(s for s in one if s.direction == "up")
                assert up.decision is not None
                assert up.decision.stream is not None
                assert up.decision.datagram is not None
                assert up.decision.datagram.r > up.decision.stream.r
                better = [s.reason for s in one if s.path is Path.DATAGRAM]
                assert all("was clearly better [stream: R " in reason for reason in better)
            both_told = {("up", "datagram"), ("down", "datagram")}
            await until(
                lambda: all(
                    {(s["direction"], s["path"]) for s in one} >= both_told for one in of_server(server)
                ),
                what="the server to know of both directions",
            )
            log = (server.folder / "server.log").read_text()
            assert log.count("media moved") >= 2 * CALLS
            assert "was clearly better [stream: R " in log
            # The application's word is above it.
            running[0].voice.set_mode(PathMode.STREAM)
            await until(lambda: running[0].voice.path is Path.STREAM)
            await more(running, 100)
            assert running[0].voice.path is Path.STREAM

    in_host(lab["phone1"], scenario, within=150)


def test_only_the_direction_that_suffers_moves(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], CALLS, PathMode.AUTO, settled=False) as running:
            await asyncio.to_thread(lab.wan().set, "up", loss=0.04)
            await until(
                lambda: all(call.voice.path is Path.DATAGRAM for call in running),
                within=60,
                what="the uplinks on the datagram tunnel",
            )
            await more(running, 300)
            for tunnel in server.tunnels():
                (flow,) = [f for f in tunnel["flows"] if f["media"]]
                assert flow["tx_datagram"] == 0, "the downlink had no reason to move"
                assert flow["rx_datagram"] > 0

    in_host(lab["phone1"], scenario, within=150)


def test_a_bad_datagram_tunnel_is_never_used(lab: Lab, server: ServerProcess) -> None:
    lab.wan().set(delay=0.060, loss=0.005, udp_loss=0.2)

    async def scenario() -> None:
        async with calls(server, lab["core"], CALLS, PathMode.AUTO, settled=False) as running:
            await until(
                lambda: all(call.tunnel.ddt_state == "up" for call in running), within=60, what="the DDTs"
            )
            await more(running, 600, within=60)
            for tunnel in server.tunnels():
                flows = [f for f in tunnel["flows"] if f["media"]]
                by_datagram = sum(f["tx_datagram"] + f["rx_datagram"] for f in flows)
                assert by_datagram == 0, (tunnel["switches"], tunnel["judged"])

    in_host(lab["phone1"], scenario, within=150)
