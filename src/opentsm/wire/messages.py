"""Control messages as values. Every number they stand for is in docs/protocol.md.

    Message
    ├── ConfigurationRequest / ConfigurationResponse     set-up, of the stream tunnel and of its DDT
    ├── ReleaseRequest / ReleaseResponse                 the end of a tunnel, or of its DDT
    ├── ServiceRequest / ServiceResponse                 DDT and the other services
    ├── KeepaliveRequest / KeepaliveResponse             usually answered by the user plane
    ├── QualityReport                                    no response
    ├── ErrorResponse                                    the answer to a type we do not know
    └── UnknownMessage                                   a type we do not know

A field that is None (or an empty tuple) is a TLV that is absent; ``padding`` is a number of bytes.
Numbers a newer peer may know and we do not (services, codes, service actions) stay plain integers, so that
they can be answered.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from opentsm.types import (
    Code,
    Coding,
    Flow,
    IpAddress,
    Path,
    PathMode,
    Redundancy,
    Service,
    ServiceAction,
    Tsid,
)


class AddressFamilies(enum.IntFlag):
    """Inner address families a client asks for."""

    IPV4 = 1
    IPV6 = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class PathQuality:
    """One path over one interval, as its receiver saw it.

    Args:
        path: which tunnel.
        interval_ms: length of the interval in milliseconds.
        received: records received, probes included.
        lost: records known to be lost (datagram).
        jitter_us: interarrival jitter of the peer's probes in microseconds (RFC 3550 section 6.4.1).
        delay_us: smoothed round trip time in microseconds, 0 = unknown.
    """

    path: Path
    interval_ms: int
    received: int
    lost: int
    jitter_us: int
    delay_us: int


@dataclass(frozen=True, slots=True)
class PathDecision:
    """The sender of the report has moved what it sends in mode auto.

    Args:
        path: where to.
        reason: number of a ``opentsm.engine.steering.Reason``; newer peers may have others.
        stream_r, datagram_r: both paths' ratings (G.107's R, rounded), None = unknown.
    """

    path: Path
    reason: int
    stream_r: int | None
    datagram_r: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every control message has: the header's TSID and sequence."""

    tsid: Tsid
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRequest(Message):
    """Client to server: give me a tunnel (all-ones TSID), resume one (its TSID and a proof), make this stream
    a further one of a session (the reserved TSID and a join proof), or, on a datagram tunnel, complete the
    DDT that was reserved under this TSID."""

    client_id: bytes | None = None
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    families: AddressFamilies | None = None
    wanted_services: tuple[Service | int, ...] = ()
    resume_proof: bytes | None = field(default=None, repr=False)
    join_proof: bytes | None = field(default=None, repr=False)
    software: str | None = None
    padding: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationResponse(Message):
    """Server to client: the tunnel's parameters, or the code that says why there is none."""

    code: Code | int
    text: str | None = None
    inner_ipv4: IPv4Interface | None = None
    inner_ipv6: IPv6Interface | None = None
    dns_servers: tuple[IpAddress, ...] = ()
    sip_server: tuple[IpAddress, int] | None = None
    keepalive_ms: int | None = None
    keepalive_datagram_ms: int | None = None
    inner_mtu: int | None = None
    resume_secret: bytes | None = field(default=None, repr=False)
    observed_address: tuple[IpAddress, int] | None = None
    offered_services: tuple[Service | int, ...] = ()
    persistence_ms: int | None = None
    retry_after_ms: int | None = None
    software: str | None = None
    server_epoch: int | None = None
    padding: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest(Message):
    """Either way: this tunnel ends. With ``tunnel_id`` (on the stream): only that DDT ends."""

    code: Code | int | None = None
    text: str | None = None
    tunnel_id: Tsid | None = None
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseResponse(Message):
    """The tunnel (or the DDT named by ``tunnel_id``) is gone on this side too."""

    code: Code | int
    text: str | None = None
    tunnel_id: Tsid | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequest(Message):
    """Ask for a service, or stop it, for the flows named (none: for the tunnel as a whole).

    For DDT, ``mode`` says where the flows' packets shall go: datagram, auto (follow the client), or
    stream (keep the DDT for them, but use the stream now). On a disable, a ``mode`` of stream keeps
    the flow known as media; without a mode the flow is forgotten.

    For redundancy on the DDT, FEC and header compression, ``coding`` says what is permitted of them all.
    """

    service: Service | int
    action: ServiceAction | int
    flows: tuple[Flow, ...] = ()
    mode: PathMode | None = None
    coding: Coding | None = None
    redundancy: Redundancy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceResponse(Message):
    """The answer; for an enabled DDT with the TSID of the reserved (or living) datagram tunnel, for
    redundancy with that of a reserved stream and the secret that a join proof is made from."""

    code: Code | int
    text: str | None = None
    service: Service | int | None = None
    tunnel_id: Tsid | None = None
    join_secret: bytes | None = field(default=None, repr=False)
    offered_services: tuple[Service | int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepaliveRequest(Message):
    """Are you there? The timestamp is the sender's own affair and comes back unread."""

    timestamp: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepaliveResponse(Message):
    """Yes."""

    timestamp: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport(Message):
    """What the sender received on each path, and where it now sends. Not answered."""

    reports: tuple[PathQuality, ...] = ()
    decision: PathDecision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse(Message):
    """The answer to a message type we do not know; repeats its sequence."""

    code: Code | int
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownMessage(Message):
    """A well-framed message of a type that is not ours; its TLVs are not looked at."""

    type: int


SECRET_FIELDS: frozenset[str] = frozenset(
    {"password", "resume_secret", "resume_proof", "join_secret", "join_proof"}
)
"""Field names whose values never reach a log or a repr."""
