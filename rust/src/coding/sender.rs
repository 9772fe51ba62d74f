//! What a sender keeps of each flow's latest frames, and the recovery frames it makes of them.
//!
//! Recovery is per flow, not per session: the next packet of the same flow comes a packet time later, so one burst
//! of loss seldom takes both (the next packet of a trunk with 500 calls is 40 microseconds away), a copy needs no
//! headers of its own, and video beside audio neither hastens nor delays it.

use std::collections::HashMap;

use ahash::RandomState;

use super::frames::{MAX_MEMBERS, Recovery};
use super::head::Head;
use crate::limits::{CODED_PAYLOAD, MAX_FLOWS};

/// Frames of a flow that are kept: as far back as the longest lag.
pub const DEPTH: usize = 3;

/// A packet time until two packets have shown it, and its bounds.
const GAP_US: u64 = 20_000;
const GAPS_US: std::ops::RangeInclusive<u64> = 5_000..=60_000;

/// How often flows are looked at for packets that are overdue: half of the shortest packet time in use but one.
pub const FLUSH_US: u64 = 10_000;

/// A flow that has been silent for this long is forgotten.
const FORGET_US: u64 = 10_000_000;

/// How each datagram's recovery frames are made. A set is a mask of lags: bit 0 stands for the frame before, bit 1
/// for the one before that; the exclusive or of a set's frames is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    pub sets: &'static [u8],
}

/// What may be asked for. With `fec` the same bytes survive more, for a receiver that waits three packet times: at
/// one recovery frame per datagram parity of the frame before and the third before, at two copies of these. The
/// comparison with others is in docs/bad-networks.md ("Redundancy and FEC").
pub fn scheme(factor: u8, fec: bool) -> Option<Scheme> {
    let sets: &[u8] = match (factor, fec) {
        (1, false) => &[0b001],
        (2, false) => &[0b001, 0b010],
        (1, true) => &[0b101],
        (2, true) => &[0b001, 0b100],
        _ => return None,
    };
    Some(Scheme { sets })
}

