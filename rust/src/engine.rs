//! The engine: the tables all threads share, and the threads themselves.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use crate::boundary::{Command, EventQueue, StreamListenerShared};
use crate::core::CoreSockets;
use crate::counters::{Counter, CounterSet};
use crate::forward::Forwarder;
use crate::sys::{Epoll, EventFd};
use crate::tables::nat::Policies;
use crate::tables::relays::Relays;
use crate::tables::reservations::Reservations;
use crate::tables::sockets::LocalSockets;
use crate::tables::{Role, Routes, Session, Sharded};
use crate::tcp::shared::Tcp;
use crate::tcp::stack::{Order, Party};
use crate::tunnel::Tunnel;
use crate::worker::Worker;

/// Workers an engine may have: their number must fit the low byte of a tunnel's id.
pub const MAX_WORKERS: usize = 64;

/// A TUN device with one queue per worker (or fewer).
#[derive(Debug)]
pub struct Tun {
    pub id: u64,
    pub queues: Vec<OwnedFd>,
    /// A client's device: what is read goes into this session's tunnels.
    pub session: Option<Arc<Session>>,
    /// Reads and writes have a `virtio_net_hdr` in front of the packet.
    pub header: bool,
    /// The kernel takes runs of packets in one write; false once it has refused one.
    pub takes_runs: AtomicBool,
    name: String,
    /// Packets dropped before our queues, as last seen.
    dropped: AtomicU64,
}

impl Tun {
    /// A device by its queues, of which one is enough to ask what all can do.
    pub fn new(id: u64, queues: Vec<OwnedFd>, session: Option<Arc<Session>>) -> Self {
        let fd = queues.first().map(AsRawFd::as_raw_fd);
        let header = fd.is_some_and(crate::sys::tun_has_header);
        let takes_runs = header && fd.is_some_and(crate::sys::tun_takes_runs);
        let name = fd.map(crate::sys::tun_name).unwrap_or_default();
        let dropped = AtomicU64::new(crate::sys::device_drops(&name).unwrap_or(0));
        Self { id, queues, session, header, takes_runs: AtomicBool::new(takes_runs), name, dropped }
    }

    /// Packets that the kernel could not queue for us since this was last asked.
    pub fn drops_grown(&self) -> u64 {
        let Some(now) = crate::sys::device_drops(&self.name) else { return 0 };
        now.saturating_sub(self.dropped.swap(now, Ordering::Relaxed))
    }
}

/// How other threads reach a worker.
pub struct Inbox {
    commands: Mutex<VecDeque<Command>>,
    dirty: Mutex<Vec<Arc<Tunnel>>>,
    pub wake: EventFd,
    pub epoll: Epoll,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            commands: Mutex::new(VecDeque::new()),
            dirty: Mutex::new(Vec::new()),
            wake: EventFd::new()?,
            epoll: Epoll::new()?,
        })
    }

    /// Order something. Behind orders that wait already nobody need be woken: the worker takes them all.
    pub fn send(&self, command: Command) {
        let mut commands = self.commands.lock();
        commands.push_back(command);
        if commands.len() == 1 {
            self.wake.wake();
        }
    }

    /// The next order.
    pub fn next(&self) -> Option<Command> {
        self.commands.lock().pop_front()
    }

    /// Streams that other threads have put frames into.
    pub fn take_dirty(&self, into: &mut Vec<Arc<Tunnel>>) {
        into.append(&mut self.dirty.lock());
    }
}

/// Everything the threads share.
pub struct Engine {
    pub events: EventQueue,
    pub sessions: Sharded<u64, Arc<Session>>,
    pub routes: Routes,
    pub tunnels: Sharded<u64, Arc<Tunnel>>,
    pub tuns: Sharded<u64, Arc<Tun>>,
    pub sockets: LocalSockets,
    pub tcp: Tcp,
    pub relays: Relays,
    pub policies: Policies,
    pub reservations: Arc<Reservations>,
    pub core: CoreSockets,
    pub inboxes: Vec<Arc<Inbox>>,
    pub stream_listeners: Mutex<HashMap<u64, Arc<StreamListenerShared>>>,
    counters: Vec<Arc<CounterSet>>,
    /// Counters of the control plane's own thread.
    pub own_counters: Arc<CounterSet>,
    next_id: AtomicU64,
    next_worker: AtomicU64,
    start: Instant,
}

impl Engine {
    pub(crate) fn new(workers: usize) -> io::Result<Self> {
        Ok(Self {
            events: EventQueue::new()?,
            sessions: Sharded::default(),
            routes: Routes::default(),
            tunnels: Sharded::default(),
            tuns: Sharded::default(),
            sockets: LocalSockets::default(),
            tcp: Tcp::new(workers),
            relays: Relays::default(),
            policies: Policies::default(),
            reservations: Arc::new(Reservations::default()),
            core: CoreSockets::default(),
            inboxes: (0..workers).map(|_| Inbox::new().map(Arc::new)).collect::<io::Result<_>>()?,
            stream_listeners: Mutex::new(HashMap::new()),
            counters: (0..workers).map(|_| Arc::new(CounterSet::default())).collect(),
            own_counters: Arc::new(CounterSet::default()),
            next_id: AtomicU64::new(1),
            next_worker: AtomicU64::new(0),
            start: Instant::now(),
        })
    }

