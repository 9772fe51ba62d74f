//! The userspace core side: inner UDP leaves a server without privileges by sockets of its own, one per inner
//! client port (endpoint-independent mapping, RFC 4787 REQ-1), and answers come back under the true source.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use parking_lot::Mutex;

use crate::counters::Counter;
use crate::engine::Engine;
use crate::forward::{Forwarder, Outcome};
use crate::limits::{CORE_IDLE_MS, DATAGRAM_SLOT, MAX_CORE_SOCKETS};
use crate::packet::{Meta, UdpHead, write_udp};
use crate::sys::{READABLE, descriptor_limit, is_out_of_descriptors, is_reserved_descriptor};
use crate::tables::{Session, Target};
use crate::worker::token;

/// Datagrams taken from one socket before others get their turn.
const READ_BUDGET: usize = 64;

/// One client port on the core side.
#[derive(Debug)]
pub struct CoreSocket {
    id: u64,
    socket: UdpSocket,
    session: u64,
    client: (IpAddr, u16),
    last_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Maps {
    by_client: HashMap<(IpAddr, u16), Arc<CoreSocket>, RandomState>,
    by_id: HashMap<u64, Arc<CoreSocket>, RandomState>,
    /// Ids by session, so that the end of one does not walk the sockets of all.
    by_session: HashMap<u64, Vec<u64>, RandomState>,
}

/// All core sockets of an engine; the first worker reads them.
#[derive(Debug, Default)]
pub struct CoreSockets {
    maps: Mutex<Maps>,
}

impl CoreSockets {
    /// Send a client's inner UDP packet to the world behind the server.
    pub fn send(&self, engine: &Engine, session: &Session, data: &[u8], meta: &Meta, now_us: u64) -> Outcome {
        let payload = meta.udp_payload(data).ok_or(Counter::CoreUnsupported)?;
        let socket = self.socket_for(engine, session, meta)?;
        socket.last_us.store(now_us, Ordering::Relaxed);
        let to = SocketAddr::new(meta.destination, meta.destination_port);
        socket.socket.send_to(payload, to).map(drop).map_err(|_| Counter::SendFailed)
    }

    fn socket_for(
        &self,
        engine: &Engine,
        session: &Session,
        meta: &Meta,
    ) -> Result<Arc<CoreSocket>, Counter> {
        let client = (meta.source, meta.source_port);
        let mut maps = self.maps.lock();
        if let Some(socket) = maps.by_client.get(&client) {
            return Ok(Arc::clone(socket));
        }
        if maps.by_id.len() >= MAX_CORE_SOCKETS {
            return Err(Counter::CoreSocketsFull);
        }
        let any = if meta.source.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let socket = UdpSocket::bind((any, 0)).map_err(|error| {
            if is_out_of_descriptors(&error) { Counter::NoDescriptor } else { Counter::CoreSocketsFull }
        })?;
        if is_reserved_descriptor(socket.as_raw_fd(), descriptor_limit()) {
            return Err(Counter::NoDescriptor);
        }
        socket.set_nonblocking(true).map_err(|_| Counter::CoreSocketsFull)?;
        let id = engine.new_id(0);
        let reader = engine.inbox(0).ok_or(Counter::CoreSocketsFull)?;
        reader
            .epoll
            .add(socket.as_raw_fd(), READABLE, token(token::CORE, id))
            .map_err(|_| Counter::CoreSocketsFull)?;
        let socket =
            Arc::new(CoreSocket { id, socket, session: session.id, client, last_us: AtomicU64::new(0) });
        maps.by_client.insert(client, Arc::clone(&socket));
        maps.by_id.insert(id, Arc::clone(&socket));
        maps.by_session.entry(session.id).or_default().push(id);
        Ok(socket)
    }

    /// Answers have arrived on a core socket.
    pub fn receive(&self, id: u64, forwarder: &mut Forwarder) {
        let Some(socket) = self.maps.lock().by_id.get(&id).cloned() else {
            return;
        };
        let Some(session) = forwarder.engine.sessions.get(&socket.session) else {
            return;
        };
        let mut buffer = [0u8; DATAGRAM_SLOT];
        let mut packet = Vec::with_capacity(DATAGRAM_SLOT);
        for _ in 0..READ_BUDGET {
            let Ok((length, from)) = socket.socket.recv_from(&mut buffer) else {
                break;
            };
            let Some(payload) = buffer.get(..length) else {
                break;
            };
            socket.last_us.store(forwarder.now_us, Ordering::Relaxed);
            if let Err(drop) = deliver(forwarder, &session, &socket, from, payload, &mut packet) {
                forwarder.counters.add(drop);
            }
        }
    }

    /// Close sockets that nobody has used for a while.
    pub fn sweep(&self, engine: &Engine, now_us: u64) {
        let old =
            |s: &CoreSocket| now_us.saturating_sub(s.last_us.load(Ordering::Relaxed)) > CORE_IDLE_MS * 1_000;
        let mut maps = self.maps.lock();
        let ids: Vec<u64> = maps.by_id.values().filter(|s| old(s)).map(|s| s.id).collect();
        for id in ids {
            let Some(socket) = maps.close(engine, id) else { continue };
            if let Some(rest) = maps.by_session.get_mut(&socket.session) {
                rest.retain(|other| *other != id);
                if rest.is_empty() {
                    maps.by_session.remove(&socket.session);
                }
            }
        }
    }

    /// Close the sockets of a session.
    pub fn close_session(&self, engine: &Engine, session: u64) {
        let mut maps = self.maps.lock();
        for id in maps.by_session.remove(&session).unwrap_or_default() {
            maps.close(engine, id);
        }
    }
}

impl Maps {
    fn close(&mut self, engine: &Engine, id: u64) -> Option<Arc<CoreSocket>> {
        let socket = self.by_id.remove(&id)?;
        self.by_client.remove(&socket.client);
        if let Some(reader) = engine.inbox(0) {
            reader.epoll.remove(socket.socket.as_raw_fd());
        }
        Some(socket)
    }
}

fn deliver(
    forwarder: &mut Forwarder,
    session: &Arc<Session>,
    socket: &CoreSocket,
    from: SocketAddr,
    payload: &[u8],
    packet: &mut Vec<u8>,
) -> Outcome {
    // Only what policy lets clients reach may answer them.
    if forwarder.engine.routes.prefix(from.ip()) != Some(Target::Core) {
        return Err(Counter::CoreUnsolicited);
    }
    packet.clear();
    let head = UdpHead {
        source: from.ip(),
        source_port: from.port(),
        destination: socket.client.0,
        destination_port: socket.client.1,
        tos: 0,
    };
    if !write_udp(&head, payload, packet) {
        return Err(Counter::InnerTooBig);
    }
    let meta = Meta::parse(packet).map_err(|_| Counter::InnerMalformed)?;
    forwarder.deliver_session(session, packet, &meta)
}
