//! Datagram tunnels of one worker: cookies and handshakes at the listeners' sockets, our own sockets to servers,
//! and from then on records in and out.
//!
//! A listener's socket is shared by many peers, told apart by address. A peer may have a tunnel and, beside it,
//! a handshake: one that has just ended and may have to repeat its last flight, or a fresh one of a client that
//! came back from the same port. The old tunnel goes on until the new one has proved its key.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::RandomState;

use super::control::{self, Progress as Run};
use super::timers::{Due, Timers, alert_peer};
use super::{forget, token};
use crate::boundary::Event;
use crate::counters::Counter;
use crate::crypto::dtls_record::{ALERT, APPLICATION, is_client_hello};
use crate::crypto::{
    Datagrams as Flight, DtlsHandshake, DtlsKeys, DtlsListener, ListenOutcome, OpenError, Opened, Progress,
    content_type, records,
};
use crate::forward::Forwarder;
use crate::frame::{CONFIGURATION_REQUEST, ControlHead, Frame, next_frame};
use crate::limits::{
    DROP_SOCKETS, HANDSHAKE_LINGER_MS, HANDSHAKE_TIMEOUT_MS, MAX_HANDSHAKES, READ_BUDGET, UDP_BUFFER,
};
use crate::sys::{self, READABLE, RecvBatch, SocketDrops, prefetch};
use crate::tunnel::{DatagramLink, Link, Outlet, Tunnel};

/// Datagrams between asking for a tunnel and for what it points to, and again until it is used: some 100 ns each,
/// against half a microsecond of work with a datagram.
const WARM_STEP: usize = 3;

/// An order to open a datagram tunnel to a server.
pub struct Dial {
    pub tunnel: u64,
    pub psk: Option<[u8; 32]>,
    pub tsid: u64,
    pub session: u64,
    pub rtt_hint_ms: u32,
}

struct Shake {
    dtls: Box<DtlsHandshake>,
    deadline_us: u64,
    /// Keys are taken; it only answers repeated flights.
    over: bool,
}

/// One peer of a socket.
#[derive(Default)]
struct Peer {
    tunnel: Option<Arc<Tunnel>>,
    shake: Option<Shake>,
}

/// One socket.
struct Port {
    id: u64,
    outlet: Arc<Vec<OwnedFd>>,
    fd: RawFd,
    /// None: a listener.
    dial: Option<Dial>,
    dtls: Option<DtlsListener>,
    /// A listener that takes no new peers.
    retired: bool,
    peers: HashMap<SocketAddr, Peer, RandomState>,
    drops: SocketDrops,
}

/// What became of a peer after a datagram.
#[derive(PartialEq, Eq)]
enum Fate {
    Lives,
    Ended(&'static str, String),
}

/// All datagram tunnels of a worker.
pub struct Datagrams {
    index: usize,
    ports: HashMap<u64, Port, RandomState>,
    /// Where each tunnel is.
    places: HashMap<u64, (u64, SocketAddr), RandomState>,
    handshakes: usize,
    flight: Flight,
}

impl Datagrams {
    pub fn new(index: usize) -> Self {
        Self {
            index,
            ports: HashMap::default(),
            places: HashMap::default(),
            handshakes: 0,
            flight: Flight::default(),
        }
    }

    /// Serve a listener by this worker's socket.
    pub fn listen(&mut self, id: u64, sockets: &Arc<Vec<OwnedFd>>, dtls: bool, forwarder: &Forwarder) {
        let Some(fd) = sockets.get(self.index).map(AsRawFd::as_raw_fd) else {
            return;
        };
        let dtls = dtls.then(|| new_listener(forwarder)).flatten();
        let port = Port {
            id,
            outlet: Arc::clone(sockets),
            fd,
            dial: None,
            dtls,
            retired: false,
            peers: HashMap::default(),
            drops: SocketDrops::new(fd),
        };
        self.open_port(port, forwarder);
    }

    fn open_port(&mut self, port: Port, forwarder: &Forwarder) -> bool {
        tune(port.fd);
        let registered = forwarder
            .engine
            .inbox(self.index)
            .is_some_and(|i| i.epoll.add(port.fd, READABLE, token(token::PORT, port.id)).is_ok());
        if registered {
            self.ports.insert(port.id, port);
        }
        registered
    }

