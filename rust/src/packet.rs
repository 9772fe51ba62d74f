//! Inner IPv4/IPv6 packets: views that never trust a length, and builders for UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
pub const UDP_HEADER: usize = 8;

/// DSCP of voice: expedited forwarding (RFC 8837).
pub const EXPEDITED: u8 = 46;

/// Why a packet was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketError {
    /// Shorter than its header, or than the length it states.
    Truncated,
    /// Neither version 4 nor version 6, or an impossible header length.
    BadHeader,
}

/// What forwarding needs to know of a packet. Ports are zero where there are none (fragments, ICMP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
    /// Offset of the transport header.
    pub transport: usize,
    /// Bytes of the packet as its header states them.
    pub length: usize,
    /// A fragment other than a whole packet: ports belong to nobody.
    pub fragment: bool,
    /// DSCP/traffic class byte.
    pub tos: u8,
}

impl Meta {
    /// Parse the headers of the packet at the start of `data`; bytes behind its stated length are ignored.
    #[inline]
    pub fn parse(data: &[u8]) -> Result<Meta, PacketError> {
        match data.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(data),
            Some(6) => Self::parse_v6(data),
            Some(_) => Err(PacketError::BadHeader),
            None => Err(PacketError::Truncated),
        }
    }

    fn parse_v4(data: &[u8]) -> Result<Meta, PacketError> {
        let head: &[u8; V4_HEADER] = data.first_chunk().ok_or(PacketError::Truncated)?;
        let header = usize::from(head[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if header < V4_HEADER || length < header {
            return Err(PacketError::BadHeader);
        }
        if length > data.len() {
            return Err(PacketError::Truncated);
        }
        let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
        let mut meta = Meta {
            source: IpAddr::V4(Ipv4Addr::new(head[12], head[13], head[14], head[15])),
            destination: IpAddr::V4(Ipv4Addr::new(head[16], head[17], head[18], head[19])),
            protocol: head[9],
            source_port: 0,
            destination_port: 0,
            transport: header,
            length,
            fragment,
            tos: head[1],
        };
        meta.read_ports(data);
        Ok(meta)
    }

    fn parse_v6(data: &[u8]) -> Result<Meta, PacketError> {
        let head: &[u8; V6_HEADER] = data.first_chunk().ok_or(PacketError::Truncated)?;
        let length = V6_HEADER + usize::from(u16::from_be_bytes([head[4], head[5]]));
        if length > data.len() {
            return Err(PacketError::Truncated);
        }
        let (protocol, transport, fragment) = skip_v6_extensions(data, length, head[6]);
        let mut meta = Meta {
            source: IpAddr::V6(v6_at(head, 8)),
            destination: IpAddr::V6(v6_at(head, 24)),
            protocol,
            source_port: 0,
            destination_port: 0,
            transport,
            length,
            fragment,
            tos: (head[0] << 4) | (head[1] >> 4),
        };
        meta.read_ports(data);
        Ok(meta)
    }

    fn read_ports(&mut self, data: &[u8]) {
        if self.fragment
            || !(self.protocol == UDP || self.protocol == TCP)
            || self.transport + 4 > self.length
        {
            return;
        }
        if let Some(ports) = data.get(self.transport..self.transport + 4) {
            self.source_port = u16::from_be_bytes([ports[0], ports[1]]);
            self.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
        }
    }

    /// The UDP payload, if this is a whole and honest UDP packet.
    pub fn udp_payload<'a>(&self, data: &'a [u8]) -> Option<&'a [u8]> {
        if self.protocol != UDP || self.fragment {
            return None;
        }
        let header = data.get(self.transport..self.transport + UDP_HEADER)?;
        let stated = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if stated < UDP_HEADER || self.transport + stated > self.length {
            return None;
        }
        data.get(self.transport + UDP_HEADER..self.transport + stated)
    }

    /// Whether this looks like RTP or RTCP (version bits 10, RFC 3550), or is marked as voice (DSCP EF,
    /// RFC 8837). SIP is text and never begins so. A wrong guess costs order in a queue, nothing else.
    #[inline]
    pub fn looks_like_media(&self, data: &[u8]) -> bool {
        if self.protocol != UDP || self.fragment {
            return false;
        }
        let first = data.get(self.transport + UDP_HEADER);
        self.tos >> 2 == EXPEDITED
            || (self.length >= self.transport + 16 && first.is_some_and(|b| b >> 6 == 2))
    }
}

fn v6_at(head: &[u8; V6_HEADER], at: usize) -> Ipv6Addr {
    let mut octets = [0u8; 16];
    if let Some(bytes) = head.get(at..at + 16) {
        octets.copy_from_slice(bytes);
    }
    Ipv6Addr::from(octets)
}

