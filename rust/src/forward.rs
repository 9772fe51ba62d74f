//! The way of an inner packet, in packet order: out of a tunnel, a TUN device or a local socket; checks;
//! route; path; into a tunnel, a TUN device or a local socket. Sequential, no locks held between the steps.
//!
//! A `Forwarder` belongs to one thread. Datagrams gather in its batch, packets for a TUN device in its runs and
//! streams in its list of dirty ones until the owner flushes them.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ahead::Ahead;
use crate::boundary::{Command, Event};
use crate::coded::Workspace;
use crate::counters::{Counter, CounterSet};
use crate::crypto::dtls_record::DatagramSealError;
use crate::egress::{Class, Pushed};
use crate::engine::{Engine, Tun};
use crate::frame::open_sequenced;
use crate::packet::{Meta, TCP, UdpHead, echo_reply, readdress_both, udp_checksum_ok, write_udp};
use crate::runs::Runs;
use crate::sys::SendBatch;
use crate::tables::nat::Applied;
use crate::tables::relays::{Onward, Relay};
use crate::tables::signals::Look;
use crate::tables::sockets::LocalSocket;
use crate::tables::strands::Spread;
use crate::tables::{FlowKey, PathMode, Role, Session, Sink, Target};
use crate::tunnel::{DatagramLink, Link, Tunnel};

/// Outcome of a step: a drop has a name.
pub type Outcome = Result<(), Counter>;

/// One thread's side of the packet path.
pub struct Forwarder {
    pub engine: Arc<Engine>,
    pub counters: Arc<CounterSet>,
    /// Microseconds since the engine began, read once per turn.
    pub now_us: u64,
    /// Streams this worker owns that have something to write.
    pub dirty: Vec<Arc<Tunnel>>,
    /// The same of other workers, who are told at the end of the turn.
    pub away: Vec<Arc<Tunnel>>,
    /// Datagram tunnels this worker owns on which media has begun.
    pub to_watch: Vec<Arc<Tunnel>>,
    worker: Option<usize>,
    batch: SendBatch,
    scratch: Vec<u8>,
    pub(crate) doubled: Vec<u8>,
    /// Relays whose core-side sockets are in the batch: they stay open until it has been flushed.
    held: Vec<Arc<Relay>>,
    packed: Vec<u8>,
    /// Packets for a TUN device, and which one.
    runs: Runs,
    tun: Option<Arc<Tun>>,
    /// Packets whose way is known and whose memory is on its way; None while one of them is delivered.
    ahead: Option<Box<Ahead>>,
    pub(crate) coding: Workspace,
}

impl Forwarder {
    /// `worker` is None for the thread of the control plane, which owns no sockets.
    pub fn new(engine: Arc<Engine>, counters: Arc<CounterSet>, worker: Option<usize>) -> Self {
        Self {
            engine,
            counters,
            now_us: 0,
            dirty: Vec::new(),
            away: Vec::new(),
            to_watch: Vec::new(),
            worker,
            batch: SendBatch::default(),
            scratch: Vec::with_capacity(2048),
            doubled: Vec::with_capacity(2048),
            held: Vec::with_capacity(crate::limits::BATCH),
            packed: Vec::with_capacity(2048),
            runs: Runs::default(),
            tun: None,
            // The control plane's thread has no turns at whose end what waits would be delivered.
            ahead: worker.map(|_| Box::default()),
            coding: Workspace::default(),
        }
    }

    /// An inner packet came out of a tunnel.
    #[inline]
    pub fn from_tunnel(&mut self, tunnel: &Arc<Tunnel>, data: &mut [u8]) {
        if let Err(drop) = self.accept(tunnel, data) {
            self.counters.add(drop);
        }
    }

