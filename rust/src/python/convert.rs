//! Arguments of Python's calls checked and made into ours, and our errors made into Python's.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use pyo3::exceptions::{PyKeyError, PyOSError, PyValueError};
use pyo3::prelude::*;

use super::tcp::TcpError;
use crate::tables::relays::EARLY;
use crate::tables::routes::Prefix;

/// An inner endpoint as Python has it.
pub type Far = Option<(String, u16)>;

/// An `OSError` with its number, so that Python makes the right subclass of it.
pub fn os_error(error: &std::io::Error) -> PyErr {
    PyOSError::new_err((error.raw_os_error().unwrap_or(libc::EIO), error.to_string()))
}

pub fn os_code(code: i32) -> PyErr {
    os_error(&std::io::Error::from_raw_os_error(code))
}

pub fn tcp_error(error: TcpError) -> PyErr {
    match error {
        TcpError::Value(text) => value_error(text),
        TcpError::Code(code) => os_code(code),
    }
}

pub fn value_error(message: impl Into<String>) -> PyErr {
    PyValueError::new_err(message.into())
}

pub fn unknown(what: &str, id: u64) -> PyErr {
    PyKeyError::new_err(format!("no {what} {id}"))
}

pub fn ip(text: &str) -> PyResult<IpAddr> {
    text.parse().map_err(|_| value_error(format!("{text:?} is not an IP address")))
}

pub fn prefix(text: &str) -> PyResult<Prefix> {
    Prefix::parse(text).ok_or_else(|| value_error(format!("{text:?} is not an IP address or prefix")))
}

pub fn far_end(far: &Far) -> PyResult<Option<(IpAddr, u16)>> {
    far.as_ref().map(|(address, port)| Ok((ip(address)?, *port))).transpose()
}

pub fn endpoint(pair: &(String, u16)) -> PyResult<SocketAddr> {
    Ok(SocketAddr::new(ip(&pair.0)?, pair.1))
}

pub fn far_socket(far: &Far) -> PyResult<Option<SocketAddr>> {
    far.as_ref().map(endpoint).transpose()
}

/// The first few of the addresses; more phones than that wait for their answer to be heard.
pub fn early(addresses: &[String]) -> PyResult<[Option<IpAddr>; EARLY]> {
    let mut out = [None; EARLY];
    for (place, text) in out.iter_mut().zip(addresses) {
        *place = Some(ip(text)?);
    }
    Ok(out)
}

pub fn adopt_all(fds: &[i32]) -> PyResult<Vec<OwnedFd>> {
    if fds.is_empty() {
        return Err(value_error("at least one file descriptor is needed"));
    }
    fds.iter().map(|fd| crate::sys::adopt(*fd)).collect::<std::io::Result<_>>().map_err(|e| os_error(&e))
}

/// A reason for closing, as one of those we know.
pub fn interned(reason: &str) -> &'static str {
    const REASONS: &[&str] = &[
        "local-close",
        "replaced",
        "released",
        "shutdown",
        "timeout",
        "idle",
        "unauthorized",
        "protocol-error",
        "rate-limited",
        "no-address",
        "path-lost",
        "session-closed",
    ];
    REASONS.iter().find(|known| **known == reason).copied().unwrap_or("local-close")
}
