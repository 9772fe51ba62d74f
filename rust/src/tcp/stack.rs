//! One worker's inner TCP: which connection a packet belongs to, who may open one, and what is due when.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ahash::RandomState;
use ring::rand::{SecureRandom, SystemRandom};

use super::connection::{Connection, Outbox};
use super::segment::Segment;
use super::shared::{Handle, Listener};
use super::{Scope, Tuple};
use crate::boundary::{Event, TcpEvent};
use crate::counters::Counter;
use crate::engine::Engine;
use crate::forward::Forwarder;
use crate::limits::{
    EPHEMERAL_PORT, MAX_TCP_CONNECTIONS, TCP_CONNECTIONS_PER_PEER, TCP_HALF_OPEN_PER_PEER, TCP_INGRESS_BUDGET,
};
use crate::packet::Meta;

/// What a worker may be asked about its connections.
#[derive(Debug)]
pub enum Order {
    /// Open a connection; a local port of 0 asks for any.
    Connect { handle: Arc<Handle>, tuple: Tuple, mtu: usize },
    /// The program wants something of this one.
    Look { connection: u64 },
    /// These addresses are nobody's any more.
    Gone(Party),
    /// A way to these addresses has been made anew.
    Back(Party),
}

/// Whose connections are meant.
#[derive(Clone, Debug)]
pub enum Party {
    /// A client's own session.
    Session(u64),
    /// A server's connections with a client that has these addresses.
    Peer(Vec<IpAddr>),
}

/// Accepted connections of one peer.
#[derive(Debug, Default)]
struct Load {
    all: usize,
    half_open: usize,
}

/// What a connection counts as in its peer's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    No,
    HalfOpen,
    Open,
}

struct Entry {
    connection: Connection,
    /// When its next turn is, as in `due`.
    due_us: Option<u64>,
    counted: Counted,
}

/// The connections of one worker.
pub struct Stack {
    worker: usize,
    entries: HashMap<u64, Entry, RandomState>,
    by_tuple: HashMap<Tuple, u64, RandomState>,
    peers: HashMap<(Scope, IpAddr), Load, RandomState>,
    /// All connections with a peer's address, so that a client that comes or goes does not walk those of all.
    by_peer: HashMap<(Scope, IpAddr), Vec<u64>, RandomState>,
    due: BTreeSet<(u64, u64)>,
    out: Outbox,
    packet: Vec<u8>,
    answer: Vec<u8>,
    random: SystemRandom,
}

impl Stack {
    pub fn new(worker: usize) -> Self {
        Self {
            worker,
            entries: HashMap::default(),
            by_tuple: HashMap::default(),
            peers: HashMap::default(),
            by_peer: HashMap::default(),
            due: BTreeSet::new(),
            out: Outbox::default(),
            packet: Vec::new(),
            answer: Vec::new(),
            random: SystemRandom::new(),
        }
    }

