//! TLS 1.3 and TLS 1.2 record protection after the handshake (RFC 8446 5, RFC 5246 6.2).
//!
//! The caller builds the plaintext in place, with [`StreamSealer::headroom`] bytes free in front and
//! [`StreamSealer::tailroom`] behind; sealing neither copies nor allocates. The opener decrypts a
//! whole record in place and says where in it the plaintext stands.
//!
//! # How long a key lives
//! RFC 8446 5.5: with AES-GCM about 2^24.5 full-size records (2^34.5 blocks of 16 bytes) may be sealed
//! under one key, which keeps an attacker's advantage below 2^-57. We count blocks, as most of our
//! records are far smaller than 16 KiB. In TLS 1.3 [`StreamSealer::needs_update`] asks for a KeyUpdate
//! long before, at [`UPDATE_AFTER_BLOCKS`]; TLS 1.2 has none, so its key ends at [`BLOCK_LIMIT`] and
//! the tunnel has to be set up again. ChaCha20-Poly1305 has no such limit.

use std::ops::Range;

use super::aead::{Aead, AeadError, Algorithm, EXPLICIT_NONCE_LEN, TAG_LEN};
use super::tls_post_handshake::{KEY_UPDATE, PartialMessage};
use super::tls_secret::TrafficSecret;

/// Bytes of a TLS record header.
pub const HEADER_LEN: usize = 5;
/// Longest plaintext of a record (RFC 8446 5.1).
pub const MAX_PLAIN: usize = 16_384;
/// Room in front of the plaintext that is enough for every version and algorithm.
pub const MAX_HEADROOM: usize = HEADER_LEN + EXPLICIT_NONCE_LEN;
/// Room behind the plaintext that is enough for every version and algorithm.
pub const MAX_TAILROOM: usize = 1 + TAG_LEN;
/// Longest record that [`record_length`] lets through: the larger limit, that of TLS 1.2.
pub const MAX_RECORD: usize = HEADER_LEN + MAX_PLAIN + 2048;
/// Blocks under one AES-GCM key after which a KeyUpdate is due: 64 GiB, a sixth of the limit.
pub const UPDATE_AFTER_BLOCKS: u64 = 1 << 32;
/// Blocks under one AES-GCM key after which it seals no more (2^34.5, see the module's text).
pub const BLOCK_LIMIT: u64 = 24_296_004_000;
/// Records without data (empty, KeyUpdate, tickets) that may follow each other. A peer that sends
/// more is keeping us busy for nothing; an OpenSSL server sends two tickets, a KeyUpdate is rare.
pub const MAX_IDLE_RECORDS: u8 = 32;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION: u8 = 23;
/// On the wire all records after the handshake say TLS 1.2 (RFC 8446 5.1).
const VERSION: [u8; 2] = [3, 3];

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// Which record layout a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 with an AEAD suite.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We connected.
    Client,
    /// We accepted.
    Server,
}

/// Why a record could not be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// The buffer is too small for the overhead, or the plaintext longer than [`MAX_PLAIN`].
    BadLength,
    /// The key has been used as often as it may be: close and connect again.
    Exhausted,
    /// TLS 1.2 has no KeyUpdate.
    NoKeyUpdate,
}

impl SealError {
    /// A stable name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadLength => "tls_bad_length",
            Self::Exhausted => "tls_key_exhausted",
            Self::NoKeyUpdate => "tls_no_key_update",
        }
    }
}

impl std::fmt::Display for SealError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for SealError {}

impl From<AeadError> for SealError {
    fn from(_: AeadError) -> Self {
        Self::BadLength
    }
}

/// Seals the records of one direction of a stream.
#[derive(Debug)]
pub struct StreamSealer {
    aead: Aead,
    version: TlsVersion,
    sequence: u64,
    blocks: u64,
    wears_out: bool,
    secret: Option<TrafficSecret>,
}

impl StreamSealer {
    pub(super) const fn new(
        aead: Aead,
        algorithm: Algorithm,
        version: TlsVersion,
        sequence: u64,
        secret: Option<TrafficSecret>,
    ) -> Self {
        Self { aead, version, sequence, blocks: 0, wears_out: algorithm.is_gcm(), secret }
    }

    /// Room that must stand in front of the plaintext: 5, or 13 with AES-GCM in TLS 1.2.
    pub const fn headroom(&self) -> usize {
        HEADER_LEN + self.aead.explicit_len()
    }

    /// Room that must stand behind the plaintext: 17 in TLS 1.3, 16 in TLS 1.2.
    pub const fn tailroom(&self) -> usize {
        self.type_len() + TAG_LEN
    }

