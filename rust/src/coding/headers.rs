//! Header compression: contexts by which 28 bytes of IPv4 and UDP headers (48 of IPv6) become four.
//!
//! ```text
//!   a flow's packets    plain ×3 | with context, until the receiver has said that it knows it | four bytes each
//!                                        ^______ the receiver says that it does not ____________|
//! ```
//! A wrong reconstruction is impossible: payloads without headers go only under a (context, generation) that the
//! receiver has confirmed by a checksum of the head itself; a context id is given to another flow under the next
//! generation and only after ten silent seconds, and is again unconfirmed. So it does not matter by which path, in
//! which order, or whether frames come.

use std::collections::HashMap;

use ahash::RandomState;

use super::frames::{Feedback, GENERATIONS, Kind, PACKED_HEADER, PACKED_PAYLOAD, PackedHead};
use super::head::{Head, Parts};
use crate::limits::MAX_CONTEXTS;

/// Packets of a flow that go plain before it gets a context: a question and its answer need none.
pub const BEFORE: u8 = 3;

/// A context unused for this long may be given to another flow. All generations of an id together last more than a
/// minute, in which no packet can still be under way.
const REUSE_US: u64 = 10_000_000;

/// Packets with a context that the receiver does not confirm, after which the flow goes plain for a while.
const TRIES: u8 = 64;
const REST_US: u64 = 5_000_000;

/// Longest packet that brings a context along: with four bytes more it must still fit a datagram.
const ESTABLISH_MAX: usize = 1_300;

/// The receiver speaks of one context this often at most: several packets of a flow arrive before its word is heard.
const SAY_AGAIN_US: u64 = 20_000;

#[derive(Debug)]
struct Slot {
    head: Head,
    generation: u8,
    known: bool,
    tries: u8,
    rest_until_us: u64,
    last_us: u64,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// It goes as it is.
    Plain,
    /// It goes as it is, for want of a free context.
    Full,
    /// With its context, which the receiver has not confirmed yet.
    Establishing,
    /// Without its headers.
    Compressed,
}

/// The sender's half.
#[derive(Debug)]
pub struct Packer {
    slots: Vec<Slot>,
    by_head: HashMap<Head, u8, RandomState>,
    /// Flows on their way to a context: what their heads hash to, and packets seen.
    candidates: Box<[(u64, u8); MAX_CONTEXTS]>,
    hasher: RandomState,
}

impl Default for Packer {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            by_head: HashMap::default(),
            candidates: Box::new([(0, 0); MAX_CONTEXTS]),
            hasher: RandomState::new(),
        }
    }
}

impl Packer {
    /// Append a packet to `out`, compressed, if that can be; on `Plain` and `Full` nothing is appended.
    pub fn pack(&mut self, packet: &[u8], now_us: u64, out: &mut Vec<u8>) -> Packed {
        let Some(parts) = Head::split(packet).filter(|p| p.payload.len() <= PACKED_PAYLOAD) else {
            return Packed::Plain;
        };
        let id = match self.by_head.get(&parts.head).copied() {
            Some(id) => id,
            None if !self.worth_it(&parts.head) => return Packed::Plain,
            None => match self.assign(&parts.head, now_us) {
                Some(id) => id,
                None => return Packed::Full,
            },
        };
        let Some(slot) = self.slots.get_mut(usize::from(id)) else { return Packed::Plain };
        slot.last_us = now_us;
        if !parts.head.intact(packet) {
            return Packed::Plain;
        }
        let Parts { identification, payload, .. } = parts;
        if slot.known {
            let kind = if identification.is_some() { Kind::DataIdentified } else { Kind::Data };
            PackedHead { kind, id, generation: slot.generation, length: payload.len() }.write(out);
            if let Some(identification) = identification {
                out.extend_from_slice(&identification.to_be_bytes());
            }
            out.extend_from_slice(payload);
            return Packed::Compressed;
        }
        if slot.rest_until_us > now_us || packet.len() > ESTABLISH_MAX {
            return Packed::Plain;
        }
        slot.tries += 1;
        if slot.tries >= TRIES {
            slot.tries = 0;
            slot.rest_until_us = now_us + REST_US;
        }
        PackedHead { kind: Kind::Establish, id, generation: slot.generation, length: 0 }.write(out);
        out.extend_from_slice(packet);
        Packed::Establishing
    }

