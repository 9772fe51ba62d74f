"""What an operator chooses about the embedded SBC. Frozen: a new choice is a new object."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from opentsm.errors import ConfigError

ALGORITHMS: Final = ("SHA-256", "MD5")
"""Digest algorithms this registrar knows, the better first (RFC 8760 section 2.1)."""

PORTS_PER_STREAM: Final = 4
"""A relayed m-line takes a pair of ports (RTP, RTCP) towards each of its two parties."""


TRANSPORTS: Final = ("udp", "tcp")
"""Transports of SIP that are served."""

EVERYTHING: Final = "*"
"""Among a trunk's domains or numbers: whatever no other trunk takes."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """A SIP neighbour on the core side: a trunk, a PBX, another SIP server, or a single phone.

    Args:
        name: for logs and call records.
        address, port, transport: where requests go.
        sources: addresses and prefixes that count as it when they send; empty: ``address`` alone.
        domains: domains, other than ours, whose requests go there; ``*``: all that no other trunk has.
        numbers: beginnings of user names or numbers that go there when no user of ours has them; the longest
            that fits wins; ``*``: all.
        calls_in: it may call registered users.
        username, password: our account there, to answer its challenges with; empty: there is none.
    """

    name: str
    address: str
    port: int = 5060
    transport: str = "udp"
    sources: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    calls_in: bool = True
    username: str = ""
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS or not 1 <= self.port <= 65535:
            raise ConfigError(f"trunk {self.name}: {self.transport} port {self.port} cannot be used")
        if any(c in f"{self.username}{self.password}" for c in '"\\\r\n'):
            raise ConfigError(f"trunk {self.name}: quotes, backslashes and line ends cannot be in an account")
        try:
            ip_address(self.address)
            for source in self.sources:
                ip_network(source)
        except ValueError as error:
            raise ConfigError(f"trunk {self.name}: {error}", hint="give IP addresses or prefixes") from None

    def is_from(self, address: str) -> bool:
        """Whether a message from this address is the trunk's."""
        return any(ip_address(address) in ip_network(source) for source in self.sources or (self.address,))


@dataclass(frozen=True, slots=True)
class CoreSide:
    """The SBC on the server's own network, by the kernel's sockets.

    Args:
        address, port, transports: where it answers SIP there; Via, Record-Route and SDP show this address.
        media_ports: first and last UDP port of media there, both included.
        phones: prefixes from which phones may register with a password, as tunnelled ones do.
    """

    address: str
    port: int = 5060
    transports: tuple[str, ...] = TRANSPORTS
    media_ports: tuple[int, int] = (40000, 49999)
    phones: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            ip_address(self.address)
            for prefix in self.phones:
                ip_network(prefix)
        except ValueError as error:
            raise ConfigError(f"SBC core side: {error}", hint="give IP addresses or prefixes") from None
        _check_ports("core media ports", self.media_ports, self.port)
        unknown = [name for name in self.transports if name not in TRANSPORTS]
        if unknown or not self.transports or not 1 <= self.port <= 65535:
            raise ConfigError("SBC core side: it needs a port and udp, tcp or both")

    def may_register_from(self, address: str) -> bool:
        return any(ip_address(address) in ip_network(prefix) for prefix in self.phones)


@dataclass(frozen=True, slots=True)
class SbcSettings:
    """Settings of one embedded SBC.

    Args:
        domain: the SIP domain served, the part after ``@``; also the realm of digest authentication.
        address: inner IPv4 or IPv6 address the SBC answers on, given to ``route_local`` by the server.
        address6: a second address of the other family, or None.
        port: inner port of SIP, UDP and TCP.
        core: the SBC on the server's own network; None: it is not there.
        trunks: neighbours there, or (where inner packets leave by the kernel's routing) reached from
        ``address``.
        users_file: digest accounts (see ``users.UserFile``); None where a provider is given in code.
        media_ports: first and last inner port of relayed media, both included.
        anchoring: relay media through the user plane. Off: parties send to each other's inner address; the
            SBC still corrects ``c=`` lines and announces media flows, but has no quality to report.
        digest_algorithms: what may be offered to phones; a user is offered those it has a stored hash for.
            Some older phones give up when the list holds one they do not know.
        min_expires, default_expires, max_expires: seconds of a registration: refused below, given
            where the phone asks for nothing, cut to.
        ring_timeout: seconds a call may ring before it is given up (timer C of RFC 3261: over 180).
        media_timeout: seconds without a media packet from either party after which an answered call is
            taken for dead; 0 = never. Long, because both may be on hold.
        cdr_file: call detail records are appended to this file, one JSON object a line; None = store only.
        server_name: the ``Server`` header of answers made here.
    """

    domain: str
    address: str
    address6: str | None = None
    port: int = 5060
    users_file: Path | None = None
    media_ports: tuple[int, int] = (20000, 39999)
    anchoring: bool = True
    digest_algorithms: tuple[str, ...] = ALGORITHMS
    min_expires: int = 60
    default_expires: int = 600
    max_expires: int = 7200
    ring_timeout: float = 185.0
    media_timeout: float = 3600.0
    cdr_file: Path | None = None
    server_name: str = "OpenTSM"
    core: CoreSide | None = None
    trunks: tuple[Trunk, ...] = ()

    def __post_init__(self) -> None:
        self._check_addresses()
        _check_ports("media ports", self.media_ports, self.port)
        unknown = [name for name in self.digest_algorithms if name not in ALGORITHMS]
        if unknown or not self.digest_algorithms:
            raise ConfigError(
                f"digest algorithms {', '.join(self.digest_algorithms) or '(none)'} cannot be used",
                hint=f"choose from {', '.join(ALGORITHMS)}",
            )
        if not 0 < self.min_expires <= self.default_expires <= self.max_expires:
            raise ConfigError("registration times must grow: min_expires <= default_expires <= max_expires")

    def _check_addresses(self) -> None:
        if not self.domain or any(c.isspace() or c in '<>@;"' for c in self.domain):
            raise ConfigError(f"{self.domain!r} is no SIP domain", hint="write it as in sip:alice@DOMAIN")
        try:
            families = [ip_address(text).version for text in self.addresses]
        except ValueError as error:
            raise ConfigError(
                f"SBC address: {error}", hint="give an IP address of the inner network"
            ) from None
        if len(set(families)) != len(families):
            raise ConfigError("address and address6 are of the same family", hint="give one IPv4, one IPv6")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"{self.port} is no port", hint="SIP uses 5060")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The one or two inner addresses."""
        return (self.address,) if self.address6 is None else (self.address, self.address6)

    @property
    def locals(self) -> tuple[tuple[str, int], ...]:
        """Every address and port of SIP that is ours."""
        inner = tuple((address, self.port) for address in self.addresses)
        return inner if self.core is None else (*inner, (self.core.address, self.core.port))


def _check_ports(what: str, ports: tuple[int, int], sip: int) -> None:
    first, last = ports
    if not 1024 <= first <= last <= 65535 or last - first + 1 < PORTS_PER_STREAM:
        raise ConfigError(
            f"{what} {first}-{last} cannot be used",
            hint=f"give a range within 1024-65535 with room for at least {PORTS_PER_STREAM} ports",
        )
    if first <= sip <= last:
        raise ConfigError(
            f"SIP port {sip} lies among the {what} {first}-{last}",
            hint="move the media range so that it leaves the SIP port out",
        )
