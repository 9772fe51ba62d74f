//! TLS against OpenSSL, both roles, both versions.

use openssl::ssl::{
    AlpnError, Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVerifyMode, SslVersion,
    select_next_proto,
};

use super::super::aead::Algorithm;
use super::super::openssl_ffi;
use super::super::tls_record::{Record, RecordError, SealError, TlsVersion};
use super::super::{ClientProfile, Finished, ServerProfile, TlsHandshake};
use super::support::{End, Pipe, Prng, World};

/// An OpenSSL end over memory.
struct Peer(SslStream<Pipe>);

impl Peer {
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0.get_mut().output)
    }

    fn give(&mut self, bytes: &[u8]) {
        self.0.get_mut().input.extend(bytes);
    }

    fn write(&mut self, plain: &[u8]) -> Vec<u8> {
        assert_eq!(self.0.ssl_write(plain).unwrap(), plain.len());
        self.take()
    }

    fn read(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.give(bytes);
        let mut plain = Vec::new();
        let mut buf = [0; 20_000];
        while let Ok(len @ 1..) = self.0.ssl_read(&mut buf) {
            plain.extend_from_slice(&buf[..len]);
        }
        plain
    }

    fn exported(&self) -> [u8; 64] {
        let mut out = [0; 64];
        self.0.ssl().export_keying_material(&mut out, "EXPORTER-opentsm-1", None).unwrap();
        out
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    version: TlsVersion,
    cipher: &'static str,
    algorithm: Algorithm,
}

const CASES: [Case; 6] = [
    case(TlsVersion::Tls13, "TLS_AES_128_GCM_SHA256", Algorithm::Aes128Gcm),
    case(TlsVersion::Tls13, "TLS_AES_256_GCM_SHA384", Algorithm::Aes256Gcm),
    case(TlsVersion::Tls13, "TLS_CHACHA20_POLY1305_SHA256", Algorithm::ChaCha20Poly1305),
    case(TlsVersion::Tls12, "ECDHE-ECDSA-AES128-GCM-SHA256", Algorithm::Aes128Gcm),
    case(TlsVersion::Tls12, "ECDHE-ECDSA-AES256-GCM-SHA384", Algorithm::Aes256Gcm),
    case(TlsVersion::Tls12, "ECDHE-ECDSA-CHACHA20-POLY1305", Algorithm::ChaCha20Poly1305),
];

const fn case(version: TlsVersion, cipher: &'static str, algorithm: Algorithm) -> Case {
    Case { version, cipher, algorithm }
}

fn context(case: Case) -> SslContextBuilder {
    let mut builder = SslContext::builder(SslMethod::tls()).unwrap();
    match case.version {
        TlsVersion::Tls13 => builder.set_ciphersuites(case.cipher).unwrap(),
        TlsVersion::Tls12 => {
            builder.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
            builder.set_cipher_list(case.cipher).unwrap();
        }
    }
    builder
}

fn with_server(case: Case) -> (Finished, Peer) {
    let world = World::new();
    let mut builder = context(case);
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_alpn_protos(b"\x09opentsm/1").unwrap();
    let ssl = Ssl::new(&builder.build()).unwrap();
    let mut peer = Peer(SslStream::new(ssl, Pipe::default()).unwrap());
    let profile = ServerProfile::new(&world.server_settings()).unwrap();
    let mut ours = TlsHandshake::server(&profile).unwrap();
    let mut done = false;
    while !(done && peer.0.connect().is_ok()) {
        let _ = peer.0.connect();
        let mut out = Vec::new();
        done |= ours.feed(&peer.take(), &mut out).unwrap().done;
        peer.give(&out);
    }
    (ours.finish().unwrap(), peer)
}

fn with_client(case: Case) -> (Finished, Peer) {
    let world = World::new();
    let mut builder = context(case);
    builder.set_certificate(&world.leaf.certificate).unwrap();
    builder.set_private_key(&world.leaf.key).unwrap();
    builder.set_alpn_select_callback(|_, offered| {
        select_next_proto(b"\x09opentsm/1", offered).ok_or(AlpnError::ALERT_FATAL)
    });
    let ssl = Ssl::new(&builder.build()).unwrap();
    let mut peer = Peer(SslStream::new(ssl, Pipe::default()).unwrap());
    let profile = ClientProfile::new(&world.client_settings(true)).unwrap();
    let mut ours = TlsHandshake::client(&profile, "tsm.example").unwrap();
    let mut done = false;
    let mut late = Vec::new();
    while !done {
        let mut out = Vec::new();
        let bytes = peer.take();
        let step = ours.feed(&bytes, &mut out).unwrap();
        done = step.done;
        late.extend_from_slice(&bytes[step.consumed..]);
        peer.give(&out);
        let _ = peer.0.accept();
    }
    peer.0.accept().unwrap();
    // What OpenSSL sent after its handshake (session tickets) must not be lost.
    late.extend(peer.take());
    peer.0.get_mut().output = late;
    (ours.finish().unwrap(), peer)
}