    /// When a connection wants its next turn.
    pub fn next(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Take in what other threads have brought.
    pub fn run(&mut self, forwarder: &mut Forwarder) {
        let engine = Arc::clone(&forwarder.engine);
        engine.tcp.opened(self.worker);
        let mut packet = std::mem::take(&mut self.packet);
        for _ in 0..TCP_INGRESS_BUDGET {
            let Some(scope) = engine.tcp.take(self.worker, &mut packet) else {
                self.packet = packet;
                return;
            };
            if let Err(drop) = self.receive(scope, &packet, forwarder) {
                forwarder.counters.add(drop);
            }
        }
        self.packet = packet;
        engine.tcp.left(self.worker);
    }

    /// Give those their turn whose time has come.
    pub fn run_due(&mut self, forwarder: &mut Forwarder) {
        // Each at most once: what is due again at once waits for the sockets' turn.
        let late: Vec<u64> =
            self.due.iter().take_while(|(at, _)| *at <= forwarder.now_us).map(|(_, id)| *id).collect();
        for id in late {
            self.turn(id, None, forwarder);
        }
    }

    /// Do what another thread asks.
    pub fn order(&mut self, order: Order, forwarder: &mut Forwarder) {
        match order {
            Order::Connect { handle, tuple, mtu } => self.connect(handle, tuple, mtu, forwarder),
            Order::Look { connection } => self.turn(connection, None, forwarder),
            Order::Gone(party) => {
                for id in self.of(&party) {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.connection.cut_off(&forwarder.engine.events);
                    }
                    self.remove(id, &forwarder.engine);
                }
            }
            Order::Back(party) => {
                for id in self.of(&party) {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.connection.hurry(forwarder.now_us);
                    }
                    self.turn(id, None, forwarder);
                }
            }
        }
    }

    fn of(&self, party: &Party) -> Vec<u64> {
        match party {
            // A client's own, of which there are few.
            Party::Session(session) => {
                let own = self.by_tuple.iter().filter(|(tuple, _)| tuple.scope == Some(*session));
                own.map(|(_, id)| *id).collect()
            }
            Party::Peer(addresses) => addresses
                .iter()
                .filter_map(|address| self.by_peer.get(&(None, *address)))
                .flatten()
                .copied()
                .collect(),
        }
    }

    /// A packet for one of our addresses.
    fn receive(&mut self, scope: Scope, packet: &[u8], forwarder: &mut Forwarder) -> Result<(), Counter> {
        let meta = Meta::parse(packet).map_err(|_| Counter::TcpMalformed)?;
        let segment = Segment::parse_untrusted(&meta, packet)?;
        let tuple = Tuple { scope, local: segment.to, remote: segment.from };
        if let Some(id) = self.by_tuple.get(&tuple).copied() {
            let past = self.entries.get(&id).is_none_or(|e| e.connection.is_past());
            if !(past && segment.opens()) {
                self.turn(id, packet.get(..meta.length), forwarder);
                return Ok(());
            }
            self.remove(id, &forwarder.engine);
        }
        if segment.opens()
            && let Some(listener) = forwarder.engine.tcp.listener(scope, segment.to)
        {
            let id = self.accept(tuple, listener, forwarder)?;
            self.turn(id, packet.get(..meta.length), forwarder);
            return Ok(());
        }
        self.refuse(scope, &segment, forwarder);
        Ok(())
    }

    fn refuse(&mut self, scope: Scope, segment: &Segment, forwarder: &mut Forwarder) {
        if !segment.resets() && segment.refusal(&mut self.answer) {
            forwarder.counters.add(Counter::TcpRefused);
            forwarder.from_stack(scope, &mut self.answer);
        }
    }

    /// A connection for a SYN, if there is room for one.
    fn accept(
        &mut self,
        tuple: Tuple,
        listener: Arc<Listener>,
        forwarder: &Forwarder,
    ) -> Result<u64, Counter> {
        if self.entries.len() >= MAX_TCP_CONNECTIONS {
            return Err(Counter::TcpConnectionsFull);
        }
        if let Some(load) = self.peers.get(&(tuple.scope, tuple.remote.ip()))
            && (load.all >= TCP_CONNECTIONS_PER_PEER || load.half_open >= TCP_HALF_OPEN_PER_PEER)
        {
            return Err(Counter::TcpPeerFull);
        }
        let seed = self.seed().ok_or(Counter::TcpConnectionsFull)?;
        if !listener.reserve() {
            return Err(Counter::TcpBacklogFull);
        }
        let id = forwarder.engine.new_id(self.worker);
        let handle = Arc::new(Handle::new(id));
        let opened =
            Connection::accept(tuple, Arc::clone(&listener), Arc::clone(&handle), seed, forwarder.now_us);
        let Some(connection) = opened else {
            listener.release();
            return Err(Counter::TcpMalformed);
        };
        let load = self.peers.entry((tuple.scope, tuple.remote.ip())).or_default();
        load.all += 1;
        load.half_open += 1;
        self.insert(connection, Counted::HalfOpen, &forwarder.engine);
        Ok(id)
    }

    fn connect(&mut self, handle: Arc<Handle>, tuple: Tuple, mtu: usize, forwarder: &mut Forwarder) {
        let id = handle.id;
        match self.open(handle, tuple, mtu, forwarder) {
            Ok(()) => self.turn(id, None, forwarder),
            Err(reason) => {
                forwarder.engine.tcp.handles.remove(&id);
                forwarder.engine.events.push(Event::Tcp(TcpEvent::Closed { connection: id, reason }));
            }
        }
    }

    fn open(
        &mut self,
        handle: Arc<Handle>,
        mut tuple: Tuple,
        mtu: usize,
        forwarder: &Forwarder,
    ) -> Result<(), &'static str> {
        if self.entries.len() >= MAX_TCP_CONNECTIONS {
            forwarder.counters.add(Counter::TcpConnectionsFull);
            return Err("too-many");
        }
        let seed = self.seed().ok_or("no-randomness")?;
        if tuple.local.port() == 0 {
            tuple = self.with_free_port(tuple, seed, &forwarder.engine).ok_or("address-in-use")?;
        } else if self.by_tuple.contains_key(&tuple) {
            return Err("address-in-use");
        }
        let now_us = forwarder.now_us;
        let connection = Connection::connect(tuple, handle, mtu, seed, now_us).ok_or("unreachable")?;
        self.insert(connection, Counted::No, &forwarder.engine);
        Ok(())
    }

    /// A dynamic port nobody uses towards this peer, begun at an unguessable one (RFC 6056 section 3.3.1).
    fn with_free_port(&self, mut tuple: Tuple, seed: u64, engine: &Engine) -> Option<Tuple> {
        let span = u16::MAX - EPHEMERAL_PORT;
        let first = (seed >> 48) as u16;
        for step in 0..=span {
            tuple.local.set_port(EPHEMERAL_PORT + first.wrapping_add(step) % span);
            let listened = engine.tcp.listener(tuple.scope, tuple.local).is_some();
            if !listened && !self.by_tuple.contains_key(&tuple) {
                return Some(tuple);
            }
        }
        None
    }

    fn seed(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes).ok()?;
        Some(u64::from_be_bytes(bytes))
    }

    fn insert(&mut self, connection: Connection, counted: Counted, engine: &Engine) {
        let id = connection.handle.id;
        engine.tcp.handles.insert(id, Arc::clone(&connection.handle));
        engine.tcp.connections.fetch_add(1, Ordering::AcqRel);
        let peer = (connection.tuple.scope, connection.tuple.remote.ip());
        self.by_peer.entry(peer).or_default().push(id);
        self.by_tuple.insert(connection.tuple, id);
        self.entries.insert(id, Entry { connection, due_us: None, counted });
    }

    /// One turn of one connection, and what follows from it.
    fn turn(&mut self, id: u64, packet: Option<&[u8]>, forwarder: &mut Forwarder) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (now_us, out) = (forwarder.now_us, &mut self.out);
        let events = &forwarder.engine.events;
        let scope = entry.connection.tuple.scope;
        // The library is well kept, and its arithmetic on sequence numbers still panics where it is wrong about
        // them. That may cost a connection, never the worker of everybody else.
        let sane =
            catch_unwind(AssertUnwindSafe(|| entry.connection.turn(packet, now_us, out, events))).is_ok();
        if !sane {
            forwarder.counters.add(Counter::TcpFault);
            entry.connection.cut_off(events);
        }
        out.drain(|packet| forwarder.from_stack(scope, packet));
        if entry.counted == Counted::HalfOpen && !entry.connection.is_opening() {
            entry.counted = Counted::Open;
            forwarder.counters.add(Counter::TcpAccepted);
            if let Some(load) = self.peers.get_mut(&(scope, entry.connection.tuple.remote.ip())) {
                load.half_open = load.half_open.saturating_sub(1);
            }
        }
        if entry.connection.is_over() {
            self.remove(id, &forwarder.engine);
            return;
        }
        let next = entry.connection.next_us(now_us);
        if next != entry.due_us {
            if let Some(before) = entry.due_us.take() {
                self.due.remove(&(before, id));
            }
            if let Some(at) = next {
                self.due.insert((at, id));
            }
            entry.due_us = next;
        }
    }

    fn remove(&mut self, id: u64, engine: &Engine) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let connection = &entry.connection;
        if let Some(at) = entry.due_us {
            self.due.remove(&(at, id));
        }
        self.by_tuple.remove(&connection.tuple);
        engine.tcp.handles.remove(&id);
        engine.tcp.connections.fetch_sub(1, Ordering::AcqRel);
        if let Some(listener) = connection.place() {
            listener.release();
        }
        let peer = (connection.tuple.scope, connection.tuple.remote.ip());
        if let Some(ids) = self.by_peer.get_mut(&peer) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
        if entry.counted != Counted::No
            && let Some(load) = self.peers.get_mut(&peer)
        {
            load.all = load.all.saturating_sub(1);
            load.half_open = load.half_open.saturating_sub(usize::from(entry.counted == Counted::HalfOpen));
            if load.all == 0 {
                self.peers.remove(&peer);
            }
        }
    }
}

/// Whether both ends are of one family and may have connections at all.
pub fn connectable(local: SocketAddr, remote: SocketAddr) -> bool {
    local.is_ipv4() == remote.is_ipv4()
        && remote.port() != 0
        && super::segment::is_host(local.ip())
        && super::segment::is_host(remote.ip())
}
