//! One inner TCP connection: `smoltcp`'s socket in an interface of its own, and what Python has been told of it.
//!
//! `smoltcp` keeps the states of RFC 9293; this file keeps the program's view, which has four:
//!
//! ```text
//! Opening ──established──▶ Open ──both ends closed, or the program is done──▶ Lingering ──▶ Over
//!    └─────refused, reset, too late─────────────┴─────────reset, too late──────────────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};

use super::Tuple;
use super::segment::Sent;
use super::shared::{Handle, Listener, wish};
use crate::boundary::{Event, EventQueue, TcpEvent};
use crate::limits::{
    TCP_BUFFER, TCP_EAGER_MS, TCP_EAGER_STEP_MS, TCP_IDLE_MS, TCP_KEEPALIVE_MS, TCP_LINGER_MS,
    TCP_OPENING_MS, TCP_RETRY_MS, TCP_SEND_QUEUE, TCP_SERVER_BUFFER, TCP_SILENCE_MS,
};

/// Looks at one connection per turn: a read opens the window, an acknowledgement makes room to write, and each
/// of them makes a packet. What is left after that comes with the next turn.
const LOOKS: usize = 4;

/// Packets that the stack emits, one after the other in one buffer.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    mended: usize,
}

impl Outbox {
    /// Put right what has come since the last time.
    fn mend(&mut self, sent: &mut Sent) {
        let mut start = self.mended.checked_sub(1).and_then(|last| self.ends.get(last).copied()).unwrap_or(0);
        for end in self.ends.iter().skip(self.mended) {
            if let Some(packet) = self.bytes.get_mut(start..*end) {
                sent.mend(packet);
            }
            start = *end;
        }
        self.mended = self.ends.len();
    }

    /// Hand out every packet, and be empty.
    pub fn drain(&mut self, mut each: impl FnMut(&mut [u8])) {
        let mut start = 0;
        for end in self.ends.drain(..) {
            if let Some(packet) = self.bytes.get_mut(start..end) {
                each(packet);
            }
            start = end;
        }
        self.bytes.clear();
        self.mended = 0;
    }
}

/// `smoltcp`'s device for one turn: at most one packet in, any number out.
struct Port<'a> {
    input: Option<&'a [u8]>,
    out: &'a mut Outbox,
    mtu: usize,
}

struct Incoming<'a>(&'a [u8]);
struct Outgoing<'a>(&'a mut Outbox);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let start = self.0.bytes.len();
        self.0.bytes.resize(start + length, 0);
        let written = write(self.0.bytes.get_mut(start..).unwrap_or_default());
        self.0.ends.push(self.0.bytes.len());
        written
    }
}

impl Device for Port<'_> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        self.input.take().map(|packet| (Incoming(packet), Outgoing(self.out)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // `Segment` has looked at the transport checksum before anything was decided.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    /// The program is done with it, or knows that it is over; the peer may not be.
    Lingering,
    Over,
}

/// How a connection came about.
#[derive(Debug)]
pub enum Origin {
    /// We asked.
    Connected,
    /// A listener's, of which it holds a place in the backlog until Python has fetched the news.
    Accepted(Arc<Listener>),
}

/// When to send again what is not answered, without regard to the back-off.
#[derive(Clone, Copy, Debug)]
struct Eager {
    next_us: u64,
    until_us: u64,
}

/// One connection.
pub struct Connection {
    pub tuple: Tuple,
    pub origin: Origin,
    pub handle: Arc<Handle>,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    mtu: usize,
    phase: Phase,
    /// Python has been told that it is there.
    told: bool,
    fin_sent: bool,
    /// The peer has closed its end, whatever became of the connection since.
    fin_heard: bool,
    eof_told: bool,
    opened_us: u64,
    /// The peer's last packet.
    heard_us: u64,
    /// The last data, either way.
    data_us: u64,
    lingering_us: u64,
    /// Python could not be told; look again then.
    retry_us: Option<u64>,
    /// How far its clock is ahead of ours (see `be_eager`).
    ahead_us: u64,
    eager: Option<Eager>,
    sent: Sent,
}

impl Connection {
    /// A connection that waits for the peer's SYN, which comes with the first turn. `seed` must be unguessable:
    /// the initial sequence number comes from it (RFC 6528).
    pub fn accept(
        tuple: Tuple,
        listener: Arc<Listener>,
        handle: Arc<Handle>,
        seed: u64,
        now_us: u64,
    ) -> Option<Self> {
        let mtu = listener.mtu;
        let mut new = Self::new(tuple, Origin::Accepted(listener), handle, mtu, seed, now_us);
        new.tcp().listen(IpEndpoint::from(tuple.local)).ok()?;
        Some(new)
    }

