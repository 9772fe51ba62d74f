"""An inner UDP socket with BSD's calls, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Final, Protocol

from opentsm.client.binding import Binding, Owner
from opentsm.errors import TunnelClosedError
from opentsm.types import Coding, Flow, Path, PathMode, Redundancy, SocketAddress

SOL_TSM: Final = 0x7473
"""Level of our socket options: "ts", far from the system's numbers."""

SO_TSM_TRANSPORT: Final = 1
"""Option: the transport switch, a ``PathMode`` (or its number, or its name in small letters)."""

SO_TSM_PATH: Final = 2
"""Option, to be read only: the ``Path`` that packets take now."""

SO_TSM_DROPPED: Final = 3
"""Option, to be read only: datagrams that came and were dropped because nobody read them."""

SO_TSM_REDUNDANCY: Final = 4
"""Option: media on several streams, a ``Redundancy`` (or its number, or its text: ``fan-out:2``). It holds
for the whole tunnel, because the streams are the tunnel's."""

SO_TSM_CODING: Final = 5
"""Option: redundancy and FEC on the datagram tunnel, and header compression: a ``Coding`` (or its number, or
its text: ``auto``, ``1,no-fec``). It holds for the whole tunnel."""

RECEIVE_QUEUE: Final = 512
"""Datagrams that wait to be read: ten seconds of a call. When it is full the oldest goes, as it is the one
that media needs least."""


class Wide(Protocol):
    """What a socket may set for its whole tunnel."""

    @property
    def redundancy(self) -> Redundancy: ...
    def set_redundancy(self, redundancy: Redundancy | str | None) -> None: ...
    @property
    def coding(self) -> Coding: ...
    def set_coding(self, coding: Coding | str) -> None: ...


Bind = Callable[[str | None, int, bool | None, Owner], Binding]


