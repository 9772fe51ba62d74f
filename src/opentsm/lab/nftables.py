"""Packet-filter rules as values: shown in nft's own language, and encoded for the kernel.

Only what the lab's firewalls say can be expressed. Layout of the encoding:
linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Literal

from opentsm.lab.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    SUBSYS_NFTABLES,
    NetfilterSocket,
    Request,
    attribute,
    attributes,
    nested,
    number,
    text,
)

Verdict = Literal["accept", "drop", "reject", "reject-admin", "reset", "masquerade"]
"""``reject`` answers with ICMP port unreachable, ``reject-admin`` with "administratively prohibited",
``reset`` with a TCP reset."""

NFPROTO_INET: Final = 1
NFPROTO_IPV4: Final = 2
NFPROTO_IPV6: Final = 10

_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _GET_RULE = 0, 2, 3, 6, 7
_REG32: Final = 8  # NFT_REG32_00
_REG32_B: Final = 9
_META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 7, 15, 16
_CT_STATE_BITS: Final = {"established": 2, "related": 4, "new": 8, "invalid": 1}
_PROTOCOL_NUMBERS: Final = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
_COMMENT: Final = 0
_TCP_FLAGS_AT: Final = 13
_TCP_PSH: Final = 0x08
_HOOKS: Final = {"forward": 2, "postrouting": 4}
_PRIORITIES: Final = {"filter": 0, "nat": 100}
_REJECT_ICMPX, _REJECT_RST = 2, 1
_ICMPX_PORT, _ICMPX_ADMIN = 1, 3
_EQUAL, _NOT_EQUAL = 0, 1
_RANGE_PORTS: Final = (
    2  # NF_NAT_RANGE_PROTO_SPECIFIED: without it the kernel takes the ports and ignores them
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: everything named must match; then count, then the verdict.

    Args:
        name: shown as the rule's comment, and the key of its counter. At most 100 bytes.
        verdict: what happens to the packet.
        inside, outside: names of the incoming and the outgoing interface.
        protocol: tcp, udp, icmp or icmpv6.
        source_port, destination_port: exact ports (need tcp or udp).
        source, destination: address or prefix (IPv4: /8 /16 /24 /32; IPv6: a multiple of 8).
        state: connection states, any of which matches.
        ports: for masquerade: range of outer ports.
        pushing: TCP segments with the PSH flag: those that complete what was written. The handshake and bare
            acknowledgements have none.
    """

    name: str
    verdict: Verdict
    inside: str | None = None
    outside: str | None = None
    protocol: str | None = None
    source_port: int | None = None
    destination_port: int | None = None
    source: str | None = None
    destination: str | None = None
    state: tuple[str, ...] = ()
    ipv4_only: bool = False
    ports: tuple[int, int] | None = None
    pushing: bool = False

    def text(self) -> str:
        """The rule as ``nft list ruleset`` would print it."""
        words = [
            "meta nfproto ipv4" if self.ipv4_only else "",
            f'iifname "{self.inside}"' if self.inside else "",
            f'oifname "{self.outside}"' if self.outside else "",
            _address_text("saddr", self.source),
            _address_text("daddr", self.destination),
            f"meta l4proto {self.protocol}" if self.protocol else "",
            f"{self.protocol} sport {self.source_port}" if self.source_port is not None else "",
            f"{self.protocol} dport {self.destination_port}" if self.destination_port is not None else "",
            "tcp flags psh" if self.pushing else "",
            f"ct state {','.join(self.state)}" if self.state else "",
            "counter",
            self._verdict_text(),
            f'comment "{self.name}"',
        ]
        return " ".join(word for word in words if word)

    def _verdict_text(self) -> str:
        return {
            "accept": "accept",
            "drop": "drop",
            "reject": "reject with icmpx type port-unreachable",
            "reject-admin": "reject with icmpx type admin-prohibited",
            "reset": "reject with tcp reset",
            "masquerade": "masquerade" + (f" to :{self.ports[0]}-{self.ports[1]}" if self.ports else ""),
        }[self.verdict]


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain with its rules; ``kind`` is ``filter`` (hook forward) or ``nat`` (postrouting)."""

    name: str
    kind: Literal["filter", "nat"]
    rules: tuple[Rule, ...]

    @property
    def hook(self) -> str:
        return "forward" if self.kind == "filter" else "postrouting"

    def text(self) -> str:
        head = f"type {self.kind} hook {self.hook} priority {_PRIORITIES[self.kind]}; policy accept;"
        rules = "".join(f"    {rule.text()}\n" for rule in self.rules)
        return f"  chain {self.name} {{\n    {head}\n{rules}  }}\n"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of family inet (IPv4 and IPv6 together)."""

    name: str
    chains: tuple[Chain, ...]

    def text(self) -> str:
        return f"table inet {self.name} {{\n{''.join(chain.text() for chain in self.chains)}}}\n"


