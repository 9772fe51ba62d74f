"""The event loop behind the synchronous calls, and the tables from numbers to tunnels and sockets."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from opentsm.client.notifications import Notification, Subscription
from opentsm.client.sockets import InnerSocket
from opentsm.client.stream_sockets import InnerStreamSocket
from opentsm.client.tunnel import Tunnel, connect
from opentsm.errors import LocalProtocolError
from opentsm.tsc.notify import KINDS, CallbackThread, TscCallback, data_of

FIRST_DESCRIPTOR: Final = 1 << 20
"""Our socket descriptors begin beyond what a process can have open, so that a mix-up shows."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TscConfig:
    """What the server configured (``tsc_get_config``)."""

    tsid: int
    inner_addresses: tuple[str, ...]
    prefix_lengths: tuple[int, ...]
    observed_address: tuple[str, int] | None
    sip_server: tuple[str, int] | None
    dns_servers: tuple[str, ...]
    keepalive: float
    inner_mtu: int | None
    services: tuple[str, ...]


AnySocket = InnerSocket | InnerStreamSocket


@dataclass(slots=True)
class Socket:
    """A socket and the tunnel it belongs to."""

    handle: int
    inner: AnySocket


class Runtime:
    """One thread with an event loop, one for callbacks, and what lives there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tsc-loop", daemon=True)
        self._thread.start()
        self._callbacks = CallbackThread()
        self._numbers = itertools.count(1)
        self._descriptors = itertools.count(FIRST_DESCRIPTOR)
        self.tunnels: dict[int, Tunnel] = {}
        self.sockets: dict[int, Socket] = {}
        self._descriptor_of: dict[AnySocket, int] = {}
        self._subscriptions: dict[int, tuple[int, Subscription]] = {}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it in the loop and wait for the outcome."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise LocalProtocolError("tsc_ calls wait, so they cannot be made from inside the tsc event loop")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """Close every tunnel, end both threads."""
        for handle in list(self.tunnels):
            self.run(self.close_tunnel(handle))
        self._callbacks.stop()
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- coroutines: in the loop ----------------------------------------------------------------------------

    async def open_tunnel(self, servers: Any, options: dict[str, Any]) -> int:
        tunnel = await connect(servers, **options)
        handle = next(self._numbers)
        self.tunnels[handle] = tunnel
        return handle

    async def close_tunnel(self, handle: int) -> bool:
        tunnel = self.tunnels.pop(handle, None)
        if tunnel is None:
            return False
        await tunnel.close()
        for descriptor in [d for d, s in self.sockets.items() if s.handle == handle]:
            await self.close_socket(descriptor)
        for number in [number for number, (of, _) in self._subscriptions.items() if of == handle]:
            await self.unsubscribe(number)
        return True

    async def config(self, handle: int) -> TscConfig | None:
        tunnel = self.tunnels.get(handle)
        if tunnel is None:
            return None
        given = tunnel.configuration
        lease = given.lease
        interfaces = [interface for interface in (lease.ipv4, lease.ipv6) if interface is not None]
        return TscConfig(
            tsid=given.tsid,
            inner_addresses=tuple(str(interface.ip) for interface in interfaces),
            prefix_lengths=tuple(interface.network.prefixlen for interface in interfaces),
            observed_address=tunnel.observed_address,
            sip_server=(str(lease.sip_server[0]), lease.sip_server[1]) if lease.sip_server else None,
            dns_servers=tuple(map(str, lease.dns_servers)),
            keepalive=given.keepalive,
            inner_mtu=given.inner_mtu,
            services=tuple(getattr(service, "label", str(service)) for service in given.services),
        )

    async def open_socket(self, handle: int, family: int, kind: int) -> int:
        return self.add_socket(handle, self.tunnels[handle].socket(family, kind))

    def add_socket(self, handle: int, inner: AnySocket) -> int:
        """Give a socket its descriptor."""
        descriptor = next(self._descriptors)
        self.sockets[descriptor] = Socket(handle, inner)
        self._descriptor_of[inner] = descriptor
        return descriptor

    async def close_socket(self, descriptor: int) -> bool:
        entry = self.sockets.pop(descriptor, None)
        if entry is None:
            return False
        del self._descriptor_of[entry.inner]
        entry.inner.close()
        return True

    async def subscribe(self, handle: int, kind: int, callback: TscCallback, opaque: Any) -> int:
        def deliver(notification: Notification, _: Any) -> None:
            for data in data_of(kind, notification, opaque, self._number_of):
                self._callbacks.put(callback, data)

        number = next(self._numbers)
        subscription = self.tunnels[handle].on_notification(deliver, kinds=KINDS[kind])
        self._subscriptions[number] = (handle, subscription)
        return number

    async def unsubscribe(self, number: int) -> bool:
        entry = self._subscriptions.pop(number, None)
        if entry is not None:
            entry[1].cancel()
        return entry is not None

    def _number_of(self, socket: object) -> int:
        return self._descriptor_of.get(socket, -1) if isinstance(socket, InnerSocket) else -1