    fn accept(&mut self, tunnel: &Arc<Tunnel>, data: &mut [u8]) -> Outcome {
        let meta = Meta::parse(data).map_err(|_| Counter::InnerMalformed)?;
        let guard = tunnel.session();
        let Some(session) = guard.as_ref() else {
            return Err(Counter::InnerNotAttached);
        };
        check_lease(session, &meta)?;
        tunnel.rx.count(data.len());
        self.counters.add(Counter::InnerRx);
        let server = session.role == Role::Server;
        let policer = if server { &session.upstream } else { &session.downstream };
        if policer.as_ref().is_some_and(|p| !p.admit(data.len(), self.now_us)) {
            session.drops.rate_limited.fetch_add(1, Ordering::Relaxed);
            return Err(Counter::InnerRateLimited);
        }
        let datagram = tunnel.is_datagram();
        if let Some(link) = tunnel.datagram() {
            link.media_came(self.now_us);
            self.watch(tunnel, link);
        }
        let learn = server && meta.looks_like_media(data);
        if !session.flows.note_received(&meta, server, datagram, learn) {
            self.counters.add(Counter::FlowTableFull);
        }
        self.record(session, data);
        match session.sink {
            Sink::Route => {
                if !server {
                    self.look_for_calls(session, data, &meta, false);
                }
                self.route(Some(session), data, &meta, i8::from(datagram))
            }
            Sink::Local => self.deliver_local(Some(session), data, &meta, i8::from(datagram)),
        }
    }

    /// A numbered packet, of which copies may come: the first one counts.
    pub fn from_both_paths(&mut self, tunnel: &Arc<Tunnel>, frame: &mut [u8]) {
        let Some((number, inner)) = open_sequenced(frame) else { return };
        self.with_headers(tunnel, inner, |this, packet| this.take_numbered(tunnel, number, packet));
    }

    fn take_numbered(&mut self, tunnel: &Arc<Tunnel>, number: u32, packet: &mut [u8]) {
        let first = tunnel.session().as_ref().is_none_or(|session| {
            let first = session.doubt.first_of(number);
            if tunnel.is_datagram() {
                self.anchor(session, number, packet, first);
            } else if session.strands.spread() == Spread::Single {
                // While media is spread over streams, its copy by one says nothing about the datagram tunnel.
                self.expect_by_datagram(session);
            }
            first
        });
        if first {
            self.from_tunnel(tunnel, packet);
        } else {
            self.counters.add(Counter::CopyDropped);
        }
    }

    /// A copy by the stream says that its twin is due on the datagram tunnel: go on missing it there, and saying
    /// so, for as long as copies come.
    fn expect_by_datagram(&self, session: &Session) {
        if let Some(link) = session.tunnel(true).as_ref().and_then(|t| t.datagram()) {
            link.media_rx_us.store(self.now_us, Ordering::Relaxed);
        }
    }

    /// See to it that the owner of a datagram tunnel looks after it.
    #[inline]
    fn watch(&mut self, tunnel: &Arc<Tunnel>, link: &DatagramLink) {
        if link.watched.load(Ordering::Relaxed) || link.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        if self.worker == Some(tunnel.worker()) {
            self.to_watch.push(Arc::clone(tunnel));
        } else if let Some(inbox) = self.engine.inbox(tunnel.worker()) {
            inbox.send(Command::Watch { tunnel: Arc::clone(tunnel) });
        }
    }

    /// An inner packet was read from a TUN device.
    #[inline]
    pub fn from_tun(&mut self, tun: &Tun, data: &mut [u8]) {
        self.counters.add(Counter::TunRx);
        let outcome = match Meta::parse(data) {
            Err(_) => Err(Counter::InnerMalformed),
            Ok(meta) => match &tun.session {
                // A client's own host: only the leased addresses may speak.
                Some(session) if !session.owns(meta.source) => Err(Counter::InnerSpoofedSource),
                Some(session) => self.take_from_host(&Arc::clone(session), data, &meta),
                // By its source a packet counts as a client's: one from elsewhere must not claim it.
                None if self.engine.routes.session(meta.source).is_some() => Err(Counter::InnerSpoofedSource),
                None => self.route(None, data, &meta, -1),
            },
        };
        if let Err(drop) = outcome {
            self.counters.add(drop);
        }
    }

