"""Inner TCP without a kernel: connections of the user plane as ordinary asyncio transports.

``InnerTcp`` is one inner host: a client's session, or a server's own inner addresses (those given to
``route_local``). What asyncio documents for ``Transport``, ``create_connection`` and ``create_server`` holds
for what it makes, so protocols written for sockets run on it unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from opentsm.errors import PlatformError
from opentsm.types import SocketAddress
from opentsm.userplane.plane import Plane

P = TypeVar("P", bound=asyncio.BaseProtocol)

INNER_MTU: Final = 1400
"""Largest inner packet, where nobody says otherwise: what servers tell their clients."""

BACKLOG: Final = 128
"""Connections of one listener that are half open, or that the program has not been told of."""


class InnerServer:
    """A listener. Made by ``InnerTcp.create_server``.

    Attributes:
        sockname: inner address and port it listens on; the port is the one chosen where 0 was asked for.
    """

    sockname: SocketAddress

    def close(self) -> None:
        """Accept no more; connections already accepted stay."""
        raise PlatformError("this build has no inner TCP in user space")

    def is_serving(self) -> bool:
        """False after ``close``, and when the tunnel has taken the address away."""
        return False


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
            PlatformError: this build has no inner TCP in user space.
        """
        raise PlatformError("this build has no inner TCP in user space")

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
            PlatformError: this build has no inner TCP in user space.
        """
        raise PlatformError("this build has no inner TCP in user space")
