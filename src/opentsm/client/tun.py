"""A TUN device as the inner side of a tunnel: the kernel's sockets speak through it, with nothing changed.

    program -> kernel -> TUN device -> user plane -> stream tunnel, or DDT for flows that carry media
                                          |
                                          +-> ``hostmedia``: what of this is media

``TunDevice`` joins an open device to a ``Connection``. It makes no device and sets no address: ``host`` does
that on this machine, ``keeper`` in a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from opentsm.client.hostmedia import HostFlow, HostMedia, MediaOptions
from opentsm.errors import ConfigError, PlatformError
from opentsm.types import IpAddress, Path, PathMode
from opentsm.userplane._core import FlowStats
from opentsm.userplane.tun import DEVICE, open_queue

if TYPE_CHECKING:
    from opentsm.client.connection import Connection

DEFAULT_NAME: Final = "tsm0"

DEFAULT_MTU: Final = 1280
"""Largest inner packet in bytes where the server names none: what IPv6 needs (RFC 8200 section 5), and it
fits a datagram tunnel on any path."""

_MAX_NAME: Final = 15
"""Characters of an interface's name (IFNAMSIZ, less the final zero)."""


class TunDevice:
    """An open TUN device that carries one tunnel's inner packets.

    Args:
        fd: its descriptor; the device is ours until ``close``.
        options: where media goes that is found on it, and what the user says of it.
    """

    def __init__(self, fd: int, options: MediaOptions | None = None) -> None:
        self._fd = fd
        self._options = MediaOptions() if options is None else options
        self._connection: Connection | None = None
        self._device: int | None = None
        self._media: HostMedia | None = None

    @property
    def flows(self) -> tuple[HostFlow, ...]:
        """Media flows that are alive, or expected by a call."""
        return () if self._media is None else self._media.flows

    @property
    def calls(self) -> int:
        """Calls that are known from their signalling."""
        return 0 if self._media is None else self._media.calls

    def rows(self) -> list[tuple[FlowStats, Path]]:
        """Packets of each media flow, and the path they take now."""
        return [] if self._media is None else self._media.rows()

    @property
    def mode(self) -> PathMode:
        """Where media goes."""
        return self._options.mode

    def set_mode(self, mode: PathMode) -> None:
        """Send all media there, that of running calls and that to come. At any time."""
        self._options = replace(self._options, mode=mode)
        if self._media is not None:
            self._media.set_mode(mode)

    # -- called by Connection ---------------------------------------------------------------------------

    def opened(self, connection: Connection, session: int, addresses: tuple[IpAddress, ...]) -> None:
        """The user plane has a session with these inner addresses (``sink="route"``): join it."""
        core = connection.plane.core
        self._connection = connection
        # Each session gets a descriptor of its own; ours keeps the device alive in between.
        self._device = core.add_tun([os.dup(self._fd)], session=session)
        for address in addresses:
            core.route_tun(f"{address}/{address.max_prefixlen}", self._device)
        self._media = HostMedia(connection, session, addresses, self._options)

    def closing(self) -> None:
        """The user plane's session is about to be closed."""
        connection, self._connection = self._connection, None
        if connection is None or self._media is None or self._device is None:
            return
        self._media.close()
        self._media = None
        with contextlib.suppress(KeyError):
            connection.plane.core.remove_tun(self._device)

    # -- end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the device: with its last descriptor it disappears, addresses and routes with it."""
        self.closing()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def check_name(name: str) -> str:
    """The name of a network device, if it can be one.

    Raises:
        ConfigError: it cannot.
    """
    if (
        not 1 <= len(name.encode()) <= _MAX_NAME
        or "/" in name
        or name in (".", "..")
        or name.split() != [name]
    ):
        raise ConfigError(
            f"{name!r} cannot be a network device's name", hint=f"1 to {_MAX_NAME} letters or digits, no '/'"
        )
    return name


def open_device(name: str) -> int:
    """Make a TUN device in the calling thread's network namespace.

    Returns:
        Its descriptor; the device lives as long as it is open.

    Raises:
        PlatformError: it cannot be made; says what to do.
    """
    with contextlib.suppress(OSError):
        socket.if_nametoindex(check_name(name))
        raise PlatformError(
            f"there is a network device {name} already: is `opentsm up` running? "
            "Else choose another name (--name)"
        )
    try:
        return open_queue(name)
    except OSError as error:
        raise PlatformError(f"cannot make the TUN device {name}: {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return f"{DEVICE} is missing; as root: `modprobe tun`; a container needs --device={DEVICE}"
        case errno.EACCES:
            return f"{DEVICE} may not be opened; as root: `chmod 0666 {DEVICE}` (its usual mode)"
        case errno.EPERM:
            return "that needs CAP_NET_ADMIN; run it as root"
        case errno.EBUSY:
            return "another program has it open; choose another name (--name)"
        case _:
            return error.strerror or str(error)
