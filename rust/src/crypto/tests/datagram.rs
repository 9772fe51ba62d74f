//! DTLS between two of our ends, over a network that loses what we want.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::aead::Algorithm;
use super::super::dtls::{
    Datagrams, DtlsErrorKind, DtlsHandshake, DtlsListener, ListenOutcome, Progress, PskLookup,
    has_nonce_clash,
};
use super::super::dtls_context::{
    MIN_RETRANSMISSION, Role, identity_of, new_ssl, parse_identity, retransmission_us,
};
use super::super::dtls_record::{Opened, content_type, explicit_nonces, is_client_hello};
use super::super::tls_profile::has_fast_aes;
use super::super::{DatagramOpener, DatagramSealer, DtlsKeys};
use super::records::{seal, sealer_and_opener};

const TSID: u64 = 0x00de_adbe_ef01_0203;
const PSK: [u8; 32] = [0x5a; 32];

fn peer() -> SocketAddr {
    "192.0.2.7:5004".parse().unwrap()
}

pub fn lookup_of(tsid: u64, psk: [u8; 32]) -> PskLookup {
    Arc::new(move |asked| (asked == tsid).then_some(psk))
}

/// A wait that no test lives to see.
const LONG: Duration = Duration::from_secs(50);

pub fn listener(psk: [u8; 32]) -> DtlsListener {
    DtlsListener::new([1; 32], lookup_of(TSID, psk)).with_first_timeout(MIN_RETRANSMISSION)
}

pub fn client(psk: [u8; 32]) -> DtlsHandshake {
    DtlsHandshake::client(TSID, &psk, Some(MIN_RETRANSMISSION)).unwrap()
}

/// A client, a server, and a wire that loses the datagrams whose numbers are listed.
struct Net {
    listener: DtlsListener,
    client: DtlsHandshake,
    server: Option<DtlsHandshake>,
    client_keys: Option<DtlsKeys>,
    server_keys: Option<DtlsKeys>,
    lose: Vec<usize>,
    sent: usize,
    retransmitted: bool,
}

impl Net {
    fn new(lose: &[usize]) -> Self {
        let wait = if lose.is_empty() { LONG } else { MIN_RETRANSMISSION };
        Self {
            listener: listener(PSK).with_first_timeout(wait),
            client: DtlsHandshake::client(TSID, &PSK, Some(wait)).unwrap(),
            server: None,
            client_keys: None,
            server_keys: None,
            lose: lose.to_vec(),
            sent: 0,
            retransmitted: false,
        }
    }

    fn is_over(&self) -> bool {
        self.client_keys.is_some() && self.server_keys.is_some()
    }

    fn arrives(&mut self) -> bool {
        self.sent += 1;
        !self.lose.contains(&(self.sent - 1))
    }

    /// Carries datagrams to and fro until nobody has anything to say.
    fn carry(&mut self, mut to_server: Datagrams) {
        while !to_server.is_empty() {
            let mut to_client = Datagrams::new();
            for datagram in to_server.iter() {
                if self.arrives() {
                    self.serve(datagram, &mut to_client);
                }
            }
            to_server = Datagrams::new();
            for datagram in to_client.iter() {
                if self.arrives() {
                    let progress = self.client.feed(datagram, &mut to_server).unwrap();
                    if progress == Progress::Done && self.client_keys.is_none() {
                        self.client_keys = Some(self.client.finish().unwrap());
                    }
                }
            }
        }
    }

    fn serve(&mut self, datagram: &[u8], out: &mut Datagrams) {
        let Some(server) = &mut self.server else {
            if let ListenOutcome::Accepted(server) = self.listener.feed(&peer(), datagram, out) {
                self.server = Some(*server);
            }
            return;
        };
        match server.feed(datagram, out).unwrap() {
            Progress::Done if self.server_keys.is_none() => {
                assert_eq!(server.tsid(), Some(TSID));
                self.server_keys = Some(server.finish().unwrap());
            }
            Progress::Retransmitted => self.retransmitted = true,
            _ => {}
        }
    }

    fn run(&mut self) {
        let mut out = Datagrams::new();
        self.client.start(&mut out).unwrap();
        self.carry(out);
        for _ in 0..20 {
            if self.is_over() {
                return;
            }
            self.expire();
        }
        panic!("the handshake did not end; lost {:?}", self.lose);
    }

