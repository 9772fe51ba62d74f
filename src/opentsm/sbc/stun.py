"""STUN keep-alives on the SIP port (RFC 5626 section 4.4.2).

A phone that uses Outbound over UDP sends Binding requests (RFC 8489) and takes the flow for dead without an
answer.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Final

from opentsm.types import SocketAddress

MAGIC: Final = 0x2112A442
BINDING_REQUEST: Final = 0x0001
BINDING_SUCCESS: Final = 0x0101
XOR_MAPPED_ADDRESS: Final = 0x0020
HEADER: Final = struct.Struct("!HHI12s")


def is_stun(data: bytes) -> bool:
    """First two bits zero and the magic cookie: no SIP message begins so (RFC 7983)."""
    return len(data) >= HEADER.size and data[0] < 4 and data[4:8] == MAGIC.to_bytes(4, "big")


def answer(data: bytes, source: SocketAddress) -> bytes | None:
    """Answer to a Binding request; None to anything else."""
    kind, length, magic, transaction = HEADER.unpack_from(data)
    if kind != BINDING_REQUEST or length != len(data) - HEADER.size:
        return None
    address = ip_address(source[0])
    mask = (MAGIC.to_bytes(4, "big") + transaction)[: len(address.packed)]
    mapped = bytes(a ^ b for a, b in zip(address.packed, mask, strict=True))
    value = struct.pack("!xBH", 1 if address.version == 4 else 2, source[1] ^ (MAGIC >> 16)) + mapped
    attribute = struct.pack("!HH", XOR_MAPPED_ADDRESS, len(value)) + value
    return HEADER.pack(BINDING_SUCCESS, len(attribute), magic, transaction) + attribute
