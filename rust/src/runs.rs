//! Packets for a TUN device, gathered within a turn: runs of one flow's UDP packets of one length are written as
//! one (virtio_net_hdr with VIRTIO_NET_HDR_GSO_UDP_L4, virtio 1.2 section 5.1.6.2; Linux 6.2), which goes through
//! the kernel's forwarding, firewall included, once and is cut again behind it.
//!
//! What comes out behind the kernel is what went in. Cutting makes each packet's headers from the first one's, so
//! a packet joins a run only when that gives its own: all fields alike, identifications that count up (or DF set,
//! where they mean nothing, RFC 6864 section 4.1), checksums that are there and right. The order within a flow
//! stays; a flow may overtake another by less than a turn.

use crate::limits::BATCH;
use crate::packet::{UDP, UDP_HEADER, header_checksum, pseudo_header, udp_sum, write_at};

/// Bytes of `struct virtio_net_hdr` as a TUN device has it unless told otherwise.
pub const HEADER: usize = 10;

/// Bytes gathered before they are written: a turn of voice is a fifth of it, one packet of the largest fits.
const ROOM: usize = 64 * 1024;

/// Most bytes of a run: what an IPv4 header can state.
const LONGEST: usize = 65_535;

const V4: usize = 20;
const V6: usize = 40;

/// The longest headers of a packet that can be in a run.
const HEADS: usize = V6 + UDP_HEADER;

/// One write: a packet, or a run of them.
#[derive(Clone, Copy, Debug, Default)]
struct Write {
    /// The flow, if it is one that can have runs.
    key: Option<u64>,
    first: usize,
    last: usize,
    packets: usize,
    /// Bytes of the IP header.
    head: usize,
    /// Payload of every packet but the last, which may be shorter.
    segment: usize,
    payload: usize,
    /// The first packet's checksums have been found right.
    checked: bool,
    /// No more may be added.
    closed: bool,
}

/// What one packet is to the others.
enum Kind {
    /// No UDP: its order beside UDP flows is of no interest.
    Other,
    /// UDP without ports, or with headers we do not look through: it may belong to any flow.
    Any,
    /// UDP of a flow; `head` is None where it cannot be in a run.
    Flow { key: u64, head: Option<usize> },
}

/// The packets of a turn.
pub struct Runs {
    bytes: Vec<u8>,
    /// Where each packet begins and ends in `bytes`, behind room for a header.
    places: [(usize, usize); BATCH],
    /// The next packet of the same run.
    next: [usize; BATCH],
    count: usize,
    writes: [Write; BATCH],
    write_count: usize,
    /// Writes before this one are closed.
    barrier: usize,
    /// The beginning of the run that was written last, as it was before.
    before: [u8; HEADER + HEADS],
}

impl Default for Runs {
    fn default() -> Self {
        Self {
            bytes: Vec::with_capacity(ROOM),
            places: [(0, 0); BATCH],
            next: [0; BATCH],
            count: 0,
            writes: [Write::default(); BATCH],
            write_count: 0,
            barrier: 0,
            before: [0; HEADER + HEADS],
        }
    }
}

impl Runs {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there is room for a packet of this length.
    pub fn has_room(&self, length: usize) -> bool {
        self.count < BATCH && (self.count == 0 || self.bytes.len() + HEADER + length <= ROOM)
    }

    /// Take a packet in. False if there is no room for it: write the others first.
    pub fn push(&mut self, packet: &[u8], merge: bool) -> bool {
        if !self.has_room(packet.len()) {
            return false;
        }
        let index = self.count;
        self.bytes.extend_from_slice(&[0; HEADER]);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(packet);
        self.places[index] = (start, self.bytes.len());
        self.count += 1;
        let mut write = Write { first: index, last: index, packets: 1, closed: true, ..Write::default() };
        match if merge { kind(packet) } else { Kind::Other } {
            Kind::Other => {}
            // Nothing of before may be added to behind it.
            Kind::Any => self.barrier = self.write_count + 1,
            Kind::Flow { key, head } => {
                if self.join(index, key, head, packet) {
                    return true;
                }
                write.key = Some(key);
                if let Some(head) = head {
                    write.closed = false;
                    write.head = head;
                    write.segment = packet.len() - head - UDP_HEADER;
                    write.payload = write.segment;
                }
            }
        }
        self.writes[self.write_count] = write;
        self.write_count += 1;
        true
    }

