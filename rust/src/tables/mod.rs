//! The flat tables that Python's decisions become. The packet path only reads them (and counts in them).

pub mod detect;
pub mod doubt;
pub mod flows;
pub mod gate;
pub mod nat;
pub mod relays;
pub mod reservations;
pub mod routes;
pub mod rtcp;
pub mod session;
pub mod sharded;
pub mod signals;
pub mod sockets;
pub mod strands;

pub use flows::{Direction, FlowKey, FlowTable, PathMode};
pub use routes::{Routes, Target};
pub use session::{Role, Session, Sink};
pub use sharded::Sharded;