/// Walk hop-by-hop, routing, destination and fragment headers (RFC 8200 section 4.1), at most eight.
fn skip_v6_extensions(data: &[u8], length: usize, first: u8) -> (u8, usize, bool) {
    let (mut next, mut at, mut fragment) = (first, V6_HEADER, false);
    for _ in 0..8 {
        let Some(head) = data.get(at..at + 4).filter(|_| at + 8 <= length) else {
            break;
        };
        match next {
            0 | 43 | 60 => {
                next = head[0];
                at += 8 + usize::from(head[1]) * 8;
            }
            44 => {
                fragment |= u16::from_be_bytes([head[2], head[3]]) & 0xfff9 != 0;
                next = head[0];
                at += 8;
            }
            _ => break,
        }
    }
    (next, at.min(length), fragment)
}

/// One's complement sum of RFC 1071, not yet folded into 16 bits. Four bytes at a time: 2^16 is one in this sum, so
/// halves of a longer word count as what they are.
fn sum(data: &[u8], acc: u32) -> u32 {
    let mut wide = u64::from(acc);
    let mut chunks = data.chunks_exact(4);
    for word in &mut chunks {
        wide += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    wide += match chunks.remainder() {
        [a] => u64::from(*a) << 8,
        [a, b] => u64::from(u16::from_be_bytes([*a, *b])),
        [a, b, c] => u64::from(u16::from_be_bytes([*a, *b])) + (u64::from(*c) << 8),
        _ => 0,
    };
    // Twice: the first carry may make another.
    wide = (wide & 0xffff_ffff) + (wide >> 32);
    wide = (wide & 0xffff) + ((wide >> 16) & 0xffff) + (wide >> 32);
    wide as u32
}

fn fold(mut acc: u32) -> u16 {
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    !(acc as u16)
}

/// Checksum of a transport segment with its pseudo header (RFC 768, RFC 8200 section 8.1).
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut acc = u32::from(protocol) + segment.len() as u32;
    for address in [source, destination] {
        acc = match address {
            IpAddr::V4(a) => sum(&a.octets(), acc),
            IpAddr::V6(a) => sum(&a.octets(), acc),
        };
    }
    fold(sum(segment, acc))
}

/// The checksum of an IPv4 header whose own field is zero; zero if the field is there and right.
pub fn header_checksum(header: &[u8]) -> u16 {
    fold(sum(header, 0))
}

/// The sum of a UDP packet's pseudo header (RFC 768, RFC 8200 section 8.1) as a device wants it that finishes the
/// checksum: folded, not complemented. `head` is the length of the IP header, without options or extensions.
pub fn pseudo_header(packet: &[u8], head: usize, length: usize) -> u16 {
    !fold(pseudo_sum(packet, head, length))
}

/// The checksum of a UDP packet with its own field in it: zero if that is right. `head` as above.
pub fn udp_sum(packet: &[u8], head: usize) -> u16 {
    let segment = packet.get(head..).unwrap_or_default();
    fold(sum(segment, pseudo_sum(packet, head, segment.len())))
}

fn pseudo_sum(packet: &[u8], head: usize, length: usize) -> u32 {
    let from = if head == V6_HEADER { 8 } else { 12 };
    sum(packet.get(from..head).unwrap_or_default(), u32::from(UDP) + length as u32)
}

/// Whether the UDP checksum of a parsed packet is right (a zero IPv4 checksum means "none").
pub fn udp_checksum_ok(meta: &Meta, data: &[u8]) -> bool {
    let Some(payload) = meta.udp_payload(data) else {
        return false;
    };
    let end = meta.transport + UDP_HEADER + payload.len();
    let Some(segment) = data.get(meta.transport..end) else {
        return false;
    };
    if segment[6] == 0 && segment[7] == 0 {
        return meta.source.is_ipv4();
    }
    transport_checksum(meta.source, meta.destination, UDP, segment) == 0
}

/// Where and how an inner UDP packet goes.
#[derive(Clone, Copy, Debug)]
pub struct UdpHead {
    pub source: IpAddr,
    pub source_port: u16,
    pub destination: IpAddr,
    pub destination_port: u16,
    pub tos: u8,
}