    /// Waits for OpenSSL's own timer (it reads the system's clock) and lets it act.
    fn expire(&mut self) {
        let mut to_server = Datagrams::new();
        if let Some(left) = self.client.next_timeout() {
            super::let_timer_expire(left);
        }
        self.client.on_timeout(&mut to_server).unwrap();
        self.carry(to_server);
    }
}

fn exchange(tx: &DatagramSealer, rx: &mut DatagramOpener) {
    for round in 0..50_u8 {
        let mut record = seal(tx, &[round; 200]);
        assert_eq!(rx.open_in_place(&mut record), Ok(Opened::Data(&mut [round; 200])));
    }
    assert_eq!(rx.counters().lost, 0);
}

fn check_keys(net: &mut Net) {
    let (mut client, mut server) = (net.client_keys.take().unwrap(), net.server_keys.take().unwrap());
    exchange(&client.tx, &mut server.rx);
    exchange(&server.tx, &mut client.rx);
}

#[test]
fn a_handshake_without_losses() {
    let mut net = Net::new(&[]);
    net.run();
    assert_eq!(net.sent, 6, "hello, verify, hello, server's, client's and server's flights");
    assert!(net.client.is_done());
    assert_eq!(net.client.next_timeout(), None);
    check_keys(&mut net);
}

#[test]
fn every_datagram_may_be_lost() {
    for lost in 0..6 {
        let mut net = Net::new(&[lost]);
        net.run();
        assert!(net.retransmitted || lost != 5, "the last flight was asked for again");
        check_keys(&mut net);
    }
}

#[test]
fn the_last_flight_may_be_lost_several_times() {
    let mut net = Net::new(&[5, 7]);
    net.run();
    assert!(net.retransmitted);
    check_keys(&mut net);
}

#[test]
fn a_duplicated_wire_does_no_harm() {
    let mut net = Net::new(&[]);
    let mut out = Datagrams::new();
    net.client.start(&mut out).unwrap();
    let first = out.clone();
    net.carry(out);
    assert!(net.is_over());
    net.carry(first);
    check_keys(&mut net);
}

#[test]
fn the_servers_timer_sends_again() {
    let mut net = Net::new(&[3]);
    let mut out = Datagrams::new();
    net.client.start(&mut out).unwrap();
    net.carry(out);
    let mut again = Datagrams::new();
    let server = net.server.as_mut().unwrap();
    super::let_timer_expire(server.next_timeout().unwrap());
    server.on_timeout(&mut again).unwrap();
    assert!(!again.is_empty());
}

#[test]
fn a_timer_that_still_runs_sends_nothing() {
    let mut client = DtlsHandshake::client(TSID, &PSK, Some(LONG)).unwrap();
    let mut out = Datagrams::new();
    client.start(&mut out).unwrap();
    out.clear();
    client.on_timeout(&mut out).unwrap();
    assert!(out.is_empty());
    assert!(client.next_timeout().unwrap() <= LONG);
}

#[test]
fn the_first_wait_is_ours_and_doubles() {
    let ssl = |first: Duration| {
        let psk = zeroize::Zeroizing::new(PSK);
        new_ssl(Role::Client { tsid: TSID, psk }, first).unwrap()
    };
    let hinted = ssl(Duration::from_millis(300));
    assert_eq!(retransmission_us(&hinted, 0), 300_000);
    assert_eq!(retransmission_us(&hinted, 300_000), 600_000);
    assert_eq!(retransmission_us(&hinted, 600_000), 1_000_000);
    assert_eq!(retransmission_us(&hinted, 3_000_000), 3_000_000, "a path of seconds is not flooded");
    assert_eq!(retransmission_us(&ssl(Duration::ZERO), 0), 50_000);
    assert_eq!(retransmission_us(&ssl(Duration::MAX), 0), 60_000_000);
}

#[test]
fn datagrams_fit_every_path() {
    let mut net = Net::new(&[]);
    let mut out = Datagrams::new();
    net.client.start(&mut out).unwrap();
    assert_eq!(out.len(), 1);
    for datagram in out.iter() {
        assert!(is_client_hello(datagram) && datagram.len() < 300);
    }
}

