"""The sockets a server listens on: opened in one place, counted, closed in the same place.

Each worker of the user plane has a socket of its own for each port (SO_REUSEPORT), so that the kernel
spreads clients over the workers. A stream port and its datagram sibling have the same number.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from opentsm.config.model import Interface, Port
from opentsm.errors import PlatformError
from opentsm.server.tls import TlsStore
from opentsm.types import Transport
from opentsm.userplane import Plane
from opentsm.userplane._core import StreamReady
from opentsm.userplane.streamsocket import tune_stream

BACKLOG: Final = 4096
"""Connections the kernel may hold for us; it cuts this to net.core.somaxconn."""

PORT_CHOICES: Final = 16
"""Numbers tried for "the system picks one" until the stream's is free for datagrams too."""

_FIRST_UNPRIVILEGED: Final = 1024

_log: Final = structlog.get_logger("opentsm.server")

AcceptHandler = Callable[[str, Transport, StreamReady], None]
"""Called with the interface's name, the stream's transport and the event."""


@dataclass(frozen=True, slots=True)
class OpenPort:
    """One configured port with its listeners in the user plane."""

    interface: str
    port: Port
    number: int
    transports: tuple[Transport, ...]
    ids: tuple[int, ...]
    stream: int | None


@dataclass(frozen=True, slots=True)
class _Bound:
    """A port that is taken and not listened on yet."""

    interface: str
    port: Port
    number: int
    transports: tuple[Transport, ...]
    sockets: list[list[socket.socket]]


class Listeners:
    """Every open port of a server.

    Args:
        plane: whose listeners they are.
        workers: sockets to open for each port.
        tls: the TLS profiles.
        on_accept: called for each stream a client has opened.

    Attributes:
        opened, closed: listeners ever opened and closed; equal after ``close_all``.
    """

    def __init__(self, plane: Plane, workers: int, tls: TlsStore, on_accept: AcceptHandler) -> None:
        self.opened = self.closed = 0
        self.open_ports: list[OpenPort] = []
        self._bound: list[_Bound] = []
        self._plane = plane
        self._workers = workers
        self._tls = tls
        self._on_accept = on_accept

    def bind(self, interface: Interface) -> None:
        """Take every port of an interface, each with its implied sibling; nobody is answered yet.

        Raises:
            PlatformError: a socket cannot be opened; the message says what to do.
        """
        for port in interface.ports:
            transports = tuple(one.transport for one in interface.listeners if one.port is port)
            transports = tuple(sorted(transports, key=lambda t: not t.is_stream))
            number, sockets = open_sockets(str(port.address), port.port, transports, self._workers)
            self._bound.append(_Bound(interface.name, port, number, transports, sockets))

    def listen(self) -> None:
        """Serve clients on every port taken."""
        bound, self._bound = self._bound, []
        for one in bound:
            self._listen(one)

    def _listen(self, bound: _Bound) -> None:
        ids: list[int] = []
        stream = None
        for transport, sockets in zip(bound.transports, bound.sockets, strict=True):
            if transport.is_stream:
                stream = self._listen_stream(bound, transport, sockets)
                ids.append(stream)
            else:
                fds = [one.detach() for one in sockets]
                ids.append(self._plane.core.listen_datagram(fds, dtls=transport.is_secure))
            self.opened += 1
        opened = OpenPort(bound.interface, bound.port, bound.number, bound.transports, tuple(ids), stream)
        self.open_ports.append(opened)

    def _listen_stream(self, bound: _Bound, transport: Transport, sockets: list[socket.socket]) -> int:
        interface, port = bound.interface, bound.port
        refusals = {tune_stream(one, port.congestion_control or None) for one in sockets} - {""}
        for refusal in refusals:
            _log.warning("congestion control refused", port=port.name, why=refusal)
        for one in sockets:
            one.listen(BACKLOG)
        profile = None if port.tls_profile is None else self._tls.profile(port.tls_profile)
        fds = [one.detach() for one in sockets]
        listener = self._plane.core.listen_stream(fds, tls_profile=profile)
        self._plane.watch_listener(listener, lambda ready: self._on_accept(interface, transport, ready))
        return listener

    def refresh_tls(self, ports: dict[str, Port]) -> None:
        """New connections use the certificates that the settings name now."""
        for open_port in self.open_ports:
            port = ports.get(open_port.port.name, open_port.port)
            if open_port.stream is not None and port.tls_profile is not None:
                profile = self._tls.profile(port.tls_profile)
                self._plane.core.set_listener_tls(open_port.stream, profile)

    def number(self, name: str | None = None) -> int:
        """The number of a port by its name in the configuration; without a name, of the first.

        Raises:
            KeyError: no such port is open.
        """
        for open_port in self.open_ports:
            if name is None or open_port.port.name == name:
                return open_port.number
        raise KeyError(name)

    def close_all(self) -> None:
        """Accept nobody any more; tunnels stay."""
        for one in (one for bound in self._bound for group in bound.sockets for one in group):
            one.close()
        self._bound.clear()
        for open_port in self.open_ports:
            for listener in open_port.ids:
                self._plane.core.unlisten(listener)
                self._plane.unwatch_listener(listener)
                self.closed += 1
        self.open_ports.clear()


