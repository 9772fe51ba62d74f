//! Inner UDP sockets that live in this process: the SDK's on a client, the SBC's on a server.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::RandomState;
use parking_lot::RwLock;

use crate::limits::{EPHEMERAL_PORT, MAX_LOCAL_SOCKETS};

/// One bound socket.
#[derive(Debug)]
pub struct LocalSocket {
    pub id: u64,
    /// The client session it sends through; None: the server's routing table.
    pub session: Option<u64>,
    pub address: IpAddr,
    pub port: u16,
    /// Datagrams that may wait for Python.
    pub capacity: usize,
    pub waiting: AtomicUsize,
}

impl LocalSocket {
    /// Take a place in the queue; false if it is full.
    pub fn reserve(&self) -> bool {
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        if before >= self.capacity {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        before < self.capacity
    }

    /// Give a place back once Python has the datagram.
    pub fn release(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

type Key = (Option<u64>, IpAddr, u16);

#[derive(Debug, Default)]
struct Maps {
    bound: HashMap<Key, Arc<LocalSocket>, RandomState>,
    by_id: HashMap<u64, Arc<LocalSocket>, RandomState>,
    next_port: u16,
    /// Sockets that belong to a session. A server has none, and thousands of its own: the end of a session must
    /// not walk them.
    scoped: usize,
}

/// Why a bind failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindError {
    InUse,
    TooMany,
}

/// All inner sockets of an engine.
#[derive(Debug, Default)]
pub struct LocalSockets {
    maps: RwLock<Maps>,
}

impl LocalSockets {
    /// Bind; port 0 picks a free dynamic port.
    pub fn bind(
        &self,
        id: u64,
        session: Option<u64>,
        address: IpAddr,
        port: u16,
        capacity: usize,
    ) -> Result<Arc<LocalSocket>, BindError> {
        let mut maps = self.maps.write();
        if maps.by_id.len() >= MAX_LOCAL_SOCKETS {
            return Err(BindError::TooMany);
        }
        let port = if port == 0 { maps.free_port(session, address).ok_or(BindError::InUse)? } else { port };
        let key = (session, address, port);
        if maps.bound.contains_key(&key) {
            return Err(BindError::InUse);
        }
        let socket =
            Arc::new(LocalSocket { id, session, address, port, capacity, waiting: AtomicUsize::new(0) });
        maps.bound.insert(key, Arc::clone(&socket));
        maps.by_id.insert(id, Arc::clone(&socket));
        maps.scoped += usize::from(session.is_some());
        Ok(socket)
    }

    /// The socket a packet is for.
    #[inline]
    pub fn find(&self, session: Option<u64>, address: IpAddr, port: u16) -> Option<Arc<LocalSocket>> {
        self.maps.read().bound.get(&(session, address, port)).cloned()
    }

    pub fn get(&self, id: u64) -> Option<Arc<LocalSocket>> {
        self.maps.read().by_id.get(&id).cloned()
    }

    pub fn close(&self, id: u64) -> bool {
        let mut maps = self.maps.write();
        let Some(socket) = maps.by_id.remove(&id) else {
            return false;
        };
        maps.bound.remove(&(socket.session, socket.address, socket.port));
        maps.scoped -= usize::from(socket.session.is_some());
        true
    }

    /// Close all sockets of a session.
    pub fn close_session(&self, session: u64) {
        let mut maps = self.maps.write();
        if maps.scoped == 0 {
            return;
        }
        maps.bound.retain(|key, _| key.0 != Some(session));
        maps.by_id.retain(|_, socket| socket.session != Some(session));
        maps.scoped = maps.by_id.values().filter(|socket| socket.session.is_some()).count();
    }
}

impl Maps {
    fn free_port(&mut self, session: Option<u64>, address: IpAddr) -> Option<u16> {
        let span = u16::MAX - EPHEMERAL_PORT;
        for _ in 0..=span {
            self.next_port = if self.next_port >= span { 0 } else { self.next_port + 1 };
            let port = EPHEMERAL_PORT + self.next_port;
            if !self.bound.contains_key(&(session, address, port)) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_unique_per_session_and_address() {
        let sockets = LocalSockets::default();
        let a: IpAddr = "10.0.0.1".parse().unwrap();
        let one = sockets.bind(1, None, a, 5060, 4).unwrap();
        assert_eq!(sockets.bind(2, None, a, 5060, 4).unwrap_err(), BindError::InUse);
        assert!(sockets.bind(3, Some(9), a, 5060, 4).is_ok());
        let free = sockets.bind(4, None, a, 0, 4).unwrap();
        assert!(free.port >= EPHEMERAL_PORT);
        assert_eq!(sockets.find(None, a, 5060).map(|s| s.id), Some(one.id));
        sockets.close_session(9);
        assert!(sockets.get(3).is_none() && sockets.find(Some(9), a, 5060).is_none());
        assert!(sockets.close(1) && !sockets.close(1));
    }

    #[test]
    fn a_socket_queue_is_bounded() {
        let sockets = LocalSockets::default();
        let socket = sockets.bind(1, None, "::1".parse().unwrap(), 1, 2).unwrap();
        assert!(socket.reserve() && socket.reserve() && !socket.reserve());
        socket.release();
        assert!(socket.reserve());
    }
}
