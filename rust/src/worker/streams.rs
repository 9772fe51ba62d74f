//! Stream tunnels of one worker: listeners, connections by id, deadlines.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ahash::RandomState;

use super::conn::{Conn, End, Phase, inbox, tune};
use super::timers::{Due, Timers};
use super::{forget, token};
use crate::boundary::StreamListenerShared;
use crate::counters::Counter;
use crate::crypto::{ClientProfile, TlsHandshake};
use crate::engine::Inbox;
use crate::forward::Forwarder;
use crate::limits::{
    ACCEPT_PAUSE_MS, CLOSE_FLUSH_MS, HANDSHAKE_TIMEOUT_MS, MAX_HANDSHAKES, STREAM_RECORD, STREAM_WRITE,
};
use crate::sys::{self, READABLE, Ready, WRITABLE};
use crate::tunnel::{Link, StreamLink, Tunnel};

/// Bytes read from a stream at once, beside a partial record of at most the longest one.
const READ_BUFFER: usize = 64 * 1024 + 20 * 1024;

/// Connections accepted per turn: some 10 us each, while packets wait.
const ACCEPT_BUDGET: usize = 16;

struct Listener {
    fd: OwnedFd,
    shared: Arc<StreamListenerShared>,
}

/// All stream tunnels of a worker.
pub struct Streams {
    index: usize,
    listeners: HashMap<u64, Listener>,
    conns: HashMap<u64, Conn, RandomState>,
    handshakes: usize,
    paused: Vec<u64>,
    buffers: Buffers,
}

/// Room for what is read from one connection and written to one, in turn.
struct Buffers {
    read: Vec<u8>,
    write: Vec<u8>,
}

impl Streams {
    pub fn new(index: usize) -> Self {
        Self {
            index,
            listeners: HashMap::new(),
            conns: HashMap::default(),
            handshakes: 0,
            paused: Vec::new(),
            buffers: Buffers {
                read: vec![0; READ_BUFFER],
                write: Vec::with_capacity(STREAM_WRITE + STREAM_RECORD),
            },
        }
    }

    pub fn listen(&mut self, id: u64, fd: OwnedFd, shared: Arc<StreamListenerShared>, inbox: &Inbox) {
        if inbox.epoll.add(fd.as_raw_fd(), READABLE, token(token::LISTENER, id)).is_ok() {
            self.listeners.insert(id, Listener { fd, shared });
        }
    }

    pub fn unlisten(&mut self, id: u64) {
        self.listeners.remove(&id);
    }

