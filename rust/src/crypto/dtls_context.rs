//! OpenSSL's side of our DTLS: two contexts (client, server) for the whole process, and what belongs
//! to one handshake, kept in its own SSL object. A callback only ever sees the object it was called
//! for, so it cannot reach another handshake's key.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslRef, SslSessionCacheMode, SslVersion,
};
use zeroize::Zeroizing;

use super::dtls::{DtlsError, DtlsErrorKind};
use super::openssl_ffi;
use super::tls_profile::has_fast_aes;

/// Looks up the pre-shared key of a reserved TSID.
pub type PskLookup = Arc<dyn Fn(u64) -> Option<[u8; 32]> + Send + Sync>;

/// Largest handshake datagram. Below every path's MTU (IPv6 needs 1280), so never fragmented.
pub const HANDSHAKE_MTU: u32 = 1200;
/// First retransmission when nothing is known about the path: RFC 6347 4.2.4.1 says a second.
pub const DEFAULT_RETRANSMISSION: Duration = Duration::from_secs(1);
/// OpenSSL takes a timer with less than 15 ms left for expired, so shorter ones would spin.
pub const MIN_RETRANSMISSION: Duration = Duration::from_millis(50);
/// Longest wait between two tries of one handshake. RFC 6347 4.2.4.1 doubles up to 60 s, for a handshake that goes on
/// for ever; ours is over after some seconds, and it is the next handshake that waits longer and longer. So a path that
/// opens during one is found within a second.
const MAX_RETRANSMISSION_US: u32 = 1_000_000;
/// Longest first wait: nobody has a path whose round trip is longer.
const MAX_FIRST_US: u32 = 60_000_000;
/// Length of a DDT identity: 64 bits in hexadecimal.
const IDENTITY_LEN: usize = 16;

/// What one handshake knows.
pub(super) struct Private {
    pub(super) role: Role,
    pub(super) first_timeout_us: u32,
    /// The TSID that a client claimed, once its key was found (server).
    pub(super) tsid: OnceLock<u64>,
    /// A client claimed an identity that nobody has (server).
    pub(super) unknown: AtomicBool,
}

pub(super) enum Role {
    Client { tsid: u64, psk: Zeroizing<[u8; 32]> },
    Server { lookup: PskLookup, cookie: Vec<u8> },
}

struct Contexts {
    client: SslContext,
    server: SslContext,
    index: Index<Ssl, Private>,
}

static CONTEXTS: OnceLock<Result<Contexts, String>> = OnceLock::new();

/// Forgets what OpenSSL noted on this thread, so that the next call's errors are its own.
pub(super) fn clear_errors() {
    drop(ErrorStack::get());
}

/// A new SSL object with what belongs to it.
pub(super) fn new_ssl(role: Role, first_timeout: Duration) -> Result<Ssl, DtlsError> {
    let contexts = contexts()?;
    let context = match role {
        Role::Client { .. } => &contexts.client,
        Role::Server { .. } => &contexts.server,
    };
    let first_timeout = first_timeout.max(MIN_RETRANSMISSION).as_micros();
    let private = Private {
        role,
        first_timeout_us: u32::try_from(first_timeout).map_or(MAX_FIRST_US, |us| us.min(MAX_FIRST_US)),
        tsid: OnceLock::new(),
        unknown: AtomicBool::new(false),
    };
    let is_client = matches!(private.role, Role::Client { .. });
    let mut ssl = Ssl::new(context).map_err(|error| internal(&error))?;
    ssl.set_ex_data(contexts.index, private);
    ssl.set_mtu(HANDSHAKE_MTU).map_err(|error| internal(&error))?;
    openssl_ffi::use_our_timer(&mut ssl);
    openssl_ffi::allow_no_long_messages(&mut ssl);
    if is_client {
        ssl.set_connect_state();
    } else {
        ssl.set_accept_state();
    }
    Ok(ssl)
}

/// What belongs to the handshake of `ssl`.
pub(super) fn private(ssl: &SslRef) -> Option<&Private> {
    match CONTEXTS.get() {
        Some(Ok(contexts)) => ssl.ex_data(contexts.index),
        _ => None,
    }
}

/// The next wait: our first, then twice the last (RFC 6347 4.2.4.1), up to a second. OpenSSL asks with 0 first.
pub(super) fn retransmission_us(ssl: &SslRef, last_us: u32) -> u32 {
    match last_us {
        0 => private(ssl).map_or(1_000_000, |private| private.first_timeout_us),
        last => last.saturating_mul(2).min(MAX_RETRANSMISSION_US.max(last)),
    }
}

