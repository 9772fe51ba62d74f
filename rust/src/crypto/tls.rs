//! TLS handshakes by rustls over plain slices; at the end the keys are ours.
//!
//! rustls gets at most one record at a time and never a byte of the next one, so nothing encrypted
//! is left inside it when the handshake ends: what follows belongs to the [`StreamOpener`].
//!
//! rustls hands over keys but not the secrets that a KeyUpdate needs. Its key log tells them while a
//! record is being processed, on the same thread; they are caught there and belong to the handshake
//! that is being fed. They are wiped when dropped.

use std::cell::RefCell;

use rustls::pki_types::ServerName;
use rustls::{
    ClientConnection, Connection, ConnectionTrafficSecrets, ExtractedSecrets, KeyLog, ProtocolVersion,
    ServerConnection,
};
use zeroize::{Zeroize, Zeroizing};

use super::aead::{Aead, Algorithm, NonceScheme};
use super::tls_errors::{TlsError, TlsErrorKind};
use super::tls_profile::{ClientProfile, ServerProfile};
use super::tls_record::{
    HEADER_LEN, RecordError, Side, StreamOpener, StreamSealer, TlsVersion, record_length,
};
use super::tls_secret::TrafficSecret;

/// Label of the exporter (docs/protocol.md, "Keys").
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-opentsm-1";
/// Bytes that all records of one handshake may take together. Chains of certificates are a few KiB;
/// more is somebody who wants to keep us busy.
pub const MAX_HANDSHAKE_INPUT: usize = 256 * 1024;

/// What one call of [`TlsHandshake::feed`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that were used: all of it, unless `done`.
    pub consumed: usize,
    /// The handshake is over; what follows in the input is for the opener.
    pub done: bool,
}

/// What a handshake leaves behind.
#[derive(Debug)]
pub struct Finished {
    /// Seals what we send.
    pub sealer: StreamSealer,
    /// Opens what we receive.
    pub opener: StreamOpener,
    /// The secret that keys of datagram tunnels come from (see [`super::psk_for`]).
    pub ddt_root: [u8; 32],
    /// What a resume proof binds to.
    pub resume_binding: [u8; 32],
    /// The peer's leaf certificate in DER, if it gave one.
    pub peer_certificate: Option<Vec<u8>>,
    /// The agreed application protocol.
    pub alpn: Option<Vec<u8>>,
    /// The version.
    pub version: TlsVersion,
    /// The algorithm of both directions.
    pub algorithm: Algorithm,
}

/// A handshake in progress.
#[derive(Debug)]
pub struct TlsHandshake {
    connection: Connection,
    side: Side,
    require_alpn: bool,
    secrets: Caught,
    framing: Framing,
}

impl TlsHandshake {
    /// A handshake with a client that connected to us.
    ///
    /// # Errors
    /// [`TlsErrorKind::Internal`].
    pub fn server(profile: &ServerProfile) -> Result<Self, TlsError> {
        let connection =
            ServerConnection::new(profile.config.clone()).map_err(|error| TlsError::from_rustls(&error))?;
        Ok(Self::new(Connection::Server(connection), Side::Server, profile.require_alpn))
    }

    /// A handshake with the server `server_name` (a DNS name or an IP address). Call
    /// [`Self::feed`] with no input to get the first bytes to send.
    ///
    /// # Errors
    /// [`TlsErrorKind::NameMismatch`] when it is no name at all.
    pub fn client(profile: &ClientProfile, server_name: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(|_| {
            let detail = format!(
                "{server_name:?} is neither a DNS name nor an IP address: check the server's \
                 address, or set the server name"
            );
            TlsError::new(TlsErrorKind::NameMismatch, detail)
        })?;
        let connection = ClientConnection::new(profile.config.clone(), name)
            .map_err(|error| TlsError::from_rustls(&error))?;
        Ok(Self::new(Connection::Client(connection), Side::Client, profile.require_alpn))
    }

    fn new(connection: Connection, side: Side, require_alpn: bool) -> Self {
        Self { connection, side, require_alpn, secrets: Caught::default(), framing: Framing::default() }
    }

    /// Takes bytes from the peer, in pieces of any size, and appends what is to be sent to `out`.
    ///
    /// # Errors
    /// [`TlsError`]; the handshake is over. `out` then ends with the alert for the peer, if any:
    /// send it, then close.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, TlsError> {
        self.drain(out)?;
        let mut consumed = 0;
        while self.connection.is_handshaking() {
            let rest = input.get(consumed..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let piece = match self.framing.next_piece(rest, self.side) {
                Ok(piece) => piece,
                Err(error) => {
                    append_plain_alert(&error, out);
                    return Err(error);
                }
            };
            consumed += piece.len();
            self.process(piece, out)?;
        }
        let done = !self.connection.is_handshaking();
        if done {
            self.check_alpn(out)?;
        }
        Ok(Step { consumed, done })
    }