    /// From a client's own host, whose programs do not say which of their flows are media.
    fn take_from_host(&mut self, session: &Arc<Session>, data: &mut [u8], meta: &Meta) -> Outcome {
        self.look_for_calls(session, data, meta, true);
        if session.detector.observe(meta, data, self.now_us) {
            let (v6, port) = (meta.source.is_ipv6(), meta.source_port);
            if session.detector.wants_datagram() {
                let key = FlowKey { protocol: meta.protocol, v6, port, far: None };
                session.flows.introduce(key, PathMode::Datagram);
            }
            self.engine.events.push(Event::Flow { session: session.id, v6, port, quiet: false });
        }
        self.deliver_session(session, data, meta)
    }

    /// Copy SIP to the control plane, which learns from it where media will be.
    #[inline]
    fn look_for_calls(&self, session: &Session, data: &[u8], meta: &Meta, sent: bool) {
        let copied = match session.signals.look(meta, data, self.now_us) {
            Look::Nothing => true,
            Look::Found(signal) => self.engine.events.offer_signal(session.id, sent, signal),
            Look::TooMuch => false,
        };
        if !copied {
            self.counters.add(Counter::SignalUnread);
        }
    }

    /// Send from a local socket. Errors name the drop.
    pub fn from_local(&mut self, socket: &LocalSocket, payload: &[u8], to: SocketAddr, tos: u8) -> Outcome {
        let head = UdpHead {
            source: socket.address,
            source_port: socket.port,
            destination: to.ip(),
            destination_port: to.port(),
            tos,
        };
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        let outcome = self.send_built(socket, &head, payload, &mut packet);
        self.scratch = packet;
        if let Err(drop) = outcome {
            self.counters.add(drop);
        }
        outcome
    }

    fn send_built(
        &mut self,
        socket: &LocalSocket,
        head: &UdpHead,
        payload: &[u8],
        packet: &mut Vec<u8>,
    ) -> Outcome {
        if !write_udp(head, payload, packet) || packet.len() > crate::limits::MAX_INNER_PACKET {
            return Err(Counter::InnerTooBig);
        }
        let meta = Meta::parse(packet).map_err(|_| Counter::InnerMalformed)?;
        match socket.session {
            Some(id) => {
                let session = self.engine.sessions.get(&id).ok_or(Counter::InnerNoPath)?;
                self.deliver_session(&session, packet, &meta)
            }
            None => self.route(None, packet, &meta, -1),
        }
    }

    /// The routing table of a server: leased addresses, then prefixes.
    fn route(&mut self, from: Option<&Arc<Session>>, data: &mut [u8], meta: &Meta, path: i8) -> Outcome {
        let mut meta = *meta;
        if from.is_some() {
            match self.engine.policies.outward(data, &meta) {
                Applied::Unchanged => {}
                Applied::Rewritten => meta = Meta::parse(data).map_err(|_| Counter::InnerMalformed)?,
                Applied::Denied => return Err(Counter::InnerPolicyDenied),
                Applied::TableFull => return Err(Counter::NatTableFull),
            }
        }
        if let Some(session) = self.engine.routes.session(meta.destination) {
            if from.is_some_and(|f| !f.inter_client || !session.inter_client) {
                return Err(Counter::InnerClientBlocked);
            }
            return if from.is_some() {
                self.put_off(session, data, &meta)
            } else {
                self.deliver_session(&session, data, &meta)
            };
        }
        match self.engine.routes.prefix(meta.destination) {
            Some(Target::Tun(tun)) => self.deliver_tun(tun, data),
            Some(Target::Local) => {
                let outcome = self.deliver_local(None, data, &meta, path);
                if let (Some(from), Err(Counter::SocketUnbound)) = (from, outcome) {
                    from.drops.unbound.fetch_add(1, Ordering::Relaxed);
                }
                outcome
            }
            Some(Target::Core) => match from {
                // Nobody listens there for our own TCP, which says so: better than a client that waits.
                Some(_) if meta.protocol == TCP => {
                    self.counters.add(Counter::CoreUnsupported);
                    self.take_to_stack(None, data, &meta)
                }
                Some(session) => self.engine.core.send(&self.engine, session, data, &meta, self.now_us),
                None => Err(Counter::InnerNoRoute),
            },
            None => Err(Counter::InnerNoRoute),
        }
    }

