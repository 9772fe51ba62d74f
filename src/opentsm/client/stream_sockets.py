"""An inner TCP socket with BSD's calls, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from ipaddress import ip_address
from typing import Final

from opentsm.client.inner_tcp import STREAM_LIMIT, TunnelTcp, open_streams
from opentsm.errors import TunnelClosedError
from opentsm.types import SocketAddress
from opentsm.userplane.tcp import BACKLOG, InnerServer

_ANY: Final = ("0.0.0.0", 0)


class InnerStreamSocket:
    """A TCP socket inside the tunnel. Made by ``Tunnel.socket(type=SOCK_STREAM)``; to be used in the tunnel's
    event loop. Inner TCP goes by the stream tunnel, so there is no switch to turn."""

    def __init__(self, tcp: TunnelTcp, family: int = socket.AF_UNSPEC) -> None:
        if family not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        self._tcp = tcp
        self._family = family
        self._bound: SocketAddress | None = None
        self._server: InnerServer | None = None
        self._backlog = BACKLOG
        self._accepted: deque[InnerStreamSocket] = deque()
        self._acceptable = asyncio.Event()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "listening" if self._server else "connected"
        return f"<InnerStreamSocket {state if self._server or self._writer or self._closed else 'new'}>"

    async def __aenter__(self) -> InnerStreamSocket:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    # -- addresses --------------------------------------------------------------------------------------

    @property
    def family(self) -> socket.AddressFamily:
        if self._family == socket.AF_UNSPEC and (self._server or self._writer):
            six = ip_address(self.getsockname()[0]).version == 6
            return socket.AF_INET6 if six else socket.AF_INET
        return socket.AddressFamily(self._family)

    def bind(self, address: SocketAddress = ("", 0)) -> None:
        """Choose the inner address (``""``: the tunnel's own) and port for ``listen`` or ``connect``; whether
        they can be had turns out there.

        Raises:
            OSError: EINVAL, it is bound, connected or listening.
        """
        self._check(new=True)
        if self._bound is not None:
            raise OSError(errno.EINVAL, "the socket is bound already")
        self._bound = address

    def getsockname(self) -> SocketAddress:
        if self._server is not None:
            return self._server.sockname
        if self._writer is not None:
            return _pair(self._writer, "sockname")
        return self._bound or _ANY

    def getpeername(self) -> SocketAddress:
        """Raises OSError ENOTCONN for a socket without a peer."""
        return _pair(self._connected(), "peername")

    # -- making connections -----------------------------------------------------------------------------

    async def connect(self, address: SocketAddress) -> None:
        """Connect.

        Raises:
            OSError: ConnectionRefusedError, TimeoutError, EADDRINUSE, EADDRNOTAVAIL, EISCONN.
            TunnelClosedError: the tunnel or the socket is closed.
        """
        self._check(new=True)
        local = (self._bound[0] or None, self._bound[1]) if self._bound else None
        host, port = address
        self._reader, self._writer = await open_streams(
            lambda factory: self._tcp.create_connection(factory, host, port, local), STREAM_LIMIT
        )
        if self._closed:  # meanwhile
            self._writer.transport.abort()
            raise TunnelClosedError("the socket is closed")

    def listen(self, backlog: int = BACKLOG) -> None:
        """Listen where ``bind`` said.

        Raises:
            OSError: EADDRINUSE, EADDRNOTAVAIL, EMFILE; EINVAL, it is connected or listening.
            TunnelClosedError: the tunnel or the socket is closed.
        """
        self._check(new=True)
        address, port = self._bound or ("", 0)
        ipv6 = None if self._family == socket.AF_UNSPEC else self._family == socket.AF_INET6
        self._backlog = max(1, backlog)
        self._server = self._tcp.listen(self._incoming, (address or None, port), backlog, ipv6)
        self._server.on_stop = self._acceptable.set

    async def accept(self) -> tuple[InnerStreamSocket, SocketAddress]:
        """The next connection and who made it; waits for one.

        Raises:
            OSError: EINVAL, it does not listen. TunnelClosedError: it is closed, or the tunnel is.
        """
        while not self._accepted:
            self._check()
            if self._server is None:
                raise OSError(errno.EINVAL, "the socket does not listen")
            if not self._server.is_serving():
                raise TunnelClosedError("the tunnel has taken the socket's address away")
            self._acceptable.clear()
            await self._acceptable.wait()
        made = self._accepted.popleft()
        return made, made.getpeername()

    def _incoming(self) -> asyncio.StreamReaderProtocol:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=STREAM_LIMIT, loop=loop)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._closed or len(self._accepted) >= self._backlog:
                writer.transport.abort()
                return
            made = InnerStreamSocket(self._tcp, self._family)
            made._reader, made._writer = reader, writer
            self._accepted.append(made)
            self._acceptable.set()

        return asyncio.StreamReaderProtocol(reader, connected, loop=loop)

    # -- bytes ------------------------------------------------------------------------------------------

    async def recv(self, size: int) -> bytes:
        """At most ``size`` bytes, at least one; none when the peer sends no more.

        Raises:
            OSError: ENOTCONN; ConnectionResetError, TimeoutError. TunnelClosedError: the tunnel is closed.
        """
        self._connected()
        assert self._reader is not None
        return await self._reader.read(size)

    async def sendall(self, data: bytes) -> None:
        """Send everything; waits while the peer is behind. Raises as ``recv`` does."""
        writer = self._connected()
        writer.write(data)
        await writer.drain()

    async def send(self, data: bytes) -> int:
        """As ``sendall``; the length sent, which is all."""
        await self.sendall(data)
        return len(data)

    def shutdown(self, how: int = socket.SHUT_WR) -> None:
        """Send no more; the peer reads an end.

        Raises:
            OSError: EOPNOTSUPP, only SHUT_WR is offered; ENOTCONN.
        """
        if how != socket.SHUT_WR:
            raise OSError(errno.EOPNOTSUPP, "only SHUT_WR")
        self._connected().write_eof()

    def close(self) -> None:
        """Close it, sending what is queued; connections nobody has accepted are reset."""
        if self._closed:
            return
        self._closed = True
        self._acceptable.set()
        if self._server is not None:
            self._server.close()
        for waiting in self._accepted:
            if waiting._writer is not None:
                waiting._writer.transport.abort()
        self._accepted.clear()
        if self._writer is not None:
            with contextlib.suppress(RuntimeError):
                self._writer.close()

    @property
    def closed(self) -> bool:
        return self._closed

    # -- helpers ----------------------------------------------------------------------------------------

    def _check(self, *, new: bool = False) -> None:
        if self._closed:
            raise TunnelClosedError("the socket is closed")
        if new and self._writer is not None:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        if new and self._server is not None:
            raise OSError(errno.EINVAL, "the socket listens")

    def _connected(self) -> asyncio.StreamWriter:
        self._check()
        if self._writer is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._writer


def _pair(writer: asyncio.StreamWriter, name: str) -> SocketAddress:
    address, port = writer.get_extra_info(name)[:2]
    return address, port
