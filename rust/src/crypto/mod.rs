//! The cryptographic part of the user plane: handshakes and record protection, in memory only.
//!
//! Nothing here owns a socket, a thread or a queue. Bytes come in as slices and go out into buffers
//! of the caller, so that the same objects serve the server, the client, tests and fuzzers.
//!
//! # Map
//! | module | what it holds |
//! |---|---|
//! | [`tls`] | [`ServerProfile`], [`ClientProfile`], [`TlsHandshake`] -> [`Finished`] |
//! | [`tls_record`] | [`StreamSealer`], [`StreamOpener`]: TLS 1.3 / 1.2 records after the handshake |
//! | [`dtls`] | [`DtlsListener`] (stateless cookies), [`DtlsHandshake`] -> [`DtlsKeys`]; [`psk_for`] |
//! | [`dtls_record`] | [`DatagramSealer`] (shared by threads), [`DatagramOpener`], [`records`] |
//! | [`replay`] | [`ReplayWindow`]: duplicates, losses and reordering by sequence number |
//! | [`aead`] | [`Aead`]: one key, in place, no allocation |
//! | `openssl_ffi` | the only `unsafe`: OpenSSL calls that the `openssl` crate lacks |
//!
//! # Why the record layer is ours
//! An OpenSSL object for each tunnel costs about 45 KiB and, at 1,000 tunnels, five times the
//! processor time for each packet (cache misses). So OpenSSL and rustls do what they are good at, the
//! handshake, and hand over the keys; from then on a tunnel is one AEAD key and one number in each
//! direction. It also lets several threads seal records of one datagram tunnel without a lock.
//!
//! # A stream tunnel
//! ```text
//! let mut handshake = TlsHandshake::server(&profile)?;
//! loop { let step = handshake.feed(input, &mut out)?;  /* send out; drop step.consumed bytes */
//!        if step.done { break } }
//! let Finished { sealer, opener, ddt_root, .. } = handshake.finish()?;
//! // send:    plaintext at buf[sealer.headroom()..]; sealer.seal_record(&mut buf, len)? -> bytes to send
//! // receive: opener.record_length(input)? -> Some(n); opener.open_record(&mut input[..n])? -> Record
//! ```
//! Bytes that follow `step.consumed` when `done` is set are records for the opener.
//!
//! # A datagram tunnel
//! ```text
//! match listener.feed(&peer, datagram, &mut out) { Reply => send out, Accepted(handshake) => keep it, .. }
//! handshake.feed(datagram, &mut out)?; handshake.next_timeout(); handshake.on_timeout(&mut out)?;
//! let DtlsKeys { tx, rx } = handshake.finish()?;
//! // send:    plaintext at buf[tx.headroom()..]; tx.seal_in_place(&mut buf, len)? -> bytes to send
//! // receive: for record in records(datagram) { match content_type(record) {
//! //              APPLICATION | ALERT => rx.open_in_place(record)?, _ => handshake.feed(datagram, ..) } }
//! ```

pub mod aead;
pub mod dtls;
mod dtls_context;
mod dtls_keys;
mod dtls_listen;
pub mod dtls_record;
mod openssl_ffi;
pub mod replay;
pub mod tls;
pub mod tls_errors;
mod tls_post_handshake;
pub mod tls_profile;
pub mod tls_record;
mod tls_secret;

#[cfg(test)]
mod tests;

pub use aead::{Aead, Algorithm, NonceScheme};
pub use dtls::{
    Datagrams, DtlsError, DtlsErrorKind, DtlsHandshake, DtlsKeys, DtlsListener, ListenOutcome, Progress,
    PskLookup, psk_for,
};
#[cfg(feature = "rows")]
pub use dtls_keys::generated_keys;
pub use dtls_record::{
    DatagramKey, DatagramOpener, DatagramSealError, DatagramSealer, OpenError, Opened, content_type,
    is_client_hello, records,
};
pub use replay::{Arrival, MediaWindow, ReplayCounters, ReplayWindow};
pub use tls::{Finished, Step, TlsHandshake};
pub use tls_errors::{ProfileError, TlsError, TlsErrorKind};
pub use tls_profile::{ClientAuth, ClientProfile, ClientSettings, ServerProfile, ServerSettings, Trust};
pub use tls_record::{Record, RecordError, SealError, StreamOpener, StreamSealer, TlsVersion, record_length};