fn internal(error: &ErrorStack) -> DtlsError {
    DtlsError::new(DtlsErrorKind::Internal, format!("OpenSSL: {error}"))
}

fn contexts() -> Result<&'static Contexts, DtlsError> {
    CONTEXTS.get_or_init(|| make_contexts().map_err(|error| error.to_string())).as_ref().map_err(|error| {
        let detail = format!("OpenSSL cannot do DTLS 1.2 with pre-shared keys here: {error}");
        DtlsError::new(DtlsErrorKind::Internal, detail)
    })
}

fn make_contexts() -> Result<Contexts, ErrorStack> {
    let index = Ssl::new_ex_index::<Private>()?;
    let mut client = make_builder()?;
    client.set_psk_client_callback(move |ssl, _hint, identity, psk| {
        Ok(client_psk(ssl.ex_data(index), identity, psk).unwrap_or(0))
    });
    let mut server = make_builder()?;
    server.set_psk_server_callback(move |ssl, identity, psk| {
        Ok(server_psk(ssl.ex_data(index), identity, psk).unwrap_or(0))
    });
    server.set_cookie_verify_cb(move |ssl, given| match ssl.ex_data(index) {
        Some(Private { role: Role::Server { cookie, .. }, .. }) => cookie.as_slice() == given,
        _ => false,
    });
    Ok(Contexts { client: client.build(), server: server.build(), index })
}

fn make_builder() -> Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContext::builder(SslMethod::dtls())?;
    builder.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    builder.set_max_proto_version(Some(SslVersion::DTLS1_2))?;
    // The security level is named because plain PSK has no forward secrecy of its own, which level 3
    // (some systems' default) refuses; ours comes from the TLS session that the key is made of.
    builder.set_cipher_list(if has_fast_aes() {
        "PSK-AES128-GCM-SHA256:PSK-CHACHA20-POLY1305:@SECLEVEL=2"
    } else {
        "PSK-CHACHA20-POLY1305:PSK-AES128-GCM-SHA256:@SECLEVEL=2"
    })?;
    builder.set_options(
        SslOptions::NO_QUERY_MTU
            | SslOptions::NO_TICKET
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION,
    );
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    Ok(builder)
}

/// Writes our identity (C string) and key; gives the key's length, 0 fails the handshake.
fn client_psk(private: Option<&Private>, identity: &mut [u8], psk: &mut [u8]) -> Option<usize> {
    let Role::Client { tsid, psk: key } = &private?.role else {
        return None;
    };
    let text = identity_of(*tsid);
    let (name, end) = identity.split_at_mut_checked(IDENTITY_LEN)?;
    name.copy_from_slice(text.as_bytes());
    *end.first_mut()? = 0;
    put_key(key, psk)
}

/// Finds the key of the identity that a client claims.
fn server_psk(private: Option<&Private>, identity: Option<&[u8]>, psk: &mut [u8]) -> Option<usize> {
    let private = private?;
    let Role::Server { lookup, .. } = &private.role else {
        return None;
    };
    // A panic must not unwind into OpenSSL.
    let found = parse_identity(identity?)
        .and_then(|tsid| Some((tsid, catch_unwind(AssertUnwindSafe(|| lookup(tsid))).ok()??)));
    let Some((tsid, key)) = found else {
        private.unknown.store(true, Ordering::Relaxed);
        return None;
    };
    let key = Zeroizing::new(key);
    let len = put_key(&key, psk)?;
    (*private.tsid.get_or_init(|| tsid) == tsid).then_some(len)
}

fn put_key(key: &[u8; 32], psk: &mut [u8]) -> Option<usize> {
    psk.get_mut(..key.len())?.copy_from_slice(key);
    Some(key.len())
}

/// The identity of a TSID: 16 lower-case hexadecimal digits (docs/protocol.md, "Keys").
pub(super) fn identity_of(tsid: u64) -> String {
    format!("{tsid:016x}")
}

/// The TSID of an identity; `None` unless it is written exactly as we write it.
pub(super) fn parse_identity(identity: &[u8]) -> Option<u64> {
    let digits = identity.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if identity.len() != IDENTITY_LEN || !digits {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(identity).ok()?, 16).ok()
}