#[test]
fn a_wrong_key_never_gets_through() {
    let mut net = Net::new(&[]);
    net.client = client([0x5b; 32]);
    let mut out = Datagrams::new();
    net.client.start(&mut out).unwrap();
    net.carry(out);
    assert!(!net.is_over());
    assert!(!net.server.as_ref().unwrap().is_done());
    assert!(net.server.as_mut().unwrap().finish().is_err());
}

#[test]
fn an_unknown_identity_fails_on_both_sides() {
    let listener = DtlsListener::new([1; 32], lookup_of(TSID + 1, PSK));
    let mut client = client(PSK);
    let (mut to_server, mut to_client) = (Datagrams::new(), Datagrams::new());
    client.start(&mut to_server).unwrap();
    let mut server = None;
    for _ in 0..2 {
        let datagram = to_server.iter().last().unwrap().to_vec();
        to_client.clear();
        if let ListenOutcome::Accepted(new) = listener.feed(&peer(), &datagram, &mut to_client) {
            server = Some(new);
        }
        for datagram in to_client.iter() {
            client.feed(datagram, &mut to_server).unwrap();
        }
    }
    let mut server = server.unwrap();
    let flight = to_server.iter().last().unwrap().to_vec();
    to_client.clear();
    let error = server.feed(&flight, &mut to_client).unwrap_err();
    assert_eq!(error.kind, DtlsErrorKind::UnknownIdentity);
    assert_eq!(server.tsid(), None);
    let alert = to_client.iter().next().unwrap();
    assert_eq!(content_type(alert), Some(21));
    let error = client.feed(alert, &mut to_server).unwrap_err();
    assert_eq!(error.kind, DtlsErrorKind::AlertReceived);
    assert!(server.feed(&flight, &mut to_client).is_err(), "it stays failed");
}

#[test]
fn a_lookup_that_panics_is_an_unknown_identity() {
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let lookup: PskLookup = Arc::new(move |_| {
        *counted.lock().unwrap() += 1;
        std::panic::resume_unwind(Box::new("lookup"))
    });
    let mut net = Net::new(&[]);
    net.listener = DtlsListener::new([1; 32], lookup);
    let mut out = Datagrams::new();
    net.client.start(&mut out).unwrap();
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| net.carry(out)));
    assert!(failed.is_err(), "feed gives an error, which the test's wire unwraps");
    assert_eq!(*calls.lock().unwrap(), 1);
}

#[test]
fn handshakes_at_the_same_time_keep_their_keys_apart() {
    let key_of = |tsid: u64| super::super::psk_for(&[4; 32], tsid);
    let listener = DtlsListener::new([1; 32], Arc::new(move |tsid| Some(key_of(tsid))));
    let mut pairs: Vec<_> = (0..8_u64)
        .map(|tsid| (DtlsHandshake::client(tsid, &key_of(tsid), None).unwrap(), None, Datagrams::new()))
        .collect();
    for (client, _, to_server) in &mut pairs {
        client.start(to_server).unwrap();
    }
    for _ in 0..4 {
        for (client, server, to_server) in &mut pairs {
            let mut to_client = Datagrams::new();
            for datagram in std::mem::take(to_server).iter() {
                match server {
                    None => {
                        if let ListenOutcome::Accepted(new) = listener.feed(&peer(), datagram, &mut to_client)
                        {
                            *server = Some(new);
                        }
                    }
                    Some(server) => {
                        server.feed(datagram, &mut to_client).unwrap();
                    }
                }
            }
            for datagram in to_client.iter() {
                client.feed(datagram, to_server).unwrap();
            }
        }
    }
    for (tsid, (client, server, _)) in (0_u64..).zip(&mut pairs) {
        let server = server.as_mut().unwrap();
        assert_eq!(server.tsid(), Some(tsid));
        exchange(&client.finish().unwrap().tx, &mut server.finish().unwrap().rx);
    }
}