    /// Into a session's tunnels, some packets later or when the turn ends.
    fn put_off(&mut self, session: Arc<Session>, data: &mut [u8], meta: &Meta) -> Outcome {
        let Some(mut ahead) = self.ahead.take() else {
            return self.deliver_session(&session, data, meta);
        };
        let waits = Ahead::takes(data.len());
        while ahead.is_full() || !(waits || ahead.is_empty()) {
            self.deliver_first(&mut ahead);
        }
        let outcome = if waits {
            ahead.push(session, data, meta);
            Ok(())
        } else {
            self.deliver_session(&session, data, meta)
        };
        self.ahead = Some(ahead);
        outcome
    }

    fn deliver_first(&mut self, ahead: &mut Ahead) {
        if let Some((session, meta, data)) = ahead.pop()
            && let Err(drop) = self.deliver_session(&session, data, &meta)
        {
            self.counters.add(drop);
        }
    }

    /// Deliver what was put off.
    pub fn deliver_waiting(&mut self) {
        let Some(mut ahead) = self.ahead.take() else { return };
        while !ahead.is_empty() {
            self.deliver_first(&mut ahead);
        }
        self.ahead = Some(ahead);
    }

    /// Into a session's tunnels, by the path its steering table says.
    pub fn deliver_session(&mut self, session: &Arc<Session>, data: &mut [u8], meta: &Meta) -> Outcome {
        let server = session.role == Role::Server;
        let mut meta = *meta;
        if server && self.engine.policies.inward(data, &meta) {
            meta = Meta::parse(data).map_err(|_| Counter::InnerMalformed)?;
        }
        let policer = if server { &session.downstream } else { &session.upstream };
        if policer.as_ref().is_some_and(|p| !p.admit(data.len(), self.now_us)) {
            session.drops.rate_limited.fetch_add(1, Ordering::Relaxed);
            return Err(Counter::InnerRateLimited);
        }
        self.record(session, data);
        let datagram = session.tunnel(true).filter(|t| t.datagram().is_some_and(|d| data.len() <= d.room()));
        let verdict = session.flows.choose(&meta, !server, datagram.is_some());
        let (by_datagram, media) =
            verdict.map_or_else(|| (false, meta.looks_like_media(data)), |v| (v.datagram, v.media));
        if media {
            if !session.gate(by_datagram).admit(self.now_us) {
                return Err(Counter::MediaBreaker);
            }
            let doubt = by_datagram && self.in_doubt(session, datagram.as_ref());
            if doubt || (by_datagram && self.repeats(session, data)) {
                return self.deliver_numbered(session, datagram.as_ref(), data, doubt);
            }
            if !by_datagram && session.strands.fans_out() {
                return self.deliver_numbered(session, None, data, true);
            }
        }
        if !session.coding.compresses() {
            return self.deliver_once(session, datagram, (by_datagram, media), data, data.len());
        }
        let mut packed = std::mem::take(&mut self.packed);
        packed.clear();
        self.pack(session, data, &mut packed);
        let outcome = self.deliver_once(session, datagram, (by_datagram, media), &packed, data.len());
        self.packed = packed;
        outcome
    }

