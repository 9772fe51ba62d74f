//! SIP on its way through a client's TUN device: which packets the control plane gets a copy of, so that it learns
//! from their SDP where media will be before the first packet of it.
//!
//! A copy is all that is made: the packet goes its way whether or not anybody reads the copy. What is copied are
//! messages about calls (not registrations, presence or texts) in UDP on any port, and what TCP carries on SIP's
//! own port. Datagrams that came in fragments are put together here, because an offer with video has several.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::session::Policer;
use crate::packet::{Meta, TCP, UDP, UDP_HEADER};

/// SIP's port (RFC 3261 section 18.1.1). Which TCP connection carries SIP cannot be seen in a segment.
const SIP_PORT: u16 = 5060;

/// Bytes of copies per second and client: 2,000 messages, which is 200 calls a second being set up. It bounds what
/// a program behind the device can cost the control plane.
const RATE: u64 = 1_000_000;

/// Largest message put together from fragments; an offer with video and ICE has 4 KiB.
const MAX_MESSAGE: usize = 16 * 1024;

/// Messages being put together at once. They arrive whole, one after the other; losses leave a few behind.
const MAX_PARTS: usize = 8;

/// A packet about a call, for the control plane.
#[derive(Debug, PartialEq, Eq)]
pub struct Signal {
    pub protocol: u8,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// TCP: number of the first byte of `data`.
    pub sequence: u32,
    pub data: Vec<u8>,
}

/// What a look at a packet gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    Nothing,
    Found(Signal),
    /// It would have been copied, but too much is being said.
    TooMuch,
}

/// A datagram of which not all fragments have come.
#[derive(Debug)]
struct Parts {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    /// From the UDP header on.
    data: Vec<u8>,
}

/// One session's.
#[derive(Debug)]
pub struct Signals {
    watched: AtomicBool,
    parts: Mutex<Vec<Parts>>,
    rate: Policer,
}

impl Default for Signals {
    fn default() -> Self {
        Self { watched: AtomicBool::new(false), parts: Mutex::new(Vec::new()), rate: Policer::new(RATE) }
    }
}

impl Signals {
    /// Whether copies are wanted.
    pub fn watch(&self, wanted: bool) {
        self.watched.store(wanted, Ordering::Relaxed);
    }

    /// Look at an inner packet, in either direction.
    #[inline]
    pub fn look(&self, meta: &Meta, data: &[u8], now_us: u64) -> Look {
        if !self.watched.load(Ordering::Relaxed) {
            return Look::Nothing;
        }
        match meta.protocol {
            UDP if meta.fragment => self.gather(meta, data, now_us),
            UDP => match meta.udp_payload(data) {
                Some(payload) if is_call(payload) => self.copy(meta, 0, payload, now_us),
                Some(_) | None => Look::Nothing,
            },
            TCP if meta.source_port == SIP_PORT || meta.destination_port == SIP_PORT => {
                match tcp_payload(meta, data) {
                    Some((sequence, payload)) => self.copy(meta, sequence, payload, now_us),
                    None => Look::Nothing,
                }
            }
            _ => Look::Nothing,
        }
    }

    fn copy(&self, meta: &Meta, sequence: u32, payload: &[u8], now_us: u64) -> Look {
        if !self.rate.admit(payload.len(), now_us) {
            return Look::TooMuch;
        }
        Look::Found(Signal {
            protocol: meta.protocol,
            source: SocketAddr::new(meta.source, meta.source_port),
            destination: SocketAddr::new(meta.destination, meta.destination_port),
            sequence,
            data: payload.to_vec(),
        })
    }

    /// A fragment. In order, as one host sends them; others are given up.
    fn gather(&self, meta: &Meta, data: &[u8], now_us: u64) -> Look {
        let Some((id, offset)) = fragment_place(meta, data) else {
            return Look::Nothing;
        };
        let Some(piece) = data.get(meta.transport..meta.length) else {
            return Look::Nothing;
        };
        let mut parts = self.parts.lock();
        let same = |p: &Parts| p.id == id && p.source == meta.source && p.destination == meta.destination;
        if offset == 0 {
            if !piece.get(UDP_HEADER..).is_some_and(is_call) {
                return Look::Nothing;
            }
            parts.retain(|p| !same(p));
            if parts.len() >= MAX_PARTS {
                parts.remove(0);
            }
            let (source, destination) = (meta.source, meta.destination);
            parts.push(Parts { source, destination, id, data: piece.to_vec() });
            return Look::Nothing;
        }
        let Some(at) = parts.iter().position(same) else {
            return Look::Nothing;
        };
        let Some(begun) = parts.get_mut(at) else {
            return Look::Nothing;
        };
        if begun.data.len() != offset || offset + piece.len() > MAX_MESSAGE {
            parts.remove(at);
            return Look::Nothing;
        }
        begun.data.extend_from_slice(piece);
        let Some(whole) = stated_length(&begun.data) else {
            return Look::Nothing;
        };
        if begun.data.len() < whole {
            return Look::Nothing;
        }
        let done = parts.remove(at);
        drop(parts);
        self.whole(meta, &done.data, whole, now_us)
    }

