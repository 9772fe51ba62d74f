//! What a receiver keeps of each flow's latest frames, to undo the exclusive or of a recovery frame.

use std::collections::HashMap;

use ahash::RandomState;

use super::frames::Recovery;
use super::head::Head;
use super::sender::mix;
use crate::limits::{CODED_PAYLOAD, MAX_FLOWS};

/// Frames of a flow that are kept: the longest lag, and as many again for what was late.
const DEPTH: usize = 8;

/// A flow that has been silent for this long makes room for another.
const QUIET_US: u64 = 1_000_000;

#[derive(Debug, Default)]
struct Kept {
    number: u32,
    held: bool,
    payload: Vec<u8>,
}

#[derive(Debug, Default)]
struct History {
    ring: [Kept; DEPTH],
    next: usize,
    last_us: u64,
}

impl History {
    fn find(&self, number: u32) -> Option<&[u8]> {
        self.ring.iter().find(|kept| kept.held && kept.number == number).map(|kept| kept.payload.as_slice())
    }
}

/// What a recovery frame was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// This frame was missing; its payload is in the buffer.
    Frame(u32),
    /// Nothing was missing.
    Needless,
    /// More than one frame is missing.
    Short,
    /// It contradicts what has come.
    Contradiction,
}

/// All flows of one session's receiver.
#[derive(Debug, Default)]
pub struct Decoder {
    flows: HashMap<Head, History, RandomState>,
}

impl Decoder {
    /// A frame has come, or has been recovered.
    pub fn note(&mut self, head: &Head, number: u32, payload: &[u8], now_us: u64) {
        if payload.len() > CODED_PAYLOAD {
            return;
        }
        if self.flows.len() >= MAX_FLOWS && !self.flows.contains_key(head) {
            self.flows.retain(|_, flow| now_us.saturating_sub(flow.last_us) < QUIET_US);
            if self.flows.len() >= MAX_FLOWS {
                return;
            }
        }
        let flow = self.flows.entry(*head).or_default();
        flow.last_us = now_us;
        let place = flow.next % DEPTH;
        flow.next += 1;
        if let Some(kept) = flow.ring.get_mut(place) {
            kept.number = number;
            kept.held = true;
            kept.payload.clear();
            kept.payload.extend_from_slice(payload);
        }
    }

    /// Find the one frame of a recovery frame's members that is missing.
    ///
    /// `base` is the number its ages count from. What is missing here may have come by another way all the same.
    pub fn repair(&self, head: &Head, base: u32, recovery: &Recovery<'_>, out: &mut Vec<u8>) -> Repair {
        let flow = self.flows.get(head);
        let (mut missing, mut lengths) = (None, recovery.lengths);
        out.clear();
        out.extend_from_slice(recovery.body);
        for number in recovery.ages().iter().map(|age| base.wrapping_sub(u32::from(*age))) {
            match flow.and_then(|flow| flow.find(number)) {
                Some(payload) if payload.len() > out.len() => return Repair::Contradiction,
                Some(payload) => {
                    lengths ^= payload.len() as u16;
                    mix(out, payload);
                }
                None if missing.is_some() => return Repair::Short,
                None => missing = Some(number),
            }
        }
        match missing {
            None => Repair::Needless,
            Some(number) => {
                let (length, extent) = (usize::from(lengths), out.len());
                // What is behind the frame's own length must have cancelled out.
                if length > extent || out.iter().skip(length).any(|byte| *byte != 0) {
                    return Repair::Contradiction;
                }
                out.truncate(length);
                Repair::Frame(number)
            }
        }
    }
}