    /// A frame that holds one packet, by one path.
    fn deliver_once(
        &mut self,
        session: &Session,
        datagram: Option<Arc<Tunnel>>,
        (by_datagram, media): (bool, bool),
        frame: &[u8],
        inner: usize,
    ) -> Outcome {
        let stream = if by_datagram { None } else { session.stream_for(media) };
        // Without any stream (they are being remade) everything that fits goes by the datagram tunnel.
        match (stream, datagram) {
            (Some(stream), _) => {
                let class = if media { Class::Media } else { Class::Signalling };
                self.queue_frame(&stream, class, frame).map(|()| stream.tx.count(inner))
            }
            (None, Some(datagram)) => self.deliver_datagram_frame(&datagram, frame, inner),
            (None, None) => {
                session.drops.no_path.fetch_add(1, Ordering::Relaxed);
                Err(Counter::InnerNoPath)
            }
        }?;
        self.counters.add(Counter::InnerTx);
        Ok(())
    }

    /// Whether media for the datagram tunnel has to go by both: it may be dying, or has not been proved yet.
    #[inline]
    fn in_doubt(&self, session: &Session, datagram: Option<&Arc<Tunnel>>) -> bool {
        if let Some(link) = datagram.and_then(|tunnel| tunnel.datagram()) {
            session.doubt.begin(self.now_us, link.media_tx_us.load(Ordering::Relaxed));
        }
        session.doubt.active(self.now_us)
    }

    /// Queue a frame on a stream and see to it that its owner writes it.
    pub fn queue_frame(&mut self, tunnel: &Arc<Tunnel>, class: Class, frame: &[u8]) -> Outcome {
        let Some(link) = tunnel.stream() else {
            return Err(Counter::InnerNoPath);
        };
        let pushed = link.egress.lock().push(class, frame, self.now_us);
        match pushed {
            Pushed::Queued => {}
            Pushed::MadeRoom(dropped) => {
                self.counters.add_n(Counter::MediaQueueFull, dropped);
                tunnel.tx_dropped.fetch_add(dropped, Ordering::Relaxed);
            }
            Pushed::Full => {
                tunnel.tx_dropped.fetch_add(1, Ordering::Relaxed);
                return Err(Counter::StreamQueueFull);
            }
        }
        if !link.dirty.swap(true, Ordering::AcqRel) {
            match self.worker {
                Some(own) if own == tunnel.worker() => self.dirty.push(Arc::clone(tunnel)),
                // At the end of the turn: its owner would begin with the first frame, and seal and send each alone.
                Some(_) => self.away.push(Arc::clone(tunnel)),
                None => self.engine.mark_dirty(tunnel),
            }
        }
        Ok(())
    }

    pub(crate) fn deliver_datagram_frame(
        &mut self,
        tunnel: &Arc<Tunnel>,
        frame: &[u8],
        inner: usize,
    ) -> Outcome {
        self.send_frame(tunnel, frame)?;
        tunnel.tx.count(inner);
        if let Some(link) = tunnel.datagram() {
            link.media_tx_us.store(self.now_us, Ordering::Relaxed);
            self.watch(tunnel, link);
        }
        Ok(())
    }

    /// Put a frame into a datagram of its own and that into the batch.
    pub fn send_frame(&mut self, tunnel: &Arc<Tunnel>, frame: &[u8]) -> Outcome {
        let Link::Datagram(link) = &tunnel.link else {
            return Err(Counter::InnerNoPath);
        };
        if frame.len() > link.room() {
            return Err(Counter::InnerTooBig);
        }
        let (fd, addressed) = link.socket(self.worker.unwrap_or(0)).ok_or(Counter::SendFailed)?;
        let peer = addressed.then_some(&tunnel.peer);
        let mut refused = None;
        let built = self.batch.push(fd, peer, |slot| match fill(link, slot, frame) {
            Ok(length) => Some(length),
            Err(drop) => {
                refused = Some(drop);
                None
            }
        });
        if !built {
            return Err(refused.unwrap_or(Counter::SendFailed));
        }
        tunnel.tx.records.fetch_add(1, Ordering::Relaxed);
        link.sent_us.store(self.now_us, Ordering::Relaxed);
        if self.batch.is_full() {
            self.flush_datagrams();
        }
        Ok(())
    }