    fn whole(&self, meta: &Meta, datagram: &[u8], length: usize, now_us: u64) -> Look {
        let (Some(head), Some(payload)) = (datagram.first_chunk::<4>(), datagram.get(UDP_HEADER..length))
        else {
            return Look::Nothing;
        };
        let source_port = u16::from_be_bytes([head[0], head[1]]);
        let destination_port = u16::from_be_bytes([head[2], head[3]]);
        self.copy(&Meta { source_port, destination_port, ..*meta }, 0, payload, now_us)
    }
}

/// Length in the UDP header at the beginning.
fn stated_length(datagram: &[u8]) -> Option<usize> {
    let length = datagram.get(4..6)?;
    Some(usize::from(u16::from_be_bytes([length[0], length[1]])))
}

/// Whether this is the beginning of a SIP message about a call: a request that sets up, changes or ends one, or a
/// response. RTP, RTCP, STUN and DTLS begin with bytes that are no letters.
pub fn is_call(payload: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 7] =
        [b"INVITE ", b"ACK ", b"BYE ", b"CANCEL ", b"PRACK ", b"UPDATE ", b"SIP/2.0 "];
    payload.first().is_some_and(u8::is_ascii_uppercase) && BEGINNINGS.iter().any(|b| payload.starts_with(b))
}

/// Sequence number and bytes of a TCP segment that has any.
fn tcp_payload<'a>(meta: &Meta, data: &'a [u8]) -> Option<(u32, &'a [u8])> {
    if meta.fragment {
        return None;
    }
    let head: &[u8; 20] = data.get(meta.transport..meta.length)?.first_chunk()?;
    let begin = meta.transport + usize::from(head[12] >> 4) * 4;
    let payload = data.get(begin.max(meta.transport + 20)..meta.length)?;
    let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    (!payload.is_empty()).then_some((sequence, payload))
}

