"""What a session asks its owner to do, and what it tells the application: the whole vocabulary.

The owner calls one input method of a session, then carries out ``session.actions()`` in order, then
arms one timer for ``session.deadline()``. A session names its tunnels by ``Path``; the owner keeps
the user plane's tunnel ids and drops events of tunnels that are no longer the session's.
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
    Redundancy,
    Service,
    ServiceAction,
    Spread,
    Tsid,
)
from opentsm.wire.messages import AddressFamilies, Message, PathDecision, PathQuality


class SteerMode(enum.IntEnum):
    """Mode of a steering row; the numbers are those of ``UserPlane.steer``."""

    STREAM = 0
    DATAGRAM = 1


@dataclass(frozen=True, slots=True)
class Deadline:
    """When ``tick`` must be called at the latest.

    Args:
        at: seconds on the clock that ``now`` is read from.
        reason: name of the timer, for logs and tests.
    """

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Inner addresses that the server's pools gave to one session.

    Args:
        ipv4: IPv4 address with its prefix length, or None.
        ipv6: the same for IPv6.
        dns_servers: inner DNS servers for the client.
        sip_server: where the client's SIP goes, or None.
    """

    ipv4: IPv4Interface | None = None
    ipv6: IPv6Interface | None = None
    dns_servers: tuple[IpAddress, ...] = ()
    sip_server: tuple[IpAddress, int] | None = None

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        return tuple(a.ip for a in (self.ipv4, self.ipv6) if a is not None)


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the server configured for a client. Times are in seconds; 0 = none."""

    tsid: Tsid
    lease: Lease
    keepalive: float = 0.0
    keepalive_datagram: float = 0.0
    inner_mtu: int | None = None
    observed_address: tuple[IpAddress, int] | None = None
    services: tuple[Service | int, ...] = ()
    persistence: float = 0.0
    software: str | None = None
    epoch: int | None = None


# -- events: facts for the application ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TunnelUp:
    """Client: the stream tunnel is configured.

    Args:
        configuration: what the server gave.
        address_changed: an earlier tunnel of this session had other inner addresses: sockets bound to
            them are dead.
    """

    configuration: Configuration
    address_changed: bool = False


@dataclass(frozen=True, slots=True)
class Resumed:
    """The session has a stream again; same inner address, same flows (client and server)."""

    configuration: Configuration | None = None


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The session became persistent: it lives on without its stream (client and server)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Terminated:
    """The session is over for good.

    Args:
        reason: stable name: ``local-close``, a code's label (``unauthorized``), a path's reason, ...
        code: the peer's response code, where it gave one.
        text: the peer's words.
        retry_after: seconds the server asked us to wait, or None.
    """

    reason: str
    code: Code | int | None = None
    text: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class DdtAvailable:
    """Client: the server's first answer about DDT in this tunnel, yes or no."""

    available: bool


