"""A phone that walks out of its network in mid-call keeps its addresses, its sockets and its call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from opentsm.client.endpoint import TunnelDatagramTransport
from opentsm.client.notifications import TunnelResumed
from opentsm.client.tunnel import Tunnel, connect
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, in_host, login

pytestmark = pytest.mark.netns

PACKET_TIME = 0.020
ROUND_TRIPS = 4
AT_MOST = 0.300
"""A change of network costs at most four round trips and this many seconds of media, per direction."""

OVERTAKING = 1
"""Packets per direction that a move beside a network that works may cost: the server's first packet on the
new stream may overtake the answer that tells the client of it."""


@pytest.fixture(params=[0.040, 0.120], ids=["40ms", "120ms"])
def round_trip(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture
def lab(round_trip: float) -> Iterator[Lab]:
    with Lab(LabSpec(sites=2)) as lab:
        for site in (1, 2):
            lab.wan(site).set(delay=round_trip / 2)
        lab.second_uplink(1, 2)
        yield lab


@dataclass
class Call:
    """Media both ways between a phone in the tunnel and somebody behind the server."""

    tunnel: Tunnel
    voice: TunnelDatagramTransport
    up: MediaFlow
    down: MediaFlow

    async def goes_on(self, packets: int = 50) -> None:
        marks = len(self.up.numbers) + packets, len(self.down.numbers) + packets
        await until(
            lambda: len(self.up.numbers) >= marks[0] and len(self.down.numbers) >= marks[1],
            within=30,
            what="the call to go on",
        )


@asynccontextmanager
async def a_call(lab: Lab, server: ServerProcess, mode: PathMode) -> AsyncIterator[Call]:
    core = lab["core"]
    at_phone, at_core = MediaReceiver(), MediaReceiver()
    far = MediaSocket(core.udp(port=4000), at_core)
    up, down = MediaFlow(1), MediaFlow(2)
    at_core.expect(up)
    at_phone.expect(down)
    async with connect(**login(server)) as tunnel:
        voice, _ = await tunnel.create_datagram_endpoint(
            lambda: at_phone, remote_addr=(core.ipv4, 4000), mode=mode
        )
        if mode is PathMode.DATAGRAM:
            await tunnel.wait_ddt_enabled(voice)
        senders = [MediaSender(voice, up), MediaSender(far, down, voice.get_extra_info("sockname"))]
        talking = spawn("media", send_all(senders, seconds=80))
        call = Call(tunnel, voice, up, down)
        await call.goes_on(100)
        yield call
        await cancel(talking)
        await until(lambda: len(up.numbers) + up.report().lost >= len(up.sent))
    far.close()


async def moved(call: Call, change: Callable[[], Awaitable[object]]) -> None:
    """The network changes; wait until everything is as it was, and the tunnel in the new place."""
    tunnel, resumed = call.tunnel, list[object]()
    before = tunnel.inner_addresses, call.voice.get_extra_info("sockname")
    listening = tunnel.on_notification(lambda told, _: resumed.append(told), kinds=[TunnelResumed])
    await change()
    await until(lambda: resumed, within=30, what="the tunnel to be resumed")
    listening.cancel()
    await call.goes_on()
    assert (tunnel.inner_addresses, call.voice.get_extra_info("sockname")) == before
    assert tunnel.state == "active"


def check(call: Call, limit: float) -> None:
    for flow in (call.up, call.down):
        report = flow.report()
        # Silence as a listener has it, without the pauses of a sender that the machine held up.
        silence = max(report.longest_burst * PACKET_TIME, report.delay_max - report.delay_min)
        print(f"lost {report.lost}, silent {silence * 1000:.0f} ms, at most {limit * 1000:.0f} ms")
        assert report.duplicated == 0, "a copy reached the application"
        assert report.lost * PACKET_TIME <= limit
        assert silence <= limit


@pytest.mark.parametrize("mode", [PathMode.DATAGRAM, PathMode.STREAM], ids=["ddt", "stream"])
def test_a_network_that_is_gone_costs_four_round_trips_at_most(
    lab: Lab, server: ServerProcess, round_trip: float, mode: PathMode
) -> None:
    async def scenario() -> None:
        async with a_call(lab, server, mode) as call:
            outer = call.tunnel.local_address
            await moved(call, lambda: asyncio.to_thread(lab["phone1"].ip, "link", "set", "eth0", "down"))
            assert call.tunnel.local_address != outer
            if mode is PathMode.DATAGRAM:
                await until(lambda: call.voice.path is Path.DATAGRAM, what="the DDT in the new network")
                await call.goes_on()
        check(call, ROUND_TRIPS * round_trip + AT_MOST)

    in_host(lab["phone1"], scenario)


@pytest.mark.parametrize("mode", [PathMode.DATAGRAM, PathMode.STREAM], ids=["ddt", "stream"])
@pytest.mark.parametrize("works", [True, False], ids=["old-works", "old-dead"])
def test_a_better_network_beside_one_that_works_costs_a_packet_at_most(
    lab: Lab, server: ServerProcess, round_trip: float, mode: PathMode, works: bool
) -> None:
    async def change() -> None:
        await asyncio.to_thread(lab.prefer_second_uplink, 1, keep_first=works)

    async def scenario() -> None:
        async with a_call(lab, server, mode) as call:
            outer = call.tunnel.local_address
            await moved(call, change)
            assert call.tunnel.local_address != outer
            if mode is PathMode.DATAGRAM:
                await until(lambda: call.voice.path is Path.DATAGRAM, what="the DDT in the new network")
                await call.goes_on()
        check(call, ROUND_TRIPS * round_trip + AT_MOST)
        assert not works or max(call.up.report().lost, call.down.report().lost) <= OVERTAKING

    in_host(lab["phone1"], scenario)


@pytest.mark.parametrize("mode", [PathMode.DATAGRAM, PathMode.STREAM], ids=["ddt", "stream"])
def test_a_nat_that_forgets_its_bindings_costs_four_round_trips_at_most(
    lab: Lab, server: ServerProcess, round_trip: float, mode: PathMode
) -> None:
    async def scenario() -> None:
        async with a_call(lab, server, mode) as call:
            await moved(call, lambda: asyncio.to_thread(lab.firewall().rebind))
            if mode is PathMode.DATAGRAM:
                await until(lambda: call.voice.path is Path.DATAGRAM, within=40, what="the DDT again")
                await call.goes_on()
        check(call, ROUND_TRIPS * round_trip + AT_MOST)

    in_host(lab["phone1"], scenario)