    /// Add a packet to the run of its flow, if that leaves both what they are.
    fn join(&mut self, index: usize, key: u64, head: Option<usize>, packet: &[u8]) -> bool {
        let open = self.writes.get(self.barrier..self.write_count).unwrap_or_default();
        let Some(at) = open.iter().rposition(|write| write.key == Some(key)) else { return false };
        let at = at + self.barrier;
        let joined = head.is_some_and(|head| self.fits(at, head, packet));
        let write = &mut self.writes[at];
        if !joined {
            // What comes later must not overtake this one.
            write.closed = true;
            return false;
        }
        let payload = packet.len() - write.head - UDP_HEADER;
        self.next[write.last] = index;
        write.last = index;
        write.packets += 1;
        write.payload += payload;
        write.closed = payload < write.segment;
        true
    }

    fn fits(&mut self, at: usize, head: usize, packet: &[u8]) -> bool {
        let write = self.writes[at];
        let (start, end) = self.places[write.first];
        let Some(first) = self.bytes.get(start..end) else { return false };
        let payload = packet.len() - head - UDP_HEADER;
        let alike = !write.closed
            && write.head == head
            && payload <= write.segment
            && head + UDP_HEADER + write.payload + payload <= LONGEST
            && same_fields(first, packet, head, write.packets);
        if !alike {
            return false;
        }
        if !write.checked && !intact(first, head) {
            return false;
        }
        self.writes[at].checked = true;
        intact(packet, head)
    }

    /// How many writes there are.
    pub fn writes(&self) -> usize {
        self.write_count
    }

    /// Packets in a write.
    pub fn packets(&self, write: usize) -> usize {
        self.writes.get(write).map_or(0, |write| write.packets)
    }

    /// The pieces of a write, in order: the header of the device and the first packet, then what is behind the
    /// headers of the others.
    pub fn pieces(&mut self, write: usize) -> impl Iterator<Item = &[u8]> {
        let write = self.writes.get(write).copied().unwrap_or_default();
        if write.packets > 1 {
            self.lengthen(&write);
        }
        self.behind(write, write.head + UDP_HEADER)
    }

    /// The packets of a write one by one, each behind an empty header: for a device that took no run. To be called
    /// after `pieces` of the same write.
    pub fn singly(&mut self, write: usize) -> impl Iterator<Item = &[u8]> {
        let write = self.writes.get(write).copied().unwrap_or_default();
        let (start, end) = self.places[write.first];
        if write.packets > 1
            && let Some(bytes) = self.bytes.get_mut(start - HEADER..end)
        {
            bytes.iter_mut().zip(&self.before).for_each(|(byte, before)| *byte = *before);
        }
        self.behind(write, 0)
    }

    /// The packets of a write, each but the first without its first `skip` bytes; unless that is none, without the
    /// device's header too.
    fn behind(&self, write: Write, skip: usize) -> impl Iterator<Item = &[u8]> {
        let (mut at, places, next) = (write.first, &self.places, &self.next);
        let (bytes, more) = (&self.bytes, if skip == 0 { 0 } else { HEADER + skip });
        (0..write.packets).filter_map(move |number| {
            let (start, end) = places[at];
            at = next[at];
            bytes.get(start - HEADER + if number == 0 { 0 } else { more }..end)
        })
    }

    /// Make the first packet's headers those of the whole run, and say to the device where to cut.
    fn lengthen(&mut self, write: &Write) {
        let (start, end) = self.places[write.first];
        let Some(bytes) = self.bytes.get_mut(start - HEADER..end) else { return };
        self.before.iter_mut().zip(bytes.iter()).for_each(|(before, byte)| *before = *byte);
        let (header, packet) = bytes.split_at_mut(HEADER);
        let (head, udp) = (write.head, UDP_HEADER + write.payload);
        let stated = (udp as u16).to_be_bytes();
        if head == V4 {
            write_at(packet, 2, &((V4 + udp) as u16).to_be_bytes());
            write_at(packet, 10, &[0, 0]);
            let sum = packet.get(..V4).map_or(0, header_checksum);
            write_at(packet, 10, &sum.to_be_bytes());
        } else {
            write_at(packet, 4, &stated);
        }
        write_at(packet, head + 4, &stated);
        // The kernel finishes the sum of each packet; here it has the part of the addresses and the length.
        let begun = pseudo_header(packet, head, udp);
        write_at(packet, head + 6, &begun.to_be_bytes());
        header.copy_from_slice(&device_header(write));
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
        (self.count, self.write_count, self.barrier) = (0, 0, 0);
    }
}

