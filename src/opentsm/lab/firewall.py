"""A site's firewall and NAT: policies as values, put in place while packets flow.

Both directions are judged packet by packet by the same list of services: a policy that no longer
allows UDP stops a running UDP flow at once, as an administrator's new rule would on most boxes once
its states are gone. Connection tracking only decides that outsiders cannot begin anything.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from opentsm.errors import PlatformError
from opentsm.lab import conntrack
from opentsm.lab.conntrack import Connection
from opentsm.lab.netlink import NETLINK_NETFILTER, NetfilterSocket
from opentsm.lab.netns import call_inside, sysctl
from opentsm.lab.nftables import Chain, Counter, Rule, Table, Verdict, read_counters, replace_table

FILTER_TABLE: Final = "opentsm-filter"
NAT_TABLE: Final = "opentsm-nat"
_REBIND_FIRST: Final = 20_000
_REBIND_SPAN: Final = 4_000
_REBIND_BLOCKS: Final = 10
"""Outer ports of successive rebindings: ten blocks of 4,000 from 20,000 on. A flow in one block cannot
keep its port in the next."""

How = Literal["drop", "reject", "reject-admin"]
Way = Literal["up", "down"]
_ANSWERS: Final = ("established", "related")


@dataclass(frozen=True, slots=True)
class Service:
    """Something the firewall lets through: a protocol, on one port or on all of them."""

    protocol: Literal["tcp", "udp"]
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Something it stops before it looks at services.

    Args:
        protocol: tcp or udp.
        way: "up" (phones to internet) or "down".
        how: silently, or with an ICMP answer.
        port: of the server's side; None for all.
        server: address or prefix of the server's side; None for all.
        client_port: of the phone's side; None for all.
        payload: only TCP segments that carry something: connections are made and then deliver nothing.
    """

    protocol: Literal["tcp", "udp"]
    way: Way
    how: How = "drop"
    port: int | None = None
    server: str | None = None
    client_port: int | None = None
    payload: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What a firewall allows.

    Args:
        name: for people.
        services: what phones may reach; None for everything.
        servers: only these addresses or prefixes may be reached; empty for all.
        blocks: looked at first.
        refuse: how what is not allowed is stopped.
        icmp: whether echo and the like pass.
        incoming: whether outsiders may begin connections (only reaches anybody without NAT).
    """

    name: str
    services: tuple[Service, ...] | None = None
    servers: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    refuse: How = "drop"
    icmp: bool = True
    incoming: bool = False

    def rules(self, inside: str, outside: str) -> tuple[Rule, ...]:
        """The rules of the forward chain, in order."""
        rules = [_block_rule(block, inside, outside) for block in self.blocks]
        rules += _icmp_rules(self.icmp, inside, outside)
        services = self.services if self.services is not None else _EVERYTHING
        for service in services:
            for server in self.servers or (None,):
                rules += _service_rules(service, server, inside, outside)
        if self.incoming:
            rules.append(Rule("incoming", "accept", inside=outside, outside=inside))
        return (*rules, *_refusals(self.refuse, inside, outside))


_EVERYTHING: Final = (Service("tcp"), Service("udp"))


def everything() -> Policy:
    """All that phones begin passes; outsiders cannot begin anything."""
    return Policy("everything")


def tcp_443_only(*servers: str, refuse: How = "drop") -> Policy:
    """The strict corporate firewall: TCP to port 443 and nothing else."""
    return Policy("tcp-443-only", (Service("tcp", 443),), servers, refuse=refuse)


def tcp_udp_443(*servers: str, refuse: How = "drop") -> Policy:
    """TCP and UDP to port 443."""
    return Policy("tcp-udp-443", (Service("tcp", 443), Service("udp", 443)), servers, refuse=refuse)


def udp_blocked(*, how: How = "drop", port: int | None = None) -> Policy:
    """Everything but UDP, in both directions."""
    return one_way("up", "udp", how=how, port=port, also_other_way=True)


def one_way(
    direction: Way,
    protocol: Literal["tcp", "udp"],
    *,
    how: How = "drop",
    port: int | None = None,
    also_other_way: bool = False,
) -> Policy:
    """Everything, but one protocol is stopped in one direction (or both)."""
    blocks = [Block(protocol, direction, how, port)]
    if also_other_way:
        blocks.append(Block(protocol, "down" if direction == "up" else "up", "drop", port))
    ways = "both" if also_other_way else direction
    return Policy(f"no-{protocol}-{ways}", blocks=tuple(blocks))


def swallowing(*, server: str | None = None, client_port: int | None = None) -> Policy:
    """A half-dead box: TCP connections are made, and stay, and nothing that is said on them arrives.

    Args:
        server: on the way to this address only. client_port: of the connection with this port only.
    """
    ways: tuple[Way, Way] = ("up", "down")
    blocks = [Block("tcp", way, server=server, client_port=client_port, payload=True) for way in ways]
    return Policy("swallowing", blocks=tuple(blocks))


POLICIES: Final[dict[str, Callable[[], Policy]]] = {
    "everything": everything,
    "tcp-443-only": tcp_443_only,
    "tcp-443-only-reject": lambda: tcp_443_only(refuse="reject"),
    "tcp-udp-443": tcp_udp_443,
    "no-udp": udp_blocked,
    "no-udp-reject": lambda: udp_blocked(how="reject"),
    "no-udp-up": lambda: one_way("up", "udp"),
    "no-udp-down": lambda: one_way("down", "udp"),
    "no-tcp-up": lambda: one_way("up", "tcp"),
    "no-tcp-down": lambda: one_way("down", "tcp"),
    "swallowing": swallowing,
}
"""Policies by the names that the command line takes."""


class Firewall:
    """The firewall of one site.

    Args:
        namespace: where it works.
        inside, outside: interface names.
    """

    def __init__(self, namespace: str, *, inside: str = "lan0", outside: str = "wan0") -> None:
        self._namespace = namespace
        self._inside = inside
        self._outside = outside
        self._nat: Table | None = None
        self._filter: Table | None = None
        self.policy: Policy | None = None

    def apply(self, policy: Policy) -> None:
        """Put a policy in place, atomically. Counters start again; NAT is not touched.

        Raises:
            PlatformError: the kernel refused it.
        """
        table = Table(FILTER_TABLE, (Chain("forward", "filter", policy.rules(self._inside, self._outside)),))
        with self._kernel() as kernel:
            replace_table(kernel, table)
        self._filter, self.policy = table, policy

    def counters(self) -> dict[str, Counter]:
        """Packets and bytes by rule name since ``apply``, e.g. ``allow-udp-443-up``, ``refuse-udp-up``."""
        with self._kernel() as kernel:
            return read_counters(kernel, FILTER_TABLE)

    def masquerade(self, on: bool = True, ports: tuple[int, int] | None = None) -> None:
        """IPv4 NAT of the phones' network, optionally onto a range of outer ports.

        Flows that exist keep their mapping until ``flush``.
        """
        with self._kernel() as kernel:
            self._place_nat(kernel, _nat_rules(on, self._outside, ports))

    def rebind(self) -> None:
        """What a NAT does after a reboot or a short time-out: every flow gets a new outer port."""
        with self._kernel() as kernel:
            used = {connection.reply.destination_port for connection in conntrack.connections(kernel)}
            self._place_nat(kernel, _nat_rules(True, self._outside, _fresh_ports(used)))
            conntrack.flush(kernel)

    def flush(self) -> int:
        """Forget all connections. Returns how many there were."""
        with self._kernel() as kernel:
            return conntrack.flush(kernel)

    def connections(self) -> list[Connection]:
        """What it remembers now."""
        with self._kernel() as kernel:
            return conntrack.connections(kernel)

    def timeouts(
        self, *, udp: int | None = None, udp_stream: int | None = None, tcp_established: int | None = None
    ) -> None:
        """Seconds of silence after which a mapping is forgotten (for mappings made from now on).

        Args:
            udp: before an answer was seen (kernel default 30).
            udp_stream: after packets went both ways for two seconds (120).
            tcp_established: of a TCP connection (432,000).
        """
        values = {"udp_timeout": udp, "udp_timeout_stream": udp_stream}
        values["tcp_timeout_established"] = tcp_established
        for name, value in values.items():
            if value is not None:
                sysctl(self._namespace, f"net.netfilter.nf_conntrack_{name}", value)

    def text(self) -> str:
        """What is in place, as ``nft list ruleset`` would print it."""
        return "\n".join(table.text() for table in (self._filter, self._nat) if table is not None)

    def _place_nat(self, kernel: NetfilterSocket, rules: tuple[Rule, ...]) -> None:
        table = Table(NAT_TABLE, (Chain("postrouting", "nat", rules),))
        replace_table(kernel, table)
        self._nat = table

    @contextlib.contextmanager
    def _kernel(self) -> Iterator[NetfilterSocket]:
        kernel = NetfilterSocket(
            call_inside(self._namespace, socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        )
        try:
            yield kernel
        finally:
            kernel.close()


def _fresh_ports(used: set[int]) -> tuple[int, int]:
    """The first block of outer ports that no connection uses now."""
    for block in range(_REBIND_BLOCKS):
        first = _REBIND_FIRST + block * _REBIND_SPAN
        if not any(first <= port < first + _REBIND_SPAN for port in used):
            return first, first + _REBIND_SPAN - 1
    raise PlatformError("the NAT has flows on every block of ports; flush() it, then rebind()")


def _block_rule(block: Block, inside: str, outside: str) -> Rule:
    up = block.way == "up"
    what = f"{block.protocol}-payload" if block.payload else block.protocol
    name = f"block-{what}{_suffix(block.port)}-{block.way}"
    return Rule(
        name,
        block.how,
        inside=inside if up else outside,
        outside=outside if up else inside,
        protocol=block.protocol,
        destination_port=block.port if up else block.client_port,
        source_port=block.client_port if up else block.port,
        destination=block.server if up else None,
        source=None if up else block.server,
        pushing=block.payload,
    )


def _icmp_rules(allowed: bool, inside: str, outside: str) -> list[Rule]:
    """Errors about connections that exist always pass, or path MTU discovery would break."""
    rules = []
    for protocol in ("icmp", "icmpv6"):
        rules.append(
            Rule(
                f"{protocol}-errors",
                "accept",
                inside=outside,
                outside=inside,
                protocol=protocol,
                state=("related",),
            )
        )
        rules.append(
            Rule(
                f"{protocol}-errors",
                "accept",
                inside=inside,
                outside=outside,
                protocol=protocol,
                state=("related",),
            )
        )
        if allowed:
            rules.append(Rule(f"{protocol}-up", "accept", inside=inside, outside=outside, protocol=protocol))
            rules.append(
                Rule(
                    f"{protocol}-down",
                    "accept",
                    inside=outside,
                    outside=inside,
                    protocol=protocol,
                    state=_ANSWERS,
                )
            )
    return rules


def _service_rules(service: Service, server: str | None, inside: str, outside: str) -> list[Rule]:
    name = f"allow-{service.protocol}{_suffix(service.port)}"
    return [
        Rule(
            f"{name}-up",
            "accept",
            inside=inside,
            outside=outside,
            protocol=service.protocol,
            destination_port=service.port,
            destination=server,
        ),
        Rule(
            f"{name}-down",
            "accept",
            inside=outside,
            outside=inside,
            protocol=service.protocol,
            source_port=service.port,
            source=server,
            state=_ANSWERS,
        ),
    ]


def _refusals(how: How, inside: str, outside: str) -> list[Rule]:
    """Outsiders are always refused silently; phones as the policy says, TCP with a reset if not silently."""
    tcp: Verdict = "drop" if how == "drop" else "reset"
    verdicts: tuple[tuple[str, Verdict], ...] = (("tcp", tcp), ("udp", how))
    rules = [
        Rule(f"refuse-{protocol}-up", verdict, inside=inside, outside=outside, protocol=protocol)
        for protocol, verdict in verdicts
    ]
    rules.append(Rule("refuse-other-up", how, inside=inside, outside=outside))
    for protocol in ("tcp", "udp"):
        rules.append(
            Rule(f"refuse-{protocol}-down", "drop", inside=outside, outside=inside, protocol=protocol)
        )
    return [*rules, Rule("refuse-other-down", "drop", inside=outside, outside=inside)]


def _nat_rules(on: bool, outside: str, ports: tuple[int, int] | None) -> tuple[Rule, ...]:
    if not on:
        return ()
    plain = Rule("masquerade", "masquerade", outside=outside, ipv4_only=True)
    if ports is None:
        return (plain,)
    ranged = tuple(
        Rule(
            f"masquerade-{protocol}",
            "masquerade",
            outside=outside,
            protocol=protocol,
            ipv4_only=True,
            ports=ports,
        )
        for protocol in ("udp", "tcp")
    )
    return (*ranged, plain)


def _suffix(port: int | None) -> str:
    return "" if port is None else f"-{port}"
