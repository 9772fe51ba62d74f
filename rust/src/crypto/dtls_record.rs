//! DTLS 1.2 records after the handshake: one AEAD key and one number in each direction.
//!
//! A record is 13 bytes of header (type, version 0xfefd, epoch 1, 48-bit sequence number, length),
//! for AES-GCM 8 bytes of explicit nonce, the ciphertext and a 16-byte tag (RFC 6347 4.1, RFC 5288,
//! RFC 7905 for ChaCha20-Poly1305). Nonce and additional data both hold epoch and sequence number,
//! so each record stands for itself: any order, any loss.
//!
//! # Limits of one key
//! DTLS 1.2 has no key update. AES-GCM keeps an attacker's advantage under 2^-57 while at most about
//! 2^34.5 blocks of 16 bytes are sealed under one key (that is what RFC 8446 5.5 says in records of
//! 16 KiB: 2^24.5). Media records are some 15 to 30 blocks, so [`GCM_RECORD_LIMIT`] is 2^30 of them;
//! [`DatagramSealer::needs_replacement`] says at half of it that the caller should set up a fresh
//! tunnel. ChaCha20-Poly1305 is bounded by the 48-bit number alone.

use std::sync::atomic::{AtomicU64, Ordering};

use super::aead::{Aead, Algorithm, TAG_LEN};
use super::replay::{Arrival, ReplayCounters, ReplayWindow};

/// Bytes of a DTLS 1.2 record header.
pub const HEADER_LEN: usize = 13;
/// Room in front of the plaintext that is enough for every algorithm.
pub const MAX_HEADROOM: usize = HEADER_LEN + super::aead::EXPLICIT_NONCE_LEN;
/// Room behind the plaintext, the same for every algorithm.
pub const TAILROOM: usize = TAG_LEN;
/// Longest plaintext of a record (RFC 6347 4.1: 2^14).
pub const MAX_PLAIN: usize = 16_384;

/// Content type of ChangeCipherSpec records (handshake only).
pub const CHANGE_CIPHER_SPEC: u8 = 20;
/// Content type of alert records.
pub const ALERT: u8 = 21;
/// Content type of handshake records.
pub const HANDSHAKE: u8 = 22;
/// Content type of records that carry frames.
pub const APPLICATION: u8 = 23;

/// DTLS 1.2 on the wire.
const VERSION: [u8; 2] = [0xfe, 0xfd];
/// The epoch after the one and only ChangeCipherSpec; we never renegotiate.
const EPOCH: u64 = 1;
/// Our first sequence number. OpenSSL numbers its own epoch-1 records (Finished, and Finished again
/// when it was lost) from 0 and gives up after a dozen, so the two never meet.
pub const FIRST_SEQUENCE: u64 = 1 << 20;
/// Records that may be sealed under one AES-GCM key (see the module's text).
pub const GCM_RECORD_LIMIT: u64 = 1 << 30;
/// Records that may be sealed under one ChaCha20-Poly1305 key: what the 48-bit number leaves.
pub const CHACHA_RECORD_LIMIT: u64 = (1 << 48) - FIRST_SEQUENCE;
/// Forged records after which a key is given up (RFC 9147 4.5.3 gives 2^36 for these algorithms).
pub const FORGERY_LIMIT: u64 = 1 << 36;

/// Why a record could not be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramSealError {
    /// The buffer is too small for the overhead, or the plaintext longer than [`MAX_PLAIN`].
    BadLength,
    /// The key has been used as often as it may be: set up a fresh datagram tunnel.
    Exhausted,
}

impl DatagramSealError {
    /// A stable name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadLength => "dtls_bad_length",
            Self::Exhausted => "dtls_key_exhausted",
        }
    }
}

impl std::fmt::Display for DatagramSealError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for DatagramSealError {}

/// Seals the records of one datagram tunnel in one direction. Threads share it: a number is taken
/// with one atomic addition, the rest reads only.
#[derive(Debug)]
pub struct DatagramSealer {
    aead: Aead,
    taken: AtomicU64,
    limit: u64,
}

impl DatagramSealer {
    /// A sealer for a key that the handshake gave.
    pub(super) const fn new(aead: Aead, algorithm: Algorithm) -> Self {
        let limit = if algorithm.is_gcm() { GCM_RECORD_LIMIT } else { CHACHA_RECORD_LIMIT };
        Self { aead, taken: AtomicU64::new(0), limit }
    }

