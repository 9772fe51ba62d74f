//! Relays with their sockets on the core side: bound before the relay stands, watched from then on.

use std::io;
use std::sync::Arc;

use crate::counters::Counter;
use crate::engine::Engine;
use crate::sys::{READABLE, is_out_of_descriptors};
use crate::tables::relays::{CoreSocket, End, Follow, Relay, RelayError};
use crate::worker::token;

/// Join two ports; `core` says which of them are on the core side. Returns the relay's id.
pub fn open(engine: &Engine, ends: [End; 2], core: [bool; 2], follow: Follow) -> io::Result<u64> {
    let mut sockets = [None, None];
    for ((socket, end), wanted) in sockets.iter_mut().zip(&ends).zip(core) {
        if wanted {
            let worker = engine.pick_worker();
            let bound = CoreSocket::bind(engine.new_id(worker), worker, end.local);
            if bound.as_ref().is_err_and(is_out_of_descriptors) {
                engine.own_counters.add(Counter::NoDescriptor);
            }
            *socket = Some(bound?);
        }
    }
    let id = engine.new_id(0);
    let relay = engine.relays.open(id, ends, sockets, follow).map_err(|error| {
        io::Error::from_raw_os_error(match error {
            RelayError::InUse => libc::EADDRINUSE,
            RelayError::TooMany => libc::EMFILE,
        })
    })?;
    let watched = relay.cores().try_for_each(|socket| {
        let inbox = engine.inbox(socket.worker).ok_or(io::ErrorKind::NotFound)?;
        inbox.epoll.add(socket.fd(), READABLE, token(token::RELAY, socket.id))
    });
    if let Err(error) = watched {
        close(engine, id);
        return Err(error);
    }
    Ok(id)
}

/// End a relay. Its sockets close when the last batch that holds it is flushed.
pub fn close(engine: &Engine, id: u64) -> Option<Arc<Relay>> {
    let relay = engine.relays.close(id)?;
    for socket in relay.cores() {
        if let Some(inbox) = engine.inbox(socket.worker) {
            inbox.epoll.remove(socket.fd());
        }
    }
    Some(relay)
}
