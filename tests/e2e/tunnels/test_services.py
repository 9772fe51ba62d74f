"""Assigned services, reloads, pools: what a server offers, and to whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from opentsm.client.notifications import DdtAvailable
from opentsm.client.tunnel import Tunnel, connect
from opentsm.errors import RefusedError
from opentsm.lab.topology import Lab
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.lab.waiting import until
from opentsm.types import Path, PathMode
from tests.e2e.tunnels.harness import ServerProcess, Shape, in_host, login, start_echo

pytestmark = pytest.mark.netns


class TestWithoutDdt:
    @pytest.fixture
    def shape(self) -> Shape:
        return Shape(services=("SIP",))

    def test_ddt_is_not_available_and_media_stays(self, lab: Lab, server: ServerProcess) -> None:
        echo = start_echo(lab)

        async def scenario() -> None:
            async with connect(**login(server)) as tunnel:
                said: list[bool] = []
                tunnel.on_notification(lambda told, _: said.append(told.available), kinds=[DdtAvailable])  # type: ignore[attr-defined]
                receiver, flow = MediaReceiver(), MediaFlow(1)
                receiver.expect(flow)
                voice, _ = await tunnel.create_datagram_endpoint(
                    lambda: receiver, remote_addr=echo, mode=PathMode.DATAGRAM
                )
                with pytest.raises(RefusedError, match="service-unavailable"):
                    await tunnel.wait_ddt_enabled(voice)
                await send_all([MediaSender(voice, flow)], count=50)
                await receiver.received(50)
                assert said == [False]
                assert voice.path is Path.STREAM

        in_host(lab["phone1"], scenario)

    def test_a_reload_reaches_new_tunnels_only(self, lab: Lab, server: ServerProcess) -> None:
        async def scenario() -> None:
            async with connect(**login(server)) as old:
                await asyncio.to_thread(server.reload, services=("SIP", "DDT"))
                async with connect(**login(server)) as new:
                    sockets = {}
                    for name, tunnel in (("old", old), ("new", new)):
                        voice, _ = await tunnel.create_datagram_endpoint(
                            MediaReceiver, mode=PathMode.DATAGRAM
                        )
                        sockets[name] = voice
                    await new.wait_ddt_enabled(sockets["new"])
                    with pytest.raises(RefusedError, match="service-unavailable"):
                        await old.wait_ddt_enabled(sockets["old"])
                    assert old.inner_address != new.inner_address

        in_host(lab["phone1"], scenario)


def test_a_bad_file_changes_nothing_and_says_why(lab: Lab, server: ServerProcess) -> None:
    good = server.config.read_text()
    server.config.write_text(good.replace("assigned-services", "asigned-services"))
    answer = server.command("reload")
    text = str(answer)
    assert "asigned-services" in text
    assert "assigned-services" in text, "the error does not say what was meant"

    async def scenario() -> str:
        async with connect(**login(server)) as tunnel:
            voice, _ = await tunnel.create_datagram_endpoint(MediaReceiver, mode=PathMode.DATAGRAM)
            await tunnel.wait_ddt_enabled(voice)
            return tunnel.ddt_state

    assert in_host(lab["phone1"], scenario) == "up"


class TestWithTwoAddresses:
    @pytest.fixture
    def shape(self) -> Shape:
        return Shape(ranges=("10.64.1.10-10.64.1.11",))

    def test_an_exhausted_pool_is_a_clear_refusal_and_a_release_makes_room(
        self, lab: Lab, server: ServerProcess
    ) -> None:
        async def scenario() -> None:
            arguments = {**login(server), "families": "ipv4"}
            first = await connect(**arguments)
            second = await connect(**arguments)
            with pytest.raises(RefusedError) as caught:
                await connect(**arguments)
            assert caught.value.code == "no-address"
            freed = first.inner_address
            await first.close()
            third = await _when_rested(arguments)
            assert third.inner_address == freed
            await second.close()
            await third.close()

        async def _when_rested(arguments: dict[str, Any]) -> Tunnel:
            # A released address rests for at least a second even in an empty pool.
            while True:
                try:
                    return await connect(**arguments)
                except RefusedError as error:
                    if error.code != "no-address":
                        raise

        in_host(lab["phone1"], scenario)


def test_wrong_passwords_are_refused_and_then_made_to_wait(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> list[str]:
        codes = []
        for _ in range(15):
            with pytest.raises(RefusedError) as caught:
                await connect(**{**login(server), "password": "wrong", "reconnect": False})
            codes.append(caught.value.code)
        return codes

    codes = in_host(lab["phone1"], scenario)
    assert codes[0] == "unauthorized"
    assert codes[-1] == "rate-limited"


def test_the_data_log_has_each_control_message_and_no_secret(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> int:
        async with connect(**login(server)) as tunnel:
            voice, _ = await tunnel.create_datagram_endpoint(MediaReceiver, mode=PathMode.DATAGRAM)
            await tunnel.wait_ddt_enabled(voice)
            return tunnel.tsid

    tsid = in_host(lab["phone1"], scenario)

    async def logged() -> list[dict[str, object]]:
        return await until(lambda: [line for line in server.control_log() if "release" in str(line).lower()])

    asyncio.run(logged())
    text = (server.folder / "control.jsonl").read_text()
    assert f"{tsid:016x}" in text
    assert "correct horse" not in text
    for word in ("configuration", "service"):
        assert word in text.lower()