    /// Takes the keys. Call it once [`Step::done`] was set.
    ///
    /// # Errors
    /// [`TlsErrorKind::Internal`] when the handshake is not over.
    pub fn finish(mut self) -> Result<Finished, TlsError> {
        let exported = self
            .connection
            .export_keying_material([0_u8; 64], EXPORTER_LABEL, None)
            .map(Zeroizing::new)
            .map_err(|error| TlsError::from_rustls(&error))?;
        let (ddt_root, resume_binding) = halves(&exported)?;
        let version = match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
            Some(ProtocolVersion::TLSv1_2) => TlsVersion::Tls12,
            other => return Err(TlsError::internal(format!("TLS version {other:?}"))),
        };
        let peer_certificate = self
            .connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|leaf| leaf.as_ref().to_vec());
        let alpn = self.connection.alpn_protocol().map(<[u8]>::to_vec);
        let secrets = std::mem::take(&mut self.secrets);
        let keys =
            self.connection.dangerous_extract_secrets().map_err(|error| TlsError::from_rustls(&error))?;
        let (sealer, opener, algorithm) = hand_over(keys, secrets, version, self.side)?;
        Ok(Finished { sealer, opener, ddt_root, resume_binding, peer_certificate, alpn, version, algorithm })
    }

    /// Gives rustls one piece of one record.
    fn process(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let mut reader = piece;
        while !reader.is_empty() {
            match self.connection.read_tls(&mut reader) {
                Ok(0) => return Err(closed()),
                Ok(_) => {}
                Err(error) => return Err(TlsError::internal(error)),
            }
            let connection = &mut self.connection;
            let (result, caught) = catch_secrets(|| connection.process_new_packets());
            self.secrets.merge(caught);
            self.drain(out)?;
            let state = result.map_err(|error| TlsError::from_rustls(&error))?;
            if state.peer_has_closed() {
                return Err(closed());
            }
        }
        Ok(())
    }

    fn drain(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        while self.connection.wants_write() {
            self.connection.write_tls(out).map_err(TlsError::internal)?;
        }
        Ok(())
    }

    fn check_alpn(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if !self.require_alpn || self.connection.alpn_protocol().is_some() {
            return Ok(());
        }
        self.connection.send_close_notify();
        self.drain(out)?;
        Err(TlsError::new(
            TlsErrorKind::AlpnMismatch,
            "the peer speaks TLS but did not agree on our application protocol: it is not an \
             OpenTSM peer, or something between us ends TLS",
        ))
    }
}

fn closed() -> TlsError {
    TlsError::new(TlsErrorKind::Closed, "the peer closed during the handshake: its log says why")
}

/// Cuts the input so that no piece reaches into the next record.
#[derive(Debug, Default)]
struct Framing {
    header: [u8; HEADER_LEN],
    have: usize,
    body_left: usize,
    first_seen: bool,
    total: usize,
}

impl Framing {
    /// The first bytes of `rest` (never empty) that belong together: of a header, or of a body.
    fn next_piece<'a>(&mut self, rest: &'a [u8], side: Side) -> Result<&'a [u8], TlsError> {
        let wanted = if self.body_left > 0 { self.body_left } else { HEADER_LEN - self.have };
        let piece = rest.get(..wanted.min(rest.len())).unwrap_or(rest);
        self.total += piece.len();
        if self.total > MAX_HANDSHAKE_INPUT {
            let detail = "the peer's handshake is far too long: it is no TSM peer";
            return Err(TlsError::new(TlsErrorKind::Protocol, detail));
        }
        if self.body_left > 0 {
            self.body_left -= piece.len();
            return Ok(piece);
        }
        self.take_header(piece, side)?;
        Ok(piece)
    }

    fn take_header(&mut self, piece: &[u8], side: Side) -> Result<(), TlsError> {
        for (room, byte) in self.header.iter_mut().skip(self.have).zip(piece) {
            *room = *byte;
        }
        self.have += piece.len();
        if self.have < HEADER_LEN {
            return Ok(());
        }
        self.have = 0;
        // A server may refuse with an alert at once; a client must begin with a handshake record.
        let begins = matches!((self.header.first(), side), (Some(22), _) | (Some(21), Side::Client));
        if !self.first_seen && !begins {
            return Err(TlsError::not_tls(&self.header));
        }
        match record_length(&self.header) {
            Ok(Some(length)) => self.body_left = length - HEADER_LEN,
            Ok(None) | Err(RecordError::BadHeader) if !self.first_seen => {
                return Err(TlsError::not_tls(&self.header));
            }
            _ => {
                let detail = "a record header that is not one of TLS, or too long";
                return Err(TlsError::new(TlsErrorKind::Protocol, detail));
            }
        }
        self.first_seen = true;
        Ok(())
    }
}

