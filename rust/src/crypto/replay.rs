//! The sliding window over record numbers (RFC 6347 4.1.2.6, laid out as RFC 6479 proposes).
//!
//! It answers two questions: has this record been seen (a replay), and what did the network do
//! (losses, reordering, duplicates). The numbers of a tunnel grow by one for each record, so a
//! number that slides out of the window unseen is a lost record.

/// 64-bit words in the ring of a tunnel's records: 144 bytes of bits.
const RECORD_WORDS: usize = 18;
/// The same for the numbers of a session's media, of which copies come late on purpose: 8,256 numbers are a third of a
/// second of 500 calls.
const MEDIA_WORDS: usize = 130;
/// Bits in a word.
const WORD_BITS: u64 = 64;
/// Numbers behind the highest that can still be told apart. One word less than the ring holds,
/// because the word that holds the highest number is filled step by step (RFC 6479). At 10,000
/// records a second it spans 109 ms of reordering, more than a path may have and still be useful.
pub const WINDOW: u64 = ReplayWindow::WINDOW;

/// What the network did to the records, as far as the window can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayCounters {
    /// Records marked as received.
    pub received: u64,
    /// Numbers that slid out of the window and never came.
    pub lost: u64,
    /// Numbers up to the highest that have not come (yet): RFC 3550's cumulative number of packets lost. Knows a loss at
    /// once, and takes it back when the record was only late.
    pub missing: u64,
    /// Records that came after one with a higher number.
    pub reordered: u64,
    /// Records that had come before (replayed by the network or by an attacker).
    pub duplicates: u64,
    /// Records from before the window.
    pub too_old: u64,
}

/// The answer for one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Not seen yet.
    Fresh,
    /// Seen before.
    Duplicate,
    /// From before the window: cannot be told from a replay, so it is refused.
    TooOld,
}

/// The window. Plain data: put it under the lock of the tunnel it belongs to.
#[derive(Clone, Debug)]
pub struct Window<const WORDS: usize> {
    bits: [u64; WORDS],
    /// One more than the highest number received; 0 before the first.
    next: u64,
    /// Numbers below are never counted as lost: the sender did not use them.
    first: u64,
    counters: ReplayCounters,
}

/// The window over the records of a tunnel.
pub type ReplayWindow = Window<RECORD_WORDS>;

/// The window over the numbers of a session's media.
pub type MediaWindow = Window<MEDIA_WORDS>;

impl<const WORDS: usize> Window<WORDS> {
    const WINDOW: u64 = (WORDS as u64 - 1) * WORD_BITS;

    /// An empty window for a sender whose first number is `first`. Lower numbers are accepted, but
    /// their absence is no loss.
    pub const fn new(first: u64) -> Self {
        Self {
            bits: [0; WORDS],
            next: 0,
            first,
            counters: ReplayCounters {
                received: 0,
                lost: 0,
                missing: 0,
                reordered: 0,
                duplicates: 0,
                too_old: 0,
            },
        }
    }

    /// The counters so far.
    pub const fn counters(&self) -> ReplayCounters {
        let expected = self.next.saturating_sub(self.first);
        let missing = expected.saturating_sub(self.counters.received);
        ReplayCounters { missing, ..self.counters }
    }

    /// One more than the highest number received; 0 before the first.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Looks a number up and counts a refusal. Call it before decrypting: it saves the work.
    #[inline]
    pub fn check(&mut self, number: u64) -> Arrival {
        let arrival = self.look(number);
        match arrival {
            Arrival::Fresh => {}
            Arrival::Duplicate => self.counters.duplicates += 1,
            Arrival::TooOld => self.counters.too_old += 1,
        }
        arrival
    }

    /// Marks a number as received. Call it only when the record is authentic. It looks again, as
    /// another thread may have marked the same number in between.
    #[inline]
    pub fn mark(&mut self, number: u64) -> Arrival {
        let arrival = self.check(number);
        if arrival != Arrival::Fresh {
            return arrival;
        }
        if number >= self.next {
            self.advance(number);
        } else {
            self.counters.reordered += 1;
        }
        if let Some(word) = self.bits.get_mut(Self::slot(number)) {
            *word |= bit(number);
        }
        self.counters.received += 1;
        Arrival::Fresh
    }

    #[inline]
    fn look(&self, number: u64) -> Arrival {
        if number >= self.next {
            return Arrival::Fresh;
        }
        if self.next - number > Self::WINDOW {
            return Arrival::TooOld;
        }
        match self.bits.get(Self::slot(number)) {
            Some(word) if word & bit(number) == 0 => Arrival::Fresh,
            _ => Arrival::Duplicate,
        }
    }

    /// Moves the window so that `number` is the highest.
    #[inline]
    fn advance(&mut self, number: u64) {
        let old = if self.next == 0 { None } else { Some((self.next - 1) / WORD_BITS) };
        let new = number / WORD_BITS;
        if old != Some(new) {
            self.slide(old, new);
        }
        self.next = number + 1;
    }

    /// Empties the words that the new highest word takes over, counting what never came in them.
    /// A jump of any size costs at most one turn of the ring.
    #[cold]
    fn slide(&mut self, old: Option<u64>, new: u64) {
        let words = WORDS as u64;
        let start = old.map_or(0, |old| old + 1);
        for word in start..=new.min(start + words - 1) {
            let held = self.take_word(word);
            if let Some(leaving) = word.checked_sub(words) {
                self.count_lost(leaving, held);
            }
        }
        // A jump over more than the ring: these were passed without ever standing in it.
        let passed_end = (new + 1).saturating_sub(words) * WORD_BITS;
        let passed_start = (start * WORD_BITS).max(self.first);
        self.counters.lost += passed_end.saturating_sub(passed_start);
    }

    fn take_word(&mut self, word: u64) -> u64 {
        self.bits.get_mut((word % WORDS as u64) as usize).map_or(0, std::mem::take)
    }

    fn count_lost(&mut self, word: u64, held: u64) {
        let start = word * WORD_BITS;
        let used = match self.first.saturating_sub(start) {
            0 => u64::MAX,
            n if n >= WORD_BITS => 0,
            n => u64::MAX << n,
        };
        self.counters.lost += u64::from((used & !held).count_ones());
    }

    const fn slot(number: u64) -> usize {
        ((number / WORD_BITS) % WORDS as u64) as usize
    }
}

const fn bit(number: u64) -> u64 {
    1 << (number % WORD_BITS)
}
