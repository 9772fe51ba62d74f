"""A call's inner sockets: what the phone needs of a tunnel, and a pair of ports for RTP and RTCP."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from opentsm.client.phone.connections import StreamSockets
from opentsm.types import IpAddress, Path, PathMode, SocketAddress

RTP_PORTS: Final = range(16384, 32768, 2)
"""RTP has the even port, RTCP the next (RFC 3550 section 11); the range is the one many phones use."""

PORT_TRIES: Final = 64
"""Pairs of ports tried before it is said that none is free."""

Handler = Callable[[bytes, SocketAddress], None]
P = TypeVar("P", bound=asyncio.DatagramProtocol)


class SwitchedTransport(Protocol):
    """What a tunnel's datagram transport offers, and is used here."""

    @property
    def path(self) -> Path: ...
    def set_mode(self, mode: PathMode) -> None: ...
    def sendto(self, data: bytes, addr: Any = None) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    def close(self) -> None: ...


class Sockets(StreamSockets, Protocol):
    """Where a phone gets its sockets: an ``opentsm.Tunnel``."""

    @property
    def inner_address(self) -> IpAddress: ...
    async def create_datagram_endpoint(
        self, protocol_factory: Callable[[], P], local_addr: tuple[str | None, int] | None = None
    ) -> tuple[SwitchedTransport, P]: ...


class Datagrams(asyncio.DatagramProtocol):
    """Hands each datagram to a function, and says when the tunnel has taken the socket away.

    Attributes:
        handler, lost: may be set at any time.
    """

    def __init__(self, handler: Handler | None = None, lost: Callable[[str], None] | None = None) -> None:
        self.handler = handler
        self.lost = lost

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.handler is not None:
            self.handler(data, (addr[0], addr[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.lost is not None:
            self.lost(str(exc))


class Ports:
    """The RTP and RTCP sockets of one call."""

    rtp: SwitchedTransport
    rtcp: SwitchedTransport
    port: int

    def __init__(self) -> None:
        self._protocols = (Datagrams(), Datagrams())

    async def open(self, sockets: Sockets) -> Ports:
        """Bind a pair of ports.

        Raises:
            OSError: none is free.
        """
        first = secrets.randbelow(len(RTP_PORTS))
        for offset in range(PORT_TRIES):
            self.port = RTP_PORTS[(first + offset) % len(RTP_PORTS)]
            if await self._try(sockets):
                return self
        raise OSError(f"no two free ports among {PORT_TRIES} pairs from {RTP_PORTS[first]}")

    def listen(self, rtp: Handler, rtcp: Handler, lost: Callable[[str], None]) -> None:
        """Hand out what comes from now on."""
        for protocol, handler in zip(self._protocols, (rtp, rtcp), strict=True):
            protocol.handler, protocol.lost = handler, lost

    def set_mode(self, mode: PathMode) -> None:
        """Turn the media switch. RTCP goes where RTP goes, so that it measures the same way."""
        self.rtp.set_mode(mode)
        self.rtcp.set_mode(mode)

    def close(self) -> None:
        self.rtp.close()
        self.rtcp.close()

    async def _try(self, sockets: Sockets) -> bool:
        host = str(sockets.inner_address)
        rtp, rtcp = self._protocols
        try:
            self.rtp, _ = await sockets.create_datagram_endpoint(lambda: rtp, (host, self.port))
        except OSError:
            return False
        try:
            self.rtcp, _ = await sockets.create_datagram_endpoint(lambda: rtcp, (host, self.port + 1))
        except OSError:
            self.rtp.close()
            return False
        return True


def received_path(transport: SwitchedTransport) -> Path | None:
    """The path by which the datagram that is being delivered has come, where the transport says so."""
    path = transport.get_extra_info("received_path")
    return Path(path) if path in (0, 1) else None
