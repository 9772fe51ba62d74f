//! When datagram tunnels with media are looked at. Each of them is looked at some thirty times a second, so on a busy
//! server there are as many looks as packets: a heap would compare and move entries for each, and wake the thread for
//! each. Here a look is one push onto the list of its millisecond.

use std::sync::Arc;

/// Microseconds of one slot. A look may come so much late, which is little beside the 50 ms that matter.
const SLOT_US: u64 = 1_024;

/// Slots of the wheel: one bit each in a word, and more than the longest time between two looks.
const SLOTS: u64 = 64;

/// Things that are due within the next 64 ms, in the order of their slots.
pub struct Wheel<T> {
    slots: [Vec<Arc<T>>; SLOTS as usize],
    /// One bit for each slot that holds something.
    filled: u64,
    /// Everything up to this slot has been taken out.
    done: u64,
}

impl<T> Default for Wheel<T> {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Vec::new()), filled: 0, done: 0 }
    }
}

impl<T> Wheel<T> {
    /// `what` is due at `at_us`; the past means soon, what is too far away is due as late as the wheel reaches.
    pub fn at(&mut self, at_us: u64, what: Arc<T>) {
        let slot = at_us.div_ceil(SLOT_US).clamp(self.done + 1, self.done + SLOTS - 1) % SLOTS;
        if let Some(list) = self.slots.get_mut(slot as usize) {
            list.push(what);
            self.filled |= 1 << slot;
        }
    }

    /// When the next thing is due.
    pub fn next(&self) -> Option<u64> {
        let first = (self.done + 1) % SLOTS;
        let ahead = self.filled.rotate_right(first as u32).trailing_zeros();
        (self.filled != 0).then(|| (self.done + 1 + u64::from(ahead)) * SLOT_US)
    }

    /// Exchange `into`, which must be empty, for the things of the next slot that is due by now; false if there is
    /// none. Called until then, it brings the wheel up to date.
    pub fn take(&mut self, now_us: u64, into: &mut Vec<Arc<T>>) -> bool {
        let now = now_us / SLOT_US;
        let next = self.next().map(|at| at / SLOT_US).filter(|slot| *slot <= now);
        let Some(slot) = next else {
            self.done = self.done.max(now);
            return false;
        };
        self.done = slot;
        self.filled &= !(1 << (slot % SLOTS));
        if let Some(list) = self.slots.get_mut((slot % SLOTS) as usize) {
            std::mem::swap(list, into);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel<u64>, now_us: u64) -> Vec<u64> {
        let (mut all, mut some) = (Vec::new(), Vec::new());
        while wheel.take(now_us, &mut some) {
            all.extend(some.drain(..).map(|one| *one));
        }
        all
    }

    #[test]
    fn things_are_due_in_order_and_neither_early_nor_much_late() {
        let mut wheel = Wheel::default();
        let start = 1_000_000_000;
        assert!(due(&mut wheel, start).is_empty());
        for after in [40_000, 2_000, 20_000] {
            wheel.at(start + after, Arc::new(after));
        }
        let mut seen = Vec::new();
        for now in (start..start + 50_000).step_by(100) {
            for after in due(&mut wheel, now) {
                assert!((start + after..=start + after + SLOT_US + 100).contains(&now), "{after} at {now}");
                seen.push(after);
            }
        }
        assert_eq!(seen, [2_000, 20_000, 40_000]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn the_past_is_soon_and_the_far_future_as_late_as_there_is_a_slot() {
        let mut wheel = Wheel::default();
        let start = 5_000_000;
        assert!(due(&mut wheel, start).is_empty());
        wheel.at(17, Arc::new(1));
        wheel.at(start + 10_000_000, Arc::new(2));
        assert!(wheel.next().is_some_and(|at| at > start && at <= start + 2 * SLOT_US));
        assert_eq!(due(&mut wheel, start + 2 * SLOT_US), [1]);
        assert!(due(&mut wheel, start + 60 * SLOT_US).is_empty());
        assert_eq!(due(&mut wheel, start + 64 * SLOT_US), [2]);
    }

    #[test]
    fn a_thread_that_comes_very_late_finds_everything_once() {
        let mut wheel = Wheel::default();
        assert!(due(&mut wheel, 1_000).is_empty());
        for slot in 1..60 {
            wheel.at(slot * SLOT_US, Arc::new(slot));
        }
        assert_eq!(due(&mut wheel, 3_600_000_000), (1..60).collect::<Vec<_>>());
        wheel.at(3_600_000_000, Arc::new(7));
        assert_eq!(due(&mut wheel, 3_600_000_000 + 2 * SLOT_US), [7]);
    }
}