class InnerSocket:
    """A UDP socket inside the tunnel. Made by ``Tunnel.socket``; to be used in the tunnel's event loop,
    except ``sendto_nowait``, which any thread may call once the socket is bound.

    As with BSD's sockets, options may be set before ``bind``, and the first ``sendto`` or ``connect`` binds
    a socket that is not bound. Binding is what makes the switch act: with the switch on datagram it asks the
    server for the DDT.

    Attributes:
        dropped: datagrams dropped because the reader was RECEIVE_QUEUE behind.
    """

    def __init__(self, bind: Bind, family: int = socket.AF_UNSPEC, wide: Wide | None = None) -> None:
        if family not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        self.dropped = 0
        self._bind = bind
        self._wide = wide
        self._family = family
        self._mode = PathMode.STREAM
        self._binding: Binding | None = None
        self._peer: SocketAddress | None = None
        self._queue: deque[tuple[bytes, SocketAddress]] = deque()
        self._readers: deque[asyncio.Future[None]] = deque()
        self._error: TunnelClosedError | None = None

    def __repr__(self) -> str:
        if self._binding is None:
            return f"<InnerSocket {'closed' if self._error else 'unbound'}>"
        address, port = self.getsockname()
        return f"<InnerSocket {address} port {port}, switch {self.mode.name.lower()}>"

    async def __aenter__(self) -> InnerSocket:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    # -- addresses --------------------------------------------------------------------------------------

    def bind(self, address: SocketAddress = ("", 0)) -> None:
        """Bind to an inner address (``""`` or a wildcard: the tunnel's own) and a port (0: a free one).

        Raises:
            OSError: EINVAL, it is bound; EADDRINUSE; EADDRNOTAVAIL.
            TunnelClosedError: the tunnel or the socket is closed.
        """
        self._check_open()
        if self._binding is not None:
            raise OSError(errno.EINVAL, "the socket is bound already")
        ipv6 = None if self._family == socket.AF_UNSPEC else self._family == socket.AF_INET6
        self._binding = self._bind(address[0] or None, address[1], ipv6, self)
        if self._mode is not PathMode.STREAM:
            self._binding.set_mode(self._mode)

    def connect(self, address: SocketAddress) -> None:
        """Send to this address by default, and receive from it only."""
        self._bound()
        self._peer = (address[0], address[1])

    def getsockname(self) -> SocketAddress:
        if self._binding is None:
            return ("::" if self._family == socket.AF_INET6 else "0.0.0.0", 0)
        return (str(self._binding.address), self._binding.port)

    def getpeername(self) -> SocketAddress:
        """Raises OSError ENOTCONN for a socket without a peer."""
        if self._peer is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._peer

    @property
    def family(self) -> socket.AddressFamily:
        if self._binding is not None:
            return socket.AF_INET6 if isinstance(self._binding.address, IPv6Address) else socket.AF_INET
        return socket.AddressFamily(self._family)

    @property
    def flow(self) -> Flow | None:
        return None if self._binding is None else self._binding.flow

    # -- options ----------------------------------------------------------------------------------------

    def setsockopt(self, level: int, option: int, value: PathMode | Redundancy | Coding | int | str) -> None:
        """Set SO_TSM_TRANSPORT, SO_TSM_REDUNDANCY or SO_TSM_CODING, at any time, as often as one likes.

        Raises:
            OSError: ENOPROTOOPT, no such option; EINVAL, no such value.
            TunnelClosedError: the socket is closed.
        """
        if level == SOL_TSM and option == SO_TSM_CODING and self._wide is not None:
            self._check_open()
            self._wide.set_coding(_coding(value))
        elif isinstance(value, Coding):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        elif level == SOL_TSM and option == SO_TSM_REDUNDANCY and self._wide is not None:
            self._check_open()
            self._wide.set_redundancy(_redundancy(value))
        elif level == SOL_TSM and option == SO_TSM_TRANSPORT and not isinstance(value, Redundancy):
            self.set_mode(_mode(value))
        else:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

    def getsockopt(self, level: int, option: int) -> int:
        """SO_TSM_TRANSPORT gives the switch, SO_TSM_PATH the path in force, SO_TSM_DROPPED a count,
        SO_TSM_REDUNDANCY and SO_TSM_CODING the numbers of the tunnel's redundancy and coding."""
        readers: dict[int, Callable[[], int]] = {
            SO_TSM_TRANSPORT: lambda: self.mode,
            SO_TSM_PATH: lambda: self.path,
            SO_TSM_DROPPED: lambda: self.dropped,
            SO_TSM_CODING: lambda: 0 if self._wide is None else self._wide.coding.number,
            SO_TSM_REDUNDANCY: lambda: 0 if self._wide is None else self._wide.redundancy.number,
        }
        if level != SOL_TSM or option not in readers:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return readers[option]()

    @property
    def mode(self) -> PathMode:
        """Where the switch stands."""
        return self._mode

    def set_mode(self, mode: PathMode) -> None:
        """Turn the switch; before ``bind`` it is kept for then."""
        self._check_open()
        if self._binding is not None:
            self._binding.set_mode(mode)
        self._mode = mode

    @property
    def path(self) -> Path:
        """The path that packets take now."""
        return Path.STREAM if self._binding is None else self._binding.path

    @property
    def drops(self) -> dict[str, int]:
        """Datagrams that did not leave, by the name of the drop."""
        return {} if self._binding is None else dict(self._binding.drops)

    # -- datagrams --------------------------------------------------------------------------------------

    def sendto_nowait(self, data: bytes, address: SocketAddress | None = None) -> str | None:
        """Send one datagram. None, or the name of the drop if it could not even leave.

        Raises:
            TunnelClosedError: the socket is closed, or its address is gone.
            OSError: EMSGSIZE; EDESTADDRREQ, no address and no peer.
        """
        to = address or self._peer
        if to is None:
            raise OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
        return self._bound().send(data, to)

    async def sendto(self, data: bytes, address: SocketAddress | None = None) -> int:
        """Like ``sendto_nowait``, as BSD has it: the length sent; a drop is silent (see ``drops``)."""
        self.sendto_nowait(data, address)
        return len(data)

    def recvfrom_nowait(self) -> tuple[bytes, SocketAddress]:
        """The next datagram and where it came from.

        Raises:
            BlockingIOError: there is none.
            TunnelClosedError: there is none, and none will come.
        """
        if self._queue:
            return self._queue.popleft()
        self._check_open()
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def recvfrom(self) -> tuple[bytes, SocketAddress]:
        """The next datagram and where it came from; waits for it.

        Raises:
            TunnelClosedError: none will come.
        """
        while True:
            with contextlib.suppress(BlockingIOError):
                return self.recvfrom_nowait()
            await self._readable()

    def close(self) -> None:
        """Close it; who waits in ``recvfrom`` gets a TunnelClosedError."""
        if self._error is None:
            self._end(TunnelClosedError("the socket is closed"))

    @property
    def closed(self) -> bool:
        return self._error is not None

    # -- the binding's owner ----------------------------------------------------------------------------

    def received(self, data: bytes, source: SocketAddress, path: int) -> None:
        if self._peer is not None and source != self._peer:
            return
        if len(self._queue) >= RECEIVE_QUEUE:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append((data, source))
        self._wake()

    def lost(self, error: TunnelClosedError) -> None:
        self._end(error)

    # -- helpers ----------------------------------------------------------------------------------------

    def _bound(self) -> Binding:
        self._check_open()
        if self._binding is None:
            self.bind()
        assert self._binding is not None
        return self._binding

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error

    def _end(self, error: TunnelClosedError) -> None:
        self._error = error
        if self._binding is not None:
            self._binding.close()
        for reader in self._readers:
            if not reader.done():
                reader.set_result(None)
        self._readers.clear()

    async def _readable(self) -> None:
        reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        try:
            await reader
        except asyncio.CancelledError:
            # A wake-up that this reader got and cannot use belongs to the next one.
            if reader.done() and not reader.cancelled() and self._queue:
                self._wake()
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._readers.remove(reader)

    def _wake(self) -> None:
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                return


def _mode(value: PathMode | int | str) -> PathMode:
    try:
        return PathMode[value.upper()] if isinstance(value, str) else PathMode(value)
    except (KeyError, ValueError):
        raise OSError(errno.EINVAL, f"{value!r}: stream, datagram or auto") from None


def _coding(value: PathMode | Redundancy | Coding | int | str) -> Coding:
    try:
        if isinstance(value, str):
            return Coding.parse(value)
        if isinstance(value, Redundancy):
            raise ValueError(f"{value} is for SO_TSM_REDUNDANCY")
        return value if isinstance(value, Coding) else Coding.from_number(value)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None


def _redundancy(value: PathMode | Redundancy | int | str) -> Redundancy | str:
    try:
        if isinstance(value, str):
            return value if value == "auto" else Redundancy.parse(value)
        return value if isinstance(value, Redundancy) else Redundancy.from_number(value)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
