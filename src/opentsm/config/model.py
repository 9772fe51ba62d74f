"""Settings as the rest of the program sees them: frozen, checked, references resolved.

Times are seconds, rates bytes per second, paths absolute. The names in a file (with hyphens) and
everything a person must know about each setting are in ``opentsm.config.schema``; this module only
says what a valid configuration *is*.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Final

from opentsm.engine.policy import TRANSPORTS, PolicyAction, ProtocolPolicy, RewriteRow, compile_policies
from opentsm.engine.pools import AddressRange
from opentsm.types import IpAddress, Service, Transport

IpInterface = IPv4Interface | IPv6Interface
IpNetwork = IPv4Network | IPv6Network


class CoreSide(enum.Enum):
    """How inner packets of a realm leave the server."""

    TUN = "tun"
    USERSPACE = "userspace"
    NONE = "none"


class ClientAuth(enum.Enum):
    """Whether a TLS profile asks clients for a certificate."""

    NONE = "none"
    REQUEST = "request"
    REQUIRE = "require"


class AuthMethod(enum.Enum):
    """Ways a client may prove who it is."""

    CERTIFICATE = "certificate"
    PASSWORD = "password"
    TOKEN = "token"


class LogLevel(enum.Enum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.Enum):
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The process. ``user`` is the account to become once listeners and TUN devices are open."""

    workers: int = 1
    user: str | None = None
    admin_socket: Path | None = None
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.TEXT
    data_log: Path | None = None
    store: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """Life cycle of a tunnel, in seconds; 0 = off."""

    keepalive_timer: float
    keepalive_timer_datagram: float
    tunnel_persistence_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """Methods are tried in order, then plug-ins; with ``anonymous`` a client needs no proof at all."""

    methods: tuple[AuthMethod, ...] = ()
    password_file: Path | None = None
    token_file: Path | None = None
    plugins: tuple[str, ...] = ()
    plugin_options: tuple[str, ...] = ()
    anonymous: bool = False

    def options_of(self, plugin: str) -> dict[str, str]:
        """The options written for one plug-in, as ``PLUGIN.KEY=VALUE``."""
        pairs = (text.partition("=") for text in self.plugin_options)
        prefix = f"{plugin}."
        return {key.removeprefix(prefix): value for key, _, value in pairs if key.startswith(prefix)}


_EVERYWHERE: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """A core network: where inner packets go when they leave the tunnels.

    Attributes:
        addresses: the server's own inner addresses, each with the prefix it stands in.
        routes: core destinations as written; ``core_routes`` is what is to be set up.
        echo: UDP port of the echo service on ``addresses``; 0 = off.
    """

    name: str
    core: CoreSide
    tun: str | None = None
    addresses: tuple[IpInterface, ...] = ()
    routes: tuple[IpNetwork, ...] = ()
    echo: int = 0

    @property
    def core_routes(self) -> tuple[IpNetwork, ...]:
        """Destinations that leave by the core side. A TUN realm without ``routes`` means all of
        them (the kernel's routing and firewall decide); user space opens only what is listed."""
        if self.core is CoreSide.NONE:
            return ()
        if self.core is CoreSide.TUN and not self.routes:
            return _EVERYWHERE
        return self.routes

    def prefix_length(self, address: IpAddress) -> int:
        """Prefix length that tells a client which inner addresses are its neighbours."""
        for own in self.addresses:
            if address.version == own.version and address in own.network:
                return own.network.prefixlen
        return address.max_prefixlen