#[test]
fn a_peer_that_only_keeps_us_busy_is_given_up() {
    let mut net = Net::new(&[]);
    let mut out = Datagrams::new();
    net.client.start(&mut out).unwrap();
    let mut answer = Datagrams::new();
    let hello = out.iter().next().unwrap().to_vec();
    net.listener.feed(&peer(), &hello, &mut answer);
    let verify = answer.iter().next().unwrap().to_vec();
    // An epoch-1 record before its time: OpenSSL keeps such until the keys are there.
    let mut early = vec![22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 0, 0, 40];
    early.extend([0; 40]);
    let results: Vec<_> = (0..200_u8)
        .map(|round| {
            early[10] = round;
            net.client.feed(&early, &mut Datagrams::new())
        })
        .collect();
    assert!(results[0].is_ok());
    assert_eq!(results[199].as_ref().unwrap_err().kind, DtlsErrorKind::Protocol);
    assert!(net.client.feed(&verify, &mut out).is_err());
}

#[test]
fn handshakes_may_move_between_threads_and_sealers_be_shared() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<DtlsHandshake>();
    is_send::<super::super::TlsHandshake>();
    is_send::<DatagramOpener>();
    is_send::<super::super::StreamSealer>();
    is_send::<super::super::StreamOpener>();
    is_sync::<DatagramSealer>();
    is_sync::<super::super::DatagramKey>();
    is_sync::<DtlsListener>();
}

#[test]
fn a_finished_with_one_of_our_nonces_is_noticed() {
    let (sealer, _) = sealer_and_opener(Algorithm::Aes128Gcm);
    let mut datagram = vec![20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 1];
    datagram.extend(seal(&sealer, b"a record with one of our own nonces"));
    let mut output = Datagrams::new();
    output.push(&datagram);
    assert!(has_nonce_clash(&output));
    let nonce_at = 14 + 13;
    datagram[nonce_at] = 0x80;
    output.clear();
    output.push(&datagram);
    assert!(!has_nonce_clash(&output));
}

/// A client that has sent its second hello, and the server's flight for it.
fn before_the_finished() -> (DtlsHandshake, Vec<u8>) {
    let listener = listener(PSK);
    let mut client = client(PSK);
    let (mut to_server, mut to_client) = (Datagrams::new(), Datagrams::new());
    client.start(&mut to_server).unwrap();
    listener.feed(&peer(), to_server.iter().last().unwrap(), &mut to_client);
    client.feed(to_client.iter().last().unwrap(), &mut to_server).unwrap();
    listener.feed(&peer(), to_server.iter().last().unwrap(), &mut to_client);
    let flight = to_client.iter().last().unwrap().to_vec();
    (client, flight)
}

#[test]
fn a_handshake_with_one_of_our_nonces_fails_and_sends_nothing() {
    if !has_fast_aes() {
        return; // ChaCha20-Poly1305 is agreed, which has no such nonce.
    }
    let (mut client, flight) = before_the_finished();
    let (sealer, _) = sealer_and_opener(Algorithm::Aes128Gcm);
    client.pretend_sent(&seal(&sealer, b"a record with one of our own nonces"));
    let mut out = Datagrams::new();
    let error = client.feed(&flight, &mut out).unwrap_err();
    assert_eq!(error.kind, DtlsErrorKind::NonceCollision);
    assert!(out.is_empty());
    assert!(client.finish().is_err());
}

#[test]
fn the_nonce_of_openssls_finished_is_seen() {
    if !has_fast_aes() {
        return; // ChaCha20-Poly1305 is agreed, which has no such nonce.
    }
    let (mut client, flight) = before_the_finished();
    let mut out = Datagrams::new();
    client.feed(&flight, &mut out).unwrap();
    let flight = out.iter().last().unwrap();
    assert_eq!(content_type(flight), Some(22));
    let nonces: Vec<u64> = explicit_nonces(flight).collect();
    // ClientKeyExchange and ChangeCipherSpec are in clear; the Finished is 24 bytes and 24 more.
    let at = flight.len() - 48;
    assert_eq!(nonces, [u64::from_be_bytes(flight[at..at + 8].try_into().unwrap())]);
}

#[test]
fn keys_are_given_once() {
    let mut net = Net::new(&[]);
    assert!(net.client.finish().is_err(), "too early");
    net.run();
    assert!(net.client.finish().is_err(), "twice");
}

#[test]
fn application_data_is_not_for_the_handshake() {
    let mut net = Net::new(&[]);
    net.run();
    let keys = net.client_keys.take().unwrap();
    let record = seal(&keys.tx, b"frame");
    let mut out = Datagrams::new();
    let server = net.server.as_mut().unwrap();
    assert_eq!(server.feed(&record, &mut out), Ok(Progress::NotHandshake));
    let mut early = client(PSK);
    early.start(&mut Datagrams::new()).unwrap();
    assert_eq!(early.feed(&record, &mut out), Ok(Progress::NotHandshake));
    assert!(out.is_empty());
}

