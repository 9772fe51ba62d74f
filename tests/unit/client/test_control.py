"""Asking a running `opentsm up`: over a real socket, about a real tunnel."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import AsyncIterator

import pytest

from opentsm.cli.media import lines
from opentsm.client.control import Running, answering, ask, pick, running
from opentsm.errors import PlatformError
from opentsm.types import PathMode
from tests.unit.client.peer import Peer, until
from tests.unit.client.test_tun import VOICE_PORT, Rig, rigged, rtp

NAME = f"test{os.getpid()}"


@pytest.fixture
async def rig(peer: Peer, ca: bytes) -> AsyncIterator[Rig]:
    async with rigged(peer, ca, PathMode.STREAM) as rig, answering(NAME, rig.tunnel, rig.device):
        yield rig


async def test_a_running_tunnel_is_found_and_its_media_sent_elsewhere(rig: Rig) -> None:
    for number in range(4):
        await rig.echo(rtp(number))
    await until(lambda: bool(rig.device.flows))
    whom = pick(running(), NAME, None)
    assert whom == Running(NAME, os.getpid())
    status = await asyncio.to_thread(ask, whom, "status")
    assert (status["device"], status["media"], status["addresses"][0]) == (NAME, "stream", rig.address)
    assert [(flow["port"], flow["path"]) for flow in status["flows"]] == [(VOICE_PORT, "stream")]
    assert (await asyncio.to_thread(ask, whom, "media", mode="datagram"))["media"] == "datagram"
    await until(lambda: rig.tunnel.ddt_state == "up")
    await rig.echo(rtp(4))
    status = await asyncio.to_thread(ask, whom, "status")
    assert status["flows"][0]["sent"]["datagram"] >= 1
    assert f"  port {VOICE_PORT} datagram" in "\n".join(lines(status))


async def test_what_makes_no_sense_is_told_and_harms_nobody(rig: Rig) -> None:
    whom = Running(NAME, os.getpid())
    for arguments, says in (
        ({"command": "media", "mode": "pigeon"}, "stream, datagram, auto"),
        ({"command": "dance"}, "known: media, status"),
    ):
        with pytest.raises(PlatformError, match=says):
            await asyncio.to_thread(functools.partial(ask, whom, **arguments))

    def raw(text: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(whom.address)
            sock.sendall(text)
            return sock.recv(1000)

    assert b"one JSON object" in await asyncio.to_thread(raw, b"[]\n")
    assert await asyncio.to_thread(raw, b"x" * 10_000 + b"\n") == b""
    assert (await asyncio.to_thread(ask, whom, "status"))["state"] == "active"


async def test_after_its_end_nobody_answers(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca) as rig, answering(NAME, rig.tunnel, rig.device):
        pass
    with pytest.raises(PlatformError, match="cannot ask"):
        ask(Running(NAME, os.getpid()), "status")
    with pytest.raises(PlatformError, match="no `opentsm up`"):
        pick(running(), NAME, None)


def test_several_are_told_apart() -> None:
    two = [Running("tsm0", 7), Running("tsm0", 8), Running("tsm1", 9)]
    assert pick(two, "tsm1", None) == two[2]
    assert pick(two, None, 8) == two[1]
    with pytest.raises(PlatformError, match=r"tsm0 \(--pid 7\), tsm0 \(--pid 8\)"):
        pick(two, "tsm0", None)
