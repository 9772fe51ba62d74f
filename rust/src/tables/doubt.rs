//! The reflex for a datagram path that may be dying: while it is in doubt, media goes by both paths and the receiver
//! drops the copies.
//!
//! ```text
//!              nothing heard for SUSPICION while media was coming,
//!              or the peer says (over the stream) that it hears nothing,
//!              or our media begins on this path (again)
//!   trusted ───────────────────────────────────────────────────────────> in doubt: both paths,
//!      <───────────────────────────────────────────────────────────────  numbered frames
//!              DOUBT_LASTS without such news
//! ```
//! A party that pauses (nobody speaks, no comfort noise) says that it is still there by a Path Pulse every
//! [`PULSE_US`], so that a pause is not taken for a block. So silence is a sign, and it can be a short one.
//! What to do about a path that stays silent (move its flows, try again later) is the control plane's to say; this
//! only bridges the time until it knows.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::crypto::{Arrival, MediaWindow};
use crate::sys::prefetch;

/// Silence of a path on which media was coming that makes it suspect, at most: four packets of 20 ms. Jitter of that
/// size costs some doubled packets, nothing else.
pub const SUSPICION_US: u64 = 80_000;

/// The same, at least, where packets come as regularly as a clock: two packets of 20 ms, and a late turn of a thread.
/// The sooner a block is seen, the less a long round trip adds to.
pub const SUSPICION_MIN_US: u64 = 50_000;

/// Longer gaps between packets of media are pauses and say nothing about its rhythm.
const PAUSE_US: u64 = 200_000;

/// A path that is suspect is looked at this often, and one where media begins after this time.
pub const WATCH_US: u64 = 20_000;

/// And at most: a thread that is late looks again after this time.
const WATCH_MIN_US: u64 = 2_000;

/// A party whose media pauses sends something this often instead: half of `SUSPICION_US`, so that one may be lost or
/// late, and more than the 20 and 30 ms of usual packets.
pub const PULSE_US: u64 = 40_000;

/// How long doubt lasts after its last cause.
pub const DOUBT_LASTS_US: u64 = 500_000;

/// Media that last came longer ago than this has ended, and its silence is no sign.
pub const EXPECTING_US: u64 = 1_500_000;

/// How long a pause is bridged by pulses: until the peer no longer misses the media.
const PULSE_ENDS_US: u64 = EXPECTING_US + SUSPICION_US;

/// A path without media for this long is no longer watched.
pub const WATCH_ENDS_US: u64 = 3_000_000;

/// The peer is told again of our silence this often: an alert is 16 bytes, and one may wait behind a lost segment.
pub const ALERT_US: u64 = 100_000;

/// The rhythm in which media comes on one path: mean gap and its mean deviation (RFC 6298's filters).
#[derive(Debug, Default)]
pub struct Rhythm {
    gap_us: AtomicU64,
    deviation_us: AtomicU64,
}

impl Rhythm {
    /// Media has come, this long after the last.
    #[inline]
    pub fn note(&self, gap_us: u64) {
        if gap_us > PAUSE_US {
            return;
        }
        let (gap, deviation) =
            (self.gap_us.load(Ordering::Relaxed), self.deviation_us.load(Ordering::Relaxed));
        if gap == 0 {
            self.gap_us.store(gap_us.max(1), Ordering::Relaxed);
            self.deviation_us.store(gap_us / 2, Ordering::Relaxed);
            return;
        }
        self.deviation_us.store((15 * deviation + gap.abs_diff(gap_us)) / 16, Ordering::Relaxed);
        self.gap_us.store(((15 * gap + gap_us) / 16).max(1), Ordering::Relaxed);
    }

    /// The silence that is suspect on such a path: a packet is missing, and the next one too.
    pub fn suspicion_us(&self) -> u64 {
        let (gap, deviation) =
            (self.gap_us.load(Ordering::Relaxed), self.deviation_us.load(Ordering::Relaxed));
        if gap == 0 {
            return SUSPICION_US;
        }
        (2 * gap + 4 * deviation).clamp(SUSPICION_MIN_US, SUSPICION_US)
    }
}

/// When things last happened on a path, and how long a silence is suspect there.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub heard_us: u64,
    pub media_rx_us: u64,
    pub media_tx_us: u64,
    pub sent_us: u64,
    pub suspicion_us: u64,
}

impl Times {
    /// Whether it is time to say that we are there though our media pauses.
    pub fn pulse_due(&self, now_us: u64) -> bool {
        self.pausing(now_us) && now_us.saturating_sub(self.sent_us) >= PULSE_US
    }

