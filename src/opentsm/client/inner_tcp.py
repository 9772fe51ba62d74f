"""TCP inside a tunnel: the user plane's own, or, where a TUN device carries the tunnel, the kernel's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from opentsm.client.binding import pick_address
from opentsm.client.tun import DEFAULT_MTU
from opentsm.types import SocketAddress
from opentsm.userplane.tcp import BACKLOG, InnerServer, InnerTcp

if TYPE_CHECKING:
    from opentsm.client.connection import Connection

P = TypeVar("P", bound=asyncio.BaseProtocol)
LocalAddress = tuple[str | None, int]
ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

STREAM_LIMIT = 64 * 1024
"""Bytes a StreamReader holds before it stops its peer; asyncio's own figure."""


class TunnelTcp:
    """The TCP of one tunnel. What asyncio documents for the calls of the same names holds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._servers: set[InnerServer] = set()

    async def create_connection(
        self,
        factory: Callable[[], P],
        host: str,
        port: int,
        local_addr: LocalAddress | None,
    ) -> tuple[asyncio.Transport, P]:
        """Connect to an inner address; see ``Tunnel.create_connection``."""
        local = self._local(local_addr, ipv6=ip_address(host).version == 6)
        if self._connection.has_tun:
            loop = asyncio.get_running_loop()
            return await loop.create_connection(factory, host, port, local_addr=local)
        return await self._stack().create_connection(factory, host, port, local_addr=local)

    async def create_server(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str | None,
        port: int,
        backlog: int = BACKLOG,
    ) -> asyncio.AbstractServer:
        """Listen on an inner address; see ``Tunnel.create_server``."""
        if self._connection.has_tun:
            address, port = self._local((host, port))
            loop = asyncio.get_running_loop()
            return await loop.create_server(factory, address, port, backlog=backlog)
        return self.listen(factory, (host, port), backlog)

    def listen(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        local_addr: LocalAddress,
        backlog: int = BACKLOG,
        ipv6: bool | None = None,
    ) -> InnerServer:
        """Listen in the user plane."""
        stack = self._stack()
        address, port = self._local(local_addr, ipv6)
        server = stack.listen(factory, address, port, backlog=backlog)
        self._servers = {known for known in self._servers if known.is_serving()} | {server}
        return server

    def lose(self) -> None:
        """The inner addresses are gone: nobody listens on them any more. Connections hear by themselves."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _stack(self) -> InnerTcp:
        connection = self._connection
        session = connection.require_session()
        configuration = connection.session.configuration
        mtu = (configuration.inner_mtu if configuration else None) or DEFAULT_MTU
        return InnerTcp(connection.plane, session=session, mtu=mtu)

    def _local(self, wanted: LocalAddress | None, ipv6: bool | None = None) -> SocketAddress:
        self._connection.require_session()
        address, port = wanted or (None, 0)
        return str(pick_address(self._connection.addresses, address, ipv6)), port


async def open_streams(
    connect: Callable[[Callable[[], asyncio.StreamReaderProtocol]], Any], limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """What ``asyncio.open_connection`` does, over any way to connect a protocol."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await connect(lambda: protocol)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def stream_factory(callback: ClientConnected, limit: int) -> Callable[[], asyncio.StreamReaderProtocol]:
    """What ``asyncio.start_server`` makes of its callback."""
    loop = asyncio.get_running_loop()

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return asyncio.StreamReaderProtocol(reader, callback, loop=loop)

    return factory
