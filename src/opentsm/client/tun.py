"""A TUN device as the inner side of a tunnel: the kernel's sockets speak through it, with nothing changed.

    program -> kernel -> TUN device -> user plane -> stream tunnel, or DDT for flows that carry media
                                          |
                                          +-> FlowSeen: this flow carries media -> its switch is turned

``TunDevice`` joins an open device to a ``Connection``. It makes no device and sets no address: ``host`` does
that on this machine, ``keeper`` in a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

import structlog

from opentsm.errors import ConfigError, LocalProtocolError, PlatformError, TunnelClosedError
from opentsm.limits import MAX_FLOWS_PER_SESSION
from opentsm.types import Flow, IpAddress, Path, PathMode, Protocol, SocketAddress
from opentsm.userplane._core import FlowQuiet, FlowSeen
from opentsm.userplane.tun import DEVICE, open_queue

if TYPE_CHECKING:
    from opentsm.client.connection import Connection

DEFAULT_NAME: Final = "tsm0"

DEFAULT_MTU: Final = 1280
"""Largest inner packet in bytes where the server names none: what IPv6 needs (RFC 8200 section 5), and it
fits a datagram tunnel on any path."""

MAX_SEEN_FLOWS: Final = MAX_FLOWS_PER_SESSION // 2
"""Media flows of programs behind one device. Half of what a session may have: a program that sends RTP from
ever new ports must not use up the table."""

_MAX_NAME: Final = 15
"""Characters of an interface's name (IFNAMSIZ, less the final zero)."""

_log: Final = structlog.get_logger(__name__)


class HostFlow:
    """A media flow of some program on this host. Stands in the tunnel's book of flows beside its sockets.

    Attributes:
        mode: where its switch stands.
    """

    def __init__(self, connection: Connection, flow: Flow, mode: PathMode) -> None:
        self.flow = flow
        self.mode = mode
        self._connection = connection

    @property
    def media(self) -> bool:
        return True

    @property
    def owner(self) -> HostFlow:
        return self

    @property
    def path(self) -> Path:
        """The path its packets take now."""
        return self._connection.path(self.flow)

    def received(self, data: bytes, source: SocketAddress, path: int) -> None:
        """Never called: its datagrams are the kernel's."""

    def lost(self, error: TunnelClosedError) -> None:
        """The tunnel has another address or none; whoever owns the socket sees that by itself."""

    def lose(self, error: TunnelClosedError) -> None:
        """The tunnel has lost the address: the flow is over."""
        self.end()

    def end(self) -> None:
        """Its packets are plain traffic again."""
        self._connection.bindings.release(self)
        with contextlib.suppress(LocalProtocolError):
            self._connection.unset(self.flow)


class TunDevice:
    """An open TUN device that carries one tunnel's inner packets.

    Args:
        fd: its descriptor; the device is ours until ``close``.
        media: where media flows go that are seen on it: datagram (the DDT, whenever there is one), auto (the
            better path), or stream (nothing is looked for).
    """

    def __init__(self, fd: int, *, media: PathMode = PathMode.DATAGRAM) -> None:
        self._fd = fd
        self._media = media
        self._connection: Connection | None = None
        self._session: int | None = None
        self._device: int | None = None
        self._flows: dict[Flow, HostFlow] = {}

    @property
    def flows(self) -> tuple[HostFlow, ...]:
        """Media flows that are alive."""
        return tuple(self._flows.values())

    # -- called by Connection ---------------------------------------------------------------------------

    def opened(self, connection: Connection, session: int, addresses: tuple[IpAddress, ...]) -> None:
        """The user plane has a session with these inner addresses (``sink="route"``): join it."""
        core = connection.plane.core
        self._connection, self._session = connection, session
        # Each session gets a descriptor of its own; ours keeps the device alive in between.
        self._device = core.add_tun([os.dup(self._fd)], session=session)
        for address in addresses:
            core.route_tun(f"{address}/{address.max_prefixlen}", self._device)
        if self._media is not PathMode.STREAM:
            connection.plane.watch_flows(session, self._on_flow)

    def closing(self) -> None:
        """The user plane's session is about to be closed."""
        connection, self._connection = self._connection, None
        if connection is None or self._session is None or self._device is None:
            return
        connection.plane.unwatch_flows(self._session)
        with contextlib.suppress(KeyError):
            connection.plane.core.remove_tun(self._device)
        self._flows.clear()

    # -- media ------------------------------------------------------------------------------------------

    def _on_flow(self, event: FlowSeen | FlowQuiet) -> None:
        flow = Flow(Protocol(event.protocol), event.port, ipv6=event.ipv6)
        if isinstance(event, FlowQuiet):
            if (quiet := self._flows.pop(flow, None)) is not None:
                _log.info("media ended", port=flow.port)
                quiet.end()
            return
        connection = self._connection
        if connection is None or flow in self._flows or len(self._flows) >= MAX_SEEN_FLOWS:
            return
        seen = HostFlow(connection, flow, self._media)
        connection.bindings.adopt(seen)
        try:
            connection.set_mode(flow, self._media)
        except LocalProtocolError as error:
            connection.bindings.release(seen)
            _log.info("media stays on the stream", port=flow.port, reason=str(error))
            return
        self._flows[flow] = seen
        _log.info("media seen", port=flow.port, ipv6=flow.ipv6)

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
