"""Protocol policies: inner destinations that are allowed, denied or redirected.

Policies are data; ``compile_policies`` turns them into the rows of ``UserPlane.rewrite``. Rows come
most specific first (longer prefix, then a port before "any port", then a protocol before "any
protocol"), so a table that takes the first match and one that takes the best match agree. A packet
that no row matches is allowed: it goes where routing sends it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from opentsm.errors import OpenTsmError
from opentsm.types import IpAddress

IpNetwork = IPv4Network | IPv6Network

TRANSPORTS: Final = {"any": 0, "udp": 17, "tcp": 6, "tls": 6, "sctp": 132}
"""IP protocol number by the name in a file. TLS is TCP to whoever looks at packet headers only."""


class PolicyAction(enum.Enum):
    ALLOW = "allow"
    DENY = "deny"
    REDIRECT = "redirect"


class PolicyConflict(OpenTsmError):
    """Two policies match the same packets and say different things."""

    def __init__(self, first: str, second: str, match: str) -> None:
        self.first = first
        self.second = second
        super().__init__(
            f"protocol policies {first} and {second} both match {match} and differ; remove one of them"
        )


@dataclass(frozen=True, slots=True)
class ProtocolPolicy:
    """One policy.

    Args:
        name: name in the configuration.
        destination: inner destination it matches.
        protocol: IP protocol number; 0 = any.
        port: destination port; 0 = any.
        action: what becomes of the packet.
        redirect: for REDIRECT, the new destination; port 0 keeps the packet's own port.
    """

    name: str
    destination: IpNetwork
    protocol: int = 0
    port: int = 0
    action: PolicyAction = PolicyAction.ALLOW
    redirect: tuple[IpAddress, int] | None = None

    def __post_init__(self) -> None:
        if (self.action is PolicyAction.REDIRECT) != (self.redirect is not None):
            raise ValueError(f"policy {self.name}: redirect, and only redirect, has a new destination")
        if self.redirect is not None and self.redirect[0].version != self.destination.version:
            raise ValueError(
                f"policy {self.name}: {self.destination} cannot be redirected to {self.redirect[0]}, "
                "which is of the other address family"
            )
        if self.port and not self.protocol:
            raise ValueError(f"policy {self.name}: a port needs a transport")


@dataclass(frozen=True, slots=True)
class RewriteRow:
    """One row for the user plane: the arguments of ``UserPlane.rewrite``."""

    match: str
    protocol: int
    port: int
    to: tuple[str, int] | None
    allow: bool


def compile_policies(policies: Iterable[ProtocolPolicy]) -> tuple[RewriteRow, ...]:
    """Rows for a set of policies, most specific first; equal policies give one row.

    Raises:
        PolicyConflict: two policies match the same and differ.
    """
    by_match: dict[tuple[IpNetwork, int, int], ProtocolPolicy] = {}
    for policy in policies:
        key = (policy.destination, policy.protocol, policy.port)
        known = by_match.setdefault(key, policy)
        if _row(known) != _row(policy):
            raise PolicyConflict(known.name, policy.name, _describe(policy))
    ordered = sorted(by_match.values(), key=_specificity)
    return tuple(_row(policy) for policy in ordered)


def first_match(
    rows: Iterable[RewriteRow], destination: IpAddress, protocol: int, port: int
) -> RewriteRow | None:
    """What the user plane does with a packet, said plainly: for explanations and tests."""
    for row in rows:
        network = ip_network(row.match)
        if (
            destination.version == network.version
            and destination in network
            and row.protocol in (0, protocol)
            and row.port in (0, port)
        ):
            return row
    return None


def _row(policy: ProtocolPolicy) -> RewriteRow:
    to = None if policy.redirect is None else (str(policy.redirect[0]), policy.redirect[1])
    allow = policy.action is not PolicyAction.DENY
    return RewriteRow(str(policy.destination), policy.protocol, policy.port, to, allow)


def _specificity(policy: ProtocolPolicy) -> tuple[int, int, bool, bool, int, int, int]:
    network = policy.destination
    rank = (network.version, -network.prefixlen, policy.port == 0, policy.protocol == 0)
    return (*rank, int(network.network_address), policy.protocol, policy.port)


def _describe(policy: ProtocolPolicy) -> str:
    names = {number: name for name, number in TRANSPORTS.items()}
    return f"{names.get(policy.protocol, policy.protocol)} {policy.destination} port {policy.port or 'any'}"
