//! Media relays of the embedded SBC: two ports of this process joined back to back. A port is an inner one, or
//! a UDP socket on the core side. Rules come from the control plane; packets only read them, learn a port,
//! and count.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use ahash::RandomState;
use parking_lot::{Mutex, RwLock};

use crate::counters::Counter;
use crate::limits::MAX_RELAYS;
use crate::tables::rtcp::{self, Reports};

/// Addresses that may speak before the negotiated party is known: phones of one user that ring at once.
pub const EARLY: usize = 4;

/// RTP clock of the payload types with a fixed one (RFC 3551 section 6); everything else is taken for the
/// 8 kHz of telephony, which scales the jitter of such a stream but not its loss.
fn clock_rate(payload_type: u8) -> u64 {
    match payload_type {
        6 => 16_000,
        10 | 11 => 44_100,
        14 | 25 | 26 | 28 | 31..=34 => 90_000,
        16 => 11_025,
        17 => 22_050,
        _ => 8_000,
    }
}

/// Reception statistics after RFC 3550 appendix A.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reception {
    pub packets: u64,
    pub bytes: u64,
    pub by_datagram: u64,
    pub last_us: u64,
    ssrc: Option<u32>,
    base: u32,
    highest: u32,
    received: u64,
    /// Of earlier sources on the same leg.
    past_expected: u64,
    past_received: u64,
    transit: i64,
    jitter_us: u64,
}

impl Reception {
    fn count(&mut self, length: usize, datagram: bool, now_us: u64) {
        self.packets += 1;
        self.bytes += length as u64;
        self.by_datagram += u64::from(datagram);
        self.last_us = now_us;
    }

    /// Follow one RTP packet.
    fn follow(&mut self, rtp: &[u8], now_us: u64) {
        let Some(head) = rtp.first_chunk::<12>().filter(|h| h[0] >> 6 == 2) else { return };
        let payload_type = head[1] & 0x7f;
        let number = u16::from_be_bytes([head[2], head[3]]);
        let stamp = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let ssrc = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        if self.ssrc == Some(ssrc) {
            self.advance(number);
            self.follow_transit(stamp, payload_type, now_us);
        } else {
            self.begin(ssrc, number);
            self.transit = transit(stamp, payload_type, now_us);
        }
        self.received += 1;
    }

    fn begin(&mut self, ssrc: u32, number: u16) {
        self.past_expected += self.current_expected();
        self.past_received += self.received;
        (self.ssrc, self.base, self.highest, self.received) = (Some(ssrc), number.into(), number.into(), 0);
    }

    /// Extend the 16-bit number; half the space decides between "later" and "late".
    fn advance(&mut self, number: u16) {
        let step = number.wrapping_sub(self.highest as u16);
        if step < 0x8000 {
            self.highest = self.highest.wrapping_add(u32::from(step));
        }
    }

    fn follow_transit(&mut self, stamp: u32, payload_type: u8, now_us: u64) {
        let transit = transit(stamp, payload_type, now_us);
        let difference = (transit - self.transit).unsigned_abs();
        self.transit = transit;
        // A jump of more than ten seconds is a new time base, not jitter.
        if difference < 10_000_000 {
            self.jitter_us = self.jitter_us - self.jitter_us / 16 + difference / 16;
        }
    }

    fn current_expected(&self) -> u64 {
        if self.ssrc.is_none() { 0 } else { u64::from(self.highest.wrapping_sub(self.base)) + 1 }
    }

    /// Packets that should have come.
    pub fn expected(&self) -> u64 {
        self.past_expected + self.current_expected()
    }

    /// Packets that did not.
    pub fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.past_received + self.received)
    }

    pub fn jitter_us(&self) -> u64 {
        self.jitter_us
    }
}

/// Arrival time minus media time, in microseconds.
fn transit(stamp: u32, payload_type: u8, now_us: u64) -> i64 {
    let media_us = u64::from(stamp) * 1_000_000 / clock_rate(payload_type);
    now_us as i64 - media_us as i64
}

/// One party of a relay.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    pub local: SocketAddr,
    pub remote: Option<SocketAddr>,
    pub learned: Option<SocketAddr>,
    /// While the party is not known: who was offered this port. The first of them to speak has it.
    early: [Option<IpAddr>; EARLY],
    pub dropped: u64,
    /// Of those: packets of somebody who is not the party, and who that was last.
    pub wrong: u64,
    pub stranger: Option<SocketAddr>,
    pub reception: Reception,
    pub reports: Reports,
}

impl Leg {
    fn new(end: &End) -> Self {
        Self {
            local: end.local,
            remote: end.remote,
            learned: None,
            early: end.early,
            dropped: 0,
            wrong: 0,
            stranger: None,
            reception: Reception::default(),
            reports: Reports::default(),
        }
    }