    /// What the kernel has dropped at our sockets since the last call.
    pub fn drops_grown(&mut self) -> u64 {
        self.ports.values_mut().take(DROP_SOCKETS).map(|port| port.drops.grown(port.fd)).sum()
    }

    /// No new tunnels by this listener; the socket stays while tunnels use it.
    pub fn unlisten(&mut self, id: u64) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        port.retired = true;
        port.dtls = None;
        if port.peers.values().all(|p| p.tunnel.is_none()) {
            self.ports.remove(&id);
        }
    }

    /// Open a tunnel to a server on a connected socket.
    pub fn dial(&mut self, dial: Dial, fd: OwnedFd, forwarder: &mut Forwarder, timers: &mut Timers) {
        let tunnel = dial.tunnel;
        let Ok(server) = sys::peer_address(fd.as_raw_fd()) else {
            fail(tunnel, "refused", "the socket is not connected", forwarder);
            return;
        };
        let raw = fd.as_raw_fd();
        let hint = (dial.rtt_hint_ms > 0).then(|| Duration::from_millis(u64::from(dial.rtt_hint_ms) * 3 / 2));
        let shake = match dial.psk.map(|psk| DtlsHandshake::client(dial.tsid, &psk, hint)) {
            Some(Err(error)) => {
                fail(tunnel, "dtls-error", &error.to_string(), forwarder);
                return;
            }
            Some(Ok(dtls)) => Some(dtls),
            None => None,
        };
        let secure = shake.is_some();
        let port = Port {
            id: tunnel,
            outlet: Arc::new(vec![fd]),
            fd: raw,
            dial: Some(dial),
            dtls: None,
            retired: false,
            peers: HashMap::default(),
            drops: SocketDrops::new(raw),
        };
        if !self.open_port(port, forwarder) {
            fail(tunnel, "io-error", "the socket cannot be watched", forwarder);
            return;
        }
        let deadline_us = forwarder.now_us + HANDSHAKE_TIMEOUT_MS * 1_000;
        let peer = Peer {
            tunnel: None,
            shake: shake.map(|d| Shake { dtls: Box::new(d), deadline_us, over: false }),
        };
        if let Some(port) = self.ports.get_mut(&tunnel) {
            port.peers.insert(server, peer);
        }
        if secure {
            self.handshakes += 1;
            self.start(tunnel, server, forwarder, timers);
        } else {
            self.establish(tunnel, server, None, forwarder);
        }
    }

