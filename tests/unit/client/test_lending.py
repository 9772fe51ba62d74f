"""A tunnel lent to the event loop: libraries that make their own sockets get inner ones."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
import uvloop

import opentsm
from opentsm.admin.certificates import Issued
from opentsm.client.endpoint import TunnelDatagramTransport
from opentsm.types import PathMode
from tests.unit.client.hosting import peer_in_a_thread
from tests.unit.client.peer import ECHO_PORT, GATEWAY, Peer


class Listener(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.put_nowait((data, addr))


async def library(address: str, port: int) -> tuple[asyncio.DatagramTransport, Listener]:
    """What a library does that knows nothing of tunnels."""
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(Listener, local_addr=(address, port))


async def scenario(url: str, ca: bytes) -> None:
    async with opentsm.connect(url, ca=ca) as tunnel:
        with opentsm.inner_endpoints(tunnel, mode=PathMode.DATAGRAM) as made:
            inner, listener = await library(str(tunnel.inner_address), 0)
            outer, _ = await library("127.0.0.1", 0)
            named, _ = await library("localhost", 0)
        assert made == [inner]
        assert isinstance(inner, TunnelDatagramTransport)
        assert inner.mode is PathMode.DATAGRAM
        assert not isinstance(outer, TunnelDatagramTransport)
        inner.sendto(b"hello", (GATEWAY, ECHO_PORT))
        assert await listener.heard.get() == (b"hello", (GATEWAY, ECHO_PORT))
        for transport in (outer, named):
            transport.close()


async def test_inner_addresses_give_inner_sockets(peer: Peer, ca: bytes) -> None:
    await scenario(peer.url, ca)
    with pytest.raises(OSError, match="assign requested address"):  # the loop is its old self again
        await library("10.99.0.11", 0)


def test_the_same_on_uvloop(certificate: Issued, ca: bytes) -> None:
    with peer_in_a_thread(certificate) as peer:
        uvloop.run(scenario(peer.url, ca))


def test_a_loop_that_cannot_be_lent_to_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        __slots__ = ()

        async def create_datagram_endpoint(self) -> None: ...

    asyncio_of_it = type("asyncio_of_it", (), {"get_running_loop": Fixed})
    monkeypatch.setattr("opentsm.client.lending.asyncio", asyncio_of_it)
    with pytest.raises(TypeError, match="cannot be lent"):
        opentsm.inner_endpoints(cast("opentsm.Tunnel", None)).__enter__()