    fn pausing(&self, now_us: u64) -> bool {
        self.media_tx_us > 0 && now_us.saturating_sub(self.media_tx_us) < PULSE_ENDS_US
    }

    /// When to look again.
    pub fn next_look_us(&self, now_us: u64) -> u64 {
        let suspect = self.heard_us + self.suspicion_us;
        // As long as all is well there is nothing to see before silence could be a sign or a pulse be due.
        let mut at = if suspect > now_us { suspect.min(now_us + PULSE_US) } else { now_us + WATCH_US };
        if self.pausing(now_us) {
            at = at.min(self.sent_us + PULSE_US);
        }
        at.max(now_us + WATCH_MIN_US)
    }
}

/// Doubt about one session's datagram path, and the numbers of frames sent twice.
#[derive(Debug)]
pub struct Doubt {
    until_us: AtomicU64,
    accused_until_us: AtomicU64,
    last_alert_us: AtomicU64,
    next: AtomicU32,
    seen: Mutex<Seen>,
}

impl Default for Doubt {
    fn default() -> Self {
        Self {
            until_us: AtomicU64::new(0),
            accused_until_us: AtomicU64::new(0),
            last_alert_us: AtomicU64::new(0),
            next: AtomicU32::new(0),
            seen: Mutex::default(),
        }
    }
}

/// Numbers that have come. On the wire they have 32 bits and go round; here they go on.
#[derive(Debug)]
struct Seen {
    window: MediaWindow,
}

impl Default for Seen {
    fn default() -> Self {
        Self { window: MediaWindow::new(0) }
    }
}

impl Seen {
    fn first_of(&mut self, number: u32) -> bool {
        self.window.mark(self.extended(number)) == Arrival::Fresh
    }