    /// A connection that we open; the SYN goes with the first turn.
    pub fn connect(tuple: Tuple, handle: Arc<Handle>, mtu: usize, seed: u64, now_us: u64) -> Option<Self> {
        let mut new = Self::new(tuple, Origin::Connected, handle, mtu, seed, now_us);
        let socket = new.sockets.get_mut::<Socket<'static>>(new.socket);
        socket
            .connect(new.interface.context(), IpEndpoint::from(tuple.remote), IpEndpoint::from(tuple.local))
            .ok()?;
        Some(new)
    }

    fn new(tuple: Tuple, origin: Origin, handle: Arc<Handle>, mtu: usize, seed: u64, now_us: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut port = Port { input: None, out: &mut Outbox::default(), mtu };
        let mut interface = Interface::new(config, &mut port, instant(now_us));
        let whole = if tuple.local.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|own| {
            let _ = own.push(IpCidr::new(tuple.local.ip().into(), whole));
        });
        let size = if tuple.scope.is_some() { TCP_BUFFER } else { TCP_SERVER_BUFFER };
        let buffer = || SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_keep_alive(Some(Duration::from_millis(TCP_KEEPALIVE_MS)));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let socket = sockets.add(socket);
        Self {
            tuple,
            origin,
            handle,
            interface,
            sockets,
            socket,
            mtu,
            phase: Phase::Opening,
            told: false,
            fin_sent: false,
            fin_heard: false,
            eof_told: false,
            opened_us: now_us,
            heard_us: now_us,
            data_us: now_us,
            lingering_us: 0,
            retry_us: None,
            ahead_us: 0,
            eager: None,
            sent: Sent::default(),
        }
    }

    fn tcp(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket<'static>>(self.socket).state()
    }

    /// Whose listener accepted it.
    pub fn listener(&self) -> Option<&Arc<Listener>> {
        match &self.origin {
            Origin::Connected => None,
            Origin::Accepted(listener) => Some(listener),
        }
    }

    /// The backlog it still has a place in.
    pub fn place(&self) -> Option<&Arc<Listener>> {
        self.listener().filter(|_| !self.told)
    }

    /// Half open, as the limit on those counts.
    pub fn is_opening(&self) -> bool {
        self.phase == Phase::Opening
    }

    /// Both sides are done and only the last acknowledgement may have to be repeated: a new SYN may take its
    /// place (RFC 9293 section 3.6.1).
    pub fn is_past(&self) -> bool {
        self.phase == Phase::Lingering && self.state() == State::TimeWait
    }

    /// It may be forgotten.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// One turn: a packet of the peer's, or time has passed, or the program wants something.
    pub fn turn(&mut self, packet: Option<&[u8]>, now_us: u64, out: &mut Outbox, events: &EventQueue) {
        if packet.is_some() {
            self.heard_us = now_us;
            // It is ready now: once more, and that is that.
            self.eager = self.eager.map(|_| Eager { next_us: now_us, until_us: now_us });
        }
        self.be_eager(now_us);
        self.handle.touched.store(false, Ordering::Release);
        self.obey(now_us);
        self.expire(now_us, events);
        let mut packet = packet;
        for _ in 0..LOOKS {
            self.feed(now_us, events);
            let mut port = Port { input: packet.take(), out, mtu: self.mtu };
            self.interface.poll(instant(now_us + self.ahead_us), &mut port, &mut self.sockets);
            out.mend(&mut self.sent);
            self.tell(now_us, events);
            if self.is_over() || self.next_us(now_us).is_none_or(|at| at > now_us) {
                break;
            }
        }
    }

    /// The address is gone: no packet can leave, and none that comes is meant for us.
    pub fn cut_off(&mut self, events: &EventQueue) {
        self.end("session-closed", events);
    }

    /// The way to the peer is being opened again after it was not: what waits to be sent again goes now, not when
    /// the back-off says, and again until the peer is heard, which may not be ready yet. What it says is no answer
    /// to what was lost before, so that goes once more then.
    pub fn hurry(&mut self, now_us: u64) {
        self.eager = Some(Eager { next_us: now_us, until_us: now_us + TCP_EAGER_MS * 1_000 });
    }

    /// Something of ours waits for an answer.
    fn waits(&self) -> bool {
        let socket = self.sockets.get::<Socket<'static>>(self.socket);
        socket.send_queue() > 0
            || !matches!(socket.state(), State::Established | State::FinWait2 | State::Closed)
    }

    /// Put the socket's clock forward to its retransmission; no other timer of one that waits is shorter, but for
    /// an acknowledgement that is due anyway.
    fn be_eager(&mut self, now_us: u64) {
        let Some(eager) = self.eager.filter(|eager| eager.next_us <= now_us) else { return };
        let next = Eager { next_us: now_us + TCP_EAGER_STEP_MS * 1_000, ..eager };
        self.eager = Some(next).filter(|next| next.next_us <= next.until_us);
        if self.waits()
            && let Some(at) = self.interface.poll_at(instant(now_us + self.ahead_us), &self.sockets)
        {
            let at_us = u64::try_from(at.total_micros()).unwrap_or(0);
            self.ahead_us += at_us.saturating_sub(now_us + self.ahead_us);
        }
    }

    /// When it wants the next turn.
    pub fn next_us(&mut self, now_us: u64) -> Option<u64> {
        let socket = self.sockets.get::<Socket<'static>>(self.socket);
        // TIME-WAIT ends with the buffers emptied; what the program has not read yet holds it.
        let held = socket.state() == State::TimeWait && socket.recv_queue() > 0;
        let polled = if held {
            None
        } else {
            self.interface
                .poll_at(instant(now_us + self.ahead_us), &self.sockets)
                .map(|at| u64::try_from(at.total_micros()).unwrap_or(0).saturating_sub(self.ahead_us))
        };
        let (deadline, _) = self.deadline();
        let eager = self.eager.filter(|_| self.waits()).map(|eager| eager.next_us);
        [polled, Some(deadline), self.retry_us, eager].into_iter().flatten().min()
    }

    /// The one deadline, with its reason.
    fn deadline(&self) -> (u64, &'static str) {
        let silence = (self.heard_us + TCP_SILENCE_MS * 1_000, "timeout");
        match self.phase {
            Phase::Opening => (self.opened_us + TCP_OPENING_MS * 1_000, "timeout"),
            Phase::Open => silence.min((self.data_us + TCP_IDLE_MS * 1_000, "idle")),
            Phase::Lingering | Phase::Over => (self.lingering_us + TCP_LINGER_MS * 1_000, "timeout"),
        }
    }

    fn expire(&mut self, now_us: u64, events: &EventQueue) {
        self.retry_us = self.retry_us.filter(|at| *at > now_us);
        let (at, reason) = self.deadline();
        if at <= now_us && self.phase != Phase::Over {
            self.tcp().abort();
            self.end(reason, events);
        }
    }

    /// Do what the program wishes.
    fn obey(&mut self, now_us: u64) {
        let wishes = self.handle.wishes.load(Ordering::Acquire);
        let done = wishes & (wish::CLOSE | wish::ABORT) != 0;
        let give_up = wishes & wish::ABORT != 0 || (done && self.phase == Phase::Opening);
        if give_up && self.phase != Phase::Over {
            self.tcp().abort();
        }
        if done && matches!(self.phase, Phase::Opening | Phase::Open) {
            self.phase = Phase::Lingering;
            self.lingering_us = now_us;
        }
    }

    /// Give the stack what Python has handed over.
    fn feed(&mut self, now_us: u64, events: &EventQueue) {
        let handle = Arc::clone(&self.handle);
        let mut sending = handle.sending.lock();
        let before = sending.bytes.len();
        while self.tcp().can_send() && !sending.bytes.is_empty() {
            let Ok(taken @ 1..) = self.tcp().send_slice(sending.bytes.as_slices().0) else { break };
            sending.bytes.drain(..taken);
        }
        if sending.bytes.len() < before {
            self.data_us = now_us;
        }
        if sending.starved && self.phase == Phase::Open && sending.bytes.len() <= TCP_SEND_QUEUE / 2 {
            sending.starved = false;
            events.push(Event::Tcp(TcpEvent::Writable { connection: handle.id }));
        }
        let all = sending.bytes.is_empty();
        drop(sending);
        let wishes = handle.wishes.load(Ordering::Acquire);
        if all && !self.fin_sent && wishes & (wish::SHUTDOWN | wish::CLOSE) != 0 && self.tcp().may_send() {
            self.fin_sent = true;
            self.tcp().close();
        }
    }

    /// Tell Python what has become of it.
    fn tell(&mut self, now_us: u64, events: &EventQueue) {
        self.fin_heard |=
            matches!(self.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        match self.phase {
            Phase::Opening => self.tell_opening(now_us, events),
            Phase::Open => self.tell_open(now_us, events),
            Phase::Lingering => self.finish(),
            Phase::Over => {}
        }
    }

    fn tell_opening(&mut self, now_us: u64, events: &EventQueue) {
        match self.state() {
            // A peer that resets its own SYN leaves the socket listening again.
            State::Closed | State::Listen => self.end("refused", events),
            State::SynSent | State::SynReceived => {}
            _ if self.listener().is_some_and(|listener| listener.is_closed()) => {
                self.tcp().abort();
                self.end("listener-closed", events);
            }
            _ if !events.has_room() => self.retry_us = Some(now_us + TCP_RETRY_MS * 1_000),
            _ => {
                self.phase = Phase::Open;
                self.told = true;
                self.data_us = now_us;
                let (connection, local, peer) = (self.handle.id, self.tuple.local, self.tuple.remote);
                events.push(Event::Tcp(match &self.origin {
                    Origin::Connected => TcpEvent::Connected { connection, local, peer },
                    Origin::Accepted(listener) => {
                        TcpEvent::Accepted { listener: Arc::clone(listener), connection, local, peer }
                    }
                }));
                self.tell_open(now_us, events);
            }
        }
    }

    fn tell_open(&mut self, now_us: u64, events: &EventQueue) {
        let all_told = self.tell_data(now_us, events);
        let state = self.state();
        if !all_told {
            return;
        }
        if self.fin_heard && !self.eof_told {
            self.eof_told = true;
            events.push(Event::Tcp(TcpEvent::Eof { connection: self.handle.id }));
        }
        match state {
            State::TimeWait => self.part(now_us, events),
            State::Closed if self.eof_told && self.fin_sent => self.end("closed", events),
            State::Closed => self.end("reset", events),
            _ => {}
        }
    }

    /// Hand data up as far as credit and queue allow; true if there is no more.
    fn tell_data(&mut self, now_us: u64, events: &EventQueue) -> bool {
        let handle = Arc::clone(&self.handle);
        loop {
            if self.tcp().recv_queue() == 0 {
                return true;
            }
            if !events.has_room() {
                self.retry_us = Some(now_us + TCP_RETRY_MS * 1_000);
                return false;
            }
            let credit = handle.credit.load(Ordering::Acquire);
            if credit == 0 {
                handle.stalled.store(true, Ordering::Release);
                // Credit may have come between the look and the flag.
                if handle.credit.load(Ordering::Acquire) == 0 {
                    return false;
                }
                continue;
            }
            let read = self.tcp().recv(|bytes| {
                let part = bytes.get(..credit.min(bytes.len())).unwrap_or_default();
                (part.len(), part.to_vec())
            });
            let Ok(data) = read else { return true };
            handle.credit.fetch_sub(data.len(), Ordering::AcqRel);
            self.data_us = now_us;
            events.push(Event::Tcp(TcpEvent::Received { connection: handle.id, data }));
        }
    }

    /// Both ends have closed; the program is told, the stack waits a while (TIME-WAIT).
    fn part(&mut self, now_us: u64, events: &EventQueue) {
        events.push(Event::Tcp(TcpEvent::Closed { connection: self.handle.id, reason: "closed" }));
        self.phase = Phase::Lingering;
        self.lingering_us = now_us;
    }

    /// Nobody reads any more: throw away what comes, and see whether it is over.
    fn finish(&mut self) {
        while self.tcp().recv_queue() > 0 && self.tcp().recv(|bytes| (bytes.len(), ())).is_ok() {}
        if self.state() == State::Closed || self.state() == State::Listen {
            self.phase = Phase::Over;
        }
    }

    /// It is over; Python is told if it knows of it and not yet of that.
    fn end(&mut self, reason: &'static str, events: &EventQueue) {
        let known = self.told || matches!(self.origin, Origin::Connected);
        if known && matches!(self.phase, Phase::Opening | Phase::Open) {
            events.push(Event::Tcp(TcpEvent::Closed { connection: self.handle.id, reason }));
        }
        self.phase = Phase::Over;
    }
}

fn instant(us: u64) -> Instant {
    Instant::from_micros(i64::try_from(us).unwrap_or(i64::MAX))
}
