"""Phones on real tunnels through a real server in this process: TLS, DTLS, the media switch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path as FilePath

import pytest

import opentsm
from opentsm.client.phone.call import Call, CallSettings
from opentsm.client.phone.calltest import run_call_test
from opentsm.client.phone.core import Account
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.speech import speech
from opentsm.client.tunnel import Tunnel
from opentsm.server import Server
from opentsm.server.development import Development, prepare
from opentsm.types import Path, PathMode

WITHIN = 60.0
"""Seconds after which something hangs; the calls here take a few."""


@pytest.fixture
async def url(tmp_path: FilePath) -> AsyncIterator[tuple[str, Development]]:
    """A development server on the loopback interface."""
    development = prepare(tmp_path, IPv4Address("127.0.0.1"), 0)
    server = Server(development.settings)
    await server.start()
    try:
        yield f"tls://127.0.0.1:{server.listeners.number()}", development
    finally:
        await server.stop()


def tunnel_to(url: tuple[str, Development]) -> opentsm.client.tunnel.Connecting:
    return opentsm.connect(url[0], ca=url[1].folder / "ca.pem")


async def joined(alice: Phone, bob: Phone, bobs: Tunnel, settings: CallSettings) -> tuple[Call, Call]:
    call = await alice.call(f"sip:bob@{bobs.inner_address}", settings)
    answered = await bob.answer(await bob.next_call(), settings)
    await call.answered()
    return call, answered


async def until_heard(call: Call, packets: int) -> None:
    """Wait for so many more packets."""
    enough = len(call.media.received) + packets
    while len(call.media.received) < enough:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_a_call_moves_to_the_ddt_and_back_without_losing_a_packet(url: tuple[str, Development]) -> None:
    async with (
        asyncio.timeout(WITHIN),
        tunnel_to(url) as ours,
        tunnel_to(url) as theirs,
        Phone(ours, Account("alice", "x")) as alice,
        Phone(theirs, Account("bob", "x")) as bob,
    ):
        settings = CallSettings(samples=speech(), loop=True, playout=0.2)
        call, answered = await joined(alice, bob, theirs, settings)
        await until_heard(answered, 20)
        for mode in (PathMode.DATAGRAM, PathMode.STREAM, PathMode.DATAGRAM):
            call.set_mode(mode)
            while call.path.name != mode.name:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await until_heard(answered, 20)
        await call.hang_up()
        assert (await answered.ended()).by == "remote"
    report = answered.report()
    assert answered.media.reception is not None
    assert (answered.media.reception.lost, report.drops) == (0, {})
    assert set(call.report().sent_by) == {"stream", "datagram"}


async def test_a_call_by_tcp_and_one_whose_invite_is_too_large_for_a_datagram(
    url: tuple[str, Development],
) -> None:
    long_name = "alice" + "e" * 400
    async with (
        asyncio.timeout(WITHIN),
        tunnel_to(url) as ours,
        tunnel_to(url) as theirs,
        Phone(theirs, Account("bob", "x")) as bob,
    ):
        settings = CallSettings(samples=speech(), loop=True, playout=0.2)
        for phone in (
            Phone(ours, Account("alice", "x"), transport="tcp"),
            Phone(ours, Account(long_name, "x")),
        ):
            async with phone as alice:
                call, answered = await joined(alice, bob, theirs, settings)
                await until_heard(answered, 5)
                await answered.hang_up()
                assert (await call.ended()).by == "remote"
            assert not alice.drops


async def test_a_call_test_judges_both_paths(url: tuple[str, Development]) -> None:
    async with asyncio.timeout(WITHIN), tunnel_to(url) as tunnel:
        verdicts = await run_call_test(tunnel, (url[1].echo, 7), speech(), seconds=0.6, playout=0.5)
    assert [verdict.path for verdict in verdicts] == ["stream", "datagram"]
    for verdict in verdicts:
        assert (verdict.tested, verdict.sent, verdict.received) == (True, 30, 30)
        assert verdict.sent_by == {verdict.path: 30}
        assert verdict.mos is not None


async def test_an_echo_that_is_not_there_is_no_way_through(url: tuple[str, Development]) -> None:
    async with asyncio.timeout(WITHIN), tunnel_to(url) as tunnel:
        (verdict,) = await run_call_test(
            tunnel, (url[1].echo, 8), speech(), seconds=0.2, paths=(Path.STREAM,)
        )
    assert (verdict.word, verdict.received, verdict.lost_percent) == ("no way through", 0, 100.0)
    assert "echo" in verdict.note
