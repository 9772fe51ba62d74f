//! Inner TCP for addresses that no kernel has: a client's session in the SDK, a server's own inner addresses.
//!
//! | module | what it holds |
//! |---|---|
//! | [`shared`] | what every thread sees: listeners, handles of connections, packets on their way to a worker |
//! | [`stack`] | one worker's connections: whose packet is this, who may open one, what is due when |
//! | [`connection`] | one connection: `smoltcp`'s socket, and what Python has been told of it |
//! | [`segment`] | TCP headers, as much as has to be known before `smoltcp` sees a packet |
//!
//! Every peer's connections belong to one worker, chosen by hash, so no lock is held while TCP works, and its
//! limits need none either. Packets for another worker's connections go through its ring. Inner packets that are
//! not TCP never come here: they pay one comparison of a byte.
//!
//! Each connection has a `smoltcp` interface of its own, with one socket in it. One interface for all would
//! look through all its sockets for every packet; here a hash map finds the one. What arrives for nobody never
//! reaches `smoltcp`.

pub mod connection;
pub mod segment;
pub mod shared;
pub mod stack;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

/// Whose addresses these are: a client's session, or (None) the server itself.
pub type Scope = Option<u64>;

/// What makes a connection unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub scope: Scope,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}