fn check_keys(finished: &Finished, peer: &Peer, case: Case) {
    let exported = peer.exported();
    assert_eq!(finished.ddt_root, exported[..32], "{case:?}");
    assert_eq!(finished.resume_binding, exported[32..], "{case:?}");
    assert_eq!(finished.version, case.version);
    assert_eq!(finished.algorithm, case.algorithm);
    assert_eq!(finished.alpn.as_deref(), Some(&b"opentsm/1"[..]));
}

fn check_data(ours: &mut End, peer: &mut Peer, prng: &mut Prng) {
    for len in [1, 15, 16, 17, 200, 1_400, 16_000] {
        let plain = prng.bytes(len);
        let record = ours.seal(&plain);
        assert_eq!(peer.read(&record), plain);
        let record = peer.write(&plain);
        assert_eq!(ours.data(&record), plain);
    }
}

#[test]
fn openssl_client_with_our_server() {
    for case in CASES {
        let (finished, mut peer) = with_server(case);
        check_keys(&finished, &peer, case);
        let mut ours = End::new(finished);
        check_data(&mut ours, &mut peer, &mut Prng(7));
    }
}

#[test]
fn openssl_server_with_our_client() {
    for case in CASES {
        let (finished, mut peer) = with_client(case);
        check_keys(&finished, &peer, case);
        let mut ours = End::new(finished);
        let early = ours.open(&peer.take());
        assert!(early.iter().all(|(record, _)| *record == Record::Ignore), "tickets");
        assert_eq!(early.is_empty(), case.version == TlsVersion::Tls12);
        check_data(&mut ours, &mut peer, &mut Prng(8));
    }
}

#[test]
fn key_updates_with_openssl() {
    for case in &CASES[..3] {
        for (finished, mut peer) in [with_server(*case), with_client(*case)] {
            let mut ours = End::new(finished);
            ours.open(&peer.take());
            let mut prng = Prng(9);
            for _ in 0..3 {
                openssl_ffi::key_update(&mut peer.0, true);
                let wire = peer.write(b"after update");
                let seen = ours.open(&wire);
                assert_eq!(seen[0].0, Record::KeyUpdate { request: true });
                assert_eq!(seen[1].1, b"after update");
                let mut answer = Vec::new();
                ours.sealer.key_update_record(false, &mut answer).unwrap();
                assert_eq!(peer.read(&answer), b"");
                check_data(&mut ours, &mut peer, &mut prng);
                let mut asking = Vec::new();
                ours.sealer.key_update_record(true, &mut asking).unwrap();
                assert_eq!(peer.read(&asking), b"");
                let wire = peer.write(b"as asked");
                let seen = ours.open(&wire);
                assert_eq!(seen[0].0, Record::KeyUpdate { request: false });
                check_data(&mut ours, &mut peer, &mut prng);
            }
        }
    }
}

#[test]
fn tls12_has_no_key_update() {
    let (finished, _) = with_server(CASES[3]);
    let mut ours = End::new(finished);
    assert!(!ours.sealer.needs_update());
    let result = ours.sealer.key_update_record(false, &mut Vec::new());
    assert_eq!(result, Err(SealError::NoKeyUpdate));
}

#[test]
fn closing_with_openssl() {
    for case in CASES {
        let (finished, mut peer) = with_server(case);
        let mut ours = End::new(finished);
        let mut wire = Vec::new();
        ours.sealer.close_notify(&mut wire).unwrap();
        peer.give(&wire);
        let error = peer.0.ssl_read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.code(), openssl::ssl::ErrorCode::ZERO_RETURN);
        peer.0.shutdown().unwrap();
        assert_eq!(ours.open(&peer.take())[0].0, Record::Close);
    }
}

#[test]
fn tls12_renegotiation_is_refused() {
    let (finished, mut peer) = with_server(CASES[3]);
    let mut ours = End::new(finished);
    openssl_ffi::renegotiate(&mut peer.0);
    let _ = peer.0.do_handshake();
    let mut hello = peer.take();
    assert!(!hello.is_empty());
    assert_eq!(ours.opener.open_record(&mut hello), Err(RecordError::Unexpected));
}

#[test]
fn damage_in_tls12_is_noticed() {
    for case in &CASES[3..] {
        let (finished, mut peer) = with_server(*case);
        let mut ours = End::new(finished);
        let record = peer.write(&[1; 20]);
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 0x80;
            assert!(ours.opener.open_record(&mut damaged).is_err(), "byte {at}");
        }
        assert_eq!(ours.data(&record), [1; 20]);
    }
}