/// A fatal alert in clear for a peer that may speak TLS: unexpected_message. A peer that does not
/// (HTTP) gets nothing, since it could not read it.
fn append_plain_alert(error: &TlsError, out: &mut Vec<u8>) {
    if error.kind != TlsErrorKind::NotTls {
        out.extend_from_slice(&[21, 3, 3, 0, 2, 2, 10]);
    }
}

fn halves(exported: &[u8; 64]) -> Result<([u8; 32], [u8; 32]), TlsError> {
    match (exported.first_chunk::<32>(), exported.last_chunk::<32>()) {
        (Some(first), Some(last)) => Ok((*first, *last)),
        _ => Err(TlsError::internal("exporter")),
    }
}

fn hand_over(
    keys: ExtractedSecrets,
    secrets: Caught,
    version: TlsVersion,
    side: Side,
) -> Result<(StreamSealer, StreamOpener, Algorithm), TlsError> {
    let (tx_sequence, tx) = keys.tx;
    let (rx_sequence, rx) = keys.rx;
    let (tx, algorithm) = make_aead(&tx, version)?;
    let (rx, _) = make_aead(&rx, version)?;
    let (tx_secret, rx_secret) = match side {
        Side::Client => (secrets.client, secrets.server),
        Side::Server => (secrets.server, secrets.client),
    };
    let update = |secret: Option<Zeroizing<Vec<u8>>>| match version {
        TlsVersion::Tls12 => Ok(None),
        TlsVersion::Tls13 => secret
            .and_then(|bytes| TrafficSecret::new(algorithm, &bytes))
            .map(Some)
            .ok_or_else(|| TlsError::internal("no traffic secret for key updates")),
    };
    let sealer = StreamSealer::new(tx, algorithm, version, tx_sequence, update(tx_secret)?);
    let opener = StreamOpener::new(rx, version, side, rx_sequence, update(rx_secret)?);
    Ok((sealer, opener, algorithm))
}

fn make_aead(secrets: &ConnectionTrafficSecrets, version: TlsVersion) -> Result<(Aead, Algorithm), TlsError> {
    let (algorithm, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Algorithm::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Algorithm::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Algorithm::ChaCha20Poly1305, key, iv),
        _ => return Err(TlsError::internal("a cipher that we do not know")),
    };
    let scheme = match version {
        TlsVersion::Tls12 if algorithm.is_gcm() => NonceScheme::Explicit,
        TlsVersion::Tls12 | TlsVersion::Tls13 => NonceScheme::Implicit,
    };
    let iv = iv.as_ref().try_into().map_err(TlsError::internal)?;
    // rustls keeps room for the longest key and says only the algorithm.
    let key = key.as_ref().get(..algorithm.key_len()).ok_or_else(|| TlsError::internal("key length"))?;
    let aead = Aead::new(algorithm, key, iv, scheme).map_err(TlsError::internal)?;
    Ok((aead, algorithm))
}

/// The two application traffic secrets of one handshake.
#[derive(Default)]
struct Caught {
    client: Option<Zeroizing<Vec<u8>>>,
    server: Option<Zeroizing<Vec<u8>>>,
}

impl Caught {
    fn merge(&mut self, other: Self) {
        self.client = other.client.or(self.client.take());
        self.server = other.server.or(self.server.take());
    }
}

impl std::fmt::Debug for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caught(..)")
    }
}

thread_local! {
    /// Secrets of the handshake that is being fed on this thread, if any.
    static CATCHING: RefCell<Option<Caught>> = const { RefCell::new(None) };
}

/// Runs `work` (which feeds one handshake) and gives the secrets that rustls told meanwhile.
fn catch_secrets<T>(work: impl FnOnce() -> T) -> (T, Caught) {
    CATCHING.with_borrow_mut(|cell| *cell = Some(Caught::default()));
    let result = work();
    let caught = CATCHING.with_borrow_mut(Option::take).unwrap_or_default();
    (result, caught)
}

/// rustls' key log: it keeps the two secrets we need and nothing else, and nothing outside
/// [`catch_secrets`].
#[derive(Debug)]
pub(super) struct SecretCatcher;

const CLIENT_SECRET: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_SECRET: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for SecretCatcher {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut copy = Zeroizing::new(secret.to_vec());
        CATCHING.with_borrow_mut(|cell| match (cell, label) {
            (Some(caught), CLIENT_SECRET) => caught.client = Some(std::mem::take(&mut copy)),
            (Some(caught), SERVER_SECRET) => caught.server = Some(std::mem::take(&mut copy)),
            _ => {}
        });
        copy.zeroize();
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT_SECRET | SERVER_SECRET)
    }
}