    /// Seals `plain_len` bytes that stand at `buf[headroom()..]` as application data and gives the
    /// length of the record, which then stands at `buf[..length]`.
    ///
    /// # Errors
    /// [`SealError::BadLength`], [`SealError::Exhausted`]. After `Exhausted` the connection is over.
    #[inline]
    pub fn seal_record(&mut self, buf: &mut [u8], plain_len: usize) -> Result<usize, SealError> {
        self.seal(APPLICATION, buf, plain_len)
    }

    /// True when the key has done its share and [`Self::key_update_record`] is due (TLS 1.3 only).
    pub const fn needs_update(&self) -> bool {
        self.wears_out && self.secret.is_some() && self.blocks >= UPDATE_AFTER_BLOCKS
    }

    /// Appends a KeyUpdate record to `out` and moves to the next key (RFC 8446 4.6.3). `request`
    /// asks the peer to do the same; answer a peer's request with `false`. The record must be sent
    /// after all that was sealed before and ahead of all that is sealed later.
    ///
    /// # Errors
    /// [`SealError::NoKeyUpdate`] in TLS 1.2, [`SealError::Exhausted`].
    pub fn key_update_record(&mut self, request: bool, out: &mut Vec<u8>) -> Result<(), SealError> {
        let secret = self.secret.as_ref().ok_or(SealError::NoKeyUpdate)?;
        let next = secret.next()?;
        let aead = next.aead()?;
        self.append(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, u8::from(request)], out)?;
        self.aead = aead;
        self.secret = Some(next);
        self.sequence = 0;
        self.blocks = 0;
        Ok(())
    }

    /// Appends a close_notify alert record to `out` (RFC 8446 6.1).
    ///
    /// # Errors
    /// [`SealError::Exhausted`].
    pub fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        self.append(ALERT, &[1, CLOSE_NOTIFY], out)
    }

    /// Appends a fatal alert record to `out`, see [`RecordError::alert`].
    ///
    /// # Errors
    /// [`SealError::Exhausted`].
    pub fn alert(&mut self, description: u8, out: &mut Vec<u8>) -> Result<(), SealError> {
        self.append(ALERT, &[2, description], out)
    }

    fn append(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let mut buf = [0; MAX_HEADROOM + 8 + MAX_TAILROOM];
        let start = self.headroom();
        buf.get_mut(start..start + plain.len()).ok_or(SealError::BadLength)?.copy_from_slice(plain);
        let len = self.seal(kind, &mut buf, plain.len())?;
        out.extend_from_slice(buf.get(..len).ok_or(SealError::BadLength)?);
        Ok(())
    }

    #[inline]
    fn seal(&mut self, kind: u8, buf: &mut [u8], plain_len: usize) -> Result<usize, SealError> {
        if plain_len > MAX_PLAIN {
            return Err(SealError::BadLength);
        }
        let body_len = plain_len + self.type_len() + self.aead.overhead();
        let (header, rest) = buf.split_first_chunk_mut::<HEADER_LEN>().ok_or(SealError::BadLength)?;
        let body = rest.get_mut(..body_len).ok_or(SealError::BadLength)?;
        self.account(plain_len)?;
        let [v0, v1] = VERSION;
        let [l0, l1] = (body_len as u16).to_be_bytes();
        match self.version {
            TlsVersion::Tls13 => {
                *body.get_mut(plain_len).ok_or(SealError::BadLength)? = kind;
                *header = [APPLICATION, v0, v1, l0, l1];
                self.aead.seal(self.sequence, header, body)?;
            }
            TlsVersion::Tls12 => {
                *header = [kind, v0, v1, l0, l1];
                let aad = make_tls12_aad(self.sequence, kind, plain_len);
                self.aead.seal(self.sequence, &aad, body)?;
            }
        }
        self.sequence += 1;
        Ok(HEADER_LEN + body_len)
    }

    #[inline]
    fn account(&mut self, plain_len: usize) -> Result<(), SealError> {
        let spent = self.wears_out && self.blocks >= BLOCK_LIMIT;
        if spent || self.sequence == u64::MAX {
            return Err(SealError::Exhausted);
        }
        self.blocks += plain_len as u64 / 16 + 2;
        Ok(())
    }

    const fn type_len(&self) -> usize {
        matches!(self.version, TlsVersion::Tls13) as usize
    }

    #[cfg(test)]
    pub(super) const fn wear(&mut self, blocks: u64) {
        self.blocks = blocks;
    }
}

