//! Inner TCP as Python sees it: its events, and what stands behind the commands of `UserPlane`.

use std::net::SocketAddr;
use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::events::address;
use crate::boundary::{Command, TcpEvent};
use crate::engine::Engine;
use crate::limits::MAX_INNER_PACKET;
use crate::tables::Target;
use crate::tables::sockets::BindError;
use crate::tcp::shared::Handle;
use crate::tcp::stack::{Order, connectable};
use crate::tcp::{Scope, Tuple};

type Address = (String, u16);

/// The smallest MTU that every IPv4 host must take (RFC 791 section 3.2).
const SMALLEST_MTU: usize = 576;

/// A listener has a new connection.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TcpAccepted {
    listener: u64,
    connection: u64,
    local: Address,
    peer: Address,
}

/// A connection we asked for is established.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TcpConnected {
    connection: u64,
    local: Address,
    peer: Address,
}

/// Bytes, in order.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TcpReceived {
    connection: u64,
    data: Py<PyBytes>,
}

/// The peer sends no more.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TcpEof {
    connection: u64,
}

/// There is room again for what `tcp_send` did not take.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TcpWritable {
    connection: u64,
}

/// A connection is over.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TcpClosed {
    connection: u64,
    reason: &'static str,
}

/// The Python object of an event.
pub fn to_python(py: Python<'_>, event: TcpEvent) -> PyResult<Py<PyAny>> {
    match event {
        TcpEvent::Accepted { listener, connection, local, peer } => {
            let (local, peer) = (address(local), address(peer));
            TcpAccepted { listener: listener.id, connection, local, peer }.into_py_any(py)
        }
        TcpEvent::Connected { connection, local, peer } => {
            TcpConnected { connection, local: address(local), peer: address(peer) }.into_py_any(py)
        }
        TcpEvent::Received { connection, data } => {
            TcpReceived { connection, data: PyBytes::new(py, &data).unbind() }.into_py_any(py)
        }
        TcpEvent::Eof { connection } => TcpEof { connection }.into_py_any(py),
        TcpEvent::Writable { connection } => TcpWritable { connection }.into_py_any(py),
        TcpEvent::Closed { connection, reason } => TcpClosed { connection, reason }.into_py_any(py),
    }
}

/// What kept a command from being done.
pub enum TcpError {
    /// An argument is wrong.
    Value(String),
    /// The system's number for it.
    Code(i32),
}

fn check_mtu(mtu: usize) -> Result<(), TcpError> {
    if (SMALLEST_MTU..=MAX_INNER_PACKET).contains(&mtu) {
        return Ok(());
    }
    Err(TcpError::Value(format!("an MTU is {SMALLEST_MTU} to {MAX_INNER_PACKET} bytes, not {mtu}")))
}

/// Whether the host of this scope has the address.
fn check_local(engine: &Engine, scope: Scope, local: SocketAddr) -> Result<(), TcpError> {
    let owned = match scope {
        Some(id) => engine.sessions.get(&id).is_some_and(|session| session.owns(local.ip())),
        None => engine.routes.prefix(local.ip()) == Some(Target::Local),
    };
    if owned && crate::tcp::segment::is_host(local.ip()) {
        return Ok(());
    }
    Err(TcpError::Code(libc::EADDRNOTAVAIL))
}

/// Listen; the listener's id and port.
pub fn listen(
    engine: &Engine,
    scope: Scope,
    local: SocketAddr,
    backlog: usize,
    mtu: usize,
) -> Result<(u64, u16), TcpError> {
    check_mtu(mtu)?;
    check_local(engine, scope, local)?;
    let id = engine.new_id(0);
    match engine.tcp.listen(id, scope, local, backlog, mtu) {
        Ok(listener) => Ok((id, listener.address.port())),
        Err(BindError::InUse) => Err(TcpError::Code(libc::EADDRINUSE)),
        Err(BindError::TooMany) => Err(TcpError::Code(libc::EMFILE)),
    }
}

/// Begin to connect; the connection's id.
pub fn connect(
    engine: &Engine,
    scope: Scope,
    local: SocketAddr,
    remote: SocketAddr,
    mtu: usize,
) -> Result<u64, TcpError> {
    check_mtu(mtu)?;
    check_local(engine, scope, local)?;
    if !connectable(local, remote) {
        return Err(TcpError::Value(format!("{remote} cannot be reached from {local}")));
    }
    let worker = engine.tcp.owner(scope, remote.ip());
    let handle = Arc::new(Handle::new(engine.new_id(worker)));
    let id = handle.id;
    engine.tcp.handles.insert(id, Arc::clone(&handle));
    let tuple = Tuple { scope, local, remote };
    tell(engine, id, Order::Connect { handle, tuple, mtu });
    Ok(id)
}

/// Hand bytes over; how many were taken. None: there is no such connection.
pub fn send(engine: &Engine, connection: u64, data: &[u8]) -> Option<usize> {
    let handle = engine.tcp.handles.get(&connection)?;
    let taken = handle.send(data);
    if taken > 0 && handle.touch() {
        tell(engine, connection, Order::Look { connection });
    }
    Some(taken)
}

/// The program has done with so many received bytes.
pub fn consumed(engine: &Engine, connection: u64, bytes: usize) {
    if let Some(handle) = engine.tcp.handles.get(&connection)
        && handle.give_back(bytes)
        && handle.touch()
    {
        tell(engine, connection, Order::Look { connection });
    }
}

/// Wish something of a connection; one that is gone has nothing left to wish for.
pub fn wish(engine: &Engine, connection: u64, bits: u8) {
    if let Some(handle) = engine.tcp.handles.get(&connection)
        && handle.wish(bits)
    {
        tell(engine, connection, Order::Look { connection });
    }
}

fn tell(engine: &Engine, connection: u64, order: Order) {
    if let Some(inbox) = engine.inbox(crate::tunnel::worker_of(connection)) {
        inbox.send(Command::Tcp(order));
    }
}