def open_sockets(
    address: str, port: int, transports: tuple[Transport, ...], workers: int
) -> tuple[int, list[list[socket.socket]]]:
    """Sockets for one port: ``workers`` of each transport, all with the same number.

    Args:
        port: the number; 0 picks one that is free for all the transports.

    Returns:
        The number, and the sockets of each transport.

    Raises:
        PlatformError: it cannot be done; the message says why and what to do.
    """
    attempts = PORT_CHOICES if port == 0 else 1
    for attempt in range(attempts):
        opened: list[list[socket.socket]] = []
        number = port
        try:
            for transport in transports:
                number, sockets = _open_group(address, number, transport, workers)
                opened.append(sockets)
            return number, opened
        except OSError as error:
            for one in (one for group in opened for one in group):
                one.close()
            if error.errno != errno.EADDRINUSE or attempt + 1 == attempts:
                raise PlatformError(_explain(error, address, number, transports)) from error
    raise AssertionError("the last attempt returns or raises")


def _open_group(
    address: str, port: int, transport: Transport, workers: int
) -> tuple[int, list[socket.socket]]:
    """One socket per worker. The first bind is without SO_REUSEPORT: otherwise a second server of the same
    user would silently share the port with the first."""
    with _socket(address, transport, reuse_port=False) as alone:
        alone.bind((address, port))
        number = int(alone.getsockname()[1])
    sockets: list[socket.socket] = []
    try:
        for _ in range(workers):
            one = _socket(address, transport, reuse_port=True)
            sockets.append(one)
            one.bind((address, number))
    except OSError:
        for one in sockets:
            one.close()
        raise
    return number, sockets


def _socket(address: str, transport: Transport, *, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM if transport.is_stream else socket.SOCK_DGRAM)
    one.setblocking(False)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if transport.is_stream:  # a restart need not wait for old connections in TIME_WAIT
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return one


def _explain(error: OSError, address: str, port: int, transports: tuple[Transport, ...]) -> str:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    what = f"cannot listen on {where} ({' and '.join(t.value for t in transports)})"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{what}: another program has it; `ss -tulpn 'sport = :{port}'` shows which"
        case errno.EACCES if port < _FIRST_UNPRIVILEGED:
            return (
                f"{what}: ports below {_FIRST_UNPRIVILEGED} need a privilege; run as root, or give the "
                f"service CAP_NET_BIND_SERVICE, or `sysctl -w net.ipv4.ip_unprivileged_port_start={port}`"
            )
        case errno.EADDRNOTAVAIL:
            return f"{what}: this machine has no such address; `ip address` shows which it has"
        case _:
            return f"{what}: {os.strerror(error.errno or 0)}"
