//! Named counters. Every drop has a name here; docs/counters.md explains each one.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)+) => {
        /// A counter; its name is what operators see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)+ }

        impl Counter {
            /// All counters, in the order of their discriminants.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)+];

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)+ }
            }
        }
    };
}

counters! {
    /// Inner packets received in tunnels and accepted.
    InnerRx => "inner_rx",
    /// Inner packets sent into tunnels.
    InnerTx => "inner_tx",
    /// Inner packets written to TUN devices.
    TunTx => "tun_tx",
    /// Writes to TUN devices that held several packets each.
    TunRuns => "tun_runs",
    /// Inner packets read from TUN devices.
    TunRx => "tun_rx",
    StreamsAccepted => "streams_accepted",
    StreamsReady => "streams_ready",
    StreamsClosed => "streams_closed",
    DatagramsReady => "datagrams_ready",
    DatagramsClosed => "datagrams_closed",
    CookiesSent => "dtls_cookies_sent",
    KeepalivesAnswered => "keepalives_answered",
    ControlRx => "control_rx",
    ControlTx => "control_tx",
    TlsHandshakeFailed => "tls_handshake_failed",
    TlsRecordBad => "tls_record_bad",
    DtlsHandshakeFailed => "dtls_handshake_failed",
    HandshakeTimeout => "handshake_timeout",
    HandshakesFull => "drop_handshakes_full",
    TunnelsFull => "drop_tunnels_full",
    AcceptFailed => "drop_accept_failed",
    /// Connections turned away, and sockets not made, because this process may have no more descriptors.
    NoDescriptor => "drop_no_descriptor",
    /// A datagram that is neither ours nor the beginning of a handshake.
    StrayDatagram => "drop_stray_datagram",
    DatagramTruncated => "drop_datagram_truncated",
    RecordBadTag => "drop_record_bad_tag",
    RecordReplay => "drop_record_replay",
    RecordMalformed => "drop_record_malformed",
    FrameMalformed => "drop_frame_malformed",
    FrameReserved => "drop_frame_reserved",
    FrameOversized => "drop_frame_oversized",
    ControlMalformed => "drop_control_malformed",
    ControlWrongTsid => "drop_control_wrong_tsid",
    ControlQueueFull => "drop_control_queue_full",
    InnerMalformed => "drop_inner_malformed",
    InnerNotAttached => "drop_inner_not_attached",
    InnerSpoofedSource => "drop_inner_spoofed_source",
    InnerWrongDestination => "drop_inner_wrong_destination",
    InnerNoRoute => "drop_inner_no_route",
    InnerNoPath => "drop_inner_no_path",
    InnerTooBig => "drop_inner_too_big",
    InnerClientBlocked => "drop_inner_client_block",
    InnerPolicyDenied => "drop_inner_policy_denied",
    InnerRateLimited => "drop_inner_rate_limited",
    FlowTableFull => "drop_flow_table_full",
    NatTableFull => "drop_nat_table_full",
    StreamQueueFull => "drop_stream_queue_full",
    MediaStale => "drop_media_stale",
    MediaQueueFull => "drop_media_queue_full",
    TunFull => "drop_tun_full",
    /// Packets from the core side that found no room in the queue of a server's TUN device.
    TunQueueFull => "drop_tun_queue_full",
    /// Datagrams that found no room in a socket's buffer.
    ReceiveQueueFull => "drop_receive_queue_full",
    SendFailed => "drop_send_failed",
    SendWouldBlock => "drop_send_would_block",
    KeyLimit => "drop_key_limit",
    SocketUnbound => "drop_socket_unbound",
    SocketQueueFull => "drop_socket_queue_full",
    SocketBadChecksum => "drop_socket_bad_checksum",
    /// Inner TCP connections that peers have opened to us.
    TcpAccepted => "tcp_accepted",
    /// Segments for a port nobody listens on, answered by RST.
    TcpRefused => "tcp_refused",
    /// Connections given up because the TCP library failed on them; always a bug.
    TcpFault => "tcp_faults",
    TcpMalformed => "drop_tcp_malformed",
    TcpBadChecksum => "drop_tcp_bad_checksum",
    TcpFragment => "drop_tcp_fragment",
    TcpQueueFull => "drop_tcp_queue_full",
    TcpBacklogFull => "drop_tcp_backlog_full",
    TcpPeerFull => "drop_tcp_peer_full",
    TcpConnectionsFull => "drop_tcp_connections_full",
    CoreSocketsFull => "drop_core_sockets_full",
    CoreUnsupported => "drop_core_unsupported",
    CoreUnsolicited => "drop_core_unsolicited",
    /// Media for a relay port from somebody who is not the negotiated party.
    RelayWrongSource => "drop_relay_wrong_source",
    RelayNoParty => "drop_relay_no_party",
    Relayed => "relayed",
    /// Media sent by both paths because the datagram path was in doubt.
    MediaDoubled => "media_doubled",
    /// Media of which each stream of its session got a copy.
    MediaFannedOut => "media_fanned_out",
    /// Media that the circuit breaker held back.
    MediaBreaker => "drop_media_breaker",
    /// Second copies of media sent twice, dropped as meant.
    CopyDropped => "copies_dropped",
    /// Messages about calls that were not looked at, because there were too many.
    SignalUnread => "signals_unread",
    /// Recovery frames sent: copies and parity of earlier frames.
    RecoverySent => "recovery_sent",
    /// Recovery frames not sent because the datagram had no room, or the frame was too large to be repeated.
    RecoveryNoRoom => "recovery_no_room",
    /// Lost media that came back as a copy.
    MediaRecovered => "media_recovered",
    /// Lost media that was computed from parity.
    MediaRepaired => "media_repaired",
    /// Parity that could not help, because more than one of its frames was missing.
    RecoveryShort => "recovery_short",
    /// Packets sent without their headers.
    HeadersCompressed => "headers_compressed",
    /// Packets sent plain for want of a free context.
    ContextsFull => "contexts_full",
    /// Packets without headers whose context was lost or never came.
    ContextUnknown => "drop_context_unknown",
    /// Coded frames of a peer with whom they are not agreed.
    CodingNotAgreed => "drop_coding_not_agreed",
    CodingMalformed => "drop_coding_malformed",
    PathAlertSent => "path_alerts_sent",
    PathAlertHeard => "path_alerts_heard",
    /// Sent instead of media while it pauses.
    PathPulseSent => "path_pulses_sent",
    CaptureFull => "drop_capture_full",
    EventQueueFull => "drop_event_queue_full",
}

/// One thread's counters. Each thread writes its own set, readers add them up, so that counting is a
/// plain store and never a contended one.
#[derive(Debug)]
pub struct CounterSet {
    values: Vec<AtomicU64>,
}

impl Default for CounterSet {
    fn default() -> Self {
        Self { values: Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect() }
    }
}

impl CounterSet {
    /// Count one.
    #[inline]
    pub fn add(&self, counter: Counter) {
        self.add_n(counter, 1);
    }

    /// Count several.
    #[inline]
    pub fn add_n(&self, counter: Counter, n: u64) {
        if let Some(value) = self.values.get(counter as usize) {
            // One writer: a locked addition would cost twenty times as much, and make memory wait.
            value.store(value.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// The present value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values.get(counter as usize).map_or(0, |v| v.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_match_their_places() {
        let mut names: Vec<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::ALL.len());
        assert!(Counter::ALL.iter().enumerate().all(|(i, c)| *c as usize == i));
    }
}
