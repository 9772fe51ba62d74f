//! Tests of the cryptographic part, against itself and against OpenSSL.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod datagram;
mod hostile;
mod interop_datagram;
mod interop_stream;
mod profile;
mod records;
mod replay;
mod stream;
mod support;
mod timing;
