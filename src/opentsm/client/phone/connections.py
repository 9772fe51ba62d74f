"""A phone's SIP connections: made when something is to be sent, kept alive, found by their far ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, cast

from opentsm.client.phone.framing import PING, PONG, Framing
from opentsm.errors import RemoteProtocolError, TunnelError
from opentsm.tasks import spawn
from opentsm.types import SocketAddress

MAX_CONNECTIONS: Final = 128
"""Connections at once: a phone has one with its server; one that is called directly has one per caller."""

MAX_UNSENT: Final = 128 * 1024
"""Bytes that may wait for one connection: eight of the largest messages."""

PING_AFTER: Final = 100.0
"""Seconds without a word after which the far end is asked (RFC 5626 section 4.4.1: 95 to 120)."""

PONG_WITHIN: Final = 10.0
"""Seconds it may take to answer (the same)."""

B = TypeVar("B", bound=asyncio.BaseProtocol)


class Listener(Protocol):
    """What accepts connections."""

    def close(self) -> None: ...


class StreamSockets(Protocol):
    """Where a phone gets its connections: an ``opentsm.Tunnel``."""

    async def create_connection(
        self,
        protocol_factory: Callable[[], B],
        host: str,
        port: int,
        *,
        local_addr: tuple[str | None, int] | None = None,
    ) -> tuple[asyncio.Transport, B]: ...
    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str | None = None, port: int = 0
    ) -> Listener: ...


class Connections:
    """All SIP connections of one phone.

    Args:
        sockets: where they are made. host: our inner address.
        receive: called with each message and the far end's address.
        failed: called with the address of a connection that is gone or could not be made.
    """

    def __init__(
        self,
        sockets: StreamSockets,
        host: str,
        receive: Callable[[bytes, SocketAddress], None],
        failed: Callable[[SocketAddress], None],
    ) -> None:
        self.drops: Counter[str] = Counter()
        self.receive = receive
        self._sockets = sockets
        self._host = host
        self._failed = failed
        self._known: dict[SocketAddress, _Connection] = {}
        self._listener: Listener | None = None
        self._closed = False

    async def listen(self, port: int) -> None:
        """Accept connections at this port.

        Raises:
            OSError: it is taken. TunnelError: the tunnel is closed.
        """
        self._listener = await self._sockets.create_server(lambda: _Connection(self), self._host, port)

    def send(self, data: bytes, to: SocketAddress) -> None:
        """Send by the connection with this address, made now if there is none."""
        connection = self._known.get(to)
        if connection is None:
            if len(self._known) >= MAX_CONNECTIONS:
                self.drops["sip-too-many-connections"] += 1
                asyncio.get_running_loop().call_soon(self._failed, to)
                return
            connection = self._known[to] = _Connection(self, to)
            spawn("SIP connection", self._connect(connection, to))
        connection.send(data)

    def close(self) -> None:
        """Close everything; messages that were sent still arrive."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._known.values()):
            connection.close()
        self._known.clear()

    async def _connect(self, connection: _Connection, to: SocketAddress) -> None:
        try:
            transport, _ = await self._sockets.create_connection(
                lambda: connection, to[0], to[1], local_addr=(self._host, 0)
            )
        except (OSError, TunnelError, ValueError):
            self.gone(connection)
            return
        if self._closed:
            transport.close()

    # -- called by connections ----------------------------------------------------------------------------

    def made(self, connection: _Connection, far: SocketAddress) -> None:
        """A connection stands; one that was accepted is known from now on."""
        if self._known.setdefault(far, connection) is not connection or len(self._known) > MAX_CONNECTIONS:
            self.drops["sip-too-many-connections"] += 1
            connection.close()

    def gone(self, connection: _Connection) -> None:
        """A connection is over."""
        far = connection.far
        if far is not None and self._known.get(far) is connection:
            del self._known[far]
            if not self._closed:
                self._failed(far)


class _Connection(asyncio.Protocol):
    """One connection. ``far`` is known from the beginning where we made it."""

    def __init__(self, all_of_them: Connections, far: SocketAddress | None = None) -> None:
        self.far = far
        self._all = all_of_them
        self._framing = Framing()
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._ours = far is not None

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._waiting += data
        elif self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._all.drops["sip-connection-backed-up"] += 1
            self._transport.abort()
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()

    # -- asyncio ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        if self.far is None:
            address, port = transport.get_extra_info("peername")[:2]
            self.far = (address, port)
        self._all.made(self, self.far)
        transport.write(bytes(self._waiting))
        self._waiting.clear()
        self._wait(PING_AFTER, self._ping)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        assert self.far is not None
        self._wait(PING_AFTER, self._ping)
        try:
            messages = self._framing.feed_untrusted(data)
        except RemoteProtocolError as error:
            self._all.drops[error.reason] += 1
            self._transport.abort()
            return
        for message in messages:
            if message == PING:
                self._transport.write(PONG)
            elif message != PONG:
                self._all.receive(message, self.far)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._all.gone(self)

    # -- keepalive: who made the connection asks ------------------------------------------------------------

    def _wait(self, seconds: float, then: Callable[[], Any]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ours:
            self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _ping(self) -> None:
        assert self._transport is not None
        self._transport.write(PING)
        self._wait(PONG_WITHIN, self._transport.abort)
