"""The echo service: what comes by UDP or TCP goes back to whoever sent it (RFC 862), for test calls.

In user space it is inner sockets of the user plane; behind a TUN device, where the kernel owns the
server's inner addresses, ordinary sockets of the kernel's.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol, cast

from opentsm.errors import PlatformError
from opentsm.tasks import spawn
from opentsm.types import SocketAddress
from opentsm.userplane import Plane
from opentsm.userplane.tcp import InnerTcp

QUEUE: Final = 1024
"""Datagrams that may wait for the echo: 200 test calls at 50 packets/s, each for 100 ms."""

TURN: Final = 64
"""Datagrams answered before the event loop gets its turn."""

LARGEST: Final = 65535

MAX_STREAMS: Final = 256
"""TCP connections at once: a test tool has one. More are reset."""

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Echo(Protocol):
    """A running echo service on one address."""

    def close(self) -> None:
        """Answer nobody any more."""
        ...


class EchoStreams:
    """The TCP connections of one echo service; called, it makes the protocol of a new one."""

    def __init__(self) -> None:
        self.transports: set[asyncio.Transport] = set()

    def __call__(self) -> asyncio.Protocol:
        return _EchoStream(self.transports)

    def close(self) -> None:
        """End every connection."""
        for transport in tuple(self.transports):
            transport.abort()


class _EchoStream(asyncio.Protocol):
    """One TCP connection: reads no faster than the other end does."""

    def __init__(self, transports: set[asyncio.Transport]) -> None:
        self._transports = transports
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        if len(self._transports) >= MAX_STREAMS:
            transport.abort()
        else:
            self._transports.add(transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def pause_writing(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        assert self._transport is not None
        self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transports.discard(self._transport)


class InnerEcho:
    """Echo on an inner address of the user plane.

    Raises:
        PlatformError: the port is taken.
    """

    def __init__(self, plane: Plane, address: IPv4Address | IPv6Address, port: int) -> None:
        self._plane = plane
        try:
            self._socket, _ = plane.core.udp_open(session=None, address=str(address), port=port, queue=QUEUE)
            self._streams = EchoStreams()
            try:
                self._listener = InnerTcp(plane).listen(self._streams, str(address), port)
            except OSError:
                plane.core.udp_close(self._socket)
                raise
        except OSError as error:
            raise PlatformError(f"cannot open the echo service on {address} port {port}: {error}") from error
        plane.watch_socket(self._socket, self._answer)

    def _answer(self, data: bytes, source: SocketAddress, path: int) -> None:
        # What cannot be sent back is a counted drop of the user plane, as for any datagram.
        self._plane.core.udp_send(self._socket, data, source[0], source[1])

    def close(self) -> None:
        """See ``Echo``."""
        self._plane.unwatch_socket(self._socket)
        self._plane.core.udp_close(self._socket)
        self._listener.close()
        self._streams.close()


class KernelEcho:
    """Echo on an address that the kernel owns.

    Raises:
        PlatformError: the port cannot be opened.
    """

    def __init__(self, address: IPv4Address | IPv6Address, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        family = _FAMILIES[address.version]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._listening = socket.socket(family, socket.SOCK_STREAM)
        self._streams = EchoStreams()
        self._server: asyncio.Server | None = None
        self._socket.setblocking(False)
        try:
            self._socket.bind((str(address), port))
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listening.bind((str(address), port))
            self._listening.listen()
        except OSError as error:
            self._socket.close()
            self._listening.close()
            hint = "; ports below 1024 need CAP_NET_BIND_SERVICE" if error.errno == errno.EACCES else ""
            what = f"cannot open the echo service on {address} port {port}"
            raise PlatformError(f"{what}: {error.strerror}{hint}") from error
        self._loop.add_reader(self._socket, self._answer)
        self._serving = spawn("echo by TCP", self._serve())

    async def _serve(self) -> None:
        self._server = await self._loop.create_server(self._streams, sock=self._listening)

    def _answer(self) -> None:
        """Some datagrams at a time, so that others get their turn. What cannot be sent back now is lost."""
        with suppress(OSError):
            for _ in range(TURN):
                data, source = self._socket.recvfrom(LARGEST)
                self._socket.sendto(data, source)

    def close(self) -> None:
        """See ``Echo``."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._serving.cancel()
        if self._server is not None:
            self._server.close()
        self._listening.close()
        self._streams.close()