/// Why a received record ends the connection. All are fatal: a stream cannot skip a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The header is not one of TLS, or the type is not allowed here.
    BadHeader,
    /// Longer than the protocol allows.
    TooLong,
    /// Shorter than its header says, or than any record can be.
    TooShort,
    /// Not made by the peer's key, damaged, or out of order.
    BadTag,
    /// A content type or handshake message that has no place after the handshake.
    Unexpected,
    /// A message that does not parse, or a handshake message split by another record.
    Malformed,
    /// More than [`MAX_IDLE_RECORDS`] records without data.
    TooManyIdle,
    /// The peer updates its key, but the handshake gave no secret (never with our handshakes).
    NoKeyUpdate,
}

impl RecordError {
    /// A stable name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadHeader => "tls_bad_header",
            Self::TooLong => "tls_record_too_long",
            Self::TooShort => "tls_record_too_short",
            Self::BadTag => "tls_bad_tag",
            Self::Unexpected => "tls_unexpected_message",
            Self::Malformed => "tls_malformed_message",
            Self::TooManyIdle => "tls_too_many_idle_records",
            Self::NoKeyUpdate => "tls_no_key_update",
        }
    }

    /// The alert that tells the peer (RFC 8446 6.2); send it with [`StreamSealer::alert`].
    pub const fn alert(self) -> u8 {
        match self {
            Self::BadHeader | Self::Unexpected | Self::TooManyIdle => 10,
            Self::BadTag | Self::TooShort => 20,
            Self::TooLong => 22,
            Self::Malformed => 50,
            Self::NoKeyUpdate => 80,
        }
    }
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for RecordError {}

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Application data: where in the record the plaintext stands. Never empty.
    Data(Range<usize>),
    /// The peer moved to its next key (already done here too). When `request` is set, answer with
    /// `sealer.key_update_record(false, ..)` before the next data.
    KeyUpdate {
        /// The peer asks us to update our key as well.
        request: bool,
    },
    /// The peer closes its direction in good order (close_notify).
    Close,
    /// The peer gave up, with the alert's number (RFC 8446 6).
    Alert(u8),
    /// Nothing for the caller: an empty record, a session ticket, a HelloRequest.
    Ignore,
}

/// Opens the records of one direction of a stream.
#[derive(Debug)]
pub struct StreamOpener {
    aead: Aead,
    version: TlsVersion,
    side: Side,
    sequence: u64,
    idle: u8,
    message: PartialMessage,
    secret: Option<TrafficSecret>,
}

impl StreamOpener {
    pub(super) const fn new(
        aead: Aead,
        version: TlsVersion,
        side: Side,
        sequence: u64,
        secret: Option<TrafficSecret>,
    ) -> Self {
        Self { aead, version, side, sequence, idle: 0, message: PartialMessage::NEW, secret }
    }

    /// Length of the record that `bytes` begins with, `None` when the header is not whole yet. The
    /// record itself may be longer than `bytes`.
    ///
    /// # Errors
    /// `BadHeader`, `TooLong`, `TooShort`.
    #[inline]
    pub fn record_length(&self, bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(length) = record_length(bytes)? else {
            return Ok(None);
        };
        if length > HEADER_LEN + MAX_PLAIN + self.allowance() {
            return Err(RecordError::TooLong);
        }
        Ok(Some(length))
    }

