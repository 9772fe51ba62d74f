//! Numbers for Python.

use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;

use crate::tables::flows::{FlowKey, FlowRow};
use crate::tables::relays::{Leg, Relay};
use crate::tunnel::Tunnel;

/// Counters of one tunnel since it began.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
#[derive(Default)]
pub struct TunnelStats {
    datagram: bool,
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    rx_records: u64,
    tx_records: u64,
    rx_lost: u64,
    rx_missing: u64,
    rx_reordered: u64,
    rx_duplicates: u64,
    tx_dropped: u64,
    queue_bytes: u64,
    rtt_us: u64,
    rtt_var_us: u64,
    rtt_min_us: u64,
    keepalives_sent: u64,
    keepalives_answered: u64,
    last_rx_ms: u64,
    age_ms: u64,
    rx_jitter_us: u64,
    tcp_rtt_us: u32,
    tcp_retransmits: u32,
    tcp_unsent: u32,
    tcp_congestion: String,
}

impl TunnelStats {
    /// Read a tunnel's numbers.
    pub fn of(tunnel: &Tunnel, now_us: u64) -> Self {
        let mut stats = Self {
            datagram: tunnel.is_datagram(),
            rx_packets: tunnel.rx.packets.load(Relaxed),
            rx_bytes: tunnel.rx.bytes.load(Relaxed),
            tx_packets: tunnel.tx.packets.load(Relaxed),
            tx_bytes: tunnel.tx.bytes.load(Relaxed),
            rx_records: tunnel.rx.records.load(Relaxed),
            tx_records: tunnel.tx.records.load(Relaxed),
            tx_dropped: tunnel.tx_dropped.load(Relaxed),
            last_rx_ms: now_us.saturating_sub(tunnel.last_rx_us.load(Relaxed)) / 1_000,
            age_ms: now_us.saturating_sub(tunnel.born_us) / 1_000,
            ..Self::default()
        };
        stats.read_probe(tunnel);
        stats.read_stream(tunnel);
        stats.read_datagram(tunnel);
        stats
    }

    fn read_probe(&mut self, tunnel: &Tunnel) {
        let probe = tunnel.probe.lock();
        self.rtt_us = probe.rtt_us;
        self.rtt_var_us = probe.rtt_var_us;
        self.rtt_min_us = probe.rtt_min_us;
        self.rx_jitter_us = probe.jitter_us;
        self.keepalives_sent = probe.sent;
        self.keepalives_answered = probe.answered;
    }

    fn read_stream(&mut self, tunnel: &Tunnel) {
        let Some(link) = tunnel.stream() else { return };
        self.queue_bytes = link.egress.lock().bytes() as u64;
        // The lock keeps the owner from closing the descriptor while the kernel is asked about it.
        let fd = link.fd.lock();
        if let Some(fd) = *fd {
            let info = crate::sys::tcp_info(fd);
            self.tcp_rtt_us = info.rtt_us;
            self.tcp_retransmits = info.retransmits;
            self.tcp_unsent = info.unsent;
            self.tcp_congestion = crate::sys::congestion_control(fd);
        }
    }

    fn read_datagram(&mut self, tunnel: &Tunnel) {
        let Some(link) = tunnel.datagram() else {
            return;
        };
        if let Some(opener) = link.opener.lock().as_ref() {
            let counters = opener.counters();
            self.rx_lost = counters.lost;
            self.rx_missing = counters.missing;
            self.rx_reordered = counters.reordered;
            self.rx_duplicates = counters.duplicates;
        }
    }
}

/// One row of a session's steering table.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct FlowStats {
    protocol: u8,
    port: u16,
    ipv6: bool,
    far: Option<(String, u16)>,
    mode: u8,
    media: bool,
    tx_stream: u64,
    tx_datagram: u64,
    rx_stream: u64,
    rx_datagram: u64,
}

impl From<(FlowKey, FlowRow)> for FlowStats {
    fn from((key, row): (FlowKey, FlowRow)) -> Self {
        Self {
            protocol: key.protocol,
            port: key.port,
            ipv6: key.v6,
            far: key.far.map(|(ip, port)| (ip.to_string(), port)),
            mode: row.mode.number(),
            media: row.media,
            tx_stream: row.sent[0],
            tx_datagram: row.sent[1],
            rx_stream: row.received[0],
            rx_datagram: row.received[1],
        }
    }
}

/// What one party of a relay has sent us.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct RelayLegStats {
    packets: u64,
    bytes: u64,
    dropped: u64,
    wrong: u64,
    stranger: Option<(String, u16)>,
    lost: u64,
    expected: u64,
    jitter_us: u64,
    by_datagram: u64,
    learned: Option<(String, u16)>,
    idle_ms: u64,
    rtcp_packets: u64,
    report_blocks: u64,
    reported_fraction: u8,
    reported_lost: i32,
    reported_jitter: u32,
    rtt_us: u64,
}

impl RelayLegStats {
    fn of(leg: &Leg, now_us: u64) -> Self {
        let reception = &leg.reception;
        Self {
            packets: reception.packets,
            bytes: reception.bytes,
            dropped: leg.dropped,
            wrong: leg.wrong,
            stranger: leg.stranger.map(super::events::address),
            lost: reception.lost(),
            expected: reception.expected(),
            jitter_us: reception.jitter_us(),
            by_datagram: reception.by_datagram,
            learned: leg.learned.map(super::events::address),
            idle_ms: now_us.saturating_sub(reception.last_us) / 1_000,
            rtcp_packets: leg.reports.packets,
            report_blocks: leg.reports.blocks,
            reported_fraction: leg.reports.fraction,
            reported_lost: leg.reports.lost,
            reported_jitter: leg.reports.jitter,
            rtt_us: leg.reports.rtt_us,
        }
    }
}

/// Numbers of both parties of a relay.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct RelayStats {
    a: Py<RelayLegStats>,
    b: Py<RelayLegStats>,
}

impl RelayStats {
    /// Read a relay's numbers.
    pub fn of(py: Python<'_>, relay: &Relay, now_us: u64) -> PyResult<Self> {
        let [a, b] = relay.legs();
        Ok(Self {
            a: Py::new(py, RelayLegStats::of(&a, now_us))?,
            b: Py::new(py, RelayLegStats::of(&b, now_us))?,
        })
    }
}