    /// A raw datagram (a handshake's, or relayed media) into the batch; false if it is too long for one.
    pub fn send_raw(&mut self, fd: RawFd, to: Option<&SocketAddr>, datagram: &[u8]) -> bool {
        let built = self.batch.push(fd, to, |slot| {
            slot.get_mut(..datagram.len())?.copy_from_slice(datagram);
            Some(datagram.len())
        });
        if self.batch.is_full() {
            self.flush_datagrams();
        }
        built
    }

    /// Give the gathered datagrams to the kernel.
    pub fn flush_datagrams(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let flushed = self.batch.flush();
        self.counters.add_n(Counter::SendWouldBlock, flushed.would_block);
        self.counters.add_n(Counter::SendFailed, flushed.failed);
        self.held.clear();
    }

    /// To a TUN device, when the turn ends; at once for the control plane's thread, which has no turns.
    fn deliver_tun(&mut self, id: u64, data: &[u8]) -> Outcome {
        if self.tun.as_ref().is_none_or(|tun| tun.id != id) {
            self.flush_tun();
            self.tun = self.engine.tuns.get(&id);
        }
        let tun = self.tun.as_ref().ok_or(Counter::InnerNoRoute)?;
        let merge = tun.takes_runs.load(Ordering::Relaxed);
        if !self.runs.push(data, merge) {
            self.write_runs();
            if !self.runs.push(data, merge) {
                return Err(Counter::InnerTooBig);
            }
        }
        if self.worker.is_none() && self.flush_tun() > 0 {
            return Err(Counter::TunFull);
        }
        Ok(())
    }

    /// Give the gathered packets to their TUN device. Returns how many it did not take.
    pub fn flush_tun(&mut self) -> u64 {
        let refused = self.write_runs();
        self.tun = None;
        refused
    }

    fn write_runs(&mut self) -> u64 {
        if self.runs.is_empty() {
            return 0;
        }
        let Some(tun) = &self.tun else { return 0 };
        let queue = self.worker.unwrap_or(0) % tun.queues.len().max(1);
        let Some(fd) = tun.queues.get(queue).map(AsRawFd::as_raw_fd) else { return 0 };
        let written = crate::sys::write_runs(fd, &mut self.runs, tun.header);
        if written.refused_run {
            tun.takes_runs.store(false, Ordering::Relaxed);
        }
        self.counters.add_n(Counter::TunTx, written.packets);
        self.counters.add_n(Counter::TunRuns, written.runs);
        if self.worker.is_some() {
            self.counters.add_n(Counter::TunFull, written.failed);
        }
        written.failed
    }

    /// To a UDP socket of this process, or to our own ICMP echo.
    fn deliver_local(
        &mut self,
        session: Option<&Arc<Session>>,
        data: &mut [u8],
        meta: &Meta,
        path: i8,
    ) -> Outcome {
        if echo_reply(data, meta) {
            let back = Meta::parse(data).map_err(|_| Counter::InnerMalformed)?;
            return match session {
                Some(session) => self.deliver_session(session, data, &back),
                None => self.route(None, data, &back, -1),
            };
        }
        if meta.protocol == TCP {
            return self.take_to_stack(session.map(|s| s.id), data, meta);
        }
        if session.is_none()
            && let Some((relay, side)) = self.engine.relays.find(meta.destination, meta.destination_port)
        {
            return self.pass_relay(&relay, side, data, meta, path);
        }
        let scope = session.map(|s| s.id);
        let socket = self
            .engine
            .sockets
            .find(scope, meta.destination, meta.destination_port)
            .ok_or(Counter::SocketUnbound)?;
        if !udp_checksum_ok(meta, data) {
            return Err(Counter::SocketBadChecksum);
        }
        let payload = meta.udp_payload(data).ok_or(Counter::SocketUnbound)?;
        if !socket.reserve() {
            return Err(Counter::SocketQueueFull);
        }
        let source = SocketAddr::new(meta.source, meta.source_port);
        let event = Event::Udp { socket, data: payload.to_vec(), source, path };
        if self.engine.events.push(event) { Ok(()) } else { Err(Counter::EventQueueFull) }
    }