impl Scheme {
    /// The longest lag: for so many packet times after a flow's last packet there is something to send.
    fn reach(&self) -> usize {
        self.sets.iter().map(|set| 8 - set.leading_zeros() as usize).max().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
struct Kept {
    number: u32,
    /// False: there was a frame here that is not repeated.
    held: bool,
    payload: Vec<u8>,
}

#[derive(Debug, Default)]
struct Flow {
    ring: [Kept; DEPTH],
    /// Frames ever put into the ring, by which its newest is found.
    frames: usize,
    last_us: u64,
    gap_us: u64,
    /// Packet times since the last packet for which its recovery frames have been sent.
    flushed: usize,
}

impl Flow {
    /// The frame this many before the newest; 0 is the newest.
    fn back(&self, steps: usize) -> Option<&Kept> {
        let index = self.frames.checked_sub(1 + steps).filter(|_| steps < DEPTH)?;
        self.ring.get(index % DEPTH).filter(|kept| kept.held)
    }

    fn keep(&mut self, number: u32, payload: &[u8], now_us: u64) {
        let gap = now_us.saturating_sub(self.last_us);
        if self.frames > 0 && GAPS_US.contains(&gap) {
            self.gap_us = gap;
        }
        if let Some(kept) = self.ring.get_mut(self.frames % DEPTH) {
            kept.number = number;
            kept.held = payload.len() <= CODED_PAYLOAD;
            kept.payload.clear();
            if kept.held {
                kept.payload.extend_from_slice(payload);
            }
        }
        self.frames += 1;
        self.last_us = now_us;
        self.flushed = 0;
    }

    /// Forget the talk spurt before: its frames are of no use any more.
    fn start(&mut self) {
        *self = Flow { ring: std::mem::take(&mut self.ring), gap_us: GAP_US, ..Flow::default() };
    }
}

/// What became of one datagram's recovery frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    pub copies: u64,
    pub parities: u64,
    /// Not sent: the datagram has no room for them, or a frame is too large to be repeated.
    pub no_room: u64,
}

/// All flows of one session's sender.
#[derive(Debug, Default)]
pub struct Coder {
    flows: HashMap<Head, Flow, RandomState>,
    body: Vec<u8>,
}

impl Coder {
    /// A frame of a flow goes out under this number: append to `out`, which holds it already, the recovery frames of
    /// earlier ones, as long as it does not grow beyond `room`.
    pub fn add(
        &mut self,
        scheme: Scheme,
        (head, number, payload): (&Head, u32, &[u8]),
        now_us: u64,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Made {
        if !self.flows.contains_key(head) && !self.make_room(now_us) {
            return Made { no_room: 1, ..Made::default() };
        }
        let flow = self.flows.entry(*head).or_insert_with(|| Flow { gap_us: GAP_US, ..Flow::default() });
        // What lies a long pause back has been flushed, and is too late for any play-out.
        if now_us.saturating_sub(flow.last_us) > *GAPS_US.end() * (DEPTH as u64 + 1) {
            flow.start();
        }
        let mut made = Made::default();
        for set in scheme.sets {
            append(flow, *set, number, &mut self.body, room, out, &mut made);
        }
        flow.keep(number, payload, now_us);
        made
    }

    /// Flows whose next packet is overdue: what it would have brought goes by itself, as copies, so that the end of
    /// a talk spurt is as safe as its middle. `each` gets a flow's head with the numbers and payloads of its frames.
    pub fn flush(&mut self, scheme: Scheme, now_us: u64, mut each: impl FnMut(&Head, &[(u32, &[u8])])) {
        self.flows.retain(|head, flow| {
            let silence = now_us.saturating_sub(flow.last_us);
            let due = flow.gap_us * (flow.flushed as u64 + 1) + flow.gap_us / 4;
            if flow.flushed < scheme.reach() && silence >= due {
                let (mut frames, mut count) = ([(0, &[][..]); DEPTH], 0);
                // How far back a set's frame is now, for each that the next packet's sets would name.
                let wanted = scheme.sets.iter().fold(0, |all, set| all | set) >> flow.flushed;
                for kept in lags(wanted).filter_map(|lag| flow.back(lag - 1)) {
                    if let Some(place) = frames.get_mut(count) {
                        *place = (kept.number, &kept.payload);
                        count += 1;
                    }
                }
                if let Some(frames) = frames.get(..count).filter(|frames| !frames.is_empty()) {
                    each(head, frames);
                }
                flow.flushed += 1;
            }
            silence < FORGET_US
        });
    }

    fn make_room(&mut self, now_us: u64) -> bool {
        if self.flows.len() >= MAX_FLOWS {
            self.flows.retain(|_, flow| now_us.saturating_sub(flow.last_us) < 1_000_000);
        }
        self.flows.len() < MAX_FLOWS
    }
}

fn lags(set: u8) -> impl Iterator<Item = usize> {
    (1..=DEPTH).filter(move |lag| set & 1 << (lag - 1) != 0)
}

/// Append the recovery frame of one set; its members are counted back from the frame that is about to be kept.
fn append(
    flow: &Flow,
    set: u8,
    number: u32,
    body: &mut Vec<u8>,
    room: usize,
    out: &mut Vec<u8>,
    made: &mut Made,
) {
    let (mut ages, mut count, mut lengths) = ([0u16; MAX_MEMBERS], 0, 0u16);
    body.clear();
    for kept in lags(set).filter_map(|lag| flow.back(lag - 1)) {
        // In a trunk so busy that 16 bits do not reach back a packet time, there is no such frame.
        let Ok(age) = u16::try_from(number.wrapping_sub(kept.number)) else { continue };
        let Some(place) = ages.get_mut(count).filter(|_| age > 0) else { continue };
        *place = age;
        count += 1;
        lengths ^= kept.payload.len() as u16;
        mix(body, &kept.payload);
    }
    let recovery = ages.get(..count).and_then(|ages| Recovery::new(ages, lengths, body));
    match recovery {
        // Nothing came before, or only what is too large.
        None => made.no_room += u64::from(flow.frames > 0 && count == 0 && flow.back(0).is_none()),
        Some(recovery) if out.len() + recovery.size() > room => made.no_room += 1,
        Some(recovery) => {
            recovery.write(out);
            *(if count == 1 { &mut made.copies } else { &mut made.parities }) += 1;
        }
    }
}

/// Exclusive or of `other` into `into`, which grows to the longer of both.
pub fn mix(into: &mut Vec<u8>, other: &[u8]) {
    if into.len() < other.len() {
        into.resize(other.len(), 0);
    }
    into.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}