    /// Connections are waiting at a listener.
    pub fn accept(&mut self, id: u64, forwarder: &mut Forwarder, timers: &mut Timers) {
        let limit = sys::descriptor_limit();
        for _ in 0..ACCEPT_BUDGET {
            let Some(listener) = self.listeners.get(&id) else {
                return;
            };
            let shared = Arc::clone(&listener.shared);
            let (fd, peer) = match sys::accept(listener.fd.as_raw_fd()) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if sys::is_out_of_descriptors(&error) => {
                    forwarder.counters.add(Counter::NoDescriptor);
                    self.pause_accepting(id, forwarder, timers);
                    return;
                }
                Err(_) => {
                    // The peer was gone before we came: others may go on.
                    forwarder.counters.add(Counter::AcceptFailed);
                    return;
                }
            };
            forwarder.counters.add(Counter::StreamsAccepted);
            if sys::is_reserved_descriptor(fd.as_raw_fd(), limit) {
                // Closed at once, so that the client can go elsewhere instead of waiting for us.
                forwarder.counters.add(Counter::NoDescriptor);
                continue;
            }
            if let Some(refusal) = self.refusal(&shared) {
                forwarder.counters.add(refusal);
                continue;
            }
            let tls = shared.tls.lock().clone();
            let phase = match tls.map(|profile| TlsHandshake::server(&profile)) {
                None => Phase::Open,
                Some(Ok(handshake)) => Phase::Handshake(Box::new(handshake)),
                Some(Err(_)) => {
                    forwarder.counters.add(Counter::TlsHandshakeFailed);
                    continue;
                }
            };
            shared.tunnels.fetch_add(1, Ordering::AcqRel);
            let tunnel = forwarder.engine.new_id(self.index);
            let local = sys::local_address(fd.as_raw_fd()).unwrap_or(peer);
            let link = Link::Stream(StreamLink::default());
            let tunnel = Arc::new(Tunnel::new(tunnel, Some(id), peer, local, link, forwarder.now_us));
            self.begin(tunnel, fd, phase, Some(shared), forwarder, timers);
        }
    }

    /// Without a descriptor the listener stays readable: look away for a while.
    fn pause_accepting(&self, id: u64, forwarder: &Forwarder, timers: &mut Timers) {
        self.watch_listener(id, 0, forwarder);
        timers.at(forwarder.now_us + ACCEPT_PAUSE_MS * 1_000, Due::Accept(id));
    }

    /// Look at a listener again.
    pub fn resume_accepting(&self, id: u64, forwarder: &Forwarder) {
        self.watch_listener(id, READABLE, forwarder);
    }

    fn watch_listener(&self, id: u64, interest: u32, forwarder: &Forwarder) {
        if let (Some(listener), Some(inbox)) = (self.listeners.get(&id), inbox(forwarder, self.index)) {
            // An error would leave it as it is, and the next accept would come back here.
            let _ = inbox.epoll.modify(listener.fd.as_raw_fd(), interest, token(token::LISTENER, id));
        }
    }

    /// Whether a stream is still on its way: its next step costs as much as a hundred packets.
    pub fn is_shaking(&self, id: u64) -> bool {
        self.conns.get(&id).is_some_and(|conn| matches!(conn.phase, Phase::Handshake(_)))
    }

    fn refusal(&self, shared: &StreamListenerShared) -> Option<Counter> {
        if self.handshakes >= MAX_HANDSHAKES {
            return Some(Counter::HandshakesFull);
        }
        let full = shared.max_tunnels > 0 && shared.tunnels.load(Ordering::Acquire) >= shared.max_tunnels;
        full.then_some(Counter::TunnelsFull)
    }

    /// A connected or connecting socket of ours.
    pub fn attach(
        &mut self,
        id: u64,
        fd: OwnedFd,
        tls: Option<(Arc<ClientProfile>, String)>,
        forwarder: &mut Forwarder,
        timers: &mut Timers,
    ) {
        let any = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let peer = sys::peer_address(fd.as_raw_fd()).unwrap_or(any);
        let local = sys::local_address(fd.as_raw_fd()).unwrap_or(any);
        let link = Link::Stream(StreamLink::default());
        let tunnel = Arc::new(Tunnel::new(id, None, peer, local, link, forwarder.now_us));
        let (profile, name) = tls.map_or((None, String::new()), |(profile, name)| (Some(profile), name));
        let phase = Phase::Connecting(Box::new((profile, name)));
        self.begin(tunnel, fd, phase, None, forwarder, timers);
    }

    fn begin(
        &mut self,
        tunnel: Arc<Tunnel>,
        fd: OwnedFd,
        phase: Phase,
        listener: Option<Arc<StreamListenerShared>>,
        forwarder: &mut Forwarder,
        timers: &mut Timers,
    ) {
        let raw_fd = fd.as_raw_fd();
        tune(raw_fd);
        if let Some(link) = tunnel.stream() {
            *link.fd.lock() = Some(raw_fd);
        }
        let id = tunnel.id;
        let deadline_us = forwarder.now_us + HANDSHAKE_TIMEOUT_MS * 1_000;
        let open = matches!(phase, Phase::Open);
        let interest = if matches!(phase, Phase::Connecting(_)) { WRITABLE } else { READABLE };
        let mut conn = Conn::new(tunnel, fd, phase, listener, interest, deadline_us);
        self.handshakes += 1;
        let registered = inbox(forwarder, self.index)
            .is_some_and(|i| i.epoll.add(raw_fd, interest, token(token::STREAM, id)).is_ok());
        if open {
            self.handshakes -= 1;
            conn.become_ready(None, forwarder);
        } else {
            timers.at(deadline_us, Due::Stream(id));
        }
        if registered {
            self.conns.insert(id, conn);
        } else {
            self.handshakes -= usize::from(!open);
            conn.end(&End::new("io-error", "the socket cannot be watched"), forwarder);
        }
    }

    /// A stream is readable or writable.
    pub fn on_ready(&mut self, id: u64, event: Ready, forwarder: &mut Forwarder, timers: &mut Timers) {
        self.attend(id, forwarder, timers, |conn, forwarder, buffers| {
            if matches!(conn.phase, Phase::Connecting(_)) {
                conn.connected(forwarder)?;
            }
            if event.writable {
                conn.flush(forwarder, &mut buffers.write)?;
            }
            if event.readable && !conn.paused {
                conn.read(forwarder, &mut buffers.read)?;
                // What the handshake or a key update left to be said; queued frames come in their turn.
                if conn.has_pending() {
                    conn.flush(forwarder, &mut buffers.write)?;
                }
            }
            Ok(())
        });
    }

    /// Do something with a connection, where it stands, and see to what follows from it.
    fn attend(
        &mut self,
        id: u64,
        forwarder: &mut Forwarder,
        timers: &mut Timers,
        work: impl FnOnce(&mut Conn, &mut Forwarder, &mut Buffers) -> Result<(), End>,
    ) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let was_open = conn.is_open();
        if let Err(end) = work(conn, forwarder, &mut self.buffers) {
            self.handshakes -= usize::from(!was_open && self.handshakes > 0);
            if let Some(conn) = self.conns.remove(&id) {
                conn.end(&end, forwarder);
            }
            return;
        }
        if !was_open && conn.is_open() && self.handshakes > 0 {
            self.handshakes -= 1;
        }
        if conn.paused && !self.paused.contains(&id) {
            self.paused.push(id);
        }
        if matches!(conn.phase, Phase::Closing) && conn.deadline_us == 0 {
            conn.deadline_us = forwarder.now_us + CLOSE_FLUSH_MS * 1_000;
            timers.at(conn.deadline_us, Due::Stream(id));
        }
        conn.watch(self.index, forwarder);
    }

    /// Write what waits for a stream.
    pub fn flush(&mut self, id: u64, forwarder: &mut Forwarder, timers: &mut Timers) {
        self.attend(id, forwarder, timers, |conn, forwarder, buffers| {
            conn.flush(forwarder, &mut buffers.write)
        });
    }

    /// There is room for control messages again.
    pub fn resume_paused(&mut self, forwarder: &mut Forwarder, timers: &mut Timers) {
        for id in std::mem::take(&mut self.paused) {
            self.attend(id, forwarder, timers, |conn, forwarder, _| {
                conn.paused = false;
                conn.resume(forwarder)
            });
        }
    }

    /// Close a stream in good order.
    pub fn close(&mut self, id: u64, reason: &'static str, forwarder: &mut Forwarder, timers: &mut Timers) {
        self.attend(id, forwarder, timers, |conn, forwarder, buffers| {
            if !conn.is_open() {
                return Err(End::new(reason, ""));
            }
            if !matches!(conn.phase, Phase::Closing) {
                conn.phase = Phase::Closing;
                conn.close_reason = reason;
                conn.deadline_us = 0;
                // Nothing new may be queued by way of the session, and nobody else may think it lives.
                forget(&conn.tunnel, &forwarder.engine);
            }
            conn.flush(forwarder, &mut buffers.write)
        });
    }

    /// The deadline of a handshake or of a goodbye.
    pub fn on_timer(&mut self, id: u64, forwarder: &mut Forwarder) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let late = match conn.phase {
            Phase::Open => false,
            Phase::Connecting(_) | Phase::Handshake(_) | Phase::Closing => {
                forwarder.now_us >= conn.deadline_us
            }
        };
        if !late {
            return;
        }
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        if conn.is_open() {
            let reason = conn.close_reason;
            conn.end(&End::new(reason, ""), forwarder);
            return;
        }
        self.handshakes = self.handshakes.saturating_sub(1);
        forwarder.counters.add(Counter::HandshakeTimeout);
        conn.end(&End::new("timeout", "the peer did not finish the handshake in time"), forwarder);
    }

    /// Whether nothing is left to write on any open stream.
    pub fn is_flushed(&self) -> bool {
        self.conns.values().all(|c| !c.is_open() || c.is_flushed())
    }

    /// Say goodbye on every stream, at once.
    pub fn close_all(&mut self, forwarder: &mut Forwarder) {
        for (_, mut conn) in self.conns.drain() {
            conn.phase = Phase::Closing;
            let _ = conn.flush(forwarder, &mut self.buffers.write);
            conn.end(&End::new("local-close", ""), forwarder);
        }
    }
}
