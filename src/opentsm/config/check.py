"""Checks that need more than one setting: what fits together, and what is there twice.

Every check looks at objects that are right in themselves and adds a problem, with the line of the
setting to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import Final

from opentsm.config.errors import Problems
from opentsm.config.model import (
    AuthMethod,
    ClientAuth,
    CoreSide,
    Interface,
    Listener,
    PolicySettings,
    PoolSettings,
    Port,
    Realm,
    Sbc,
    Settings,
    TlsProfile,
    Trunk,
)
from opentsm.config.tree import Node
from opentsm.engine.policy import PolicyConflict, compile_policies
from opentsm.engine.pools import AddressPool, AddressRange
from opentsm.types import IpAddress, Transport


class Lines:
    """Where each object and setting stands."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, str], int] = {}

    def note(self, node: Node) -> None:
        self._lines[node.kind, node.name, ""] = node.line
        for entry in node.entries:
            self._lines[node.kind, node.name, entry.key] = entry.line

    def find(self, kind: str, name: str, key: str = "") -> int | None:
        """The line of a setting, or of its object where the setting is left to its default."""
        return self._lines.get((kind, name, key)) or self._lines.get((kind, name, "")) or None


class Checker:
    """What a check gets: the settings, and where to complain."""

    def __init__(self, settings: Settings, lines: Lines, problems: Problems) -> None:
        self.settings = settings
        self._lines = lines
        self._problems = problems

    def complain(self, kind: str, name: str, key: str, message: str, hint: str = "") -> None:
        title = f"{kind} {name}" if name else kind
        self._problems.add(f"{title}: {message}", line=self._lines.find(kind, name, key), hint=hint)


def check(settings: Settings, lines: Lines, problems: Problems) -> None:
    """Run every check. Checks of the whole (is there an interface at all?) wait for sound parts."""
    sound = not problems
    checker = Checker(settings, lines, problems)
    for one in _CHECKS:
        one(checker)
    if sound:
        for one in _WHOLE:
            one(checker)


def _realms(checker: Checker) -> None:
    for realm in checker.settings.realms.values():
        _realm(checker, realm)
    for one, other in combinations(checker.settings.realms.values(), 2):
        if one.tun is not None and one.tun == other.tun:
            checker.complain("realm", other.name, "tun", f"realm {one.name} has device {one.tun} already")
    seen: dict[IpAddress, str] = {}
    for realm in checker.settings.realms.values():
        for own in realm.addresses:
            if (holder := seen.setdefault(own.ip, realm.name)) != realm.name:
                checker.complain("realm", realm.name, "addresses", f"realm {holder} has {own.ip} already")


def _realm(checker: Checker, realm: Realm) -> None:
    if realm.core is CoreSide.TUN and realm.tun is None:
        checker.complain("realm", realm.name, "core", "core tun needs a device", 'add tun = "tsm0"')
    if realm.core is not CoreSide.TUN and realm.tun is not None:
        checker.complain(
            "realm", realm.name, "tun", f"core {realm.core.value} has no TUN device", "remove tun"
        )
    if realm.core is CoreSide.NONE and realm.routes:
        checker.complain("realm", realm.name, "routes", "core none leads nowhere", "remove routes")
    if realm.echo and not realm.addresses:
        checker.complain(
            "realm", realm.name, "echo", "the echo service needs an address of the server's", "add addresses"
        )


def _sbcs(checker: Checker) -> None:
    holders: dict[str, str] = {}
    for sbc in checker.settings.sbcs.values():
        if (holder := holders.setdefault(sbc.realm.name, sbc.name)) != sbc.name:
            text = f"realm {sbc.realm.name} has sbc {holder} already; there is at most one"
            checker.complain("sbc", sbc.name, "realm", text)
        _sbc_ports(checker, sbc)
        for key, address in (("address", sbc.address), ("address6", sbc.address6)):
            if address is not None:
                for text, hint in _sbc_address(checker.settings, sbc, address):
                    checker.complain("sbc", sbc.name, key, text, hint)
        if sbc.address6 is not None and sbc.address6.version == sbc.address.version:
            text = f"{sbc.address6} is of the same family as {sbc.address}"
            checker.complain("sbc", sbc.name, "address6", text, "give one IPv4 and one IPv6 address")
        if sbc.core_address in checker.settings.server_addresses | set(sbc.addresses):
            text = f"{sbc.core_address} is an inner address"
            checker.complain("sbc", sbc.name, "core-address", text, "give one of this machine's own")


