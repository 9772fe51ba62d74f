//! One stream connection: bytes in to frames, frames out to records.
//!
//! ```text
//! Connecting --connected--> Handshake --finished--> Open --close ordered--> Closing --peer's end--> gone
//!      (outgoing only)     (not on plain TCP)         \\--error, peer's end-----------------------> gone
//! ```

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::control::{self, Progress};
use super::{forget, token};
use crate::boundary::{Event, StreamListenerShared};
use crate::counters::Counter;
use crate::crypto::tls_record::TlsVersion;
use crate::crypto::{ClientProfile, Finished, Record, StreamOpener, StreamSealer, TlsHandshake};
use crate::engine::Inbox;
use crate::forward::Forwarder;
use crate::limits::{QUEUE_KEEP, READ_BUDGET, STREAM_RECORD, STREAM_UNSENT_LOW_WATER, STREAM_WRITE};
use crate::sys::{self, READABLE, WRITABLE};
use crate::tunnel::{StreamLink, Tunnel};

/// How far a connection is.
pub enum Phase {
    Connecting(Box<(Option<Arc<ClientProfile>>, String)>),
    Handshake(Box<TlsHandshake>),
    Open,
    Closing,
}

/// A connection that has ended, and why.
pub struct End {
    reason: &'static str,
    detail: String,
}

impl End {
    pub fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// One stream tunnel's socket, keys and buffers.
pub struct Conn {
    pub tunnel: Arc<Tunnel>,
    pub fd: OwnedFd,
    pub phase: Phase,
    keys: Option<Box<(StreamSealer, StreamOpener)>>,
    /// Ciphertext of a record that is not complete.
    raw: Vec<u8>,
    /// Plaintext of a frame that is not complete, or that waits for the control plane.
    plain: Vec<u8>,
    /// Bytes for the wire that the kernel has not taken.
    pending: Vec<u8>,
    interest: u32,
    /// Waiting for room in the control plane's queue.
    pub paused: bool,
    /// The kernel did not take everything: the path is slower than we are.
    backed_up: bool,
    reported: bool,
    pub close_reason: &'static str,
    pub deadline_us: u64,
    listener: Option<Arc<StreamListenerShared>>,
}

/// The inbox of the worker itself.
pub fn inbox(forwarder: &Forwarder, index: usize) -> Option<&Arc<Inbox>> {
    forwarder.engine.inbox(index)
}

/// Small, prompt writes; errors leave the kernel's defaults, which are slower and not wrong.
pub fn tune(fd: RawFd) {
    let _ = sys::set_nonblocking(fd);
    let _ = sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let low_water = STREAM_UNSENT_LOW_WATER as libc::c_int;
    let _ = sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, low_water);
}

impl Conn {
    /// A connection that has just been accepted or begun.
    pub fn new(
        tunnel: Arc<Tunnel>,
        fd: OwnedFd,
        phase: Phase,
        listener: Option<Arc<StreamListenerShared>>,
        interest: u32,
        deadline_us: u64,
    ) -> Self {
        Self {
            tunnel,
            fd,
            phase,
            keys: None,
            raw: Vec::new(),
            plain: Vec::new(),
            pending: Vec::new(),
            interest,
            paused: false,
            backed_up: false,
            reported: listener.is_none(),
            close_reason: "local-close",
            deadline_us,
            listener,
        }
    }

