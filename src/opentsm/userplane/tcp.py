"""Inner TCP without a kernel: connections of the user plane as ordinary asyncio transports.

``InnerTcp`` is one inner host: a client's session, or a server's own inner addresses (those given to
``route_local``). What asyncio documents for ``Transport``, ``create_connection`` and ``create_server`` holds
for what it makes, so protocols written for sockets run on it unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

import structlog

from opentsm.types import SocketAddress
from opentsm.userplane._core import TcpAccepted, TcpClosed, TcpConnected
from opentsm.userplane.plane import ConnectionEvent, Plane
from opentsm.userplane.transport import InnerTransport, error_of

P = TypeVar("P", bound=asyncio.BaseProtocol)

INNER_MTU: Final = 1400
"""Largest inner packet, where nobody says otherwise: what servers tell their clients."""

BACKLOG: Final = 128
"""Connections of one listener that are half open, or that the program has not been told of."""

_log = structlog.get_logger("opentsm.userplane")


class InnerServer(asyncio.AbstractServer):
    """A listener. Made by ``InnerTcp.create_server``; accepts from the beginning.

    Attributes:
        sockname: inner address and port it listens on; the port is the one chosen where 0 was asked for.
        on_stop: called when it accepts no more, by whomever it was closed.
    """

    def __init__(
        self,
        plane: Plane,
        listener: int,
        sockname: SocketAddress,
        factory: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        self.sockname = sockname
        self.on_stop: Callable[[], None] | None = None
        self._plane = plane
        self._listener = listener
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._transports: set[InnerTransport] = set()
        self._serving = True
        self._stopped = asyncio.Event()
        self._gone = asyncio.Event()
        plane.watch_tcp_listener(listener, self._accept)

    async def __aenter__(self) -> InnerServer:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Accept no more; connections already accepted stay."""
        if not self._serving:
            return
        self._serving = False
        self._stopped.set()
        if self.on_stop is not None:
            self.on_stop()
        self._plane.unwatch_tcp_listener(self._listener)
        self._plane.core.tcp_unlisten(self._listener)
        self._look_whether_gone()

    def close_clients(self) -> None:
        """Close every accepted connection."""
        for transport in tuple(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        """Reset every accepted connection."""
        for transport in tuple(self._transports):
            transport.abort()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        """False after ``close``."""
        return self._serving

    async def start_serving(self) -> None:
        """Nothing to do: it serves from the beginning."""

    async def serve_forever(self) -> None:
        """Serve until cancelled or closed; then it is closed."""
        try:
            await self._stopped.wait()
        finally:
            self.close()

    async def wait_closed(self) -> None:
        """Wait until it is closed and so is every connection it accepted."""
        await self._gone.wait()

    def _accept(self, event: TcpAccepted) -> None:
        core = self._plane.core
        try:
            protocol = self._factory()
            transport = InnerTransport(
                core,
                event.connection,
                protocol,
                sockname=event.local,
                peername=event.peer,
                forget=self._forget,
            )
            self._transports.add(transport)
            self._plane.watch_connection(event.connection, transport.handle)
            transport.start()
        except Exception:
            _log.exception("inner-accept-failed", local=event.local, peer=event.peer)
            self._plane.unwatch_connection(event.connection)
            core.tcp_abort(event.connection)

    def _forget(self, transport: InnerTransport) -> None:
        self._plane.unwatch_connection(transport.connection)
        self._transports.discard(transport)
        self._look_whether_gone()

    def _look_whether_gone(self) -> None:
        if not self._serving and not self._transports:
            self._gone.set()


class InnerTcp:
    """TCP of one inner host.

    Args:
        plane: the user plane.
        session: a client's session; None is a server's own inner addresses.
        mtu: largest inner packet in bytes; the maximum segment size comes from it (RFC 9293 section 3.7.1).
    """

    def __init__(self, plane: Plane, *, session: int | None = None, mtu: int = INNER_MTU) -> None:
        self._plane = plane
        self._session = session
        self._mtu = mtu

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        address: str,
        port: int,
        *,
        backlog: int = BACKLOG,
    ) -> InnerServer:
        """Listen; each connection gets a protocol and a transport, as with ``loop.create_server``.

        ``get_extra_info`` of a transport knows ``peername`` and ``sockname``: inner address and port.

        Args:
            address: one inner address, no wildcard.
            port: 0 picks a free one.

        Raises:
            OSError: EADDRINUSE; EADDRNOTAVAIL, the address is not the host's; EMFILE.
            ValueError: the address is no IP address.
        """
        return self.listen(protocol_factory, address, port, backlog=backlog)

    def listen(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        address: str,
        port: int,
        *,
        backlog: int = BACKLOG,
    ) -> InnerServer:
        """``create_server`` for callers that cannot wait; there is nothing to wait for."""
        listener, chosen = self._plane.core.tcp_listen(
            session=self._session, address=address, port=port, backlog=backlog, mtu=self._mtu
        )
        return InnerServer(self._plane, listener, (address, chosen), protocol_factory)

    async def create_connection(
        self,
        protocol_factory: Callable[[], P],
        address: str,
        port: int,
        *,
        local_addr: SocketAddress,
    ) -> tuple[asyncio.Transport, P]:
        """Connect, as ``loop.create_connection`` does.

        Args:
            address: an inner address; names are not looked up.
            local_addr: inner address to connect from, and port (0: a free one).

        Raises:
            OSError: ConnectionRefusedError, TimeoutError, EADDRNOTAVAIL, EADDRINUSE, EMFILE.
            TunnelClosedError: the tunnel went away meanwhile.
            ValueError: an address is no IP address, or of the other family.
        """
        opening = _Opening(self._plane, protocol_factory)
        connection = self._plane.core.tcp_connect(
            session=self._session, local=local_addr, remote=(address, port), mtu=self._mtu
        )
        return await opening.established(connection)


class _Opening:
    """A connection on its way: what comes before there is a transport."""

    def __init__(self, plane: Plane, factory: Callable[[], Any]) -> None:
        self._plane = plane
        self._factory = factory
        self._transport: InnerTransport | None = None
        self._done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def established(self, connection: int) -> tuple[asyncio.Transport, Any]:
        self._plane.watch_connection(connection, self._handle)
        try:
            protocol = await self._done
        except BaseException:
            self._plane.unwatch_connection(connection)
            self._plane.core.tcp_abort(connection)
            raise
        assert self._transport is not None
        return self._transport, protocol

    def _handle(self, event: ConnectionEvent) -> None:
        if self._transport is not None:
            if not isinstance(event, TcpConnected):
                self._transport.handle(event)
        elif self._done.done():
            return
        elif isinstance(event, TcpConnected):
            self._begin(event)
        elif isinstance(event, TcpClosed):
            self._done.set_exception(error_of(event.reason) or ConnectionAbortedError(event.reason))

    def _begin(self, event: TcpConnected) -> None:
        try:
            protocol = self._factory()
            self._transport = InnerTransport(
                self._plane.core,
                event.connection,
                protocol,
                sockname=event.local,
                peername=event.peer,
                forget=lambda transport: self._plane.unwatch_connection(transport.connection),
            )
            self._transport.start()
        except Exception as error:
            self._done.set_exception(error)
            return
        self._done.set_result(protocol)