    /// The receiver's word about a context. One of another generation, or with another head's check, says nothing
    /// about ours.
    pub fn heard(&mut self, feedback: &Feedback) {
        let Some(slot) = self.slots.get_mut(usize::from(feedback.id)) else { return };
        if slot.generation != feedback.generation {
            return;
        }
        match feedback.known {
            Some(check) if check == slot.head.check() => slot.known = true,
            Some(_) => {}
            None => (slot.known, slot.tries, slot.rest_until_us) = (false, 0, 0),
        }
    }

    /// Contexts given out.
    pub fn contexts(&self) -> usize {
        self.slots.len()
    }

    /// Whether a flow has sent enough. Flows of one hash share a place: the busier one gets through.
    fn worth_it(&mut self, head: &Head) -> bool {
        let hash = self.hasher.hash_one(head);
        let Some(place) = self.candidates.get_mut(hash as usize % MAX_CONTEXTS) else { return false };
        if place.0 == hash {
            place.1 = place.1.saturating_add(1);
        } else if place.1 > 0 {
            place.1 -= 1;
        } else {
            *place = (hash, 1);
        }
        if place.0 != hash || place.1 <= BEFORE {
            return false;
        }
        *place = (0, 0);
        true
    }

    fn assign(&mut self, head: &Head, now_us: u64) -> Option<u8> {
        let fresh =
            Slot { head: *head, generation: 0, known: false, tries: 0, rest_until_us: 0, last_us: now_us };
        let id = if self.slots.len() < MAX_CONTEXTS {
            self.slots.push(fresh);
            self.slots.len() - 1
        } else {
            let (id, oldest) = self.slots.iter_mut().enumerate().min_by_key(|(_, slot)| slot.last_us)?;
            if now_us.saturating_sub(oldest.last_us) < REUSE_US {
                return None;
            }
            self.by_head.remove(&oldest.head);
            *oldest = Slot { generation: (oldest.generation + 1) % GENERATIONS, ..fresh };
            id
        };
        let id = u8::try_from(id).ok()?;
        self.by_head.insert(*head, id);
        Some(id)
    }
}

#[derive(Clone, Debug, Default)]
struct Context {
    head: Option<(u8, Head)>,
    /// When we last spoke of it.
    said_us: Option<u64>,
}

impl Context {
    fn may_say(&mut self, now_us: u64) -> bool {
        let may = self.said_us.is_none_or(|said| now_us.saturating_sub(said) >= SAY_AGAIN_US);
        if may {
            self.said_us = Some(now_us);
        }
        may
    }
}

/// What the receiver makes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// The buffer has the packet; there may be something to tell the sender.
    Packet(Option<Feedback>),
    /// Nothing is known of that generation of the context.
    Unknown(Option<Feedback>),
    /// The sender should know better than to send this.
    Malformed,
}

/// The receiver's half.
#[derive(Debug, Default)]
pub struct Unpacker {
    contexts: Vec<Context>,
}

impl Unpacker {
    /// Put into `out` the packet of a frame whose framing has been checked.
    pub fn unpack(&mut self, frame: &[u8], now_us: u64, out: &mut Vec<u8>) -> Unpacked {
        out.clear();
        let (Some(head), Some(rest)) = (PackedHead::parse(frame), frame.get(PACKED_HEADER..)) else {
            return Unpacked::Malformed;
        };
        match head.kind {
            Kind::Establish => self.establish(head, rest, now_us, out),
            Kind::Data => self.rebuild(head, 0, rest, now_us, out),
            Kind::DataIdentified => match rest.split_first_chunk::<2>() {
                Some((identification, payload)) => {
                    self.rebuild(head, u16::from_be_bytes(*identification), payload, now_us, out)
                }
                None => Unpacked::Malformed,
            },
            Kind::Feedback => Unpacked::Malformed,
        }
    }