/// Append an inner UDP packet to `out`. False if the families differ or it would be too long.
pub fn write_udp(head: &UdpHead, payload: &[u8], out: &mut Vec<u8>) -> bool {
    let length = UDP_HEADER + payload.len();
    if length > usize::from(u16::MAX) - V4_HEADER {
        return false;
    }
    if !write_ip(head.source, head.destination, UDP, head.tos, length, out) {
        return false;
    }
    let start = out.len();
    out.extend_from_slice(&head.source_port.to_be_bytes());
    out.extend_from_slice(&head.destination_port.to_be_bytes());
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    let check = match out.get(start..) {
        Some(segment) => transport_checksum(head.source, head.destination, UDP, segment),
        None => return false,
    };
    // RFC 768: a computed zero is sent as all ones, because zero means "no checksum".
    let check = if check == 0 { 0xffff } else { check };
    if let Some(field) = out.get_mut(start + 6..start + 8) {
        field.copy_from_slice(&check.to_be_bytes());
    }
    true
}

/// Append an IP header for `payload` bytes of `protocol`.
pub fn write_ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    tos: u8,
    payload: usize,
    out: &mut Vec<u8>,
) -> bool {
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let start = out.len();
            let total = (V4_HEADER + payload) as u16;
            out.extend_from_slice(&[0x45, tos]);
            out.extend_from_slice(&total.to_be_bytes());
            // Identification zero with DF set: an atomic datagram (RFC 6864).
            out.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            let check = out.get(start..).map_or(0, |header| fold(sum(header, 0)));
            if let Some(field) = out.get_mut(start + 10..start + 12) {
                field.copy_from_slice(&check.to_be_bytes());
            }
            true
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend_from_slice(&[0x60 | (tos >> 4), tos << 4, 0, 0]);
            out.extend_from_slice(&(payload as u16).to_be_bytes());
            out.extend_from_slice(&[protocol, 64]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            true
        }
        _ => false,
    }
}

/// Which end of a packet `readdress` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Replace an address and port of the same family, mending checksums by recomputation of the transport
/// checksum. False if the packet has another family.
pub fn readdress(data: &mut [u8], meta: &Meta, end: End, to: IpAddr, port: u16) -> bool {
    let at = match (to, end) {
        (IpAddr::V4(_), End::Source) => 12,
        (IpAddr::V4(_), End::Destination) => 16,
        (IpAddr::V6(_), End::Source) => 8,
        (IpAddr::V6(_), End::Destination) => 24,
    };
    if to.is_ipv4() != meta.source.is_ipv4() {
        return false;
    }
    match to {
        IpAddr::V4(a) => write_at(data, at, &a.octets()),
        IpAddr::V6(a) => write_at(data, at, &a.octets()),
    }
    if meta.source_port != 0 {
        let offset = if end == End::Source { 0 } else { 2 };
        write_at(data, meta.transport + offset, &port.to_be_bytes());
    }
    mend_checksums(data);
    true
}

/// Give a UDP packet both new ends at once.
pub fn readdress_both(data: &mut [u8], meta: &Meta, head: &UdpHead) -> bool {
    let at = if meta.source.is_ipv4() { 12 } else { 8 };
    match (head.source, head.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) if meta.source.is_ipv4() => {
            write_at(data, at, &from.octets());
            write_at(data, at + 4, &to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) if meta.source.is_ipv6() => {
            write_at(data, at, &from.octets());
            write_at(data, at + 16, &to.octets());
        }
        _ => return false,
    }
    write_at(data, meta.transport, &head.source_port.to_be_bytes());
    write_at(data, meta.transport + 2, &head.destination_port.to_be_bytes());
    mend_checksums(data);
    true
}

