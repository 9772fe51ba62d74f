"""A server that goes away and comes back: clients find it again by themselves."""

from __future__ import annotations

import asyncio
import signal

import pytest

from opentsm.client.notifications import TunnelLost, TunnelResumed
from opentsm.client.tunnel import connect
from opentsm.lab.firewall import everything, one_way
from opentsm.lab.topology import Lab
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.lab.waiting import until
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, in_host, login, start_echo

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_clients_come_back_by_themselves(lab: Lab, server: ServerProcess, how: int) -> None:
    echo = start_echo(lab)

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            lost = []
            tunnel.on_notification(lambda told, _: lost.append(told), kinds=[TunnelLost])
            await asyncio.to_thread(server.stop, how)
            await until(lambda: tunnel.state != "active", what="the client to notice")
            await asyncio.to_thread(server.start)
            await until(lambda: tunnel.state == "active", within=40, what="the client to come back")
            receiver, flow = MediaReceiver(), MediaFlow(1)
            receiver.expect(flow)
            voice, _ = await tunnel.create_datagram_endpoint(
                lambda: receiver, remote_addr=echo, mode=PathMode.DATAGRAM
            )
            await tunnel.wait_ddt_enabled(voice)
            await send_all([MediaSender(voice, flow)], count=20)
            await receiver.received(20)
            assert lost

    in_host(lab["phone1"], scenario)


def test_a_cut_stream_is_resumed_with_the_same_address_and_socket(lab: Lab, server: ServerProcess) -> None:
    echo = start_echo(lab)

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            receiver, flow = MediaReceiver(), MediaFlow(1)
            receiver.expect(flow)
            voice, _ = await tunnel.create_datagram_endpoint(lambda: receiver, remote_addr=echo)
            before = (tunnel.inner_address, voice.get_extra_info("sockname"))
            lost: list[object] = []
            tunnel.on_notification(lambda told, _: lost.append(told), kinds=[TunnelResumed])
            # The NAT forgets us: what we send arrives from another port and is answered by a reset.
            lab.firewall().rebind()
            voice.sendto(b"anybody there?")
            await until(lambda: lost, within=40, what="the stream to be resumed")
            await send_all([MediaSender(voice, flow)], count=50)
            await receiver.heard([flow], within=40)
            assert (tunnel.inner_address, voice.get_extra_info("sockname")) == before

    in_host(lab["phone1"], scenario)


def test_media_is_back_on_the_stream_when_udp_dies(lab: Lab, server: ServerProcess) -> None:
    echo = start_echo(lab)

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            receiver, flow = MediaReceiver(), MediaFlow(1)
            receiver.expect(flow)
            voice, _ = await tunnel.create_datagram_endpoint(
                lambda: receiver, remote_addr=echo, mode=PathMode.DATAGRAM
            )
            await tunnel.wait_ddt_enabled(voice)
            lab.firewall().apply(one_way("up", "udp", also_other_way=True))
            talking = asyncio.create_task(send_all([MediaSender(voice, flow)], seconds=60))
            await until(lambda: voice.path is Path.STREAM, what="the fall-back to the stream")
            mark = len(flow.numbers) + 50
            await until(lambda: len(flow.numbers) >= mark, what="media on the stream")
            lab.firewall().apply(everything())
            await until(lambda: voice.path is Path.DATAGRAM, within=40, what="the return to the DDT")
            talking.cancel()
            assert flow.report().duplicated == 0

    in_host(lab["phone1"], scenario)
