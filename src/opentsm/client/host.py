"""What ``opentsm up`` changes on this machine: address, routes, name servers. And how all of it is undone.

Nothing that exists is replaced or removed:

device   addresses and routes of the TUN device go with it, even when this program is killed.
default  two routes of half the address space each, which are more specific than the default route and
         leave it where it is.
pins     routes to the server's outer addresses by way of the old gateway, where a route into the tunnel would
         cover them. They bear a protocol number of ours, by which one that a killed program left is known.
names    a file of ours is mounted over resolv.conf (or systemd-resolved is told); the file itself stays.

What is computed from what (``wanted_routes``, ``pins_needed``, ``find_underlay``, ``conflict``) is pure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import structlog

from opentsm.client.tun import DEFAULT_MTU
from opentsm.errors import ConfigError, PlatformError
from opentsm.protocol.actions import Configuration, Lease
from opentsm.types import IpAddress
from opentsm.userplane.tun import IpCommandError, bring_up, ip, silence

IpNetwork = IPv4Network | IPv6Network
Row = Mapping[str, Any]
"""A route as `ip -json route` prints it."""

ROUTE_PROTOCOL: Final = "245"
"""Mark of our pins (rtnetlink's rtm_protocol; 192 to 252 are nobody's)."""

MAX_PINS: Final = 64
"""Outer addresses: 16 servers with 4 addresses each."""

RESOLV_CONF: Final = Path("/etc/resolv.conf")

EVERYTHING: Final = tuple(ip_network(text) for text in ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"))

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the user asked for.

    Args:
        name: of the device.
        routes: prefixes to reach through the tunnel, beside the inner network.
        default_route: everything.
        dns: use the tunnel's name servers.
    """

    name: str
    routes: tuple[IpNetwork, ...] = ()
    default_route: bool = False
    dns: bool = False


@dataclass(frozen=True, slots=True)
class Underlay:
    """The way to an outer address without the tunnel."""

    device: str
    gateway: str | None = None

    @property
    def words(self) -> list[str]:
        """As `ip route add` wants it."""
        return [*(["via", self.gateway] if self.gateway else []), "dev", self.device]


# -- decisions ------------------------------------------------------------------------------------------


def parse_route(text: str) -> IpNetwork:
    """A prefix as people write it.

    Raises:
        ConfigError: it is none.
    """
    try:
        return ip_network(text)
    except ValueError as error:
        hint = "write it like 10.1.0.0/16; for everything there is --default-route"
        raise ConfigError(f"--route {text}: {error}", hint=hint) from error


def wanted_routes(lease: Lease, options: HostOptions) -> tuple[IpNetwork, ...]:
    """Prefixes that lead into the tunnel: the inner network, the server's inner addresses, what is asked for.

    Families without an inner address are left out: the kernel would have no source address.
    """
    families = {own.version for own in lease.addresses}
    inner: list[IpNetwork] = [own.network for own in (lease.ipv4, lease.ipv6) if own is not None]
    servers = [*lease.dns_servers, *([lease.sip_server[0]] if lease.sip_server else [])]
    inner += [ip_network(server) for server in servers if not is_covered(server, inner)]
    more = [*options.routes, *(EVERYTHING if options.default_route else ())]
    own = {ip_network(address) for address in lease.addresses}
    return tuple(
        prefix
        for prefix in dict.fromkeys((*inner, *more))
        if prefix.version in families and prefix not in own
    )


def is_covered(address: IpAddress, prefixes: Iterable[IpNetwork]) -> bool:
    """Whether a route leads there."""
    return any(address in prefix for prefix in prefixes)


def pins_needed(outer: Iterable[IpAddress], prefixes: Sequence[IpNetwork]) -> tuple[IpAddress, ...]:
    """Outer addresses that the tunnel's routes would swallow.

    Raises:
        ConfigError: one of them is itself asked for as a route.
    """
    covered = [address for address in outer if is_covered(address, prefixes)]
    for address in covered:
        if ip_network(address) in prefixes:
            raise ConfigError(
                f"the route {address} would send the tunnel's own packets into the tunnel",
                hint="leave it out; the server is reached from outside",
            )
    return tuple(covered[:MAX_PINS])