    /// Datagrams have arrived on a socket.
    pub fn on_readable(
        &mut self,
        id: u64,
        batch: &mut RecvBatch,
        forwarder: &mut Forwarder,
        timers: &mut Timers,
    ) {
        for _ in 0..READ_BUDGET {
            let Some(port) = self.ports.get(&id) else {
                return;
            };
            let (fd, server) = (port.fd, port.dial.as_ref().and(port.peers.keys().next().copied()));
            let (count, more) = match batch.receive(fd) {
                Ok(received) => received,
                Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
                    if let Some(server) = server {
                        self.alert(id, server, forwarder);
                        self.end(
                            id,
                            server,
                            "refused",
                            "the server's port answers that nobody listens",
                            forwarder,
                        );
                    }
                    return;
                }
                Err(_) => return,
            };
            for index in 0..count {
                if server.is_none() {
                    self.warm(id, batch, index);
                }
                let slot = match server {
                    Some(server) => batch.payload(index).map(|datagrams| (datagrams, server)),
                    None => batch.get(index),
                };
                let Some((datagrams, peer)) = slot else {
                    forwarder.counters.add(Counter::DatagramTruncated);
                    continue;
                };
                for data in datagrams {
                    self.on_datagram(id, peer, data, forwarder, timers);
                }
            }
            if !more {
                return;
            }
        }
    }

    /// Ask for the memory of those whose datagrams come next in the batch.
    fn warm(&self, id: u64, batch: &RecvBatch, index: usize) {
        let Some(port) = self.ports.get(&id) else { return };
        let tunnel = |at: usize| port.peers.get(&batch.sender(at)?)?.tunnel.as_ref();
        if let Some(tunnel) = tunnel(index + 2 * WARM_STEP) {
            prefetch(&**tunnel);
        }
        if let Some(tunnel) = tunnel(index + WARM_STEP) {
            tunnel.warm_for_receiving();
        }
    }

    /// The path is refused: the peer, whom nobody tells, is to send by both until its control plane knows.
    fn alert(&self, id: u64, peer: SocketAddr, forwarder: &mut Forwarder) {
        let tunnel = self.ports.get(&id).and_then(|p| p.peers.get(&peer)).and_then(|p| p.tunnel.as_ref());
        if let Some(session) = tunnel.and_then(|t| t.session().clone()) {
            alert_peer(&session, forwarder);
        }
    }

    fn on_datagram(
        &mut self,
        id: u64,
        from: SocketAddr,
        data: &mut [u8],
        forwarder: &mut Forwarder,
        timers: &mut Timers,
    ) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        let fate = match port.peers.get_mut(&from) {
            Some(peer) if peer.tunnel.is_some() && carries_data(peer, data) => peer.digest(data, forwarder),
            Some(Peer { shake: Some(_), .. }) => {
                self.on_flight(id, from, data, forwarder, timers);
                return;
            }
            _ => {
                self.on_stranger(id, from, data, forwarder, timers);
                return;
            }
        };
        if let Fate::Ended(reason, detail) = fate {
            self.end(id, from, reason, &detail, forwarder);
        }
    }

    /// A datagram of a handshake in progress (or of one that has just ended).
    fn on_flight(
        &mut self,
        id: u64,
        from: SocketAddr,
        data: &mut [u8],
        forwarder: &mut Forwarder,
        timers: &mut Timers,
    ) {
        let Some(shake) = self.shake(id, from) else {
            return;
        };
        // A client that lost everything and begins anew from the same port.
        if shake.over && is_client_hello(data) {
            self.on_stranger(id, from, data, forwarder, timers);
            return;
        }
        let mut flight = std::mem::take(&mut self.flight);
        flight.clear();
        let outcome = match self.shake(id, from) {
            Some(shake) => shake.dtls.feed(data, &mut flight),
            None => Ok(Progress::NotHandshake),
        };
        self.transmit(id, from, &flight, forwarder);
        self.flight = flight;
        match outcome {
            Ok(Progress::Done) => self.on_done(id, from, data, forwarder, timers),
            Ok(Progress::InProgress) => self.schedule(id, from, forwarder, timers),
            Ok(Progress::Retransmitted) => {}
            Ok(Progress::NotHandshake) => forwarder.counters.add(Counter::StrayDatagram),
            Err(error) => self.on_failure(id, from, error.to_string(), forwarder),
        }
    }

    fn shake(&mut self, id: u64, from: SocketAddr) -> Option<&mut Shake> {
        self.ports.get_mut(&id)?.peers.get_mut(&from)?.shake.as_mut()
    }

    fn on_done(
        &mut self,
        id: u64,
        from: SocketAddr,
        data: &mut [u8],
        forwarder: &mut Forwarder,
        timers: &mut Timers,
    ) {
        let Some(shake) = self.shake(id, from) else {
            return;
        };
        let keys = match shake.dtls.finish() {
            Ok(keys) => keys,
            Err(error) => return self.on_failure(id, from, error.to_string(), forwarder),
        };
        shake.over = true;
        shake.deadline_us = forwarder.now_us + HANDSHAKE_LINGER_MS * 1_000;
        timers.at(shake.deadline_us, Due::Handshake { port: id, peer: from });
        self.handshakes = self.handshakes.saturating_sub(1);
        self.establish(id, from, Some(keys), forwarder);
        // Data that came in the same datagram as the last flight.
        let peer = self.ports.get_mut(&id).and_then(|port| port.peers.get_mut(&from));
        if let Some(peer) = peer {
            for record in records(data).filter(|r| content_type(r) == Some(APPLICATION)) {
                peer.digest(record, forwarder);
            }
        }
    }

    fn on_failure(&mut self, id: u64, from: SocketAddr, detail: String, forwarder: &mut Forwarder) {
        forwarder.counters.add(Counter::DtlsHandshakeFailed);
        self.drop_shake(id, from);
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        if port.dial.is_some() {
            self.end(id, from, "dtls-error", &detail, forwarder);
        } else if port.peers.get(&from).is_some_and(|p| p.tunnel.is_none()) {
            port.peers.remove(&from);
        }
    }

    fn drop_shake(&mut self, id: u64, from: SocketAddr) {
        let shake = self.ports.get_mut(&id).and_then(|p| p.peers.get_mut(&from)).and_then(|p| p.shake.take());
        if shake.is_some_and(|s| !s.over) {
            self.handshakes = self.handshakes.saturating_sub(1);
        }
    }

    /// A datagram of somebody we have no state for.
    fn on_stranger(
        &mut self,
        id: u64,
        from: SocketAddr,
        data: &mut [u8],
        forwarder: &mut Forwarder,
        timers: &mut Timers,
    ) {
        let room = self.handshakes < MAX_HANDSHAKES;
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        if port.dial.is_some() || port.retired {
            forwarder.counters.add(Counter::StrayDatagram);
            return;
        }
        let Some(listener) = port.dtls.as_mut() else {
            self.on_plain_stranger(id, from, data, forwarder);
            return;
        };
        let mut flight = std::mem::take(&mut self.flight);
        flight.clear();
        match listener.feed(&from, data, &mut flight) {
            ListenOutcome::Reply => {
                forwarder.counters.add(Counter::CookiesSent);
                self.transmit(id, from, &flight, forwarder);
            }
            ListenOutcome::Ignore(_) => forwarder.counters.add(Counter::StrayDatagram),
            ListenOutcome::Accepted(_) if !room => forwarder.counters.add(Counter::HandshakesFull),
            ListenOutcome::Accepted(dtls) => {
                let deadline_us = forwarder.now_us + HANDSHAKE_TIMEOUT_MS * 1_000;
                let shake = Shake { dtls, deadline_us, over: false };
                port.peers.entry(from).or_default().shake = Some(shake);
                self.handshakes += 1;
                self.transmit(id, from, &flight, forwarder);
                self.flight = flight;
                self.schedule(id, from, forwarder, timers);
                return;
            }
        }
        self.flight = flight;
    }

    /// On a plain UDP listener only a Configuration Request for a reserved tunnel opens anything.
    fn on_plain_stranger(&mut self, id: u64, from: SocketAddr, data: &mut [u8], forwarder: &mut Forwarder) {
        let whole = matches!(next_frame(data), Ok(Frame::Control(length)) if length == data.len());
        let head = ControlHead::parse(data).filter(|h| whole && h.kind == CONFIGURATION_REQUEST);
        let now_ms = forwarder.now_us / 1_000;
        let promised = head.is_some_and(|h| {
            forwarder.engine.reservations.get(h.tsid, now_ms).is_some_and(|r| r.psk.is_none())
        });
        let (Some(head), true) = (head, promised) else {
            forwarder.counters.add(Counter::StrayDatagram);
            return;
        };
        if let Some(port) = self.ports.get_mut(&id) {
            port.peers.entry(from).or_default();
        }
        self.establish_as(id, from, None, head.tsid, forwarder);
        let peer = self.ports.get_mut(&id).and_then(|port| port.peers.get_mut(&from));
        if let Some(peer) = peer.filter(|p| p.tunnel.is_some()) {
            peer.digest(data, forwarder);
        }
    }

    fn start(&mut self, id: u64, from: SocketAddr, forwarder: &mut Forwarder, timers: &mut Timers) {
        let mut flight = std::mem::take(&mut self.flight);
        flight.clear();
        let outcome = self.shake(id, from).map(|shake| shake.dtls.start(&mut flight));
        self.transmit(id, from, &flight, forwarder);
        self.flight = flight;
        match outcome {
            Some(Err(error)) => self.on_failure(id, from, error.to_string(), forwarder),
            Some(Ok(_)) | None => self.schedule(id, from, forwarder, timers),
        }
    }

    fn schedule(&mut self, id: u64, from: SocketAddr, forwarder: &Forwarder, timers: &mut Timers) {
        let now = forwarder.now_us;
        let Some(shake) = self.shake(id, from) else {
            return;
        };
        let wait = shake.dtls.next_timeout().map_or(shake.deadline_us, |d| now + d.as_micros() as u64);
        timers.at(wait.min(shake.deadline_us).max(now + 1_000), Due::Handshake { port: id, peer: from });
    }

    /// A handshake's retransmission or end is due.
    pub fn on_timer(&mut self, id: u64, from: SocketAddr, forwarder: &mut Forwarder, timers: &mut Timers) {
        let now = forwarder.now_us;
        let Some(shake) = self.shake(id, from) else {
            return;
        };
        if now >= shake.deadline_us {
            let over = shake.over;
            self.drop_shake(id, from);
            if !over {
                forwarder.counters.add(Counter::HandshakeTimeout);
                self.on_failure(
                    id,
                    from,
                    "the server did not answer: UDP is probably blocked".into(),
                    forwarder,
                );
            }
            return;
        }
        if shake.over {
            return;
        }
        let mut flight = std::mem::take(&mut self.flight);
        flight.clear();
        let outcome = self.shake(id, from).map(|shake| shake.dtls.on_timeout(&mut flight));
        self.transmit(id, from, &flight, forwarder);
        self.flight = flight;
        match outcome {
            Some(Err(error)) => self.on_failure(id, from, error.to_string(), forwarder),
            Some(Ok(())) | None => self.schedule(id, from, forwarder, timers),
        }
    }

    fn transmit(&self, id: u64, to: SocketAddr, flight: &Flight, forwarder: &mut Forwarder) {
        let Some(port) = self.ports.get(&id) else {
            return;
        };
        let to = port.dial.is_none().then_some(&to);
        for datagram in flight.iter() {
            forwarder.send_raw(port.fd, to, datagram);
        }
    }

    /// Whose tunnel a finished handshake is.
    fn establish(&mut self, id: u64, from: SocketAddr, keys: Option<DtlsKeys>, forwarder: &mut Forwarder) {
        let dialled = self.ports.get(&id).and_then(|p| p.dial.as_ref()).map(|d| d.tsid);
        let tsid = dialled.or_else(|| self.shake(id, from).and_then(|s| s.dtls.tsid()));
        match tsid {
            Some(tsid) => self.establish_as(id, from, keys, tsid, forwarder),
            None => self.on_failure(id, from, "the peer named no tunnel".into(), forwarder),
        }
    }

    /// Make the tunnel and tell the control plane.
    fn establish_as(
        &mut self,
        id: u64,
        from: SocketAddr,
        keys: Option<DtlsKeys>,
        tsid: u64,
        forwarder: &mut Forwarder,
    ) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        let engine = Arc::clone(&forwarder.engine);
        let (tunnel, session, addressed) = match &port.dial {
            Some(dial) => (dial.tunnel, Some(dial.session), false),
            None => (
                engine.new_id(self.index),
                engine.reservations.take(tsid, forwarder.now_us / 1_000).map(|r| r.session),
                true,
            ),
        };
        let Some(session) = session else {
            // Reserved when the handshake began, given up or used since.
            self.on_failure(id, from, "the reservation has ended".into(), forwarder);
            return;
        };
        let outlet = Outlet { sockets: Arc::clone(&port.outlet), addressed };
        let (sealer, opener) = keys.map_or((None, None), |keys| (Some(keys.tx), Some(keys.rx)));
        let link = Link::Datagram(Box::new(DatagramLink::new(sealer, opener, outlet)));
        let local = sys::local_address(port.fd).unwrap_or(from);
        let listener = port.dial.is_none().then_some(id);
        let tunnel = Arc::new(Tunnel::new(tunnel, listener, from, local, link, forwarder.now_us));
        tunnel.set_tsid(tsid);
        let old = port.peers.entry(from).or_default().tunnel.replace(Arc::clone(&tunnel));
        if let Some(old) = old {
            self.bury(&old, "replaced", "", forwarder);
        }
        self.places.insert(tunnel.id, (id, from));
        engine.tunnels.insert(tunnel.id, Arc::clone(&tunnel));
        forwarder.counters.add(Counter::DatagramsReady);
        let (peer, local) = (sys::canonical(from), sys::canonical(local));
        let event = Event::DatagramReady { tunnel: tunnel.id, listener, peer, local, tsid, session };
        if !engine.events.push(event) {
            forwarder.counters.add(Counter::EventQueueFull);
        }
    }

    /// A reserved tunnel as if its handshake were over (see `python/rows.rs`).
    #[cfg(feature = "rows")]
    pub fn add_row(&mut self, id: u64, from: SocketAddr, tsid: u64, forwarder: &mut Forwarder) {
        let promised = forwarder.engine.reservations.get(tsid, forwarder.now_us / 1_000);
        let keys = promised.and_then(|r| r.psk).and_then(|psk| crate::crypto::generated_keys(&psk).ok());
        if keys.is_some() {
            self.establish_as(id, from, keys, tsid, forwarder);
        }
    }

    /// Close a tunnel in good order.
    pub fn close(&mut self, id: u64, reason: &'static str, forwarder: &mut Forwarder) {
        if let Some((port, peer)) = self.places.get(&id).copied() {
            self.say_goodbye(port, peer, forwarder);
            self.end(port, peer, reason, "", forwarder);
        } else if let Some(server) = self.ports.get(&id).and_then(|p| p.peers.keys().next().copied()) {
            // A dial whose handshake is still going on.
            self.drop_shake(id, server);
            self.end(id, server, reason, "", forwarder);
        }
    }

    fn say_goodbye(&self, port: u64, peer: SocketAddr, forwarder: &mut Forwarder) {
        let Some(port) = self.ports.get(&port) else {
            return;
        };
        let tunnel = port.peers.get(&peer).and_then(|p| p.tunnel.as_ref());
        let Some(sealer) = tunnel.and_then(|t| t.datagram()).and_then(|d| d.sealer.as_ref()) else {
            return;
        };
        let mut alert = Vec::new();
        if sealer.close_notify(&mut alert).is_ok() {
            forwarder.send_raw(port.fd, port.dial.is_none().then_some(&peer), &alert);
        }
    }

    /// A peer's tunnel (or the attempt to make one) is over.
    fn end(
        &mut self,
        id: u64,
        from: SocketAddr,
        reason: &'static str,
        detail: &str,
        forwarder: &mut Forwarder,
    ) {
        // What still waits in the batch may need the socket that goes with the port.
        forwarder.deliver_waiting();
        forwarder.flush_datagrams();
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        let Some(peer) = port.peers.remove(&from) else {
            return;
        };
        let dialled = port.dial.as_ref().map(|d| d.tunnel);
        if dialled.is_some() || (port.retired && port.peers.is_empty()) {
            self.ports.remove(&id);
        }
        if peer.shake.is_some_and(|s| !s.over) {
            self.handshakes = self.handshakes.saturating_sub(1);
        }
        match (peer.tunnel, dialled) {
            (Some(tunnel), _) => self.bury(&tunnel, reason, detail, forwarder),
            (None, Some(tunnel)) => fail(tunnel, reason, detail, forwarder),
            (None, None) => {}
        }
    }

    fn bury(&mut self, tunnel: &Arc<Tunnel>, reason: &'static str, detail: &str, forwarder: &Forwarder) {
        self.places.remove(&tunnel.id);
        forget(tunnel, &forwarder.engine);
        fail(tunnel.id, reason, detail, forwarder);
    }

    /// Say goodbye on every tunnel.
    pub fn close_all(&mut self, forwarder: &mut Forwarder) {
        let tunnels: Vec<u64> = self.places.keys().copied().collect();
        for tunnel in tunnels {
            self.close(tunnel, "local-close", forwarder);
        }
    }
}

