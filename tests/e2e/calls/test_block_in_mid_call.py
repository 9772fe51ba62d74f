"""UDP dies under a running call and comes back: what the two parties hear, by PESQ (ITU-T P.862)."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from opentsm.client.phone.call import Call, CallSettings
from opentsm.client.phone.g711 import RATE
from opentsm.client.phone.speech import speech
from opentsm.lab.firewall import everything, udp_blocked
from opentsm.lab.hearing import aligned, pesq, windows
from opentsm.lab.serving import ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until
from opentsm.types import Path as TunnelPath
from opentsm.types import PathMode
from tests.e2e.calls.test_two_phones import Bob, a_phone, heard_by
from tests.e2e.interop.world import require_pesq
from tests.e2e.tunnels.harness import in_host

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

SECONDS: Final = 30.0
"""Speech of each party: ten seconds before the block, ten around it, ten after its end."""

WORST_PESQ: Final = 2.5
"""Of the worst ten seconds. An undisturbed call has some 4.0 (G.711's own limit); 2.8 was seen on a machine
so busy that packets came late by themselves. How much a lost syllable costs depends on the syllable."""

REACH: Final = 2.0
"""Seconds that a recording may be shifted: it begins with the first packet heard."""


def settings() -> CallSettings:
    return CallSettings(samples=speech(SECONDS))


class Answerer(Bob):
    """Bob with as much to say."""

    async def live(self) -> Call:
        self._loop = asyncio.get_running_loop()
        async with a_phone(self._server, "bob") as phone:
            await phone.register()
            self.ready.set()
            self.call = await phone.answer(await phone.next_call(), settings())
            self.call.set_mode(PathMode.DATAGRAM)
            await self.call.ended()
            return self.call


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(phones=2)) as lab:
        lab.wan().set(delay=0.020)
        yield lab


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[ServerProcess]:
    make_credentials(tmp_path, lab["server"], ("alice", "bob"))
    server = ServerProcess(lab["server"], tmp_path, Shape(sbc=True))
    server.start()
    yield server
    server.stop()


async def call_bob(lab: Lab, server: ServerProcess, bob: Bob) -> Call:
    async with a_phone(server, "alice") as phone:
        await phone.register()
        assert await asyncio.to_thread(bob.ready.wait, 30)
        call = await phone.call("bob", settings())
        await call.answered()
        call.set_mode(PathMode.DATAGRAM)
        await until(lambda: heard_by(call, TunnelPath.DATAGRAM) > 450, within=40, what="the DDT")
        await asyncio.to_thread(lab.firewall().apply, udp_blocked())
        by_stream = heard_by(call, TunnelPath.STREAM)
        await until(
            lambda: heard_by(call, TunnelPath.STREAM) > by_stream + 250, within=20, what="the fall-back"
        )
        await asyncio.to_thread(lab.firewall().apply, everything())
        by_datagram = heard_by(call, TunnelPath.DATAGRAM)
        await until(
            lambda: heard_by(call, TunnelPath.DATAGRAM) > by_datagram + 200, within=20, what="the return"
        )
        await until(lambda: len(call.media.sent) >= 50 * SECONDS, within=60, what="all that there is to say")
        await call.hang_up()
        return call


def scores(heard: array[int]) -> list[float]:
    """PESQ of stretches of about ten seconds."""
    played = speech(SECONDS)
    found = []
    for begin, end in windows(RATE, len(played) - 2 * RATE):
        reference = played[begin:end]
        found.append(pesq(reference, aligned(reference, heard, begin, REACH)) or 0.0)
    return found


def test_a_call_through_a_block_of_udp_is_understood_and_goes_on(lab: Lab, server: ServerProcess) -> None:
    require_pesq()
    bob = Answerer(server)
    with ThreadPoolExecutor(1) as threads:
        bobs_end = threads.submit(in_host, lab["phone2"], bob.live)
        alice = in_host(lab["phone1"], lambda: call_bob(lab, server, bob))
        his = bobs_end.result(30)
    for name, call in (("alice", alice), ("bob", his)):
        worst = min(scores(call.recording))
        lost = call.media.reception.lost if call.media.reception else None
        print(f"{name} hears PESQ {worst:.2f} at worst, {lost} packets lost")
        assert worst >= WORST_PESQ
