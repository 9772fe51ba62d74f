"""A datagram tunnel that is merely bad is no reason to dance: bounds on switches, and on what they cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from opentsm.lab.firewall import everything, udp_blocked
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until
from opentsm.types import Path
from tests.e2e.tunnels.harness import ServerProcess, in_host
from tests.e2e.tunnels.talking import PACKET_TIME, Call, calls, lasting, more, until_all

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

CALLS = 3
PERIOD = 2.0
"""Seconds UDP works, and then does not."""

LOOKED_AT = 30.0
"""Seconds of coming and going: seven full turns."""

SWITCHES = 4
"""Of one call in that time: off and back on at once, off, and no more, for a DDT must then live for three
seconds. One more where a turn of the network and a probe fall together."""

LOST_PER_FALL = 0.200


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec()) as lab:
        lab.wan().set(delay=0.020)
        yield lab


def test_media_does_not_follow_a_udp_that_comes_and_goes(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], CALLS) as running:
            began = time.monotonic()
            while time.monotonic() < began + LOOKED_AT:
                for policy in (udp_blocked(), everything()):
                    await asyncio.to_thread(lab.firewall().apply, policy)
                    await lasting(PERIOD)
            await more(running, 50)
            ended = min(flow.sent[-10] for call in running for flow in call.flows)
            for call in running:
                falls = sum(what != "datagram" for _, what in call.switches if _ >= began)
                print(f"switches {call.switched(began)}, lost (up, down) {call.lost(began - 0.1, ended)}")
                assert call.switched(began) <= SWITCHES, call.switches
                for lost in call.lost(began - 0.1, ended):
                    assert lost * PACKET_TIME <= falls * LOST_PER_FALL, f"{lost} lost in {falls} falls"
                check_copies(call)
            await until_all(running, Path.DATAGRAM, within=40, what="the return")

    in_host(lab["phone1"], scenario, within=150)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_lossy_udp_is_lossy_and_nothing_else(lab: Lab, server: ServerProcess, seed: int) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], CALLS) as running:
            lab.wan().reseed(seed)
            began = time.monotonic()
            await asyncio.to_thread(lab.wan().set, loss=0.05)
            await more(running, 750)
            ended = min(flow.sent[-25] for call in running for flow in call.flows)
            for call in running:
                print(f"switches {call.switched(began)}, lost (up, down) {call.lost(began, ended)}")
                assert call.switched(began) == 0, call.switches
                for flow, lost in zip(call.flows, call.lost(began, ended), strict=True):
                    sent = sum(began <= at < ended for at in flow.sent)
                    assert lost < 0.08 * sent, f"{lost} of {sent} lost where the network loses one in twenty"
                check_copies(call)

    in_host(lab["phone1"], scenario, within=150)


def test_a_pause_in_speech_is_not_taken_for_a_block(lab: Lab, server: ServerProcess) -> None:
    """Neither side sends for two thirds of the time, as telephones without comfort noise do."""

    async def scenario() -> None:
        async with calls(server, lab["core"], 1) as running:
            call = running[0]
            await call.stop_talking()
            before = server.counters(), call.tunnel.plane.core.counters()
            for _ in range(20):
                await call.say(10)
                await lasting(0.4)
            after = server.counters(), call.tunnel.plane.core.counters()
            await until(lambda: all(len(f.numbers) >= len(f.sent) for f in call.flows), what="all packets")
            for ours, then in zip(after, before, strict=True):
                doubled = ours["media_doubled"] - then["media_doubled"]
                alerts = ours["path_alerts_sent"] - then["path_alerts_sent"]
                print(f"doubled {doubled} of 200, {alerts} alerts")
                assert doubled <= 20, "pauses make media go twice"
            check_copies(call)

    in_host(lab["phone1"], scenario)


def check_copies(call: Call) -> None:
    assert [flow.report().duplicated for flow in call.flows] == [0, 0], "a copy reached the application"


def test_a_path_that_swallows_datagrams_of_medias_size_is_not_used(lab: Lab, server: ServerProcess) -> None:
    """Handshakes and probes get through, a packet of speech does not: only the listener would notice."""
    lab.wan().set(udp_mtu=200)

    async def scenario() -> None:
        async with calls(server, lab["core"], 1, settled=False) as running:
            call = running[0]
            await until(lambda: call.tunnel.ddt_state == "waiting", within=40, what="the DDT to be given up")
            await more(running, 100)
            ended = min(flow.sent[-10] for flow in call.flows)
            assert call.lost(0.0, ended) == (0, 0)
            assert call.voice.path is Path.STREAM
            await asyncio.to_thread(lab.wan().set, udp_mtu=None)
            await until_all(running, Path.DATAGRAM, within=40, what="the DDT on a path that has been mended")

    in_host(lab["phone1"], scenario, within=150)
