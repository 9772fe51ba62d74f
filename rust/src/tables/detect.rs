//! Media flows that nobody announced: RTP recognised by its own numbers, for programs that do not know us.
//!
//! RFC 3550 appendix A.1 keeps a source on probation until a few packets with ascending numbers have come;
//! we do the same, for one inner port at a time. A wrong guess costs a flow its place on the stream, never a
//! packet: both paths lead to the same address. Ports (and DSCP EF) that the user calls media need no probation.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::signals::is_call;
use crate::packet::{EXPEDITED, Meta, UDP, UDP_HEADER};

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

/// What the user says of media on this machine.
#[derive(Debug, Default)]
pub struct Hints {
    /// Ranges of ports, both ends included, that carry nothing else.
    pub ports: Vec<(u16, u16)>,
    /// DSCP EF means media (RFC 8837).
    pub expedited: bool,
    /// Media wants the datagram tunnel, without waiting for the control plane to say so.
    pub datagram: bool,
}

impl Hints {
    fn declare(&self, meta: &Meta, data: &[u8]) -> bool {
        let port = meta.source_port;
        self.ports.iter().any(|(low, high)| (*low..=*high).contains(&port))
            || self.expedited
                && meta.tos >> 2 == EXPEDITED
                // Some phones mark all they send.
                && !meta.udp_payload(data).is_some_and(is_call)
    }
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
    hints: ArcSwapOption<Hints>,
}

impl Detector {
    /// From now on, with these hints.
    pub fn set_hints(&self, hints: Hints) {
        self.hints.store(Some(Arc::new(hints)));
    }

    /// Whether media that is found may use the datagram tunnel at once.
    pub fn wants_datagram(&self) -> bool {
        self.hints.load().as_ref().is_some_and(|h| h.datagram)
    }

    /// Look at a packet the client sends. True once, when its port is found to carry media.
    pub fn observe(&self, meta: &Meta, data: &[u8], now_us: u64) -> bool {
        if meta.protocol != UDP || meta.fragment {
            return false;
        }
        let key = MediaPort { v6: meta.source.is_ipv6(), port: meta.source_port };
        if self.hints.load().as_ref().is_some_and(|h| h.declare(meta, data)) {
            return self.advance(key, None, now_us);
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
        self.advance(key, Some((ssrc, number)), now_us)
    }

    /// `rtp`: source and number of the packet; None: it is media without looking.
    fn advance(&self, key: MediaPort, rtp: Option<(u32, u16)>, now_us: u64) -> bool {
        let mut ports = self.ports.lock();
        if ports.len() >= MAX_WATCHED && !ports.contains_key(&key) {
            ports.retain(|_, w| w.run >= PROBATION);
            if ports.len() >= MAX_WATCHED {
                return false;
            }
        }
        let (ssrc, number) = rtp.unwrap_or_default();
        let first = Watched { ssrc, next: number, run: 0, last_us: now_us };
        let watched = ports.entry(key).or_insert(first);
        watched.last_us = now_us;
        if watched.run >= PROBATION {
            return false;
        }
        if rtp.is_none() {
            watched.run = PROBATION;
            return true;
        }
        let in_turn = watched.ssrc == ssrc && watched.next == number;
        watched.run = if in_turn { watched.run + 1 } else { 1 };
        watched.ssrc = ssrc;
        watched.next = number.wrapping_add(1);
        watched.run >= PROBATION
    }

    /// Look at this port as if it were new: what steered it is gone.
    pub fn forget(&self, port: MediaPort) {
        self.ports.lock().remove(&port);
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
        detector.forget(MediaPort { v6: false, port: 5000 });
        assert_eq!(feed(&detector, 5000, &[10, 11, 12, 13], 0), 1);
    }

    #[test]
    fn numbers_out_of_turn_are_not() {
        let detector = Detector::default();
        assert_eq!(feed(&detector, 5000, &[1, 2, 3, 5, 6, 7, 9, 9, 9, 9], 0), 0);
    }

    #[test]
    fn what_the_user_calls_media_is_media_at_once() {
        let detector = Detector::default();
        detector.set_hints(Hints { ports: vec![(9, 10), (5000, 5001)], expedited: true, datagram: true });
        assert!(detector.wants_datagram());
        assert_eq!(feed(&detector, 5001, &[7, 90, 8], 0), 1);
        assert_eq!(feed(&detector, 5002, &[7, 90, 8], 0), 0);
        let text = |payload: &[u8]| {
            let head = UdpHead {
                source: "10.0.0.1".parse().unwrap(),
                source_port: 6000,
                destination: "10.0.0.2".parse().unwrap(),
                destination_port: 9,
                tos: EXPEDITED << 2,
            };
            let mut out = Vec::new();
            assert!(write_udp(&head, payload, &mut out));
            detector.observe(&Meta::parse(&out).unwrap(), &out, 0)
        };
        assert_eq!([text(b"BYE sip:a SIP/2.0\r\n\r\n"), text(b"fax"), text(b"fax")], [false, true, false]);
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