def find_underlay(routes: Sequence[Row], address: IpAddress, without: str) -> Underlay | None:
    """The best route to an address that does not use device ``without`` and is no pin of ours."""
    best: tuple[int, int] | None = None
    found: Underlay | None = None
    for row in routes:
        prefix = _prefix(row, address.version)
        usable = row.get("type", "unicast") == "unicast" and not {"dead", "linkdown"} & set(row["flags"])
        ours = row.get("dev") in (None, without) or str(row.get("protocol")) == ROUTE_PROTOCOL
        if prefix is None or address not in prefix or ours or not usable:
            continue
        rank = (prefix.prefixlen, -int(row.get("metric", 0)))
        if best is None or rank > best:
            best, found = rank, Underlay(row["dev"], row.get("gateway"))
    return found


def conflict(routes: Sequence[Row], prefixes: Sequence[IpNetwork], device: str) -> str | None:
    """Why the routes cannot be set: one of them is a network this machine has elsewhere already."""
    for row in routes:
        if row.get("dev") == device or row["dst"] == "default":
            continue
        for prefix in prefixes:
            if _prefix(row, prefix.version) == prefix:
                return f"the network {prefix} is behind {row.get('dev', 'another device')} already"
    return None


def _prefix(row: Row, version: int) -> IpNetwork | None:
    """A row's destination, if it is of this family."""
    if row["dst"] == "default":
        return ip_network("0.0.0.0/0" if version == 4 else "::/0")
    try:
        prefix = ip_network(row["dst"], strict=False)
    except ValueError:  # a multicast or named row
        return None
    return prefix if prefix.version == version else None


# -- what is done ---------------------------------------------------------------------------------------


class HostNetwork:
    """This machine's network while a tunnel is up. Every method blocks for some milliseconds.

    Args:
        options: what the user asked for.
        outer: addresses at which the server (or the proxy) is reached from outside.
    """

    def __init__(self, options: HostOptions, outer: Iterable[IpAddress]) -> None:
        self._options = options
        self._outer = tuple(dict.fromkeys(outer))
        self._pins: dict[IpAddress, Underlay] = {}
        self._names = NameServers(options.name)

    def apply(self, configuration: Configuration) -> None:
        """Make the machine's network fit what the server configured. Again after every change.

        Raises:
            ConfigError: a route that was asked for cannot be.
            PlatformError: the machine refuses; the message has the command that failed.
        """
        name, lease = self._options.name, configuration.lease
        prefixes = wanted_routes(lease, self._options)
        pins = pins_needed(self._outer, prefixes)
        table = _routes("-4") + _routes("-6")
        if (obstacle := conflict(table, prefixes, name)) is not None:
            raise PlatformError(f"{obstacle}; ask the server's operator for another inner network, or leave")
        ip("address", "flush", "dev", name)
        for family in ("-4", "-6"):
            ip(family, "route", "flush", "dev", name)
        silence(name)
        bring_up(name, mtu=configuration.inner_mtu or DEFAULT_MTU, addresses=_hosts(lease))
        for address in pins:
            self._pin(address)
        for prefix in prefixes:
            ip(f"-{prefix.version}", "route", "add", str(prefix), "dev", name)
        if self._options.dns:
            self._names.use(lease.dns_servers)

    def _pin(self, address: IpAddress) -> None:
        """Keep an outer address where it is now."""
        if address in self._pins:
            return
        way = _way(address)
        if way is not None:
            _set_pin(address, way)
            self._pins[address] = way

    def follow(self) -> None:
        """The machine may be in another network: pins follow its own routes, and are set again where they
        went with their device.

        Raises:
            PlatformError: the machine refuses.
        """
        for address, old in tuple(self._pins.items()):
            table = _routes(f"-{address.version}")
            way = find_underlay(table, address, self._options.name)
            if way is not None and (way != old or not _is_pinned(table, address)):
                _log.info("another way to the server", address=str(address), by=" ".join(way.words))
                _set_pin(address, way)
                self._pins[address] = way

    def undo(self) -> None:
        """Take back what does not go with the device. Never raises; what is left is logged."""
        self._names.restore()
        for address, way in self._pins.items():
            try:
                _ip_pin("del", address, way)
            except PlatformError as error:
                # Gone already when its device or address went: a laptop that left its network.
                _log.debug("pin not removed", address=str(address), error=str(error))
        self._pins.clear()


