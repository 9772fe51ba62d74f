//! Events as Python objects. They are made when Python fetches them, in Python's own thread.

use std::net::SocketAddr;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::tcp::{TcpAccepted, TcpClosed, TcpConnected, TcpEof, TcpReceived, TcpWritable};
use crate::boundary::Event;
use crate::packet::UDP;
use crate::sys::canonical;

type Address = (String, u16);

pub fn address(address: SocketAddr) -> Address {
    let address = canonical(address);
    (address.ip().to_string(), address.port())
}

/// An outer stream connection is up and may carry control messages.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct StreamReady {
    tunnel: u64,
    listener: Option<u64>,
    peer: Address,
    local: Address,
    peer_certificate: Option<Py<PyBytes>>,
    alpn: Option<String>,
    tls_version: Option<&'static str>,
    resume_binding: Py<PyBytes>,
}

/// A datagram tunnel is up.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct DatagramReady {
    tunnel: u64,
    listener: Option<u64>,
    peer: Address,
    local: Address,
    tsid: u64,
    session: u64,
}

/// A whole control-message frame.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct ControlMessage {
    tunnel: u64,
    data: Py<PyBytes>,
}

/// An outer connection has ended.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TunnelClosed {
    tunnel: u64,
    reason: &'static str,
    detail: String,
}

/// Nothing was received for the time given to `set_idle`.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct TunnelIdle {
    tunnel: u64,
    silent_ms: u64,
}

/// Probes are not answered.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct PathSilent {
    tunnel: u64,
    silent_ms: u64,
}

/// A tunnel reported silent has been heard again.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct PathAlive {
    tunnel: u64,
}

/// A media flow was found on a client's TUN device.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct FlowSeen {
    session: u64,
    protocol: u8,
    port: u16,
    ipv6: bool,
}

/// A media flow that was found has been silent for a while.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct FlowQuiet {
    session: u64,
    protocol: u8,
    port: u16,
    ipv6: bool,
}

/// SIP about a call that passed a client's TUN device.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct SignalSeen {
    session: u64,
    sent: bool,
    protocol: u8,
    source: Address,
    destination: Address,
    sequence: u32,
    data: Py<PyBytes>,
}

/// An inner UDP datagram for a local socket.
#[pyclass(frozen, get_all, module = "opentsm.userplane._core")]
pub struct UdpReceived {
    socket: u64,
    data: Py<PyBytes>,
    source: Address,
    path: i8,
}

macro_rules! match_args {
    ($($class:ident: $args:expr),+ $(,)?) => {$(
        #[pymethods]
        impl $class {
            #[classattr]
            #[pyo3(name = "__match_args__")]
            fn match_args() -> Vec<&'static str> { $args.to_vec() }
        }
    )+};
}

impl StreamReady {
    const ARGS: [&str; 2] = ["tunnel", "listener"];
}

match_args! {
    StreamReady: StreamReady::ARGS,
    DatagramReady: ["tunnel", "tsid"],
    ControlMessage: ["tunnel", "data"],
    TunnelClosed: ["tunnel", "reason"],
    TunnelIdle: ["tunnel", "silent_ms"],
    PathSilent: ["tunnel", "silent_ms"],
    PathAlive: ["tunnel"],
    FlowSeen: ["session", "port"],
    FlowQuiet: ["session", "port"],
    SignalSeen: ["session", "data"],
    UdpReceived: ["socket", "data", "source"],
    TcpAccepted: ["listener", "connection"],
    TcpConnected: ["connection"],
    TcpReceived: ["connection", "data"],
    TcpEof: ["connection"],
    TcpWritable: ["connection"],
    TcpClosed: ["connection", "reason"],
}

/// The Python object of an event.
pub fn to_python(py: Python<'_>, event: Event) -> PyResult<Py<PyAny>> {
    let bytes = |data: &[u8]| PyBytes::new(py, data).unbind();
    match event {
        Event::StreamReady {
            tunnel,
            listener,
            peer,
            local,
            peer_certificate,
            alpn,
            tls_version,
            resume_binding,
        } => StreamReady {
            tunnel,
            listener,
            peer: address(peer),
            local: address(local),
            peer_certificate: peer_certificate.map(|der| bytes(&der)),
            alpn,
            tls_version,
            resume_binding: bytes(&resume_binding),
        }
        .into_py_any(py),
        Event::DatagramReady { tunnel, listener, peer, local, tsid, session } => {
            DatagramReady { tunnel, listener, peer: address(peer), local: address(local), tsid, session }
                .into_py_any(py)
        }
        Event::Control { tunnel, data } => ControlMessage { tunnel, data: bytes(&data) }.into_py_any(py),
        Event::Closed { tunnel, reason, detail } => TunnelClosed { tunnel, reason, detail }.into_py_any(py),
        Event::Idle { tunnel, silent_ms } => TunnelIdle { tunnel, silent_ms }.into_py_any(py),
        Event::Silent { tunnel, silent_ms } => PathSilent { tunnel, silent_ms }.into_py_any(py),
        Event::Alive { tunnel } => PathAlive { tunnel }.into_py_any(py),
        Event::Flow { session, v6, port, quiet: false } => {
            FlowSeen { session, protocol: UDP, port, ipv6: v6 }.into_py_any(py)
        }
        Event::Flow { session, v6, port, quiet: true } => {
            FlowQuiet { session, protocol: UDP, port, ipv6: v6 }.into_py_any(py)
        }
        Event::Signal { session, sent, signal } => SignalSeen {
            session,
            sent,
            protocol: signal.protocol,
            source: address(signal.source),
            destination: address(signal.destination),
            sequence: signal.sequence,
            data: bytes(&signal.data),
        }
        .into_py_any(py),
        Event::Udp { socket, data, source, path } => {
            UdpReceived { socket: socket.id, data: bytes(&data), source: address(source), path }
                .into_py_any(py)
        }
        Event::Tcp(event) => super::tcp::to_python(py, event),
    }
}
