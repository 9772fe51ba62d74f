"""TCP inside the tunnel: streams, servers and BSD's calls, through real tunnels that come and go."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import opentsm
from opentsm import Tunnel
from opentsm import notifications as n
from opentsm.errors import TunnelClosedError
from opentsm.userplane.tcp import InnerServer, InnerTcp
from tests.unit.client.peer import GATEWAY, Peer, until

UP, DOWN = random.Random(1).randbytes(1_000_000), random.Random(2).randbytes(1_000_000)


@pytest.fixture
async def tunnel(peer: Peer, ca: bytes) -> AsyncIterator[Tunnel]:
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        yield tunnel


class Exchange(asyncio.Protocol):
    """The server's end: sends DOWN, keeps what it gets, closes after both."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.lost: list[Exception | None] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(DOWN)

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def serve(peer: Peer) -> tuple[InnerServer, list[Exchange]]:
    """An exchange on the server's own inner address."""
    made: list[Exchange] = []

    def factory() -> Exchange:
        made.append(Exchange())
        return made[-1]

    return await InnerTcp(peer.plane).create_server(factory, GATEWAY, 0), made


async def swap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mine: bytes) -> bytes:
    """Send and receive at the same time; what came."""

    async def send() -> None:
        writer.write(mine)
        await writer.drain()
        writer.write_eof()

    got, _ = await asyncio.gather(reader.read(-1), send())
    writer.close()
    await writer.wait_closed()
    return got


async def test_a_megabyte_each_way_to_the_servers_inner_address(tunnel: Tunnel, peer: Peer) -> None:
    server, made = await serve(peer)
    reader, writer = await tunnel.open_connection(*server.sockname)
    assert writer.get_extra_info("sockname")[0] == str(tunnel.inner_address)
    assert writer.get_extra_info("peername") == server.sockname
    assert await swap(reader, writer, UP) == DOWN
    await until(lambda: made[0].lost == [None])
    assert made[0].got == UP


async def test_the_server_connects_to_a_client_and_clients_to_each_other(
    tunnel: Tunnel, peer: Peer, ca: bytes
) -> None:
    told: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await swap(reader, writer, DOWN))

    server = await tunnel.start_server(answer)
    assert isinstance(server, InnerServer)
    address, port = server.sockname
    assert address == str(tunnel.inner_address)
    made = Exchange()
    await InnerTcp(peer.plane).create_connection(lambda: made, address, port, local_addr=(GATEWAY, 0))
    await until(lambda: bytes(made.got) == DOWN)
    async with opentsm.connect(peer.url, ca=ca) as other:
        reader, writer = await other.open_connection(address, port)
        assert await swap(reader, writer, UP) == DOWN
    await until(lambda: len(told) == 2)
    assert UP in told


