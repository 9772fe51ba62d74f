//! Packets between their look-up and their delivery. Where a packet goes is known once it has been opened; the memory
//! of that session, its tunnel and its key is then asked for, and some packets later it is there.

use std::sync::Arc;

use crate::packet::Meta;
use crate::sys::prefetch;
use crate::tables::Session;

/// Packets under way. Three steps (session, tunnel, key) of some 100 ns each, against half a microsecond of work with
/// each packet.
const DEPTH: usize = 6;

/// Steps between asking for one thing and following it to the next.
const STEP: usize = 2;

/// Longest packet that is put off: any of voice. Longer ones are rarer, and copying them costs more than it saves.
const ROOM: usize = 512;

struct Slot {
    to: Option<(Arc<Session>, Meta)>,
    length: usize,
    data: [u8; ROOM],
}

/// A short queue, in order.
pub struct Ahead {
    slots: [Slot; DEPTH],
    first: usize,
    count: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        let slots = std::array::from_fn(|_| Slot { to: None, length: 0, data: [0; ROOM] });
        Self { slots, first: 0, count: 0 }
    }
}

impl Ahead {
    /// Whether a packet of this length can wait here at all.
    pub fn takes(length: usize) -> bool {
        length <= ROOM
    }

    pub fn is_full(&self) -> bool {
        self.count == DEPTH
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Take a packet in, and go on asking for what those before it need. There must be room.
    pub fn push(&mut self, to: Arc<Session>, data: &[u8], meta: &Meta) {
        to.warm();
        let at = (self.first + self.count) % DEPTH;
        let Some(slot) = self.slots.get_mut(at) else { return };
        let Some(place) = slot.data.get_mut(..data.len()) else { return };
        place.copy_from_slice(data);
        (slot.to, slot.length) = (Some((to, *meta)), data.len());
        self.count += 1;
        if let Some(session) = self.back(STEP)
            && let Some(tunnel) = session.way_out().as_ref()
        {
            prefetch(&**tunnel);
        }
        if let Some(session) = self.back(2 * STEP)
            && let Some(tunnel) = session.way_out().as_ref()
        {
            tunnel.warm_for_sending();
        }
    }

    /// The session of the packet that came so many before the last.
    fn back(&self, steps: usize) -> Option<&Session> {
        let place = self.count.checked_sub(1 + steps)?;
        let slot = self.slots.get((self.first + place) % DEPTH)?;
        slot.to.as_ref().map(|(session, _)| &**session)
    }

    /// The packet that has waited longest.
    pub fn pop(&mut self) -> Option<(Arc<Session>, Meta, &mut [u8])> {
        let count = self.count.checked_sub(1)?;
        let slot = self.slots.get_mut(self.first)?;
        let (session, meta) = slot.to.take()?;
        (self.first, self.count) = ((self.first + 1) % DEPTH, count);
        Some((session, meta, slot.data.get_mut(..slot.length)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{UdpHead, write_udp};
    use crate::tables::{Role, Sink};

    #[test]
    fn packets_leave_as_they_came_and_in_their_order() {
        let mut ahead = Ahead::default();
        let address = "10.0.0.1".parse().unwrap();
        let (mut next, mut out) = (0u16, 0u16);
        for round in 1..=3 * DEPTH {
            for _ in 0..round.min(DEPTH) {
                let head = UdpHead {
                    source: address,
                    source_port: 9,
                    destination: address,
                    destination_port: next,
                    tos: 0,
                };
                let mut packet = Vec::new();
                assert!(write_udp(&head, &next.to_be_bytes(), &mut packet));
                let meta = Meta::parse(&packet).unwrap();
                let session = Session::new(u64::from(next), Role::Server, vec![address], Sink::Route);
                if ahead.is_full() {
                    break;
                }
                ahead.push(Arc::new(session), &packet, &meta);
                next += 1;
            }
            while out < next && (round % 3 == 0 || ahead.is_full()) {
                let (session, meta, data) = ahead.pop().unwrap();
                assert_eq!((session.id, meta.destination_port), (u64::from(out), out));
                assert_eq!(meta.udp_payload(data), Some(&out.to_be_bytes()[..]));
                out += 1;
            }
        }
        assert!(out > 0 && ahead.is_empty() == (out == next));
        assert!(!Ahead::takes(ROOM + 1));
    }
}
