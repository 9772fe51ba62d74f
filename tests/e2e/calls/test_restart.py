"""The server's process is killed in mid-call: the call through its SBC goes on, and is ended by a BYE."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opentsm.client.phone.call import Call
from opentsm.lab.serving import SIP_DOMAIN, ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.waiting import until, until_now
from opentsm.types import Path as TunnelPath
from opentsm.types import PathMode
from tests.e2e.calls.test_two_phones import Bob, a_phone, settings, talk
from tests.e2e.tunnels.harness import in_host

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

BACK_WITHIN = 2.0
"""Seconds after the server listens again until both parties hear each other."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(phones=2, emulate=False)) as lab:
        yield lab


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[ServerProcess]:
    make_credentials(tmp_path, lab["server"], ("alice", "bob"))
    server = ServerProcess(lab["server"], tmp_path, Shape(sbc=True))
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_call_through_the_sbc_survives_its_process_and_is_ended_properly(
    lab: Lab, server: ServerProcess, how: int
) -> None:
    bob = Bob(server)

    def heard(call: Call) -> int:
        return len(call.media.received)

    async def alices() -> Call:
        async with a_phone(server, "alice") as phone:
            await phone.register()
            assert await asyncio.to_thread(bob.ready.wait, 30)
            call = await phone.call("bob", settings())
            await call.answered()
            await talk(call, bob, TunnelPath.STREAM)
            call.set_mode(PathMode.DATAGRAM)
            bob.move()
            await talk(call, bob, TunnelPath.DATAGRAM)
            there = bob.call
            assert there is not None
            await asyncio.to_thread(server.stop, how)
            await asyncio.to_thread(server.start)
            listening, marks = time.monotonic(), (heard(call), heard(there))
            await until(lambda: heard(call) > marks[0] and heard(there) > marks[1], within=30, what="media")
            back = time.monotonic() - listening
            print(f"both hear each other {back:.2f} s after the server listens again")
            assert back <= BACK_WITHIN
            marks = heard(call) + 100, heard(there) + 100
            await until(
                lambda: heard(call) > marks[0] and heard(there) > marks[1], within=30, what="the call"
            )
            (sbc,) = (await asyncio.to_thread(server.command, "status"))["sbcs"]
            assert [one["caller"] for one in sbc["active_calls"]] == [f"alice@{SIP_DOMAIN}"]
            await call.hang_up()
            return call

    with ThreadPoolExecutor(1) as threads:
        bobs_end = threads.submit(in_host, lab["phone2"], bob.live)
        in_host(lab["phone1"], alices)
        bobs_end.result(30)
    until_now(server.call_records, what="the call's record")
    (record,) = server.call_records()
    assert (record["caller"], record["callee"]) == (f"alice@{SIP_DOMAIN}", f"bob@{SIP_DOMAIN}")
    assert (record["ended_by"], record["reason"]) == ("caller", "hung-up")
    for direction in ("from_caller", "from_callee"):
        assert record[direction]["packets"] >= 100