/// Replace bytes, if they are there.
pub fn write_at(data: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = data.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

fn mend_checksums(data: &mut [u8]) {
    if data.first().is_some_and(|b| b >> 4 == 4) {
        let header = data.first().map_or(0, |b| usize::from(b & 0x0f) * 4);
        write_at(data, 10, &[0, 0]);
        let check = data.get(..header).map_or(0, |h| fold(sum(h, 0)));
        write_at(data, 10, &check.to_be_bytes());
    }
    let Ok(meta) = Meta::parse(data) else { return };
    let offset = match meta.protocol {
        UDP => 6,
        TCP => 16,
        _ => return,
    };
    if meta.fragment || meta.transport + offset + 2 > meta.length {
        return;
    }
    write_at(data, meta.transport + offset, &[0, 0]);
    let Some(segment) = data.get(meta.transport..meta.length) else {
        return;
    };
    let mut check = transport_checksum(meta.source, meta.destination, meta.protocol, segment);
    if check == 0 && meta.protocol == UDP {
        check = 0xffff;
    }
    write_at(data, meta.transport + offset, &check.to_be_bytes());
}

/// Turn an ICMP or ICMPv6 echo request into its reply, in place. False if it is not one.
pub fn echo_reply(data: &mut [u8], meta: &Meta) -> bool {
    let (request, reply, v4) = match meta.protocol {
        ICMP => (8u8, 0u8, true),
        ICMPV6 => (128, 129, false),
        _ => return false,
    };
    if meta.fragment || meta.source.is_ipv4() != v4 || data.get(meta.transport) != Some(&request) {
        return false;
    }
    if meta.transport + 8 > meta.length {
        return false;
    }
    let (at_source, size) = if v4 { (12, 4) } else { (8, 16) };
    for i in at_source..at_source + size {
        data.swap(i, i + size);
    }
    write_at(data, meta.transport, &[reply, data.get(meta.transport + 1).copied().unwrap_or(0), 0, 0]);
    let check = match data.get(meta.transport..meta.length) {
        Some(segment) if v4 => fold(sum(segment, 0)),
        Some(segment) => transport_checksum(meta.destination, meta.source, ICMPV6, segment),
        None => return false,
    };
    write_at(data, meta.transport + 2, &check.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let head = UdpHead {
            source: source.parse().unwrap(),
            source_port: 4000,
            destination: destination.parse().unwrap(),
            destination_port: 5060,
            tos: 0xb8,
        };
        assert!(write_udp(&head, payload, &mut out));
        out
    }

    #[test]
    fn built_packets_parse_back_in_both_families() {
        for (a, b) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let packet = udp(a, b, b"hello!!");
            let meta = Meta::parse(&packet).unwrap();
            assert_eq!((meta.source_port, meta.destination_port, meta.tos), (4000, 5060, 0xb8));
            assert_eq!(meta.udp_payload(&packet), Some(&b"hello!!"[..]));
            assert_eq!(meta.length, packet.len());
            assert!(udp_checksum_ok(&meta, &packet));
        }
    }

    #[test]
    fn a_flipped_bit_fails_the_checksum() {
        let mut packet = udp("fd00::1", "fd00::2", b"hello");
        let last = packet.len() - 1;
        packet[last] ^= 1;
        assert!(!udp_checksum_ok(&Meta::parse(&packet).unwrap(), &packet));
    }

    #[test]
    fn every_prefix_of_a_packet_is_an_error_and_never_a_panic() {
        for packet in [udp("10.0.0.1", "10.0.0.2", b"abc"), udp("fd00::1", "fd00::2", b"abc")] {
            for cut in 0..packet.len() {
                assert!(Meta::parse(&packet[..cut]).is_err());
            }
        }
    }

    #[test]
    fn readdressing_keeps_checksums_right() {
        for (a, b, c) in [("10.0.0.1", "10.0.0.2", "192.0.2.9"), ("fd00::1", "fd00::2", "2001:db8::9")] {
            let mut packet = udp(a, b, b"payload");
            let meta = Meta::parse(&packet).unwrap();
            assert!(readdress(&mut packet, &meta, End::Destination, c.parse().unwrap(), 9));
            let meta = Meta::parse(&packet).unwrap();
            assert_eq!((meta.destination, meta.destination_port), (c.parse().unwrap(), 9));
            assert!(udp_checksum_ok(&meta, &packet));
        }
    }

    #[test]
    fn fragments_have_no_ports() {
        let mut packet = udp("10.0.0.1", "10.0.0.2", b"abcdefgh");
        packet[6] = 0x20;
        let meta = Meta::parse(&packet).unwrap();
        assert!(meta.fragment && meta.source_port == 0 && meta.udp_payload(&packet).is_none());
    }

    #[test]
    fn rtp_is_media_and_sip_is_not() {
        let rtp = udp("10.0.0.1", "10.0.0.2", &[0x80, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4]);
        let mut sip = udp("10.0.0.1", "10.0.0.2", b"INVITE sip:bob@example.com SIP/2.0");
        sip[1] = 0;
        assert!(Meta::parse(&rtp).unwrap().looks_like_media(&rtp));
        assert!(!Meta::parse(&sip).unwrap().looks_like_media(&sip));
    }

    #[test]
    fn echo_is_answered_in_place() {
        let mut packet = Vec::new();
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!(write_ip(a, b, ICMP, 0, 8, &mut packet));
        packet.extend_from_slice(&[8, 0, 0, 0, 0, 1, 0, 2]);
        let meta = Meta::parse(&packet).unwrap();
        assert!(echo_reply(&mut packet, &meta));
        let meta = Meta::parse(&packet).unwrap();
        assert_eq!((meta.source, meta.destination), (b, a));
        assert_eq!(fold(sum(&packet[20..], 0)), 0);
    }
}
