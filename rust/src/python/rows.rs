//! Rows of tunnels whose peers there are not, for `benchmarks/rows.py`: what two hundred thousand tunnels put into the
//! tables, without as many sockets. Only with the feature `rows`, which no wheel has.
//!
//! A row goes the way of a real tunnel from where its handshake would be over: its events go up, Python answers them,
//! and what Python orders makes the session, the route, the steering, the reservation, the timers. A stream's row has no
//! connection in its worker, which is what needs the socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use ring::rand::{SecureRandom, SystemRandom};

use super::convert::{endpoint, value_error};
use super::plane::UserPlane;
use crate::boundary::{Command, Event};
use crate::tunnel::{Link, StreamLink, Tunnel};

/// A stream tunnel is up that nobody has connected; returns its id. `StreamReady` tells the control plane.
#[pyfunction]
pub fn row_stream(plane: &UserPlane, listener: u64, peer: (String, u16)) -> PyResult<u64> {
    let engine = plane.engine();
    let mut root = zeroize::Zeroizing::new([0u8; 32]);
    SystemRandom::new().fill(root.as_mut()).map_err(|_| value_error("no randomness"))?;
    let peer: SocketAddr = endpoint(&peer)?;
    let link = StreamLink::default();
    let _ = link.ddt_root.set(root);
    link.ready.store(true, Ordering::Release);
    let id = engine.new_id(0);
    let tunnel = Tunnel::new(id, Some(listener), peer, peer, Link::Stream(link), engine.now_us());
    engine.tunnels.insert(id, Arc::new(tunnel));
    engine.events.push(Event::StreamReady {
        tunnel: id,
        listener: Some(listener),
        peer,
        local: peer,
        peer_certificate: None,
        alpn: None,
        tls_version: Some("1.3"),
        resume_binding: [0; 32],
    });
    Ok(id)
}

/// The peer of a row "says" this. What waits for a row's stream is thrown away: nobody reads it.
#[pyfunction]
pub fn row_control(plane: &UserPlane, tunnel: u64, message: &[u8]) -> PyResult<bool> {
    let engine = plane.engine();
    let found = engine.tunnels.get(&tunnel).ok_or_else(|| value_error("no such row"))?;
    if let Some(link) = found.stream() {
        link.egress.lock().clear();
        link.dirty.store(false, Ordering::Release);
    }
    found.heard(engine.now_us());
    Ok(engine.events.offer_control(tunnel, message))
}

/// A reserved datagram tunnel is up that nobody has made. `DatagramReady` tells the control plane.
#[pyfunction]
pub fn row_datagram(plane: &UserPlane, listener: u64, peer: (String, u16), tsid: u64) -> PyResult<()> {
    let peer = endpoint(&peer)?;
    if let Some(inbox) = plane.engine().inbox(0) {
        inbox.send(Command::Row { listener, peer, tsid });
    }
    Ok(())
}
