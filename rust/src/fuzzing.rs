//! What the fuzz targets run: code that sees a peer's bytes first. Each function takes any bytes at all and must
//! come back, having kept its promises; `rust/fuzz` feeds them by libFuzzer, the test below by a seeded stream
//! in every test run.

use crate::crypto::dtls_record::content_type;
use crate::crypto::{Datagrams, DtlsListener, ListenOutcome, records};
use crate::frame::{ControlHead, Frame, next_frame};
use crate::limits::{MAX_CONTROL_MESSAGE, MAX_INNER_PACKET};
use crate::packet::{End, Meta, echo_reply, readdress, udp_checksum_ok};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Cut bytes into frames as a stream does: every frame lies inside, and each step moves on.
pub fn frames(data: &[u8]) {
    let mut at = 0;
    while let Some(rest) = data.get(at..) {
        match next_frame(rest) {
            Ok(Frame::Inner(length)) => {
                assert!(length > 0 && length <= rest.len() && length <= MAX_INNER_PACKET);
                packet(&rest[..length]);
                at += length;
            }
            Ok(Frame::Control(length)) => {
                assert!(length >= 16 && length <= rest.len() && length <= MAX_CONTROL_MESSAGE);
                assert!(ControlHead::parse(&rest[..length]).is_some());
                at += length;
            }
            Ok(Frame::Sequenced(length)) => {
                assert!(length > 6 && length <= rest.len());
                packet(&rest[6..length]);
                at += length;
            }
            Ok(Frame::Incomplete) => {
                assert!(rest.len() < 6 + MAX_INNER_PACKET.max(MAX_CONTROL_MESSAGE), "would wait for ever");
                return;
            }
            Err(_) => return,
        }
    }
}

/// Look at bytes as an inner packet, then change it in every way we know.
pub fn packet(data: &[u8]) {
    let Ok(meta) = Meta::parse(data) else { return };
    assert!(meta.length <= data.len() && meta.transport <= meta.length);
    let _ = (meta.looks_like_media(data), udp_checksum_ok(&meta, data));
    if let Some(payload) = meta.udp_payload(data) {
        assert!(payload.len() < meta.length);
    }
    let mut copy = data.to_vec();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        if readdress(&mut copy, &meta, End::Destination, address, 9) {
            let changed = Meta::parse(&copy);
            assert!(changed.is_ok_and(|m| m.destination == address && m.source == meta.source));
        }
    }
    let mut copy = data.to_vec();
    let _ = echo_reply(&mut copy, &meta);
    assert_eq!(copy.len(), data.len());
}

/// The first octets of a control message and everything a relay of it relies on.
pub fn control(data: &[u8]) {
    let mut message = vec![0x10, 0];
    message.extend_from_slice(data);
    frames(&message);
}

/// A datagram from nobody we know: cut into records, classified, shown to the DTLS listener.
pub fn datagram(data: &[u8]) {
    let mut copy = data.to_vec();
    let cut: usize = records(&mut copy).map(|record| record.len()).sum();
    assert_eq!(cut, data.len());
    let _ = content_type(data);
    let listener = DtlsListener::new([7; 32], Arc::new(|_| None));
    let mut out = Datagrams::default();
    let peer = SocketAddr::from(([192, 0, 2, 1], 4433));
    if let ListenOutcome::Reply = listener.feed(&peer, data, &mut out) {
        let answer: usize = out.iter().map(<[u8]>::len).sum();
        assert!(answer <= data.len(), "an answer longer than the question can be used to flood others");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: the same bytes in every run; a failing round is found again by its number.
    struct Bytes(u64);

    impl Bytes {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn fill(&mut self, length: usize) -> Vec<u8> {
            (0..length).map(|_| self.next() as u8).collect()
        }
    }

    /// Random bytes seldom look like anything, so most rounds begin with a plausible head.
    fn sample(bytes: &mut Bytes) -> Vec<u8> {
        const HEADS: &[&[u8]] = &[
            &[],
            &[0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17],
            &[0x60, 0, 0, 0, 0, 20, 17, 64],
            &[0x60, 0, 0, 0, 0, 20, 44, 64],
            &[0x10, 0, 5, 3],
            &[0x12, 0, 0, 0, 0, 9, 0x45, 0, 0, 40],
            &[22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60, 1, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0, 48],
            &[23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 0, 40],
        ];
        let head = HEADS[bytes.next() as usize % HEADS.len()];
        let length = bytes.next() as usize % 300;
        let mut data = head.to_vec();
        data.extend(bytes.fill(length));
        data
    }

    #[test]
    fn no_bytes_break_the_parsers() {
        let mut bytes = Bytes(0x0bad_5eed);
        for _ in 0..30_000 {
            let data = sample(&mut bytes);
            frames(&data);
            packet(&data);
            control(&data);
            datagram(&data);
        }
    }
}