@dataclass(frozen=True, slots=True)
class DdtEnabled:
    """Client: from now on these flows go by the datagram tunnel."""

    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class DdtDisabled:
    """Client: these flows are on the stream (again), for this reason: ``switched`` (the application's
    or the quality engine's wish), ``path-silent``, a code's label, or the reason the DDT was lost."""

    flows: tuple[Flow, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class DdtUp:
    """The datagram tunnel is configured and may carry media (client and server)."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class DdtDown:
    """The datagram tunnel is gone: ``released``, or why it was lost (client and server)."""

    tsid: Tsid
    reason: str


@dataclass(frozen=True, slots=True)
class PairMissing:
    """Flows want DDT and there is no datagram half. Server: we have just warned the client. Client: the
    server has warned us."""


@dataclass(frozen=True, slots=True)
class StreamsChanged:
    """Media has another number of streams, or is spread over them in another way (client and server).

    Args:
        redundancy: what is wished. up: streams that carry media, the main one counted while there is one.
        reason: ``joined``, ``released``, ``service-unavailable``, or why a stream was lost.
    """

    redundancy: Redundancy
    up: int
    reason: str


@dataclass(frozen=True, slots=True)
class NagleSet:
    """Client: the server's answer about Nagle's algorithm. ``granted``: both sides have it so."""

    on: bool
    granted: bool


@dataclass(frozen=True, slots=True)
class KeepaliveInterval:
    """Client: probe this path at this interval (seconds, 0 = do not)."""

    path: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class QualityReported:
    """The peer's view of what we send, and where it has moved what it sends in mode auto.

    Args:
        path: on which the report came: the way back for an answer.
    """

    reports: tuple[PathQuality, ...]
    decision: PathDecision | None = None
    path: Path = Path.STREAM


@dataclass(frozen=True, slots=True)
class MediaMoved:
    """Server: what it sends of these flows goes by another path from now on, for this reason."""

    flows: tuple[Flow, ...]
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Configured:
    """Server: a client is up."""

    identity: str
    lease: Lease
    tsid: Tsid


@dataclass(frozen=True, slots=True)
class ServiceAsked:
    """Server: a client's Service Request for an assigned service was granted."""

    service: Service
    action: ServiceAction
    flows: tuple[Flow, ...]


SessionEvent = (
    TunnelUp
    | Resumed
    | StreamLost
    | Terminated
    | DdtAvailable
    | DdtEnabled
    | DdtDisabled
    | DdtUp
    | DdtDown
    | PairMissing
    | StreamsChanged
    | NagleSet
    | KeepaliveInterval
    | QualityReported
    | MediaMoved
    | Configured
    | ServiceAsked
)


# -- actions: orders to the owner -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Encode and queue this message on the session's tunnel of this path (``send_control``)."""

    path: Path
    message: Message


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Server: check these credentials; answer with ``authenticated`` or ``authentication_failed``."""

    client_id: bytes | None
    username: str | None
    password: bytes | None = field(repr=False)
    has_certificate: bool


@dataclass(frozen=True, slots=True)
class Allocate:
    """Server: lease inner addresses; answer with ``leased`` or ``lease_refused``."""

    identity: str
    families: AddressFamilies


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Server: the session's addresses go back to the pool (comes at most once per lease)."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Tell the user plane the session's inner addresses (``session_open``), before any ``Attach``.

    On a client it may come a second time, when a fresh configuration brought other addresses; the
    earlier user-plane session (with its sockets, rows and tunnels) is then to be closed first. It
    does not come when the addresses are the same as before.
    """

    addresses: tuple[IpAddress, ...]


@dataclass(frozen=True, slots=True)
class AttachStream:
    """The stream tunnel may carry the session's packets under this TSID (``attach``).

    Args:
        fresh: the peer knows nothing of this session's earlier tunnels: it numbers its sequenced media anew.
    """

    tsid: Tsid
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class ReserveDatagram:
    """Server: expect a datagram tunnel with this TSID for ``lifetime`` seconds (``reserve``)."""

    tsid: Tsid
    lifetime: float


@dataclass(frozen=True, slots=True)
class UnreserveDatagram:
    """Server: expect it no longer (``unreserve``)."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class OpenDatagram:
    """Client: open the pair's datagram socket and handshake with this TSID (``attach_datagram``).

    Ends in ``datagram_ready(tsid)`` or ``path_lost(Path.DATAGRAM)``."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class AttachDatagram:
    """The datagram tunnel may carry the session's packets under this TSID (``attach``)."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class SendExtra:
    """Encode and queue this message on the further stream of this TSID (``send_control``)."""

    tsid: Tsid
    message: Message


@dataclass(frozen=True, slots=True)
class OpenExtra:
    """Client: connect one more stream to the same server.

    Ends in ``streams.ready(tsid)`` or ``streams.lost(tsid)``."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class ReserveExtra:
    """Server: a new stream whose first message has this TSID and a join proof is this session's."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class UnreserveExtra:
    """Server: no longer."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class AttachExtra:
    """Media of the session is taken from this further stream (``attach_extra``)."""

    tsid: Tsid


@dataclass(frozen=True, slots=True)
class UseExtra:
    """Our media goes by this further stream too, or no longer (``use_extra``)."""

    tsid: Tsid
    used: bool


@dataclass(frozen=True, slots=True)
class CloseExtra:
    """Close this further stream, also one that is still being opened; nothing to do if there is none."""

    tsid: Tsid
    reason: str


@dataclass(frozen=True, slots=True)
class SetSpread:
    """What becomes of media that goes by stream (``set_spread``)."""

    spread: Spread


@dataclass(frozen=True, slots=True)
class SetNagle:
    """Nagle's algorithm on all streams of the session (``set_nagle``)."""

    on: bool


@dataclass(frozen=True, slots=True)
class Steer:
    """Set one row of the steering table (``steer``, media=True)."""

    flow: Flow
    mode: SteerMode


@dataclass(frozen=True, slots=True)
class Unsteer:
    """Remove the row (``unsteer``)."""

    flow: Flow


@dataclass(frozen=True, slots=True)
class SetCoding:
    """What of the peer's coded frames the user plane takes, and what it may send (``set_coding``).

    Args:
        takes, sends: services agreed on, in either direction.
        coding: what the application (on the server: the client) permits or has chosen.
    """

    takes: frozenset[Service]
    sends: frozenset[Service]
    coding: Coding


@dataclass(frozen=True, slots=True)
class CloseTunnel:
    """Close the session's tunnel of this path, also one that is still being opened; nothing to do if
    there is none. The session expects no ``path_lost`` for it any more; one that comes is harmless
    only if the owner has not given the path a new tunnel meanwhile, so drop events of old ids."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Client: after this many seconds connect a new stream, then call ``stream_ready`` or
    ``connect_failed``. A later ``SessionClosed`` cancels it.

    It may come while the session has a stream (the network has changed): that stream goes on carrying
    packets, and the new one replaces it with its AttachStream. With ``after`` = 0 a connection attempt that
    is being made is begun anew, as it may be on the network that was left; with any other value an attempt
    that is being made already stands for this one."""

    after: float


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the application."""

    event: SessionEvent


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The last action of a session: forget it, and close what the user plane holds for it
    (``session_close``; it flushes what was queued)."""

    reason: str


Action = (
    Send
    | Authenticate
    | Allocate
    | ReleaseLease
    | OpenSession
    | AttachStream
    | ReserveDatagram
    | UnreserveDatagram
    | OpenDatagram
    | AttachDatagram
    | SendExtra
    | OpenExtra
    | ReserveExtra
    | UnreserveExtra
    | AttachExtra
    | UseExtra
    | CloseExtra
    | SetSpread
    | SetNagle
    | Steer
    | Unsteer
    | SetCoding
    | CloseTunnel
    | Reconnect
    | Notify
    | SessionClosed
)
