//! DTLS 1.2 handshakes with pre-shared keys by OpenSSL over plain slices; then the keys are ours.
//!
//! The key comes from the TLS session of the client's stream tunnel ([`psk_for`]), the identity is
//! the tunnel's TSID. Suites: PSK with AES-128-GCM or ChaCha20-Poly1305.
//!
//! # No nonce twice
//! OpenSSL and we use the same key one after the other: OpenSSL seals the Finished message, once, and
//! again each time the peer has to be answered; all else is ours.
//!
//! * ChaCha20-Poly1305: the nonce is the record's number. OpenSSL counts from 0 and sends a dozen
//!   records at most, we start at 2^20 ([`super::dtls_record::FIRST_SEQUENCE`]).
//! * AES-GCM: the nonce's last eight bytes stand in the record. Ours are epoch and sequence number,
//!   so from 2^48 + 2^20 on, for 2^30 records. OpenSSL's start at a random 64-bit value and grow by one
//!   with each record. We look at that value in our own Finished as it leaves OpenSSL; if it is within
//!   our range, or less than 2^20 before it, the handshake fails
//!   ([`DtlsErrorKind::NonceCollision`]) before that key has sealed anything else. It happens once in
//!   2^34 handshakes; the next try gets another value.
//!
//! # Answering after the end
//! The side that finishes last (the server) must send its last flight again when the client asks
//! for it by sending its own again. Keep the handshake for a while after
//! [`DtlsHandshake::finish`] and feed it what is not application data.

use std::io::{self, Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use openssl::ssl::{ErrorCode, SslRef, SslStream};
use zeroize::Zeroizing;

use super::aead::Algorithm;
use super::dtls_context::{DEFAULT_RETRANSMISSION, Role, clear_errors, new_ssl, private};
use super::dtls_keys::{SessionSecrets, record_keys};
use super::dtls_record::{
    DatagramOpener, DatagramSealer, explicit_nonces, handshake_prefix, nonces_are_apart,
};
use super::openssl_ffi;
use super::tls_record::Side;

pub use super::dtls_context::PskLookup;
pub use super::dtls_keys::psk_for;
pub use super::dtls_listen::{DtlsListener, ListenOutcome};

/// The kind of failure; [`DtlsErrorKind::name`] is stable and meant for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DtlsErrorKind {
    /// The client's identity is not that of a reserved tunnel.
    UnknownIdentity,
    /// The peer sent a fatal alert.
    AlertReceived,
    /// The peer broke the protocol, or does not offer what we need.
    Protocol,
    /// OpenSSL's random nonces lie in our range: try again.
    NonceCollision,
    /// The peer did not answer a dozen retransmissions.
    TimedOut,
    /// Called too early, or a failure of OpenSSL's own.
    Internal,
}

impl DtlsErrorKind {
    /// A stable name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownIdentity => "dtls_unknown_identity",
            Self::AlertReceived => "dtls_alert_received",
            Self::Protocol => "dtls_protocol",
            Self::NonceCollision => "dtls_nonce_collision",
            Self::TimedOut => "dtls_timed_out",
            Self::Internal => "dtls_internal",
        }
    }
}

/// A handshake that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DtlsError {
    /// What kind of failure.
    pub kind: DtlsErrorKind,
    /// What happened, for people.
    pub detail: String,
}

impl DtlsError {
    pub(super) fn new(kind: DtlsErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl std::fmt::Display for DtlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.detail)
    }
}

impl std::error::Error for DtlsError {}

/// Datagrams to be sent, one behind the other in one buffer. Reuse it: `clear` keeps the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Datagrams {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Datagrams {
    /// None yet.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), ends: Vec::new() }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many datagrams there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The datagrams in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(self.ends.iter().copied()).filter_map(|(start, end)| self.bytes.get(start..end))
    }

    /// Appends one datagram.
    pub fn push(&mut self, datagram: &[u8]) {
        self.bytes.extend_from_slice(datagram);
        self.ends.push(self.bytes.len());
    }
}

