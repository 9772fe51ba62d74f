//! A worker: one thread, one epoll, the sockets it owns.
//!
//! One turn of the loop, in order: wait; orders from other threads; readiness (datagrams, streams, TUN
//! devices); timers that are due; streams that have something to write; datagrams to the kernel; steps of those
//! who are still on their way in, for a bounded time; a look away where traffic is dense (`pace`). A socket gets a budget of reads per turn, so that a busy one cannot
//! starve its neighbours.

mod conn;
pub mod control;
mod datagrams;
mod pace;
mod streams;
mod timers;
mod wheel;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::boundary::{Command, Event};
use crate::counters::{Counter, CounterSet};
use crate::engine::{Engine, Inbox, Tun};
use crate::forward::Forwarder;
use crate::limits::{BATCH, DATAGRAM_SLOT, READ_BUDGET, WELCOME_US};
use crate::runs::HEADER;
use crate::sys::{READABLE, Ready, ReadyList, RecvBatch};
use crate::tables::detect::MediaPort;
use crate::tables::relays::CoreSocket;
use crate::tcp::stack::Stack;
use crate::tunnel::Tunnel;

use datagrams::Datagrams;
use pace::Pace;
use streams::Streams;
use timers::{Due, Timers};

/// What a descriptor is, in the top byte of its epoll token.
pub mod token {
    pub const WAKE: u8 = 1;
    pub const LISTENER: u8 = 2;
    pub const STREAM: u8 = 3;
    pub const PORT: u8 = 4;
    pub const TUN: u8 = 5;
    pub const CORE: u8 = 6;
    pub const RELAY: u8 = 7;
}

const ID_BITS: u32 = 56;

/// Join a kind and an id.
pub fn token(kind: u8, id: u64) -> u64 {
    u64::from(kind) << ID_BITS | (id & ((1 << ID_BITS) - 1))
}

fn split(token: u64) -> (u8, u64) {
    ((token >> ID_BITS) as u8, token & ((1 << ID_BITS) - 1))
}

/// How often the core side is swept for idle sockets.
const CORE_SWEEP_US: u64 = 60_000_000;

/// How often the kernel is asked what it has dropped: a reader of counters looks once in ten seconds or less often.
const DROP_SWEEP_US: u64 = 5_000_000;

/// How often clients' media flows are looked at for silence; fine enough beside the ten seconds it takes.
const FLOW_SWEEP_US: u64 = 2_000_000;

/// The state of one worker thread.
pub struct Worker {
    index: usize,
    inbox: Arc<Inbox>,
    forwarder: Forwarder,
    streams: Streams,
    datagrams: Datagrams,
    tuns: HashMap<u64, Arc<Tun>>,
    timers: Timers,
    tcp: Stack,
    batch: RecvBatch,
    /// Readiness of this turn that waits until its packets have left: of handshakes, and of listeners.
    shaking: Vec<Ready>,
    knocking: Vec<Ready>,
    /// A sweep for silent media flows is in the timers.
    sweeping_flows: bool,
    stop_at_us: Option<u64>,
}

impl Worker {
    /// A worker that has not begun.
    pub fn new(engine: Arc<Engine>, counters: Arc<CounterSet>, index: usize) -> io::Result<Self> {
        let inbox = engine.inbox(index).cloned().ok_or(io::ErrorKind::InvalidInput)?;
        inbox.epoll.add(inbox.wake.as_raw_fd(), READABLE, token(token::WAKE, 0))?;
        let mut timers = Timers::default();
        timers.at(CORE_SWEEP_US, Due::CoreSweep);
        timers.at(DROP_SWEEP_US, Due::DropSweep);
        Ok(Self {
            index,
            inbox,
            forwarder: Forwarder::new(engine, counters, Some(index)),
            streams: Streams::new(index),
            datagrams: Datagrams::new(index),
            tuns: HashMap::new(),
            timers,
            tcp: Stack::new(index),
            batch: RecvBatch::default(),
            shaking: Vec::new(),
            knocking: Vec::new(),
            sweeping_flows: false,
            stop_at_us: None,
        })
    }