    /// To the worker that has this peer's inner TCP connections.
    fn take_to_stack(&mut self, scope: Option<u64>, data: &[u8], meta: &Meta) -> Outcome {
        let packet = data.get(..meta.length).ok_or(Counter::InnerMalformed)?;
        let owner = self.engine.tcp.owner(scope, meta.source);
        if self.engine.tcp.knock(owner, scope, packet)?
            && self.worker != Some(owner)
            && let Some(inbox) = self.engine.inbox(owner)
        {
            inbox.wake.wake();
        }
        Ok(())
    }

    /// An inner packet that our own TCP has made.
    pub fn from_stack(&mut self, scope: Option<u64>, data: &mut [u8]) {
        if let Err(drop) = self.send_from_stack(scope, data) {
            self.counters.add(drop);
        }
    }

    fn send_from_stack(&mut self, scope: Option<u64>, data: &mut [u8]) -> Outcome {
        let meta = Meta::parse(data).map_err(|_| Counter::InnerMalformed)?;
        match scope {
            Some(id) => {
                let session = self.engine.sessions.get(&id).ok_or(Counter::InnerNoPath)?;
                self.deliver_session(&session, data, &meta)
            }
            None => self.route(None, data, &meta, -1),
        }
    }

    /// Through a relay of the SBC: out by the other leg, under its address.
    fn pass_relay(
        &mut self,
        relay: &Arc<Relay>,
        side: usize,
        data: &mut [u8],
        meta: &Meta,
        path: i8,
    ) -> Outcome {
        let payload = meta.udp_payload(data).ok_or(Counter::SocketUnbound)?;
        let source = SocketAddr::new(meta.source, meta.source_port);
        let onward = relay.pass(side, source, payload, path, self.now_us)?;
        self.counters.add(Counter::Relayed);
        if let Some(socket) = relay.core(1 - side) {
            return self.send_core(relay, socket.fd(), &onward.to, payload);
        }
        let head = head_of(&onward, meta.tos);
        if head.source.is_ipv4() != meta.source.is_ipv4() {
            return self.pass_translated(&head, payload);
        }
        // In place: both ends change, nothing moves.
        if !readdress_both(data, meta, &head) {
            return Err(Counter::InnerMalformed);
        }
        let meta = Meta::parse(data).map_err(|_| Counter::InnerMalformed)?;
        self.route(None, data, &meta, -1)
    }

    /// A datagram has come to a relay's socket on the core side.
    pub fn from_core(&mut self, relay: &Arc<Relay>, side: usize, source: SocketAddr, payload: &[u8]) {
        if let Err(drop) = self.pass_from_core(relay, side, source, payload) {
            self.counters.add(drop);
        }
    }

    fn pass_from_core(
        &mut self,
        relay: &Arc<Relay>,
        side: usize,
        source: SocketAddr,
        payload: &[u8],
    ) -> Outcome {
        let onward = relay.pass(side, source, payload, -1, self.now_us)?;
        self.counters.add(Counter::Relayed);
        if let Some(socket) = relay.core(1 - side) {
            return self.send_core(relay, socket.fd(), &onward.to, payload);
        }
        self.pass_translated(&head_of(&onward, 0), payload)
    }

