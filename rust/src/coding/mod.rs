//! Media that comes back when it was lost, and headers that are not sent again and again.
//!
//! | module | what it holds |
//! |---|---|
//! | [`frames`] | the bytes |
//! | [`head`] | the constant part of a flow's headers |
//! | [`sender`], [`receiver`] | recovery data: copies and parity of a flow's earlier frames |
//! | [`headers`] | contexts of compressed headers |
//!
//! Everything here is free of I/O; `crate::coded` puts it into the way of a packet.

pub mod frames;
pub mod head;
pub mod headers;
pub mod receiver;
pub mod sender;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use headers::{Packer, Unpacker};
use receiver::Decoder;
use sender::{Coder, Scheme, scheme};

const FACTOR: u8 = 0x03;
const FEC: u8 = 0x04;
const COMPRESS: u8 = 0x08;
const TAKE_RECOVERY: u8 = 0x01;
const TAKE_COMPRESSED: u8 = 0x02;

/// What a session's coding has done.
#[derive(Debug, Default)]
pub struct CodingCounts {
    pub copies_sent: AtomicU64,
    pub parities_sent: AtomicU64,
    pub recovered: AtomicU64,
    pub repaired: AtomicU64,
    pub copies_dropped: AtomicU64,
    pub compressed_sent: AtomicU64,
    pub compressed_received: AtomicU64,
    pub unknown_contexts: AtomicU64,
    /// Bytes of recovery frames sent, and header bytes that compression saved.
    pub recovery_bytes: AtomicU64,
    pub saved_bytes: AtomicU64,
}

/// What one session has agreed with its peer, and what it needs for that. A session that agreed on nothing has four
/// empty boxes, and looks at one octet per packet.
#[derive(Debug, Default)]
pub struct Coding {
    /// What we send.
    sends: AtomicU8,
    /// What we have agreed to take.
    takes: AtomicU8,
    /// A recovery frame with several members has come: the decoder must keep what comes.
    parity_seen: AtomicBool,
    pub(crate) coder: Mutex<Option<Box<Coder>>>,
    pub(crate) decoder: Mutex<Option<Box<Decoder>>>,
    pub(crate) packer: Mutex<Option<Box<Packer>>>,
    pub(crate) unpacker: Mutex<Option<Box<Unpacker>>>,
    pub counts: CodingCounts,
}

/// What a session sends, as the control plane says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// Recovery frames per datagram: 0 to 2.
    pub factor: u8,
    /// They are made for bursts: see `sender::scheme`.
    pub fec: bool,
    pub compress: bool,
}

/// What a session takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taking {
    pub recovery: bool,
    pub compressed: bool,
}

impl Coding {
    /// Ask for what each packet looks at.
    pub fn warm(&self) {
        crate::sys::prefetch(&self.sends);
    }

    /// Send so from now on.
    pub fn send(&self, sending: Sending) {
        let mut bits = sending.factor.min(2);
        bits |= if sending.fec { FEC } else { 0 } | if sending.compress { COMPRESS } else { 0 };
        if sending.factor > 0 {
            self.coder.lock().get_or_insert_default();
        }
        // Contexts outlive a pause in their use, so that no generation is given twice.
        if sending.compress {
            self.packer.lock().get_or_insert_default();
        }
        self.sends.store(bits, Ordering::Release);
        if sending.factor == 0 {
            *self.coder.lock() = None;
        }
    }

    /// Take these from now on. What was known of them before stays.
    pub fn take(&self, taking: Taking) {
        let bits = if taking.recovery { TAKE_RECOVERY } else { 0 }
            | if taking.compressed { TAKE_COMPRESSED } else { 0 };
        if taking.recovery {
            self.decoder.lock().get_or_insert_default();
        }
        if taking.compressed {
            self.unpacker.lock().get_or_insert_default();
        }
        self.takes.store(bits, Ordering::Release);
    }

    /// What is sent now.
    pub fn sending(&self) -> Sending {
        let bits = self.sends.load(Ordering::Relaxed);
        Sending { factor: bits & FACTOR, fec: bits & FEC != 0, compress: bits & COMPRESS != 0 }
    }

    /// How recovery frames are made; None: there are none.
    #[inline]
    pub fn scheme(&self) -> Option<Scheme> {
        let bits = self.sends.load(Ordering::Relaxed);
        if bits & FACTOR == 0 { None } else { scheme(bits & FACTOR, bits & FEC != 0) }
    }

    #[inline]
    pub fn compresses(&self) -> bool {
        self.sends.load(Ordering::Relaxed) & COMPRESS != 0
    }

    #[inline]
    pub fn takes_recovery(&self) -> bool {
        self.takes.load(Ordering::Relaxed) & TAKE_RECOVERY != 0
    }

    #[inline]
    pub fn takes_compressed(&self) -> bool {
        self.takes.load(Ordering::Relaxed) & TAKE_COMPRESSED != 0
    }

    #[inline]
    pub(crate) fn keeps(&self) -> bool {
        self.parity_seen.load(Ordering::Relaxed)
    }

    pub(crate) fn see_parity(&self) {
        self.parity_seen.store(true, Ordering::Relaxed);
    }

    /// What is sent, and what has been done, by name.
    pub fn numbers(&self) -> [(&'static str, u64); 15] {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (counts, sending) = (&self.counts, self.sending());
        let ours = self.packer.lock().as_ref().map_or(0, |packer| packer.contexts());
        let theirs = self.unpacker.lock().as_ref().map_or(0, |unpacker| unpacker.contexts());
        [
            ("factor", u64::from(sending.factor)),
            ("fec", u64::from(sending.fec)),
            ("compress", u64::from(sending.compress)),
            ("contexts_sent", ours as u64),
            ("contexts_received", theirs as u64),
            ("copies_sent", read(&counts.copies_sent)),
            ("parities_sent", read(&counts.parities_sent)),
            ("recovered", read(&counts.recovered)),
            ("repaired", read(&counts.repaired)),
            ("copies_dropped", read(&counts.copies_dropped)),
            ("compressed_sent", read(&counts.compressed_sent)),
            ("compressed_received", read(&counts.compressed_received)),
            ("unknown_contexts", read(&counts.unknown_contexts)),
            ("recovery_bytes", read(&counts.recovery_bytes)),
            ("saved_bytes", read(&counts.saved_bytes)),
        ]
    }
}
