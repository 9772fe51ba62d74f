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

/// All reservations of an engine, by TSID.
#[derive(Debug, Default)]
pub struct Reservations {
    rows: Mutex<HashMap<u64, Reservation, RandomState>>,
}

impl Reservations {
    /// Promise a tunnel. False if there are too many; expired ones make room.
    pub fn insert(&self, tsid: u64, reservation: Reservation, now_ms: u64) -> bool {
        let mut rows = self.rows.lock();
        if rows.len() >= MAX_RESERVATIONS {
            rows.retain(|_, r| r.expires_ms > now_ms);
        }
        if rows.len() >= MAX_RESERVATIONS {
            return false;
        }
        rows.insert(tsid, reservation);
        true
    }

    /// A copy of a live reservation.
    pub fn get(&self, tsid: u64, now_ms: u64) -> Option<Reservation> {
        self.rows.lock().get(&tsid).filter(|r| r.expires_ms > now_ms).cloned()
    }

    /// Use a reservation up: only one tunnel is made of it.
    pub fn take(&self, tsid: u64, now_ms: u64) -> Option<Reservation> {
        self.rows.lock().remove(&tsid).filter(|r| r.expires_ms > now_ms)
    }

    /// Forget all promises to a session.
    pub fn forget_session(&self, session: u64) {
        self.rows.lock().retain(|_, r| r.session != session);
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
        assert!(table.insert(u64::MAX, row(300), 200));
    }

    #[test]
    fn keys_are_not_printed() {
        assert!(!format!("{:?}", row(1)).contains("psk"));
    }
}