/// Report the end of a tunnel.
fn fail(tunnel: u64, reason: &'static str, detail: &str, forwarder: &Forwarder) {
    forwarder.counters.add(Counter::DatagramsClosed);
    if !forwarder.engine.events.push(Event::Closed { tunnel, reason, detail: detail.to_owned() }) {
        forwarder.counters.add(Counter::EventQueueFull);
    }
}

fn new_listener(forwarder: &Forwarder) -> Option<DtlsListener> {
    let mut secret = [0u8; 32];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut secret).ok()?;
    let reservations = Arc::clone(&forwarder.engine.reservations);
    let start = forwarder.engine.start();
    Some(DtlsListener::new(
        secret,
        Arc::new(move |tsid| {
            let now_ms = start.elapsed().as_millis() as u64;
            reservations.get(tsid, now_ms).and_then(|r| r.psk)
        }),
    ))
}

/// Big buffers, so that a late turn of the thread loses nothing. Refusals leave the kernel's defaults.
fn tune(fd: RawFd) {
    let _ = sys::set_nonblocking(fd);
    sys::merge_datagrams(fd);
    let size = UDP_BUFFER as libc::c_int;
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if sys::set_option(fd, libc::SOL_SOCKET, force, size).is_err() {
            let _ = sys::set_option(fd, libc::SOL_SOCKET, plain, size);
        }
    }
}

