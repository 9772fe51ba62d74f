//! The DTLS server's door: no memory and no OpenSSL for a peer before its cookie has come back.
//!
//! A ClientHello without a cookie is answered with a HelloVerifyRequest (RFC 6347 4.2.1) that is
//! computed from the datagram alone, shorter than what it answers. The cookie is an HMAC over the
//! peer's address and the client's random, so it is worth nothing elsewhere. Only a ClientHello with
//! a good cookie reaches OpenSSL, whose `DTLSv1_listen` then makes it a handshake.

use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use ring::hmac;

use super::dtls::{Datagrams, DtlsHandshake, Progress};
use super::dtls_context::{PskLookup, Role};
use super::dtls_record::{HANDSHAKE, HEADER_LEN as RECORD_HEADER};
use super::tls_record::Side;

/// Length of a handshake message's header (RFC 6347 4.2.2).
const MESSAGE_HEADER: usize = 12;
const CLIENT_HELLO: u8 = 1;
const HELLO_VERIFY_REQUEST: u8 = 3;
/// RFC 6347 4.2.1: DTLS 1.0, whatever is agreed later.
const HELLO_VERIFY_VERSION: [u8; 2] = [0xfe, 0xff];
/// Length of our cookies, those of HMAC-SHA256.
const COOKIE_LEN: usize = 32;
/// Length of a HelloVerifyRequest record.
const REPLY_LEN: usize = RECORD_HEADER + MESSAGE_HEADER + 3 + COOKIE_LEN;

/// What the listener made of a datagram.
#[derive(Debug)]
pub enum ListenOutcome {
    /// A HelloVerifyRequest for the peer is in `out`.
    Reply,
    /// Nothing to do; the name is stable and meant for counters.
    Ignore(&'static str),
    /// A peer that holds its address: its handshake, whose first flight is in `out`.
    Accepted(Box<DtlsHandshake>),
}

/// The secret in use and the one before, so that a cookie outlives a rotation.
struct Secrets {
    now: hmac::Key,
    before: Option<hmac::Key>,
}

/// Accepts DTLS clients. All threads of a server may share one.
pub struct DtlsListener {
    secrets: RwLock<Secrets>,
    lookup: PskLookup,
    first_timeout: Option<Duration>,
}

impl std::fmt::Debug for DtlsListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DtlsListener(..)")
    }
}

impl DtlsListener {
    /// A listener. `cookie_secret` is 32 random bytes; servers that share an address share it.
    /// `lookup` gives the key of a reserved TSID; it runs inside [`DtlsHandshake::feed`].
    pub fn new(cookie_secret: [u8; 32], lookup: PskLookup) -> Self {
        let secrets = Secrets { now: make_key(&cookie_secret), before: None };
        Self { secrets: RwLock::new(secrets), lookup, first_timeout: None }
    }

    /// Sets the wait before a handshake's first retransmission (default: one second).
    #[must_use]
    pub const fn with_first_timeout(mut self, first_timeout: Duration) -> Self {
        self.first_timeout = Some(first_timeout);
        self
    }

    /// Takes a fresh secret; cookies of the old one hold until the next rotation. Once in some
    /// minutes is a good pace: a cookie lives for one to two of them.
    pub fn rotate(&self, cookie_secret: [u8; 32]) {
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        let now = std::mem::replace(&mut secrets.now, make_key(&cookie_secret));
        secrets.before = Some(now);
    }

    /// Takes a datagram of a peer that has no handshake yet. What is to be sent to it is appended to
    /// `out`.
    pub fn feed(&self, peer: &SocketAddr, datagram: &[u8], out: &mut Datagrams) -> ListenOutcome {
        let hello = match parse_hello(datagram) {
            Ok(hello) => hello,
            Err(reason) => return ListenOutcome::Ignore(reason),
        };
        let bound = address_bytes(peer);
        if hello.cookie.is_empty() {
            return self.send_cookie(&hello, &bound, out);
        }
        if !self.cookie_is_good(&hello, &bound) {
            // Stale after a rotation, or made up: a fresh one costs nothing (RFC 6347 4.2.1).
            return self.send_cookie(&hello, &bound, out);
        }
        self.accept(&hello, out)
    }

    fn send_cookie(&self, hello: &Hello<'_>, bound: &[u8], out: &mut Datagrams) -> ListenOutcome {
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let tag = sign(&secrets.now, bound, hello);
        let reply = tag.as_ref().first_chunk::<COOKIE_LEN>().and_then(|cookie| make_reply(hello, cookie));
        match reply {
            Some(reply) => {
                out.push(&reply);
                ListenOutcome::Reply
            }
            None => ListenOutcome::Ignore("dtls_internal"),
        }
    }

    fn cookie_is_good(&self, hello: &Hello<'_>, bound: &[u8]) -> bool {
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let message = cookie_message(bound, hello);
        std::iter::once(&secrets.now)
            .chain(&secrets.before)
            .any(|key| hmac::verify(key, &message, hello.cookie).is_ok())
    }

