"""Words every row of the package shares: transports, paths, services, flows, codes.

Numbers that go over the wire are those of docs/protocol.md; nothing else may invent any.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NewType

from opentsm.limits import MAX_STREAMS

IpAddress = IPv4Address | IPv6Address
SocketAddress = tuple[str, int]

Tsid = NewType("Tsid", int)
"""64-bit tunnel id."""

UNASSIGNED_TSID: Final = Tsid(0xFFFF_FFFF_FFFF_FFFF)
"""All ones: the TSID of a first Configuration Request, before the server has given one."""


class Transport(enum.Enum):
    """Outer transport of one tunnel."""

    TCP = "tcp"
    TLS = "tls"
    UDP = "udp"
    DTLS = "dtls"

    @property
    def is_stream(self) -> bool:
        return self in (Transport.TCP, Transport.TLS)

    @property
    def is_secure(self) -> bool:
        return self in (Transport.TLS, Transport.DTLS)

    @property
    def pair(self) -> Transport:
        """The other half of a tunnel pair: TLS <-> DTLS, TCP <-> UDP."""
        return _PAIRS[self]


_PAIRS: Final = {
    Transport.TCP: Transport.UDP,
    Transport.UDP: Transport.TCP,
    Transport.TLS: Transport.DTLS,
    Transport.DTLS: Transport.TLS,
}


class Path(enum.IntEnum):
    """One of the two tunnels that can carry a flow."""

    STREAM = 0
    DATAGRAM = 1


class PathMode(enum.IntEnum):
    """The transport switch of a flow: where the application wants it."""

    STREAM = 0
    DATAGRAM = 1
    AUTO = 2


class Spread(enum.IntEnum):
    """What becomes of media that goes by stream, where a session has several."""

    SINGLE = 0
    FAN_OUT = 1
    LOAD_BALANCE = 2

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Redundancy:
    """Media on several streams of one session.

    Args:
        spread: a copy by each (fan-out), each in turn (load-balance), or the main stream only.
        streams: how many, the main one counted; 1 with ``SINGLE``, else 2 to MAX_STREAMS.
    """

    spread: Spread = Spread.SINGLE
    streams: int = 1

    def __post_init__(self) -> None:
        least, most = (1, 1) if self.spread is Spread.SINGLE else (2, MAX_STREAMS)
        if not least <= self.streams <= most:
            raise ValueError(f"{self.spread.label} takes {least} to {most} streams, not {self.streams}")

    def __str__(self) -> str:
        return "off" if self.spread is Spread.SINGLE else f"{self.spread.label}:{self.streams}"

    @property
    def number(self) -> int:
        """As one number, for socket options: 0 is off, 0x12 fan-out over 2, 0x24 load-balance over 4."""
        return 0 if self.spread is Spread.SINGLE else self.spread << 4 | self.streams

    @classmethod
    def from_number(cls, number: int) -> Redundancy:
        """The inverse of ``number``.

        Raises:
            ValueError: no such thing.
        """
        return cls() if number == 0 else cls(Spread(number >> 4), number & 0xF)

    @classmethod
    def parse(cls, text: str) -> Redundancy:
        """``off``, ``fan-out``, ``fan-out:3``, ``load-balance:4``: without a number two streams.

        Raises:
            ValueError: it is none of these.
        """
        name, _, number = text.strip().lower().partition(":")
        if name == "off" and not number:
            return cls()
        for spread in (Spread.FAN_OUT, Spread.LOAD_BALANCE):
            if name == spread.label and (not number or number.isdecimal()):
                return cls(spread, int(number or 2))
        raise ValueError(f"{text!r} is not off, fan-out:N or load-balance:N (N from 2 to {MAX_STREAMS})")


NO_REDUNDANCY: Final = Redundancy()
"""The main stream only."""


class Service(enum.IntEnum):
    """Features an interface can offer (``assigned-services``)."""

    SIP = 1
    REDUNDANCY = 2
    DDT = 3
    SERVER_KEEPALIVE = 4
    NAGLE = 5
    STG = 6
    INTER_CLIENT_BLOCK = 7
    HEADER_COMPRESSION = 8
    FEC = 9

    @property
    def label(self) -> str:
        """The name used in configuration files."""
        return _SERVICE_LABELS[self]


_SERVICE_LABELS: Final = {
    Service.SIP: "SIP",
    Service.REDUNDANCY: "redundancy",
    Service.DDT: "DDT",
    Service.SERVER_KEEPALIVE: "server-keepalive",
    Service.NAGLE: "nagle",
    Service.STG: "STG",
    Service.INTER_CLIENT_BLOCK: "inter-client-block",
    Service.HEADER_COMPRESSION: "header-compression",
    Service.FEC: "FEC",
}


_BY_LOSS: Final = 15

MAX_FACTOR: Final = 2
"""Recovery frames that may go with one media datagram: with two of them, three times the bytes of the
media."""


@dataclass(frozen=True, slots=True)
class Coding:
    """What is permitted of redundancy, FEC and header compression; the server's interface must offer them
    too.

    Args:
        factor: recovery frames per media datagram on the DDT, 0 to MAX_FACTOR; None: by measured loss.
        fec: they may be made for bursts (parity, and copies further back).
        compress: headers of busy UDP flows may be left out.
    """

    factor: int | None = None
    fec: bool = True
    compress: bool = True

    def __post_init__(self) -> None:
        if self.factor is not None and not 0 <= self.factor <= MAX_FACTOR:
            raise ValueError(f"factor is 0 to {MAX_FACTOR}, not {self.factor}")

    @property
    def services(self) -> frozenset[Service]:
        """The services that this takes."""
        found = {Service.HEADER_COMPRESSION} if self.compress else set()
        if self.factor != 0:
            found |= {Service.REDUNDANCY, Service.FEC} if self.fec else {Service.REDUNDANCY}
        return frozenset(found)

    def __str__(self) -> str:
        words = ["auto" if self.factor is None else str(self.factor)]
        words += ["no-fec"] * (not self.fec) + ["no-compression"] * (not self.compress)
        return "off" if self == NO_CODING else ",".join(words)

    @property
    def number(self) -> int:
        """As one number, for socket options: the factor (15: by loss), 0x10 FEC, 0x20 compression."""
        factor = _BY_LOSS if self.factor is None else self.factor
        return factor | (0x10 if self.fec else 0) | (0x20 if self.compress else 0)

    @classmethod
    def from_number(cls, number: int) -> Coding:
        """The inverse of ``number``.

        Raises:
            ValueError: no such thing.
        """
        if not 0 <= number <= 0x3F:
            raise ValueError(f"{number} is not the number of a coding")
        factor = number & 0xF
        return cls(
            None if factor == _BY_LOSS else factor, fec=bool(number & 0x10), compress=bool(number & 0x20)
        )

    @classmethod
    def parse(cls, text: str) -> Coding:
        """``auto``, ``off``, or a factor (``0``, ``1``, ``2``), and after commas ``no-fec``,
        ``no-compression``.

        Raises:
            ValueError: it is none of these.
        """
        first, *rest = text.strip().lower().split(",")
        if first == "off" and not rest:
            return NO_CODING
        if not set(rest) <= {"no-fec", "no-compression"} or first not in ("auto", "0", "1", "2"):
            raise ValueError(
                f"{text!r} is not off, or one of auto, 0, 1, 2 with no-fec, no-compression after it"
            )
        factor = None if first == "auto" else int(first)
        return cls(factor, fec="no-fec" not in rest, compress="no-compression" not in rest)


AUTOMATIC: Final = Coding()
"""All that helps, by measured loss."""

NO_CODING: Final = Coding(0, fec=False, compress=False)
"""Nothing of it."""


class ServiceAction(enum.IntEnum):
    """What a Service Request asks for."""

    ENABLE = 1
    DISABLE = 2
    PAIR_MISSING = 3
    QUERY = 4


class Code(enum.IntEnum):
    """Response codes."""

    SUCCESS = 0
    SERVICE_UNAVAILABLE = 1
    UNKNOWN_SERVICE = 2
    UNAUTHORIZED = 3
    NO_ADDRESS = 4
    TOO_MANY_TUNNELS = 5
    BAD_REQUEST = 6
    UNKNOWN_TYPE = 7
    RESUME_REFUSED = 8
    RATE_LIMITED = 9
    SHUTTING_DOWN = 10
    NOT_ALLOWED = 11
    UNSUPPORTED_VERSION = 12
    INTERNAL_ERROR = 13
    WRONG_STATE = 14

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


class Protocol(enum.IntEnum):
    """Inner transport protocols a flow can have (IANA numbers)."""

    TCP = 6
    UDP = 17


@dataclass(frozen=True, slots=True)
class Flow:
    """Inner (protocol, client port[, far end]) of one client: the unit that is steered.

    The client's address is not part of it: a flow belongs to a session, which has exactly one
    inner address of each family.

    Args:
        protocol: inner transport protocol.
        port: the client's port, 1 to 65535.
        ipv6: whether the flow runs on the client's IPv6 address.
        far: the far end, or None for "whoever the client talks to from this port".
    """

    protocol: Protocol
    port: int
    ipv6: bool = False
    far: tuple[IpAddress, int] | None = None
