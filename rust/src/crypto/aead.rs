//! One AEAD key with its IV: seal and open in place, without allocation.
//!
//! TLS 1.3 (RFC 8446 5.3), ChaCha20-Poly1305 in TLS 1.2 (RFC 7905) and AES-GCM in TLS 1.2
//! (RFC 5288) differ only in where the nonce's last eight bytes come from, so one type does all:
//! the nonce is `iv XOR number` when we seal, and the same, or the eight bytes that the record
//! carries, when we open.
//!
//! `ring` does not wipe its expanded keys when they are dropped; the bytes they were made from are
//! wiped by their owners here.

use ring::aead as ring_aead;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

/// Bytes of the authentication tag, the same for every algorithm here.
pub const TAG_LEN: usize = 16;
/// Bytes of the nonce that a TLS 1.2 AES-GCM record carries in clear (RFC 5288 section 3).
pub const EXPLICIT_NONCE_LEN: usize = 8;
/// Bytes of a nonce, the same for every algorithm here.
pub const NONCE_LEN: usize = 12;

/// The AEAD algorithms that a tunnel may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Algorithm {
    /// Length of the key in bytes.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }

    /// True for the AES-GCM algorithms, whose keys wear out (see `tls_record`).
    pub const fn is_gcm(self) -> bool {
        matches!(self, Self::Aes128Gcm | Self::Aes256Gcm)
    }

    /// A stable name for logs and counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    fn ring(self) -> &'static ring_aead::Algorithm {
        match self {
            Self::Aes128Gcm => &ring_aead::AES_128_GCM,
            Self::Aes256Gcm => &ring_aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &ring_aead::CHACHA20_POLY1305,
        }
    }
}

/// Where the record keeps its nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceScheme {
    /// Both sides compute it: `iv XOR number` (TLS 1.3, and ChaCha20-Poly1305 everywhere).
    Implicit,
    /// Four secret bytes, then eight bytes that stand in front of the ciphertext (RFC 5288).
    Explicit,
}

impl NonceScheme {
    /// Bytes that a record's body holds in front of the ciphertext.
    pub const fn explicit_len(self) -> usize {
        match self {
            Self::Implicit => 0,
            Self::Explicit => EXPLICIT_NONCE_LEN,
        }
    }
}

/// The key, the tag or the buffer is not right. Says no more on purpose (no decryption oracle).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AeadError;

impl std::fmt::Display for AeadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("authentication failed or the buffer is too small")
    }
}

impl std::error::Error for AeadError {}

/// One direction's key. `Sync`: threads may seal with it at once as long as no number is used twice.
pub struct Aead {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    scheme: NonceScheme,
}

impl std::fmt::Debug for Aead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aead").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl Aead {
    /// A key of `algorithm`; `iv` is the whole static IV (for RFC 5288: salt, then what the
    /// sequence number is XORed with).
    ///
    /// # Errors
    /// When `key` does not have [`Algorithm::key_len`] bytes.
    pub fn new(
        algorithm: Algorithm,
        key: &[u8],
        iv: [u8; NONCE_LEN],
        scheme: NonceScheme,
    ) -> Result<Self, AeadError> {
        let key = UnboundKey::new(algorithm.ring(), key).map_err(|_| AeadError)?;
        Ok(Self { key: LessSafeKey::new(key), iv, scheme })
    }

    /// Bytes in front of the ciphertext in a record's body: 0 or 8.
    pub const fn explicit_len(&self) -> usize {
        self.scheme.explicit_len()
    }

    /// Bytes that a body is longer than its plaintext: 16 or 24.
    pub const fn overhead(&self) -> usize {
        self.explicit_len() + TAG_LEN
    }

    /// Seals `body` in place. `body` is laid out as the wire wants it: room for the explicit nonce
    /// (if any), the plaintext, room for the tag.
    ///
    /// `number` must never be used twice with one key: that would give the key away (GCM).
    ///
    /// # Errors
    /// When `body` is shorter than [`Self::overhead`].
    #[inline]
    pub fn seal(&self, number: u64, aad: &[u8], body: &mut [u8]) -> Result<(), AeadError> {
        let nonce = self.nonce(number);
        let text = match self.scheme {
            NonceScheme::Implicit => body,
            NonceScheme::Explicit => {
                let (explicit, text) = body.split_first_chunk_mut::<EXPLICIT_NONCE_LEN>().ok_or(AeadError)?;
                let [_, _, _, _, tail @ ..] = nonce;
                *explicit = tail;
                text
            }
        };
        let (text, room) = text.split_last_chunk_mut::<TAG_LEN>().ok_or(AeadError)?;
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), text)
            .map_err(|_| AeadError)?;
        room.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens `body` (as [`Self::seal`] leaves it) in place and gives the plaintext.
    ///
    /// # Errors
    /// When the tag does not fit, or `body` is shorter than [`Self::overhead`]. The contents of
    /// `body` are then worthless.
    #[inline]
    pub fn open<'a>(&self, number: u64, aad: &[u8], body: &'a mut [u8]) -> Result<&'a mut [u8], AeadError> {
        let (nonce, text) = match self.scheme {
            NonceScheme::Implicit => (self.nonce(number), body),
            NonceScheme::Explicit => {
                let (explicit, text) = body.split_first_chunk_mut::<EXPLICIT_NONCE_LEN>().ok_or(AeadError)?;
                let [s0, s1, s2, s3, ..] = self.iv;
                let [e0, e1, e2, e3, e4, e5, e6, e7] = *explicit;
                ([s0, s1, s2, s3, e0, e1, e2, e3, e4, e5, e6, e7], text)
            }
        };
        self.key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), text)
            .map_err(|_| AeadError)
    }

    /// `iv XOR number`, the number as a 96-bit big-endian integer (RFC 8446 5.3).
    #[inline]
    fn nonce(&self, number: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, n) in nonce.iter_mut().skip(4).zip(number.to_be_bytes()) {
            *byte ^= n;
        }
        nonce
    }
}