/// Whether a datagram is for the peer's tunnel rather than for a handshake.
fn carries_data(peer: &Peer, data: &[u8]) -> bool {
    let secure = peer.tunnel.as_ref().and_then(|t| t.datagram()).is_some_and(|d| d.sealer.is_some());
    if !secure {
        return true;
    }
    // Alerts of a handshake are in epoch 0 and in clear.
    let encrypted = data.get(3..5).is_some_and(|epoch| epoch != [0, 0]);
    match content_type(data) {
        Some(APPLICATION) => true,
        Some(ALERT) => encrypted,
        Some(_) => false,
        None => peer.shake.is_none(),
    }
}

impl Peer {
    /// Handle the records (or, without crypto, the frames) of one datagram.
    fn digest(&mut self, data: &mut [u8], forwarder: &mut Forwarder) -> Fate {
        let Some(tunnel) = self.tunnel.clone() else {
            return Fate::Lives;
        };
        let Some(link) = tunnel.datagram() else {
            return Fate::Lives;
        };
        let mut opener = link.opener.lock();
        let Some(opener) = opener.as_mut() else {
            tunnel.heard(forwarder.now_us);
            run(forwarder, &tunnel, data);
            return Fate::Lives;
        };
        for record in records(data) {
            match opener.open_in_place(record) {
                Ok(Opened::Data(plain)) => {
                    // The peer has our last flight: nothing of the handshake is needed any more.
                    if self.shake.as_ref().is_some_and(|s| s.over) {
                        self.shake = None;
                    }
                    tunnel.rx.records.fetch_add(1, Ordering::Relaxed);
                    tunnel.heard(forwarder.now_us);
                    run(forwarder, &tunnel, plain);
                }
                Ok(Opened::Close) => return Fate::Ended("peer-closed", String::new()),
                Ok(Opened::Alert { fatal: true, description }) => {
                    return Fate::Ended("dtls-error", format!("the peer sent DTLS alert {description}"));
                }
                Ok(Opened::Alert { fatal: false, .. }) => {}
                Err(error) => forwarder.counters.add(record_counter(error)),
            }
        }
        Fate::Lives
    }
}

fn run(forwarder: &mut Forwarder, tunnel: &Arc<Tunnel>, data: &mut [u8]) {
    forwarder.coding.anchor = None;
    match control::frames(forwarder, tunnel, data) {
        Run::Consumed(done) if done == data.len() => {}
        Run::Consumed(_) => forwarder.counters.add(Counter::FrameMalformed),
        // The sender repeats what it gets no answer to.
        Run::Full(_) => forwarder.counters.add(Counter::ControlQueueFull),
        Run::Broken(_, error) => forwarder.counters.add(control::frame_counter(error)),
    }
}

fn record_counter(error: OpenError) -> Counter {
    match error {
        OpenError::BadTag => Counter::RecordBadTag,
        OpenError::Replay | OpenError::TooOld => Counter::RecordReplay,
        OpenError::Exhausted => Counter::KeyLimit,
        OpenError::TooShort | OpenError::WrongEpoch | OpenError::WrongType | OpenError::WrongVersion => {
            Counter::RecordMalformed
        }
    }
}
