//! DTLS against OpenSSL, both roles: the handshake, then records of each kind.

use std::net::SocketAddr;

use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslStream, SslVersion};

use super::super::aead::Algorithm;
use super::super::dtls::{Datagrams, DtlsHandshake, ListenOutcome, Progress, Wire};
use super::super::dtls_record::{MAX_PLAIN, Opened};
use super::super::{DtlsKeys, OpenError};
use super::datagram::{client, listener};
use super::records::seal;
use super::support::Prng;

const IDENTITY: &[u8] = b"00deadbeef010203\0";
const PSK: [u8; 32] = [0x5a; 32];
const SUITES: [(&str, Algorithm); 2] =
    [("PSK-AES128-GCM-SHA256", Algorithm::Aes128Gcm), ("PSK-CHACHA20-POLY1305", Algorithm::ChaCha20Poly1305)];

struct Peer(SslStream<Wire>);

impl Peer {
    fn new(builder: SslContextBuilder) -> Self {
        let mut ssl = Ssl::new(&builder.build()).unwrap();
        ssl.set_mtu(1_400).unwrap();
        Self(SslStream::new(ssl, Wire::default()).unwrap())
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let output = self.0.get_mut().take_output();
        output.iter().map(<[u8]>::to_vec).collect()
    }

    fn write(&mut self, plain: &[u8]) -> Vec<u8> {
        self.0.ssl_write(plain).unwrap();
        self.take().pop().unwrap()
    }

    fn read(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        self.0.get_mut().put(datagram);
        let mut buf = vec![0; MAX_PLAIN];
        let len = self.0.ssl_read(&mut buf).ok()?;
        Some(buf[..len].to_vec())
    }
}

fn context(suite: &str) -> SslContextBuilder {
    let mut builder = SslContext::builder(SslMethod::dtls()).unwrap();
    builder.set_min_proto_version(Some(SslVersion::DTLS1_2)).unwrap();
    builder.set_cipher_list(&format!("{suite}:@SECLEVEL=1")).unwrap();
    builder.set_options(SslOptions::NO_QUERY_MTU);
    builder.set_psk_client_callback(|_, _, identity, psk| {
        identity[..IDENTITY.len()].copy_from_slice(IDENTITY);
        psk[..32].copy_from_slice(&PSK);
        Ok(32)
    });
    builder.set_psk_server_callback(|_, identity, psk| {
        assert_eq!(identity.unwrap(), &IDENTITY[..16]);
        psk[..32].copy_from_slice(&PSK);
        Ok(32)
    });
    builder
}

/// OpenSSL connects to our listener.
fn with_server(suite: &str) -> (DtlsKeys, Peer) {
    let from: SocketAddr = "198.51.100.3:40000".parse().unwrap();
    let listener = listener(PSK);
    let mut peer = Peer::new(context(suite));
    let mut server: Option<Box<DtlsHandshake>> = None;
    while peer.0.connect().is_err() {
        let mut out = Datagrams::new();
        for datagram in peer.take() {
            match &mut server {
                Some(server) => {
                    server.feed(&datagram, &mut out).unwrap();
                }
                None => {
                    if let ListenOutcome::Accepted(new) = listener.feed(&from, &datagram, &mut out) {
                        server = Some(new);
                    }
                }
            }
        }
        for datagram in out.iter() {
            peer.0.get_mut().put(datagram);
            let _ = peer.0.connect();
        }
    }
    (server.unwrap().finish().unwrap(), peer)
}

/// We connect to OpenSSL.
fn with_client(suite: &str) -> (DtlsKeys, Peer) {
    let mut peer = Peer::new(context(suite));
    let mut client = client(PSK);
    let mut out = Datagrams::new();
    client.start(&mut out).unwrap();
    while !client.is_done() {
        for datagram in std::mem::take(&mut out).iter() {
            peer.0.get_mut().put(datagram);
            let _ = peer.0.accept();
        }
        for datagram in peer.take() {
            client.feed(&datagram, &mut out).unwrap();
        }
    }
    peer.0.accept().unwrap();
    (client.finish().unwrap(), peer)
}

