"""A tunnelled phone and SIPp on the server's own network call each other, by sockets of the SBC there and by
the kernel's routing, over UDP and over TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from opentsm.client.phone.call import Call
from opentsm.lab.serving import ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until, until_now
from tests.e2e.calls.test_two_phones import a_phone, settings
from tests.e2e.interop.programs import require
from tests.e2e.interop.sipp import SECONDS, Sipp
from tests.e2e.tunnels.harness import in_host

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

SERVER, CORE = "10.200.1.1", "10.200.1.2"
INNER = "10.64.0.2"
HEARD = 100
"""Packets that make two seconds of speech."""

TRUNK = """
[trunk.provider]
sbc = "calls"
address = "{address}"
transport = "{transport}"
numbers = "+"
"""


@dataclass
class Scene:
    lab: Lab
    server: ServerProcess
    trunk: Sipp
    options: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        until_now(self.server.call_records, what="the call's record")
        (record,) = self.server.call_records()
        return record


@contextmanager
def scene(folder: Path, way: str, transport: str) -> Iterator[Scene]:
    """``way``: how the trunk and the SBC reach each other."""
    require("sip-tester")
    sockets = f'core-address = "{SERVER}"\n' if way == "sockets" else ""
    more = sockets + TRUNK.format(address=CORE, transport=transport)
    with Lab(LabSpec(phones=1, emulate=False)) as lab:
        make_credentials(folder, lab["server"], ("alice",))
        server = ServerProcess(lab["server"], folder, Shape(sbc=True, sbc_more=more))
        server.start()
        try:
            to = SERVER if way == "sockets" else INNER
            trunk = Sipp(lab["core"], folder, CORE, "pstn", "alice", server=to)
            yield Scene(lab, server, trunk, ("-t", "u1" if transport == "udp" else "t1", "-m", "1"))
        finally:
            server.stop()


WAYS = [(way, transport) for way in ("sockets", "routing") for transport in ("udp", "tcp")]


@pytest.mark.parametrize(("way", "transport"), WAYS)
def test_a_call_out_hears_itself_from_the_trunk(tmp_path: Path, way: str, transport: str) -> None:
    with scene(tmp_path, way, transport) as here:
        answering = here.trunk.start("callee", "-rtp_echo", *here.options)

        async def talk() -> Call:
            async with a_phone(here.server, "alice") as phone:
                await phone.register()
                call = await phone.call("+493012345", settings())
                await call.answered()
                await until(lambda: len(call.media.received) >= HEARD, within=30, what="the echo")
                await call.hang_up()
                return call

        call = in_host(here.lab["phone1"], talk)
        here.trunk.run(answering)
        record = here.record()
    said = {packet.sequence for packet in call.media.sent}
    assert {packet.sequence for packet in call.media.received[:HEARD]} <= said
    assert (record["callee_trunk"], record["caller_tunnel"]["client"]) == ("provider", "alice")
    assert (record["ended_by"], record["codec"], record["code"]) == ("caller", "PCMU", 200)
    for direction in ("from_caller", "from_callee"):
        assert (record[direction]["lost"], record[direction]["packets"] >= HEARD) == (0, True)
    assert record["path"]["caller"] == [] or record["path"]["caller"][0][1] in ("stream", "datagram")


@pytest.mark.parametrize(("way", "transport"), WAYS)
def test_a_call_in_reaches_the_phone_in_its_tunnel(tmp_path: Path, way: str, transport: str) -> None:
    with scene(tmp_path, way, transport) as here:

        async def listen() -> Call:
            async with a_phone(here.server, "alice") as phone:
                await phone.register()
                calling = await asyncio.to_thread(here.trunk.start, "caller", *here.options)
                call = await phone.answer(await phone.next_call(), settings())
                await call.ended()
                await asyncio.to_thread(here.trunk.run, calling)
                return call

        call = in_host(here.lab["phone1"], listen)
        record = here.record()
    assert len(call.media.received) >= 0.9 * SECONDS * 50
    assert (record["caller_trunk"], record["callee_tunnel"]["client"]) == ("provider", "alice")
    assert (record["ended_by"], record["reason"]) == ("caller", "hung-up")
    assert record["from_caller"]["lost"] == 0
    assert record["from_callee"]["packets"] >= HEARD