    /// Contexts known.
    pub fn contexts(&self) -> usize {
        self.contexts.iter().filter(|context| context.head.is_some()).count()
    }

    fn establish(&mut self, frame: PackedHead, packet: &[u8], now_us: u64, out: &mut Vec<u8>) -> Unpacked {
        let Some(parts) = Head::split(packet) else { return Unpacked::Malformed };
        out.extend_from_slice(packet);
        let context = self.context(frame.id);
        let new = context.head != Some((frame.generation, parts.head));
        context.head = Some((frame.generation, parts.head));
        let say = new || context.may_say(now_us);
        if say {
            context.said_us = Some(now_us);
        }
        let (id, generation, known) = (frame.id, frame.generation, Some(parts.head.check()));
        Unpacked::Packet(say.then_some(Feedback { id, generation, known }))
    }

    fn rebuild(
        &mut self,
        frame: PackedHead,
        identification: u16,
        payload: &[u8],
        now_us: u64,
        out: &mut Vec<u8>,
    ) -> Unpacked {
        let PackedHead { id, generation, .. } = frame;
        let context = self.context(id);
        match context.head {
            Some((known, head)) if known == generation => {
                if head.write(identification, payload, out) {
                    Unpacked::Packet(None)
                } else {
                    Unpacked::Malformed
                }
            }
            _ => {
                let say = context.may_say(now_us);
                Unpacked::Unknown(say.then_some(Feedback { id, generation, known: None }))
            }
        }
    }

