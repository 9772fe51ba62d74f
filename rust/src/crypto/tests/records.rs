//! AEAD and datagram records by themselves.

use super::super::aead::{Aead, AeadError, Algorithm, NonceScheme};
use super::super::dtls_keys::{SessionSecrets, psk_for, record_keys};
use super::super::dtls_record::{
    DatagramOpener, DatagramSealError, DatagramSealer, FIRST_SEQUENCE, GCM_RECORD_LIMIT, HEADER_LEN,
    MAX_PLAIN, OpenError, Opened, content_type, is_client_hello, nonces_are_apart, records,
};
use super::super::tls_record::Side;
use super::super::tls_secret::TrafficSecret;
use super::support::Prng;

pub const ALGORITHMS: [Algorithm; 3] =
    [Algorithm::Aes128Gcm, Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

pub fn sealer_and_opener(algorithm: Algorithm) -> (DatagramSealer, DatagramOpener) {
    let secrets = || SessionSecrets {
        master: zeroize::Zeroizing::new([3; 48]),
        client_random: [1; 32],
        server_random: [2; 32],
    };
    let (tx, _) = record_keys(&secrets(), algorithm, Side::Client).unwrap();
    let (_, rx) = record_keys(&secrets(), algorithm, Side::Server).unwrap();
    (DatagramSealer::new(tx, algorithm), DatagramOpener::new(rx))
}

pub fn seal(sealer: &DatagramSealer, plain: &[u8]) -> Vec<u8> {
    let room = sealer.headroom();
    let mut buf = vec![0; plain.len() + sealer.overhead()];
    buf[room..room + plain.len()].copy_from_slice(plain);
    let len = sealer.seal_in_place(&mut buf, plain.len()).unwrap();
    assert_eq!(len, buf.len());
    buf
}

fn data(opener: &mut DatagramOpener, record: &[u8]) -> Result<Vec<u8>, OpenError> {
    match opener.open_in_place(&mut record.to_vec())? {
        Opened::Data(plain) => Ok(plain.to_vec()),
        other => panic!("{other:?}"),
    }
}

/// RFC 8448 section 3, "Simple 1-RTT Handshake": the client's first application record.
#[test]
fn tls13_keys_and_records_as_in_rfc_8448() {
    let secret = unhex(
        "9e 40 64 6c e7 9a 7f 9d c0 5a f8 88 9b ce 65 52 87 5a fa 0b 06 df 00 87 f7 92 eb b7 c1 75 04 a5",
    );
    let secret = TrafficSecret::new(Algorithm::Aes128Gcm, &secret).unwrap();
    let aead = secret.aead().unwrap();
    let mut body: Vec<u8> = (0..50).collect();
    body.push(23);
    body.extend([0; 16]);
    aead.seal(0, &[0x17, 3, 3, 0, 0x43], &mut body).unwrap();
    let expected = unhex(
        "a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19 \
         a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a \
         ee bb 21 69 49 15 e4",
    );
    assert_eq!(body, expected);
}

/// The keys are the specified function of their input: HKDF-Expand computed with OpenSSL's HMAC.
#[test]
fn psk_is_hkdf_expand() {
    let root = [9; 32];
    let tsid = 0x0123_4567_89ab_cdef_u64;
    let mut message = b"ddt".to_vec();
    message.extend(tsid.to_be_bytes());
    message.push(1);
    let key = openssl::pkey::PKey::hmac(&root).unwrap();
    let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha256(), &key).unwrap();
    let expected = signer.sign_oneshot_to_vec(&message).unwrap();
    assert_eq!(psk_for(&root, tsid)[..], expected);
    assert_ne!(psk_for(&root, tsid), psk_for(&root, tsid + 1));
}

#[test]
fn aead_refuses_keys_and_buffers_of_the_wrong_size() {
    for algorithm in ALGORITHMS {
        let key = vec![0; algorithm.key_len() - 1];
        assert!(Aead::new(algorithm, &key, [0; 12], NonceScheme::Implicit).is_err());
        for scheme in [NonceScheme::Implicit, NonceScheme::Explicit] {
            let aead = Aead::new(algorithm, &vec![0; algorithm.key_len()], [0; 12], scheme).unwrap();
            for len in 0..aead.overhead() {
                assert_eq!(aead.seal(0, &[], &mut vec![0; len]), Err(AeadError));
                assert_eq!(aead.open(0, &[], &mut vec![0; len]), Err(AeadError));
            }
            assert!(aead.seal(0, &[], &mut vec![0; aead.overhead()]).is_ok());
        }
    }
}