    /// Beyond the handshake.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Closing)
    }

    /// Bytes for the wire wait that are in no queue.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn is_flushed(&self) -> bool {
        self.pending.is_empty() && self.tunnel.stream().is_none_or(|l| l.egress.lock().is_empty())
    }

    /// The outgoing connect has an outcome.
    pub fn connected(&mut self, forwarder: &mut Forwarder) -> Result<(), End> {
        if let Some(error) = sys::take_error(self.fd.as_raw_fd()) {
            return Err(End::new("refused", error.to_string()));
        }
        let Phase::Connecting(dial) = std::mem::replace(&mut self.phase, Phase::Open) else {
            return Ok(());
        };
        let (profile, name) = *dial;
        let Some(profile) = profile else {
            self.become_ready(None, forwarder);
            return Ok(());
        };
        let mut handshake =
            TlsHandshake::client(&profile, &name).map_err(|e| End::new(e.kind.name(), e.detail))?;
        let step = handshake.feed(&[], &mut self.pending).map_err(|e| End::new(e.kind.name(), e.detail));
        self.phase = Phase::Handshake(Box::new(handshake));
        step.map(drop)
    }

    /// Read and handle what is there, within the budget.
    pub fn read(&mut self, forwarder: &mut Forwarder, buffer: &mut [u8]) -> Result<(), End> {
        for _ in 0..READ_BUDGET {
            let kept = self.raw.len();
            let Some(head) = buffer.get_mut(..kept) else {
                return Err(End::new("bad-record", "record too long"));
            };
            head.copy_from_slice(&self.raw);
            let Some(space) = buffer.get_mut(kept..) else {
                return Ok(());
            };
            let room = space.len();
            let count = match sys::read(self.fd.as_raw_fd(), space) {
                Ok(0) => return Err(self.ended_by_peer()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(End::new("reset", error.to_string())),
            };
            let Some(bytes) = buffer.get_mut(..kept + count) else {
                return Ok(());
            };
            let consumed = self.digest(forwarder, bytes)?;
            self.keep_raw(bytes.get(consumed..).unwrap_or_default());
            if count < room || self.paused {
                return Ok(());
            }
        }
        Ok(())
    }

    fn ended_by_peer(&self) -> End {
        match self.phase {
            Phase::Closing => End::new(self.close_reason, ""),
            Phase::Handshake(_) => {
                End::new("tls-error", "the peer closed the connection during the TLS handshake")
            }
            Phase::Connecting(_) | Phase::Open => End::new("peer-closed", ""),
        }
    }

    fn keep_raw(&mut self, rest: &[u8]) {
        self.raw.clear();
        self.raw.extend_from_slice(rest);
        if rest.is_empty() && self.raw.capacity() > QUEUE_KEEP {
            self.raw = Vec::new();
        }
    }

    /// Handle bytes from the wire; returns how many are done with.
    fn digest(&mut self, forwarder: &mut Forwarder, bytes: &mut [u8]) -> Result<usize, End> {
        let mut done = 0;
        if let Phase::Handshake(handshake) = &mut self.phase {
            let step = handshake.feed(bytes, &mut self.pending).map_err(|error| {
                forwarder.counters.add(Counter::TlsHandshakeFailed);
                End::new(error.kind.name(), error.detail)
            })?;
            if !step.done {
                return Ok(bytes.len());
            }
            done = step.consumed;
            self.finish_handshake(forwarder)?;
        }
        let Some(rest) = bytes.get_mut(done..) else {
            return Ok(done);
        };
        Ok(done
            + if self.keys.is_some() {
                self.digest_records(forwarder, rest)?
            } else {
                self.digest_plain(forwarder, rest)?
            })
    }

    fn finish_handshake(&mut self, forwarder: &mut Forwarder) -> Result<(), End> {
        let Phase::Handshake(handshake) = std::mem::replace(&mut self.phase, Phase::Open) else {
            return Ok(());
        };
        let finished = handshake.finish().map_err(|error| End::new(error.kind.name(), error.detail))?;
        self.become_ready(Some(finished), forwarder);
        Ok(())
    }

    /// The connection may carry frames: publish the tunnel and tell the control plane.
    pub fn become_ready(&mut self, finished: Option<Finished>, forwarder: &mut Forwarder) {
        let mut event = (None, None, None, [0u8; 32]);
        if let Some(finished) = finished {
            if let Some(link) = self.tunnel.stream() {
                let _ = link.ddt_root.set(zeroize::Zeroizing::new(finished.ddt_root));
            }
            let version = match finished.version {
                TlsVersion::Tls12 => "1.2",
                TlsVersion::Tls13 => "1.3",
            };
            let alpn = finished.alpn.and_then(|a| String::from_utf8(a).ok());
            event = (finished.peer_certificate, alpn, Some(version), finished.resume_binding);
            self.keys = Some(Box::new((finished.sealer, finished.opener)));
        }
        if let Some(link) = self.tunnel.stream() {
            link.ready.store(true, Ordering::Release);
        }
        self.reported = true;
        self.tunnel.heard(forwarder.now_us);
        forwarder.engine.tunnels.insert(self.tunnel.id, Arc::clone(&self.tunnel));
        forwarder.counters.add(Counter::StreamsReady);
        let (peer_certificate, alpn, tls_version, resume_binding) = event;
        let event = Event::StreamReady {
            tunnel: self.tunnel.id,
            listener: self.tunnel.listener,
            peer: sys::canonical(self.tunnel.peer),
            local: sys::canonical(self.tunnel.local),
            peer_certificate,
            alpn,
            tls_version,
            resume_binding,
        };
        if !forwarder.engine.events.push(event) {
            forwarder.counters.add(Counter::EventQueueFull);
        }
    }

    fn digest_records(&mut self, forwarder: &mut Forwarder, bytes: &mut [u8]) -> Result<usize, End> {
        let mut done = 0;
        while !self.paused {
            let Some(keys) = self.keys.as_deref_mut() else {
                break;
            };
            let Some(rest) = bytes.get_mut(done..) else {
                break;
            };
            let Some(length) = keys.1.record_length(rest).map_err(|e| bad_record(forwarder, e.name()))?
            else {
                break;
            };
            let Some(record) = rest.get_mut(..length) else {
                break;
            };
            let opened = keys.1.open_record(record).map_err(|e| bad_record(forwarder, e.name()))?;
            done += length;
            self.tunnel.rx.records.fetch_add(1, Ordering::Relaxed);
            self.tunnel.heard(forwarder.now_us);
            match opened {
                Record::Data(range) => {
                    if let Some(plain) = record.get_mut(range) {
                        self.digest_frames(forwarder, plain)?;
                    }
                }
                Record::KeyUpdate { request: true } => {
                    if keys.0.key_update_record(false, &mut self.pending).is_err() {
                        return Err(End::new("tls-error", "the key could not be updated"));
                    }
                }
                Record::Close => return Err(self.ended_by_peer()),
                Record::Alert(number) => {
                    return Err(End::new("tls-error", format!("the peer sent TLS alert {number}")));
                }
                Record::KeyUpdate { request: false } | Record::Ignore => {}
            }
        }
        Ok(done)
    }

    /// On plain TCP the bytes are the frames.
    fn digest_plain(&mut self, forwarder: &mut Forwarder, bytes: &mut [u8]) -> Result<usize, End> {
        self.tunnel.heard(forwarder.now_us);
        self.digest_frames(forwarder, bytes)?;
        Ok(bytes.len())
    }

    /// Handle plaintext: in place while frames end where records do, by way of `plain` when they do not.
    fn digest_frames(&mut self, forwarder: &mut Forwarder, bytes: &mut [u8]) -> Result<(), End> {
        if self.plain.is_empty() {
            let done = self.run_frames(forwarder, bytes)?;
            self.plain.extend_from_slice(bytes.get(done..).unwrap_or_default());
            return Ok(());
        }
        self.plain.extend_from_slice(bytes);
        if self.paused { Ok(()) } else { self.resume(forwarder) }
    }

    /// Handle the frames that `plain` holds.
    pub fn resume(&mut self, forwarder: &mut Forwarder) -> Result<(), End> {
        let mut plain = std::mem::take(&mut self.plain);
        let done = self.run_frames(forwarder, &mut plain)?;
        plain.drain(..done);
        if plain.is_empty() && plain.capacity() > QUEUE_KEEP {
            plain = Vec::new();
        }
        self.plain = plain;
        if self.paused || self.raw.is_empty() {
            return Ok(());
        }
        let mut raw = std::mem::take(&mut self.raw);
        let done = self.digest(forwarder, &mut raw)?;
        raw.drain(..done);
        self.raw = raw;
        Ok(())
    }

    fn run_frames(&mut self, forwarder: &mut Forwarder, bytes: &mut [u8]) -> Result<usize, End> {
        match control::frames(forwarder, &self.tunnel, bytes) {
            Progress::Consumed(done) => Ok(done),
            Progress::Full(done) => {
                self.paused = true;
                Ok(done)
            }
            Progress::Broken(_, error) => {
                forwarder.counters.add(control::frame_counter(error));
                Err(End::new("bad-frame", format!("the peer sent what is no frame: {error:?}")))
            }
        }
    }

    /// Write pending bytes, then records of queued frames, until all is out or the kernel has enough.
    pub fn flush(&mut self, forwarder: &mut Forwarder, scratch: &mut Vec<u8>) -> Result<(), End> {
        let tunnel = Arc::clone(&self.tunnel);
        let Some(link) = tunnel.stream() else {
            return Ok(());
        };
        link.dirty.store(false, Ordering::Release);
        if matches!(self.phase, Phase::Connecting(_)) {
            return Ok(());
        }
        loop {
            if !self.write_pending()? || matches!(self.phase, Phase::Handshake(_)) {
                return Ok(());
            }
            scratch.clear();
            self.take_records(link, forwarder, scratch)?;
            if scratch.is_empty() {
                break;
            }
            let sent = self.write(scratch)?;
            self.pending.extend_from_slice(scratch.get(sent..).unwrap_or_default());
        }
        self.backed_up = false;
        if matches!(self.phase, Phase::Closing) && self.deadline_us == 0 {
            self.say_goodbye();
        }
        Ok(())
    }

    fn say_goodbye(&mut self) {
        if let Some(keys) = self.keys.as_deref_mut() {
            let _ = keys.0.close_notify(&mut self.pending);
        }
        let _ = self.write_pending();
        sys::shutdown_write(self.fd.as_raw_fd());
    }

    /// True if nothing is left.
    fn write_pending(&mut self) -> Result<bool, End> {
        if self.pending.is_empty() {
            return Ok(true);
        }
        let pending = std::mem::take(&mut self.pending);
        let sent = self.write(&pending)?;
        self.pending = pending;
        self.pending.drain(..sent);
        if self.pending.is_empty() && self.pending.capacity() > QUEUE_KEEP {
            self.pending = Vec::new();
        }
        Ok(self.pending.is_empty())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, End> {
        match sys::send(self.fd.as_raw_fd(), bytes) {
            Ok(sent) => {
                self.backed_up |= sent < bytes.len();
                Ok(sent)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.backed_up = true;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(End::new("reset", error.to_string())),
        }
    }

    /// Seal queued frames into records, one after the other in `out`.
    fn take_records(
        &mut self,
        link: &StreamLink,
        forwarder: &Forwarder,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let mut egress = link.egress.lock();
        if self.backed_up {
            let age = self.tunnel.wishes.media_age_ms.load(Ordering::Relaxed) * 1_000;
            let dropped = egress.drop_stale(forwarder.now_us, age);
            forwarder.counters.add_n(Counter::MediaStale, dropped);
            self.tunnel.tx_dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        let limit = if self.backed_up { STREAM_RECORD } else { STREAM_WRITE };
        while out.len() < limit && !egress.is_empty() {
            let start = out.len();
            let Some(keys) = self.keys.as_deref_mut() else {
                egress.take_record(out);
                continue;
            };
            let sealer = &mut keys.0;
            if sealer.needs_update() {
                sealer.key_update_record(false, out).map_err(|e| End::new("tls-error", e.to_string()))?;
                continue;
            }
            out.resize(start + sealer.headroom(), 0);
            egress.take_record(out);
            let plain = out.len() - start - sealer.headroom();
            out.resize(out.len() + sealer.tailroom(), 0);
            let Some(record) = out.get_mut(start..) else {
                break;
            };
            let length =
                sealer.seal_record(record, plain).map_err(|e| End::new("tls-error", e.to_string()))?;
            out.truncate(start + length);
            self.tunnel.tx.records.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Tell epoll what we wait for, if that has changed.
    pub fn watch(&mut self, index: usize, forwarder: &Forwarder) {
        let read = if self.paused { 0 } else { READABLE };
        let write =
            if self.is_flushed() && !matches!(self.phase, Phase::Connecting(_)) { 0 } else { WRITABLE };
        let waiting =
            if matches!(self.phase, Phase::Handshake(_)) && self.pending.is_empty() { 0 } else { write };
        if read | waiting != self.interest {
            self.interest = read | waiting;
            if let Some(inbox) = inbox(forwarder, index) {
                let _ = inbox.epoll.modify(
                    self.fd.as_raw_fd(),
                    self.interest,
                    token(token::STREAM, self.tunnel.id),
                );
            }
        }
    }

    /// The connection is over.
    pub fn end(mut self, end: &End, forwarder: &Forwarder) {
        // An alert for the peer may wait; it is sent if the kernel takes it now.
        let _ = self.write_pending();
        if let Some(link) = self.tunnel.stream() {
            *link.fd.lock() = None;
            link.ready.store(false, Ordering::Release);
            link.egress.lock().clear();
        }
        forget(&self.tunnel, &forwarder.engine);
        if let Some(shared) = &self.listener {
            shared.tunnels.fetch_sub(1, Ordering::AcqRel);
        }
        if !self.reported {
            return;
        }
        forwarder.counters.add(Counter::StreamsClosed);
        let event = Event::Closed { tunnel: self.tunnel.id, reason: end.reason, detail: end.detail.clone() };
        if !forwarder.engine.events.push(event) {
            forwarder.counters.add(Counter::EventQueueFull);
        }
    }
}

fn bad_record(forwarder: &Forwarder, name: &'static str) -> End {
    forwarder.counters.add(Counter::TlsRecordBad);
    End::new("bad-record", name)
}
