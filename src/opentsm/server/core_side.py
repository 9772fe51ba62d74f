"""The core side: where inner packets go when they leave the tunnels, for every realm, and the policies.

tun          the kernel's routing; the server's inner addresses are the kernel's
userspace    the user plane's own UDP sockets; the server's inner addresses are the user plane's
none         clients, and the server's inner addresses in the user plane
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import summarize_address_range
from typing import Final

from opentsm.config.model import CoreSide, IpNetwork, Realm, Settings
from opentsm.engine.policy import RewriteRow
from opentsm.errors import ConfigError, PlatformError
from opentsm.server import tun
from opentsm.server.echo import Echo, InnerEcho, KernelEcho
from opentsm.types import IpAddress
from opentsm.userplane import Plane

INNER_MTU: Final = 1400
"""Largest inner packet told to clients and set on TUN devices. With what TLS or DTLS, UDP and IP add it fits
1,500 bytes on the way; what does not fit a datagram tunnel goes by the stream."""


class CoreSides:
    """Routes, devices, policies and echo services of all realms.

    Args:
        plane: the user plane.
        workers: queues of each TUN device.
    """

    def __init__(self, plane: Plane, workers: int) -> None:
        self._plane = plane
        self._workers = workers
        self._devices: dict[str, int] = {}
        self._routes: dict[IpNetwork, str] = {}
        self._local: set[str] = set()
        self._rows: tuple[RewriteRow, ...] = ()
        self._rules: list[int] = []
        self._echoes: dict[tuple[str, int], Echo] = {}

    async def open(self, settings: Settings) -> None:
        """Set up everything that the settings describe.

        Raises:
            ConfigError: two realms have the same route.
            PlatformError: a device or a port cannot be had.
        """
        check_routes(settings)
        for realm in settings.realms.values():
            if realm.core is CoreSide.TUN:
                await self._open_tun(realm, settings)
            else:
                for own in realm.addresses:
                    self._plane.core.route_local(str(own.ip))
                    self._local.add(str(own.ip))
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Make routes, policies and echo services those of the settings; devices and addresses stay.

        Raises:
            PlatformError: an echo port cannot be had; nothing has changed.
        """
        self._apply_echo(settings)
        self._apply_routes(settings)
        self._apply_policies(settings.rewrite_rows())

    async def _open_tun(self, realm: Realm, settings: Settings) -> None:
        assert realm.tun is not None
        fds = tun.open_tun(realm.tun, self._workers)
        self._devices[realm.name] = self._plane.core.add_tun(fds)
        await asyncio.to_thread(
            tun.configure,
            realm.tun,
            addresses=realm.addresses,
            routes=tuple(client_prefixes(realm, settings)),
            mtu=INNER_MTU,
        )

    def _apply_routes(self, settings: Settings) -> None:
        wanted = {route: realm.name for realm in settings.realms.values() for route in realm.core_routes}
        for route in self._routes.keys() - wanted.keys():
            self._plane.core.unroute(str(route))
        for route, name in wanted.items():
            if self._routes.get(route) == name:
                continue
            if settings.realms[name].core is CoreSide.TUN:
                self._plane.core.route_tun(str(route), self._devices[name])
            else:
                self._plane.core.route_core(str(route))
        self._routes = wanted

    def _apply_policies(self, rows: tuple[RewriteRow, ...]) -> None:
        """The new set stands before the old one goes, so that no packet passes between them unjudged."""
        if rows == self._rows:
            return
        old = self._rules
        self._rules = [
            self._plane.core.rewrite(
                match=row.match, protocol=row.protocol, port=row.port, to=row.to, allow=row.allow
            )
            for row in rows
        ]
        for rule in old:
            self._plane.core.unrewrite(rule)
        self._rows = rows

    def _apply_echo(self, settings: Settings) -> None:
        wanted = {
            (str(own.ip), realm.echo): (own.ip, realm)
            for realm in settings.realms.values()
            for own in realm.addresses
            if realm.echo
        }
        fresh: dict[tuple[str, int], Echo] = {}
        try:
            for key in wanted.keys() - self._echoes.keys():
                fresh[key] = self._echo(*wanted[key])
        except PlatformError:
            for echo in fresh.values():
                echo.close()
            raise
        for key in self._echoes.keys() - wanted.keys():
            self._echoes.pop(key).close()
        self._echoes |= fresh

    def _echo(self, address: IpAddress, realm: Realm) -> Echo:
        if realm.core is CoreSide.TUN:
            return KernelEcho(address, realm.echo)
        return InnerEcho(self._plane, address, realm.echo)

    def close(self) -> None:
        """Take everything down again."""
        for echo in self._echoes.values():
            echo.close()
        self._echoes.clear()
        for rule in self._rules:
            self._plane.core.unrewrite(rule)
        for route in (*map(str, self._routes), *self._local):
            self._plane.core.unroute(route)
        for device in self._devices.values():
            with suppress(KeyError):
                self._plane.core.remove_tun(device)
        self._devices.clear()
        self._routes.clear()
        self._local.clear()
        self._rules.clear()


def check_routes(settings: Settings) -> None:
    """The user plane has one routing table: a destination leads to one realm.

    Raises:
        ConfigError: two realms claim the same destination.
    """
    seen: dict[IpNetwork, str] = {}
    for realm in settings.realms.values():
        for route in realm.core_routes:
            other = seen.setdefault(route, realm.name)
            if other != realm.name:
                text = f"realms {other} and {realm.name} both route {route}"
                raise ConfigError(text, source=settings.source, hint="give each of them routes of its own")


def client_prefixes(realm: Realm, settings: Settings) -> Iterator[IpNetwork]:
    """Prefixes of clients that no address of the realm covers: the kernel needs a route for each."""
    for interface in settings.interfaces.values():
        if interface.realm.name != realm.name:
            continue
        for one in (one for pool in interface.address_pools for one in pool.ranges):
            prefixes: Iterable[IpNetwork] = summarize_address_range(one.first, one.last)
            for prefix in prefixes:
                if not any(_covers(own.network, prefix) for own in realm.addresses):
                    yield prefix


def _covers(outer: IpNetwork, inner: IpNetwork) -> bool:
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    return inner.network_address in outer
