"""Inner sockets and endpoints, as their BSD and asyncio namesakes behave."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import opentsm
from opentsm import SO_TSM_PATH, SO_TSM_TRANSPORT, SOL_TSM, Tunnel
from opentsm.client import sockets
from opentsm.errors import TunnelClosedError
from opentsm.types import Path, PathMode
from tests.unit.client.peer import ECHO_PORT, GATEWAY, Peer, until

ECHO = (GATEWAY, ECHO_PORT)


@pytest.fixture
async def tunnel(peer: Peer, ca: bytes) -> AsyncIterator[Tunnel]:
    async with opentsm.connect(peer.url, ca=ca) as tunnel:
        yield tunnel


class Recorder(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.got = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.calls.append((data, addr))
        self.got.set()

    def error_received(self, exc: Exception) -> None:
        self.calls.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append(("lost", exc))

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


@pytest.mark.parametrize("value", [PathMode.DATAGRAM, 1, "datagram"])
async def test_the_switch_is_readable_back(tunnel: Tunnel, value: PathMode | int | str) -> None:
    sock = tunnel.socket()
    assert sock.getsockopt(SOL_TSM, SO_TSM_TRANSPORT) == PathMode.STREAM
    sock.setsockopt(SOL_TSM, SO_TSM_TRANSPORT, value)
    assert sock.getsockopt(SOL_TSM, SO_TSM_TRANSPORT) == PathMode.DATAGRAM
    assert tunnel.ddt_state == "absent"  # nothing is asked for before the socket is bound
    sock.bind()
    assert tunnel.ddt_state == "requested"
    assert sock.getsockopt(SOL_TSM, SO_TSM_PATH) == Path.STREAM


@pytest.mark.parametrize(
    ("level", "option", "value", "number"),
    [
        (socket.SOL_SOCKET, SO_TSM_TRANSPORT, 1, errno.ENOPROTOOPT),
        (SOL_TSM, SO_TSM_PATH, 1, errno.ENOPROTOOPT),
        (SOL_TSM, SO_TSM_TRANSPORT, 7, errno.EINVAL),
        (SOL_TSM, SO_TSM_TRANSPORT, "carrier pigeon", errno.EINVAL),
    ],
)
async def test_options_that_are_none(
    tunnel: Tunnel, level: int, option: int, value: int | str, number: int
) -> None:
    with pytest.raises(OSError, match=r"\w") as refused:
        tunnel.socket().setsockopt(level, option, value)
    assert refused.value.errno == number


async def test_names_and_ports(tunnel: Tunnel) -> None:
    own = str(tunnel.inner_address)
    sock = tunnel.socket(socket.AF_INET)
    assert sock.getsockname() == ("0.0.0.0", 0)
    sock.bind(("0.0.0.0", 40000))
    assert sock.getsockname() == (own, 40000)
    for address, number in [((own, 40000), errno.EADDRINUSE), (("192.0.2.1", 0), errno.EADDRNOTAVAIL)]:
        with pytest.raises(OSError, match=r"\w") as refused:
            tunnel.socket().bind(address)
        assert refused.value.errno == number
    with pytest.raises(OSError, match="no inner IPv6 address"):
        tunnel.socket(socket.AF_INET6).bind()
    with pytest.raises(OSError, match="bound already"):
        sock.bind()
    sock.close()
    again = tunnel.socket()
    again.bind((own, 40000))  # a closed socket's port is free


async def test_a_connected_socket_hears_its_peer_only(tunnel: Tunnel, peer: Peer) -> None:
    stranger, _ = peer.plane.core.udp_open(session=None, address=GATEWAY, port=9999)
    sock = tunnel.socket()
    with pytest.raises(OSError, match="Destination"):
        await sock.sendto(b"x")
    sock.connect(ECHO)
    assert sock.getpeername() == ECHO
    peer.plane.core.udp_send(stranger, b"psst", *sock.getsockname())
    assert await sock.sendto(b"hello") == 5
    assert await sock.recvfrom() == (b"hello", ECHO)
    with pytest.raises(BlockingIOError):
        sock.recvfrom_nowait()


async def test_a_datagram_that_is_too_big_is_refused_and_the_socket_lives(tunnel: Tunnel) -> None:
    async with tunnel.socket() as sock:
        with pytest.raises(OSError, match="long") as refused:
            await sock.sendto(b"x" * 20_000, ECHO)
        assert refused.value.errno == errno.EMSGSIZE
        await sock.sendto(b"y" * 3_000, ECHO)
        assert len((await sock.recvfrom())[0]) == 3_000


async def test_a_reader_that_is_behind_loses_the_oldest_and_knows(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "RECEIVE_QUEUE", 4)
    sock = tunnel.socket()
    sock.bind()
    for number in range(10):
        sock.received(bytes([number]), ECHO, 0)
    assert [(await sock.recvfrom())[0][0] for _ in range(4)] == [6, 7, 8, 9]
    assert sock.getsockopt(SOL_TSM, opentsm.SO_TSM_DROPPED) == 6


async def test_a_reader_that_is_cancelled_takes_nothing_with_it(tunnel: Tunnel) -> None:
    sock = tunnel.socket()
    sock.bind()
    first, second = asyncio.create_task(sock.recvfrom()), asyncio.create_task(sock.recvfrom())
    await asyncio.sleep(0)
    sock.received(b"for whom?", ECHO, 0)
    first.cancel()
    assert (await second)[0] == b"for whom?"


async def test_closed_means_closed(tunnel: Tunnel) -> None:
    sock = tunnel.socket()
    sock.bind()
    sock.close()
    sock.close()
    uses: list[Callable[[], object]] = [
        lambda: sock.sendto_nowait(b"x", ECHO),
        lambda: sock.set_mode(PathMode.AUTO),
        sock.recvfrom_nowait,
        sock.bind,
    ]
    for use in uses:
        with pytest.raises(TunnelClosedError):
            use()


async def test_an_endpoint_is_a_datagram_transport(tunnel: Tunnel) -> None:
    transport, protocol = await tunnel.create_datagram_endpoint(Recorder, local_addr=(None, 41000))
    assert isinstance(transport, asyncio.DatagramTransport)
    assert protocol.calls == ["made"]
    assert transport.get_extra_info("sockname") == (str(tunnel.inner_address), 41000)
    assert transport.get_extra_info("peername") is None
    transport.sendto(b"hello", ECHO)
    await protocol.got.wait()
    transport.sendto(b"x" * 20_000, ECHO)
    transport.close()
    assert transport.is_closing()
    transport.sendto(b"too late", ECHO)
    await asyncio.sleep(0)
    received, refused, lost = protocol.calls[1:]
    assert received == (b"hello", ECHO)
    assert refused.errno == errno.EMSGSIZE
    assert lost == ("lost", None)


async def test_an_endpoint_with_a_far_end(tunnel: Tunnel) -> None:
    transport, protocol = await tunnel.create_datagram_endpoint(
        Recorder, remote_addr=ECHO, mode=PathMode.DATAGRAM
    )
    assert (transport.get_extra_info("peername"), transport.mode) == (ECHO, PathMode.DATAGRAM)
    with pytest.raises(ValueError, match="must be None or"):
        transport.sendto(b"x", ("192.0.2.1", 1))
    await tunnel.wait_ddt_enabled(transport)
    transport.sendto(b"hello")
    await protocol.got.wait()
    assert transport.path is Path.DATAGRAM
    transport.close()


async def test_a_stream_that_is_full_pauses_the_writer_until_it_has_room(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, protocol = await tunnel.create_datagram_endpoint(Recorder, remote_addr=ECHO)
    waiting = 1 << 20
    monkeypatch.setattr(transport, "_queue_bytes", lambda: waiting)
    monkeypatch.setattr(transport.bound, "send", lambda *_: "drop_stream_queue_full")
    transport.sendto(b"x")
    transport.sendto(b"x")
    assert protocol.calls == ["made", "pause"]
    waiting = 0
    await until(lambda: protocol.calls[-1] == "resume")
    assert protocol.calls == ["made", "pause", "resume"]
    transport.close()


async def test_signalling_is_not_made_media_by_a_switch_that_was_never_turned(
    tunnel: Tunnel,
) -> None:
    """A row in the steering table makes its packets droppable; SIP must not get one by accident."""
    sip = tunnel.socket()
    sip.setsockopt(SOL_TSM, SO_TSM_TRANSPORT, "stream")
    sip.bind(("", 5060))
    sip.setsockopt(SOL_TSM, SO_TSM_TRANSPORT, "stream")
    session = tunnel._connection.plane_session
    assert session is not None
    assert tunnel.plane.core.flow_stats(session) == []
    sip.setsockopt(SOL_TSM, SO_TSM_TRANSPORT, "auto")
    assert [row.port for row in tunnel.plane.core.flow_stats(session)] == [5060]
    sip.close()
    assert tunnel.plane.core.flow_stats(session) == []
