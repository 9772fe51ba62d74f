//! When to look again. Waking a thread costs more than a packet does: on a virtual machine 10 to 25 us
//! against 5. So a thread with steady traffic looks away between its turns and then finds several packets
//! at once, which is what network cards do with their interrupts. A thread with little to do never looks
//! away: its packets go on at once.

use std::time::Duration;

/// Packets that make a turn worth its wake-up; behind so many the next turn follows at once.
const ENOUGH: u64 = 48;

/// Packets to wait for.
const WANTED: u64 = 32;

/// Longest look away, and so the most it can add to a packet's delay: a twentieth of a voice frame.
const LONGEST_US: u64 = 1_000;

/// Mean time between packets above which there is no looking away: fewer than three would be gained.
const SPARSE_US: u64 = 375;

/// Weight of the past in the mean, in eighths: a burst of a few packets is no steady traffic.
const PAST: u64 = 7;

/// Remembers how dense the traffic is.
#[derive(Debug)]
pub struct Pace {
    last_us: u64,
    /// Mean time between packets, in sixteenths of a microsecond.
    gap_16: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last_us: 0, gap_16: SILENCE_16 }
    }
}

/// A silence of this length (and any longer one, so that it is forgotten as fast) counts as no traffic.
const SILENCE_16: u64 = 2 * SPARSE_US * 16;

impl Pace {
    /// How long to look away after a turn that began at `now_us` and took in so many packets.
    pub fn pause(&mut self, packets: u64, now_us: u64) -> Option<Duration> {
        if packets == 0 {
            // A timer or an order: says nothing about the traffic, unless it has ceased.
            return None;
        }
        let gap_16 = (now_us.saturating_sub(self.last_us) * 16 / packets).min(SILENCE_16);
        self.last_us = now_us;
        self.gap_16 = (self.gap_16 * PAST + gap_16) / (PAST + 1);
        let dense = self.gap_16 < SPARSE_US * 16;
        (dense && packets < ENOUGH)
            .then(|| Duration::from_micros((self.gap_16 * WANTED / 16).min(LONGEST_US)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses after packets that come one by one, so many microseconds apart.
    fn one_by_one(pace: &mut Pace, from: u64, apart: u64, count: u64) -> Vec<Option<Duration>> {
        (0..count).map(|n| pace.pause(1, from + n * apart)).collect()
    }

    #[test]
    fn sparse_packets_never_wait() {
        let mut pace = Pace::default();
        assert!(one_by_one(&mut pace, 1_000_000, 1_000, 1_000).iter().all(Option::is_none));
        // A clump of four in a sparse flow changes nothing.
        assert!(one_by_one(&mut pace, 3_000_000, 100, 4).iter().all(Option::is_none));
    }

    #[test]
    fn dense_packets_are_gathered() {
        let mut pace = Pace::default();
        let pauses = one_by_one(&mut pace, 1_000_000, 20, 100);
        let last = pauses.last().copied().flatten().unwrap();
        assert!((600..=700).contains(&last.as_micros()), "{last:?}");
        // Even denser: shorter. Denser than the longest pause allows for: the longest.
        let last = one_by_one(&mut pace, 1_100_000, 2, 100).pop().flatten().unwrap();
        assert!(last.as_micros() < 100);
        let mut pace = Pace::default();
        let last = one_by_one(&mut pace, 1_000_000, 200, 100).pop().flatten().unwrap();
        assert_eq!(last.as_micros(), u128::from(LONGEST_US));
    }

    #[test]
    fn a_full_turn_is_followed_by_the_next() {
        let mut pace = Pace::default();
        assert!((0..100).all(|n| pace.pause(64, 1_000_000 + n * 300).is_none()));
    }

    #[test]
    fn after_a_silence_the_first_packets_go_on_at_once_again() {
        let mut pace = Pace::default();
        one_by_one(&mut pace, 1_000_000, 20, 1_000);
        let mut at = 2_000_000;
        let waited = (0..20).take_while(|_| {
            at += 20_000;
            pace.pause(1, at).is_some()
        });
        assert!(waited.count() < 6);
    }
}
