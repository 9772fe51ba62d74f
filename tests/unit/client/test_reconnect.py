"""The server goes away and comes back: what the client does by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import opentsm
from opentsm import notifications as n
from opentsm.errors import TunnelClosedError
from opentsm.types import Code, Path, PathMode
from tests.unit.client.peer import ECHO_PORT, GATEWAY, Peer, until

ECHO = (GATEWAY, ECHO_PORT)


class Collector(asyncio.DatagramProtocol):
    """Writes down what a transport tells it."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def error_received(self, exc: Exception) -> None:
        self.told.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def test_a_server_that_comes_back_finds_address_sockets_and_ddt_as_they_were(
    peer: Peer, ca: bytes
) -> None:
    async with opentsm.connect(peer.url, ca=ca) as tunnel, tunnel.socket() as sock:
        sock.set_mode(PathMode.DATAGRAM)
        sock.bind()
        await tunnel.wait_ddt_enabled(sock)
        address = tunnel.inner_address
        name = sock.getsockname()
        notifications = tunnel.notifications()
        peer.vanish()
        await _next(notifications, n.TunnelLost)
        assert tunnel.state == "persistent"
        peer.listen()
        resumed = await _next(notifications, n.TunnelResumed)
        assert isinstance(resumed, n.TunnelResumed)
        assert (tunnel.inner_address, sock.getsockname()) == (address, name)
        assert tunnel.state == "active"
        await tunnel.wait_ddt_enabled(sock)
        await sock.sendto(b"as before", ECHO)
        assert (await sock.recvfrom())[0] == b"as before"
        assert sock.path is Path.DATAGRAM


async def test_a_stream_that_is_cut_does_not_touch_media_on_the_ddt(peer: Peer, ca: bytes) -> None:
    async with opentsm.connect(peer.url, ca=ca) as tunnel, tunnel.socket() as sock:
        sock.set_mode(PathMode.DATAGRAM)
        sock.bind()
        await tunnel.wait_ddt_enabled(sock)
        notifications = tunnel.notifications()
        client = peer.clients[tunnel.tsid]
        peer.plane.core.close(client.tunnels[Path.STREAM])
        await _next(notifications, n.TunnelLost)
        await sock.sendto(b"without a stream", ECHO)
        assert (await sock.recvfrom())[0] == b"without a stream"
        await _next(notifications, n.TunnelResumed)
        assert sock.path is Path.DATAGRAM


async def test_a_server_that_has_forgotten_gives_another_address_and_old_sockets_say_so(
    peer: Peer, ca: bytes
) -> None:
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        sock = tunnel.socket()
        sock.set_mode(PathMode.DATAGRAM)
        sock.bind()
        reading = asyncio.create_task(sock.recvfrom())
        transport, protocol = await tunnel.create_datagram_endpoint(Collector)
        before = tunnel.inner_address
        notifications = tunnel.notifications()
        peer.forget()
        up = await _next(notifications, n.TunnelUp)
        assert isinstance(up, n.TunnelUp)
        assert up.address_changed
        assert tunnel.inner_address != before
        with pytest.raises(TunnelClosedError, match=f"another inner address .{tunnel.inner_address}"):
            await reading
        with pytest.raises(TunnelClosedError, match="another inner address"):
            sock.sendto_nowait(b"x", ECHO)
        assert isinstance(await protocol.lost, TunnelClosedError)
        assert isinstance(protocol.told[0], TunnelClosedError)
        assert transport.is_closing()
        async with tunnel.socket() as fresh:
            await fresh.sendto(b"new", ECHO)
            assert (await fresh.recvfrom())[0] == b"new"


async def test_a_client_that_shall_not_come_back_ends_with_the_reason(peer: Peer, ca: bytes) -> None:
    async with opentsm.connect(peer.url, ca=ca, reconnect=False) as tunnel:
        notifications = tunnel.notifications()
        sock = tunnel.socket()
        sock.bind()
        peer.vanish()
        ended = await _next(notifications, n.TunnelTerminated)
        assert isinstance(ended, n.TunnelTerminated)
        assert ended.reason == await tunnel.wait_closed() == "peer-closed"
        assert sock.closed


async def test_a_server_that_ends_a_tunnel_says_why(peer: Peer, ca: bytes) -> None:
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        notifications = tunnel.notifications()
        client = peer.clients[tunnel.tsid]
        client.session.terminate(Code.NOT_ALLOWED, peer.now(), text="your account is closed")
        client.settle()
        ended = await _next(notifications, n.TunnelTerminated)
        assert ended == n.TunnelTerminated("not-allowed", "your account is closed")


async def test_closing_while_coming_back_ends_at_once(peer: Peer, ca: bytes) -> None:
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        peer.vanish()
        await until(lambda: tunnel.state == "persistent" and tunnel.last_error != "peer-closed")
        assert "refused" in tunnel.last_error
    assert tunnel.state == "closed"


async def _next(notifications: n.NotificationStream, kind: type[n.Notification]) -> n.Notification:
    async with asyncio.timeout(30):
        async for notification in notifications:
            if isinstance(notification, kind):
                return notification
    raise AssertionError(f"no {kind.kind}")
