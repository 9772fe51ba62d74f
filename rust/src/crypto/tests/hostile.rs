//! Random and damaged bytes: errors with names, never a panic.

use std::net::SocketAddr;

use super::super::dtls::{Datagrams, ListenOutcome};
use super::super::dtls_record::{content_type, is_client_hello, records};
use super::super::tls_record::record_length;
use super::datagram::{client, listener};
use super::records::{ALGORITHMS, seal, sealer_and_opener};
use super::support::{End, Prng, World, shake};

const PSK: [u8; 32] = [0x5a; 32];

fn from() -> SocketAddr {
    "203.0.113.9:1".parse().unwrap()
}

/// Bytes that look like what is expected, up to a point.
fn noise(prng: &mut Prng, genuine: &[u8]) -> Vec<u8> {
    match prng.below(4) {
        0 => {
            let len = prng.below(300);
            prng.bytes(len)
        }
        1 => {
            let mut bytes = genuine.to_vec();
            for _ in 0..1 + prng.below(4) {
                let at = prng.below(bytes.len());
                bytes[at] = prng.next() as u8;
            }
            bytes
        }
        2 => genuine[..prng.below(genuine.len())].to_vec(),
        _ => {
            let mut bytes = genuine[..13.min(genuine.len())].to_vec();
            let len = prng.below(200);
            bytes.extend(prng.bytes(len));
            bytes
        }
    }
}

#[test]
fn the_datagram_opener_survives() {
    for algorithm in ALGORITHMS {
        let mut prng = Prng(21);
        let (sealer, mut opener) = sealer_and_opener(algorithm);
        for _ in 0..20_000 {
            let genuine = seal(&sealer, b"a frame or two");
            let mut bytes = noise(&mut prng, &genuine);
            let _ = content_type(&bytes);
            for record in records(&mut bytes) {
                let _ = opener.open_in_place(record);
            }
        }
    }
}

#[test]
fn the_stream_opener_survives() {
    let (server, client) = World::new().pair();
    let (server, client) = shake(server, client, 9_999).unwrap();
    let (mut server, mut client) = (End::new(server), End::new(client));
    let mut prng = Prng(22);
    let genuine = client.seal(b"a frame or two");
    for _ in 0..20_000 {
        let mut bytes = noise(&mut prng, &genuine);
        let _ = record_length(&bytes);
        if bytes != genuine {
            assert!(server.opener.open_record(&mut bytes).is_err());
        }
    }
    assert_eq!(server.data(&genuine), b"a frame or two", "a failed record changes nothing");
}

#[test]
fn the_tls_handshakes_survive() {
    let world = World::new();
    let mut prng = Prng(23);
    for round in 0..300 {
        let (mut server, mut client) = world.pair();
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        client.feed(&[], &mut to_server).unwrap();
        if round % 2 == 0 {
            let _ = server.feed(&noise(&mut prng, &to_server), &mut to_client);
        } else {
            server.feed(&to_server, &mut to_client).unwrap();
            let _ = client.feed(&noise(&mut prng, &to_client), &mut to_server);
        }
    }
}

#[test]
fn the_listener_survives() {
    let listener = listener(PSK);
    let mut prng = Prng(24);
    let mut hello = Datagrams::new();
    client(PSK).start(&mut hello).unwrap();
    let hello = hello.iter().next().unwrap().to_vec();
    let mut out = Datagrams::new();
    for _ in 0..20_000 {
        out.clear();
        let bytes = noise(&mut prng, &hello);
        let _ = is_client_hello(&bytes);
        let outcome = listener.feed(&from(), &bytes, &mut out);
        assert!(!matches!(outcome, ListenOutcome::Accepted(_)), "nobody guesses a cookie");
    }
}

#[test]
fn the_datagram_handshakes_survive() {
    let mut prng = Prng(25);
    for _ in 0..200 {
        let listener = listener(PSK);
        let mut client = client(PSK);
        let (mut to_server, mut to_client) = (Datagrams::new(), Datagrams::new());
        client.start(&mut to_server).unwrap();
        listener.feed(&from(), to_server.iter().last().unwrap(), &mut to_client);
        let verify = to_client.iter().last().unwrap().to_vec();
        if prng.below(2) == 0 {
            let _ = client.feed(&noise(&mut prng, &verify), &mut to_server);
            continue;
        }
        client.feed(&verify, &mut to_server).unwrap();
        let hello = to_server.iter().last().unwrap().to_vec();
        to_client.clear();
        let ListenOutcome::Accepted(mut server) = listener.feed(&from(), &hello, &mut to_client) else {
            panic!("not accepted");
        };
        let flight = to_client.iter().last().unwrap().to_vec();
        let _ = client.feed(&noise(&mut prng, &flight), &mut to_server);
        let _ = client.feed(&flight, &mut to_server);
        let answer = to_server.iter().last().unwrap().to_vec();
        for _ in 0..5 {
            let _ = server.feed(&noise(&mut prng, &answer), &mut to_client);
        }
    }
}

/// A hello with the right cookie and anything behind it reaches OpenSSL: still no panic.
#[test]
fn the_listener_survives_peers_that_hold_a_cookie() {
    let listener = listener(PSK);
    let mut client = client(PSK);
    let (mut to_server, mut to_client) = (Datagrams::new(), Datagrams::new());
    client.start(&mut to_server).unwrap();
    listener.feed(&from(), to_server.iter().last().unwrap(), &mut to_client);
    client.feed(to_client.iter().last().unwrap(), &mut to_server).unwrap();
    let hello = to_server.iter().last().unwrap().to_vec();
    let mut prng = Prng(26);
    let after_cookie = 13 + 12 + 2 + 32 + 1 + 1 + 32;
    for _ in 0..2_000 {
        let mut bytes = hello.clone();
        for _ in 0..1 + prng.below(6) {
            let at = after_cookie + prng.below(bytes.len() - after_cookie);
            bytes[at] = prng.next() as u8;
        }
        listener.feed(&from(), &bytes, &mut to_client);
        to_client.clear();
    }
}