    /// Room that must stand in front of the plaintext: 13, or 21 with AES-GCM.
    pub const fn headroom(&self) -> usize {
        HEADER_LEN + self.aead.explicit_len()
    }

    /// Bytes by which a record is longer than its plaintext.
    pub const fn overhead(&self) -> usize {
        HEADER_LEN + self.aead.overhead()
    }

    /// Seals `plain_len` bytes that stand at `buf[headroom()..]` and gives the length of the record,
    /// which then stands at `buf[..length]`.
    ///
    /// # Errors
    /// [`DatagramSealError`].
    #[inline]
    pub fn seal_in_place(&self, buf: &mut [u8], plain_len: usize) -> Result<usize, DatagramSealError> {
        self.seal(APPLICATION, buf, plain_len)
    }

    /// Appends a close_notify alert record to `out` (RFC 5246 7.2.1).
    ///
    /// # Errors
    /// [`DatagramSealError::Exhausted`].
    pub fn close_notify(&self, out: &mut Vec<u8>) -> Result<(), DatagramSealError> {
        let mut buf = [0_u8; HEADER_LEN + 8 + 2 + TAG_LEN];
        let at = self.headroom();
        let plain = buf.get_mut(at..at + 2).ok_or(DatagramSealError::BadLength)?;
        plain.copy_from_slice(&[1, 0]);
        let len = self.seal(ALERT, &mut buf, 2)?;
        out.extend_from_slice(buf.get(..len).ok_or(DatagramSealError::BadLength)?);
        Ok(())
    }

    /// Records sealed so far.
    pub fn sealed(&self) -> u64 {
        self.taken.load(Ordering::Relaxed).min(self.limit)
    }

    /// True when half of what the key may do is done: time to set up a fresh tunnel.
    pub fn needs_replacement(&self) -> bool {
        self.sealed() >= self.limit / 2
    }

    #[inline]
    fn seal(&self, kind: u8, buf: &mut [u8], plain_len: usize) -> Result<usize, DatagramSealError> {
        let body_len = plain_len + self.aead.overhead();
        if plain_len > MAX_PLAIN {
            return Err(DatagramSealError::BadLength);
        }
        let (header, rest) = buf.split_first_chunk_mut::<HEADER_LEN>().ok_or(DatagramSealError::BadLength)?;
        let body = rest.get_mut(..body_len).ok_or(DatagramSealError::BadLength)?;
        let number = self.take_number()?;
        *header = make_header(kind, number, body_len);
        self.aead
            .seal(number, &make_aad(kind, number, plain_len), body)
            .map_err(|_| DatagramSealError::BadLength)?;
        Ok(HEADER_LEN + body_len)
    }

    /// The next epoch and sequence number, as the one 64-bit number of RFC 6347 4.1.2.1.
    #[inline]
    fn take_number(&self) -> Result<u64, DatagramSealError> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        if taken >= self.limit {
            // Park the counter at the limit: wrapping it around would take 2^64 refused records.
            self.taken.store(self.limit, Ordering::Relaxed);
            return Err(DatagramSealError::Exhausted);
        }
        Ok((EPOCH << 48) | (FIRST_SEQUENCE + taken))
    }

    #[cfg(test)]
    pub(super) fn skip_to(&self, taken: u64) {
        self.taken.store(taken, Ordering::Relaxed);
    }
}

/// True when the AES-GCM nonces that OpenSSL may still use, counting up from `explicit`, are none
/// that a [`DatagramSealer`] may use with the same key. See `dtls` for the reasoning.
pub(super) const fn nonces_are_apart(explicit: u64) -> bool {
    let ours_first = (EPOCH << 48) | FIRST_SEQUENCE;
    let ours_last = ours_first + GCM_RECORD_LIMIT;
    explicit > ours_last || explicit.saturating_add(FIRST_SEQUENCE) < ours_first
}

/// Why a record was refused. Each is a named drop; none says that the tunnel is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Shorter than its header says, or than any record can be.
    TooShort,
    /// Not epoch 1.
    WrongEpoch,
    /// Neither application data nor an alert: give it to the handshake or drop it.
    WrongType,
    /// Not DTLS 1.2.
    WrongVersion,
    /// Not made by the peer, or damaged.
    BadTag,
    /// Seen before.
    Replay,
    /// From before the replay window.
    TooOld,
    /// Too many forged records under this key: set up a fresh datagram tunnel.
    Exhausted,
}

