"""One bound inner UDP port. What ``endpoint`` and ``sockets`` have in common, and the book of all of them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, Protocol

from opentsm.errors import LocalProtocolError, TunnelClosedError
from opentsm.limits import MAX_FLOWS_PER_SESSION
from opentsm.types import Flow, IpAddress, Path, PathMode, SocketAddress
from opentsm.types import Protocol as InnerProtocol
from opentsm.userplane.plane import Plane

PLANE_QUEUE: Final = 256
"""Datagrams of one socket on their way from the user plane to Python: five seconds of a call. More wait only
if the event loop stands still, and then they are too old."""

MAX_BINDINGS: Final = MAX_FLOWS_PER_SESSION
"""Bound inner ports of one tunnel: each may become a steered flow, of which there are no more."""

TOO_BIG: Final = "drop_inner_too_big"


class Owner(Protocol):
    """The socket or transport that the application holds."""

    @property
    def flow(self) -> Flow | None: ...

    def received(self, data: bytes, source: SocketAddress, path: int) -> None:
        """A datagram has come."""

    def lost(self, error: TunnelClosedError) -> None:
        """The binding is gone, and not because the owner closed it."""


class Bound(Protocol):
    """What the book holds: a binding, or a media flow of a socket that is the kernel's (``tun.HostFlow``)."""

    @property
    def flow(self) -> Flow: ...
    @property
    def mode(self) -> PathMode: ...
    @property
    def media(self) -> bool: ...
    @property
    def owner(self) -> Owner: ...
    def lose(self, error: TunnelClosedError) -> None:
        """The tunnel has taken its address away."""


class Switch(Protocol):
    """The session's part in a binding: its flow's mode and path."""

    def set_mode(self, flow: Flow, mode: PathMode) -> None: ...
    def unset(self, flow: Flow) -> None: ...
    def path(self, flow: Flow) -> Path: ...


class Binding:
    """A bound inner UDP port.

    A binding begins as plain traffic, which may be signalling: on the stream and never dropped for age. The
    first ``set_mode`` to datagram or auto designates it as media; from then on it has a row in the steering
    table.

    Attributes:
        drops: datagrams that did not leave, by the name of the drop.
    """

    def __init__(self, book: Bindings, handle: int, address: IpAddress, port: int, owner: Owner) -> None:
        self.address = address
        self.port = port
        self.owner = owner
        self.flow = Flow(InnerProtocol.UDP, port, ipv6=address.version == 6)
        self.drops: Counter[str] = Counter()
        self.mode = PathMode.STREAM
        self.media = False
        self.handle = handle
        self._book = book
        self._error: TunnelClosedError | None = None

    @property
    def path(self) -> Path:
        """The path its packets take now."""
        return self._book.switch.path(self.flow)

    def send(self, data: bytes, to: SocketAddress, tos: int = 0) -> str | None:
        """Send one datagram; None, or the name of the drop. From any thread.

        Raises:
            TunnelClosedError: the socket is closed.
            OSError: EMSGSIZE, the datagram is larger than an inner packet may be.
            ValueError: the address is no IP address.
        """
        if self._error is not None:
            raise self._error
        try:
            drop = self._book.plane.core.udp_send(self.handle, data, to[0], to[1], tos)
        except KeyError:
            raise TunnelClosedError("the socket is closed") from None
        if drop is not None:
            self.drops[drop] += 1
            if drop == TOO_BIG:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return drop

    def set_mode(self, mode: PathMode) -> None:
        """Turn the transport switch. It acts at once for what is sent; the DDT follows when it is there.

        Raises:
            TunnelClosedError: the socket is closed.
        """
        if self._error is not None:
            raise self._error
        before, self.mode = self.mode, mode
        if mode is PathMode.STREAM and not self.media:
            return
        try:
            self._book.switch.set_mode(self.flow, mode)
        except LocalProtocolError as error:
            self.mode = before
            raise TunnelClosedError(str(error)) from error
        self.media = True

    def close(self) -> None:
        """The owner is done with it."""
        self._book.remove(self)
        self._error = TunnelClosedError("the socket is closed")

    def lose(self, error: TunnelClosedError) -> None:
        """The tunnel has taken it away: tell the owner."""
        self.close()
        self._error = error
        self.owner.lost(error)


