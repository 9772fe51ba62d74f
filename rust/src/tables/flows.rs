//! The steering table of one session: which path each of its flows takes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::RandomState;
use parking_lot::Mutex;

use crate::limits::MAX_FLOWS;
use crate::packet::Meta;

/// Where a flow is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMode {
    Stream,
    Datagram,
    /// The path on which the flow's last packet came.
    Follow,
}

impl PathMode {
    /// The number used on the boundary.
    pub fn from_number(n: u8) -> Option<PathMode> {
        match n {
            0 => Some(PathMode::Stream),
            1 => Some(PathMode::Datagram),
            2 => Some(PathMode::Follow),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            PathMode::Stream => 0,
            PathMode::Datagram => 1,
            PathMode::Follow => 2,
        }
    }
}

/// Which way a packet goes, seen from the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the tunnel.
    Received,
    /// Into the tunnel.
    Sent,
}

/// A flow: (protocol, family, client port[, far end]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub protocol: u8,
    pub v6: bool,
    pub port: u16,
    pub far: Option<(IpAddr, u16)>,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct FlowRow {
    pub mode: PathMode,
    /// Written by the control plane; rows the packets made may be forgotten for new ones.
    pub explicit: bool,
    pub media: bool,
    pub last_datagram: bool,
    pub sent: [u64; 2],
    pub received: [u64; 2],
}

impl FlowRow {
    fn new(mode: PathMode, media: bool, explicit: bool) -> Self {
        Self { mode, explicit, media, last_datagram: false, sent: [0; 2], received: [0; 2] }
    }

    fn wants_datagram(&self) -> bool {
        match self.mode {
            PathMode::Stream => false,
            PathMode::Datagram => true,
            PathMode::Follow => self.last_datagram,
        }
    }
}

/// What the table says of a packet about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub datagram: bool,
    pub media: bool,
}

#[derive(Debug, Default)]
struct Rows {
    map: HashMap<FlowKey, FlowRow, RandomState>,
    /// Rows with a far end; zero spares every packet a second look-up.
    exact: usize,
}

/// Rows behind one short lock; the count outside it lets sessions without rows skip the lock.
#[derive(Debug, Default)]
pub struct FlowTable {
    rows: Mutex<Rows>,
    count: AtomicUsize,
}

impl FlowTable {
    /// Set the mode of a flow. False if the table is full.
    pub fn set(&self, key: FlowKey, mode: PathMode, media: bool) -> bool {
        let mut rows = self.rows.lock();
        if let Some(row) = rows.map.get_mut(&key) {
            row.mode = mode;
            row.media = media;
            row.explicit = true;
            return true;
        }
        if rows.map.len() >= MAX_FLOWS {
            return false;
        }
        rows.exact += usize::from(key.far.is_some());
        rows.map.insert(key, FlowRow::new(mode, media, true));
        self.count.store(rows.map.len(), Ordering::Release);
        true
    }

    /// Begin a row for a flow that packets show to be media, unless there is one or no room.
    pub fn introduce(&self, key: FlowKey, mode: PathMode) {
        let mut rows = self.rows.lock();
        if rows.map.len() < MAX_FLOWS && !rows.map.contains_key(&key) {
            rows.exact += usize::from(key.far.is_some());
            rows.map.insert(key, FlowRow::new(mode, true, false));
            self.count.store(rows.map.len(), Ordering::Release);
        }
    }

    /// Forget a flow.
    pub fn unset(&self, key: &FlowKey) {
        let mut rows = self.rows.lock();
        if rows.map.remove(key).is_some() {
            rows.exact -= usize::from(key.far.is_some());
            self.count.store(rows.map.len(), Ordering::Release);
        }
    }

    /// All rows, for statistics.
    pub fn snapshot(&self) -> Vec<(FlowKey, FlowRow)> {
        self.rows.lock().map.iter().map(|(k, r)| (*k, *r)).collect()
    }

    /// Which path a packet into the tunnel takes; `datagram_up` says whether there is a choice. Counts it.
    #[inline]
    pub fn choose(&self, meta: &Meta, client_is_source: bool, datagram_up: bool) -> Option<Verdict> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut rows = self.rows.lock();
        let row = rows.find(meta, client_is_source)?;
        let datagram = datagram_up && row.wants_datagram();
        row.sent[usize::from(datagram)] += 1;
        Some(Verdict { datagram, media: row.media })
    }

    /// A packet of this flow came out of the tunnel. With `learn`, a media packet that came by datagram
    /// makes a row of its own, so that its answers follow. False if a row was wanted and there is no room.
    #[inline]
    pub fn note_received(&self, meta: &Meta, client_is_source: bool, datagram: bool, learn: bool) -> bool {
        let learn = learn && datagram && meta.source_port != 0;
        if !learn && self.count.load(Ordering::Acquire) == 0 {
            return true;
        }
        let mut rows = self.rows.lock();
        if let Some(row) = rows.find(meta, client_is_source) {
            row.received[usize::from(datagram)] += 1;
            row.last_datagram = datagram;
            return true;
        }
        if !learn {
            return true;
        }
        if rows.map.len() >= MAX_FLOWS && !rows.forget_learned() {
            return false;
        }
        let mut row = FlowRow::new(PathMode::Follow, true, false);
        row.last_datagram = true;
        row.received[1] = 1;
        rows.map.insert(key_of(meta, client_is_source, false), row);
        self.count.store(rows.map.len(), Ordering::Release);
        true
    }
}

