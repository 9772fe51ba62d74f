//! Coding in the way of a packet: headers left out and put back, recovery frames appended and used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::coding::frames::{Feedback, Kind, PACKED, PackedHead, Recovery, open_feedback, write_feedback};
use crate::coding::head::Head;
use crate::coding::headers::{Packed, Unpacked};
use crate::coding::receiver::Repair;
use crate::counters::Counter;
use crate::egress::Class;
use crate::forward::Forwarder;
use crate::frame::{sequenced_head, write_sequenced};
use crate::limits::CODED_PAYLOAD;
use crate::tables::Session;
use crate::tunnel::Tunnel;

/// Longest packet that is repeated: its payload with the longer of the headers.
const CODED_PACKET: usize = CODED_PAYLOAD + 48;

/// The sequenced frame that the recovery frames behind it in its datagram count from.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    number: u32,
    head: Head,
}

/// Buffers of a thread's coding, kept so that no packet allocates.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Of the datagram being read; None at its beginning.
    pub anchor: Option<Anchor>,
    unpacked: Vec<u8>,
    rebuilt: Vec<u8>,
    payload: Vec<u8>,
    frame: Vec<u8>,
}

impl Forwarder {
    /// A compressed-header frame came out of a tunnel.
    pub fn from_packed(&mut self, tunnel: &Arc<Tunnel>, frame: &[u8]) {
        if PackedHead::parse(frame).is_some_and(|head| head.kind == Kind::Feedback) {
            return self.hear_feedback(tunnel, frame);
        }
        let mut packet = std::mem::take(&mut self.coding.unpacked);
        if self.unpack(tunnel, frame, &mut packet) {
            self.from_tunnel(tunnel, &mut packet);
        }
        self.coding.unpacked = packet;
    }

    /// The packet of a sequenced frame, with its headers, goes to `then`.
    pub(crate) fn with_headers(
        &mut self,
        tunnel: &Arc<Tunnel>,
        inner: &mut [u8],
        then: impl FnOnce(&mut Self, &mut [u8]),
    ) {
        if inner.first() != Some(&PACKED) {
            return then(self, inner);
        }
        let mut packet = std::mem::take(&mut self.coding.unpacked);
        if self.unpack(tunnel, inner, &mut packet) {
            then(self, &mut packet);
        }
        self.coding.unpacked = packet;
    }

    fn hear_feedback(&self, tunnel: &Arc<Tunnel>, frame: &[u8]) {
        let guard = tunnel.session();
        let heard = guard.as_ref().zip(open_feedback(frame)).and_then(|(session, feedback)| {
            session.coding.packer.lock().as_mut().map(|packer| packer.heard(&feedback))
        });
        if heard.is_none() {
            self.counters.add(Counter::CodingNotAgreed);
        }
    }

    fn unpack(&mut self, tunnel: &Arc<Tunnel>, frame: &[u8], packet: &mut Vec<u8>) -> bool {
        let guard = tunnel.session();
        let Some(session) = guard.as_ref().filter(|session| session.coding.takes_compressed()) else {
            self.counters.add(Counter::CodingNotAgreed);
            return false;
        };
        let unpacked = match session.coding.unpacker.lock().as_mut() {
            Some(unpacker) => unpacker.unpack(frame, self.now_us, packet),
            None => Unpacked::Malformed,
        };
        let counts = &session.coding.counts;
        match unpacked {
            Unpacked::Packet(word) => {
                counts.compressed_received.fetch_add(u64::from(word.is_none()), Ordering::Relaxed);
                self.say(tunnel, word);
                true
            }
            Unpacked::Unknown(word) => {
                counts.unknown_contexts.fetch_add(1, Ordering::Relaxed);
                self.counters.add(Counter::ContextUnknown);
                self.say(tunnel, word);
                false
            }
            Unpacked::Malformed => {
                self.counters.add(Counter::CodingMalformed);
                false
            }
        }
    }

    fn say(&mut self, tunnel: &Arc<Tunnel>, word: Option<Feedback>) {
        let Some(word) = word else { return };
        let frame = write_feedback(&word);
        let sent = if tunnel.is_datagram() {
            self.send_frame(tunnel, &frame)
        } else {
            self.queue_frame(tunnel, Class::Signalling, &frame)
        };
        if let Err(drop) = sent {
            self.counters.add(drop);
        }
    }

    /// A numbered packet has come by a datagram tunnel: recovery frames behind it count from it.
    pub(crate) fn anchor(&mut self, session: &Session, number: u32, packet: &[u8], first: bool) {
        if !session.coding.takes_recovery() {
            return;
        }
        let parts = Head::split(packet);
        self.coding.anchor = parts.map(|parts| Anchor { number, head: parts.head });
        if let Some(parts) = parts.filter(|_| first && session.coding.keeps()) {
            note(session, &parts.head, number, parts.payload, self.now_us);
        }
    }

    /// Recovery data came out of a tunnel.
    pub fn from_recovery(&mut self, tunnel: &Arc<Tunnel>, frame: &[u8]) {
        let session = tunnel.session().clone();
        let agreed = session.filter(|session| session.coding.takes_recovery() && tunnel.is_datagram());
        let Some(session) = agreed else { return self.counters.add(Counter::CodingNotAgreed) };
        let (Ok(Some((recovery, _))), Some(anchor)) = (Recovery::parse(frame), self.coding.anchor) else {
            return self.counters.add(Counter::CodingMalformed);
        };
        let mut payload = std::mem::take(&mut self.coding.payload);
        self.recover(tunnel, &session, anchor, &recovery, &mut payload);
        self.coding.payload = payload;
    }