#[test]
fn what_is_sealed_can_be_opened_once() {
    for algorithm in ALGORITHMS {
        let (sealer, mut opener) = sealer_and_opener(algorithm);
        let mut prng = Prng(3);
        for len in (0..300).chain([1_400, MAX_PLAIN]) {
            let plain = prng.bytes(len);
            let record = seal(&sealer, &plain);
            assert_eq!(data(&mut opener, &record).unwrap(), plain);
            assert_eq!(data(&mut opener, &record), Err(OpenError::Replay));
        }
        assert_eq!(opener.counters().lost, 0);
        assert_eq!(opener.counters().duplicates, 302);
    }
}

#[test]
fn losses_and_reordering_are_counted() {
    let (sealer, mut opener) = sealer_and_opener(Algorithm::Aes128Gcm);
    let first = seal(&sealer, b"first");
    let second = seal(&sealer, b"second");
    let _lost = seal(&sealer, b"lost");
    assert_eq!(data(&mut opener, &second).unwrap(), b"second");
    assert_eq!(data(&mut opener, &first).unwrap(), b"first");
    assert_eq!(opener.counters().reordered, 1);
    for _ in 0..3_000 {
        let record = seal(&sealer, b"x");
        data(&mut opener, &record).unwrap();
    }
    assert_eq!(opener.counters().lost, 1);
    assert_eq!(opener.next_sequence(), FIRST_SEQUENCE + 3_003);
    let stale = seal(&sealer_and_opener(Algorithm::Aes128Gcm).0, b"first");
    assert_eq!(data(&mut opener, &stale), Err(OpenError::TooOld));
}

#[test]
fn a_forged_record_does_not_move_the_window() {
    let (sealer, mut opener) = sealer_and_opener(Algorithm::Aes128Gcm);
    let record = seal(&sealer, b"genuine");
    let mut forged = record.clone();
    forged[5..11].copy_from_slice(&[0xff; 6]);
    assert_eq!(data(&mut opener, &forged), Err(OpenError::BadTag));
    assert_eq!(data(&mut opener, &record).unwrap(), b"genuine");
}

#[test]
fn every_damaged_byte_is_noticed() {
    for algorithm in ALGORITHMS {
        let (sealer, mut opener) = sealer_and_opener(algorithm);
        let record = seal(&sealer, &[8; 30]);
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 0x10;
            assert!(data(&mut opener, &damaged).is_err(), "byte {at}");
        }
        for len in 0..record.len() {
            let error = data(&mut opener, &record[..len]).unwrap_err();
            assert_eq!(error, OpenError::TooShort, "{len} bytes");
        }
        assert_eq!(data(&mut opener, &record).unwrap(), [8; 30]);
    }
}

#[test]
fn headers_are_checked_before_anything_is_decrypted() {
    let (sealer, mut opener) = sealer_and_opener(Algorithm::ChaCha20Poly1305);
    let record = seal(&sealer, b"x");
    let mut expect = |at: usize, value: u8, error: OpenError| {
        let mut changed = record.clone();
        changed[at] = value;
        assert_eq!(data(&mut opener, &changed), Err(error));
    };
    expect(0, 22, OpenError::WrongType);
    expect(2, 0xff, OpenError::WrongVersion);
    expect(4, 0, OpenError::WrongEpoch);
    expect(4, 2, OpenError::WrongEpoch);
    expect(12, 200, OpenError::TooShort);
}

#[test]
fn close_notify_is_recognised() {
    for algorithm in ALGORITHMS {
        let (sealer, mut opener) = sealer_and_opener(algorithm);
        let mut record = Vec::new();
        sealer.close_notify(&mut record).unwrap();
        assert_eq!(opener.open_in_place(&mut record.clone()), Ok(Opened::Close));
        assert_eq!(opener.open_in_place(&mut record), Err(OpenError::Replay));
    }
}

