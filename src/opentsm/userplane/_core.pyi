"""The boundary between the planes, as Python sees it (rust/src/boundary.rs is the other side).

Methods are commands: they return at once and never wait for a packet. Facts come back as events
from ``poll``; ``event_fd`` is readable whenever there is one. Ids (tunnels, listeners, sockets,
profiles, TUN devices) are plain integers, never reused within a process. Session ids are chosen by
the caller. Every method may raise ``ValueError`` (an argument is wrong), ``KeyError`` (no such id)
or ``OSError`` (the kernel refused), and nothing else.
"""

from collections.abc import Sequence
from typing import Final, final

@final
class StreamReady:
    """An outer stream connection is up (TCP connected, TLS finished) and may carry control messages."""

    __match_args__: Final = ("tunnel", "listener")
    tunnel: int
    listener: int | None  # None: a connection we attached
    peer: tuple[str, int]
    local: tuple[str, int]
    peer_certificate: bytes | None  # DER, already verified against the profile's CA
    alpn: str | None
    tls_version: str | None  # "1.3", "1.2" or None on plain TCP
    resume_binding: bytes  # 32 bytes; zeros on plain TCP

@final
class DatagramReady:
    """A datagram tunnel is up: DTLS finished, or a plain datagram carried a reserved TSID."""

    __match_args__: Final = ("tunnel", "tsid")
    tunnel: int
    listener: int | None
    peer: tuple[str, int]
    local: tuple[str, int]
    tsid: int
    session: int

@final
class ControlMessage:
    """A whole control-message frame. Framing and TSID are checked, content is not."""

    __match_args__: Final = ("tunnel", "data")
    tunnel: int
    data: bytes

@final
class TunnelClosed:
    """An outer connection has ended; its id is dead. ``reason`` is a stable name."""

    __match_args__: Final = ("tunnel", "reason")
    tunnel: int
    reason: str  # peer-closed, local-close, reset, timeout, tls-error, dtls-error, bad-frame, refused, ...
    detail: str

@final
class TunnelIdle:
    """Nothing was received on this tunnel for the time given to ``set_idle`` (fires once per silence)."""

    __match_args__: Final = ("tunnel", "silent_ms")
    tunnel: int
    silent_ms: int

@final
class PathSilent:
    """We send on this datagram tunnel and our probes are not answered (see ``set_keepalive``)."""

    __match_args__: Final = ("tunnel", "silent_ms")
    tunnel: int
    silent_ms: int

@final
class PathAlive:
    """A tunnel reported silent has been heard again."""

    __match_args__: Final = ("tunnel",)
    tunnel: int

@final
class FlowSeen:
    """A media flow was found on a client's TUN device: four RTP packets in a row (RFC 3550 appendix A.1)."""

    __match_args__: Final = ("session", "port")
    session: int
    protocol: int
    port: int
    ipv6: bool

@final
class FlowQuiet:
    """A media flow that was found has sent nothing for ten seconds."""

    __match_args__: Final = ("session", "port")
    session: int
    protocol: int
    port: int
    ipv6: bool

@final
class SignalSeen:
    """A copy of SIP about a call that passed a client's TUN device (see ``watch_media``)."""

    __match_args__: Final = ("session", "data")
    session: int
    sent: bool  # by this host
    protocol: int  # 17: one whole message; 6: a piece of a connection
    source: tuple[str, int]
    destination: tuple[str, int]
    sequence: int  # TCP: number of the first byte of data
    data: bytes

@final
class UdpReceived:
    """An inner UDP datagram for a local socket."""

    __match_args__: Final = ("socket", "data", "source")
    socket: int
    data: bytes
    source: tuple[str, int]
    path: int  # 0 stream, 1 datagram, -1 not from a tunnel

@final
class TcpAccepted:
    """A listener has a new inner TCP connection, established."""

    __match_args__: Final = ("listener", "connection")
    listener: int
    connection: int
    local: tuple[str, int]
    peer: tuple[str, int]

@final
class TcpConnected:
    """A connection asked for by ``tcp_connect`` is established."""

    __match_args__: Final = ("connection",)
    connection: int
    local: tuple[str, int]
    peer: tuple[str, int]

@final
class TcpReceived:
    """Bytes of a connection, in order; to be given back with ``tcp_consumed``."""

    __match_args__: Final = ("connection", "data")
    connection: int
    data: bytes