impl Rows {
    fn find(&mut self, meta: &Meta, client_is_source: bool) -> Option<&mut FlowRow> {
        if self.exact > 0 {
            let exact = key_of(meta, client_is_source, true);
            if self.map.contains_key(&exact) {
                return self.map.get_mut(&exact);
            }
        }
        self.map.get_mut(&key_of(meta, client_is_source, false))
    }

    /// Make room by dropping the rows that packets made.
    fn forget_learned(&mut self) -> bool {
        let before = self.map.len();
        self.map.retain(|_, row| row.explicit);
        self.map.len() < before
    }
}

fn key_of(meta: &Meta, client_is_source: bool, exact: bool) -> FlowKey {
    let (port, far) = if client_is_source {
        (meta.source_port, (meta.destination, meta.destination_port))
    } else {
        (meta.destination_port, (meta.source, meta.source_port))
    };
    FlowKey { protocol: meta.protocol, v6: meta.source.is_ipv6(), port, far: exact.then_some(far) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{UdpHead, write_udp};

    fn meta(source_port: u16, destination_port: u16) -> Meta {
        let mut out = Vec::new();
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!(write_udp(
            &UdpHead { source, source_port, destination, destination_port, tos: 0 },
            b"x",
            &mut out
        ));
        Meta::parse(&out).unwrap()
    }

    fn key(port: u16, far: Option<u16>) -> FlowKey {
        FlowKey { protocol: 17, v6: false, port, far: far.map(|p| ("10.0.0.2".parse().unwrap(), p)) }
    }

    #[test]
    fn rows_decide_only_while_there_is_a_choice() {
        let table = FlowTable::default();
        assert_eq!(table.choose(&meta(4000, 9), true, true), None);
        assert!(table.set(key(4000, None), PathMode::Datagram, true));
        assert_eq!(table.choose(&meta(4000, 9), true, true), Some(Verdict { datagram: true, media: true }));
        assert_eq!(table.choose(&meta(4000, 9), true, false), Some(Verdict { datagram: false, media: true }));
        assert_eq!(table.choose(&meta(9, 4000), false, true), Some(Verdict { datagram: true, media: true }));
        assert_eq!(table.choose(&meta(4001, 9), true, true), None);
    }

    #[test]
    fn a_row_that_packets_began_does_not_overrule_one_that_was_set() {
        let table = FlowTable::default();
        table.introduce(key(4000, None), PathMode::Datagram);
        assert_eq!(table.choose(&meta(4000, 9), true, true), Some(Verdict { datagram: true, media: true }));
        table.set(key(4000, None), PathMode::Stream, true);
        table.introduce(key(4000, None), PathMode::Datagram);
        assert_eq!(table.choose(&meta(4000, 9), true, true), Some(Verdict { datagram: false, media: true }));
    }

    #[test]
    fn a_row_with_a_far_end_goes_before_one_without() {
        let table = FlowTable::default();
        table.set(key(4000, None), PathMode::Datagram, true);
        table.set(key(4000, Some(9)), PathMode::Stream, false);
        assert_eq!(table.choose(&meta(4000, 9), true, true).map(|v| v.datagram), Some(false));
        assert_eq!(table.choose(&meta(4000, 8), true, true).map(|v| v.datagram), Some(true));
        table.unset(&key(4000, Some(9)));
        assert_eq!(table.choose(&meta(4000, 9), true, true).map(|v| v.datagram), Some(true));
    }

    #[test]
    fn answers_follow_the_path_of_the_last_packet() {
        let table = FlowTable::default();
        assert!(table.note_received(&meta(4000, 9), true, true, true));
        assert_eq!(table.choose(&meta(9, 4000), false, true).map(|v| v.datagram), Some(true));
        assert!(table.note_received(&meta(4000, 9), true, false, true));
        assert_eq!(table.choose(&meta(9, 4000), false, true).map(|v| v.datagram), Some(false));
    }

    #[test]
    fn the_table_is_bounded_and_explicit_rows_win() {
        let table = FlowTable::default();
        for port in 1..=MAX_FLOWS as u16 {
            assert!(table.note_received(&meta(port, 9), true, true, true));
        }
        assert!(!table.set(key(60_000, None), PathMode::Datagram, true));
        assert!(table.note_received(&meta(50_000, 9), true, true, true));
        assert!(table.snapshot().len() < 10);
        for port in 1..=MAX_FLOWS as u16 - 1 {
            assert!(table.set(key(port, None), PathMode::Stream, true));
        }
        assert!(table.note_received(&meta(60_001, 9), true, true, true));
        assert!(
            !table.note_received(&meta(60_002, 9), true, true, true) || table.snapshot().len() <= MAX_FLOWS
        );
    }
}