@dataclass(frozen=True, slots=True)
class Counter:
    """Packets and bytes that matched a rule since its table was last put in place."""

    packets: int
    bytes: int


def replace_table(kernel: NetfilterSocket, table: Table) -> None:
    """Put a table in place, atomically: no packet sees neither or both of old and new."""
    named = text(1, table.name)
    requests = [
        _request(_NEW_TABLE, NLM_F_CREATE, named),
        _request(_DELETE_TABLE, 0, named),
        _request(_NEW_TABLE, NLM_F_CREATE, named),
    ]
    for chain in table.chains:
        requests.append(_request(_NEW_CHAIN, NLM_F_CREATE, _encode_chain(table.name, chain)))
        for rule in chain.rules:
            body = text(1, table.name) + text(2, chain.name) + _encode_rule(rule)
            requests.append(_request(_NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, body))
    kernel.transact(requests)


def read_counters(kernel: NetfilterSocket, table: str) -> dict[str, Counter]:
    """Counters of a table's rules by rule name; rules of one name are added up."""
    totals: dict[str, Counter] = {}
    for entry in kernel.dump(_request(_GET_RULE, 0, text(1, table))):
        fields = dict(attributes(entry))
        if fields.get(1, b"").rstrip(b"\0").decode() != table or 7 not in fields:
            continue
        name = _comment(fields[7])
        before = totals.get(name, Counter(0, 0))
        found = _counter_of(fields.get(4, b""))
        totals[name] = Counter(before.packets + found.packets, before.bytes + found.bytes)
    return totals


def _request(kind: int, flags: int, body: bytes) -> Request:
    return Request(SUBSYS_NFTABLES, kind, flags, NFPROTO_INET, body)


def _encode_chain(table: str, chain: Chain) -> bytes:
    hook = nested(4, number(1, _HOOKS[chain.hook]), number(2, _PRIORITIES[chain.kind]))
    return text(1, table) + text(3, chain.name) + hook + number(5, 1) + text(7, chain.kind)


def _encode_rule(rule: Rule) -> bytes:
    expressions = b"".join([*_matches(rule), _expression("counter", b""), _encode_verdict(rule)])
    note = rule.name.encode()[:100] + b"\0"
    return nested(4, expressions) + attribute(7, bytes([_COMMENT, len(note)]) + note)


def _matches(rule: Rule) -> list[bytes]:
    parts: list[bytes] = []
    if rule.ipv4_only:
        parts += [_meta(_META_NFPROTO), _compare(bytes([NFPROTO_IPV4]))]
    for key, name in ((_META_IIFNAME, rule.inside), (_META_OIFNAME, rule.outside)):
        if name:
            parts += [_meta(key), _compare(name.encode().ljust(16, b"\0"))]
    for which, address in (("source", rule.source), ("destination", rule.destination)):
        if address:
            parts += _match_address(which, address)
    if rule.protocol:
        parts += [_meta(_META_L4PROTO), _compare(bytes([_PROTOCOL_NUMBERS[rule.protocol]]))]
    for offset, port in ((0, rule.source_port), (2, rule.destination_port)):
        if port is not None:
            parts += [_payload(2, offset, 2), _compare(struct.pack("!H", port))]
    if rule.pushing:
        parts += [_payload(2, _TCP_FLAGS_AT, 1), _masked(bytes([_TCP_PSH])), _compare(b"\0", _NOT_EQUAL)]
    if rule.state:
        parts += _match_state(rule.state)
    return parts