/// `struct virtio_net_hdr` of a run: cut behind every `segment` bytes of payload, finish the sums.
fn device_header(write: &Write) -> [u8; HEADER] {
    const NEEDS_CSUM: u8 = 1;
    const GSO_UDP_L4: u8 = 5;
    let mut out = [0; HEADER];
    out[0] = NEEDS_CSUM;
    out[1] = GSO_UDP_L4;
    let whole = write.head + UDP_HEADER + write.payload;
    for (at, value) in [(2, whole), (4, write.segment), (6, write.head), (8, 6)] {
        write_at(&mut out, at, &(value as u16).to_ne_bytes());
    }
    out
}

fn kind(packet: &[u8]) -> Kind {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => kind_v4(packet),
        Some(6) => kind_v6(packet),
        Some(_) | None => Kind::Other,
    }
}

fn kind_v4(packet: &[u8]) -> Kind {
    let Some(ip) = packet.first_chunk::<V4>() else { return Kind::Other };
    if ip[9] != UDP {
        return Kind::Other;
    }
    let Some(ports) = packet.get(V4..V4 + 4) else { return Kind::Any };
    // Options, and fragments (all bits but DF).
    if ip[0] != 0x45 || ip[6] & 0xbf != 0 || ip[7] != 0 {
        return Kind::Any;
    }
    let key = key_of(&[&ip[12..20], ports]);
    let whole = usize::from(number(packet, 2)) == packet.len();
    Kind::Flow { key, head: (whole && can_run(packet, V4)).then_some(V4) }
}

fn kind_v6(packet: &[u8]) -> Kind {
    const TCP: u8 = 6;
    const ICMP: u8 = 58;
    let Some(ip) = packet.first_chunk::<V6>() else { return Kind::Other };
    match ip[6] {
        TCP | ICMP => Kind::Other,
        UDP => {
            let Some(ports) = packet.get(V6..V6 + 4) else { return Kind::Any };
            let key = key_of(&[&ip[8..40], ports]);
            let whole = V6 + usize::from(number(packet, 4)) == packet.len();
            Kind::Flow { key, head: (whole && can_run(packet, V6)).then_some(V6) }
        }
        _ => Kind::Any,
    }
}

/// A UDP header that states what is there, a checksum, and a payload (a run could not tell an empty one's place).
fn can_run(packet: &[u8], head: usize) -> bool {
    let stated = usize::from(number(packet, head + 4));
    stated > UDP_HEADER && head + stated == packet.len() && number(packet, head + 6) != 0
}

/// Whether a packet that is number `count` of a run gets its own headers when the run is cut.
fn same_fields(first: &[u8], packet: &[u8], head: usize, count: usize) -> bool {
    let same = |from: usize, to: usize| first.get(from..to) == packet.get(from..to);
    if head == V6 {
        // Class and flow label, hop limit, addresses and ports.
        return same(0, 4) && same(6, V6 + 4);
    }
    let atomic = packet.get(6).is_some_and(|flags| flags & 0x40 != 0);
    same(0, 2)
        && same(6, 10)
        && same(12, V4 + 4)
        && (atomic || number(first, 4).wrapping_add(count as u16) == number(packet, 4))
}

/// The checksums are right.
fn intact(packet: &[u8], head: usize) -> bool {
    let ip = head == V6 || packet.get(..V4).is_some_and(|header| header_checksum(header) == 0);
    ip && udp_sum(packet, head) == 0
}

fn number(packet: &[u8], at: usize) -> u16 {
    packet.get(at..at + 2).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]))
}

/// A flow as a number. Two flows that have the same (anybody can make some) merely do not run.
fn key_of(parts: &[&[u8]; 2]) -> u64 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(4));
    words.fold(0, |key: u64, word| {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        (key.rotate_left(23) ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}
