//! Datagram tunnels that have been promised and not yet made.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::limits::MAX_RESERVATIONS;

/// A promised datagram tunnel.
#[derive(Clone)]
pub struct Reservation {
    /// Pre-shared key of the DTLS handshake; None: plain UDP.
    pub psk: Option<[u8; 32]>,
    pub session: u64,
    pub expires_ms: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation").field("session", &self.session).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Rows {
    by_tsid: HashMap<u64, Reservation, RandomState>,
    /// TSIDs by session, so that the end of one does not walk the promises to all.
    by_session: HashMap<u64, Vec<u64>, RandomState>,
    /// When expired rows may be looked for again: a full table must not be walked for each who asks.
    next_purge_ms: u64,
}

/// Between two walks over a full table.
const PURGE_EVERY_MS: u64 = 1_000;

/// All reservations of an engine, by TSID.
#[derive(Debug, Default)]
pub struct Reservations {
    rows: Mutex<Rows>,
}

impl Reservations {
    /// Promise a tunnel. False if there are too many; expired ones make room.
    pub fn insert(&self, tsid: u64, reservation: Reservation, now_ms: u64) -> bool {
        let mut rows = self.rows.lock();
        if rows.by_tsid.len() >= MAX_RESERVATIONS && now_ms >= rows.next_purge_ms {
            rows.next_purge_ms = now_ms + PURGE_EVERY_MS;
            rows.by_tsid.retain(|_, r| r.expires_ms > now_ms);
            let Rows { by_tsid, by_session, .. } = &mut *rows;
            by_session.retain(|_, tsids| {
                tsids.retain(|tsid| by_tsid.contains_key(tsid));
                !tsids.is_empty()
            });
        }
        if rows.by_tsid.len() >= MAX_RESERVATIONS {
            return false;
        }
        rows.remove(tsid);
        rows.by_session.entry(reservation.session).or_default().push(tsid);
        rows.by_tsid.insert(tsid, reservation);
        true
    }

    /// A copy of a live reservation.
    pub fn get(&self, tsid: u64, now_ms: u64) -> Option<Reservation> {
        self.rows.lock().by_tsid.get(&tsid).filter(|r| r.expires_ms > now_ms).cloned()
    }

    /// Use a reservation up: only one tunnel is made of it.
    pub fn take(&self, tsid: u64, now_ms: u64) -> Option<Reservation> {
        self.rows.lock().remove(tsid).filter(|r| r.expires_ms > now_ms)
    }

    /// Forget all promises to a session.
    pub fn forget_session(&self, session: u64) {
        let mut rows = self.rows.lock();
        for tsid in rows.by_session.remove(&session).unwrap_or_default() {
            rows.by_tsid.remove(&tsid);
        }
    }
}

impl Rows {
    fn remove(&mut self, tsid: u64) -> Option<Reservation> {
        let row = self.by_tsid.remove(&tsid)?;
        if let Some(tsids) = self.by_session.get_mut(&row.session) {
            tsids.retain(|other| *other != tsid);
            if tsids.is_empty() {
                self.by_session.remove(&row.session);
            }
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(expires_ms: u64) -> Reservation {
        Reservation { psk: Some([1; 32]), session: 7, expires_ms }
    }

    #[test]
    fn a_reservation_is_used_once_and_ends_by_itself() {
        let table = Reservations::default();
        assert!(table.insert(1, row(100), 0) && table.insert(2, row(100), 0));
        assert!(table.get(1, 99).is_some() && table.get(1, 100).is_none());
        assert!(table.take(1, 50).is_some() && table.take(1, 50).is_none());
        table.forget_session(7);
        assert!(table.get(2, 0).is_none());
    }

    #[test]
    fn expired_rows_make_room_and_live_ones_do_not() {
        let table = Reservations::default();
        for tsid in 0..MAX_RESERVATIONS as u64 {
            assert!(table.insert(tsid, row(100), 0));
        }
        assert!(!table.insert(u64::MAX, row(100), 50));
        assert!(table.insert(u64::MAX, row(3_000), 1_200));
        assert_eq!(table.rows.lock().by_session.get(&7).map(Vec::len), Some(1));
    }

    #[test]
    fn the_end_of_one_session_takes_its_own_promises_and_no_others() {
        let table = Reservations::default();
        for tsid in 0..100 {
            assert!(table.insert(tsid, Reservation { session: tsid / 2, ..row(100) }, 0));
        }
        assert!(table.take(6, 0).is_some());
        table.forget_session(3);
        table.forget_session(4);
        let left: Vec<u64> = (0..100).filter(|tsid| table.get(*tsid, 0).is_some()).collect();
        assert_eq!(left.len(), 96);
        assert!(!left.iter().any(|tsid| (6..=9).contains(tsid)));
        let rows = table.rows.lock();
        assert_eq!((rows.by_tsid.len(), rows.by_session.len()), (96, 48));
    }

    #[test]
    fn keys_are_not_printed() {
        assert!(!format!("{:?}", row(1)).contains("psk"));
    }
}
