"""Just enough netfilter netlink: attributes, messages, batches, acknowledgements, dumps.

The lab speaks to the kernel's nf_tables and connection tracking itself, so that it needs no `nft`
and no `conntrack` program. Layout: linux/netlink.h, linux/netfilter/nfnetlink.h (native byte order
in headers, network order in nf_tables attribute values).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from opentsm.errors import PlatformError

NETLINK_NETFILTER: Final = 12
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800

SUBSYS_CTNETLINK: Final = 1
SUBSYS_NFTABLES: Final = 10
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

_RECEIVE_SIZE: Final = 1 << 20
"""One dump message never exceeds 32 KiB; a datagram holds several."""

_ANSWER_TIMEOUT: Final = 5.0
"""Seconds; the kernel answers while the request is being sent, so this only guards against bugs."""


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """A 32-bit number in network order, as nf_tables wants every number."""
    return attribute(kind, struct.pack("!I", value))


def nested(kind: int, *children: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(children))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a kernel answer into (type, value)."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


@dataclass(frozen=True, slots=True)
class Request:
    """One netfilter message.

    Args:
        subsystem: who it is for (``SUBSYS_*``).
        kind: message type within the subsystem.
        flags: besides NLM_F_REQUEST.
        family: NFPROTO_*.
        body: attributes.
    """

    subsystem: int
    kind: int
    flags: int
    family: int
    body: bytes = b""

    def encode(self, sequence: int) -> bytes:
        return _message(
            self.subsystem << 8 | self.kind, NLM_F_REQUEST | self.flags, sequence, self.family, 0, self.body
        )


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    length = 16 + 4 + len(body)
    header = struct.pack("=IHHII", length, kind, flags, sequence, 0)
    return header + struct.pack("=BB", family, 0) + struct.pack("!H", resource) + body


class NetfilterSocket:
    """A netlink socket of one namespace: the one it was opened in.

    Args:
        opened: a ``NETLINK_NETFILTER`` socket made inside the namespace.
    """

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._socket.settimeout(_ANSWER_TIMEOUT)
        self._sequence = 1

    def close(self) -> None:
        self._socket.close()

    def transact(self, requests: list[Request]) -> None:
        """Send nf_tables requests as one atomic batch: all of them take effect, or none.

        Raises:
            PlatformError: the kernel refused one; the message says which and why.
        """
        first = self._sequence
        begin = _message(_BATCH_BEGIN, NLM_F_REQUEST, first, 0, SUBSYS_NFTABLES, b"")
        middle = [
            Request(r.subsystem, r.kind, r.flags | NLM_F_ACK, r.family, r.body).encode(first + 1 + index)
            for index, r in enumerate(requests)
        ]
        last = first + 1 + len(requests)
        end = _message(_BATCH_END, NLM_F_REQUEST, last, 0, SUBSYS_NFTABLES, b"")
        self._sequence = last + 1
        self._socket.send(begin + b"".join(middle) + end)
        self._collect_acknowledgements(first, len(requests))

    def _collect_acknowledgements(self, first: int, count: int) -> None:
        seen = 0
        while seen < count:
            for kind, sequence, body in self._receive():
                if kind == _NLMSG_ERROR and sequence >= first:
                    seen += 1
                    _raise_refusal(body, f"request {sequence - first} of {count}")

    def request(self, request: Request) -> None:
        """Send one request and wait for its acknowledgement."""
        sequence = self._next()
        flagged = Request(
            request.subsystem, request.kind, request.flags | NLM_F_ACK, request.family, request.body
        )
        self._socket.send(flagged.encode(sequence))
        while True:
            for kind, answered, body in self._receive():
                if kind == _NLMSG_ERROR and answered == sequence:
                    _raise_refusal(body, "request")
                    return

    def dump(self, request: Request) -> list[bytes]:
        """Ask for a list; returns the attributes of each entry."""
        sequence = self._next()
        flagged = Request(
            request.subsystem, request.kind, request.flags | NLM_F_DUMP, request.family, request.body
        )
        self._socket.send(flagged.encode(sequence))
        entries: list[bytes] = []
        while True:
            for kind, answered, body in self._receive():
                if answered != sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return entries
                if kind == _NLMSG_ERROR:
                    _raise_refusal(body, "list")
                    return entries
                entries.append(body[4:])

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(_RECEIVE_SIZE)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            if length < 16:
                return
            yield kind, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _raise_refusal(body: bytes, what: str) -> None:
    (code,) = struct.unpack_from("=i", body)
    if code:
        raise PlatformError(f"the kernel's netfilter refused {what}: {os.strerror(-code)}")