    /// Where to send to this party.
    fn target(&self) -> Option<SocketAddr> {
        self.learned.or(self.remote)
    }

    /// Whether a packet from `source` may be this party's; learns its port (RFC 4961). Only the negotiated
    /// address counts, or before that one that was offered the port; and once a port is learned, only that.
    fn admit(&mut self, source: SocketAddr) -> bool {
        let known = match (self.learned, self.remote) {
            (Some(learned), _) => return learned == source,
            (None, Some(remote)) => remote.ip() == source.ip(),
            (None, None) => self.early.contains(&Some(source.ip())),
        };
        if known {
            self.learned = Some(source);
        }
        known
    }

    fn admit_or_count(&mut self, source: SocketAddr) -> Result<(), Counter> {
        if self.admit(source) {
            return Ok(());
        }
        self.dropped += 1;
        self.wrong += 1;
        self.stranger = Some(source);
        Err(Counter::RelayWrongSource)
    }
}

/// How one end of a relay begins.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub local: SocketAddr,
    pub remote: Option<SocketAddr>,
    pub early: [Option<IpAddr>; EARLY],
}

/// A UDP socket on the core side, read by one worker. Batches hold the relay until they have been flushed, so
/// that its descriptor cannot become another's meanwhile.
#[derive(Debug)]
pub struct CoreSocket {
    pub id: u64,
    pub worker: usize,
    socket: UdpSocket,
}

impl CoreSocket {
    pub fn bind(id: u64, worker: usize, local: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        Ok(Self { id, worker, socket })
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What of a relay's packets is read for statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Follow {
    pub rtp: bool,
    pub rtcp: bool,
}

/// Two legs and what is being followed.
#[derive(Debug)]
pub struct Relay {
    pub id: u64,
    follow: Mutex<Follow>,
    legs: Mutex<[Leg; 2]>,
    core: [Option<CoreSocket>; 2],
}

/// Where a relayed packet goes on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

impl Relay {
    /// Set the parties that are given, forgetting what was learned of them, and what is read from now on.
    pub fn update(&self, remotes: [Option<SocketAddr>; 2], follow: Option<Follow>) {
        if let Some(follow) = follow {
            *self.follow.lock() = follow;
        }
        for (leg, remote) in self.legs.lock().iter_mut().zip(remotes) {
            if remote.is_some() {
                leg.remote = remote;
                leg.learned = None;
            }
        }
    }

    /// Both legs as they are.
    pub fn legs(&self) -> [Leg; 2] {
        *self.legs.lock()
    }

    /// The socket of a leg on the core side.
    pub fn core(&self, side: usize) -> Option<&CoreSocket> {
        self.core.get(side).and_then(Option::as_ref)
    }

    pub fn cores(&self) -> impl Iterator<Item = &CoreSocket> {
        self.core.iter().flatten()
    }

    /// A packet for one of the two ports.
    pub fn pass(
        &self,
        side: usize,
        source: SocketAddr,
        payload: &[u8],
        path: i8,
        now_us: u64,
    ) -> Result<Onward, Counter> {
        let mut legs = self.legs.lock();
        let [a, b] = &mut *legs;
        let (here, there) = if side == 0 { (a, b) } else { (b, a) };
        here.admit_or_count(source)?;
        let follow = *self.follow.lock();
        here.reception.count(payload.len(), path == 1, now_us);
        if rtcp::is_rtcp(payload) {
            if follow.rtcp {
                here.reports.hear(payload, there.reports.sent(), now_us);
            }
        } else if follow.rtp {
            here.reception.follow(payload, now_us);
        }
        let Some(to) = there.target() else {
            here.dropped += 1;
            return Err(Counter::RelayNoParty);
        };
        Ok(Onward { from: there.local, to })
    }
}

#[derive(Debug, Default)]
struct Maps {
    by_port: HashMap<(IpAddr, u16), (Arc<Relay>, usize), RandomState>,
    by_socket: HashMap<u64, (Arc<Relay>, usize), RandomState>,
    by_id: HashMap<u64, Arc<Relay>, RandomState>,
}

/// Why a relay was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayError {
    InUse,
    TooMany,
}

/// All relays of an engine.
#[derive(Debug, Default)]
pub struct Relays {
    maps: RwLock<Maps>,
}

