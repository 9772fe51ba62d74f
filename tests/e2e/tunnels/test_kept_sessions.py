"""A server process that is killed or stopped in mid-call, and the next one on the same store: calls go on."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time

import pytest

from opentsm.client.notifications import Notification, TunnelUp
from opentsm.lab.topology import Lab
from opentsm.lab.waiting import until
from opentsm.types import Path
from tests.e2e.tunnels.harness import ServerProcess, Shape, in_host
from tests.e2e.tunnels.talking import calls, more, until_all

pytestmark = pytest.mark.netns

BACK_WITHIN = 2.0
"""Seconds after the server listens again: the promise of docs/operations.md."""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_calls_go_on_through_a_restart_with_the_same_addresses(
    lab: Lab, server: ServerProcess, how: int
) -> None:
    core = lab["core"]

    async def scenario() -> None:
        async with calls(server, core, 2) as running:
            before = [(call.tunnel.inner_addresses, call.tunnel.tsid) for call in running]
            fresh: list[Notification] = []
            for call in running:
                call.tunnel.on_notification(lambda told, _: fresh.append(told), kinds=[TunnelUp])
            await asyncio.to_thread(server.stop, how)
            stopped = time.monotonic()
            await asyncio.to_thread(server.start)
            listening = time.monotonic()
            await more(running, 50)
            await until_all(running, Path.DATAGRAM, within=20, what="the DDTs to be made anew")
            await more(running, 50)
            assert [(call.tunnel.inner_addresses, call.tunnel.tsid) for call in running] == before
            assert not fresh, "no socket was closed, nothing had to be set up anew"
            for call in running:
                await call.stop_talking()
            await until(lambda: all(call.tunnel.state == "active" for call in running))
        for call in running:
            for flow in call.flows:
                first = min(at for at in flow.arrived if at > listening)
                back = first - listening
                print(f"down {listening - stopped:.2f} s, media back after {back * 1000:.0f} ms")
                assert back <= BACK_WITHIN
                assert flow.report().duplicated == 0, "a copy reached the application"
                # Once it is back, it is back for good, also while the DDT is made anew.
                late = [at for at in flow.losses() if at > first + 0.1]
                assert not late, f"{len(late)} packets lost later"

    in_host(lab["phone1"], scenario)


def test_the_store_is_for_the_servers_own_eyes(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], 1):
            for name in os.listdir(server.folder):
                if name.startswith("server.db"):
                    mode = stat.S_IMODE((server.folder / name).stat().st_mode)
                    assert mode == 0o600, f"{name} has mode {mode:o}"

    in_host(lab["phone1"], scenario)


def test_a_client_that_left_before_the_restart_leaves_its_address_to_others(
    lab: Lab, server: ServerProcess
) -> None:
    async def scenario() -> None:
        async with calls(server, lab["core"], 1) as running:
            assert len(server.tunnels()) == 1
            await running[0].stop_talking()
            await running[0].tunnel.close()
            await until(lambda: not server.tunnels(), what="the release")
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            assert server.tunnels() == []

    in_host(lab["phone1"], scenario)


class TestWithoutAStore:
    @pytest.fixture
    def shape(self) -> Shape:
        return Shape(store=False)

    def test_clients_come_back_with_a_clean_new_address(self, lab: Lab, server: ServerProcess) -> None:
        async def scenario() -> None:
            async with calls(server, lab["core"], 1) as running:
                call = running[0]
                fresh: list[TunnelUp] = []
                call.tunnel.on_notification(lambda told, _: fresh.append(told), kinds=[TunnelUp])  # type: ignore[arg-type]
                await call.stop_talking()
                await asyncio.to_thread(server.stop, signal.SIGKILL)
                await asyncio.to_thread(server.start)
                await until(lambda: fresh, within=20, what="a fresh tunnel")
                assert [row["tsid"] for row in server.tunnels()] == [f"{call.tunnel.tsid:016x}"]

        in_host(lab["phone1"], scenario)
