//! A session: one client's inner addresses and the tunnels that carry its packets.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::detect::Detector;
use super::doubt::Doubt;
use super::flows::FlowTable;
use super::gate::Gate;
use super::signals::Signals;
use super::strands::{Spread, Strands};
use crate::capture::Capture;
use crate::coding::Coding;
use crate::sys::prefetch;
use crate::tunnel::Tunnel;

/// Which end of the tunnel this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Packets out of the tunnel must come from the session's addresses.
    Server,
    /// Packets out of the tunnel must be for the session's addresses.
    Client,
}

/// Where packets out of the tunnel go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// The routing table: a server's, or the one that leads to a client's TUN device.
    Route,
    /// UDP sockets of this process that belong to the session.
    Local,
}

/// A token bucket in bytes: `rate` per second, one quarter of a second's worth (at least two full
/// packets) of burst.
#[derive(Debug)]
pub struct Policer {
    rate: u64,
    state: Mutex<(u64, u64)>,
}

impl Policer {
    /// `rate` in bytes per second.
    pub fn new(rate: u64) -> Self {
        Self { rate, state: Mutex::new((Self::burst(rate), 0)) }
    }

    fn burst(rate: u64) -> u64 {
        (rate / 4).max(3_000)
    }

    /// Whether `bytes` may pass at `now` (microseconds).
    pub fn admit(&self, bytes: usize, now: u64) -> bool {
        let mut state = self.state.lock();
        let (tokens, last) = *state;
        let earned = (u128::from(now.saturating_sub(last)) * u128::from(self.rate) / 1_000_000) as u64;
        let tokens = tokens.saturating_add(earned).min(Self::burst(self.rate));
        // Time below one byte's worth is kept for the next call.
        let last = if earned > 0 { now } else { last };
        let pass = tokens >= bytes as u64;
        *state = (if pass { tokens - bytes as u64 } else { tokens }, last);
        pass
    }
}

/// Drops charged to one session; the engine's counters have them too.
#[derive(Debug, Default)]
pub struct SessionDrops {
    pub spoofed_source: AtomicU64,
    pub wrong_destination: AtomicU64,
    pub rate_limited: AtomicU64,
    pub no_path: AtomicU64,
    /// For a port of the server's own where nothing listens.
    pub unbound: AtomicU64,
}

/// One client, as the packets see it.
#[derive(Debug)]
pub struct Session {
    pub id: u64,
    pub role: Role,
    pub addresses: Vec<IpAddr>,
    pub sink: Sink,
    pub inter_client: bool,
    pub upstream: Option<Policer>,
    pub downstream: Option<Policer>,
    pub flows: FlowTable,
    pub doubt: Doubt,
    /// Redundancy, FEC and header compression, as far as agreed with the peer.
    pub coding: Coding,
    /// Streams beside the main one.
    pub strands: Strands,
    /// Circuit breaker of media by stream and by datagram.
    gates: [Gate; 2],
    /// Looks for media in what a TUN device sends.
    pub detector: Detector,
    /// Looks for SIP in what passes a TUN device.
    pub signals: Signals,
    pub drops: SessionDrops,
    stream: ArcSwapOption<Tunnel>,
    datagram: ArcSwapOption<Tunnel>,
    pub capture: ArcSwapOption<Capture>,
}

impl Session {
    /// A session without tunnels.
    pub fn new(id: u64, role: Role, addresses: Vec<IpAddr>, sink: Sink) -> Self {
        Self {
            id,
            role,
            addresses,
            sink,
            inter_client: true,
            upstream: None,
            downstream: None,
            flows: FlowTable::default(),
            doubt: Doubt::default(),
            coding: Coding::default(),
            strands: Strands::default(),
            gates: Default::default(),
            detector: Detector::default(),
            signals: Signals::default(),
            drops: SessionDrops::default(),
            stream: ArcSwapOption::empty(),
            datagram: ArcSwapOption::empty(),
            capture: ArcSwapOption::empty(),
        }
    }

