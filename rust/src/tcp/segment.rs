//! TCP headers, as much as has to be known before `smoltcp` sees a packet, and the RST that answers nobody's.

use std::net::{IpAddr, SocketAddr};

use crate::counters::Counter;
use crate::packet::{Meta, TCP, transport_checksum, write_ip};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const HEADER: usize = 20;

/// A checked segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    /// Sequence numbers it takes: its bytes, its SYN, its FIN.
    length: u32,
}

impl Segment {
    /// Read an inner packet; it is whole, its checksum right and its addresses those of hosts.
    pub fn parse_untrusted(meta: &Meta, data: &[u8]) -> Result<Self, Counter> {
        if meta.fragment {
            return Err(Counter::TcpFragment);
        }
        let bytes = data.get(meta.transport..meta.length).ok_or(Counter::TcpMalformed)?;
        let head = bytes.first_chunk::<HEADER>().ok_or(Counter::TcpMalformed)?;
        let offset = usize::from(head[12] >> 4) * 4;
        let hosts = is_host(meta.source) && is_host(meta.destination);
        // IPv6 extension headers before TCP have no use in a tunnel, and one parser less is reached.
        let plain = meta.source.is_ipv4() || meta.transport == 40;
        let ports = meta.source_port != 0 && meta.destination_port != 0;
        if offset < HEADER || offset > bytes.len() || !hosts || !plain || !ports {
            return Err(Counter::TcpMalformed);
        }
        if transport_checksum(meta.source, meta.destination, TCP, bytes) != 0 {
            return Err(Counter::TcpBadChecksum);
        }
        let flags = head[13];
        let length =
            (bytes.len() - offset) as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        Ok(Self {
            from: SocketAddr::new(meta.source, meta.source_port),
            to: SocketAddr::new(meta.destination, meta.destination_port),
            flags,
            sequence: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            acknowledged: u32::from_be_bytes([head[8], head[9], head[10], head[11]]),
            length,
        })
    }

    /// The first segment of a connection.
    pub fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Its sequence number.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// A reset is never answered (RFC 9293 section 3.5.2).
    pub fn resets(&self) -> bool {
        self.flags & RST != 0
    }

    /// The RST that says: nobody listens here (RFC 9293 section 3.5.2, group 1).
    pub fn refusal(&self, out: &mut Vec<u8>) -> bool {
        out.clear();
        if !write_ip(self.to.ip(), self.from.ip(), TCP, 0, HEADER, out) {
            return false;
        }
        let start = out.len();
        let (sequence, acknowledged, flags) = if self.flags & ACK != 0 {
            (self.acknowledged, 0, RST)
        } else {
            (0, self.sequence.wrapping_add(self.length), RST | ACK)
        };
        out.extend_from_slice(&self.to.port().to_be_bytes());
        out.extend_from_slice(&self.from.port().to_be_bytes());
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&acknowledged.to_be_bytes());
        out.extend_from_slice(&[5 << 4, flags, 0, 0, 0, 0, 0, 0]);
        let check = out.get(start..).map_or(0, |s| transport_checksum(self.to.ip(), self.from.ip(), TCP, s));
        match out.get_mut(start + 16..start + 18) {
            Some(field) => field.copy_from_slice(&check.to_be_bytes()),
            None => return false,
        }
        true
    }
}

/// The highest sequence number sent on a connection, as RFC 9293 has SND.NXT.
///
/// `smoltcp` goes back to the first unanswered segment when its timer runs out, and numbers its acknowledgements
/// from there. To a peer that has got more than that they are old, so it ignores what they acknowledge; where
/// both ends have been cut off at once, each ignores the other for ever. So acknowledgements get the right number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    next: Option<u32>,
}

impl Sent {
    /// Look at a packet of ours on its way out, and put it right.
    pub fn mend(&mut self, packet: &mut [u8]) {
        let Ok(meta) = Meta::parse(packet) else { return };
        let Some(head) = packet.get(meta.transport..).and_then(|s| s.first_chunk::<HEADER>()) else { return };
        let (flags, offset) = (head[13], usize::from(head[12] >> 4) * 4);
        let payload = meta.length.saturating_sub(meta.transport + offset);
        let taken = payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let after = |a: u32, b: u32| a.wrapping_sub(b) as i32 > 0;
        let next = self.next.filter(|next| after(*next, sequence.wrapping_add(taken)));
        match next {
            None if flags & RST != 0 => {}
            // One byte that does not end what is to be said asks about a closed window, and may not be taken.
            None if payload == 1 && flags & PSH == 0 => {}
            None => self.next = Some(sequence.wrapping_add(taken)),
            Some(next) if taken == 0 && flags & RST == 0 => renumber(packet, &meta, next),
            Some(_) => {}
        }
    }
}

fn renumber(packet: &mut [u8], meta: &Meta, sequence: u32) {
    let Some(bytes) = packet.get_mut(meta.transport..meta.length) else { return };
    if let Some(field) = bytes.get_mut(4..8) {
        field.copy_from_slice(&sequence.to_be_bytes());
    }
    if let Some(field) = bytes.get_mut(16..18) {
        field.copy_from_slice(&[0, 0]);
    }
    let check = transport_checksum(meta.source, meta.destination, TCP, bytes);
    if let Some(field) = bytes.get_mut(16..18) {
        field.copy_from_slice(&check.to_be_bytes());
    }
}

/// An address that one host may have; `smoltcp` takes no others, and nobody else should.
pub fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast(),
        IpAddr::V6(a) => !a.is_unspecified() && !a.is_multicast(),
    }
}