impl OpenError {
    /// A stable name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "dtls_too_short",
            Self::WrongEpoch => "dtls_wrong_epoch",
            Self::WrongType => "dtls_wrong_type",
            Self::WrongVersion => "dtls_wrong_version",
            Self::BadTag => "dtls_bad_tag",
            Self::Replay => "dtls_replay",
            Self::TooOld => "dtls_too_old",
            Self::Exhausted => "dtls_key_exhausted",
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for OpenError {}

/// What an authentic record holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// Plaintext, inside the record's buffer.
    Data(&'a mut [u8]),
    /// The peer closes (close_notify).
    Close,
    /// Another alert of the peer, by its number; the tunnel should be closed if it is fatal.
    Alert {
        /// Level 2: the peer has given up the tunnel.
        fatal: bool,
        /// The alert's number (RFC 5246 7.2).
        description: u8,
    },
}

/// The key of one direction without the window, for callers that decrypt outside a lock:
/// `parse` and `window.check` under the lock, [`Self::open`] without it, `window.mark` under it.
#[derive(Debug)]
pub struct DatagramKey {
    aead: Aead,
}

impl DatagramKey {
    /// Checks the header of a record that the handshake's keys may have made, and gives its sequence
    /// number. It decrypts nothing.
    ///
    /// # Errors
    /// `TooShort`, `WrongType`, `WrongVersion`, `WrongEpoch`.
    #[inline]
    pub fn parse(&self, record: &[u8]) -> Result<u64, OpenError> {
        let (header, body) = record.split_first_chunk::<HEADER_LEN>().ok_or(OpenError::TooShort)?;
        let [kind, v0, v1, number @ .., l0, l1] = *header;
        if !matches!(kind, APPLICATION | ALERT) {
            return Err(OpenError::WrongType);
        }
        if [v0, v1] != VERSION {
            return Err(OpenError::WrongVersion);
        }
        let number = u64::from_be_bytes(number);
        if number >> 48 != EPOCH {
            return Err(OpenError::WrongEpoch);
        }
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if len != body.len() || len < self.aead.overhead() {
            return Err(OpenError::TooShort);
        }
        Ok(number & SEQUENCE_MASK)
    }

    /// Decrypts a record that [`Self::parse`] accepted, in place.
    ///
    /// # Errors
    /// `BadTag`, `TooShort`.
    #[inline]
    pub fn open<'a>(&self, record: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let (header, body) = record.split_first_chunk_mut::<HEADER_LEN>().ok_or(OpenError::TooShort)?;
        let [kind, _, _, number @ .., _, _] = *header;
        let number = u64::from_be_bytes(number);
        let plain_len = body.len().checked_sub(self.aead.overhead()).ok_or(OpenError::TooShort)?;
        let aad = make_aad(kind, number, plain_len);
        let plain = self.aead.open(number, &aad, body).map_err(|_| OpenError::BadTag)?;
        if kind != ALERT {
            return Ok(Opened::Data(plain));
        }
        match *plain {
            [_, 0] => Ok(Opened::Close),
            [level, description] => Ok(Opened::Alert { fatal: level == 2, description }),
            _ => Err(OpenError::WrongType),
        }
    }
}

/// Opens the records of one datagram tunnel in one direction: key, replay window, counters.
#[derive(Debug)]
pub struct DatagramOpener {
    key: DatagramKey,
    window: ReplayWindow,
    forged: u64,
}

impl DatagramOpener {
    /// An opener for a key that the handshake gave.
    pub(super) const fn new(aead: Aead) -> Self {
        Self { key: DatagramKey { aead }, window: ReplayWindow::new(FIRST_SEQUENCE), forged: 0 }
    }

    /// Opens one record (header and body, nothing behind it) in place.
    ///
    /// # Errors
    /// [`OpenError`]; the record is to be dropped, the tunnel goes on.
    #[inline]
    pub fn open_in_place<'a>(&mut self, record: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let number = self.key.parse(record)?;
        as_error(self.window.check(number))?;
        if self.forged >= FORGERY_LIMIT {
            return Err(OpenError::Exhausted);
        }
        let opened = self.key.open(record);
        if matches!(opened, Err(OpenError::BadTag)) {
            self.forged += 1;
            return opened;
        }
        as_error(self.window.mark(number))?;
        opened
    }

    /// Losses, reordering and duplicates so far.
    pub const fn counters(&self) -> ReplayCounters {
        self.window.counters()
    }

    /// One more than the highest sequence number received; 0 before the first record.
    pub const fn next_sequence(&self) -> u64 {
        self.window.next()
    }

    /// The parts, for callers that hold a lock around the window only.
    pub fn split(self) -> (DatagramKey, ReplayWindow) {
        (self.key, self.window)
    }
}

