//! The headers of a UDP packet without what changes from packet to packet of a flow: what a compression context
//! holds, and what a lost frame's packet is rebuilt from.

use std::net::IpAddr;

use crate::packet::{UDP, UDP_HEADER, header_checksum, transport_checksum};

const V4: usize = 20;
const V6: usize = 40;

/// Don't Fragment: the identification of such a packet means nothing (RFC 6864 section 4).
const DONT_FRAGMENT: u8 = 0x40;

/// IP and UDP headers with lengths, identification and checksums zeroed. Two packets with equal heads are of one
/// flow, and each can be rebuilt from the head, its identification and its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    bytes: [u8; V6 + UDP_HEADER],
    length: u8,
    /// The sender computed no UDP checksum (IPv4 only).
    unchecked: bool,
}

/// A packet taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    pub head: Head,
    /// IPv4 identification where it means something.
    pub identification: Option<u16>,
    pub payload: &'a [u8],
}

impl Head {
    /// Take a whole packet apart. None where it could not be rebuilt as it was: not UDP, IP options or extension
    /// headers, a fragment, lengths that differ. Checksums are not looked at: see `intact`.
    #[inline]
    pub fn split(packet: &[u8]) -> Option<Parts<'_>> {
        match packet.first() {
            Some(0x45) => Self::split_v4(packet),
            Some(first) if first >> 4 == 6 => Self::split_v6(packet),
            _ => None,
        }
    }

    fn split_v4(packet: &[u8]) -> Option<Parts<'_>> {
        let (header, payload) = packet.split_first_chunk::<{ V4 + UDP_HEADER }>()?;
        let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let whole = field(6) & 0x3fff == 0 && usize::from(field(2)) == packet.len();
        if header[9] != UDP || !whole || usize::from(field(V4 + 4)) != packet.len() - V4 {
            return None;
        }
        let mut bytes = [0; V6 + UDP_HEADER];
        bytes[..V4 + UDP_HEADER].copy_from_slice(header);
        for changing in [2..6, 10..12, V4 + 4..V4 + 8] {
            bytes[changing].fill(0);
        }
        let head = Head { bytes, length: (V4 + UDP_HEADER) as u8, unchecked: field(V4 + 6) == 0 };
        let identification = (header[6] & DONT_FRAGMENT == 0).then(|| field(4));
        Some(Parts { head, identification, payload })
    }

    fn split_v6(packet: &[u8]) -> Option<Parts<'_>> {
        let (header, payload) = packet.split_first_chunk::<{ V6 + UDP_HEADER }>()?;
        let field = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let whole = field(4) + V6 == packet.len() && field(V6 + 4) + V6 == packet.len();
        if header[6] != UDP || !whole {
            return None;
        }
        let mut bytes = *header;
        for changing in [4..6, V6 + 4..V6 + 8] {
            bytes[changing].fill(0);
        }
        let head = Head { bytes, length: (V6 + UDP_HEADER) as u8, unchecked: false };
        Some(Parts { head, identification: None, payload })
    }

    /// Whether both checksums of the packet this head was split from are right. One with a wrong checksum must go
    /// as it is: rebuilding it would make it look right.
    pub fn intact(&self, packet: &[u8]) -> bool {
        let at = self.transport();
        let (Some(ip), Some(segment)) = (packet.get(..at), packet.get(at..)) else { return false };
        let (source, destination) = self.addresses();
        (source.is_ipv6() || header_checksum(ip) == 0)
            && (self.unchecked || transport_checksum(source, destination, UDP, segment) == 0)
    }

    /// Append the packet with this payload to `out`. False if it would be longer than a packet can be.
    pub fn write(&self, identification: u16, payload: &[u8], out: &mut Vec<u8>) -> bool {
        let (start, at, length) = (out.len(), self.transport(), usize::from(self.length));
        let Ok(total) = u16::try_from(length + payload.len()) else { return false };
        let Some(head) = self.bytes.get(..length) else { return false };
        out.extend_from_slice(head);
        out.extend_from_slice(payload);
        let Some(packet) = out.get_mut(start..) else { return false };
        let segment_length = total - at as u16;
        put(packet, at + 4, segment_length);
        if at == V4 {
            put(packet, 2, total);
            if packet[6] & DONT_FRAGMENT == 0 {
                put(packet, 4, identification);
            }
            let check = header_checksum(&packet[..V4]);
            put(packet, 10, check);
        } else {
            put(packet, 4, segment_length);
        }
        if !self.unchecked {
            let (source, destination) = self.addresses();
            let check = transport_checksum(source, destination, UDP, &packet[at..]);
            // RFC 768: a computed zero is sent as all ones, because zero means "no checksum".
            put(packet, at + 6, if check == 0 { 0xffff } else { check });
        }
        true
    }

    /// Bytes that compression leaves out.
    pub fn size(&self) -> usize {
        usize::from(self.length)
    }

    /// 32 bits by which both sides can tell that they mean the same head (FNV-1a).
    pub fn check(&self) -> u32 {
        let flags = [self.length, u8::from(self.unchecked)];
        self.bytes
            .iter()
            .chain(&flags)
            .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
    }

    fn transport(&self) -> usize {
        usize::from(self.length) - UDP_HEADER
    }

    fn addresses(&self) -> (IpAddr, IpAddr) {
        let b = &self.bytes;
        if self.transport() == V4 {
            return ([b[12], b[13], b[14], b[15]].into(), [b[16], b[17], b[18], b[19]].into());
        }
        let mut ends = [[0u8; 16]; 2];
        ends[0].copy_from_slice(&b[8..24]);
        ends[1].copy_from_slice(&b[24..40]);
        (ends[0].into(), ends[1].into())
    }
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::packet::{Meta, UdpHead, udp_checksum_ok, write_udp};

    /// A packet of a flow told by its port.
    pub(crate) fn packet(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let (source, destination) = if v6 { ("fd00::7", "fd00::1") } else { ("10.0.0.7", "10.0.0.1") };
        let head = UdpHead {
            source: source.parse().unwrap(),
            source_port: port,
            destination: destination.parse().unwrap(),
            destination_port: 4000,
            tos: 0xb8,
        };
        assert!(write_udp(&head, payload, &mut out));
        out
    }

    #[test]
    fn packets_are_rebuilt_byte_for_byte() {
        for v6 in [false, true] {
            for length in [0, 1, 2, 171, 172, 1200] {
                let payload: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
                let packet = packet(v6, 5004, &payload);
                let parts = Head::split(&packet).unwrap();
                assert!(parts.head.intact(&packet) && parts.identification.is_none());
                let mut again = Vec::new();
                assert!(parts.head.write(0, parts.payload, &mut again));
                assert_eq!(again, packet);
                let meta = Meta::parse(&again).unwrap();
                assert!(udp_checksum_ok(&meta, &again));
            }
        }
    }

    #[test]
    fn what_could_not_be_rebuilt_is_not_taken_apart() {
        let good = packet(false, 5004, b"0123456789");
        let mut options = good.clone();
        options[0] = 0x46;
        let mut fragment = good.clone();
        fragment[7] = 1;
        let mut more = good.clone();
        more[6] |= 0x20;
        let mut tcp = good.clone();
        tcp[9] = 6;
        let mut shorter_udp = good.clone();
        shorter_udp[25] -= 1;
        let mut trailing = good.clone();
        trailing.push(0);
        for bad in [options, fragment, more, tcp, shorter_udp, trailing, good[..27].to_vec()] {
            assert!(Head::split(&bad).is_none());
        }
        let mut v6 = packet(true, 5004, b"x");
        v6[6] = 44;
        assert!(Head::split(&v6).is_none());
    }

    #[test]
    fn wrong_checksums_are_seen_and_a_missing_one_stays_missing() {
        let mut wrong = packet(false, 5004, b"0123456789");
        wrong[30] ^= 1;
        assert!(!Head::split(&wrong).unwrap().head.intact(&wrong));
        let mut wrong = packet(false, 5004, b"0123456789");
        wrong[10] ^= 1;
        assert!(!Head::split(&wrong).unwrap().head.intact(&wrong));
        let mut none = packet(false, 5004, b"0123456789");
        none[26..28].fill(0);
        let parts = Head::split(&none).unwrap();
        assert!(parts.head.intact(&none));
        let mut again = Vec::new();
        assert!(parts.head.write(0, parts.payload, &mut again));
        assert_eq!(again, none);
    }

    #[test]
    fn an_identification_that_means_something_is_kept() {
        let mut packet = packet(false, 5004, b"abc");
        packet[4..8].copy_from_slice(&[0x12, 0x34, 0, 0]);
        packet[10..12].fill(0);
        let check = header_checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
        let parts = Head::split(&packet).unwrap();
        assert_eq!(parts.identification, Some(0x1234));
        let mut again = Vec::new();
        assert!(parts.head.write(0x1234, parts.payload, &mut again));
        assert_eq!(again, packet);
    }

    #[test]
    fn heads_tell_flows_apart() {
        let a = Head::split(&packet(false, 5004, b"abc")).unwrap().head;
        assert_eq!(a, Head::split(&packet(false, 5004, b"another length")).unwrap().head);
        assert_ne!(a, Head::split(&packet(false, 5006, b"abc")).unwrap().head);
        let mut marked = packet(false, 5004, b"abc");
        marked[1] = 0;
        assert_ne!(a, Head::split(&marked).unwrap().head);
        assert_ne!(a.check(), Head::split(&packet(false, 5006, b"abc")).unwrap().head.check());
    }
}