def _trunks(checker: Checker) -> None:
    for trunk in checker.settings.trunks.values():
        sbc = trunk.sbc
        _trunk_account(checker, trunk)
        if sbc.core_address is None and sbc.realm.core is not CoreSide.TUN:
            text = f"sbc {sbc.name} has no core-address from which it could be reached"
            checker.complain("trunk", trunk.name, "sbc", text, "add core-address to the sbc")
        if sbc.core_address is not None and sbc.core_address.version != trunk.address.version:
            text = f"{trunk.address} cannot be reached from {sbc.core_address}"
            checker.complain("trunk", trunk.name, "address", text, "both must be IPv4, or both IPv6")
        if sbc.core_address is not None and trunk.transport not in sbc.core_transports:
            text = f"sbc {sbc.name} does not speak {trunk.transport} there"
            checker.complain("trunk", trunk.name, "transport", text, "add it to core-transports")


def _trunk_account(checker: Checker, trunk: Trunk) -> None:
    if (trunk.username is None) != (trunk.password_file is None):
        key = "password-file" if trunk.username is None else "username"
        checker.complain("trunk", trunk.name, key, "an account is a name and a password", "give both or none")


def _sbc_ports(checker: Checker, sbc: Sbc) -> None:
    first, last = sbc.media_ports
    if first <= sbc.port <= last:
        text = f"port {sbc.port} of SIP lies among the media ports {first}-{last}"
        checker.complain("sbc", sbc.name, "media-ports", text, "leave it out of the range")
    core_first, core_last = sbc.core_media_ports
    if sbc.core_address is not None and core_first <= sbc.core_port <= core_last:
        text = f"port {sbc.core_port} of SIP lies among the media ports {core_first}-{core_last}"
        checker.complain("sbc", sbc.name, "core-media-ports", text, "leave it out of the range")
    echo = sbc.realm.echo
    if echo and sbc.address in _own(sbc.realm) and (echo == sbc.port or first <= echo <= last):
        text = f"port {echo} is the realm's echo service on the same address"
        checker.complain("sbc", sbc.name, "port", text, "choose another port, or another address")


def _sbc_address(settings: Settings, sbc: Sbc, address: IpAddress) -> Iterator[tuple[str, str]]:
    """What is wrong with an SBC's inner address: problem, remedy."""
    realm = sbc.realm
    prefixes = [own.network for own in realm.addresses]
    if realm.core is CoreSide.TUN and address in _own(realm):
        text = f"{address} is the kernel's, because the realm's core is tun"
        yield text, "give the SBC an address of its own in the same prefix"
    if prefixes and not any(address in prefix for prefix in prefixes):
        shown = ", ".join(map(str, prefixes))
        yield f"{address} is outside of the prefixes of realm {realm.name} ({shown})", "change it"
    for other in settings.realms.values():
        if other.name != realm.name and address in _own(other):
            yield f"realm {other.name} has {address} already", "choose another"
    for other_sbc in settings.sbcs.values():
        if address in other_sbc.addresses and other_sbc is not sbc and other_sbc.name < sbc.name:
            yield f"sbc {other_sbc.name} has {address} already", "choose another"
    if address in settings.server_addresses:
        return  # no pool leases these
    for pool in settings.address_pools.values():
        if any(address in one for one in pool.ranges):
            yield f"{address} is in pool {pool.name}", "choose another, or take it out of the pool"


def _own(realm: Realm) -> set[IpAddress]:
    return {own.ip for own in realm.addresses}


def _tls_profiles(checker: Checker) -> None:
    for profile in checker.settings.tls_profiles.values():
        if profile.client_auth is not ClientAuth.NONE and profile.client_ca is None:
            checker.complain(
                "tls-profile",
                profile.name,
                "client-auth",
                "client certificates need a client-ca to be checked against",
            )