fn check(mut keys: DtlsKeys, mut peer: Peer, algorithm: Algorithm) {
    assert_eq!(keys.algorithm, algorithm);
    let mut prng = Prng(11);
    for len in [1, 16, 200, 1_000, 1_300] {
        let plain = prng.bytes(len);
        let record = seal(&keys.tx, &plain);
        assert_eq!(peer.read(&record), Some(plain.clone()));
        assert_eq!(peer.read(&record), None, "OpenSSL sees a replay");
        let mut record = peer.write(&plain);
        let mut again = record.clone();
        assert_eq!(keys.rx.open_in_place(&mut record), Ok(Opened::Data(&mut plain.clone())));
        assert_eq!(keys.rx.open_in_place(&mut again), Err(OpenError::Replay));
    }
    let mut close = Vec::new();
    keys.tx.close_notify(&mut close).unwrap();
    assert_eq!(peer.read(&close), None);
    assert!(peer.0.get_shutdown().contains(openssl::ssl::ShutdownState::RECEIVED));
    peer.0.shutdown().unwrap();
    let mut close = peer.take().pop().unwrap();
    assert_eq!(keys.rx.open_in_place(&mut close), Ok(Opened::Close));
}

#[test]
fn openssl_client_with_our_listener() {
    for (suite, algorithm) in SUITES {
        let (keys, peer) = with_server(suite);
        check(keys, peer, algorithm);
    }
}

#[test]
fn openssl_server_with_our_client() {
    for (suite, algorithm) in SUITES {
        let (keys, peer) = with_client(suite);
        check(keys, peer, algorithm);
    }
}

#[test]
fn other_suites_are_refused() {
    let listener = listener(PSK);
    let from: SocketAddr = "198.51.100.3:40000".parse().unwrap();
    let mut peer = Peer::new(context("PSK-AES128-CBC-SHA256"));
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let _ = peer.0.connect();
        let mut out = Datagrams::new();
        for datagram in peer.take() {
            outcomes.push(format!("{:?}", listener.feed(&from, &datagram, &mut out)));
        }
        for datagram in out.iter() {
            peer.0.get_mut().put(datagram);
        }
    }
    assert_eq!(outcomes, ["Reply", "Ignore(\"dtls_protocol\")"]);
}

#[test]
fn a_repeated_finished_of_openssl_is_answered_after_the_keys_are_taken() {
    let from: SocketAddr = "198.51.100.3:40000".parse().unwrap();
    let listener = listener(PSK);
    let mut peer = Peer::new(context(SUITES[0].0));
    let mut server: Option<Box<DtlsHandshake>> = None;
    let mut keys = None;
    for _ in 0..3 {
        let _ = peer.0.connect();
        let mut out = Datagrams::new();
        for datagram in peer.take() {
            let Some(server) = &mut server else {
                if let ListenOutcome::Accepted(new) = listener.feed(&from, &datagram, &mut out) {
                    server = Some(new);
                }
                continue;
            };
            if server.feed(&datagram, &mut out) == Ok(Progress::Done) {
                keys = Some(server.finish().unwrap());
                out.clear(); // The server's last flight is lost.
            }
        }
        for datagram in out.iter() {
            peer.0.get_mut().put(datagram);
            let _ = peer.0.connect();
        }
    }
    let mut keys = keys.unwrap();
    let mut out = Datagrams::new();
    // OpenSSL's own timer of one second.
    while out.is_empty() {
        super::let_timer_expire(super::super::openssl_ffi::next_timeout(peer.0.ssl()).unwrap());
        super::super::openssl_ffi::handle_timeout(&mut peer.0);
        for datagram in peer.take() {
            server.as_mut().unwrap().feed(&datagram, &mut out).unwrap();
        }
    }
    // Our own data may have gone out before: it comes first, then the repeated flight.
    let record = seal(&keys.tx, b"already");
    for datagram in out.iter() {
        peer.0.get_mut().put(datagram);
        let _ = peer.0.connect();
    }
    peer.0.connect().unwrap();
    assert_eq!(peer.read(&record), Some(b"already".to_vec()));
    let mut record = peer.write(b"back");
    assert_eq!(keys.rx.open_in_place(&mut record), Ok(Opened::Data(&mut b"back".to_vec())));
}
