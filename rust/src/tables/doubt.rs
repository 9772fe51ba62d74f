//! The reflex for a datagram path that may be dying: while it is in doubt, media goes by both paths and the receiver
//! drops the copies.
//!
//! ```text
//!              nothing heard for SUSPICION while media was coming,
//!              or the peer says (over the stream) that it hears nothing
//!   trusted ───────────────────────────────────────────────────────────> in doubt: both paths,
//!      <───────────────────────────────────────────────────────────────  numbered frames
//!              DOUBT_LASTS without such news
//! ```
//! What to do about a path that stays silent (move its flows, try again later) is the control plane's to say; this
//! only bridges the time until it knows.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::crypto::{Arrival, ReplayWindow};

/// Silence of a path on which media was coming that makes it suspect: four packets of 20 ms. Jitter of that size
/// costs some doubled packets, nothing else.
pub const SUSPICION_US: u64 = 80_000;

/// A path is looked at this often while media is on it.
pub const WATCH_US: u64 = 20_000;

/// How long doubt lasts after its last cause.
pub const DOUBT_LASTS_US: u64 = 500_000;

/// Media that last came longer ago than this has ended, and its silence is no sign.
pub const EXPECTING_US: u64 = 1_500_000;

/// A path without media for this long is no longer watched.
pub const WATCH_ENDS_US: u64 = 3_000_000;

/// The peer is told again of our silence this often: an alert is 16 bytes, and one may wait behind a lost segment.
pub const ALERT_US: u64 = 100_000;

/// Doubt about one session's datagram path, and the numbers of frames sent twice.
#[derive(Debug)]
pub struct Doubt {
    until_us: AtomicU64,
    accused_until_us: AtomicU64,
    last_alert_us: AtomicU64,
    next: AtomicU32,
    seen: Mutex<ReplayWindow>,
}

impl Default for Doubt {
    fn default() -> Self {
        Self {
            until_us: AtomicU64::new(0),
            accused_until_us: AtomicU64::new(0),
            last_alert_us: AtomicU64::new(0),
            next: AtomicU32::new(0),
            seen: Mutex::new(ReplayWindow::new(0)),
        }
    }
}

/// What looking at a path found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing wrong.
    Well,
    /// In doubt; the flag says that it is time to tell the peer.
    Silent { alert: bool },
    /// No media for long: need not be looked at again before there is some.
    Unused,
}

impl Doubt {
    /// Whether media has to go by both paths.
    #[inline]
    pub fn active(&self, now_us: u64) -> bool {
        self.until_us.load(Ordering::Relaxed) > now_us
    }

    /// There is a reason to doubt.
    pub fn raise(&self, now_us: u64) {
        self.until_us.store(now_us + DOUBT_LASTS_US, Ordering::Relaxed);
    }

    /// The peer says that it does not hear us.
    pub fn accuse(&self, now_us: u64) {
        self.raise(now_us);
        self.accused_until_us.store(now_us + DOUBT_LASTS_US, Ordering::Relaxed);
    }

    /// Whether the peer has said so of late.
    pub fn accused(&self, now_us: u64) -> bool {
        self.accused_until_us.load(Ordering::Relaxed) > now_us
    }

    /// Look at a path: when anything was last heard on it, and when media last came and went.
    pub fn look(&self, now_us: u64, heard_us: u64, media_rx_us: u64, media_tx_us: u64) -> Finding {
        if now_us.saturating_sub(media_rx_us.max(media_tx_us)) > WATCH_ENDS_US {
            return Finding::Unused;
        }
        let expecting = media_rx_us > 0 && now_us.saturating_sub(media_rx_us) < EXPECTING_US;
        if !expecting || now_us.saturating_sub(heard_us) < SUSPICION_US {
            return Finding::Well;
        }
        self.raise(now_us);
        let alert = now_us.saturating_sub(self.last_alert_us.load(Ordering::Relaxed)) >= ALERT_US;
        if alert {
            self.last_alert_us.store(now_us, Ordering::Relaxed);
        }
        Finding::Silent { alert }
    }

    /// The number of the next frame that is sent twice.
    pub fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a numbered frame is the first of its number.
    pub fn first_of(&self, number: u32) -> bool {
        self.seen.lock().mark(u64::from(number)) == Arrival::Fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    #[test]
    fn silence_while_media_was_coming_raises_doubt_and_it_passes() {
        let doubt = Doubt::default();
        let at = 1_000 * MS;
        assert_eq!(doubt.look(at + 79 * MS, at, at, at), Finding::Well);
        assert!(!doubt.active(at + 79 * MS));
        assert_eq!(doubt.look(at + 80 * MS, at, at, at), Finding::Silent { alert: true });
        assert!(doubt.active(at + 80 * MS) && doubt.active(at + 579 * MS) && !doubt.active(at + 580 * MS));
    }

    #[test]
    fn the_peer_is_told_at_a_bounded_rate() {
        let doubt = Doubt::default();
        let at = 1_000 * MS;
        let looks = (0..50).map(|i| doubt.look(at + (80 + i * 20) * MS, at, at, at));
        let alerts = looks.filter(|f| *f == Finding::Silent { alert: true }).count();
        assert_eq!(alerts, 10);
    }

    #[test]
    fn a_party_that_fell_silent_long_ago_is_no_sign() {
        let doubt = Doubt::default();
        let at = 1_000 * MS;
        assert_eq!(doubt.look(at + 1_500 * MS, at, at, at + 1_490 * MS), Finding::Well);
        assert_eq!(doubt.look(at, 0, 0, at), Finding::Well, "media that never came is not missed");
        assert_eq!(doubt.look(at + 3_001 * MS, at, at, at), Finding::Unused);
    }

    #[test]
    fn of_two_copies_one_counts_whichever_comes_first() {
        let doubt = Doubt::default();
        let numbers: Vec<u32> = (0..5).map(|_| doubt.next_number()).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        let order = [0, 1, 0, 2, 4, 1, 3, 3, 4, 2];
        assert_eq!(order.iter().filter(|n| doubt.first_of(**n)).count(), 5);
    }
}