def _ports(checker: Checker) -> None:
    for port in checker.settings.ports.values():
        if port.transport is Transport.TLS and port.tls_profile is None:
            checker.complain("tscf-port", port.name, "tls-profile", "a tls port needs a tls-profile")
        if port.transport is not Transport.TLS and port.tls_profile is not None:
            checker.complain(
                "tscf-port",
                port.name,
                "tls-profile",
                f"a {port.transport.value} port has no use for a tls-profile",
                "remove it",
            )


def _policies(checker: Checker) -> None:
    for policy in checker.settings.protocol_policies.values():
        try:
            policy.compiled()
        except ValueError as error:
            checker.complain("tscf-protocol-policy", policy.name, "action", str(error))


def _pools(checker: Checker) -> None:
    pools = list(checker.settings.address_pools.values())
    own = checker.settings.server_addresses
    for pool in pools:
        try:
            usable = AddressPool(pool.name, pool.ranges, reserved=own).families
        except ValueError as error:
            checker.complain("tscf-address-pool", pool.name, "ranges", str(error))
        else:
            if not usable:
                checker.complain(
                    "tscf-address-pool",
                    pool.name,
                    "ranges",
                    "only the server's own addresses are in it",
                    "widen it",
                )
    for first, second in _overlapping(pools):
        checker.complain(
            "tscf-address-pool", second.name, "ranges", f"its addresses overlap those of pool {first.name}"
        )


def _overlapping(pools: list[PoolSettings]) -> Iterator[tuple[PoolSettings, PoolSettings]]:
    """Pairs of pools that share addresses; by sorting, so that thousands of pools are no matter."""
    every = [(one, pool) for pool in pools for one in pool.ranges]
    every.sort(key=lambda item: (item[0].first.version, int(item[0].first)))
    widest: tuple[AddressRange, PoolSettings] | None = None
    for one, pool in every:
        if widest is not None and widest[0].overlaps(one) and widest[1] is not pool:
            yield widest[1], pool
        if widest is None or not widest[0].overlaps(one) or int(one.last) > int(widest[0].last):
            widest = (one, pool)


def _interfaces(checker: Checker) -> None:
    for interface in checker.settings.interfaces.values():
        for port in interface.ports:
            _port_of(checker, interface, port)
        for pool in interface.address_pools:
            _pool_of(checker, interface.realm, pool)


def _port_of(checker: Checker, interface: Interface, port: Port) -> None:
    name, what = interface.name, port.transport.value
    if not port.transport.is_secure and not interface.plain_transports:
        checker.complain(
            "tscf-interface",
            name,
            "ports",
            f"port {port.name} is {what}, which neither encrypts nor tells who is there",
            "use tls, or allow it here with plain-transports = on",
        )
    if not port.transport.is_stream and not any(_are_pair(port, other) for other in interface.ports):
        pair = port.transport.pair.value
        checker.complain(
            "tscf-interface",
            name,
            "ports",
            f"port {port.name} is {what} without a {pair} port of the same address and number",
            f"remove it: a {pair} port opens {what} by itself",
        )


def _are_pair(one: Port, other: Port) -> bool:
    return (one.address, one.port, one.transport.pair) == (other.address, other.port, other.transport)


def _pool_of(checker: Checker, realm: Realm, pool: PoolSettings) -> None:
    """Where the realm says which prefixes its clients are in, a pool must keep to them: answers to
    other addresses would not find the way back."""
    if realm.core is CoreSide.NONE:
        return
    for one in pool.ranges:
        prefixes = [own.network for own in realm.addresses if own.version == one.first.version]
        if prefixes and not any(one.first in prefix and one.last in prefix for prefix in prefixes):
            checker.complain(
                "tscf-address-pool",
                pool.name,
                "ranges",
                f"{one} is outside of {', '.join(str(prefix) for prefix in prefixes)}, the prefixes of realm "
                f"{realm.name}",
                "change the pool, or the prefix length in the realm's addresses",
            )


