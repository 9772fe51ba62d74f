"""As much of a TURN client as a benchmark needs: an allocation with long-term credentials, and channels.

RFC 8656 on RFC 8489. The answers come from a server that the benchmark itself has started; what cannot be
read ends the measurement.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

MAGIC: Final = 0x2112A442
HEADER: Final = struct.Struct("!HHI12s")

ALLOCATE: Final = 0x0003
CHANNEL_BIND: Final = 0x0009
SUCCESS: Final = 0x0100
"""Added to the method, this makes the type of a success response."""

USERNAME: Final = 0x0006
MESSAGE_INTEGRITY: Final = 0x0008
ERROR_CODE: Final = 0x0009
CHANNEL_NUMBER: Final = 0x000C
XOR_PEER_ADDRESS: Final = 0x0012
REALM: Final = 0x0014
NONCE: Final = 0x0015
XOR_RELAYED_ADDRESS: Final = 0x0016
REQUESTED_TRANSPORT: Final = 0x0019

FIRST_CHANNEL: Final = 0x4000
CHANNEL_HEADER: Final = struct.Struct("!HH")

UDP: Final = struct.pack("!B3x", 17)


class Allocation:
    """One allocation at a server.

    Args:
        exchange: sends a request and returns the response.
        user, password: the long-term credentials.
    """

    def __init__(self, exchange: Callable[[bytes], bytes], user: str, password: str) -> None:
        self._exchange = exchange
        self._user, self._password = user, password
        self._key, self._realm, self._nonce = b"", b"", b""
        self._channels = 0
        self.relayed = self._allocate()

    def bind(self, address: str, port: int) -> int:
        """A channel to a peer (RFC 8656 section 11).

        Returns:
            its number.

        Raises:
            ConnectionError: the server refuses.
        """
        number = FIRST_CHANNEL + self._channels
        self._channels += 1
        attributes = [(CHANNEL_NUMBER, struct.pack("!H2x", number)), (XOR_PEER_ADDRESS, _xor(address, port))]
        self._succeed(CHANNEL_BIND, attributes)
        return number

    def _allocate(self) -> tuple[str, int]:
        # The first request without credentials asks for realm and nonce (RFC 8489 section 9.2).
        challenge = self._request(ALLOCATE, [(REQUESTED_TRANSPORT, UDP)])[1]
        try:
            self._realm, self._nonce = challenge[REALM], challenge[NONCE]
        except KeyError:
            raise ConnectionError("the TURN server does not ask for credentials") from None
        words = b":".join((self._user.encode(), self._realm, self._password.encode()))
        self._key = hashlib.md5(words, usedforsecurity=False).digest()
        return _unxor(self._succeed(ALLOCATE, [(REQUESTED_TRANSPORT, UDP)])[XOR_RELAYED_ADDRESS])

    def _succeed(self, method: int, attributes: list[tuple[int, bytes]]) -> dict[int, bytes]:
        kind, answer = self._request(method, attributes)
        if kind != method + SUCCESS:
            code = answer.get(ERROR_CODE, bytes(4))
            raise ConnectionError(f"the TURN server refuses: {code[2] * 100 + code[3]} {code[4:].decode()}")
        return answer

    def _request(self, method: int, attributes: list[tuple[int, bytes]]) -> tuple[int, dict[int, bytes]]:
        if self._key:
            who = [(USERNAME, self._user.encode()), (REALM, self._realm), (NONCE, self._nonce)]
            attributes = [*attributes, *who]
        body = b"".join(_attribute(*one) for one in attributes)
        transaction = secrets.token_bytes(12)
        if self._key:
            # The length that is signed has the signature in it already (RFC 8489 section 14.5).
            head = HEADER.pack(method, len(body) + 24, MAGIC, transaction)
            body += _attribute(MESSAGE_INTEGRITY, hmac.digest(self._key, head + body, "sha1"))
        answer = self._exchange(HEADER.pack(method, len(body), MAGIC, transaction) + body)
        kind, length, _, echoed = HEADER.unpack_from(answer)
        if echoed != transaction:
            raise ConnectionError("the TURN server has answered something else")
        return kind, _attributes(answer[HEADER.size : HEADER.size + length])


def over_udp(opened: socket.socket) -> Callable[[bytes], bytes]:
    """The exchange over a connected UDP socket; on an idle veth pair nothing is sent twice."""

    def exchange(request: bytes) -> bytes:
        opened.send(request)
        return opened.recv(2048)

    return exchange


def over_stream(opened: socket.socket) -> Callable[[bytes], bytes]:
    """The exchange over a connected stream, while no media flows: the next message is the answer."""

    def exactly(count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = opened.recv(count - len(got))
            if not more:
                raise ConnectionError("the TURN server has closed")
            got += more
        return got

    def exchange(request: bytes) -> bytes:
        opened.sendall(request)
        answer = exactly(HEADER.size)
        return answer + exactly(HEADER.unpack(answer)[1])

    return exchange


def channel_header(channel: int, size: int) -> bytes:
    """What goes before ``size`` bytes of payload (RFC 8656 section 12.4)."""
    return CHANNEL_HEADER.pack(channel, size)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _attributes(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(body):
        kind, length = struct.unpack_from("!HH", body, at)
        found.setdefault(kind, body[at + 4 : at + 4 + length])
        at += 4 + length + (-length % 4)
    return found


def _xor(address: str, port: int) -> bytes:
    return struct.pack("!BBHI", 0, 1, port ^ MAGIC >> 16, int(IPv4Address(address)) ^ MAGIC)


def _unxor(value: bytes) -> tuple[str, int]:
    _, _, port, address = struct.unpack("!BBHI", value)
    return str(IPv4Address(address ^ MAGIC)), port ^ MAGIC >> 16