#[test]
fn a_key_that_is_used_up_seals_no_more() {
    let (sealer, _) = sealer_and_opener(Algorithm::Aes128Gcm);
    assert!(!sealer.needs_replacement());
    sealer.skip_to(GCM_RECORD_LIMIT / 2);
    assert!(sealer.needs_replacement());
    sealer.skip_to(GCM_RECORD_LIMIT - 1);
    let mut buf = [0; 100];
    assert!(sealer.seal_in_place(&mut buf, 10).is_ok());
    for _ in 0..3 {
        assert_eq!(sealer.seal_in_place(&mut buf, 10), Err(DatagramSealError::Exhausted));
    }
    assert_eq!(sealer.sealed(), GCM_RECORD_LIMIT);
}

#[test]
fn buffers_that_are_too_small_take_no_number() {
    let (sealer, _) = sealer_and_opener(Algorithm::Aes128Gcm);
    for len in 0..10 + sealer.overhead() {
        let result = sealer.seal_in_place(&mut vec![0; len], 10);
        assert_eq!(result, Err(DatagramSealError::BadLength));
    }
    let mut large = vec![0; 20_000];
    let result = sealer.seal_in_place(&mut large, MAX_PLAIN + 1);
    assert_eq!(result, Err(DatagramSealError::BadLength));
    assert_eq!(sealer.sealed(), 0);
}

#[test]
fn threads_share_a_sealer_without_using_a_number_twice() {
    let (sealer, mut opener) = sealer_and_opener(Algorithm::Aes128Gcm);
    let all: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let work = || (0..200).map(|_| seal(&sealer, b"together")).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for record in &all {
        assert_eq!(data(&mut opener, record).unwrap(), b"together");
    }
    assert_eq!(opener.counters().duplicates, 0);
}

#[test]
fn a_split_opener_does_the_same() {
    let (sealer, opener) = sealer_and_opener(Algorithm::Aes128Gcm);
    let (key, mut window) = opener.split();
    let mut record = seal(&sealer, b"parts");
    let number = key.parse(&record).unwrap();
    assert_eq!(number, FIRST_SEQUENCE);
    assert_eq!(key.open(&mut record), Ok(Opened::Data(&mut b"parts".to_vec())));
    window.mark(number);
    assert_eq!(window.counters().received, 1);
}

#[test]
fn a_datagram_is_cut_into_its_records() {
    let (sealer, mut opener) = sealer_and_opener(Algorithm::Aes128Gcm);
    let mut datagram = seal(&sealer, b"one");
    datagram.extend(seal(&sealer, b"two"));
    datagram.extend(seal(&sealer, b"three"));
    datagram.truncate(datagram.len() - 1);
    let found: Vec<_> = records(&mut datagram).map(|record| data(&mut opener, record)).collect();
    assert_eq!(found, [Ok(b"one".to_vec()), Ok(b"two".to_vec()), Err(OpenError::TooShort)]);
    assert_eq!(records(&mut []).count(), 0);
    assert_eq!(records(&mut [23; 5]).count(), 1);
}

#[test]
fn datagrams_are_recognised_by_their_header() {
    let mut hello = [0; HEADER_LEN + 1];
    hello[..5].copy_from_slice(&[22, 0xfe, 0xff, 0, 0]);
    hello[HEADER_LEN] = 1;
    assert_eq!(content_type(&hello), Some(22));
    assert!(is_client_hello(&hello));
    hello[4] = 1;
    assert!(!is_client_hello(&hello));
    assert_eq!(content_type(&hello[..HEADER_LEN - 1]), None);
    assert_eq!(content_type(b"REGISTER sip:example.com"), None);
}

#[test]
fn the_ranges_of_openssls_and_our_nonces_are_kept_apart() {
    let ours = (1_u64 << 48) | FIRST_SEQUENCE;
    for explicit in [0, (1 << 48) - 1, 1 << 48, ours + GCM_RECORD_LIMIT + 1, u64::MAX] {
        let apart = explicit != 1 << 48;
        assert_eq!(nonces_are_apart(explicit), apart, "{explicit:#x}");
    }
    assert!(!nonces_are_apart(ours));
    assert!(!nonces_are_apart(ours - 1));
    assert!(!nonces_are_apart(ours + GCM_RECORD_LIMIT));
    assert!(nonces_are_apart(ours - FIRST_SEQUENCE - 1));
}
