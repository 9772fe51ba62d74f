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

/// Lets a timer of OpenSSL's expire. It reads the system's clock and takes no other, so there is nothing to wait
/// for but time itself.
fn let_timer_expire(left: std::time::Duration) {
    let until = std::time::Instant::now() + left;
    while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
        std::thread::park_timeout(left);
    }
}
