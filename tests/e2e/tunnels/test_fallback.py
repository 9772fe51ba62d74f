"""UDP dies in mid-call: what a listener loses is a syllable, not the call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from opentsm.client.tunnel import connect
from opentsm.lab.firewall import Policy, everything, one_way, udp_blocked
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, in_host, login

pytestmark = pytest.mark.netns

PACKET_TIME = 0.020
AT_MOST = 0.200
"""Seconds of media a direction may lose when UDP dies: the promise of docs/protocol.md."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec()) as lab:
        lab.wan().set(delay=0.020)
        yield lab


@pytest.mark.parametrize(
    "block",
    [udp_blocked(), one_way("up", "udp"), one_way("down", "udp"), udp_blocked(how="reject")],
    ids=["silent", "uplink-only", "downlink-only", "rejected"],
)
def test_a_block_in_mid_call_costs_a_fifth_of_a_second_at_most(
    lab: Lab, server: ServerProcess, block: Policy
) -> None:
    core = lab["core"]

    async def scenario() -> None:
        at_phone, at_core = MediaReceiver(), MediaReceiver()
        far = MediaSocket(core.udp(port=4000), at_core)
        up, down = MediaFlow(1), MediaFlow(2)
        at_core.expect(up)
        at_phone.expect(down)
        async with connect(**login(server)) as tunnel:
            voice, _ = await tunnel.create_datagram_endpoint(
                lambda: at_phone, remote_addr=(core.ipv4, 4000), mode=PathMode.DATAGRAM
            )
            await tunnel.wait_ddt_enabled(voice)
            senders = [MediaSender(voice, up), MediaSender(far, down, voice.get_extra_info("sockname"))]
            talking = spawn("media", send_all(senders, seconds=60))
            await until(lambda: min(len(up.numbers), len(down.numbers)) > 100, what="the call to run")
            await asyncio.to_thread(lab.firewall().apply, block)
            await until(lambda: voice.path is Path.STREAM, what="the fall-back")
            marks = len(up.numbers) + 50, len(down.numbers) + 50
            await until(lambda: len(up.numbers) > marks[0] and len(down.numbers) > marks[1])
            lost_in_block = up.report().lost, down.report().lost
            await asyncio.to_thread(lab.firewall().apply, everything())
            await until(lambda: voice.path is Path.DATAGRAM, within=40, what="the return")
            marks = len(up.numbers) + 50, len(down.numbers) + 50
            await until(lambda: len(up.numbers) > marks[0] and len(down.numbers) > marks[1])
            await cancel(talking)
            await until(lambda: len(up.numbers) + up.report().lost >= len(up.sent))
        far.close()
        in_flight = 5
        for flow, lost in ((up, lost_in_block[0]), (down, lost_in_block[1])):
            report = flow.report()
            assert report.duplicated == 0, "a copy reached the application"
            assert (lost - in_flight) * PACKET_TIME <= AT_MOST, f"{lost} packets lost"
            assert report.lost <= lost, "something was lost on the way back"

    in_host(lab["phone1"], scenario)
