//! What every thread may see of inner TCP: who listens, what Python and a connection's owner share, and packets on
//! their way to the worker whose they are.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use ahash::RandomState;
use parking_lot::{Mutex, RwLock};

use super::Scope;
use super::segment::is_host;
use crate::counters::Counter;
use crate::limits::{
    EPHEMERAL_PORT, MAX_TCP_BACKLOG, MAX_TCP_LISTENERS, TCP_CREDIT, TCP_INGRESS_QUEUE, TCP_SEND_QUEUE,
};
use crate::tables::Sharded;
use crate::tables::sockets::BindError;

/// Somebody accepts connections.
#[derive(Debug)]
pub struct Listener {
    pub id: u64,
    pub scope: Scope,
    pub address: SocketAddr,
    pub backlog: usize,
    pub mtu: usize,
    /// Connections half open, or established and Python not told.
    waiting: AtomicUsize,
    closed: AtomicBool,
}

impl Listener {
    /// Take a place in the backlog; false if it is full.
    pub fn reserve(&self) -> bool {
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        if before >= self.backlog {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        before < self.backlog
    }

    /// Give the place back.
    pub fn release(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// What the program wants of a connection, as bits.
pub mod wish {
    /// No more will be sent: FIN after what is queued.
    pub const SHUTDOWN: u8 = 1;
    /// Done with it: flush, FIN, tell nothing more.
    pub const CLOSE: u8 = 2;
    /// RST at once.
    pub const ABORT: u8 = 4;
}

/// Bytes from Python.
#[derive(Debug, Default)]
pub struct Sending {
    pub bytes: VecDeque<u8>,
    /// Python was turned away and waits for TcpWritable.
    pub starved: bool,
}

/// What Python and the owner of a connection share.
#[derive(Debug)]
pub struct Handle {
    pub id: u64,
    pub sending: Mutex<Sending>,
    /// Bytes that may go up before Python gives some back.
    pub credit: AtomicUsize,
    /// There is more to tell than credit allows.
    pub stalled: AtomicBool,
    pub wishes: AtomicU8,
    /// The owner has been told to look.
    pub touched: AtomicBool,
}

impl Handle {
    pub fn new(id: u64) -> Self {
        Self {
            id,
            sending: Mutex::default(),
            credit: AtomicUsize::new(TCP_CREDIT),
            stalled: AtomicBool::new(false),
            wishes: AtomicU8::new(0),
            touched: AtomicBool::new(false),
        }
    }

    /// Take what there is room for; says how much. Less than all means: wait for TcpWritable.
    pub fn send(&self, data: &[u8]) -> usize {
        let mut sending = self.sending.lock();
        let room = TCP_SEND_QUEUE.saturating_sub(sending.bytes.len()).min(data.len());
        sending.bytes.extend(data.get(..room).unwrap_or_default());
        sending.starved |= room < data.len();
        room
    }

    /// Python has done with so many bytes. True if the owner waits for that.
    pub fn give_back(&self, bytes: usize) -> bool {
        let most = TCP_CREDIT;
        let _ = self.credit.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            Some(now.saturating_add(bytes).min(most))
        });
        self.stalled.swap(false, Ordering::AcqRel)
    }

    /// Wish something; true if the owner has to be told.
    pub fn wish(&self, bits: u8) -> bool {
        self.wishes.fetch_or(bits, Ordering::AcqRel);
        self.touch()
    }

    /// True if the owner has to be told that there is something to see.
    pub fn touch(&self) -> bool {
        !self.touched.swap(true, Ordering::AcqRel)
    }
}

/// Packets of any scopes in one ring of bytes.
#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    heads: VecDeque<(Scope, usize)>,
}

#[derive(Debug, Default)]
struct Door {
    pending: AtomicBool,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Listeners {
    bound: HashMap<(Scope, SocketAddr), Arc<Listener>, RandomState>,
    by_id: HashMap<u64, Arc<Listener>, RandomState>,
    next_port: u16,
}

/// The part of inner TCP that an engine's threads share.
#[derive(Debug)]
pub struct Tcp {
    doors: Vec<Door>,
    listeners: RwLock<Listeners>,
    pub handles: Sharded<u64, Arc<Handle>>,
    /// Connections of all workers: zero spares everybody the news about sessions.
    pub connections: AtomicUsize,
    hasher: RandomState,
}

impl Tcp {
    pub fn new(workers: usize) -> Self {
        Self {
            doors: (0..workers).map(|_| Door::default()).collect(),
            listeners: RwLock::default(),
            handles: Sharded::default(),
            connections: AtomicUsize::new(0),
            hasher: RandomState::new(),
        }
    }

