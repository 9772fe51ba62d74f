"""The echo service: each UDP datagram comes back to whoever sent it (RFC 862), for test calls.

In user space it is an inner socket of the user plane; behind a TUN device, where the kernel owns the
server's inner addresses, an ordinary socket of the kernel's.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

from opentsm.errors import PlatformError
from opentsm.types import SocketAddress
from opentsm.userplane import Plane

QUEUE: Final = 1024
"""Datagrams that may wait for the echo: 200 test calls at 50 packets/s, each for 100 ms."""

TURN: Final = 64
"""Datagrams answered before the event loop gets its turn."""

LARGEST: Final = 65535
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Echo(Protocol):
    """A running echo service on one address."""

    def close(self) -> None:
        """Answer nobody any more."""
        ...


class InnerEcho:
    """Echo on an inner address of the user plane.

    Raises:
        PlatformError: the port is taken.
    """

    def __init__(self, plane: Plane, address: IPv4Address | IPv6Address, port: int) -> None:
        self._plane = plane
        try:
            self._socket, _ = plane.core.udp_open(session=None, address=str(address), port=port, queue=QUEUE)
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


class KernelEcho:
    """Echo on an address that the kernel owns.

    Raises:
        PlatformError: the port cannot be opened.
    """

    def __init__(self, address: IPv4Address | IPv6Address, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(_FAMILIES[address.version], socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((str(address), port))
        except OSError as error:
            self._socket.close()
            hint = "; ports below 1024 need CAP_NET_BIND_SERVICE" if error.errno == errno.EACCES else ""
            what = f"cannot open the echo service on {address} port {port}"
            raise PlatformError(f"{what}: {error.strerror}{hint}") from error
        self._loop.add_reader(self._socket, self._answer)

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
