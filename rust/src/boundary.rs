//! The vocabulary between the planes, Rust side: events go up, commands come down. The Python side of the
//! same is `opentsm/userplane/_core.pyi`.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::crypto::{ClientProfile, ServerProfile};
use crate::engine::Tun;
use crate::limits::{EVENT_QUEUE, EVENT_RESERVE};
use crate::sys::EventFd;
use crate::tables::signals::Signal;
use crate::tables::sockets::LocalSocket;
use crate::tcp::shared::Listener;
use crate::tcp::stack::Order;
use crate::tunnel::Tunnel;

/// A fact for the control plane.
#[derive(Debug)]
pub enum Event {
    StreamReady {
        tunnel: u64,
        listener: Option<u64>,
        peer: SocketAddr,
        local: SocketAddr,
        peer_certificate: Option<Vec<u8>>,
        alpn: Option<String>,
        tls_version: Option<&'static str>,
        resume_binding: [u8; 32],
    },
    DatagramReady {
        tunnel: u64,
        listener: Option<u64>,
        peer: SocketAddr,
        local: SocketAddr,
        tsid: u64,
        session: u64,
    },
    Control {
        tunnel: u64,
        data: Vec<u8>,
    },
    Closed {
        tunnel: u64,
        reason: &'static str,
        detail: String,
    },
    Idle {
        tunnel: u64,
        silent_ms: u64,
    },
    Silent {
        tunnel: u64,
        silent_ms: u64,
    },
    Alive {
        tunnel: u64,
    },
    /// A media flow was found (or has fallen silent) on a client's TUN device.
    Flow {
        session: u64,
        v6: bool,
        port: u16,
        quiet: bool,
    },
    /// A copy of SIP that passed a client's TUN device; `sent` by this host.
    Signal {
        session: u64,
        sent: bool,
        signal: Signal,
    },
    Udp {
        socket: Arc<LocalSocket>,
        data: Vec<u8>,
        source: SocketAddr,
        path: i8,
    },
    /// About inner TCP.
    Tcp(TcpEvent),
}

/// A fact about inner TCP.
#[derive(Debug)]
pub enum TcpEvent {
    /// A listener has a new connection, established.
    Accepted {
        listener: Arc<Listener>,
        connection: u64,
        local: SocketAddr,
        peer: SocketAddr,
    },
    /// A connection we asked for is established.
    Connected {
        connection: u64,
        local: SocketAddr,
        peer: SocketAddr,
    },
    Received {
        connection: u64,
        data: Vec<u8>,
    },
    /// The peer sends no more.
    Eof {
        connection: u64,
    },
    /// There is room again for a sender that was turned away.
    Writable {
        connection: u64,
    },
    Closed {
        connection: u64,
        reason: &'static str,
    },
}

/// An order for one worker; everything that need not touch a worker's own sockets is done in place instead.
pub enum Command {
    ListenStream {
        listener: u64,
        fd: OwnedFd,
        shared: Arc<StreamListenerShared>,
    },
    ListenDatagram {
        listener: u64,
        sockets: Arc<Vec<OwnedFd>>,
        dtls: bool,
    },
    Unlisten {
        listener: u64,
    },
    AttachStream {
        tunnel: u64,
        fd: OwnedFd,
        tls: Option<(Arc<ClientProfile>, String)>,
    },
    AttachDatagram {
        tunnel: u64,
        fd: OwnedFd,
        psk: Option<[u8; 32]>,
        tsid: u64,
        session: u64,
        rtt_hint_ms: u32,
    },
    AddTun {
        tun: Arc<Tun>,
    },
    RemoveTun {
        tun: Arc<Tun>,
    },
    Close {
        tunnel: u64,
        reason: &'static str,
    },
    /// About inner TCP.
    Tcp(Order),
    /// Media is on this datagram tunnel: look after it.
    Watch {
        tunnel: Arc<Tunnel>,
    },
    /// Keepalive or idle settings have changed.
    Arm {
        tunnel: Arc<Tunnel>,
    },
    /// A datagram tunnel to a peer that there is not.
    #[cfg(feature = "rows")]
    Row {
        listener: u64,
        peer: SocketAddr,
        tsid: u64,
    },
    /// Flush all for a while, then end the thread.
    Shutdown {
        flush_ms: u64,
    },
}

