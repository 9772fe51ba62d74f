//! Media flows that nobody announced: RTP recognised by its own numbers, for programs that do not know us.
//!
//! RFC 3550 appendix A.1 keeps a source on probation until a few packets with ascending numbers have come;
//! we do the same, for one inner port at a time. A wrong guess costs a flow its place on the stream, never a
//! packet: both paths lead to the same address.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::packet::{Meta, UDP, UDP_HEADER};

/// Packets in a row before a flow counts as media: 80 ms of a call, and chance needs 2^48 tries.
const PROBATION: u8 = 4;

/// Ports watched per session; a host has a few calls, and what does not look like RTP takes no place.
const MAX_WATCHED: usize = 256;

/// Silence after which a flow is reported quiet: longer than any pause of a codec with silence suppression
/// that still sends comfort noise (RFC 3389), and than RTCP's five seconds.
const QUIET_US: u64 = 10_000_000;

/// An inner port of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MediaPort {
    pub v6: bool,
    pub port: u16,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    ssrc: u32,
    next: u16,
    run: u8,
    last_us: u64,
}

/// The ports of one session.
#[derive(Debug, Default)]
pub struct Detector {
    ports: Mutex<HashMap<MediaPort, Watched, RandomState>>,
}

impl Detector {
    /// Look at a packet the client sends. True once, when its port is found to carry media.
    pub fn observe(&self, meta: &Meta, data: &[u8], now_us: u64) -> bool {
        if meta.protocol != UDP || meta.fragment {
            return false;
        }
        let Some(head) = data.get(meta.transport + UDP_HEADER..).and_then(|d| d.first_chunk::<12>()) else {
            return false;
        };
        let payload_type = head[1] & 0x7f;
        // Not version 2, or the numbers of RTCP on a shared port (RFC 5761).
        if head[0] >> 6 != 2 || (64..=95).contains(&payload_type) {
            return false;
        }
        let number = u16::from_be_bytes([head[2], head[3]]);
        let ssrc = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        let key = MediaPort { v6: meta.source.is_ipv6(), port: meta.source_port };
        self.advance(key, ssrc, number, now_us)
    }

    fn advance(&self, key: MediaPort, ssrc: u32, number: u16, now_us: u64) -> bool {
        let mut ports = self.ports.lock();
        if ports.len() >= MAX_WATCHED && !ports.contains_key(&key) {
            ports.retain(|_, w| w.run >= PROBATION);
            if ports.len() >= MAX_WATCHED {
                return false;
            }
        }
        let first = Watched { ssrc, next: number, run: 0, last_us: now_us };
        let watched = ports.entry(key).or_insert(first);
        watched.last_us = now_us;
        if watched.run >= PROBATION {
            return false;
        }
        let in_turn = watched.ssrc == ssrc && watched.next == number;
        watched.run = if in_turn { watched.run + 1 } else { 1 };
        watched.ssrc = ssrc;
        watched.next = number.wrapping_add(1);
        watched.run >= PROBATION
    }

    /// Forget the ports that have been silent; those that carried media are returned.
    pub fn sweep(&self, now_us: u64) -> Vec<MediaPort> {
        let mut quiet = Vec::new();
        self.ports.lock().retain(|key, watched| {
            let silent = now_us.saturating_sub(watched.last_us) > QUIET_US;
            if silent && watched.run >= PROBATION {
                quiet.push(*key);
            }
            !silent
        });
        quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{UdpHead, write_udp};

    fn rtp(port: u16, number: u16, ssrc: u32) -> Vec<u8> {
        let mut payload = vec![0x80, 0];
        payload.extend_from_slice(&number.to_be_bytes());
        payload.extend_from_slice(&[0; 4]);
        payload.extend_from_slice(&ssrc.to_be_bytes());
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut out = Vec::new();
        let head = UdpHead { source, source_port: port, destination, destination_port: 9, tos: 0 };
        assert!(write_udp(&head, &payload, &mut out));
        out
    }

    fn feed(detector: &Detector, port: u16, numbers: &[u16], now_us: u64) -> usize {
        let seen = |n: &u16| {
            let packet = rtp(port, *n, 7);
            detector.observe(&Meta::parse(&packet).unwrap(), &packet, now_us)
        };
        numbers.iter().filter(|n| seen(n)).count()
    }

    #[test]
    fn four_in_a_row_are_media_once() {
        let detector = Detector::default();
        assert_eq!(feed(&detector, 5000, &[65534, 65535, 0], 0), 0);
        assert_eq!(feed(&detector, 5000, &[1, 2, 3, 4, 9], 0), 1);
    }

    #[test]
    fn numbers_out_of_turn_are_not() {
        let detector = Detector::default();
        assert_eq!(feed(&detector, 5000, &[1, 2, 3, 5, 6, 7, 9, 9, 9, 9], 0), 0);
    }

    #[test]
    fn silence_is_reported_for_media_and_forgotten_for_the_rest() {
        let detector = Detector::default();
        feed(&detector, 5000, &[1, 2, 3, 4], 0);
        feed(&detector, 6000, &[1], 0);
        assert!(detector.sweep(QUIET_US).is_empty());
        assert_eq!(detector.sweep(QUIET_US + 1), [MediaPort { v6: false, port: 5000 }]);
        assert_eq!(feed(&detector, 5000, &[5, 6, 7, 8], QUIET_US + 2), 1);
    }

    #[test]
    fn strangers_do_not_fill_the_table() {
        let detector = Detector::default();
        for port in 0..2_000 {
            feed(&detector, port, &[1], 0);
        }
        assert!(detector.ports.lock().len() <= MAX_WATCHED);
        assert_eq!(feed(&detector, 9_999, &[1, 2, 3, 4], 0), 1);
    }
}
