"""Every socket of SIP: inner UDP of the user plane, UDP on the core side, and TCP on both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol, cast

import structlog

from opentsm.errors import ConfigError, OpenTsmError
from opentsm.types import SocketAddress

from .hop import Hop
from .settings import CoreSide, SbcSettings
from .streams import KernelTcp, Stack, Streams, Told
from .transactions import Send

SIP_TOS: Final = 24 << 2
"""DSCP CS3 (RFC 4594: signalling)."""

RECEIVE_QUEUE: Final = 1024
"""Datagrams waiting for Python: one second of a trunk at its flood limit, twice over."""

_log: Final = structlog.get_logger("opentsm.sbc")


class UdpCommands(Protocol):
    """The part of ``UserPlane`` that is used here."""

    def udp_open(
        self, *, session: int | None, address: str, port: int, queue: int = 256
    ) -> tuple[int, int]: ...
    def udp_send(self, socket: int, data: bytes, address: str, port: int, tos: int = 0) -> str | None: ...
    def udp_close(self, socket: int) -> None: ...


class UdpEvents(Protocol):
    """The part of ``Plane`` that is used here."""

    @property
    def core(self) -> UdpCommands: ...
    def watch_socket(self, socket: int, handler: Callable[[bytes, SocketAddress, int], None]) -> None: ...
    def unwatch_socket(self, socket: int) -> None: ...


class CoreUdp(asyncio.DatagramProtocol):
    """SIP over UDP on the core side."""

    def __init__(self, local: SocketAddress, receive: Callable[[Hop, bytes], None]) -> None:
        self._hop = Hop("udp", local, ("", 0), core=True)
        self._receive = receive
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        source = (str(addr[0]).partition("%")[0], addr[1])
        self._receive(replace(self._hop, remote=source), data)

    def error_received(self, exc: Exception) -> None:
        """An ICMP error about something sent earlier; transactions find out by themselves."""


class Transports:
    """The sockets of one SBC.

    Args:
        inner_tcp: what makes inner TCP connections; None: there is none.
        told: who hears of messages and troubles.
    """

    def __init__(self, plane: UdpEvents, settings: SbcSettings, inner_tcp: Stack | None, told: Told) -> None:
        self._plane = plane
        self._settings = settings
        self._inner_tcp = inner_tcp
        self._told = told
        self._inner: dict[SocketAddress, int] = {}
        self._core_udp: CoreUdp | None = None
        self.streams = Streams(told)

    async def open(self) -> None:
        """Listen everywhere.

        Raises:
            ConfigError: an address or port cannot be had.
        """
        for address in self._settings.addresses:
            self._open_inner(address)
            await self._open_inner_tcp((address, self._settings.port))
        if self._settings.core is not None:
            await self._open_core(self._settings.core)

    def _open_inner(self, address: str) -> None:
        port = self._settings.port
        try:
            socket, _ = self._plane.core.udp_open(
                session=None, address=address, port=port, queue=RECEIVE_QUEUE
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"SIP cannot listen on {address} port {port}: {error}",
                hint="the SBC's address must be a local inner address that nothing else uses",
            ) from None
        local = (address, port)
        self._inner[local] = socket
        self._plane.watch_socket(
            socket, lambda data, source, _path: self._told.message(Hop("udp", local, source), data)
        )

    async def _open_inner_tcp(self, local: SocketAddress) -> None:
        """Phones that want TCP go without where the user plane has none; UDP serves everybody."""
        if self._inner_tcp is None:
            return
        try:
            await self.streams.listen(self._inner_tcp, local, core=False)
        except (OSError, OpenTsmError) as error:
            _log.warning("sbc-without-inner-tcp", address=local[0], error=str(error))

    async def _open_core(self, core: CoreSide) -> None:
        local = (core.address, core.port)
        loop = asyncio.get_running_loop()
        try:
            if "udp" in core.transports:
                _, self._core_udp = await loop.create_datagram_endpoint(
                    lambda: CoreUdp(local, self._told.message), local_addr=local
                )
            if "tcp" in core.transports:
                await self.streams.listen(KernelTcp(), local, core=True)
        except OSError as error:
            raise ConfigError(
                f"SIP cannot listen on {core.address} port {core.port}: {error}",
                hint="sbc core-address must be an address of this machine, its port free",
            ) from None

    async def close(self) -> None:
        """Close everything."""
        for socket in self._inner.values():
            self._plane.unwatch_socket(socket)
            self._plane.core.udp_close(socket)
        self._inner.clear()
        if self._core_udp is not None and self._core_udp.transport is not None:
            self._core_udp.transport.close()
        self._core_udp = None
        await self.streams.close()

    def send(self, action: Send) -> None:
        """Send one message. A tunnel or a neighbour may be away for a moment; transactions repeat what
        matters."""
        hop = action.hop
        if hop.reliable:
            self.streams.send(hop, action.data, action.fallback)
        elif hop.core:
            if self._core_udp is None or self._core_udp.transport is None:
                self._told.drop("send-no-socket", hop)
            else:
                self._core_udp.transport.sendto(action.data, hop.remote)
        elif (socket := self._inner.get(hop.local)) is None:
            self._told.drop("send-no-socket", hop)
        elif (dropped := self._plane.core.udp_send(socket, action.data, *hop.remote, SIP_TOS)) is not None:
            self._told.drop(f"send-{dropped}", hop)