def _listeners(checker: Checker) -> None:
    """No two sockets on the same address, number and kind; a wildcard takes all of its family."""
    seen: dict[tuple[int, int, bool], list[tuple[Interface, Listener]]] = {}
    for interface in checker.settings.interfaces.values():
        for listener in interface.listeners:
            port = listener.port
            if not port.port:
                continue
            place = seen.setdefault((port.port, port.address.version, listener.transport.is_stream), [])
            for holder, other in place:
                if _collide(port.address, other.port.address):
                    _complain_collision(checker, interface, listener, holder, other)
                    break
            place.append((interface, listener))


def _collide(one: IpAddress, other: IpAddress) -> bool:
    return one == other or one.is_unspecified or other.is_unspecified


def _complain_collision(
    checker: Checker, interface: Interface, listener: Listener, holder: Interface, other: Listener
) -> None:
    own, its = listener.port, other.port
    if own is its and interface is not holder:
        if not listener.implied:
            checker.complain(
                "tscf-interface",
                interface.name,
                "ports",
                f"interface {holder.name} uses port {own.name} already",
            )
    elif not (listener.implied and other.implied):  # then their stream sockets collide, which is said
        checker.complain(
            "tscf-port",
            own.name,
            "port",
            f"{own.address} {own.port}/{listener.transport.value} is taken by port {its.name} "
            f"({its.address} {its.port}/{other.transport.value})",
        )


def _policy_conflicts(checker: Checker) -> None:
    used = _used_policies(checker.settings.interfaces.values())
    try:
        compile_policies(policy.compiled() for policy in used)
    except PolicyConflict as error:
        checker.complain("tscf-protocol-policy", error.second, "", str(error))
    except ValueError:
        return  # a policy that is wrong by itself has been reported


def _used_policies(interfaces: Iterable[Interface]) -> list[PolicySettings]:
    return [p for one in interfaces for pool in one.address_pools for p in pool.protocol_policies]


def _authentication(checker: Checker) -> None:
    auth = checker.settings.authentication
    if AuthMethod.PASSWORD in auth.methods and auth.password_file is None:
        checker.complain("authentication", "", "methods", "method password needs a password-file")
    if AuthMethod.TOKEN in auth.methods and auth.token_file is None:
        checker.complain("authentication", "", "methods", "method token needs a token-file")
    for option in auth.plugin_options:
        if (plugin := option.partition(".")[0]) not in auth.plugins:
            checker.complain(
                "authentication",
                "",
                "plugin-options",
                f"{plugin} is not among the plugins",
                "add it, or remove this",
            )


def _somebody_can_come(checker: Checker) -> None:
    settings = checker.settings
    if not settings.interfaces:
        checker.complain(
            "tscf-interface", "", "", "there is none, so nothing to serve", "add [tscf-interface.NAME]"
        )
    auth = settings.authentication
    if not auth.methods and not auth.plugins and not auth.anonymous:
        checker.complain(
            "authentication",
            "",
            "methods",
            "no client could authenticate",
            'add methods = ["password"] and a password-file',
        )
    if AuthMethod.CERTIFICATE in auth.methods and not any(
        _asks(profile) for profile in _used_profiles(settings)
    ):
        checker.complain(
            "authentication",
            "",
            "methods",
            "method certificate needs a port that asks for one",
            'set client-auth = "request" and client-ca in its tls-profile',
        )


def _used_profiles(settings: Settings) -> list[TlsProfile]:
    ports = [port for interface in settings.interfaces.values() for port in interface.ports]
    return [port.tls_profile for port in ports if port.tls_profile is not None]


def _asks(profile: TlsProfile) -> bool:
    return profile.client_auth is not ClientAuth.NONE


_CHECKS: Final[tuple[Callable[[Checker], None], ...]] = (
    _realms,
    _sbcs,
    _trunks,
    _tls_profiles,
    _ports,
    _policies,
    _pools,
    _interfaces,
    _listeners,
    _policy_conflicts,
    _authentication,
)
_WHOLE: Final[tuple[Callable[[Checker], None], ...]] = (_somebody_can_come,)