impl Relays {
    /// Join two ports. An end with a socket is on the core side.
    pub fn open(
        &self,
        id: u64,
        ends: [End; 2],
        core: [Option<CoreSocket>; 2],
        follow: Follow,
    ) -> Result<Arc<Relay>, RelayError> {
        let mut maps = self.maps.write();
        if maps.by_id.len() >= MAX_RELAYS {
            return Err(RelayError::TooMany);
        }
        let inner: Vec<_> = (0..2).filter(|side| core[*side].is_none()).collect();
        let keys = ends.map(|end| (end.local.ip(), end.local.port()));
        let taken = inner.iter().any(|side| maps.by_port.contains_key(&keys[*side]));
        if taken || (inner.len() == 2 && keys[0] == keys[1]) {
            return Err(RelayError::InUse);
        }
        let legs = [Leg::new(&ends[0]), Leg::new(&ends[1])];
        let relay = Arc::new(Relay { id, follow: Mutex::new(follow), legs: Mutex::new(legs), core });
        for (side, key) in keys.into_iter().enumerate() {
            let place = (Arc::clone(&relay), side);
            match relay.core(side) {
                Some(socket) => maps.by_socket.insert(socket.id, place),
                None => maps.by_port.insert(key, place),
            };
        }
        maps.by_id.insert(id, Arc::clone(&relay));
        Ok(relay)
    }

    /// The relay that owns a port, and which of its legs that is.
    #[inline]
    pub fn find(&self, address: IpAddr, port: u16) -> Option<(Arc<Relay>, usize)> {
        self.maps.read().by_port.get(&(address, port)).cloned()
    }

    /// The relay that owns a core-side socket, and which of its legs that is.
    pub fn of_socket(&self, id: u64) -> Option<(Arc<Relay>, usize)> {
        self.maps.read().by_socket.get(&id).cloned()
    }

    pub fn get(&self, id: u64) -> Option<Arc<Relay>> {
        self.maps.read().by_id.get(&id).cloned()
    }