/// Identification and offset in bytes of a fragment (RFC 791 section 3.1, RFC 8200 section 4.5).
fn fragment_place(meta: &Meta, data: &[u8]) -> Option<(u32, usize)> {
    if meta.source.is_ipv4() {
        let words = data.get(4..8)?;
        let id = u32::from(u16::from_be_bytes([words[0], words[1]]));
        let offset = usize::from(u16::from_be_bytes([words[2], words[3]]) & 0x1fff) * 8;
        return Some((id, offset));
    }
    let head = data.get(meta.transport.checked_sub(8)?..meta.transport)?;
    if head[0] != UDP {
        return None;
    }
    let offset = usize::from(u16::from_be_bytes([head[2], head[3]]) & 0xfff8);
    Some((u32::from_be_bytes([head[4], head[5], head[6], head[7]]), offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{UdpHead, write_udp};

    const INVITE: &[u8] = b"INVITE sip:bob@example.test SIP/2.0\r\n\r\n";

    fn udp(payload: &[u8], v6: bool) -> Vec<u8> {
        let (a, b) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        let head = UdpHead {
            source: a.parse().unwrap(),
            source_port: 40_000,
            destination: b.parse().unwrap(),
            destination_port: 5060,
            tos: 0,
        };
        let mut out = Vec::new();
        assert!(write_udp(&head, payload, &mut out));
        out
    }

    fn watching() -> Signals {
        let signals = Signals::default();
        signals.watch(true);
        signals
    }

    fn look(signals: &Signals, packet: &[u8]) -> Look {
        signals.look(&Meta::parse(packet).unwrap(), packet, 0)
    }

    fn found(look: Look) -> Signal {
        match look {
            Look::Found(signal) => signal,
            other => panic!("{other:?}"),
        }
    }

    /// The packet as fragments of at most `size` bytes of payload (a multiple of 8).
    fn fragments(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
        let v6 = packet[0] >> 4 == 6;
        let header = if v6 { 40 } else { 20 };
        let chunks: Vec<&[u8]> = packet[header..].chunks(size).collect();
        let cut = |(i, chunk): (usize, &&[u8])| {
            let mut out = packet[..header].to_vec();
            let (offset, more) = (i * size, u16::from(i + 1 < chunks.len()));
            if v6 {
                out[6] = 44;
                out.extend_from_slice(&[UDP, 0]);
                out.extend_from_slice(&(offset as u16 | more).to_be_bytes());
                out.extend_from_slice(&77u32.to_be_bytes());
                out[4..6].copy_from_slice(&((chunk.len() + 8) as u16).to_be_bytes());
            } else {
                out[2..4].copy_from_slice(&((header + chunk.len()) as u16).to_be_bytes());
                out[4..6].copy_from_slice(&77u16.to_be_bytes());
                out[6..8].copy_from_slice(&((offset / 8) as u16 | more << 13).to_be_bytes());
            }
            out.extend_from_slice(chunk);
            out
        };
        chunks.iter().enumerate().map(cut).collect()
    }

    #[test]
    fn messages_about_calls_are_copied_and_the_rest_is_not() {
        let signals = watching();
        let signal = found(look(&signals, &udp(INVITE, false)));
        assert_eq!((signal.data.as_slice(), signal.source.port(), signal.protocol), (INVITE, 40_000, UDP));
        for other in [&b"REGISTER sip:a SIP/2.0\r\n"[..], b"INVITED", b"\x80\0\0\0INVITE ", b"", b"\r\n\r\n"]
        {
            assert_eq!(look(&signals, &udp(other, false)), Look::Nothing);
        }
        signals.watch(false);
        assert_eq!(look(&signals, &udp(INVITE, false)), Look::Nothing);
    }

    #[test]
    fn fragments_are_put_together() {
        let long: Vec<u8> = [INVITE, &[b'x'; 3_000]].concat();
        for v6 in [false, true] {
            let signals = watching();
            let pieces = fragments(&udp(&long, v6), 1_200);
            let mut looks: Vec<Look> = pieces.iter().map(|p| look(&signals, p)).collect();
            let signal = found(looks.pop().unwrap());
            assert!(looks.iter().all(|l| *l == Look::Nothing));
            assert_eq!((signal.data, signal.destination.port()), (long.clone(), 5060));
        }
    }

    #[test]
    fn a_missing_fragment_costs_that_message_only() {
        let signals = watching();
        let long: Vec<u8> = [INVITE, &[b'x'; 3_000]].concat();
        let pieces = fragments(&udp(&long, false), 1_200);
        assert_eq!(look(&signals, &pieces[0]), Look::Nothing);
        assert_eq!(look(&signals, &pieces[2]), Look::Nothing);
        assert!(signals.parts.lock().is_empty());
        found(pieces.iter().map(|p| look(&signals, p)).last().unwrap());
    }

    #[test]
    fn beginnings_without_an_end_do_not_pile_up() {
        let signals = watching();
        let long: Vec<u8> = [INVITE, &[b'x'; 3_000]].concat();
        for id in 0..100u16 {
            let mut first = fragments(&udp(&long, false), 1_200).swap_remove(0);
            first[4..6].copy_from_slice(&id.to_be_bytes());
            look(&signals, &first);
        }
        assert_eq!(signals.parts.lock().len(), MAX_PARTS);
    }

    #[test]
    fn tcp_is_copied_on_sips_port_with_its_numbers() {
        let signals = watching();
        let mut packet = vec![0x45, 0, 0, 45, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend_from_slice(&40_000u16.to_be_bytes());
        packet.extend_from_slice(&5060u16.to_be_bytes());
        packet.extend_from_slice(&9u32.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(b"INVIT");
        let signal = found(look(&signals, &packet));
        assert_eq!((signal.sequence, signal.data.as_slice(), signal.protocol), (9, &b"INVIT"[..], TCP));
        packet[32] = 0xf0; // a header longer than the segment
        assert_eq!(look(&signals, &packet), Look::Nothing);
        packet[32] = 0x50;
        packet[22..24].copy_from_slice(&80u16.to_be_bytes());
        assert_eq!(look(&signals, &packet), Look::Nothing);
    }

    #[test]
    fn too_much_talk_is_not_copied() {
        let signals = watching();
        let packet = udp(&[INVITE, &[b'x'; 1_000]].concat(), false);
        let copied = (0..1_000).filter(|_| look(&signals, &packet) != Look::TooMuch).count();
        assert!((100..500).contains(&copied), "{copied}");
    }
}
