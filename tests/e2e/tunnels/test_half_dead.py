"""Boxes that let a TCP connection be made and deliver nothing: other ways are tried, silence is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from opentsm.client.notifications import Notification, TunnelLost, TunnelResumed
from opentsm.client.tunnel import connect
from opentsm.lab.firewall import everything, swallowing
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until
from tests.e2e.tunnels.harness import ServerProcess, in_host, login
from tests.e2e.tunnels.talking import calls, more

pytestmark = pytest.mark.netns

OTHER_WAY_WITHIN = 4.0
"""Seconds for a first tunnel past a half-dead address: the stagger of RFC 8305, a handshake, and room for a
busy machine; waiting for the dead one would take CONNECT_TIMEOUT, which is 10."""

SIGNALLING_BACK_WITHIN = 6.0
"""Seconds from the moment an established stream begins to swallow during a call until there is another one:
three of silence, up to one for the next probe, the new connection."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec()) as lab:
        lab.wan().set(delay=0.020)
        yield lab


@pytest.mark.parametrize("dead", ["ipv4", "ipv6"])
def test_an_address_that_accepts_and_delivers_nothing_delays_the_other_family_little(
    lab: Lab, server: ServerProcess, dead: str
) -> None:
    half_dead = server.host.ipv4 if dead == "ipv4" else server.host.ipv6
    lab.firewall().apply(swallowing(server=half_dead))
    ways = [login(server, ipv6=ipv6)["servers"] for ipv6 in (dead == "ipv6", dead != "ipv6")]

    async def scenario() -> None:
        begun = time.monotonic()
        async with connect(**{**login(server), "servers": ways}) as tunnel:
            took = time.monotonic() - begun
            print(f"up after {took * 1000:.0f} ms, past {half_dead}")
            assert tunnel.remote_address is not None
            assert tunnel.remote_address[0] != half_dead
            assert took <= OTHER_WAY_WITHIN
        assert lab.firewall().counters()["block-tcp-payload-up"].packets > 0, "the dead way was tried first"

    in_host(lab["phone1"], scenario)


def test_a_stream_that_begins_to_swallow_in_mid_call_is_replaced_and_media_does_not_notice(
    lab: Lab, server: ServerProcess
) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], 1) as running:
            call = running[0]
            tunnel, told = call.tunnel, list[tuple[float, Notification]]()
            tunnel.on_notification(
                lambda one, _: told.append((time.monotonic(), one)), kinds=[TunnelLost, TunnelResumed]
            )
            assert tunnel.local_address is not None
            before = tunnel.inner_addresses
            lab.firewall().apply(swallowing(client_port=tunnel.local_address[1]))
            begun = time.monotonic()
            await until(lambda: len(told) == 2, within=30, what="another stream")
            back = told[1][0] - begun
            print(f"noticed after {told[0][0] - begun:.2f} s, signalling back after {back:.2f} s")
            assert isinstance(told[1][1], TunnelResumed)
            assert back <= SIGNALLING_BACK_WITHIN
            assert tunnel.inner_addresses == before
            await more(running, 50)
            await call.stop_talking()
            await until(lambda: all(len(f.numbers) + f.report().lost >= len(f.sent) for f in call.flows))
        for flow in call.flows:
            assert (flow.report().lost, flow.report().duplicated) == (0, 0)

    in_host(lab["phone1"], scenario)


def test_a_server_behind_a_box_that_swallows_everything_is_reached_as_soon_as_it_delivers_again(
    lab: Lab, server: ServerProcess
) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], 1) as running:
            call = running[0]
            before = call.tunnel.inner_addresses
            await asyncio.to_thread(lab.firewall().apply, swallowing())
            await until(lambda: call.tunnel.state != "active", within=30, what="the silence to be noticed")
            await more(running, 100)
            await asyncio.to_thread(lab.firewall().apply, everything())
            healed = time.monotonic()
            await until(lambda: call.tunnel.state == "active", within=30, what="the client to be back")
            print(f"back after {time.monotonic() - healed:.2f} s")
            await more(running, 50)
            assert call.tunnel.inner_addresses == before

    in_host(lab["phone1"], scenario)