    /// The thread.
    pub fn run(mut self) {
        let mut ready = ReadyList::default();
        let (mut pace, mut taken_in) = (Pace::default(), 0);
        crate::sys::ask_for_short_slices();
        loop {
            let now = self.forwarder.engine.now_us();
            let next = [self.timers.next(), self.tcp.next()].into_iter().flatten().min();
            let timeout = if self.has_segments() { Some(0) } else { next.map(|due| due.saturating_sub(now)) };
            if self.inbox.epoll.wait(&mut ready, timeout).is_err() {
                return;
            }
            self.forwarder.now_us = self.forwarder.engine.now_us();
            for index in 0..ready.len() {
                if let Some(event) = ready.get(index).filter(|event| !self.puts_off(event)) {
                    self.dispatch(event);
                }
            }
            self.run_timers();
            self.run_tcp();
            self.flush();
            self.welcome();
            if self.stop_at_us.is_some_and(|at| self.forwarder.now_us >= at || self.streams.is_flushed()) {
                self.finish();
                return;
            }
            let before = std::mem::replace(&mut taken_in, self.taken_in());
            if let Some(pause) = pace.pause(taken_in - before, self.forwarder.now_us) {
                std::thread::sleep(pause);
            }
        }
    }

    /// Whether a readiness belongs to somebody who is still on the way in. Such work is done when the packets of
    /// this turn have left.
    fn puts_off(&mut self, event: &Ready) -> bool {
        let (kind, id) = split(event.token);
        if kind == token::LISTENER {
            self.knocking.push(*event);
        } else if kind == token::STREAM && self.streams.is_shaking(id) {
            self.shaking.push(*event);
        } else {
            return false;
        }
        true
    }

    /// Steps of those who come in: the first, and more while the time for it lasts. The others stay ready, and are
    /// reported again by the next wait together with the packets that have come meanwhile. Who is inside already
    /// goes before who knocks: else a crowd at the door would keep everybody from getting through.
    fn welcome(&mut self) {
        if self.shaking.is_empty() && self.knocking.is_empty() {
            return;
        }
        let end = self.forwarder.engine.now_us() + WELCOME_US;
        let (mut shaking, mut knocking) =
            (std::mem::take(&mut self.shaking), std::mem::take(&mut self.knocking));
        for event in shaking.iter().chain(&knocking) {
            self.dispatch(*event);
            if self.forwarder.engine.now_us() >= end {
                break;
            }
        }
        shaking.clear();
        knocking.clear();
        (self.shaking, self.knocking) = (shaking, knocking);
        self.flush();
    }

    /// Inner TCP packets wait for this worker.
    fn has_segments(&self) -> bool {
        self.forwarder.engine.tcp.pending(self.index)
    }

    fn run_tcp(&mut self) {
        if self.has_segments() {
            self.tcp.run(&mut self.forwarder);
        }
        if self.tcp.next().is_some_and(|at| at <= self.forwarder.now_us) {
            self.tcp.run_due(&mut self.forwarder);
        }
    }

    /// Packets this thread has ever taken in.
    fn taken_in(&self) -> u64 {
        let counters = &self.forwarder.counters;
        counters.get(Counter::InnerRx) + counters.get(Counter::TunRx)
    }

    fn dispatch(&mut self, event: Ready) {
        let (kind, id) = split(event.token);
        match kind {
            token::WAKE => self.take_orders(),
            token::LISTENER => self.streams.accept(id, &mut self.forwarder, &mut self.timers),
            token::STREAM => self.streams.on_ready(id, event, &mut self.forwarder, &mut self.timers),
            token::PORT => {
                self.datagrams.on_readable(id, &mut self.batch, &mut self.forwarder, &mut self.timers)
            }
            token::TUN => self.read_tun(id),
            token::CORE => {
                let engine = Arc::clone(&self.forwarder.engine);
                engine.core.receive(id, &mut self.forwarder);
            }
            token::RELAY => self.read_relay(id),
            _ => {}
        }
    }