    fn send_core(&mut self, relay: &Arc<Relay>, fd: RawFd, to: &SocketAddr, payload: &[u8]) -> Outcome {
        // Held before the batch may be flushed, let go with it.
        self.held.push(Arc::clone(relay));
        if self.send_raw(fd, Some(to), payload) {
            return Ok(());
        }
        self.held.pop();
        Err(Counter::InnerTooBig)
    }

    /// A relay between an IPv4 and an IPv6 party, or from the core side, builds the packet anew.
    fn pass_translated(&mut self, head: &UdpHead, payload: &[u8]) -> Outcome {
        let mut packet = std::mem::take(&mut self.scratch);
        packet.clear();
        let built = write_udp(head, payload, &mut packet);
        let outcome = match Meta::parse(&packet) {
            Ok(meta) if built => self.route(None, &mut packet, &meta, -1),
            Ok(_) | Err(_) => Err(Counter::InnerTooBig),
        };
        self.scratch = packet;
        outcome
    }

    fn record(&self, session: &Session, data: &[u8]) {
        if let Some(capture) = session.capture.load().as_ref()
            && !capture.record(data)
        {
            self.counters.add(Counter::CaptureFull);
        }
    }
}

/// What a relayed packet says of itself on its second leg.
fn head_of(onward: &Onward, tos: u8) -> UdpHead {
    UdpHead {
        source: onward.from.ip(),
        source_port: onward.from.port(),
        destination: onward.to.ip(),
        destination_port: onward.to.port(),
        tos,
    }
}

/// Anti-spoofing: a server checks the source, a client the destination.
#[inline]
fn check_lease(session: &Session, meta: &Meta) -> Outcome {
    match session.role {
        Role::Server if !session.owns(meta.source) => {
            session.drops.spoofed_source.fetch_add(1, Ordering::Relaxed);
            Err(Counter::InnerSpoofedSource)
        }
        Role::Client if !session.owns(meta.destination) => {
            session.drops.wrong_destination.fetch_add(1, Ordering::Relaxed);
            Err(Counter::InnerWrongDestination)
        }
        Role::Server | Role::Client => Ok(()),
    }
}

/// Write (and seal) a frame into a datagram slot.
#[inline]
fn fill(link: &DatagramLink, slot: &mut [u8], frame: &[u8]) -> Result<usize, Counter> {
    let headroom = link.sealer.as_ref().map_or(0, |s| s.headroom());
    let place = slot.get_mut(headroom..headroom + frame.len()).ok_or(Counter::InnerTooBig)?;
    place.copy_from_slice(frame);
    match &link.sealer {
        None => Ok(frame.len()),
        Some(sealer) => sealer.seal_in_place(slot, frame.len()).map_err(|error| match error {
            DatagramSealError::Exhausted => Counter::KeyLimit,
            DatagramSealError::BadLength => Counter::InnerTooBig,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Running;
    use crate::limits::DATAGRAM_SLOT;
    use crate::tables::relays::{CoreSocket, EARLY, End, Follow};

    #[test]
    fn media_too_long_for_a_datagram_is_dropped_by_name_and_nothing_is_held_for_it() {
        let mut running = Running::start(1).unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let speaker = SocketAddr::from(([127, 0, 0, 1], 9));
        let end = End { local: nowhere, remote: Some(speaker), early: [None; EARLY] };
        let sockets = [1, 2].map(|id| CoreSocket::bind(id, 0, nowhere).ok());
        let relay = running.engine.relays.open(3, [end, end], sockets, Follow::default()).unwrap();
        for _ in 0..100 {
            running.forwarder.from_core(&relay, 0, speaker, &[0; DATAGRAM_SLOT + 1]);
        }
        assert!(running.forwarder.held.is_empty());
        assert_eq!(running.forwarder.counters.get(Counter::InnerTooBig), 100);
        running.forwarder.from_core(&relay, 0, speaker, &[0; 172]);
        assert_eq!(running.forwarder.held.len(), 1);
        running.forwarder.flush_datagrams();
        assert!(running.forwarder.held.is_empty());
    }
}