    #[inline]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The live tunnel of a kind.
    #[inline]
    pub fn tunnel(&self, datagram: bool) -> Option<Arc<Tunnel>> {
        self.slot(datagram).load_full()
    }

    /// Make `tunnel` the live one of its kind; returns the one it replaces.
    pub fn attach(&self, tunnel: &Arc<Tunnel>) -> Option<Arc<Tunnel>> {
        let old = self.slot(tunnel.is_datagram()).swap(Some(Arc::clone(tunnel)));
        old.filter(|old| !Arc::ptr_eq(old, tunnel))
    }

    /// Forget `tunnel` if it is the live one.
    pub fn detach(&self, tunnel: &Arc<Tunnel>) {
        self.strands.remove(tunnel);
        let slot = self.slot(tunnel.is_datagram());
        let current = slot.load();
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(c, tunnel)) {
            slot.compare_and_swap(&*current, None);
        }
    }

    /// The tunnel that media will take, by all likelihood.
    pub fn way_out(&self) -> arc_swap::Guard<Option<Arc<Tunnel>>> {
        let datagram = self.datagram.load();
        if datagram.is_some() { datagram } else { self.stream.load() }
    }

    /// Ask for what a packet of this session touches.
    pub fn warm(&self) {
        prefetch(&self.addresses);
        prefetch(&self.upstream);
        prefetch(&self.downstream);
        prefetch(&self.flows);
        prefetch(&self.gates);
        prefetch(&self.strands);
        prefetch(&self.datagram);
        prefetch(&self.role);
        self.coding.warm();
        self.doubt.warm();
    }

    /// The main stream, or one of the others while it is being remade.
    #[inline]
    pub fn any_stream(&self) -> Option<Arc<Tunnel>> {
        self.tunnel(false).or_else(|| self.strands.extras().first().cloned())
    }

    /// The stream that a packet takes: the main one, or for media each in its turn where that is wished.
    #[inline]
    pub fn stream_for(&self, media: bool) -> Option<Arc<Tunnel>> {
        if media && self.strands.spread() == Spread::LoadBalance {
            return self.strands.pick(self.tunnel(false).as_ref());
        }
        self.any_stream()
    }

    /// The circuit breaker of media by this path.
    #[inline]
    pub fn gate(&self, datagram: bool) -> &Gate {
        let [stream, by_datagram] = &self.gates;
        if datagram { by_datagram } else { stream }
    }

    fn slot(&self, datagram: bool) -> &ArcSwapOption<Tunnel> {
        if datagram { &self.datagram } else { &self.stream }
    }

    /// Named drops, for the operator.
    pub fn drop_counts(&self) -> [(&'static str, u64); 5] {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        [
            ("drop_inner_spoofed_source", read(&self.drops.spoofed_source)),
            ("drop_inner_wrong_destination", read(&self.drops.wrong_destination)),
            ("drop_inner_rate_limited", read(&self.drops.rate_limited)),
            ("drop_inner_no_path", read(&self.drops.no_path)),
            ("drop_socket_unbound", read(&self.drops.unbound)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policer_passes_its_rate_and_no_more() {
        let policer = Policer::new(100_000);
        let mut passed = 0;
        for step in 0..10_000u64 {
            passed += u64::from(policer.admit(200, 1 + step * 1_000)) * 200;
        }
        let allowed = 100_000 * 10 + 25_000;
        assert!(passed <= allowed && passed > allowed - 26_000, "{passed}");
    }

    #[test]
    fn a_slow_policer_still_earns_between_quick_calls() {
        let policer = Policer::new(1_000);
        assert!(policer.admit(3_000, 0));
        assert!(!(1..=900_000u64).step_by(100).any(|now| policer.admit(1_000, now)));
        assert!(policer.admit(1_000, 1_100_000));
    }
}
