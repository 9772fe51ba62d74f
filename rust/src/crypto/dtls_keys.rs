//! Keys of datagram tunnels: the pre-shared key before the handshake, the record keys after it.

use ring::hmac;
use zeroize::{Zeroize, Zeroizing};

use super::aead::{Aead, AeadError, Algorithm, NONCE_LEN, NonceScheme};
use super::tls_record::Side;
use super::tls_secret::expand_sha256;

/// The longest key block of our two ciphers: ChaCha20-Poly1305 with 2 keys and 2 IVs.
const MAX_KEY_BLOCK: usize = 2 * 32 + 2 * NONCE_LEN;

/// The pre-shared key of the datagram tunnel `tsid`, from the TLS session of its stream tunnel:
/// HKDF-Expand(SHA-256, `ddt_root`, "ddt" || TSID, 32 bytes) (docs/protocol.md, "Keys").
pub fn psk_for(ddt_root: &[u8; 32], tsid: u64) -> [u8; 32] {
    // The expansion of 32 bytes cannot fail; were it to, a random-looking key fails the handshake
    // where an all-zero one would be a hole.
    expand_sha256(ddt_root, &[b"ddt", &tsid.to_be_bytes()]).unwrap_or(*ddt_root)
}

/// What the key block is made of.
pub(super) struct SessionSecrets {
    pub(super) master: Zeroizing<[u8; 48]>,
    pub(super) client_random: [u8; 32],
    pub(super) server_random: [u8; 32],
}

/// The AEADs for sending and receiving (RFC 5246 6.3).
pub(super) fn record_keys(
    secrets: &SessionSecrets,
    algorithm: Algorithm,
    side: Side,
) -> Result<(Aead, Aead), AeadError> {
    let (iv_len, scheme) =
        if algorithm.is_gcm() { (4, NonceScheme::Explicit) } else { (NONCE_LEN, NonceScheme::Implicit) };
    let mut block = Zeroizing::new([0; MAX_KEY_BLOCK]);
    expand_key_block(secrets, block.as_mut());
    let (client_key, rest) = cut(block.as_ref(), algorithm.key_len())?;
    let (server_key, rest) = cut(rest, algorithm.key_len())?;
    let (client_iv, rest) = cut(rest, iv_len)?;
    let (server_iv, _) = cut(rest, iv_len)?;
    let client = Aead::new(algorithm, client_key, padded(client_iv), scheme)?;
    let server = Aead::new(algorithm, server_key, padded(server_iv), scheme)?;
    Ok(match side {
        Side::Client => (client, server),
        Side::Server => (server, client),
    })
}

/// Record keys that no handshake gave, for a row without a peer (see `python/rows.rs`).
#[cfg(feature = "rows")]
pub fn generated_keys(psk: &[u8; 32]) -> Result<super::DtlsKeys, AeadError> {
    let mut master = Zeroizing::new([0; 48]);
    for (room, byte) in master.iter_mut().zip(psk) {
        *room = *byte;
    }
    let secrets = SessionSecrets { master, client_random: *psk, server_random: [0; 32] };
    let algorithm = Algorithm::Aes128Gcm;
    let (tx, rx) = record_keys(&secrets, algorithm, Side::Server)?;
    let (tx, rx) = (super::DatagramSealer::new(tx, algorithm), super::DatagramOpener::new(rx));
    Ok(super::DtlsKeys { tx, rx, algorithm })
}

fn cut(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), AeadError> {
    bytes.split_at_checked(at).ok_or(AeadError)
}

/// A GCM salt is followed by the record's own eight bytes: zero XOR epoch and sequence number.
fn padded(iv: &[u8]) -> [u8; NONCE_LEN] {
    let mut whole = [0; NONCE_LEN];
    for (room, byte) in whole.iter_mut().zip(iv) {
        *room = *byte;
    }
    whole
}

/// PRF(master secret, "key expansion", server random || client random) with SHA-256 (RFC 5246 5).
fn expand_key_block(secrets: &SessionSecrets, out: &mut [u8]) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secrets.master.as_ref());
    let seed = [b"key expansion".as_slice(), &secrets.server_random, &secrets.client_random];
    let mac = |first: &[u8]| {
        let mut context = hmac::Context::with_key(&key);
        context.update(first);
        for part in seed {
            context.update(part);
        }
        context.sign()
    };
    let mut a = mac(&[]);
    for piece in out.chunks_mut(32) {
        let mut bytes = [0; 32];
        for (room, byte) in bytes.iter_mut().zip(mac(a.as_ref()).as_ref()) {
            *room = *byte;
        }
        for (room, byte) in piece.iter_mut().zip(bytes) {
            *room = byte;
        }
        bytes.zeroize();
        a = hmac::sign(&key, a.as_ref());
    }
}