/// What all workers of one stream listener share.
pub struct StreamListenerShared {
    pub tls: Mutex<Option<Arc<ServerProfile>>>,
    pub max_tunnels: usize,
    pub tunnels: std::sync::atomic::AtomicUsize,
}

/// Events waiting for Python, with the descriptor that asyncio watches.
#[derive(Debug)]
pub struct EventQueue {
    events: Mutex<VecDeque<Event>>,
    ready: EventFd,
    /// Somebody was turned away and wants to be woken when there is room.
    refused: AtomicBool,
}

impl EventQueue {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            events: Mutex::new(VecDeque::new()),
            ready: EventFd::new()?,
            refused: AtomicBool::new(false),
        })
    }

    /// The descriptor that is readable while events wait.
    pub fn fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }

    /// Hand a control message up; false if the sender has to wait (`take` says when).
    pub fn offer_control(&self, tunnel: u64, data: &[u8]) -> bool {
        let mut events = self.events.lock();
        if events.len() >= EVENT_QUEUE {
            self.refused.store(true, Ordering::Release);
            return false;
        }
        events.push_back(Event::Control { tunnel, data: data.to_vec() });
        self.signal(events.len());
        true
    }

    /// Whether more may be told that a peer has a hand in; who is turned away looks again later.
    pub fn has_room(&self) -> bool {
        self.events.lock().len() < EVENT_QUEUE
    }

    /// Hand up a copy of signalling, for which nobody waits; false if there is no room.
    pub fn offer_signal(&self, session: u64, sent: bool, signal: Signal) -> bool {
        let mut events = self.events.lock();
        if events.len() >= EVENT_QUEUE / 2 {
            return false;
        }
        events.push_back(Event::Signal { session, sent, signal });
        self.signal(events.len());
        true
    }

    /// Report a fact. False only if even the reserve is exhausted.
    pub fn push(&self, event: Event) -> bool {
        let mut events = self.events.lock();
        if events.len() >= EVENT_QUEUE + EVENT_RESERVE {
            return false;
        }
        events.push_back(event);
        self.signal(events.len());
        true
    }

    fn signal(&self, length: usize) {
        if length == 1 {
            self.ready.wake();
        }
    }

    /// Take up to `limit` events; the flag says that senders who were turned away may go on.
    pub fn take(&self, limit: usize) -> (Vec<Event>, bool) {
        let mut events = self.events.lock();
        let count = limit.min(events.len());
        let taken: Vec<Event> = events.drain(..count).collect();
        self.ready.clear();
        if !events.is_empty() {
            self.ready.wake();
        }
        let room = events.len() < EVENT_QUEUE / 2;
        drop(events);
        for event in &taken {
            match event {
                Event::Udp { socket, .. } => socket.release(),
                Event::Tcp(TcpEvent::Accepted { listener, .. }) => listener.release(),
                _ => {}
            }
        }
        (taken, room && self.refused.swap(false, Ordering::AcqRel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_turned_away_before_facts() {
        let queue = EventQueue::new().unwrap();
        for i in 0..EVENT_QUEUE as u64 {
            assert!(queue.offer_control(i, b"x"));
        }
        assert!(!queue.offer_control(0, b"x"));
        assert!(queue.push(Event::Alive { tunnel: 1 }));
        let (taken, resume) = queue.take(EVENT_QUEUE);
        assert_eq!((taken.len(), resume), (EVENT_QUEUE, true));
        assert!(queue.offer_control(0, b"x"));
        assert!(!queue.take(10).1);
    }
}
