"""The benchmark's TURN client, against the test vectors of RFC 5769 and a server made by hand."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest

from benchmarks import turn


class Server:
    """Answers as RFC 8489 section 9.2 has it; keeps the requests it was sent."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def __call__(self, request: bytes) -> bytes:
        self.requests.append(request)
        kind, _, _, transaction = turn.HEADER.unpack_from(request)
        if len(self.requests) == 1:
            body = turn._attribute(turn.REALM, b"here") + turn._attribute(turn.NONCE, b"once")
            return turn.HEADER.pack(kind + 0x110, len(body), turn.MAGIC, transaction) + body
        body = b""
        if kind == turn.ALLOCATE:
            body = turn._attribute(turn.XOR_RELAYED_ADDRESS, turn._xor("192.0.2.1", 32853))
        return turn.HEADER.pack(kind + turn.SUCCESS, len(body), turn.MAGIC, transaction) + body


def test_addresses_are_those_of_the_test_vector() -> None:
    # RFC 5769 section 2.2: 192.0.2.1 port 32853.
    assert turn._xor("192.0.2.1", 32853).hex() == "0001a147e112a643"
    assert turn._unxor(bytes.fromhex("0001a147e112a643")) == ("192.0.2.1", 32853)


def test_an_allocation_is_asked_for_with_credentials_and_signed() -> None:
    server = Server()
    allocation = turn.Allocation(server, "me", "secret")
    assert allocation.relayed == ("192.0.2.1", 32853)
    request = server.requests[1]
    signed, signature = request[:-24], request[-20:]
    key = hashlib.md5(b"me:here:secret", usedforsecurity=False).digest()
    assert hmac.digest(key, signed, "sha1") == signature


def test_each_channel_has_a_number_of_its_own() -> None:
    server = Server()
    allocation = turn.Allocation(server, "me", "secret")
    assert [allocation.bind("192.0.2.9", port) for port in (1, 2)] == [0x4000, 0x4001]
    assert struct.pack("!H2x", 0x4001) in server.requests[-1]
    assert turn.channel_header(0x4001, 172).hex() == "400100ac"


def test_a_refusal_says_why() -> None:
    def refuse(request: bytes) -> bytes:
        kind, _, _, transaction = turn.HEADER.unpack_from(request)
        body = turn._attribute(turn.REALM, b"here") + turn._attribute(turn.NONCE, b"once")
        body += turn._attribute(turn.ERROR_CODE, struct.pack("!2xBB", 4, 86) + b"Allocation Quota Reached")
        return turn.HEADER.pack(kind + 0x110, len(body), turn.MAGIC, transaction) + body

    with pytest.raises(ConnectionError, match="486 Allocation Quota Reached"):
        turn.Allocation(refuse, "me", "secret")
