"""Families and ranges of inner addresses."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from opentsm.types import IpAddress

_MAX_POINT_TO_POINT: Final = 2
"""Prefixes of at most this many addresses (/31, /127; /32, /128) are used whole (RFC 3021, RFC 6164)."""


class Family(enum.IntFlag):
    """Address families, numbered as the ``address-families`` TLV."""

    IPV4 = 1
    IPV6 = 2

    @classmethod
    def of(cls, address: IpAddress) -> Family:
        return cls.IPV4 if address.version == 4 else cls.IPV6


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Inclusive range of addresses of one family."""

    first: IpAddress
    last: IpAddress

    def __post_init__(self) -> None:
        if self.first.version != self.last.version:
            raise ValueError(f"{self.first} and {self.last} are not of the same family")
        if int(self.first) > int(self.last):
            raise ValueError(f"{self.first} is above {self.last}: write the lower address first")

    @classmethod
    def parse(cls, text: str) -> AddressRange:
        """Read ``10.64.1.0/24``, ``10.64.1.10 - 10.64.1.99``, one address, or the same in IPv6.

        Of a prefix the IPv4 network and broadcast addresses and the IPv6 Subnet-Router anycast
        address (RFC 4291 section 2.6.1) are left out; a range written out is taken as it stands.

        Raises:
            ValueError: the text is none of these; the message says why.
        """
        text = text.strip()
        if "%" in text:
            raise ValueError(f"{text!r} has a scope; inner addresses have none")
        if "/" in text:
            return cls._of_prefix(text)
        low, dash, high = text.partition("-")
        first = ip_address(low.strip())
        return cls(first, ip_address(high.strip()) if dash else first)

    @classmethod
    def _of_prefix(cls, text: str) -> AddressRange:
        network = ip_network(text)
        if network.num_addresses <= _MAX_POINT_TO_POINT:
            return cls(network[0], network[-1])
        return cls(network[1], network[-2] if network.version == 4 else network[-1])

    @property
    def family(self) -> Family:
        return Family.of(self.first)

    @property
    def size(self) -> int:
        return int(self.last) - int(self.first) + 1

    def overlaps(self, other: AddressRange) -> bool:
        return (
            self.family is other.family
            and int(self.first) <= int(other.last)
            and int(other.first) <= int(self.last)
        )

    def __contains__(self, address: IpAddress) -> bool:
        same = address.version == self.first.version
        return same and int(self.first) <= int(address) <= int(self.last)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