def _match_address(which: str, address: str) -> list[bytes]:
    network = _network(address)
    size, source_at = (4, 12) if network.version == 4 else (16, 8)
    family = NFPROTO_IPV4 if network.version == 4 else NFPROTO_IPV6
    offset = source_at if which == "source" else source_at + size
    length = network.prefixlen // 8
    return [
        _meta(_META_NFPROTO),
        _compare(bytes([family])),
        _payload(1, offset, length),
        _compare(network.network_address.packed[:length]),
    ]


def _match_state(states: tuple[str, ...]) -> list[bytes]:
    mask = sum(_CT_STATE_BITS[state] for state in states)
    load = _expression("ct", number(1, _REG32) + number(2, 0))
    return [load, _masked(struct.pack("=I", mask)), _compare(bytes(4), _NOT_EQUAL)]


def _masked(mask: bytes) -> bytes:
    """Keep these bits of the register."""
    bitwise = (
        number(1, _REG32)
        + number(2, _REG32)
        + number(3, len(mask))
        + nested(4, attribute(1, mask))
        + nested(5, attribute(1, bytes(len(mask))))
    )
    return _expression("bitwise", bitwise)


def _encode_verdict(rule: Rule) -> bytes:
    encoders: dict[str, Callable[[], bytes]] = {
        "accept": lambda: _immediate_verdict(1),
        "drop": lambda: _immediate_verdict(0),
        "reject": lambda: _reject(_REJECT_ICMPX, _ICMPX_PORT),
        "reject-admin": lambda: _reject(_REJECT_ICMPX, _ICMPX_ADMIN),
        "reset": lambda: _reject(_REJECT_RST, 0),
        "masquerade": lambda: _masquerade(rule.ports),
    }
    return encoders[rule.verdict]()


def _immediate_verdict(code: int) -> bytes:
    data = nested(2, nested(2, number(1, code)))
    return _expression("immediate", number(1, 0) + data)


def _reject(kind: int, code: int) -> bytes:
    return _expression("reject", number(1, kind) + attribute(2, bytes([code])))


def _masquerade(ports: tuple[int, int] | None) -> bytes:
    if ports is None:
        return _expression("masq", b"")
    loads = b"".join(
        _expression("immediate", number(1, register) + nested(2, attribute(1, struct.pack("!H", port))))
        for register, port in zip((_REG32, _REG32_B), ports, strict=True)
    )
    return loads + _expression("masq", number(1, _RANGE_PORTS) + number(2, _REG32) + number(3, _REG32_B))


def _expression(name: str, data: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, data))


def _meta(key: int) -> bytes:
    return _expression("meta", number(2, key) + number(1, _REG32))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", number(1, _REG32) + number(2, base) + number(3, offset) + number(4, length))


def _compare(value: bytes, operator: int = _EQUAL) -> bytes:
    return _expression("cmp", number(1, _REG32) + number(2, operator) + nested(3, attribute(1, value)))


def _network(address: str) -> IPv4Network | IPv6Network:
    network = ip_network(address, strict=False)
    if network.prefixlen % 8 or not network.prefixlen:
        raise ValueError(f"{address}: the prefix length must be a multiple of 8, and not 0")
    return network


def _address_text(field: str, address: str | None) -> str:
    if not address:
        return ""
    network = _network(address)
    return f"{'ip' if network.version == 4 else 'ip6'} {field} {address}"


def _comment(userdata: bytes) -> str:
    if len(userdata) >= 2 and userdata[0] == _COMMENT:
        return userdata[2 : 2 + userdata[1]].rstrip(b"\0").decode(errors="replace")
    return ""


def _counter_of(expressions: bytes) -> Counter:
    for _, element in attributes(expressions):
        fields = dict(attributes(element))
        if fields.get(1, b"") == b"counter\0":
            values = dict(attributes(fields.get(2, b"")))
            (count_bytes,) = struct.unpack("!Q", values[1])
            (packets,) = struct.unpack("!Q", values[2])
            return Counter(packets, count_bytes)
    return Counter(0, 0)
