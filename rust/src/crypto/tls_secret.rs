//! TLS 1.3 application traffic secrets: the next one, and the keys from one (RFC 8446 7.1-7.3).

use ring::hkdf;
use zeroize::Zeroize;

use super::aead::{Aead, AeadError, Algorithm, NONCE_LEN, NonceScheme};

/// Longest secret: the output of SHA-384.
const MAX_SECRET: usize = 48;
const MAX_KEY: usize = 32;

/// One direction's application traffic secret. Wiped when dropped.
pub(super) struct TrafficSecret {
    algorithm: Algorithm,
    bytes: [u8; MAX_SECRET],
}

impl Drop for TrafficSecret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl std::fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrafficSecret(..)")
    }
}

impl TrafficSecret {
    /// A secret as the handshake gave it; `None` when its length is not that of the suite's hash.
    pub(super) fn new(algorithm: Algorithm, secret: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_SECRET];
        if secret.len() != hash_len(algorithm) {
            return None;
        }
        bytes.get_mut(..secret.len())?.copy_from_slice(secret);
        Some(Self { algorithm, bytes })
    }

    /// The secret after a KeyUpdate (RFC 8446 7.2).
    pub(super) fn next(&self) -> Result<Self, AeadError> {
        let mut next = Self { algorithm: self.algorithm, bytes: [0; MAX_SECRET] };
        let room = next.bytes.get_mut(..hash_len(self.algorithm)).ok_or(AeadError)?;
        self.expand(b"tls13 traffic upd", room)?;
        Ok(next)
    }

    /// The record key of this secret (RFC 8446 7.3).
    pub(super) fn aead(&self) -> Result<Aead, AeadError> {
        let mut key = [0; MAX_KEY];
        let mut iv = [0; NONCE_LEN];
        let room = key.get_mut(..self.algorithm.key_len()).ok_or(AeadError)?;
        self.expand(b"tls13 key", room)?;
        self.expand(b"tls13 iv", &mut iv)?;
        let aead = Aead::new(self.algorithm, room, iv, NonceScheme::Implicit);
        key.zeroize();
        aead
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446 7.1).
    fn expand(&self, label: &[u8], out: &mut [u8]) -> Result<(), AeadError> {
        let secret = self.bytes.get(..hash_len(self.algorithm)).ok_or(AeadError)?;
        let length = (out.len() as u16).to_be_bytes();
        let info = [&length[..], &[label.len() as u8], label, &[0]];
        hkdf::Prk::new_less_safe(hash(self.algorithm), secret)
            .expand(&info, Length(out.len()))
            .and_then(|okm| okm.fill(out))
            .map_err(|_| AeadError)
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand with SHA-256 of a 32-byte key into 32 bytes (RFC 5869 2.3).
pub(super) fn expand_sha256(key: &[u8; 32], info: &[&[u8]]) -> Result<[u8; 32], AeadError> {
    let mut out = [0; 32];
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, key)
        .expand(info, Length(32))
        .and_then(|okm| okm.fill(&mut out))
        .map_err(|_| AeadError)?;
    Ok(out)
}

/// Each algorithm has one hash in TLS 1.3 (RFC 8446 B.4).
fn hash(algorithm: Algorithm) -> hkdf::Algorithm {
    match algorithm {
        Algorithm::Aes256Gcm => hkdf::HKDF_SHA384,
        Algorithm::Aes128Gcm | Algorithm::ChaCha20Poly1305 => hkdf::HKDF_SHA256,
    }
}

const fn hash_len(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Aes256Gcm => 48,
        Algorithm::Aes128Gcm | Algorithm::ChaCha20Poly1305 => 32,
    }
}
