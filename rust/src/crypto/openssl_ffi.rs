//! The OpenSSL calls that the safe `openssl` crate lacks, wrapped so that they are safe to use. All
//! of the `unsafe` of `crypto` is in this file.

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::time::Duration;

use foreign_types::ForeignTypeRef;
use openssl::ssl::{SslRef, SslStream};
use openssl_sys::SSL;

/// ssl.h: `DTLSv1_get_timeout`.
const DTLS_CTRL_GET_TIMEOUT: c_int = 73;
/// ssl.h: `DTLSv1_handle_timeout`.
const DTLS_CTRL_HANDLE_TIMEOUT: c_int = 74;

/// ssl.h: `SSL_set_max_cert_list`.
const SSL_CTRL_SET_MAX_CERT_LIST: c_int = 51;

/// bio.h: opaque.
#[repr(C)]
struct BioAddr {
    _opaque: [u8; 0],
}

type TimerCallback = Option<unsafe extern "C" fn(ssl: *mut SSL, timer_us: c_uint) -> c_uint>;

unsafe extern "C" {
    fn DTLSv1_listen(ssl: *mut SSL, peer: *mut BioAddr) -> c_int;
    fn DTLS_set_timer_cb(ssl: *mut SSL, callback: TimerCallback);
    fn BIO_ADDR_new() -> *mut BioAddr;
    fn BIO_ADDR_free(address: *mut BioAddr);
}

/// What `DTLSv1_listen` says: positive when the ClientHello has a good cookie, 0 when the datagram is
/// to be ignored, negative after a failure (see the error queue).
pub(super) fn listen<S>(stream: &mut SslStream<S>) -> c_int {
    // SAFETY: no preconditions; a null result is handled.
    let peer = unsafe { BIO_ADDR_new() };
    if peer.is_null() {
        return -1;
    }
    // SAFETY: `stream` holds a live SSL with its BIOs set, which nobody else uses (&mut); `peer` is a
    // live BIO_ADDR that OpenSSL fills in or clears.
    let result = unsafe { DTLSv1_listen(stream.ssl().as_ptr(), peer) };
    // SAFETY: `peer` came from BIO_ADDR_new, is freed once and OpenSSL keeps no pointer to it.
    unsafe { BIO_ADDR_free(peer) };
    result
}

/// Time until the handshake wants to send again; `None` when no timer runs.
pub(super) fn next_timeout(ssl: &SslRef) -> Option<Duration> {
    let mut left = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let room = (&raw mut left).cast::<c_void>();
    // SAFETY: `ssl` is live; this control writes one `struct timeval` to `room`, which lives until
    // the end of this function. It changes nothing in the SSL.
    let running = unsafe { openssl_sys::SSL_ctrl(ssl.as_ptr(), DTLS_CTRL_GET_TIMEOUT, 0, room) };
    if running <= 0 {
        return None;
    }
    let seconds = u64::try_from(left.tv_sec).unwrap_or(0);
    let micros = u64::try_from(left.tv_usec).unwrap_or(0);
    Some(Duration::from_secs(seconds) + Duration::from_micros(micros))
}

/// Sends the last flight again if its timer has run out. Negative when OpenSSL gives up.
pub(super) fn handle_timeout<S>(stream: &mut SslStream<S>) -> c_long {
    let nothing = std::ptr::null_mut();
    let ssl = stream.ssl().as_ptr();
    // SAFETY: the SSL is live and nobody else uses it (&mut); this control takes no argument.
    unsafe { openssl_sys::SSL_ctrl(ssl, DTLS_CTRL_HANDLE_TIMEOUT, 0, nothing) }
}

/// Takes away the allowance for long certificate chains (100 KB for each handshake message, kept
/// while its pieces come in): pre-shared keys have none.
pub(super) fn allow_no_long_messages(ssl: &mut SslRef) {
    let nothing = std::ptr::null_mut();
    // SAFETY: `ssl` is live and nobody else uses it (&mut); this control takes a plain number.
    unsafe { openssl_sys::SSL_ctrl(ssl.as_ptr(), SSL_CTRL_SET_MAX_CERT_LIST, 0, nothing) };
}

/// Makes OpenSSL ask `dtls_context::retransmission_us` for its retransmission times.
pub(super) fn use_our_timer(ssl: &mut SslRef) {
    // SAFETY: `ssl` is live; the callback is a plain function that lives for ever.
    unsafe { DTLS_set_timer_cb(ssl.as_ptr(), Some(timer_callback)) }
}

unsafe extern "C" fn timer_callback(ssl: *mut SSL, timer_us: c_uint) -> c_uint {
    // SAFETY: OpenSSL calls this with the live SSL that the callback was set on, and does not touch
    // it meanwhile. The reference does not outlive the call. The function called does not panic.
    let ssl = unsafe { SslRef::from_ptr(ssl) };
    super::dtls_context::retransmission_us(ssl, timer_us)
}

/// Has OpenSSL update its sending key, for tests (`SSL_key_update`).
#[cfg(test)]
pub(super) fn key_update<S>(stream: &mut SslStream<S>, request: bool) {
    unsafe extern "C" {
        fn SSL_key_update(ssl: *mut SSL, update_type: c_int) -> c_int;
    }
    // SAFETY: the SSL is live and nobody else uses it (&mut); the call takes a plain number.
    let result = unsafe { SSL_key_update(stream.ssl().as_ptr(), c_int::from(request)) };
    assert_eq!(result, 1);
}

/// Has OpenSSL begin a TLS 1.2 renegotiation, for tests (`SSL_renegotiate`).
#[cfg(test)]
pub(super) fn renegotiate<S>(stream: &mut SslStream<S>) {
    unsafe extern "C" {
        fn SSL_renegotiate(ssl: *mut SSL) -> c_int;
    }
    // SAFETY: the SSL is live and nobody else uses it (&mut).
    let result = unsafe { SSL_renegotiate(stream.ssl().as_ptr()) };
    assert_eq!(result, 1);
}
