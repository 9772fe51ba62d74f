//! The valve of the circuit breaker (RFC 8083 in spirit): media that nobody can receive does not go on loading a
//! path. When it opens and closes is the control plane's judgement; here one packet in so long is let through, so
//! that there is something to judge by.

use std::sync::atomic::{AtomicU64, Ordering};

/// The valve of one path of one session.
#[derive(Debug, Default)]
pub struct Gate {
    /// Microseconds between two packets that pass; zero: all pass.
    every_us: AtomicU64,
    last_us: AtomicU64,
}

impl Gate {
    /// Let one packet in so many microseconds pass; zero lets all.
    pub fn set(&self, every_us: u64) {
        self.every_us.store(every_us, Ordering::Relaxed);
    }

    /// Whether a packet may go.
    #[inline]
    pub fn admit(&self, now_us: u64) -> bool {
        let every = self.every_us.load(Ordering::Relaxed);
        if every == 0 {
            return true;
        }
        let last = self.last_us.load(Ordering::Relaxed);
        now_us.saturating_sub(last) >= every
            && self.last_us.compare_exchange(last, now_us, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pass_until_it_is_set_then_one_in_so_long() {
        let gate = Gate::default();
        assert!((0..100).all(|n| gate.admit(1_000_000 + n)));
        gate.set(500_000);
        let passed = (0..500u64).filter(|n| gate.admit(2_000_000 + n * 20_000)).count();
        assert_eq!(passed, 20, "ten seconds of a call, two a second");
        gate.set(0);
        assert!(gate.admit(2_000_001));
    }
}