    /// Microseconds since the engine began.
    pub fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// The engine's beginning, for those who need real instants.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// A fresh id that belongs to `worker`.
    pub fn new_id(&self, worker: usize) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed) << 8 | worker as u64
    }

    /// The worker whose turn it is to get an outgoing connection.
    pub fn pick_worker(&self) -> usize {
        self.next_worker.fetch_add(1, Ordering::Relaxed) as usize % self.inboxes.len()
    }

    /// The inbox of a worker; ids come from us, so there always is one.
    pub fn inbox(&self, worker: usize) -> Option<&Arc<Inbox>> {
        self.inboxes.get(worker)
    }

    /// Tell a stream's owner that it has something to write.
    pub fn mark_dirty(&self, tunnel: &Arc<Tunnel>) {
        if let Some(inbox) = self.inbox(tunnel.worker()) {
            let mut dirty = inbox.dirty.lock();
            dirty.push(Arc::clone(tunnel));
            if dirty.len() == 1 {
                inbox.wake.wake();
            }
        }
    }

    /// All counters, added up.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let sets = || self.counters.iter().chain(std::iter::once(&self.own_counters));
        Counter::ALL.iter().map(|c| (c.name(), sets().map(|s| s.get(*c)).sum())).collect()
    }

    /// Take a session out of every table. Its tunnels are closed by their owners.
    pub fn forget_session(&self, id: u64, reason: &'static str) -> bool {
        let Some(session) = self.sessions.remove(&id) else {
            return false;
        };
        self.routes.remove_session(&session);
        self.reservations.forget_session(id);
        self.sockets.close_session(id);
        self.tcp.close_session(id);
        self.tell_tcp(&session, Order::Gone);
        self.policies.forget_client(&session.addresses);
        self.core.close_session(self, id);
        let extras = session.strands.clear();
        let pair = [session.tunnel(false), session.tunnel(true)].into_iter().flatten();
        for tunnel in pair.chain(extras.iter().cloned()) {
            session.detach(&tunnel);
            tunnel.set_session(None);
            self.order_close(tunnel.id, reason);
        }
        if let Some(capture) = session.capture.swap(None) {
            capture.finish();
        }
        true
    }

    /// Tell the owners of inner TCP connections what has become of a session they run over.
    pub fn tell_tcp(&self, session: &Session, order: impl Fn(Party) -> Order) {
        if self.tcp.connections.load(Ordering::Acquire) == 0 {
            return;
        }
        let party = match session.role {
            Role::Client => Party::Session(session.id),
            Role::Server => Party::Peer(session.addresses.clone()),
        };
        for inbox in &self.inboxes {
            inbox.send(Command::Tcp(order(party.clone())));
        }
    }

    /// Ask a tunnel's owner to close it.
    pub fn order_close(&self, tunnel: u64, reason: &'static str) {
        if let Some(inbox) = self.inbox(crate::tunnel::worker_of(tunnel)) {
            inbox.send(Command::Close { tunnel, reason });
        }
    }
}

/// An engine with its running threads, and the packet path of the thread that owns this value.
pub struct Running {
    pub engine: Arc<Engine>,
    pub forwarder: Forwarder,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Start `workers` threads.
    pub fn start(workers: usize) -> io::Result<Self> {
        let engine = Arc::new(Engine::new(workers.clamp(1, MAX_WORKERS))?);
        let mut threads = Vec::with_capacity(engine.inboxes.len());
        for (index, counters) in engine.counters.iter().enumerate() {
            let worker = Worker::new(Arc::clone(&engine), Arc::clone(counters), index)?;
            let name = format!("tsm-worker-{index}");
            threads.push(std::thread::Builder::new().name(name).spawn(move || worker.run())?);
        }
        let counters = Arc::clone(&engine.own_counters);
        let forwarder = Forwarder::new(Arc::clone(&engine), counters, None);
        Ok(Self { engine, forwarder, threads })
    }

    /// Flush for at most `flush_ms`, end the threads. May be called again.
    pub fn stop(&mut self, flush_ms: u64) {
        for inbox in &self.engine.inboxes {
            inbox.send(Command::Shutdown { flush_ms });
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for session in self.engine.sessions.values() {
            self.engine.forget_session(session.id, "local-close");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{READABLE, ReadyList};
    use std::os::fd::AsRawFd;

    fn readable(inbox: &Inbox) -> bool {
        let mut list = ReadyList::default();
        inbox.epoll.wait(&mut list, Some(0)).unwrap();
        !list.is_empty()
    }

    #[test]
    fn a_worker_is_woken_for_the_first_order_and_takes_those_behind_it_along() {
        let inbox = Inbox::new().unwrap();
        inbox.epoll.add(inbox.wake.as_raw_fd(), READABLE, 1).unwrap();
        inbox.send(Command::Unlisten { listener: 1 });
        assert!(readable(&inbox));
        inbox.wake.clear();
        inbox.send(Command::Unlisten { listener: 2 });
        assert!(!readable(&inbox), "the first one's wake-up is for this one too");
        assert!(inbox.next().is_some() && inbox.next().is_some() && inbox.next().is_none());
        inbox.send(Command::Unlisten { listener: 3 });
        assert!(readable(&inbox), "after the last was taken the next one wakes again");
    }
}
