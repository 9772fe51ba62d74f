"""A stream collapses in mid-call: media stops loading it, and comes back by itself."""

from __future__ import annotations

import asyncio

import pytest

from opentsm.client.notifications import BreakerMoved, Notification
from opentsm.client.tunnel import connect
from opentsm.lab.firewall import everything, one_way
from opentsm.lab.topology import Lab
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn
from opentsm.types import Path
from tests.e2e.tunnels.harness import ServerProcess, in_host, login, start_echo

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


def test_media_on_a_stream_that_stands_still_is_held_back_and_flows_again(
    lab: Lab, server: ServerProcess
) -> None:
    echo = start_echo(lab)

    async def scenario() -> None:
        async with connect(**login(server)) as tunnel:
            moved: list[Notification] = []
            tunnel.on_notification(lambda told, _: moved.append(told), kinds=[BreakerMoved])
            receiver, flow = MediaReceiver(), MediaFlow(1)
            receiver.expect(flow)
            voice, _ = await tunnel.create_datagram_endpoint(lambda: receiver, remote_addr=echo)
            talking = spawn("media", send_all([MediaSender(voice, flow)], seconds=150))
            await receiver.received(50)
            await asyncio.to_thread(lab.firewall().apply, one_way("up", "tcp"))
            await until(lambda: moved, within=30, what="the breaker to open")
            assert isinstance(moved[0], BreakerMoved)
            assert (moved[0].path, moved[0].decision.open) == (Path.STREAM, True)
            held = tunnel.plane.core.counters()["drop_media_breaker"]
            await until(lambda: tunnel.plane.core.counters()["drop_media_breaker"] > held + 25)
            await asyncio.to_thread(lab.firewall().apply, everything())
            before = len(flow.numbers)
            await until(lambda: not moved[-1].decision.open, within=90, what="the breaker to close")  # type: ignore[attr-defined]
            await receiver.received(before + 100, within=30)
            await cancel(talking)
            assert flow.report().duplicated == 0

    in_host(lab["phone1"], scenario, within=170)