@final
class TcpEof:
    """The peer sends no more; it may still read."""

    __match_args__: Final = ("connection",)
    connection: int

@final
class TcpWritable:
    """There is room again for what ``tcp_send`` did not take."""

    __match_args__: Final = ("connection",)
    connection: int

@final
class TcpClosed:
    """A connection is over; its id is dead. ``reason`` is a stable name: closed (by both ends), refused,
    reset, timeout, idle, session-closed, address-in-use, too-many, unreachable, no-randomness."""

    __match_args__: Final = ("connection", "reason")
    connection: int
    reason: str

Event = (
    StreamReady
    | DatagramReady
    | ControlMessage
    | TunnelClosed
    | TunnelIdle
    | PathSilent
    | PathAlive
    | FlowSeen
    | FlowQuiet
    | SignalSeen
    | UdpReceived
    | TcpAccepted
    | TcpConnected
    | TcpReceived
    | TcpEof
    | TcpWritable
    | TcpClosed
)

@final
class TunnelStats:
    """Counters of one tunnel since it began. Inner packets and bytes, unless said otherwise."""

    datagram: bool
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    rx_records: int  # DTLS records or TLS records
    tx_records: int
    rx_lost: int  # gaps in DTLS record sequence numbers that were never filled
    rx_missing: int  # the same at once: those of the last 1,088 numbers may still be filled
    rx_reordered: int
    rx_duplicates: int  # replayed records
    tx_dropped: int  # stale or overflowed media plus full queues
    queue_bytes: int
    rtt_us: int  # smoothed, from keepalives; 0 = unknown
    rtt_var_us: int
    rtt_min_us: int
    keepalives_sent: int
    keepalives_answered: int
    last_rx_ms: int  # milliseconds since the last authentic byte
    age_ms: int
    rx_jitter_us: int  # of the way to us: interarrival jitter of the peer's probes (RFC 3550 section 6.4.1)
    tcp_rtt_us: int  # from TCP_INFO; 0 on datagram tunnels
    tcp_retransmits: int
    tcp_unsent: int
    tcp_congestion: str  # name of the congestion control; empty on datagram tunnels

@final
class FlowStats:
    """One row of a session's steering table."""

    protocol: int
    port: int
    ipv6: bool
    far: tuple[str, int] | None
    mode: int
    media: bool
    tx_stream: int
    tx_datagram: int
    rx_stream: int
    rx_datagram: int

@final
class RelayLegStats:
    """What one party of a relay has sent us (RFC 3550 section 6.4.1 and appendix A)."""

    packets: int
    bytes: int
    dropped: int  # wrong source, other party unknown, no path
    wrong: int  # of these, from somebody who is not the party,
    stranger: tuple[str, int] | None  # last from here
    lost: int  # expected minus received, by RTP sequence numbers
    expected: int
    jitter_us: int  # interarrival jitter, assuming an 8 kHz clock unless the payload type says otherwise
    by_datagram: int  # packets that came by the party's datagram tunnel
    learned: tuple[str, int] | None  # where the party really sends from
    idle_ms: int  # since its last packet
    rtcp_packets: int  # RTCP that was read (RFC 3550 section 6.4)
    report_blocks: int  # reports in them; of the last one:
    reported_fraction: int  # share lost since the one before, in 256ths
    reported_lost: int  # lost in all
    reported_jitter: int  # in ticks of the RTP clock
    rtt_us: int  # between us and the party, from an echoed sender report; 0 = unknown

@final
class RelayStats:
    a: RelayLegStats
    b: RelayLegStats

