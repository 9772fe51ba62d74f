//! One outer connection, as every thread sees it: what is needed to send on it, and its numbers.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::crypto::{DatagramOpener, DatagramSealer};
use crate::egress::Egress;
use crate::frame::UNASSIGNED_TSID;
use crate::limits::{DATAGRAM_MTU, MAX_JITTER_US, MAX_PROBES, MEDIA_AGE_MS};
use crate::sys::prefetch;
use crate::tables::Session;
use crate::tables::doubt::{Rhythm, Times};

/// A tunnel's id carries the worker that owns its socket in the low byte.
pub fn worker_of(id: u64) -> usize {
    (id & 0xff) as usize
}

/// Packet counters of one direction.
#[derive(Debug, Default)]
pub struct Traffic {
    pub packets: AtomicU64,
    pub bytes: AtomicU64,
    pub records: AtomicU64,
}

impl Traffic {
    #[inline]
    pub fn count(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Keepalive probing (RTT after RFC 6298) of one tunnel.
#[derive(Debug, Default)]
pub struct Probe {
    next_sequence: u32,
    outstanding: Vec<(u32, u64)>,
    pub rtt_us: u64,
    pub rtt_var_us: u64,
    pub rtt_min_us: u64,
    pub sent: u64,
    pub answered: u64,
    pub last_answer_us: u64,
    /// How unevenly the peer's probes come (RFC 3550 section 6.4.1): the variation of the way to us alone.
    pub jitter_us: u64,
    last_transit_us: Option<u64>,
    /// When the oldest probe went out that nothing has been heard since.
    pub waiting_since_us: Option<u64>,
}

impl Probe {
    /// A probe goes out now; returns its number.
    pub fn send(&mut self, now_us: u64) -> u32 {
        self.next_sequence = self.next_sequence.wrapping_add(1);
        if self.outstanding.len() >= MAX_PROBES {
            self.outstanding.remove(0);
        }
        self.outstanding.push((self.next_sequence, now_us));
        self.sent += 1;
        self.waiting_since_us.get_or_insert(now_us);
        self.next_sequence
    }

    /// How long our probes have met silence; zero if something was heard since the oldest went out. When the
    /// peer says that it does not hear us (`accused`), only answers count: the other direction may be well.
    pub fn silence(&mut self, last_rx_us: u64, accused: bool, now_us: u64) -> u64 {
        let last_rx_us = if accused { self.last_answer_us } else { last_rx_us };
        if self.waiting_since_us.is_some_and(|since| last_rx_us >= since) {
            self.waiting_since_us = None;
        }
        self.waiting_since_us.map_or(0, |since| now_us.saturating_sub(since))
    }

    /// A probe of the peer's has come. Its time is of another clock, but the difference of two differences is not.
    pub fn came(&mut self, sent_us: u64, now_us: u64) {
        let transit = now_us.wrapping_sub(sent_us);
        if let Some(last) = self.last_transit_us.replace(transit) {
            let change = transit.wrapping_sub(last).min(last.wrapping_sub(transit));
            self.jitter_us = (15 * self.jitter_us + change.min(MAX_JITTER_US)) / 16;
        }
    }

    /// The answer to a probe; false if it is to none of ours.
    pub fn answered(&mut self, sequence: u32, now_us: u64) -> bool {
        let Some(at) = self.outstanding.iter().position(|(s, _)| *s == sequence) else {
            return false;
        };
        let (_, sent) = self.outstanding.remove(at);
        let sample = now_us.saturating_sub(sent);
        self.rtt_min_us = if self.answered == 0 { sample } else { self.rtt_min_us.min(sample) };
        if self.answered == 0 {
            (self.rtt_us, self.rtt_var_us) = (sample, sample / 2);
        } else {
            self.rtt_var_us = (3 * self.rtt_var_us + self.rtt_us.abs_diff(sample)) / 4;
            self.rtt_us = (7 * self.rtt_us + sample) / 8;
        }
        self.answered += 1;
        self.last_answer_us = now_us;
        true
    }
}

/// What the control plane asked for; zero is off.
#[derive(Debug, Default)]
pub struct Wishes {
    pub keepalive_ms: AtomicU32,
    pub silent_ms: AtomicU32,
    /// Bytes of a probe; zero: as few as there can be.
    pub probe_size: AtomicU32,
    pub idle_ms: AtomicU32,
    pub media_age_ms: AtomicU64,
    /// When the next probe is due; zero: none. A timer entry that finds another time here is of the past.
    pub keepalive_next_us: AtomicU64,
    /// A timer entry stands for the wish already.
    pub idle_armed: AtomicBool,
}

/// The stream half of a link.
#[derive(Debug, Default)]
pub struct StreamLink {
    pub egress: Mutex<Egress>,
    /// In the owner's list of streams to flush already.
    pub dirty: AtomicBool,
    /// Root of the keys of this connection's datagram tunnels; unset on plain TCP.
    pub ddt_root: OnceLock<Zeroizing<[u8; 32]>>,
    /// The socket is up: keys are there or not needed.
    pub ready: AtomicBool,
    /// For TCP_INFO; -1 once closed.
    pub fd: Mutex<Option<RawFd>>,
}

/// Which socket a datagram tunnel sends with.
#[derive(Debug)]
pub struct Outlet {
    /// A listener's sockets, one per worker, all bound to the same port; or one socket connected to the server.
    pub sockets: Arc<Vec<OwnedFd>>,
    /// The sockets are shared: each datagram needs its address.
    pub addressed: bool,
}

/// The datagram half of a link.
#[derive(Debug)]
pub struct DatagramLink {
    /// None: plain UDP.
    pub sealer: Option<DatagramSealer>,
    pub opener: Mutex<Option<DatagramOpener>>,
    pub outlet: Outlet,
    /// When inner packets last came and went: the reflex's evidence.
    pub media_rx_us: AtomicU64,
    pub media_tx_us: AtomicU64,
    /// When anything last went out.
    pub sent_us: AtomicU64,
    /// How regularly media comes.
    pub rhythm: Rhythm,
    /// A timer looks after this path.
    pub watched: AtomicBool,
}

impl DatagramLink {
    pub fn new(sealer: Option<DatagramSealer>, opener: Option<DatagramOpener>, outlet: Outlet) -> Self {
        Self {
            sealer,
            opener: Mutex::new(opener),
            outlet,
            media_rx_us: AtomicU64::new(0),
            media_tx_us: AtomicU64::new(0),
            sent_us: AtomicU64::new(0),
            rhythm: Rhythm::default(),
            watched: AtomicBool::new(false),
        }
    }

    /// An inner packet came.
    #[inline]
    pub fn media_came(&self, now_us: u64) {
        let before = self.media_rx_us.swap(now_us, Ordering::Relaxed);
        self.rhythm.note(now_us.saturating_sub(before));
    }

    /// What the reflex looks at.
    pub fn times(&self, heard_us: u64) -> Times {
        Times {
            heard_us,
            media_rx_us: self.media_rx_us.load(Ordering::Relaxed),
            media_tx_us: self.media_tx_us.load(Ordering::Relaxed),
            sent_us: self.sent_us.load(Ordering::Relaxed),
            suspicion_us: self.rhythm.suspicion_us(),
        }
    }

    /// The socket to send with from this worker, and whether an address has to be given.
    #[inline]
    pub fn socket(&self, worker: usize) -> Option<(RawFd, bool)> {
        let sockets = &self.outlet.sockets;
        let fd = sockets.get(worker % sockets.len().max(1))?;
        Some((fd.as_raw_fd(), self.outlet.addressed))
    }

    /// Plain bytes that fit a datagram.
    #[inline]
    pub fn room(&self) -> usize {
        DATAGRAM_MTU - self.sealer.as_ref().map_or(0, DatagramSealer::overhead)
    }
}

/// The kind of a tunnel with what only that kind has.
#[derive(Debug)]
pub enum Link {
    Stream(StreamLink),
    Datagram(Box<DatagramLink>),
}

/// One outer connection.
#[derive(Debug)]
pub struct Tunnel {
    pub id: u64,
    pub listener: Option<u64>,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub link: Link,
    pub rx: Traffic,
    pub tx: Traffic,
    pub tx_dropped: AtomicU64,
    pub wishes: Wishes,
    pub probe: Mutex<Probe>,
    pub born_us: u64,
    pub last_rx_us: AtomicU64,
    /// Reported silent; the next answer to a probe is news.
    pub silent: AtomicBool,
    tsid: AtomicU64,
    session: ArcSwapOption<Session>,
}

impl Tunnel {
    pub fn new(
        id: u64,
        listener: Option<u64>,
        peer: SocketAddr,
        local: SocketAddr,
        link: Link,
        now_us: u64,
    ) -> Self {
        let wishes = Wishes::default();
        wishes.media_age_ms.store(MEDIA_AGE_MS, Ordering::Relaxed);
        Self {
            id,
            listener,
            peer,
            local,
            link,
            rx: Traffic::default(),
            tx: Traffic::default(),
            tx_dropped: AtomicU64::new(0),
            wishes,
            probe: Mutex::new(Probe::default()),
            born_us: now_us,
            last_rx_us: AtomicU64::new(now_us),
            silent: AtomicBool::new(false),
            tsid: AtomicU64::new(UNASSIGNED_TSID),
            session: ArcSwapOption::empty(),
        }
    }

    pub fn is_datagram(&self) -> bool {
        matches!(self.link, Link::Datagram(_))
    }

    pub fn worker(&self) -> usize {
        worker_of(self.id)
    }

    pub fn stream(&self) -> Option<&StreamLink> {
        match &self.link {
            Link::Stream(link) => Some(link),
            Link::Datagram(_) => None,
        }
    }

    pub fn datagram(&self) -> Option<&DatagramLink> {
        match &self.link {
            Link::Datagram(link) => Some(link),
            Link::Stream(_) => None,
        }
    }

    #[inline]
    pub fn tsid(&self) -> u64 {
        self.tsid.load(Ordering::Acquire)
    }

    /// Control messages must bear this id from now on.
    pub fn set_tsid(&self, tsid: u64) {
        self.tsid.store(tsid, Ordering::Release);
    }

    /// The session whose packets this tunnel may carry.
    #[inline]
    pub fn session(&self) -> arc_swap::Guard<Option<Arc<Session>>> {
        self.session.load()
    }

    pub fn set_session(&self, session: Option<Arc<Session>>) {
        self.session.store(session);
    }

    /// Ask for what a record that has come on this tunnel will need. The tunnel should be at hand already.
    pub fn warm_for_receiving(&self) {
        if let Link::Datagram(link) = &self.link {
            prefetch(&link.opener);
            prefetch(&link.media_rx_us);
            prefetch(&link.rhythm);
        }
        if let Some(session) = self.session().as_ref() {
            session.warm();
        }
    }

    /// Ask for what a packet that leaves by this tunnel will need. The tunnel should be at hand already.
    pub fn warm_for_sending(&self) {
        if let Link::Datagram(link) = &self.link {
            prefetch(&link.sealer);
            prefetch(&link.outlet);
            prefetch(&link.media_tx_us);
        }
    }

    /// Authentic bytes came in.
    #[inline]
    pub fn heard(&self, now_us: u64) {
        self.last_rx_us.store(now_us, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_times_are_smoothed() {
        let mut probe = Probe::default();
        let first = probe.send(1_000);
        assert!(probe.answered(first, 41_000) && !probe.answered(first, 41_000));
        assert_eq!((probe.rtt_us, probe.rtt_var_us, probe.rtt_min_us), (40_000, 20_000, 40_000));
        let second = probe.send(100_000);
        assert!(probe.answered(second, 180_000));
        assert_eq!((probe.rtt_us, probe.rtt_min_us), (45_000, 40_000));
    }

    #[test]
    fn the_variation_of_one_way_is_that_of_the_peers_probes_whatever_its_clock() {
        let (mut even, mut uneven, mut hostile) = (Probe::default(), Probe::default(), Probe::default());
        for number in 0..200u64 {
            let sent = u64::MAX - 50_000_000 + number * 20_000;
            let now = 7_000 + number * 20_000;
            even.came(sent, now);
            uneven.came(sent, now + number % 2 * 10_000);
            hostile.came(if number % 2 == 0 { 0 } else { u64::MAX / 2 }, now);
        }
        assert_eq!(even.jitter_us, 0);
        assert!((9_900..=10_000).contains(&uneven.jitter_us), "{}", uneven.jitter_us);
        assert!(hostile.jitter_us <= MAX_JITTER_US);
    }

    #[test]
    fn unanswered_probes_are_bounded_and_the_oldest_is_forgotten() {
        let mut probe = Probe::default();
        let first = probe.send(1);
        for at in 0..MAX_PROBES as u64 {
            probe.send(at + 2);
        }
        assert!(!probe.answered(first, 100));
        assert_eq!(probe.outstanding.len(), MAX_PROBES);
        assert_eq!(probe.waiting_since_us, Some(1));
    }
}
