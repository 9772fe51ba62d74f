"""``connect`` and ``Tunnel``: what an application holds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket as system_socket
from collections.abc import Callable, Generator, Iterable, Sequence
from socket import SocketKind
from typing import Any, Final, Literal, TypeVar, overload

from opentsm import __version__
from opentsm.client import planes
from opentsm.client.address import ServerAddress
from opentsm.client.binding import Binding, Owner, pick_address
from opentsm.client.connection import Connection
from opentsm.client.endpoint import TunnelDatagramTransport
from opentsm.client.inner_tcp import STREAM_LIMIT, ClientConnected, open_streams, stream_factory
from opentsm.client.notifications import (
    Callback,
    DdtAvailable,
    DdtEnabled,
    Notification,
    NotificationHub,
    NotificationStream,
    Subscription,
    TunnelTerminated,
)
from opentsm.client.proxy import Proxy
from opentsm.client.settings import ConnectSettings, MessageLog, PemSource, make_settings
from opentsm.client.sockets import InnerSocket
from opentsm.client.statistics import Statistics
from opentsm.client.stream_sockets import InnerStreamSocket
from opentsm.client.streaming import check_media_age, parse_redundancy
from opentsm.client.tun import TunDevice
from opentsm.errors import RefusedError, TunnelClosedError
from opentsm.protocol.actions import Configuration
from opentsm.types import (
    AUTOMATIC,
    Code,
    Coding,
    IpAddress,
    Path,
    PathMode,
    Redundancy,
    Service,
    SocketAddress,
    Tsid,
)
from opentsm.userplane.plane import Plane
from opentsm.userplane.tcp import BACKLOG
from opentsm.wire.messages import AddressFamilies

P = TypeVar("P", bound=asyncio.DatagramProtocol)
B = TypeVar("B", bound=asyncio.BaseProtocol)
Switched = InnerSocket | TunnelDatagramTransport

_NO_ROOM: Final = frozenset(
    code.label for code in (Code.NO_ADDRESS, Code.TOO_MANY_TUNNELS, Code.SHUTTING_DOWN, Code.RATE_LIMITED)
)
"""Refusals that say nothing about the next server in the list."""


class Tunnel:
    """A live tunnel. Made by ``connect``; to be used in the event loop it was made in."""

    def __init__(self, connection: Connection, *, owns_plane: bool) -> None:
        self._connection = connection
        self._owns_plane = owns_plane
        self._closing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Tunnel:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # -- what it is -------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """What the server configured, newest."""
        configuration = self._connection.session.configuration
        if configuration is None:
            raise TunnelClosedError("the tunnel was never up")
        return configuration

    @property
    def inner_addresses(self) -> tuple[IpAddress, ...]:
        """The addresses the server leased to this tunnel, IPv4 first."""
        return self._connection.addresses

    @property
    def inner_address(self) -> IpAddress:
        """The IPv4 address; on a tunnel without one, the IPv6 address."""
        return self.inner_addresses[0]

    @property
    def tsid(self) -> Tsid:
        return self.configuration.tsid

    @property
    def services(self) -> tuple[Service | int, ...]:
        """Services on offer; numbers are services that this version does not know."""
        return self.configuration.services

    @property
    def observed_address(self) -> SocketAddress | None:
        """This client as the server sees it: the NAT's address, where there is a NAT."""
        seen = self.configuration.observed_address
        return None if seen is None else (str(seen[0]), seen[1])

    @property
    def local_address(self) -> SocketAddress | None:
        """The outer address of the stream connection on this machine."""
        return None if self._connection.dialled is None else self._connection.dialled.local

    @property
    def remote_address(self) -> SocketAddress | None:
        """The outer address this machine sends to: the server's, or the proxy's."""
        return None if self._connection.dialled is None else self._connection.dialled.remote

    @property
    def server(self) -> ServerAddress:
        """The server this tunnel ends at."""
        assert self._connection.dialled is not None
        return self._connection.dialled.server

    @property
    def state(self) -> str:
        """``active``, ``releasing``, ``closed``, or coming back: ``persistent``, ``resuming``, ..."""
        return self._connection.session.state.value

    @property
    def ddt_state(self) -> str:
        """``absent``, ``requested``, ``opening``, ``configuring``, ``up``, ``silent``, ``lingering``,
        ``releasing``, ``waiting`` (to try again), ``unavailable``."""
        return self._connection.session.ddt_state.value

    @property
    def ddt_available(self) -> bool | None:
        """Whether the server offers DDT; None before it was asked and where its services do not say."""
        known = self._connection.available
        return True if known is None and Service.DDT in self.services else known

    @property
    def plane(self) -> Plane:
        """The user plane this tunnel is in."""
        return self._connection.plane

    @property
    def last_error(self) -> str:
        """Why the tunnel was lost, or why coming back failed last; empty while all is well."""
        return self._connection.last_error

    def statistics(self) -> Statistics:
        """Packets, loss, delay and jitter of both paths."""
        return self._connection.statistics()

    # -- sockets ----------------------------------------------------------------------------------------

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], P],
        local_addr: tuple[str | None, int] | None = None,
        remote_addr: SocketAddress | None = None,
        *,
        mode: PathMode = PathMode.STREAM,
    ) -> tuple[TunnelDatagramTransport, P]:
        """Like ``loop.create_datagram_endpoint``, inside the tunnel.

        Args:
            local_addr: inner address (None or a wildcard: the tunnel's own) and port (0: a free one).
            remote_addr: send there, and receive from there only.
            mode: the transport switch. Datagram and auto designate the socket as media.

        Raises:
            OSError: EADDRINUSE, EADDRNOTAVAIL. TunnelClosedError: the tunnel is closed.
        """
        protocol = protocol_factory()
        transport = TunnelDatagramTransport(protocol, remote_addr, self._queue_bytes)
        wanted, port = local_addr or (None, 0)
        ipv6 = ":" in remote_addr[0] if remote_addr else None
        transport.start(self._bind(wanted, port, ipv6, transport))
        if mode is not PathMode.STREAM:
            transport.set_mode(mode)
        await asyncio.sleep(0)  # connection_made has been called when we return, as asyncio promises
        return transport, protocol

    @overload
    def socket(self, family: int = ..., type: Literal[SocketKind.SOCK_DGRAM] = ...) -> InnerSocket: ...
    @overload
    def socket(self, family: int = ..., *, type: Literal[SocketKind.SOCK_STREAM]) -> InnerStreamSocket: ...
    @overload
    def socket(self, family: int, type: int) -> InnerSocket | InnerStreamSocket: ...
    def socket(
        self, family: int = system_socket.AF_UNSPEC, type: int = SocketKind.SOCK_DGRAM
    ) -> InnerSocket | InnerStreamSocket:
        """A UDP or TCP socket with BSD's calls, not bound yet.

        Raises:
            OSError: EAFNOSUPPORT, EPROTONOSUPPORT: only UDP and TCP over IPv4 and IPv6 travel this way.
        """
        if type == SocketKind.SOCK_STREAM:
            return InnerStreamSocket(self._connection.tcp, family)
        if type != SocketKind.SOCK_DGRAM:
            raise OSError(errno.EPROTONOSUPPORT, "only SOCK_DGRAM and SOCK_STREAM")
        return InnerSocket(self._bind, family, self)

    # -- inner TCP --------------------------------------------------------------------------------------

    async def create_connection(
        self,
        protocol_factory: Callable[[], B],
        host: str,
        port: int,
        *,
        local_addr: tuple[str | None, int] | None = None,
    ) -> tuple[asyncio.Transport, B]:
        """Like ``loop.create_connection``, inside the tunnel. The connection stays while the tunnel is made
        anew underneath; with another inner address it ends with a TunnelClosedError.

        Args:
            host: an inner address; names are not looked up.
            local_addr: inner address to connect from (None: the tunnel's own) and port (0: a free one).

        Raises:
            OSError: ConnectionRefusedError, TimeoutError, EADDRINUSE, EADDRNOTAVAIL, EMFILE.
            TunnelClosedError: the tunnel is closed. ValueError: ``host`` is no IP address.
        """
        return await self._connection.tcp.create_connection(protocol_factory, host, port, local_addr)

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        limit: int = STREAM_LIMIT,
        local_addr: tuple[str | None, int] | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Like ``asyncio.open_connection``, inside the tunnel; see ``create_connection``."""
        tcp = self._connection.tcp
        return await open_streams(
            lambda factory: tcp.create_connection(factory, host, port, local_addr), limit
        )

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int = 0,
        *,
        backlog: int = BACKLOG,
    ) -> asyncio.AbstractServer:
        """Like ``loop.create_server``, on an inner address.

        Args:
            host: inner address; None or a wildcard: the tunnel's own.
            port: 0 picks a free one; what ``create_server`` returns has it as ``sockname`` (with a TUN device
                it is the kernel's, with ``sockets``).

        Raises:
            OSError: EADDRINUSE, EADDRNOTAVAIL, EMFILE. TunnelClosedError: the tunnel is closed.
        """
        return await self._connection.tcp.create_server(protocol_factory, host, port, backlog)

    async def start_server(
        self,
        client_connected: ClientConnected,
        host: str | None = None,
        port: int = 0,
        *,
        limit: int = STREAM_LIMIT,
        backlog: int = BACKLOG,
    ) -> asyncio.AbstractServer:
        """Like ``asyncio.start_server``, on an inner address; see ``create_server``."""
        return await self.create_server(stream_factory(client_connected, limit), host, port, backlog=backlog)

    def set_mode(self, target: Switched, mode: PathMode) -> None:
        """Turn the transport switch of a socket or transport: stream, datagram, or auto.

        It may be turned in mid-call, any number of times; nothing is lost or doubled by it, and the address
        stays. Whether and when media is on the datagram tunnel tells DdtEnabled.
        """
        target.set_mode(mode)

    def set_coding(self, coding: Coding | str) -> None:
        """How media on the datagram tunnel is protected, and whether headers are compressed: at any time, for
        both directions. The server's interface must offer redundancy, FEC or header-compression.

        Args:
            coding: ``auto`` (by measured loss; the default), ``off``, or a factor (0 to 2: so many earlier
                frames go with each), with ``no-fec`` and ``no-compression`` after commas; or a ``Coding``.

        Raises:
            ValueError: it is none of these.
        """
        self._connection.set_coding(Coding.parse(coding) if isinstance(coding, str) else coding)

    @property
    def coding(self) -> Coding:
        """What is permitted, or has been chosen; what comes of it is in ``statistics().coding``."""
        return self._connection.session.coding.wish

    async def wait_ddt_enabled(self, target: Switched) -> None:
        """Wait until this socket's packets go by the datagram tunnel. Its switch must want that.

        Raises:
            RefusedError: ``service-unavailable``, the server does not offer DDT; the socket goes on
                working on the stream.
            TunnelClosedError: the tunnel or the socket is closed.
        """
        if target.mode is PathMode.STREAM:
            raise ValueError("the socket's switch is on stream: set it to datagram or auto first")
        with contextlib.closing(self.notifications()) as notifications:
            while target.path is not Path.DATAGRAM:
                if self._connection.available is False:
                    raise RefusedError(
                        Code.SERVICE_UNAVAILABLE.label,
                        "the server does not offer DDT; media stays on the stream",
                    )
                await _relevant(notifications, target)

    def want_ddt(self, wanted: bool = True) -> None:
        """Have the datagram tunnel made before a socket needs it, or (False) no longer on its own account."""
        self._connection.want_ddt(wanted)

    def network_changed(self) -> None:
        """A hint that this machine may be in another network now (an app's connectivity event): a new stream
        is made at once beside the one there is, and address, sockets and calls stay. On Linux changes are
        noticed without it."""
        self._connection.network_changed()

    def set_redundancy(self, redundancy: Redundancy | str | None) -> None:
        """Have media that goes by stream on several streams: ``fan-out:2``, ``load-balance:3``, ``off``; or
        leave it to mode auto (None, ``auto``). StreamsChanged tells what came of it.

        Raises:
            ConfigError: there is no such thing.
        """
        self._connection.set_redundancy(parse_redundancy(redundancy))

    @property
    def redundancy(self) -> Redundancy:
        """What media on streams is wished to be at this moment, whoever wished it."""
        return self._connection.session.streams.wish

    @property
    def streams(self) -> int:
        """Streams that carry media at this moment, the main one counted while there is one."""
        session = self._connection.session
        return int(self._connection.tunnel(Path.STREAM) is not None) + session.streams.up

    def set_media_age(self, seconds: float) -> None:
        """The age at which media that waits on a stream that is backed up is dropped, oldest first; 0.25 at
        first.

        Raises:
            ConfigError: not within 0.02 and 10 s.
        """
        self._connection.set_media_age(check_media_age(seconds))

    def set_nagle(self, on: bool) -> None:
        """Ask for Nagle's algorithm on the streams (fewer, fuller segments for signalling; later media), or
        for none, as it is at first. Service nagle; NagleSet has the server's answer."""
        self._connection.set_nagle(on)

    # -- notifications ------------------------------------------------------------------------------------

    def notifications(self) -> NotificationStream:
        """What happens from now on, as an async iterator; it ends after TunnelTerminated."""
        return self._connection.hub.stream()

    def on_notification(
        self, callback: Callback, opaque: Any = None, *, kinds: Iterable[type[Notification]] = ()
    ) -> Subscription:
        """Call ``callback(notification, opaque)`` in the event loop for each notification (of these kinds).

        Returns:
            a subscription; its ``cancel`` ends the calls.
        """
        return self._connection.hub.subscribe(callback, opaque, frozenset(kind.kind for kind in kinds))

    # -- end --------------------------------------------------------------------------------------------

    async def wait_closed(self) -> str:
        """Wait until the tunnel is over; the reason."""
        ended = await asyncio.shield(self._connection.closed)
        return ended.reason

    async def close(self) -> None:
        """Release the tunnel; all its sockets close. May be called more than once."""
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        self._closing = asyncio.get_running_loop().create_future()
        try:
            await self._connection.close()
        except asyncio.CancelledError:
            self._connection.abort()
            raise
        finally:
            self._closing.set_result(None)
            if not self._owns_plane:
                await planes.give_back()

    # -- helpers ----------------------------------------------------------------------------------------

    def _bind(self, wanted: str | None, port: int, ipv6: bool | None, owner: Owner) -> Binding:
        connection = self._connection
        session = connection.require_session()
        address = pick_address(connection.addresses, wanted, ipv6)
        return connection.bindings.open(session, address, port, owner)

    def _queue_bytes(self) -> int:
        stats = self._connection.tunnel_stats(Path.STREAM)
        return 0 if stats is None else stats.queue_bytes


class Connecting:
    """What ``connect`` returns: to be awaited, or entered with ``async with``."""

    def __init__(self, settings: ConnectSettings, plane: Plane | None, tun: TunDevice | None) -> None:
        self._settings = settings
        self._plane = plane
        self._tun = tun
        self._tunnel: Tunnel | None = None

    def __await__(self) -> Generator[Any, None, Tunnel]:
        return self._open().__await__()

    async def __aenter__(self) -> Tunnel:
        self._tunnel = await self._open()
        return self._tunnel

    async def __aexit__(self, *exception: object) -> None:
        if self._tunnel is not None:
            await self._tunnel.close()

    async def _open(self) -> Tunnel:
        plane = self._plane or planes.borrow()
        try:
            connection = await _connection(plane, self._settings, self._tun)
        except BaseException:
            if self._plane is None:
                await asyncio.shield(planes.give_back())
            raise
        return Tunnel(connection, owns_plane=self._plane is not None)


async def _connection(plane: Plane, settings: ConnectSettings, tun: TunDevice | None) -> Connection:
    """A connection to the first server that has room for us."""
    servers = settings.servers
    while True:
        connection = Connection(plane, settings, NotificationHub(), tun)
        try:
            await connection.open(servers)
        except BaseException as error:
            connection.abort()
            asked = connection.dialled
            servers = tuple(s for s in servers if asked is not None and s != asked.server)
            if isinstance(error, RefusedError) and error.code in _NO_ROOM and servers:
                continue
            raise
        return connection


async def _relevant(notifications: NotificationStream, target: Switched) -> None:
    """Wait for a notification that may change a socket's path."""
    async for notification in notifications:
        if isinstance(notification, DdtEnabled | DdtAvailable):
            return
        if isinstance(notification, TunnelTerminated):
            break
    raise TunnelClosedError("the tunnel was closed before the DDT was enabled")


def connect(
    servers: str | ServerAddress | Sequence[str | ServerAddress],
    *,
    username: str | None = None,
    password: str | bytes | None = None,
    client_id: bytes | None = None,
    client_cert: PemSource | tuple[PemSource, PemSource] | None = None,
    ca: PemSource | None = None,
    pin_sha256: str | bytes | None = None,
    verify: bool = True,
    server_name: str | None = None,
    families: str | AddressFamilies = AddressFamilies.BOTH,
    services: Iterable[Service | str] = (),
    keepalive: float | None = None,
    reconnect: bool = True,
    pcap: Any = None,
    message_log: MessageLog | None = None,
    plane: Plane | None = None,
    proxy: str | Proxy | None = None,
    redundancy: Redundancy | str | None = None,
    congestion_control: str | None = None,
    tun: TunDevice | None = None,
    coding: Coding | str = AUTOMATIC,
) -> Connecting:
    """Make a tunnel: ``async with opentsm.connect("tls://host:443") as tunnel`` or ``await`` it and close it.

    Args:
        servers: one address (``tls://HOST:PORT`` or ``tcp://HOST:PORT``) or several, tried in order with
            overlapping attempts (RFC 8305); the first that comes up is kept.
        username, password: credentials. ``password`` may be a token.
        client_id: 1 to 64 bytes by which the server knows this device.
        client_cert: certificate and key, PEM (file or text): a pair, or one file with both.
        ca: authorities to trust, PEM, instead of the system's.
        pin_sha256: SHA-256 of the server's certificate; no other is accepted. With
            ``verify=False`` the pin alone decides, and no ``ca`` is needed.
        verify: False accepts any certificate: for tests only.
        server_name: name the certificate must have, when it is not the address's host.
        families: inner addresses wanted: ``ipv4``, ``ipv6`` or ``both``.
        services: services the application would like; a hint to the server.
        keepalive: seconds between probes of the stream, instead of the server's value; 0: none.
        reconnect: come back by itself when the stream is lost.
        pcap: write inner packets to this file.
        message_log: write control messages to this file (JSON lines), or call this function with each.
        plane: the user plane to use (begun, and ended, by the caller); None: one shared by all tunnels of
            the event loop.
        proxy: ``http://HOST:PORT`` (CONNECT) or ``socks5://HOST:PORT``, with ``USER:PASSWORD@`` if needed.
        coding: redundancy, FEC and header compression: see ``Tunnel.set_coding``.
        redundancy: media on several streams, where the server offers it: ``fan-out:2`` (a copy by each),
            ``load-balance:2`` (in turn), ``off``; None (``auto``): fan-out while mode auto finds it late.
        congestion_control: of the streams (``bbr``, ``cubic``, ...); None: the kernel's default.
        tun: carry the packets of this TUN device (the tunnel's own sockets then hear nothing).

    Raises:
        ConfigError: an argument cannot be used (at once).
        ConnectError: no server could be reached (when awaited).
        RefusedError: the server said no (when awaited).
    """
    settings = make_settings(
        servers,
        username=username,
        password=password,
        client_id=client_id,
        client_cert=client_cert,
        ca=ca,
        pin_sha256=pin_sha256,
        verify=verify,
        server_name=server_name,
        families=families,
        services=services,
        keepalive=keepalive,
        reconnect=reconnect,
        pcap=pcap,
        message_log=message_log,
        proxy=proxy,
        redundancy=redundancy,
        congestion_control=congestion_control,
        software=f"opentsm/{__version__}",
        coding=coding,
    )
    return Connecting(settings, plane, tun)