    fn take_orders(&mut self) {
        self.inbox.wake.clear();
        self.inbox.take_dirty(&mut self.forwarder.dirty);
        while let Some(command) = self.inbox.next() {
            self.obey(command);
        }
        self.streams.resume_paused(&mut self.forwarder, &mut self.timers);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::ListenStream { listener, fd, shared } => {
                self.streams.listen(listener, fd, shared, &self.inbox);
            }
            Command::ListenDatagram { listener, sockets, dtls } => {
                self.datagrams.listen(listener, &sockets, dtls, &self.forwarder);
            }
            Command::Unlisten { listener } => {
                self.streams.unlisten(listener);
                self.datagrams.unlisten(listener);
            }
            Command::AttachStream { tunnel, fd, tls } => {
                self.streams.attach(tunnel, fd, tls, &mut self.forwarder, &mut self.timers);
            }
            Command::AttachDatagram { tunnel, fd, psk, tsid, session, rtt_hint_ms } => {
                let order = datagrams::Dial { tunnel, psk, tsid, session, rtt_hint_ms };
                self.datagrams.dial(order, fd, &mut self.forwarder, &mut self.timers);
            }
            Command::AddTun { tun } => self.add_tun(tun),
            Command::RemoveTun { tun } => self.remove_tun(&tun),
            Command::Close { tunnel, reason } => {
                self.streams.close(tunnel, reason, &mut self.forwarder, &mut self.timers);
                self.datagrams.close(tunnel, reason, &mut self.forwarder);
            }
            Command::Tcp(order) => self.tcp.order(order, &mut self.forwarder),
            Command::Watch { tunnel } => self.forwarder.to_watch.push(tunnel),
            Command::Arm { tunnel } => self.timers.arm(&tunnel, self.forwarder.now_us),
            #[cfg(feature = "rows")]
            Command::Row { listener, peer, tsid } => {
                self.datagrams.add_row(listener, peer, tsid, &mut self.forwarder);
            }
            Command::Shutdown { flush_ms } => {
                self.stop_at_us = Some(self.forwarder.now_us + flush_ms * 1_000);
                self.timers.at(self.forwarder.now_us + flush_ms * 1_000, Due::Wake);
            }
        }
    }

    fn queue_of(&self, tun: &Tun) -> Option<i32> {
        tun.queues.get(self.index).map(AsRawFd::as_raw_fd)
    }

    fn add_tun(&mut self, tun: Arc<Tun>) {
        let Some(fd) = self.queue_of(&tun) else {
            return;
        };
        if self.inbox.epoll.add(fd, READABLE, token(token::TUN, tun.id)).is_ok() {
            // The first queue's worker looks after a client's device.
            if self.index == 0 && tun.session.is_some() && !self.sweeping_flows {
                self.sweeping_flows = true;
                self.timers.at(self.forwarder.now_us + FLOW_SWEEP_US, Due::FlowSweep);
            }
            self.tuns.insert(tun.id, tun);
        }
    }

    fn remove_tun(&mut self, tun: &Arc<Tun>) {
        if self.tuns.remove(&tun.id).is_some()
            && let Some(fd) = self.queue_of(tun)
        {
            self.inbox.epoll.remove(fd);
        }
    }

    fn read_tun(&mut self, id: u64) {
        let Some(tun) = self.tuns.get(&id).cloned() else {
            return;
        };
        let Some(fd) = self.queue_of(&tun) else {
            return;
        };
        let skip = if tun.header { HEADER } else { 0 };
        let mut packet = [0u8; HEADER + DATAGRAM_SLOT];
        for _ in 0..BATCH {
            let Ok(length) = crate::sys::read(fd, &mut packet) else {
                return;
            };
            if let Some(packet) = packet.get_mut(skip..length) {
                self.forwarder.from_tun(&tun, packet);
            }
        }
    }

    /// Media has come to a relay's socket on the core side.
    fn read_relay(&mut self, id: u64) {
        let Some((relay, side)) = self.forwarder.engine.relays.of_socket(id) else {
            return;
        };
        let Some(fd) = relay.core(side).map(CoreSocket::fd) else {
            return;
        };
        for _ in 0..READ_BUDGET {
            let Ok((count, more)) = self.batch.receive(fd) else {
                return;
            };
            for index in 0..count {
                if let Some((datagrams, peer)) = self.batch.get(index) {
                    for datagram in datagrams {
                        self.forwarder.from_core(&relay, side, peer, datagram);
                    }
                }
            }
            if !more {
                return;
            }
        }
    }

    fn run_timers(&mut self) {
        while let Some(due) = self.timers.pop(self.forwarder.now_us) {
            match due {
                Due::Wake => {}
                Due::CoreSweep => self.sweep_core(),
                Due::DropSweep => self.sweep_drops(),
                Due::FlowSweep => self.sweep_flows(),
                Due::Accept(id) => self.streams.resume_accepting(id, &self.forwarder),
                Due::Stream(id) => self.streams.on_timer(id, &mut self.forwarder),
                Due::Handshake { port, peer } => {
                    self.datagrams.on_timer(port, peer, &mut self.forwarder, &mut self.timers);
                }
                Due::Keepalive(tunnel) => self.timers.keepalive(&tunnel, &mut self.forwarder),
                Due::Idle(tunnel) => self.timers.idle(&tunnel, &self.forwarder),
            }
        }
        self.timers.run_watches(&mut self.forwarder);
    }

    fn sweep_core(&mut self) {
        if self.index == 0 {
            let engine = Arc::clone(&self.forwarder.engine);
            engine.core.sweep(&engine, self.forwarder.now_us);
        }
        self.timers.at(self.forwarder.now_us + CORE_SWEEP_US, Due::CoreSweep);
    }

    fn sweep_drops(&mut self) {
        let counters = Arc::clone(&self.forwarder.counters);
        counters.add_n(Counter::ReceiveQueueFull, self.datagrams.drops_grown());
        if self.index == 0 {
            // A client's device may be in another namespace than this thread.
            let servers = self.tuns.values().filter(|tun| tun.session.is_none());
            counters.add_n(Counter::TunQueueFull, servers.map(|tun| tun.drops_grown()).sum());
        }
        self.timers.at(self.forwarder.now_us + DROP_SWEEP_US, Due::DropSweep);
    }

    fn sweep_flows(&mut self) {
        for session in self.tuns.values().filter_map(|tun| tun.session.as_ref()) {
            for MediaPort { v6, port } in session.detector.sweep(self.forwarder.now_us) {
                self.forwarder.engine.events.push(Event::Flow { session: session.id, v6, port, quiet: true });
            }
        }
        self.sweeping_flows = self.tuns.values().any(|tun| tun.session.is_some());
        if self.sweeping_flows {
            self.timers.at(self.forwarder.now_us + FLOW_SWEEP_US, Due::FlowSweep);
        }
    }

    fn flush(&mut self) {
        self.forwarder.deliver_waiting();
        while let Some(tunnel) = self.forwarder.to_watch.pop() {
            self.timers.begin_watch(tunnel, self.forwarder.now_us);
        }
        while let Some(tunnel) = self.forwarder.dirty.pop() {
            self.streams.flush(tunnel.id, &mut self.forwarder, &mut self.timers);
        }
        self.forwarder.flush_tun();
        self.forwarder.flush_datagrams();
        while let Some(tunnel) = self.forwarder.away.pop() {
            self.forwarder.engine.mark_dirty(&tunnel);
        }
    }

    fn finish(&mut self) {
        self.streams.close_all(&mut self.forwarder);
        self.datagrams.close_all(&mut self.forwarder);
        self.forwarder.flush_datagrams();
    }
}

/// Take a dead tunnel out of the shared tables.
fn forget(tunnel: &Arc<Tunnel>, engine: &Engine) {
    engine.tunnels.remove(&tunnel.id);
    let session = tunnel.session().clone();
    if let Some(session) = session {
        session.detach(tunnel);
    }
    tunnel.set_session(None);
}