@final
class UserPlane:
    """One engine with its worker threads. Threads never take the GIL."""

    event_fd: int

    def __init__(self, *, workers: int = 1) -> None: ...
    def poll(self, limit: int = 512) -> list[Event]:
        """Up to ``limit`` events, oldest first; re-arms ``event_fd``."""

    def shutdown(self, flush_ms: int = 500) -> None:
        """Flush queued signalling for at most ``flush_ms``, close everything, join the threads."""
    # -- TLS profiles ---------------------------------------------------------------------------
    def server_tls(
        self,
        *,
        chain_pem: bytes,
        key_pem: bytes,
        client_ca_pem: bytes | None = None,
        client_auth: str = "none",  # none | request | require
        alpn: Sequence[str] = ("opentsm/1",),
        tls12: bool = True,
    ) -> int: ...
    def client_tls(
        self,
        *,
        ca_pem: bytes | None = None,  # None: the system's store
        chain_pem: bytes | None = None,
        key_pem: bytes | None = None,
        alpn: Sequence[str] = ("opentsm/1",),
        tls12: bool = True,
        # SHA-256 of the server's leaf certificate (DER): accept this one only
        pin_sha256: bytes | None = None,
        verify: bool = True,
    ) -> int: ...
    # -- listeners and outgoing connections; the file descriptors become ours ---------------------
    def listen_stream(self, fds: Sequence[int], *, tls_profile: int | None, max_tunnels: int = 0) -> int:
        """Listening TCP sockets, one per worker (SO_REUSEPORT). Returns the listener id."""

    def listen_datagram(self, fds: Sequence[int], *, dtls: bool) -> int:
        """Bound UDP sockets, one per worker (SO_REUSEPORT). Returns the listener id."""

    def set_listener_tls(self, listener: int, tls_profile: int) -> None:
        """New connections use the new profile."""

    def unlisten(self, listener: int) -> None:
        """Stop accepting; tunnels already made stay."""

    def attach_stream(self, fd: int, *, tls_profile: int | None, server_name: str = "") -> int:
        """A connected (or connecting) TCP socket of ours; ends in StreamReady or TunnelClosed."""

    def attach_datagram(self, fd: int, *, dtls: bool, tsid: int, stream: int, rtt_hint_ms: int = 0) -> int:
        """A connected UDP socket of ours. The PSK is derived from ``stream``'s TLS session; it and
        DatagramReady.session are those of that stream's session (which must be attached)."""

    def reserve(self, *, stream: int, tsid: int, lifetime_ms: int) -> None:
        """Server: expect a DDT with this TSID for the session of ``stream``; key from its TLS session.
        A plain TCP stream reserves a plain UDP tunnel."""

    def unreserve(self, tsid: int) -> None: ...
    # -- sessions -------------------------------------------------------------------------------
    def session_open(
        self,
        session: int,
        *,
        role: str,  # "server": inner source must be one of addresses; "client": inner destination must
        addresses: Sequence[str],
        sink: str = "route",  # "local": UDP sockets of this process; "route": servers and TUN devices
        inter_client: bool = True,  # False: packets to other sessions are dropped (inter-client-block)
        upstream_rate: int = 0,  # bytes/s the client may send; 0 = unlimited (tscf-data-flow)
        downstream_rate: int = 0,
    ) -> None: ...
    def session_close(self, session: int) -> None:
        """Forget the session, its routes, rows, reservations and sockets; close its tunnels."""

    def attach(
        self,
        session: int,
        tunnel: int,
        tsid: int,
        *,
        fresh: bool = False,
        linger: bool = False,
        idle_ms: int = 0,
        keepalive_ms: int = 0,
        silent_after_ms: int = 0,
        media_age_ms: int | None = None,
    ) -> None:
        """The tunnel may carry the session's packets from now on, and control messages on it must
        bear ``tsid``. A session has at most one live tunnel of each kind; a newer one takes over and
        the older is closed with reason ``replaced``. ``fresh``: the peer has just begun and numbers its
        sequenced media from the start. ``linger``: the older one is sent on no more, but what is on its way
        on it is still taken until the caller closes it. The rest is as by ``set_idle``, ``set_keepalive``
        and ``set_media_age`` in the same call, where it is given."""

    def set_coding(
        self,
        session: int,
        *,
        factor: int = 0,
        fec: bool = False,
        compress: bool = False,
        take_recovery: bool = False,
        take_compressed: bool = False,
    ) -> None:
        """What is sent, and what of the peer's is taken, from now on: all that both have agreed on.
        ``factor`` recovery frames (0 to 2) go with each media datagram, made for bursts with ``fec``;
        ``compress`` leaves out the headers of busy UDP flows on both paths."""

    def coding_stats(self, session: int) -> dict[str, int]:
        """What the session's coding sends and has done: ``factor``, ``fec``, ``compress``, ``contexts_sent``,
        ``contexts_received``, ``copies_sent``, ``parities_sent``, ``recovered``, ``repaired``,
        ``copies_dropped``, ``compressed_sent``, ``compressed_received``, ``unknown_contexts``,
        ``recovery_bytes``, ``saved_bytes``."""

    def attach_extra(self, session: int, tunnel: int, tsid: int) -> None:
        """One more stream beside the main one may carry the session's media to us; control messages on it
        must bear ``tsid``. Ours goes by it after ``use_extra``."""

    def use_extra(self, session: int, tunnel: int, used: bool) -> None:
        """Whether our media goes by this further stream too (see ``set_spread``). OSError ENOBUFS: there are
        MAX_STREAMS already."""

    def set_spread(self, session: int, spread: int) -> None:
        """What becomes of media that goes by stream: 0 the main stream only, 1 a copy by each (fan-out),
        2 each in turn (load-balance)."""

    def set_breaker(self, session: int, datagram: bool, every_ms: int) -> None:
        """Circuit breaker of media by this path: one packet in so many milliseconds passes; 0: all pass."""

    def capture(self, session: int, path: str | None) -> None:
        """Write the session's inner packets to a pcap file (LINKTYPE_RAW); None stops."""
    # -- steering (mode: 0 stream, 1 datagram, 2 follow the path of the last packet received) -------
    def steer(
        self,
        session: int,
        *,
        protocol: int,
        port: int,
        ipv6: bool = False,
        far: tuple[str, int] | None = None,
        mode: int,
        media: bool = True,
    ) -> None: ...
    def unsteer(
        self,
        session: int,
        *,
        protocol: int,
        port: int,
        ipv6: bool = False,
        far: tuple[str, int] | None = None,
    ) -> None: ...
    def watch_media(
        self,
        session: int,
        *,
        signals: bool,
        datagram: bool,
        ports: Sequence[tuple[int, int]] = (),
        expedited: bool = False,
    ) -> None:
        """What to look for in the packets of a client's TUN device, beside RTP.

        ``signals``: report SIP about calls (UDP on any port, TCP on port 5060) with SignalSeen. ``ports``
        (first, last; at most 16 ranges) and, with ``expedited``, DSCP EF are media from the first packet on.
        ``datagram``: media that is found takes the datagram tunnel at once, if there is one.
        """
    # -- routing of inner packets on a server -----------------------------------------------------
    def route_tun(self, prefix_text: str, tun: int) -> None: ...
    def route_local(self, address: str) -> None:
        """An inner address of this process: UDP sockets may be bound to it; it answers ICMP echo."""

    def route_core(self, prefix_text: str) -> None:
        """Userspace core side: inner UDP to this prefix leaves by the process's own UDP sockets."""

    def rewrite(
        self, *, match: str, protocol: int, port: int, to: tuple[str, int] | None, allow: bool = True
    ) -> int:
        """Protocol policy: destination NAT (or, with allow=False, a drop) for inner packets to
        match/port (port 0 = any, protocol 0 = any); restored on the way back. Returns a rule id."""

    def unroute(self, prefix_text: str) -> None: ...
    def unrewrite(self, rule: int) -> None: ...
    def add_tun(self, fds: Sequence[int], *, session: int | None = None) -> int:
        """TUN queues (IFF_NO_PI). With a session (client), what is read goes into its tunnels."""

    def remove_tun(self, tun: int) -> None: ...
    # -- tunnels --------------------------------------------------------------------------------
    def send_control(self, tunnel: int, data: bytes) -> bool:
        """Queue one control message; False if the tunnel's signalling queue is full or it is gone."""

    def close(self, tunnel: int, *, reason: str = "local-close") -> None:
        """Flush what is queued (bounded), say goodbye, close. A TunnelClosed event follows."""

    def set_keepalive(
        self, tunnel: int, *, interval_ms: int, silent_after_ms: int = 0, size: int = 0
    ) -> None:
        """Probe with Keepalive Requests (timestamped); 0 stops. With ``silent_after_ms`` > 0 unanswered
        probes for that long give PathSilent. Probes (and so their answers) are padded to ``size`` bytes,
        at most 256."""

    def set_idle(self, tunnel: int, *, idle_ms: int) -> None:
        """Report silence with TunnelIdle; 0 stops."""

    def set_media_age(self, tunnel: int, *, max_ms: int) -> None:
        """Useful age of media queued on a stream; older media is dropped, oldest first."""
    def set_nagle(self, tunnel: int, nagle: bool) -> None:
        """Nagle's algorithm on a stream; off from the beginning."""
    # -- local inner UDP sockets --------------------------------------------------------------------
    def udp_open(self, *, session: int | None, address: str, port: int, queue: int = 256) -> tuple[int, int]:
        """Bind an inner UDP socket (port 0: pick one). Returns (socket, port)."""

    def udp_send(self, socket: int, data: bytes, address: str, port: int, tos: int = 0) -> str | None:
        """Send one inner datagram. None, or the name of the drop."""

    def udp_close(self, socket: int) -> None: ...
    # -- inner TCP ----------------------------------------------------------------------------------
    def tcp_listen(
        self, *, session: int | None, address: str, port: int, backlog: int = 128, mtu: int = 1400
    ) -> tuple[int, int]:
        """Accept inner TCP connections (port 0: pick one). Returns (listener, port). ``backlog`` bounds those
        half open or not yet told of; ``mtu`` is that of inner packets."""

    def tcp_unlisten(self, listener: int) -> None:
        """Accept no more; connections already told of stay."""

    def tcp_connect(
        self, *, session: int | None, local: tuple[str, int], remote: tuple[str, int], mtu: int = 1400
    ) -> int:
        """Begin to connect (local port 0: pick one); ends in TcpConnected or TcpClosed. Returns its id."""

    def tcp_send(self, connection: int, data: bytes) -> int:
        """Hand bytes over; how many were taken. Less than all: TcpWritable says when to go on. KeyError:
        the connection is over."""

    def tcp_consumed(self, connection: int, length: int) -> None:
        """The program has done with so many received bytes. Who does not say so gets no more after 64 KiB,
        and the peer's window closes."""

    def tcp_shutdown(self, connection: int) -> None:
        """Send no more: FIN after what is queued."""

    def tcp_close(self, connection: int) -> None:
        """Done with it: what is queued is sent, what comes is thrown away, no event follows."""

    def tcp_abort(self, connection: int) -> None:
        """End it with a reset; no event follows."""
    # -- media relay (embedded SBC) -------------------------------------------------------------------
    def relay_open(
        self,
        *,
        local_a: tuple[str, int],
        local_b: tuple[str, int],
        remote_a: tuple[str, int] | None,
        remote_b: tuple[str, int] | None,
        early_a: Sequence[str] = (),
        early_b: Sequence[str] = (),
        core_a: bool = False,
        core_b: bool = False,
        rtp: bool = True,
        rtcp: bool = False,
    ) -> int:
        """Join two inner ports of this process (on addresses given to ``route_local``): what party A sends
        to ``local_a`` goes on to party B from ``local_b``, and back. A remote is the negotiated party: its
        address must match; its port is learned from the first packet that comes from that address
        (symmetric RTP, RFC 4961). None: not known yet; then the first to speak of the (up to four) addresses
        in ``early`` counts as the party until an update names it, and packets of others are dropped by name.
        A ``core`` port is a UDP socket of the kernel's, read and written by the user plane. With ``rtp``
        sequence numbers and time stamps are followed for the statistics, with ``rtcp`` reports are read.
        Returns the relay id."""

    def relay_update(
        self,
        relay: int,
        *,
        remote_a: tuple[str, int] | None = None,
        remote_b: tuple[str, int] | None = None,
        follow: tuple[bool, bool] | None = None,
    ) -> None:
        """A new answer or offer: sets the parties that are given and forgets what was learned of them.
        ``follow``: ``rtp`` and ``rtcp`` of ``relay_open``, from now on."""

    def relay_close(self, relay: int) -> RelayStats:
        """End the relay; its last numbers."""

    def relay_stats(self, relay: int) -> RelayStats: ...
    # -- numbers ----------------------------------------------------------------------------------
    def tunnel_stats(self, tunnel: int) -> TunnelStats: ...
    def flow_stats(self, session: int) -> list[FlowStats]: ...
    def session_drops(self, session: int) -> dict[str, int]: ...
    def counters(self) -> dict[str, int]:
        """All named counters and drops of the engine, summed over workers; names as in docs/counters.md."""

version: str