    fn accept(&self, hello: &Hello<'_>, out: &mut Datagrams) -> ListenOutcome {
        let role = Role::Server { lookup: self.lookup.clone(), cookie: hello.cookie.to_vec() };
        let Ok(mut handshake) = DtlsHandshake::new(role, Side::Server, self.first_timeout) else {
            return ListenOutcome::Ignore("dtls_internal");
        };
        if !handshake.listen(hello.record) {
            return ListenOutcome::Ignore("dtls_hello_refused");
        }
        match handshake.start(out) {
            Ok(Progress::InProgress) => ListenOutcome::Accepted(Box::new(handshake)),
            Ok(_) => ListenOutcome::Ignore("dtls_hello_refused"),
            Err(error) => ListenOutcome::Ignore(error.kind.name()),
        }
    }
}

fn make_key(secret: &[u8; 32]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret)
}

/// The parts of a ClientHello that the door looks at.
struct Hello<'a> {
    /// The record, without what may follow it in the datagram.
    record: &'a [u8],
    /// The record's sequence number, to be repeated in the answer (RFC 6347 4.2.1).
    sequence: [u8; 6],
    random: &'a [u8],
    cookie: &'a [u8],
}

/// Reads a ClientHello that stands whole in one record, as ours always do.
fn parse_hello(datagram: &[u8]) -> Result<Hello<'_>, &'static str> {
    let not_dtls = "dtls_not_dtls";
    let (header, rest) = datagram.split_first_chunk::<RECORD_HEADER>().ok_or(not_dtls)?;
    let [kind, 0xfe, 0xfd | 0xff, e0, e1, s0, s1, s2, s3, s4, s5, l0, l1] = *header else {
        return Err(not_dtls);
    };
    if kind != HANDSHAKE || [e0, e1] != [0, 0] {
        return Err("dtls_no_handshake");
    }
    let bad = "dtls_bad_hello";
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let message = rest.get(..length).ok_or(bad)?;
    let (header, body) = message.split_first_chunk::<MESSAGE_HEADER>().ok_or(bad)?;
    let [kind, length @ .., _, _, o0, o1, o2, f0, f1, f2] = *header;
    if kind != CLIENT_HELLO {
        return Err("dtls_no_hello");
    }
    let whole = u24(length) == body.len() && length == [f0, f1, f2] && [o0, o1, o2] == [0, 0, 0];
    if !whole {
        return Err("dtls_hello_in_pieces");
    }
    let (_version, rest) = body.split_at_checked(2).ok_or(bad)?;
    let (random, rest) = rest.split_at_checked(32).ok_or(bad)?;
    let (_session, rest) = cut_short(rest).ok_or(bad)?;
    let (cookie, _) = cut_short(rest).ok_or(bad)?;
    let record = datagram.get(..RECORD_HEADER + message.len()).ok_or(bad)?;
    Ok(Hello { record, sequence: [s0, s1, s2, s3, s4, s5], random, cookie })
}

fn u24([b0, b1, b2]: [u8; 3]) -> usize {
    u32::from_be_bytes([0, b0, b1, b2]) as usize
}

/// A vector with one byte of length, and what follows it.
fn cut_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// Address (IPv4 in its mapped form) and port.
fn address_bytes(peer: &SocketAddr) -> [u8; 18] {
    let mut bytes = [0; 18];
    let ip = match peer.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let octets = ip.octets().into_iter().chain(peer.port().to_be_bytes());
    for (room, byte) in bytes.iter_mut().zip(octets) {
        *room = byte;
    }
    bytes
}

fn cookie_message(bound: &[u8], hello: &Hello<'_>) -> [u8; 50] {
    let mut message = [0; 50];
    for (room, byte) in message.iter_mut().zip(bound.iter().chain(hello.random)) {
        *room = *byte;
    }
    message
}

fn sign(key: &hmac::Key, bound: &[u8], hello: &Hello<'_>) -> hmac::Tag {
    hmac::sign(key, &cookie_message(bound, hello))
}

/// A HelloVerifyRequest record.
fn make_reply(hello: &Hello<'_>, cookie: &[u8; COOKIE_LEN]) -> Option<Vec<u8>> {
    let [v0, v1] = HELLO_VERIFY_VERSION;
    let body_len = u8::try_from(3 + COOKIE_LEN).ok()?;
    let message_len = u8::try_from(MESSAGE_HEADER).ok()? + body_len;
    let mut reply = Vec::with_capacity(REPLY_LEN);
    reply.extend_from_slice(&[HANDSHAKE, v0, v1, 0, 0]);
    reply.extend_from_slice(&hello.sequence);
    reply.extend_from_slice(&[0, message_len]);
    reply.extend_from_slice(&[HELLO_VERIFY_REQUEST, 0, 0, body_len]);
    reply.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, body_len]);
    reply.extend_from_slice(&[v0, v1, u8::try_from(COOKIE_LEN).ok()?]);
    reply.extend_from_slice(cookie);
    Some(reply)
}
