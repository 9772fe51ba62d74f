"""Hops and flow tokens: how SIP goes back the way it came.

A *hop* is one SIP neighbour over one transport, seen from one of our sockets. In-dialog requests find their
hop by a token in the Route header that only we can have made (RFC 5626 section 5.2).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress

MAC_BYTES: Final = 10
"""80 bits, as in the RFC's example: guessing one takes 2^79 requests."""

TRANSPORTS: Final = ("udp", "tcp", "tls")
"""In the order of their numbers in a token; only ever append."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A SIP neighbour: ``remote`` as our socket ``local`` sees it.

    Attributes:
        local: where we listen; on a TCP connection that we opened too. On TCP, both together name a
        connection.
        core: by a socket on the core side, where nobody stops a stranger from using an address that is some
            client's inside.
    """

    transport: str
    local: SocketAddress
    remote: SocketAddress
    core: bool = False

    @property
    def source(self) -> str:
        """Who it is, as far as an address can tell: an inner one and the same one outside are two."""
        return f"core {self.remote[0]}" if self.core else self.remote[0]

    @property
    def reliable(self) -> bool:
        """Whether lost packets are somebody else's business."""
        return self.transport != "udp"

    def __str__(self) -> str:
        return f"{self.transport}:{self.remote[0]}:{self.remote[1]}"


class FlowTokens:
    """Makes and checks tokens.

    Args:
        key: secret of this server; one that survives a restart keeps calls routable.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def token(self, hop: Hop) -> str:
        """The token of a hop: letters, digits, ``-`` and ``_``, so that it can stand before an ``@``."""
        remote, local = ip_address(hop.remote[0]), ip_address(hop.local[0])
        kind = hop.core << 7 | TRANSPORTS.index(hop.transport) << 4 | remote.version
        plain = struct.pack("!BHH", kind, hop.remote[1], hop.local[1]) + remote.packed + local.packed
        return base64.urlsafe_b64encode(self._mac(plain) + plain).rstrip(b"=").decode()

    def hop_untrusted(self, token: str) -> Hop:
        """The hop of a token.

        Raises:
            RemoteProtocolError: ``bad-flow-token``: not one of ours.
        """
        try:
            raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except (binascii.Error, UnicodeEncodeError):
            raise RemoteProtocolError("bad-flow-token", token[:80]) from None
        mac, plain = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(plain)):
            raise RemoteProtocolError("bad-flow-token", token[:80])
        kind, remote_port, local_port = struct.unpack("!BHH", plain[:5])
        make = IPv4Address if kind & 15 == 4 else IPv6Address
        half = 5 + (len(plain) - 5) // 2
        remote, local = str(make(plain[5:half])), str(make(plain[half:]))
        transport = TRANSPORTS[kind >> 4 & 7]
        hop = Hop(transport, (local, local_port), (remote, remote_port), bool(kind >> 7))
        if self.token(hop) != token:
            # The decoder reads over characters that do not belong; one hop has one token.
            raise RemoteProtocolError("bad-flow-token", token[:80])
        return hop

    def _mac(self, plain: bytes) -> bytes:
        return hmac.digest(self._key, b"flow" + plain, hashlib.sha256)[:MAC_BYTES]