    fn recover(
        &mut self,
        tunnel: &Arc<Tunnel>,
        session: &Session,
        anchor: Anchor,
        recovery: &Recovery<'_>,
        payload: &mut Vec<u8>,
    ) {
        let counts = &session.coding.counts;
        let repair = if let [age] = recovery.ages() {
            payload.clear();
            payload.extend_from_slice(recovery.body);
            Repair::Frame(anchor.number.wrapping_sub(u32::from(*age)))
        } else {
            session.coding.see_parity();
            let decoder = session.coding.decoder.lock();
            decoder
                .as_ref()
                .map_or(Repair::Short, |d| d.repair(&anchor.head, anchor.number, recovery, payload))
        };
        let number = match repair {
            Repair::Frame(number) => number,
            Repair::Needless => return,
            Repair::Short => return self.counters.add(Counter::RecoveryShort),
            Repair::Contradiction => return self.counters.add(Counter::CodingMalformed),
        };
        if !session.doubt.first_of(number) {
            counts.copies_dropped.fetch_add(1, Ordering::Relaxed);
            return self.counters.add(Counter::CopyDropped);
        }
        let (counter, count) = match recovery.ages().len() {
            1 => (Counter::MediaRecovered, &counts.recovered),
            _ => (Counter::MediaRepaired, &counts.repaired),
        };
        self.counters.add(counter);
        count.fetch_add(1, Ordering::Relaxed);
        if session.coding.keeps() {
            note(session, &anchor.head, number, payload, self.now_us);
        }
        let mut packet = std::mem::take(&mut self.coding.rebuilt);
        packet.clear();
        if anchor.head.write(number as u16, payload, &mut packet) {
            self.from_tunnel(tunnel, &mut packet);
        }
        self.coding.rebuilt = packet;
    }

    /// Whether this packet goes with recovery data, and is to be repeated itself.
    #[inline]
    pub(crate) fn repeats(&self, session: &Session, packet: &[u8]) -> bool {
        if session.coding.scheme().is_none() {
            return false;
        }
        let fits = packet.len() <= CODED_PACKET;
        if !fits {
            self.counters.add(Counter::RecoveryNoRoom);
        }
        fits
    }

    /// Append to `frame`, which is a sequenced frame about to go by a datagram tunnel with so much room, the recovery
    /// frames of those that went before it.
    pub(crate) fn append_recovery(
        &self,
        session: &Session,
        number: u32,
        packet: &[u8],
        room: usize,
        frame: &mut Vec<u8>,
    ) {
        let Some(scheme) = session.coding.scheme() else { return };
        let Some(parts) = Head::split(packet).filter(|parts| parts.head.intact(packet)) else { return };
        let before = frame.len();
        let made = match session.coding.coder.lock().as_mut() {
            Some(coder) => coder.add(scheme, (&parts.head, number, parts.payload), self.now_us, room, frame),
            None => return,
        };
        let counts = &session.coding.counts;
        add(&counts.copies_sent, made.copies);
        add(&counts.parities_sent, made.parities);
        add(&counts.recovery_bytes, (frame.len() - before) as u64);
        self.counters.add_n(Counter::RecoverySent, made.copies + made.parities);
        self.counters.add_n(Counter::RecoveryNoRoom, made.no_room);
    }

    /// Send what packets that have not come would have brought. Called every `FLUSH_US` while media is on the tunnel.
    pub fn flush_recovery(&mut self, session: &Session, tunnel: &Arc<Tunnel>) {
        let (Some(scheme), Some(link)) = (session.coding.scheme(), tunnel.datagram()) else { return };
        let room = link.room();
        let mut frame = std::mem::take(&mut self.coding.frame);
        if let Some(coder) = session.coding.coder.lock().as_mut() {
            let now_us = self.now_us;
            coder.flush(scheme, now_us, |head, frames| {
                frame.clear();
                let mut copies = 0;
                for (number, payload) in frames {
                    let whole = frame.len();
                    sequenced_head(*number, &mut frame);
                    if !head.write(*number as u16, payload, &mut frame) || frame.len() > room {
                        frame.truncate(whole);
                        break;
                    }
                    copies += 1;
                }
                if self.send_frame(tunnel, &frame).is_ok() {
                    add(&session.coding.counts.copies_sent, copies);
                    add(&session.coding.counts.recovery_bytes, frame.len() as u64);
                    self.counters.add_n(Counter::RecoverySent, copies);
                }
            });
        }
        self.coding.frame = frame;
    }

    /// Append a packet to `out` with its headers compressed, or, where that is not possible, as it is.
    pub(crate) fn pack(&self, session: &Session, packet: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        let packed = match session.coding.packer.lock().as_mut() {
            Some(packer) => packer.pack(packet, self.now_us, out),
            None => Packed::Plain,
        };
        match packed {
            Packed::Plain => out.extend_from_slice(packet),
            Packed::Full => {
                out.extend_from_slice(packet);
                self.counters.add(Counter::ContextsFull);
            }
            Packed::Establishing => {}
            Packed::Compressed => {
                self.counters.add(Counter::HeadersCompressed);
                add(&session.coding.counts.compressed_sent, 1);
                add(&session.coding.counts.saved_bytes, (packet.len() - (out.len() - before)) as u64);
            }
        }
    }

    /// Append a sequenced frame to `out`, its headers compressed if that is agreed.
    pub(crate) fn write_numbered(&self, session: &Session, number: u32, packet: &[u8], out: &mut Vec<u8>) {
        if session.coding.compresses() {
            sequenced_head(number, out);
            self.pack(session, packet, out);
        } else {
            write_sequenced(number, packet, out);
        }
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

fn note(session: &Session, head: &Head, number: u32, payload: &[u8], now_us: u64) {
    if let Some(decoder) = session.coding.decoder.lock().as_mut() {
        decoder.note(head, number, payload, now_us);
    }
}
