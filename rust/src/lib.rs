//! The user plane of OpenTSM: everything that touches every packet.
//!
//! # Reading order
//! | module | what it holds |
//! |---|---|
//! | [`boundary`] | events up, commands down: all that Python and this crate say to each other |
//! | [`frame`], [`packet`] | what the bytes in a tunnel are |
//! | [`tables`] | sessions, flows, routes, reservations, local sockets, policies |
//! | [`forward`], [`spread`], [`ahead`] | the way of an inner packet; media by several ways at once; whose memory is asked for |
//! | [`runs`] | packets for a TUN device, several per write |
//! | [`tcp`] | inner TCP without a kernel |
//! | [`coding`], [`coded`] | redundancy, FEC and compressed headers; how they get into that way |
//! | [`tunnel`], [`egress`] | one outer connection; what waits to be written to a stream |
//! | [`worker`] | the threads: sockets, handshakes, records, timers |
//! | [`crypto`] | TLS and DTLS handshakes and record protection, in memory |
//! | [`engine`] | the shared state and the life of the threads |
//! | [`sys`] | Linux |
//!
//! Threads of the user plane never take Python's lock: `python` is the only module that knows Python.

pub mod ahead;
pub mod boundary;
pub mod capture;
pub mod coded;
pub mod coding;
pub mod core;
pub mod counters;
pub mod crypto;
pub mod egress;
pub mod engine;
pub mod forward;
pub mod frame;
#[doc(hidden)]
#[allow(clippy::indexing_slicing, clippy::panic, reason = "a broken promise must stop the fuzzer")]
pub mod fuzzing;
pub mod limits;
pub mod packet;
#[cfg(feature = "python")]
mod python;
pub mod runs;
pub mod spread;
pub mod sys;
pub mod tables;
pub mod tcp;
pub mod tunnel;
pub mod worker;