    /// End a relay.
    pub fn close(&self, id: u64) -> Option<Arc<Relay>> {
        let mut maps = self.maps.write();
        let relay = maps.by_id.remove(&id)?;
        for (side, leg) in relay.legs().iter().enumerate() {
            match relay.core(side) {
                Some(socket) => maps.by_socket.remove(&socket.id),
                None => maps.by_port.remove(&(leg.local.ip(), leg.local.port())),
            };
        }
        Some(relay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn relay() -> Relays {
        let relays = Relays::default();
        let ends = [end("10.0.0.1:4000", Some("10.0.0.2:5000")), end("10.0.0.1:4002", Some("10.0.0.3:6000"))];
        relays.open(1, ends, [None, None], ALL).unwrap();
        relays
    }

    const ALL: Follow = Follow { rtp: true, rtcp: true };

    fn end(local: &str, remote: Option<&str>) -> End {
        End { local: at(local), remote: remote.map(at), early: [None; EARLY] }
    }

    fn rtp(number: u16, stamp: u32) -> Vec<u8> {
        let mut out = vec![0x80, 0];
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&stamp.to_be_bytes());
        out.extend_from_slice(&7u32.to_be_bytes());
        out.extend_from_slice(&[0xff; 160]);
        out
    }

    fn send(
        relay: &Relay,
        side: usize,
        source: &str,
        payload: &[u8],
        now_us: u64,
    ) -> Result<Onward, Counter> {
        relay.pass(side, at(source), payload, 1, now_us)
    }

    #[test]
    fn each_party_is_sent_what_the_other_says() {
        let relays = relay();
        let (relay, side) = relays.find("10.0.0.1".parse().unwrap(), 4000).unwrap();
        let onward = send(&relay, side, "10.0.0.2:5000", b"x", 0).unwrap();
        assert_eq!(onward, Onward { from: at("10.0.0.1:4002"), to: at("10.0.0.3:6000") });
        let (relay, side) = relays.find("10.0.0.1".parse().unwrap(), 4002).unwrap();
        assert_eq!(send(&relay, side, "10.0.0.3:6000", b"x", 0).unwrap().to, at("10.0.0.2:5000"));
    }

    #[test]
    fn a_port_is_learned_once_and_only_from_the_negotiated_address() {
        let relays = relay();
        let relay = relays.get(1).unwrap();
        assert_eq!(send(&relay, 0, "10.0.0.9:5000", b"x", 0), Err(Counter::RelayWrongSource));
        assert!(send(&relay, 0, "10.0.0.2:5555", b"x", 0).is_ok());
        assert_eq!(send(&relay, 0, "10.0.0.2:5000", b"x", 0), Err(Counter::RelayWrongSource));
        assert_eq!(send(&relay, 1, "10.0.0.3:6000", b"x", 0).unwrap().to, at("10.0.0.2:5555"));
        relay.update([Some(at("10.0.0.2:7000")), None], None);
        assert_eq!(send(&relay, 1, "10.0.0.3:6000", b"x", 0).unwrap().to, at("10.0.0.2:7000"));
        assert_eq!(relay.legs()[0].dropped, 2);
    }

    #[test]
    fn losses_are_counted_over_the_wrap_and_over_a_new_source() {
        let relays = relay();
        let relay = relays.get(1).unwrap();
        for (i, number) in (65_530u32..65_560).filter(|n| n % 5 != 3).enumerate() {
            assert!(
                send(&relay, 0, "10.0.0.2:5000", &rtp(number as u16, i as u32 * 160), i as u64 * 20_000)
                    .is_ok()
            );
        }
        let reception = relay.legs()[0].reception;
        assert_eq!((reception.packets, reception.expected(), reception.lost()), (24, 30, 6));
    }

    #[test]
    fn even_spacing_has_no_jitter_and_uneven_spacing_has() {
        let relays = relay();
        let relay = relays.get(1).unwrap();
        for i in 0..200u32 {
            let _ = send(&relay, 0, "10.0.0.2:5000", &rtp(i as u16, i * 160), u64::from(i) * 20_000);
            let late = if i % 2 == 0 { 0 } else { 5_000 };
            let _ = send(&relay, 1, "10.0.0.3:6000", &rtp(i as u16, i * 160), u64::from(i) * 20_000 + late);
        }
        let [a, b] = relay.legs();
        assert_eq!(a.reception.jitter_us(), 0);
        assert!((4_000..6_000).contains(&b.reception.jitter_us()), "{}", b.reception.jitter_us());
    }

    #[test]
    fn ports_are_owned_by_one_relay() {
        let relays = relay();
        let ends = || [end("10.0.0.1:4002", None), end("10.0.0.1:4004", None)];
        assert_eq!(relays.open(2, ends(), [None, None], ALL).unwrap_err(), RelayError::InUse);
        assert!(relays.close(1).is_some() && relays.find("10.0.0.1".parse().unwrap(), 4000).is_none());
        assert!(relays.open(2, ends(), [None, None], ALL).is_ok());
    }

    #[test]
    fn before_the_answer_the_first_of_those_who_were_asked_is_heard() {
        let relays = Relays::default();
        let mut callee = end("10.0.0.1:4002", None);
        callee.early = [Some(at("10.0.0.3:0").ip()), Some(at("10.0.0.4:0").ip()), None, None];
        let ends = [end("10.0.0.1:4000", Some("10.0.0.2:5000")), callee];
        let relay = relays.open(1, ends, [None, None], ALL).unwrap();
        assert_eq!(send(&relay, 1, "10.0.0.9:6000", b"x", 0), Err(Counter::RelayWrongSource));
        assert_eq!(send(&relay, 0, "10.0.0.2:5000", b"x", 0), Err(Counter::RelayNoParty));
        assert_eq!(send(&relay, 1, "10.0.0.4:6000", b"x", 0).unwrap().to, at("10.0.0.2:5000"));
        assert_eq!(send(&relay, 0, "10.0.0.2:5000", b"x", 0).unwrap().to, at("10.0.0.4:6000"));
        assert_eq!(send(&relay, 1, "10.0.0.3:6000", b"x", 0), Err(Counter::RelayWrongSource));
        let leg = relay.legs()[1];
        assert_eq!((leg.wrong, leg.stranger), (2, Some(at("10.0.0.3:6000"))));
        relay.update([None, Some(at("10.0.0.3:7000"))], None);
        assert!(send(&relay, 1, "10.0.0.3:6000", b"x", 0).is_ok(), "the answer decides");
        assert_eq!(send(&relay, 1, "10.0.0.4:6000", b"x", 0), Err(Counter::RelayWrongSource));
    }

    #[test]
    fn fax_after_speech_is_not_taken_for_rtp() {
        let relay = relay().get(1).unwrap();
        assert!(send(&relay, 0, "10.0.0.2:5000", &rtp(1, 160), 0).is_ok());
        relay.update([None, None], Some(Follow::default()));
        assert!(send(&relay, 0, "10.0.0.2:5000", &rtp(9_000, 0), 0).is_ok());
        let reception = relay.legs()[0].reception;
        assert_eq!((reception.packets, reception.lost()), (2, 0));
    }

    #[test]
    fn a_core_side_leg_is_found_by_its_socket_only() {
        let relays = Relays::default();
        let socket = CoreSocket::bind(77, 0, at("127.0.0.1:0")).unwrap();
        let ends = [end("10.0.0.1:4000", Some("10.0.0.2:5000")), end("127.0.0.1:4002", None)];
        relays.open(1, ends, [None, Some(socket)], ALL).unwrap();
        assert!(relays.find("127.0.0.1".parse().unwrap(), 4002).is_none());
        assert_eq!(relays.of_socket(77).unwrap().1, 1);
        drop(relays.close(1));
        assert!(relays.of_socket(77).is_none());
    }
}