class Bindings:
    """All bindings of one tunnel.

    Args:
        plane: where the sockets are.
        switch: who steers their flows.
    """

    def __init__(self, plane: Plane, switch: Switch) -> None:
        self.plane = plane
        self.switch = switch
        self._by_flow: dict[Flow, Bound] = {}

    def __len__(self) -> int:
        return len(self._by_flow)

    def open(self, session: int, address: IpAddress, port: int, owner: Owner) -> Binding:
        """Bind; port 0 picks one.

        Raises:
            OSError: the port is taken (EADDRINUSE), or there are too many (EMFILE).
        """
        if len(self._by_flow) >= MAX_BINDINGS:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if Flow(InnerProtocol.UDP, port, ipv6=address.version == 6) in self._by_flow:
            raise OSError(errno.EADDRINUSE, f"a socket of this tunnel is bound to port {port}")
        handle, chosen = self.plane.core.udp_open(
            session=session, address=str(address), port=port, queue=PLANE_QUEUE
        )
        binding = Binding(self, handle, address, chosen, owner)
        self._by_flow[binding.flow] = binding
        self.plane.watch_socket(handle, owner.received)
        return binding

    def remove(self, binding: Binding) -> None:
        if self._by_flow.get(binding.flow) is not binding:
            return
        del self._by_flow[binding.flow]
        self.plane.unwatch_socket(binding.handle)
        self.plane.core.udp_close(binding.handle)
        if binding.media:
            with contextlib.suppress(LocalProtocolError):
                self.switch.unset(binding.flow)

    def adopt(self, bound: Bound) -> None:
        """A flow without a socket of ours is judged and told of like those with one."""
        self._by_flow[bound.flow] = bound

    def release(self, bound: Bound) -> None:
        """An adopted flow is over."""
        if self._by_flow.get(bound.flow) is bound:
            del self._by_flow[bound.flow]

    def owners(self, flows: Iterable[Flow]) -> tuple[Owner, ...]:
        """The owners of these flows; a flow whose socket is closed has none."""
        return tuple(self._by_flow[flow].owner for flow in flows if flow in self._by_flow)

    def lose_all(self, reason: str) -> None:
        for binding in tuple(self._by_flow.values()):
            binding.lose(TunnelClosedError(reason))

    @property
    def any_media(self) -> bool:
        """Whether a flow is designated as media."""
        return any(binding.media for binding in self._by_flow.values())

    def in_mode(self, mode: PathMode) -> tuple[Flow, ...]:
        """Flows whose switch stands there."""
        return tuple(flow for flow, binding in self._by_flow.items() if binding.mode is mode)


def pick_address(addresses: tuple[IpAddress, ...], wanted: str | None, ipv6: bool | None) -> IpAddress:
    """The inner address to bind to.

    Args:
        addresses: those of the tunnel, IPv4 first. wanted: an address, a wildcard, or None.
        ipv6: the family wanted, or None for either.

    Raises:
        OSError: EADDRNOTAVAIL, the tunnel has no such address.
        ValueError: ``wanted`` is no IP address.
    """
    if wanted:
        ip = ip_address(wanted)
        if not ip.is_unspecified:
            if ip not in addresses:
                raise OSError(
                    errno.EADDRNOTAVAIL, f"{ip} is not an inner address of this tunnel: {_list(addresses)}"
                )
            return ip
        ipv6 = ip.version == 6
    for address in addresses:
        if ipv6 is None or (address.version == 6) == ipv6:
            return address
    family = "IPv6" if ipv6 else "IPv4"
    raise OSError(errno.EADDRNOTAVAIL, f"the tunnel has no inner {family} address: {_list(addresses)}")


def _list(addresses: tuple[IpAddress, ...]) -> str:
    return ", ".join(map(str, addresses)) or "none"