def _hosts(lease: Lease) -> list[Any]:
    """Inner addresses without their network: its route is set by itself, where a conflict is an error."""
    return [type(own)(own.ip) for own in (lease.ipv4, lease.ipv6) if own is not None]


def _routes(family: str) -> list[Row]:
    text = ip("-json", family, "route", "show", "table", "main")
    rows: list[Row] = json.loads(text or "[]")
    return rows


def _way(address: IpAddress) -> Underlay | None:
    """How the kernel sends there now, rules and all. None: nothing to keep (an own address, or no route)."""
    try:
        rows = json.loads(ip("-json", f"-{address.version}", "route", "get", str(address)) or "[]")
    except IpCommandError:
        return None
    if not rows or rows[0].get("type", "unicast") != "unicast" or "dev" not in rows[0]:
        return None
    return Underlay(rows[0]["dev"], rows[0].get("gateway"))


def _is_pinned(routes: Sequence[Row], address: IpAddress) -> bool:
    """Whether a route to this address alone is there, whoever made it."""
    return any(_prefix(row, address.version) == ip_network(address) for row in routes)


def _set_pin(address: IpAddress, way: Underlay) -> None:
    """A pin of ours that is there already is replaced; a route that somebody else made is as good."""
    with suppress(IpCommandError):
        ip(f"-{address.version}", "route", "del", str(ip_network(address)), "protocol", ROUTE_PROTOCOL)
    try:
        _ip_pin("add", address, way)
    except IpCommandError as error:
        if "File exists" not in error.words:
            raise


def _ip_pin(verb: str, address: IpAddress, way: Underlay) -> None:
    ip(
        f"-{address.version}",
        "route",
        verb,
        str(ip_network(address)),
        *way.words,
        "protocol",
        ROUTE_PROTOCOL,
    )


# -- name servers -----------------------------------------------------------------------------------------


class NameServers:
    """The machine's name servers while the tunnel is up.

    Args:
        device: the tunnel's, to which systemd-resolved binds them.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._file: Path | None = None

    def use(self, servers: Sequence[IpAddress]) -> None:
        """Ask these and no others.

        Raises:
            PlatformError: that cannot be arranged.
        """
        if not servers:
            _log.warning("the server names no name servers; the machine's own stay")
        elif _resolved_runs():
            _run("resolvectl", "dns", self._device, *map(str, servers))
            _run("resolvectl", "domain", self._device, "~.")
        else:
            self._mount(resolv_conf(servers))

    def _mount(self, text: str) -> None:
        if self._file is not None:
            self._file.write_text(text)
            return
        handle, name = tempfile.mkstemp(prefix="opentsm-resolv-")
        os.fchmod(handle, 0o644)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        try:
            _run("mount", "--bind", name, str(RESOLV_CONF))
        except PlatformError:
            os.unlink(name)
            raise
        self._file = Path(name)

    def restore(self) -> None:
        """The machine's own again. What systemd-resolved was told goes with the device."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            _run("umount", str(RESOLV_CONF))
        except PlatformError as error:
            _log.error("the name servers could not be restored", error=str(error))
        file.unlink(missing_ok=True)


def resolv_conf(servers: Sequence[IpAddress]) -> str:
    """The text of a resolv.conf; a resolver reads no more than three servers (resolv.conf(5), MAXNS)."""
    lines = [f"nameserver {server}" for server in servers[:3]]
    return "\n".join(["# written by opentsm for the time of a tunnel", *lines, ""])


def _resolved_runs() -> bool:
    """Whether systemd-resolved answers this machine's questions."""
    try:
        stub = RESOLV_CONF.resolve().is_relative_to("/run/systemd/resolve")
    except OSError:
        return False
    return stub and shutil.which("resolvectl") is not None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        raise PlatformError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


def outer_addresses(found: Iterable[str]) -> tuple[IpAddress, ...]:
    """Addresses of a name look-up, zone ids left out (link-local addresses need no pin)."""
    parsed = [ip_address(text.partition("%")[0]) for text in found]
    return tuple(dict.fromkeys(address for address in parsed if not address.is_link_local))