@dataclass(frozen=True, slots=True, kw_only=True)
class Sbc:
    """An embedded SBC: registrar, proxy and media relay for calls between the clients of a realm, and the
    server's own network.

    Attributes:
        address, address6: where it answers, inner addresses that are the user plane's.
        users_file: SIP accounts, in the format of ``htdigest``.
        media_ports: first and last port of relayed media, both included.
        core_address: where it is on the server's own network, by the kernel's sockets; None: nowhere.
        core_phones: from where phones may register there.
    """

    name: str
    realm: Realm
    domain: str
    address: IpAddress
    port: int
    users_file: Path
    media_ports: tuple[int, int]
    anchoring: bool = True
    cdr_file: Path | None = None
    database: Path | None = None
    address6: IpAddress | None = None
    core_address: IpAddress | None = None
    core_port: int = 5060
    core_transports: tuple[str, ...] = ("udp", "tcp")
    core_media_ports: tuple[int, int] = (40000, 49999)
    core_phones: tuple[IpNetwork, ...] = ()

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        """The one or two inner addresses."""
        return (self.address,) if self.address6 is None else (self.address, self.address6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """A SIP neighbour of an SBC on the server's own network.

    Attributes:
        sources: who counts as it when they send; none: ``address`` alone.
        domains, numbers: what goes there; ``*`` is the rest.
        username, password_file: our account there.
    """

    name: str
    sbc: Sbc
    address: IpAddress
    port: int = 5060
    transport: str = "udp"
    sources: tuple[IpNetwork, ...] = ()
    domains: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    calls_in: bool = True
    username: str | None = None
    password_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsProfile:
    name: str
    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_auth: ClientAuth = ClientAuth.NONE
    tls12: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One address and number the server listens on. ``port`` 0: the system picks one."""

    name: str
    address: IpAddress
    port: int
    transport: Transport
    tls_profile: TlsProfile | None = None
    congestion_control: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFlow:
    """Rate limits in bytes per second (0 = none), shared by each group of ``group_size`` addresses."""

    name: str
    realm: Realm | None = None
    upstream_rate: int = 0
    downstream_rate: int = 0
    group_size: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """A protocol policy; ``opentsm.engine.policy`` compiles it. ``protocol`` 0 and ``port`` 0: any."""

    name: str
    destination: IpNetwork
    transport: str = "any"
    port: int = 0
    action: PolicyAction = PolicyAction.ALLOW
    redirect_address: IpAddress | None = None
    redirect_port: int = 0

    def compiled(self) -> ProtocolPolicy:
        """The policy as the engine knows it.

        Raises:
            ValueError: the settings do not fit together; the message says how.
        """
        redirect = None if self.redirect_address is None else (self.redirect_address, self.redirect_port)
        return ProtocolPolicy(
            self.name, self.destination, TRANSPORTS[self.transport], self.port, self.action, redirect
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    name: str
    ranges: tuple[AddressRange, ...]
    dns: tuple[IpAddress, ...] = ()
    sip_server: tuple[IpAddress, int] | None = None
    data_flow: DataFlow | None = None
    protocol_policies: tuple[PolicySettings, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One socket to open. ``implied``: the datagram sibling of a stream port."""

    port: Port
    transport: Transport
    implied: bool

    @property
    def address(self) -> tuple[str, int]:
        return str(self.port.address), self.port.port


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A ``tscf-interface``: where tunnels arrive, what they get, and where their packets go."""

    name: str
    enabled: bool = True
    realm: Realm
    ports: tuple[Port, ...]
    address_pools: tuple[PoolSettings, ...]
    max_tunnels: int = 0
    assigned_services: frozenset[Service] = frozenset()
    nagle: bool = True
    media_age: float = 0.25
    control_log: bool = False
    plain_transports: bool = False

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Every socket of this interface, each stream followed by its datagram sibling.

        The sibling is always opened, also while DDT is not assigned, so that a reload can assign
        it without opening sockets (which a process that gave up its privileges may not do). A
        handshake there without a reserved TSID gets nothing, so an idle sibling costs nothing.
        """
        found = [Listener(port=p, transport=p.transport, implied=False) for p in self.ports]
        explicit = {(one.address, one.transport) for one in found}
        siblings = [
            Listener(port=one.port, transport=one.transport.pair, implied=True)
            for one in found
            if one.transport.is_stream and (one.address, one.transport.pair) not in explicit
        ]
        return tuple(sorted(found + siblings, key=lambda one: one.port.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A whole configuration. Every mapping is by name, in the file's order."""

    source: str
    server: ServerSettings
    timers: Timers
    authentication: Authentication
    realms: dict[str, Realm] = field(default_factory=dict)
    sbcs: dict[str, Sbc] = field(default_factory=dict)
    trunks: dict[str, Trunk] = field(default_factory=dict)
    tls_profiles: dict[str, TlsProfile] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    data_flows: dict[str, DataFlow] = field(default_factory=dict)
    protocol_policies: dict[str, PolicySettings] = field(default_factory=dict)
    address_pools: dict[str, PoolSettings] = field(default_factory=dict)
    interfaces: dict[str, Interface] = field(default_factory=dict)

    def sbc_of(self, realm: Realm) -> Sbc | None:
        """The SBC of a realm, if it has one."""
        return next((sbc for sbc in self.sbcs.values() if sbc.realm.name == realm.name), None)

    def trunks_of(self, sbc: Sbc) -> tuple[Trunk, ...]:
        """An SBC's neighbours, in the file's order."""
        return tuple(trunk for trunk in self.trunks.values() if trunk.sbc.name == sbc.name)

    @property
    def server_addresses(self) -> frozenset[IpAddress]:
        """Every inner address of the server itself: pools reserve them."""
        return frozenset(own.ip for realm in self.realms.values() for own in realm.addresses)

    def rewrite_rows(self) -> tuple[RewriteRow, ...]:
        """Rows for ``UserPlane.rewrite``: the policies of all pools that an interface uses."""
        pools = [pool for interface in self.interfaces.values() for pool in interface.address_pools]
        return compile_policies(policy.compiled() for pool in pools for policy in pool.protocol_policies)