    fn context(&mut self, id: u8) -> &mut Context {
        let index = usize::from(id);
        if self.contexts.len() <= index {
            self.contexts.resize(index + 1, Context::default());
        }
        &mut self.contexts[index]
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{open_feedback, write_feedback};
    use super::super::head::tests::packet;
    use super::*;

    const MS: u64 = 1_000;

    /// Both ends with nothing between them.
    #[derive(Default)]
    struct Pair {
        packer: Packer,
        unpacker: Unpacker,
        frame: Vec<u8>,
        out: Vec<u8>,
    }

    impl Pair {
        /// Send one packet; what it went as and, if it came, whether it came whole.
        fn send(&mut self, packet: &[u8], now_us: u64, arrives: bool) -> Packed {
            self.frame.clear();
            let packed = self.packer.pack(packet, now_us, &mut self.frame);
            if matches!(packed, Packed::Plain | Packed::Full) || !arrives {
                return packed;
            }
            match self.unpacker.unpack(&self.frame, now_us, &mut self.out) {
                Unpacked::Packet(word) => {
                    assert_eq!(self.out, packet);
                    word.into_iter().for_each(|word| self.tell(&word));
                }
                Unpacked::Unknown(word) => word.into_iter().for_each(|word| self.tell(&word)),
                Unpacked::Malformed => panic!("our own frame"),
            }
            packed
        }

        fn tell(&mut self, word: &Feedback) {
            self.packer.heard(&open_feedback(&write_feedback(word)).unwrap());
        }
    }

    #[test]
    fn a_flow_is_compressed_by_itself_after_some_packets() {
        for (v6, saved) in [(false, 24), (true, 44)] {
            let mut pair = Pair::default();
            let went: Vec<Packed> = (0..6)
                .map(|i| pair.send(&packet(v6, 5004, &[i; 172]), u64::from(i) * 20 * MS, true))
                .collect();
            assert_eq!(went[..3], [Packed::Plain; 3]);
            assert_eq!(went[3..], [Packed::Establishing, Packed::Compressed, Packed::Compressed]);
            assert_eq!(pair.frame.len() + saved, packet(v6, 5004, &[0; 172]).len());
        }
    }

    #[test]
    fn payloads_go_without_headers_only_after_the_receiver_has_confirmed() {
        let mut pair = Pair::default();
        for i in 0..20u8 {
            let went = pair.send(&packet(false, 5004, &[i; 33]), u64::from(i) * 20 * MS, false);
            assert_ne!(went, Packed::Compressed, "the receiver has heard nothing");
        }
        assert_eq!(pair.send(&packet(false, 5004, b"x"), 400 * MS, true), Packed::Establishing);
        assert_eq!(pair.send(&packet(false, 5004, b"x"), 420 * MS, true), Packed::Compressed);
    }

    #[test]
    fn a_receiver_that_began_anew_asks_and_is_told() {
        let mut pair = Pair::default();
        for i in 0..6u8 {
            pair.send(&packet(false, 5004, &[i]), u64::from(i) * 20 * MS, true);
        }
        pair.unpacker = Unpacker::default();
        assert_eq!(pair.send(&packet(false, 5004, b"lost"), 200 * MS, true), Packed::Compressed);
        assert_eq!(pair.send(&packet(false, 5004, b"whole"), 220 * MS, true), Packed::Establishing);
        assert_eq!(pair.send(&packet(false, 5004, b"small"), 240 * MS, true), Packed::Compressed);
    }

    #[test]
    fn a_peer_that_never_answers_is_not_told_for_ever() {
        let mut pair = Pair::default();
        let at = |i: u64| i * 20 * MS;
        let told =
            (0..200).filter(|i| pair.send(&packet(false, 5004, b"x"), at(*i), false) == Packed::Establishing);
        assert_eq!(told.count(), usize::from(TRIES));
    }

    #[test]
    fn contexts_are_bounded_and_given_on_only_after_a_pause() {
        let mut pair = Pair::default();
        let mut talk = |port: u16, now_us: u64| {
            (0..6).map(|_| pair.send(&packet(false, port, b"x"), now_us, true)).last().unwrap()
        };
        let first = (0..MAX_CONTEXTS as u16).filter(|i| talk(10_000 + i, 0) == Packed::Compressed).count();
        assert_eq!(first, MAX_CONTEXTS);
        assert_ne!(talk(20_000, REUSE_US - 1), Packed::Compressed);
        assert_eq!(talk(20_001, REUSE_US), Packed::Compressed);
        assert_eq!(talk(10_255, REUSE_US), Packed::Compressed, "others have kept theirs");
        assert_eq!(pair.packer.contexts(), MAX_CONTEXTS);
    }

    #[test]
    fn a_late_frame_of_an_older_generation_is_refused() {
        let mut pair = Pair::default();
        for i in 0..6u8 {
            pair.send(&packet(false, 5004, &[i]), u64::from(i), true);
        }
        let late = pair.frame.clone();
        let mut establish = Vec::new();
        PackedHead { kind: Kind::Establish, id: 0, generation: 1, length: 0 }.write(&mut establish);
        establish.extend(packet(false, 6000, b"another flow"));
        assert!(matches!(pair.unpacker.unpack(&establish, 10, &mut pair.out), Unpacked::Packet(Some(_))));
        assert!(matches!(pair.unpacker.unpack(&late, 11, &mut pair.out), Unpacked::Unknown(_)));
        assert!(pair.out.is_empty());
        // Word of the other generation does not change our mind about ours.
        pair.tell(&Feedback { id: 0, generation: 1, known: None });
        assert_eq!(pair.send(&packet(false, 5004, b"x"), 12, false), Packed::Compressed);
    }

    #[test]
    fn what_is_wrong_on_the_way_in_is_wrong_on_the_way_out() {
        let mut pair = Pair::default();
        for i in 0..6u8 {
            pair.send(&packet(false, 5004, &[i; 20]), u64::from(i), true);
        }
        let mut wrong = packet(false, 5004, &[9; 20]);
        wrong[35] ^= 0xff;
        assert_eq!(pair.send(&wrong, 20, true), Packed::Plain, "its checksum must not be mended");
    }
}