    /// Opens one whole record (header and body, nothing behind it) in place.
    ///
    /// # Errors
    /// [`RecordError`]; the connection is over.
    #[inline]
    pub fn open_record(&mut self, record: &mut [u8]) -> Result<Record, RecordError> {
        if self.record_length(record)? != Some(record.len()) {
            return Err(RecordError::TooShort);
        }
        let (kind, plain) = match self.version {
            TlsVersion::Tls13 => self.open_tls13(record)?,
            TlsVersion::Tls12 => self.open_tls12(record)?,
        };
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::BadTag)?;
        if kind == APPLICATION && !plain.is_empty() && self.message.is_between() {
            self.idle = 0;
            return Ok(Record::Data(plain));
        }
        let bytes = record.get(plain).ok_or(RecordError::TooShort)?;
        self.take_other(kind, bytes)
    }

    #[inline]
    fn open_tls13(&self, record: &mut [u8]) -> Result<(u8, Range<usize>), RecordError> {
        let (header, body) = record.split_first_chunk_mut::<HEADER_LEN>().ok_or(RecordError::TooShort)?;
        let [kind, v0, v1, ..] = *header;
        if kind != APPLICATION || [v0, v1] != VERSION {
            return Err(RecordError::BadHeader);
        }
        let inner = self.aead.open(self.sequence, header, body).map_err(|_| RecordError::BadTag)?;
        // Zeros at the end are padding; the last other byte is the type (RFC 8446 5.4).
        let end = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected)?;
        let kind = inner.get(end).copied().ok_or(RecordError::Unexpected)?;
        if inner.len() > MAX_PLAIN + 1 {
            return Err(RecordError::TooLong);
        }
        Ok((kind, HEADER_LEN..HEADER_LEN + end))
    }

    #[inline]
    fn open_tls12(&self, record: &mut [u8]) -> Result<(u8, Range<usize>), RecordError> {
        let (header, body) = record.split_first_chunk_mut::<HEADER_LEN>().ok_or(RecordError::TooShort)?;
        let [kind, v0, v1, ..] = *header;
        if !matches!(kind, ALERT | HANDSHAKE | APPLICATION) || [v0, v1] != VERSION {
            return Err(RecordError::BadHeader);
        }
        let plain_len = body.len().checked_sub(self.aead.overhead()).ok_or(RecordError::TooShort)?;
        if plain_len > MAX_PLAIN {
            return Err(RecordError::TooLong);
        }
        let aad = make_tls12_aad(self.sequence, kind, plain_len);
        self.aead.open(self.sequence, &aad, body).map_err(|_| RecordError::BadTag)?;
        let start = HEADER_LEN + self.aead.explicit_len();
        Ok((kind, start..start + plain_len))
    }

    /// All that is not application data with something in it.
    #[cold]
    fn take_other(&mut self, kind: u8, plain: &[u8]) -> Result<Record, RecordError> {
        self.idle += 1;
        if self.idle > MAX_IDLE_RECORDS {
            return Err(RecordError::TooManyIdle);
        }
        if kind == HANDSHAKE {
            return self.take_handshake(plain);
        }
        if !self.message.is_between() {
            return Err(RecordError::Malformed);
        }
        match (kind, plain) {
            (APPLICATION, _) => Ok(Record::Ignore),
            (ALERT, [level, description]) => Ok(self.take_alert(*level, *description)),
            (ALERT, _) => Err(RecordError::Malformed),
            _ => Err(RecordError::Unexpected),
        }
    }

    /// TLS 1.3 has no warnings but two (RFC 8446 6); TLS 1.2 has, and they change nothing.
    fn take_alert(&self, level: u8, description: u8) -> Record {
        match (self.version, level, description) {
            (_, _, CLOSE_NOTIFY) => Record::Close,
            (TlsVersion::Tls13, _, USER_CANCELED) | (TlsVersion::Tls12, 1, _) => Record::Ignore,
            _ => Record::Alert(description),
        }
    }

    fn take_handshake(&mut self, plain: &[u8]) -> Result<Record, RecordError> {
        match self.message.take(plain, self.version, self.side)? {
            None => Ok(Record::Ignore),
            Some(request) => {
                let secret = self.secret.as_ref().ok_or(RecordError::NoKeyUpdate)?;
                let next = secret.next().map_err(|_| RecordError::NoKeyUpdate)?;
                self.aead = next.aead().map_err(|_| RecordError::NoKeyUpdate)?;
                self.secret = Some(next);
                self.sequence = 0;
                Ok(Record::KeyUpdate { request })
            }
        }
    }

    /// How much longer than its plaintext a record may be (RFC 8446 5.2, RFC 5246 6.2.3).
    const fn allowance(&self) -> usize {
        match self.version {
            TlsVersion::Tls13 => 256,
            TlsVersion::Tls12 => 2048,
        }
    }
}

/// Additional data of TLS 1.2: number, type, version, length of the plaintext (RFC 5246 6.2.3.3).
#[inline]
fn make_tls12_aad(sequence: u64, kind: u8, plain_len: usize) -> [u8; 13] {
    let [n0, n1, n2, n3, n4, n5, n6, n7] = sequence.to_be_bytes();
    let [l0, l1] = (plain_len as u16).to_be_bytes();
    let [v0, v1] = VERSION;
    [n0, n1, n2, n3, n4, n5, n6, n7, kind, v0, v1, l0, l1]
}

/// Length of the TLS record that `bytes` begins with, for any version; `None` when the header is not
/// whole yet.
///
/// # Errors
/// `BadHeader` when it is no TLS record, `TooLong` over [`MAX_RECORD`], `TooShort` when empty.
#[inline]
pub fn record_length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some([kind, major, _, l1, l0]) = bytes.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    if !matches!(*kind, CHANGE_CIPHER_SPEC..=APPLICATION) || *major != 3 {
        return Err(RecordError::BadHeader);
    }
    let length = HEADER_LEN + usize::from(u16::from_be_bytes([*l1, *l0]));
    match length {
        HEADER_LEN => Err(RecordError::TooShort),
        ..=MAX_RECORD => Ok(Some(length)),
        _ => Err(RecordError::TooLong),
    }
}
