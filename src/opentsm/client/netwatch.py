"""What the kernel says about this machine's network, as it says it: rtnetlink(7). Linux only.

Our own forty lines rather than a netlink library: nothing of a message but its type is looked at. What has
become of the network is then asked of the kernel in the plainest way: which address would it send from?
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from opentsm.types import SocketAddress

_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE."""

_HEADER: Final = struct.Struct("=IHHII")
_NEWS: Final = frozenset({16, 17, 20, 21, 24, 25})
"""RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE."""

READ_SIZE: Final = 1 << 16
"""Bytes read at once: the kernel sends no larger message."""

READS: Final = 64
"""Messages read in one turn; a routing daemon may load a full table, and the loop has other work."""


class NetworkWatch:
    """Calls back when a link, an address or a route of this machine has changed.

    It watches the network namespace of the thread that makes it.

    Args:
        changed: called in the running loop, once for however many changes have gathered.

    Raises:
        OSError: the system does not give such a socket.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, _GROUPS))
            self._loop.add_reader(self._socket, self._on_readable)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Watch no longer. May be called again."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _on_readable(self) -> None:
        news = False
        for _ in range(READS):
            try:
                data, (sender, _) = self._socket.recvfrom(READ_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                news = True  # more has happened than the socket could hold
                continue
            # Any process may send to a netlink socket; the kernel's number is 0.
            news = news or (sender == 0 and _has_news(data))
        if news:
            self._changed()


def _has_news(data: bytes) -> bool:
    """Whether one of the messages says that something has changed."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if kind in _NEWS:
            return True
        if length < _HEADER.size:
            break
        offset += (length + 3) & ~3
    return False


def source_towards(remote: SocketAddress) -> str | None:
    """The address this machine would send from to get there; None: there is no way. Sends nothing."""
    family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(remote)
        except OSError:
            return None
        return _plain(probe.getsockname()[0])


def is_here(address: str) -> bool:
    """Whether this machine has the address (still)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.bind((address, 0))
        return True
    return False


def _plain(address: str) -> str:
    return str(ip_address(address.partition("%")[0]))


def time_asleep() -> float:
    """Seconds this machine has been suspended since it was started: one clock goes on, the other does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