    /// The worker that has all connections of this peer.
    pub fn owner(&self, scope: Scope, peer: IpAddr) -> usize {
        (self.hasher.hash_one((scope, peer)) % self.doors.len().max(1) as u64) as usize
    }

    /// Bring a packet to its owner's door. True if nobody had knocked yet.
    pub fn knock(&self, owner: usize, scope: Scope, packet: &[u8]) -> Result<bool, Counter> {
        let door = self.doors.get(owner).ok_or(Counter::TcpQueueFull)?;
        let mut ring = door.ring.lock();
        if ring.bytes.len() + packet.len() > TCP_INGRESS_QUEUE {
            return Err(Counter::TcpQueueFull);
        }
        ring.bytes.extend(packet);
        ring.heads.push_back((scope, packet.len()));
        drop(ring);
        Ok(!door.pending.swap(true, Ordering::AcqRel))
    }

    /// Whether packets wait at a worker's door.
    #[inline]
    pub fn pending(&self, owner: usize) -> bool {
        self.doors.get(owner).is_some_and(|door| door.pending.load(Ordering::Acquire))
    }

    /// The owner begins to take packets in: who brings one from now on knocks again.
    pub fn opened(&self, owner: usize) {
        if let Some(door) = self.doors.get(owner) {
            door.pending.store(false, Ordering::Release);
        }
    }

    /// Packets are left for the next turn.
    pub fn left(&self, owner: usize) {
        if let Some(door) = self.doors.get(owner) {
            door.pending.store(true, Ordering::Release);
        }
    }

    /// The next packet.
    pub fn take(&self, owner: usize, packet: &mut Vec<u8>) -> Option<Scope> {
        packet.clear();
        let mut ring = self.doors.get(owner)?.ring.lock();
        let (scope, length) = ring.heads.pop_front()?;
        packet.extend(ring.bytes.drain(..length));
        Some(scope)
    }

    /// Listen; port 0 picks a free dynamic port.
    pub fn listen(
        &self,
        id: u64,
        scope: Scope,
        address: SocketAddr,
        backlog: usize,
        mtu: usize,
    ) -> Result<Arc<Listener>, BindError> {
        let mut listeners = self.listeners.write();
        if listeners.by_id.len() >= MAX_TCP_LISTENERS {
            return Err(BindError::TooMany);
        }
        let mut address = address;
        if address.port() == 0 {
            address.set_port(listeners.free_port(scope, address.ip()).ok_or(BindError::InUse)?);
        }
        if listeners.bound.contains_key(&(scope, address)) {
            return Err(BindError::InUse);
        }
        let listener = Arc::new(Listener {
            id,
            scope,
            address,
            backlog: backlog.clamp(1, MAX_TCP_BACKLOG),
            mtu,
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        listeners.bound.insert((scope, address), Arc::clone(&listener));
        listeners.by_id.insert(id, Arc::clone(&listener));
        Ok(listener)
    }

    /// Who listens there.
    pub fn listener(&self, scope: Scope, address: SocketAddr) -> Option<Arc<Listener>> {
        self.listeners.read().bound.get(&(scope, address)).cloned()
    }

    pub fn unlisten(&self, id: u64) -> bool {
        let mut listeners = self.listeners.write();
        let Some(listener) = listeners.by_id.remove(&id) else {
            return false;
        };
        listener.closed.store(true, Ordering::Release);
        listeners.bound.remove(&(listener.scope, listener.address));
        true
    }

    /// Nobody listens on a session's addresses any more.
    pub fn close_session(&self, session: u64) {
        let mut listeners = self.listeners.write();
        for listener in listeners.by_id.values().filter(|l| l.scope == Some(session)) {
            listener.closed.store(true, Ordering::Release);
        }
        listeners.bound.retain(|key, _| key.0 != Some(session));
        listeners.by_id.retain(|_, listener| listener.scope != Some(session));
    }

    /// Whether an address may be listened on or connected from at all.
    pub fn usable(address: IpAddr) -> bool {
        is_host(address)
    }
}

impl Listeners {
    fn free_port(&mut self, scope: Scope, address: IpAddr) -> Option<u16> {
        let span = u16::MAX - EPHEMERAL_PORT;
        for _ in 0..=span {
            self.next_port = if self.next_port >= span { 0 } else { self.next_port + 1 };
            let port = EPHEMERAL_PORT + self.next_port;
            if !self.bound.contains_key(&(scope, SocketAddr::new(address, port))) {
                return Some(port);
            }
        }
        None
    }
}
