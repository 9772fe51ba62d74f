"""Connection tracking of a namespace: what the NAT remembers, and making it forget.

Layout: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from opentsm.lab.netlink import SUBSYS_CTNETLINK, NetfilterSocket, Request, attributes

_GET, _DELETE = 1, 2
_TUPLE_ORIGINAL, _TUPLE_REPLY, _TIMEOUT = 1, 2, 7
_FAMILIES: Final = (2, 10)
_PROTOCOLS: Final = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """One direction of a tracked connection."""

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection the NAT remembers.

    Args:
        protocol: tcp, udp, icmp, icmpv6 or the number as text.
        original: as the first packet came in.
        reply: as answers come in; its destination is the outer (translated) address and port.
        timeout: seconds until it is forgotten.
    """

    protocol: str
    original: Endpoints
    reply: Endpoints
    timeout: int


def connections(kernel: NetfilterSocket) -> list[Connection]:
    """Everything that is tracked in the socket's namespace."""
    found = []
    for family in _FAMILIES:
        for entry in kernel.dump(Request(SUBSYS_CTNETLINK, _GET, 0, family)):
            fields = dict(attributes(entry))
            if _TUPLE_ORIGINAL in fields and _TUPLE_REPLY in fields:
                found.append(_connection(fields))
    return found


def flush(kernel: NetfilterSocket) -> int:
    """Forget every connection. Returns how many there were."""
    count = len(connections(kernel))
    for family in _FAMILIES:
        kernel.request(Request(SUBSYS_CTNETLINK, _DELETE, 0, family))
    return count


def _connection(fields: dict[int, bytes]) -> Connection:
    number, original = _endpoints(fields[_TUPLE_ORIGINAL])
    _, reply = _endpoints(fields[_TUPLE_REPLY])
    timeout = struct.unpack("!I", fields[_TIMEOUT])[0] if _TIMEOUT in fields else 0
    return Connection(_PROTOCOLS.get(number, str(number)), original, reply, timeout)


def _endpoints(data: bytes) -> tuple[int, Endpoints]:
    parts = dict(attributes(data))
    addresses = dict(attributes(parts.get(1, b"")))
    protocol = dict(attributes(parts.get(2, b"")))
    source = addresses.get(1) or addresses.get(3) or bytes(4)
    destination = addresses.get(2) or addresses.get(4) or bytes(4)
    endpoints = Endpoints(
        str(ip_address(source)),
        int.from_bytes(protocol.get(2, b"")),
        str(ip_address(destination)),
        int.from_bytes(protocol.get(3, b"")),
    )
    return protocol.get(1, b"\0")[0], endpoints
