"""The address plan of a lab: pure arithmetic, the same for every lab of the same shape.

    phone p of site s   192.168.s.(10+p)    fd66:s::(10+p)      on lan0 of firewall s (.1, ::1)
    firewall s, WAN     198.18.s.2          fd66:100:s::2       facing the internet (.1, ::1)
    server n            198.19.n.2          fd66:200:n::2       facing the internet (.1, ::1)
    core, seen from n   10.200.n.2          fd66:300:n::2       facing server n (.1, ::1)

198.18.0.0/15 is the range for benchmarks of network devices (RFC 2544), so that "public" addresses
here can never be anybody's. fd66::/16 lies in the locally assigned range (RFC 4193).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_SITES: Final = 200
"""The third octet counts sites; well below 254."""

MAX_PHONES: Final = 200
"""Phones in one lab: the last octet is 10 + the phone's number."""

MAX_SERVERS: Final = 16
"""Servers in one lab: enough for cluster tests, each costs a namespace."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a link: addresses without prefix length; "" where that family is off.

    Args:
        ipv4: dotted address.
        ipv6: address.
    """

    ipv4: str
    ipv6: str

    @property
    def with_prefix(self) -> tuple[str, ...]:
        """Addresses as ``ip address add`` takes them (every subnet is a /24 or a /64)."""
        pairs = ((self.ipv4, "24"), (self.ipv6, "64"))
        return tuple(f"{address}/{length}" for address, length in pairs if address)


@dataclass(frozen=True, slots=True)
class Plan:
    """Addresses of one lab.

    Args:
        sites, phones_per_site, servers: the shape.
        ipv4, ipv6: which families exist.
    """

    sites: int = 1
    phones_per_site: int = 1
    servers: int = 1
    ipv4: bool = True
    ipv6: bool = True

    def __post_init__(self) -> None:
        limits = (("sites", self.sites, MAX_SITES), ("servers", self.servers, MAX_SERVERS))
        for name, value, most in limits:
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be 1 to {most}, not {value}")
        if not 1 <= self.phones_per_site * self.sites <= MAX_PHONES:
            raise ValueError(f"a lab has 1 to {MAX_PHONES} phones")
        if not (self.ipv4 or self.ipv6):
            raise ValueError("a lab needs IPv4, IPv6 or both")

    @property
    def phones(self) -> int:
        return self.sites * self.phones_per_site

    def site_of(self, phone: int) -> int:
        """The site a phone starts in; both numbers count from 1."""
        return (phone - 1) // self.phones_per_site + 1

    def phone(self, phone: int, site: int | None = None) -> Interface:
        """A phone's address, in its own site or in another one it moves to."""
        where = self.site_of(phone) if site is None else site
        return self._interface(f"192.168.{where}.{10 + phone}", f"fd66:{where:x}::{10 + phone:x}")

    def lan(self, site: int) -> Interface:
        """The firewall's address on the phones' network: their default gateway."""
        return self._interface(f"192.168.{site}.1", f"fd66:{site:x}::1")

    def wan(self, site: int) -> Interface:
        """The firewall's outer address: what a server sees behind NAT."""
        return self._interface(f"198.18.{site}.2", f"fd66:100:{site:x}::2")

    def internet(self, site: int) -> Interface:
        """The far end of a site's WAN."""
        return self._interface(f"198.18.{site}.1", f"fd66:100:{site:x}::1")

    def server(self, server: int = 1) -> Interface:
        return self._interface(f"198.19.{server}.2", f"fd66:200:{server:x}::2")

    def server_gateway(self, server: int = 1) -> Interface:
        """The internet's address on a server's link."""
        return self._interface(f"198.19.{server}.1", f"fd66:200:{server:x}::1")

    def core(self, server: int = 1) -> Interface:
        """The core's address on its link with a server."""
        return self._interface(f"10.200.{server}.2", f"fd66:300:{server:x}::2")

    def core_gateway(self, server: int = 1) -> Interface:
        """A server's address towards the core."""
        return self._interface(f"10.200.{server}.1", f"fd66:300:{server:x}::1")

    def lan_prefixes(self, site: int) -> tuple[str, ...]:
        """The phones' network of a site, per family."""
        v4 = (f"192.168.{site}.0/24",) if self.ipv4 else ()
        v6 = (f"fd66:{site:x}::/64",) if self.ipv6 else ()
        return v4 + v6

    def _interface(self, ipv4: str, ipv6: str) -> Interface:
        return Interface(ipv4 if self.ipv4 else "", ipv6 if self.ipv6 else "")


def server_name(server: int) -> str:
    """``server`` for the first, then ``server2``, ..."""
    return "server" if server == 1 else f"server{server}"