/// How far a handshake is after a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Waiting for the peer.
    InProgress,
    /// Over: take the keys with [`DtlsHandshake::finish`].
    Done,
    /// Was over before; the peer asked for our last flight, which is in `out`.
    Retransmitted,
    /// Nothing for a handshake (application data, or no DTLS): it was left alone.
    NotHandshake,
}

/// The keys of a datagram tunnel.
#[derive(Debug)]
pub struct DtlsKeys {
    /// Seals what we send.
    pub tx: DatagramSealer,
    /// Opens what we receive.
    pub rx: DatagramOpener,
    /// The algorithm of both.
    pub algorithm: Algorithm,
}

/// The two ends of OpenSSL's "socket": one datagram in, any number out.
#[derive(Debug, Default)]
pub(super) struct Wire {
    input: Vec<u8>,
    waiting: bool,
    output: Datagrams,
}

impl Wire {
    pub(super) fn put(&mut self, datagram: &[u8]) {
        self.input.clear();
        self.input.extend_from_slice(datagram);
        self.waiting = true;
    }

    #[cfg(test)]
    pub(super) fn take_output(&mut self) -> Datagrams {
        std::mem::take(&mut self.output)
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !std::mem::take(&mut self.waiting) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.as_slice().read(buf)
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.push(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Datagrams that one handshake takes, answers to retransmissions included. With a dozen of those,
/// of up to three datagrams, an honest peer needs fewer. OpenSSL keeps what comes too early (18 KB
/// each), so this also bounds memory, to about 1 MiB at worst.
pub const MAX_DATAGRAMS: u32 = 64;

/// A handshake in progress, or one kept to answer retransmissions. Takes some 45 KiB: drop it when
/// it is no longer needed.
#[derive(Debug)]
pub struct DtlsHandshake {
    stream: SslStream<Wire>,
    side: Side,
    done: bool,
    failed: bool,
    keys_taken: bool,
    fed: u32,
}

impl DtlsHandshake {
    /// A handshake as the client of the reserved tunnel `tsid`. `first_timeout` is the wait before
    /// the first retransmission (a little over the path's round trip; `None`: one second). Call
    /// [`Self::start`] for the first datagram.
    ///
    /// # Errors
    /// [`DtlsErrorKind::Internal`].
    pub fn client(tsid: u64, psk: &[u8; 32], first_timeout: Option<Duration>) -> Result<Self, DtlsError> {
        let role = Role::Client { tsid, psk: Zeroizing::new(*psk) };
        Self::new(role, Side::Client, first_timeout)
    }

    pub(super) fn new(role: Role, side: Side, first_timeout: Option<Duration>) -> Result<Self, DtlsError> {
        clear_errors();
        let ssl = new_ssl(role, first_timeout.unwrap_or(DEFAULT_RETRANSMISSION))?;
        let stream = SslStream::new(ssl, Wire::default())
            .map_err(|error| DtlsError::new(DtlsErrorKind::Internal, error.to_string()))?;
        Ok(Self { stream, side, done: false, failed: false, keys_taken: false, fed: 0 })
    }

    /// Lets OpenSSL's listener take the ClientHello whose cookie was checked. True if it did.
    pub(super) fn listen(&mut self, datagram: &[u8]) -> bool {
        self.stream.get_mut().put(datagram);
        clear_errors();
        let accepted = openssl_ffi::listen(&mut self.stream) > 0;
        clear_errors();
        accepted
    }

    /// Begins: puts the first flight into `out`.
    ///
    /// # Errors
    /// [`DtlsError`].
    pub fn start(&mut self, out: &mut Datagrams) -> Result<Progress, DtlsError> {
        self.advance(out)
    }

    /// Takes one datagram of the peer and appends what is to be sent to `out`.
    ///
    /// # Errors
    /// [`DtlsError`]; the handshake is over. `out` may hold an alert for the peer.
    pub fn feed(&mut self, datagram: &[u8], out: &mut Datagrams) -> Result<Progress, DtlsError> {
        let part = handshake_prefix(datagram, !self.done);
        if part.is_empty() {
            return Ok(Progress::NotHandshake);
        }
        self.fed = self.fed.saturating_add(1);
        match (self.done, self.fed > MAX_DATAGRAMS) {
            (true, true) => return Ok(Progress::NotHandshake),
            (false, true) => {
                self.failed = true;
                let detail = "far more datagrams than a handshake takes";
                return Err(DtlsError::new(DtlsErrorKind::Protocol, detail));
            }
            _ => {}
        }
        self.stream.get_mut().put(part);
        if self.done { Ok(self.answer_late(out)) } else { self.advance(out) }
    }

    /// Time until [`Self::on_timeout`] wants to be called; `None` when nothing is outstanding.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.failed || self.done {
            return None;
        }
        openssl_ffi::next_timeout(self.stream.ssl())
    }

    /// Sends the last flight again if its time has come. Too early a call does nothing.
    ///
    /// # Errors
    /// [`DtlsErrorKind::TimedOut`] after a dozen tries.
    pub fn on_timeout(&mut self, out: &mut Datagrams) -> Result<(), DtlsError> {
        if self.failed || self.done {
            return Ok(());
        }
        clear_errors();
        let result = openssl_ffi::handle_timeout(&mut self.stream);
        clear_errors();
        self.collect(out)?;
        if result < 0 {
            self.failed = true;
            let detail = "the peer did not answer: is UDP let through on this path?";
            return Err(DtlsError::new(DtlsErrorKind::TimedOut, detail));
        }
        Ok(())
    }

    /// True when the handshake is over and went well.
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// The tunnel's TSID; on the server only once the client named it and its key was found. It is
    /// proven when the handshake is done, not before.
    pub fn tsid(&self) -> Option<u64> {
        let private = private(self.stream.ssl())?;
        match &private.role {
            Role::Client { tsid, .. } => Some(*tsid),
            Role::Server { .. } => private.tsid.get().copied(),
        }
    }

    /// Derives the record keys. May be called once only: two sealers with one key would use nonces
    /// twice.
    ///
    /// # Errors
    /// [`DtlsErrorKind::Internal`] when the handshake is not over, or the keys are taken.
    pub fn finish(&mut self) -> Result<DtlsKeys, DtlsError> {
        let internal = |what: &str| DtlsError::new(DtlsErrorKind::Internal, what);
        if !self.done || std::mem::replace(&mut self.keys_taken, true) {
            return Err(internal("no keys: the handshake is not over, or they were taken"));
        }
        let ssl = self.stream.ssl();
        let algorithm = algorithm_of(ssl).ok_or_else(|| internal("unknown cipher"))?;
        let secrets = session_secrets(ssl).ok_or_else(|| internal("no session secrets"))?;
        let (tx, rx) = record_keys(&secrets, algorithm, self.side).map_err(|_| internal("key derivation"))?;
        Ok(DtlsKeys { tx: DatagramSealer::new(tx, algorithm), rx: DatagramOpener::new(rx), algorithm })
    }

    /// Runs OpenSSL's state machine as far as it goes.
    fn advance(&mut self, out: &mut Datagrams) -> Result<Progress, DtlsError> {
        if self.failed {
            return Err(DtlsError::new(DtlsErrorKind::Internal, "the handshake has failed"));
        }
        clear_errors();
        let result = self.stream.do_handshake();
        clear_errors();
        self.collect(out)?;
        match result {
            Ok(()) => {
                self.done = true;
                Ok(Progress::Done)
            }
            Err(error) if error.code() == ErrorCode::WANT_READ => Ok(Progress::InProgress),
            Err(error) => {
                self.failed = true;
                Err(self.classify(&error))
            }
        }
    }

    /// Acts as if OpenSSL had sent `datagram`.
    #[cfg(test)]
    pub(super) fn pretend_sent(&mut self, datagram: &[u8]) {
        self.stream.get_mut().output.push(datagram);
    }

    /// After the end: OpenSSL answers a repeated Finished with our last flight. Whatever else comes
    /// changes nothing, as the record keys are no longer OpenSSL's.
    fn answer_late(&mut self, out: &mut Datagrams) -> Progress {
        clear_errors();
        let before = out.len();
        let _ = self.stream.ssl_read(&mut [0; 64]);
        clear_errors();
        self.move_output(out);
        if out.len() > before { Progress::Retransmitted } else { Progress::Done }
    }

    /// Moves OpenSSL's datagrams to `out`, after a look at the nonces (see the module's text).
    fn collect(&mut self, out: &mut Datagrams) -> Result<(), DtlsError> {
        let is_gcm = algorithm_of(self.stream.ssl()).is_some_and(Algorithm::is_gcm);
        if is_gcm && has_nonce_clash(&self.stream.get_ref().output) {
            self.failed = true;
            self.stream.get_mut().output.clear();
            let detail = "an unlucky random nonce: try again";
            return Err(DtlsError::new(DtlsErrorKind::NonceCollision, detail));
        }
        self.move_output(out);
        Ok(())
    }

    fn move_output(&mut self, out: &mut Datagrams) {
        let output = &mut self.stream.get_mut().output;
        for datagram in output.iter() {
            out.push(datagram);
        }
        output.clear();
    }

    fn classify(&self, error: &openssl::ssl::Error) -> DtlsError {
        let unknown =
            private(self.stream.ssl()).is_some_and(|private| private.unknown.load(Ordering::Relaxed));
        if unknown {
            let detail = "no tunnel is reserved under the client's identity, or it has ended";
            return DtlsError::new(DtlsErrorKind::UnknownIdentity, detail);
        }
        let reason = error
            .ssl_error()
            .and_then(|stack| stack.errors().first())
            .map_or(0, openssl::error::Error::reason_code);
        let kind = match reason {
            READ_TIMEOUT_EXPIRED => DtlsErrorKind::TimedOut,
            // OpenSSL adds the peer's alert number to 1000.
            1001..=1255 => DtlsErrorKind::AlertReceived,
            _ => DtlsErrorKind::Protocol,
        };
        DtlsError::new(kind, error.to_string())
    }
}

/// True when an AES-GCM record in `output` has a nonce that we may use later (see the module's text).
pub(super) fn has_nonce_clash(output: &Datagrams) -> bool {
    output.iter().flat_map(explicit_nonces).any(|nonce| !nonces_are_apart(nonce))
}

/// Which of our two suites was agreed; `None` before the ServerHello.
fn algorithm_of(ssl: &SslRef) -> Option<Algorithm> {
    match ssl.current_cipher()?.name() {
        "PSK-AES128-GCM-SHA256" => Some(Algorithm::Aes128Gcm),
        "PSK-CHACHA20-POLY1305" => Some(Algorithm::ChaCha20Poly1305),
        _ => None,
    }
}

fn session_secrets(ssl: &SslRef) -> Option<SessionSecrets> {
    let mut secrets =
        SessionSecrets { master: Zeroizing::new([0; 48]), client_random: [0; 32], server_random: [0; 32] };
    let whole = ssl.session()?.master_key(secrets.master.as_mut()) == 48
        && ssl.client_random(&mut secrets.client_random) == 32
        && ssl.server_random(&mut secrets.server_random) == 32;
    whole.then_some(secrets)
}

/// sslerr.h: SSL_R_READ_TIMEOUT_EXPIRED.
const READ_TIMEOUT_EXPIRED: i32 = 312;