fn as_error(arrival: Arrival) -> Result<(), OpenError> {
    match arrival {
        Arrival::Fresh => Ok(()),
        Arrival::Duplicate => Err(OpenError::Replay),
        Arrival::TooOld => Err(OpenError::TooOld),
    }
}

const SEQUENCE_MASK: u64 = (1 << 48) - 1;

#[inline]
fn make_header(kind: u8, number: u64, body_len: usize) -> [u8; HEADER_LEN] {
    let [n0, n1, n2, n3, n4, n5, n6, n7] = number.to_be_bytes();
    let [l0, l1] = (body_len as u16).to_be_bytes();
    let [v0, v1] = VERSION;
    [kind, v0, v1, n0, n1, n2, n3, n4, n5, n6, n7, l0, l1]
}

/// Additional data: number, type, version, length of the plaintext (RFC 5246 6.2.3.3).
#[inline]
fn make_aad(kind: u8, number: u64, plain_len: usize) -> [u8; HEADER_LEN] {
    let [n0, n1, n2, n3, n4, n5, n6, n7] = number.to_be_bytes();
    let [l0, l1] = (plain_len as u16).to_be_bytes();
    let [v0, v1] = VERSION;
    [n0, n1, n2, n3, n4, n5, n6, n7, kind, v0, v1, l0, l1]
}

/// The content type of the record that `datagram` begins with, if it can be one of DTLS at all.
/// (20..=63 is DTLS when several protocols share a port, RFC 7983.)
#[inline]
pub fn content_type(datagram: &[u8]) -> Option<u8> {
    match datagram {
        [kind @ CHANGE_CIPHER_SPEC..=APPLICATION, 0xfe, 0xfd | 0xff, ..] if datagram.len() >= HEADER_LEN => {
            Some(*kind)
        }
        _ => None,
    }
}

/// True when `datagram` begins with an unencrypted ClientHello: a peer that starts (again). It goes
/// to the listener even when a tunnel for the same address stands (RFC 6347 4.2.8).
pub fn is_client_hello(datagram: &[u8]) -> bool {
    content_type(datagram) == Some(HANDSHAKE)
        && datagram.get(3..5) == Some(&[0, 0])
        && datagram.get(HEADER_LEN) == Some(&1)
}

/// The records of one datagram, in order. Bytes behind the last whole record come out as one last,
/// malformed record, so that the opener counts them.
pub fn records(datagram: &mut [u8]) -> Records<'_> {
    Records { rest: datagram }
}

/// See [`records`].
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a mut [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a mut [u8];

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let len = record_end(rest);
        let (record, rest) = rest.split_at_mut_checked(len)?;
        self.rest = rest;
        Some(record)
    }
}

/// Length of the first record, or of all when it is cut short.
#[inline]
fn record_end(bytes: &[u8]) -> usize {
    match bytes.first_chunk::<HEADER_LEN>() {
        Some([.., l0, l1]) => (HEADER_LEN + usize::from(u16::from_be_bytes([*l0, *l1]))).min(bytes.len()),
        None => bytes.len(),
    }
}

/// The records at the beginning of `datagram` that are for a handshake: its messages, the
/// ChangeCipherSpec and, while it lasts, alerts.
pub(super) fn handshake_prefix(datagram: &[u8], with_alerts: bool) -> &[u8] {
    let mut end = 0;
    while let Some(rest) = datagram.get(end..) {
        match content_type(rest) {
            Some(HANDSHAKE | CHANGE_CIPHER_SPEC) => {}
            Some(ALERT) if with_alerts => {}
            _ => break,
        }
        end += record_end(rest);
    }
    datagram.get(..end).unwrap_or_default()
}

/// The explicit nonces of the epoch-1 records in a datagram of ours. Used once, at the hand-over.
pub(super) fn explicit_nonces(datagram: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (record, next) = rest.split_at_checked(record_end(rest))?;
        rest = next;
        Some(record)
    })
    .filter(|record| record.get(3..5) == Some(&[0, 1]))
    .filter_map(|record| record.get(HEADER_LEN..)?.first_chunk::<8>())
    .map(|bytes| u64::from_be_bytes(*bytes))
}