async def test_connections_outlive_the_stream_tunnel_under_them(
    tunnel: Tunnel, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, made = await serve(peer)
    reader, writer = await tunnel.open_connection(*server.sockname)
    begin = await reader.readexactly(1000)
    notifications = tunnel.notifications()
    writer.write(UP)
    peer.vanish()
    while not isinstance(await anext(notifications), n.TunnelLost):
        pass
    assert tunnel.state == "persistent"
    writer.write(b"written while away")
    peer.listen()
    while not isinstance(await anext(notifications), n.TunnelResumed):
        pass
    writer.write_eof()
    rest = await reader.readexactly(len(DOWN) - 1000)
    await until(lambda: len(made[0].got) == len(UP) + 18)
    assert begin + rest == DOWN
    assert made[0].got == UP + b"written while away"
    writer.close()


async def test_a_closed_tunnel_ends_its_connections_at_both_ends(tunnel: Tunnel, peer: Peer) -> None:
    server, made = await serve(peer)
    protocol = Exchange()
    await tunnel.create_connection(lambda: protocol, *server.sockname)
    await until(lambda: bool(made))
    listener = await tunnel.create_server(Exchange)
    await tunnel.close()
    await until(lambda: bool(protocol.lost and made[0].lost))
    assert isinstance(protocol.lost[0], TunnelClosedError)
    assert isinstance(made[0].lost[0], TunnelClosedError)
    assert not listener.is_serving()
    with pytest.raises(TunnelClosedError):
        await tunnel.open_connection(*server.sockname)
    with pytest.raises(TunnelClosedError):
        await tunnel.create_server(Exchange)


async def test_another_address_ends_what_was_bound_to_the_old_one(tunnel: Tunnel, peer: Peer) -> None:
    server, _ = await serve(peer)
    _, writer = await tunnel.open_connection(*server.sockname)
    listening = tunnel.socket(type=socket.SOCK_STREAM)
    listening.listen()
    accepting = asyncio.create_task(listening.accept())
    await asyncio.sleep(0)
    peer.forget()
    with pytest.raises(TunnelClosedError):
        await writer.wait_closed()
    with pytest.raises(TunnelClosedError, match="address"):
        await accepting


async def test_what_cannot_be_had_says_why(tunnel: Tunnel) -> None:
    with pytest.raises(ConnectionRefusedError):
        await tunnel.open_connection(GATEWAY, 9)
    with pytest.raises(OSError, match="not an inner address") as refused:
        await tunnel.open_connection(GATEWAY, 9, local_addr=("10.1.1.1", 0))
    assert refused.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(OSError, match="IPv6"):
        await tunnel.open_connection("fd00::1", 9)
    with pytest.raises(ValueError, match="address"):
        await tunnel.open_connection("sip.example.org", 9)
    await tunnel.create_server(Exchange, None, 5060)
    with pytest.raises(OSError, match=r"\w") as refused:
        await tunnel.create_server(Exchange, "0.0.0.0", 5060)
    assert refused.value.errno == errno.EADDRINUSE


async def test_a_core_without_tcp_refuses_at_once(tunnel: Tunnel, peer: Peer) -> None:
    peer.plane.core.route_core("10.200.0.0/16")
    with pytest.raises(ConnectionRefusedError):
        await tunnel.open_connection("10.200.1.2", 80)
    assert peer.plane.core.counters()["drop_core_unsupported"] == 1


async def test_bsd_calls(tunnel: Tunnel, peer: Peer, ca: bytes) -> None:
    async with (
        opentsm.connect(peer.url, ca=ca) as other,
        tunnel.socket(type=socket.SOCK_STREAM) as listening,
        other.socket(type=socket.SOCK_STREAM) as caller,
    ):
        listening.bind(("", 5060))
        listening.listen(1)
        assert listening.getsockname() == (str(tunnel.inner_address), 5060)
        caller.bind(("", 40_000))
        await caller.connect(listening.getsockname())
        assert caller.getpeername() == listening.getsockname()
        answering, peername = await listening.accept()
        assert peername == (str(other.inner_address), 40_000) == caller.getsockname()
        assert caller.family == answering.family == socket.AF_INET
        assert await caller.send(b"question") == 8
        assert await answering.recv(100) == b"question"
        await answering.sendall(b"answer")
        assert await caller.recv(3) == b"ans"
        assert await caller.recv(100) == b"wer"
        caller.shutdown()
        assert await answering.recv(100) == b""
        answering.close()
        assert await caller.recv(100) == b""


async def test_bsd_errors(tunnel: Tunnel) -> None:
    sock = tunnel.socket(type=socket.SOCK_STREAM)
    calls: list[tuple[Callable[[], object], int]] = [
        (sock.getpeername, errno.ENOTCONN),
        (sock.shutdown, errno.ENOTCONN),
        (lambda: sock.shutdown(socket.SHUT_RD), errno.EOPNOTSUPP),
    ]
    for call, number in calls:
        with pytest.raises(OSError, match=r"\w") as refused:
            call()
        assert refused.value.errno == number
    with pytest.raises(OSError, match="does not listen"):
        await sock.accept()
    with pytest.raises(ConnectionRefusedError):
        await sock.connect((GATEWAY, 9))
    sock.listen()
    with pytest.raises(OSError, match="listens"):
        sock.listen()
    sock.close()
    with pytest.raises(TunnelClosedError):
        await sock.accept()
    with pytest.raises(OSError, match="SOCK_STREAM"):
        tunnel.socket(socket.AF_INET, socket.SOCK_RAW)


async def test_more_callers_than_the_backlog_are_turned_away(tunnel: Tunnel, peer: Peer) -> None:
    listening = tunnel.socket(type=socket.SOCK_STREAM)
    listening.listen(2)
    stack, protocols = InnerTcp(peer.plane), []
    for _ in range(4):
        address = listening.getsockname()
        _, protocol = await stack.create_connection(Exchange, *address, local_addr=(GATEWAY, 0))
        protocols.append(protocol)
    await until(lambda: sum(bool(p.lost) for p in protocols) == 2)
    assert all(isinstance(p.lost[0], ConnectionResetError) for p in protocols if p.lost)