    /// The number nearest to the highest seen that has these lower bits; the first of all gets room below it.
    fn extended(&self, number: u32) -> u64 {
        const ROUND: u64 = 1 << 32;
        let next = self.window.next();
        if next == 0 {
            return ROUND + u64::from(number);
        }
        let ahead = number.wrapping_sub(next as u32);
        if ahead < 1 << 31 { next + u64::from(ahead) } else { next.saturating_sub(ROUND - u64::from(ahead)) }
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

    /// Ask for what each packet looks at.
    pub fn warm(&self) {
        prefetch(&self.until_us);
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

    /// Media is about to go by a datagram tunnel on which it last went at `media_tx_us` (0: never). Whether that
    /// path works now is known by nobody, so what begins there goes by both for a while.
    #[inline]
    pub fn begin(&self, now_us: u64, media_tx_us: u64) {
        if now_us.saturating_sub(media_tx_us) > EXPECTING_US || media_tx_us == 0 {
            self.raise(now_us);
        }
    }

    /// Look at a path: when anything was last heard on it, and when media last came and went.
    pub fn look(&self, now_us: u64, times: &Times) -> Finding {
        let &Times { heard_us, media_rx_us, media_tx_us, suspicion_us, .. } = times;
        if now_us.saturating_sub(media_rx_us.max(media_tx_us)) > WATCH_ENDS_US {
            return Finding::Unused;
        }
        let expecting = media_rx_us > 0 && now_us.saturating_sub(media_rx_us) < EXPECTING_US;
        if !expecting || now_us.saturating_sub(heard_us) < suspicion_us {
            return Finding::Well;
        }
        self.raise(now_us);
        let alert = now_us.saturating_sub(self.last_alert_us.load(Ordering::Relaxed)) >= ALERT_US;
        if alert {
            self.last_alert_us.store(now_us, Ordering::Relaxed);
        }
        Finding::Silent { alert }
    }

    /// The peer is another process now, and numbers its frames anew.
    pub fn renumbered(&self) {
        *self.seen.lock() = Seen::default();
    }

    /// The number of the next frame that is sent twice.
    pub fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a numbered frame is the first of its number.
    pub fn first_of(&self, number: u32) -> bool {
        self.seen.lock().first_of(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    fn times(heard_us: u64, media_rx_us: u64, media_tx_us: u64) -> Times {
        let sent_us = media_tx_us;
        Times { heard_us, media_rx_us, media_tx_us, sent_us, suspicion_us: SUSPICION_US }
    }

    #[test]
    fn silence_while_media_was_coming_raises_doubt_and_it_passes() {
        let doubt = Doubt::default();
        let at = 1_000 * MS;
        let then = times(at, at, at);
        assert_eq!(doubt.look(at + 79 * MS, &then), Finding::Well);
        assert!(!doubt.active(at + 79 * MS));
        assert_eq!(doubt.look(at + 80 * MS, &then), Finding::Silent { alert: true });
        assert!(doubt.active(at + 80 * MS) && doubt.active(at + 579 * MS) && !doubt.active(at + 580 * MS));
    }

    #[test]
    fn the_peer_is_told_at_a_bounded_rate() {
        let doubt = Doubt::default();
        let at = 1_000 * MS;
        let looks = (0..50).map(|i| doubt.look(at + (80 + i * 20) * MS, &times(at, at, at)));
        let alerts = looks.filter(|f| *f == Finding::Silent { alert: true }).count();
        assert_eq!(alerts, 10);
    }

    #[test]
    fn a_party_that_fell_silent_long_ago_is_no_sign() {
        let doubt = Doubt::default();
        let at = 1_000 * MS;
        assert_eq!(doubt.look(at + 1_500 * MS, &times(at, at, at + 1_490 * MS)), Finding::Well);
        assert_eq!(doubt.look(at, &times(0, 0, at)), Finding::Well, "media that never came is not missed");
        assert_eq!(doubt.look(at + 3_001 * MS, &times(at, at, at)), Finding::Unused);
    }

    #[test]
    fn the_steadier_the_media_the_sooner_its_silence_is_a_sign() {
        let (steady, uneven, slow) = (Rhythm::default(), Rhythm::default(), Rhythm::default());
        assert_eq!(steady.suspicion_us(), SUSPICION_US, "nothing is known yet");
        for number in 0..200 {
            steady.note(20 * MS);
            uneven.note(if number % 2 == 0 { 5 * MS } else { 35 * MS });
            slow.note(60 * MS);
        }
        steady.note(3_000 * MS);
        assert_eq!(steady.suspicion_us(), SUSPICION_MIN_US, "a pause does not count");
        assert_eq!(uneven.suspicion_us(), SUSPICION_US);
        assert_eq!(slow.suspicion_us(), SUSPICION_US);
    }

    #[test]
    fn a_pause_is_bridged_by_pulses_until_nobody_misses_the_media() {
        let at = 1_000 * MS;
        let mut then = times(at, at, at);
        let mut pulses = 0;
        let mut now = at;
        while now < at + 4_000 * MS {
            now = then.next_look_us(now);
            if then.pulse_due(now) {
                pulses += 1;
                then.sent_us = now;
            }
        }
        assert_eq!(pulses, PULSE_ENDS_US.div_ceil(PULSE_US) - 1);
        assert!(!times(at, at, 0).pulse_due(at + 10), "who sends no media does not pause");
        assert!(!times(at, at, at).pulse_due(at + 30 * MS), "packets of 30 ms are no pause");
    }

    #[test]
    fn media_that_begins_goes_by_both_paths_for_a_while() {
        let (first, going_on, again) = (Doubt::default(), Doubt::default(), Doubt::default());
        let at = 10_000 * MS;
        first.begin(at, 0);
        going_on.begin(at, at - 1_000 * MS);
        again.begin(at, at - 1_501 * MS);
        assert!(first.active(at) && !going_on.active(at) && again.active(at + 499 * MS));
        assert!(!again.active(at + 500 * MS));
    }

    #[test]
    fn of_two_copies_one_counts_whichever_comes_first() {
        let doubt = Doubt::default();
        let numbers: Vec<u32> = (0..5).map(|_| doubt.next_number()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)));
        let order = [0, 1, 0, 2, 4, 1, 3, 3, 4, 2].map(|n: usize| numbers[n]);
        assert_eq!(order.iter().filter(|n| doubt.first_of(**n)).count(), 5);
    }

    #[test]
    fn a_peer_that_was_restarted_is_heard_from_its_first_number_on() {
        let doubt = Doubt::default();
        assert!(doubt.first_of(70_000) && !doubt.first_of(0), "far behind the window");
        doubt.renumbered();
        assert!(doubt.first_of(0) && !doubt.first_of(0) && doubt.first_of(1));
    }

    #[test]
    fn numbers_may_begin_anywhere_and_go_round() {
        for start in [0, 7, 1 << 31, u32::MAX - 2] {
            let mut seen = Seen::default();
            let order = [2u32, 0, 1, 3, 4, 4, 2, 5, 3].map(|n| start.wrapping_add(n));
            assert_eq!(order.iter().filter(|n| seen.first_of(**n)).count(), 6, "{start}");
        }
    }
}