// --- the listener ---

fn hello() -> Vec<u8> {
    let mut out = Datagrams::new();
    client(PSK).start(&mut out).unwrap();
    out.iter().next().unwrap().to_vec()
}

fn answer(listener: &DtlsListener, from: &SocketAddr, datagram: &[u8]) -> (&'static str, Vec<u8>) {
    let mut out = Datagrams::new();
    let what = match listener.feed(from, datagram, &mut out) {
        ListenOutcome::Reply => "reply",
        ListenOutcome::Ignore(reason) => reason,
        ListenOutcome::Accepted(_) => "accepted",
    };
    (what, out.iter().next().unwrap_or_default().to_vec())
}

/// A client's second hello, with the cookie that `listener` gave to `from`.
fn hello_with_cookie(listener: &DtlsListener, from: &SocketAddr) -> Vec<u8> {
    let mut client = client(PSK);
    let mut out = Datagrams::new();
    client.start(&mut out).unwrap();
    let (what, verify) = answer(listener, from, out.iter().next().unwrap());
    assert_eq!(what, "reply");
    out.clear();
    client.feed(&verify, &mut out).unwrap();
    out.iter().next().unwrap().to_vec()
}

#[test]
fn the_answer_is_shorter_than_the_question() {
    let listener = listener(PSK);
    let hello = hello();
    let (what, reply) = answer(&listener, &peer(), &hello);
    assert_eq!(what, "reply");
    assert!(reply.len() < hello.len());
}

#[test]
fn a_cookie_holds_for_one_address_only() {
    let listener = listener(PSK);
    let second = hello_with_cookie(&listener, &peer());
    for other in ["192.0.2.7:5005", "192.0.2.8:5004", "[2001:db8::1]:5004"] {
        assert_eq!(answer(&listener, &other.parse().unwrap(), &second).0, "reply");
    }
    assert_eq!(answer(&listener, &peer(), &second).0, "accepted");
}

#[test]
fn a_cookie_outlives_one_rotation_but_not_two() {
    let listener = listener(PSK);
    let second = hello_with_cookie(&listener, &peer());
    listener.rotate([2; 32]);
    assert_eq!(answer(&listener, &peer(), &second).0, "accepted");
    listener.rotate([3; 32]);
    assert_eq!(answer(&listener, &peer(), &second).0, "reply");
}

#[test]
fn a_cookie_works_at_another_listener_with_the_same_secret() {
    let second = hello_with_cookie(&listener(PSK), &peer());
    assert_eq!(answer(&listener(PSK), &peer(), &second).0, "accepted");
}

#[test]
fn what_is_no_hello_is_ignored_with_a_reason() {
    let listener = listener(PSK);
    let hello = hello();
    let changed = |at: usize, value: u8| {
        let mut copy = hello.clone();
        copy[at] = value;
        answer(&listener, &peer(), &copy).0
    };
    assert_eq!(answer(&listener, &peer(), &[]).0, "dtls_not_dtls");
    assert_eq!(answer(&listener, &peer(), b"REGISTER sip:example.com SIP/2.0").0, "dtls_not_dtls");
    assert_eq!(changed(0, 23), "dtls_no_handshake");
    assert_eq!(changed(4, 1), "dtls_no_handshake");
    assert_eq!(changed(13, 16), "dtls_no_hello");
    assert_eq!(changed(21, 1), "dtls_hello_in_pieces");
    for len in 13..hello.len() {
        assert_eq!(answer(&listener, &peer(), &hello[..len]).0, "dtls_bad_hello");
    }
}

#[test]
fn identities_are_read_strictly() {
    assert_eq!(identity_of(TSID), "00deadbeef010203");
    assert_eq!(parse_identity(b"00deadbeef010203"), Some(TSID));
    for bad in [
        &b""[..],
        b"00DEADBEEF010203",
        b"0deadbeef010203",
        b"+0deadbeef010203",
        b"00deadbeef0102030",
        b"00deadbeef01020g",
    ] {
        assert_eq!(parse_identity(bad), None);
    }
}
