//! Timers of one worker: a heap of due times. Entries are not taken back; what fires looks whether it is
//! still meant, and goes back into the heap if it is early. A tunnel has at most one entry of each kind.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::wheel::Wheel;
use crate::boundary::Event;
use crate::coding::sender::FLUSH_US;
use crate::counters::Counter;
use crate::egress::Class;
use crate::forward::Forwarder;
use crate::frame::{PATH_ALERT, PATH_PULSE, PROBE_SEQUENCE_BIT, keepalive_request, short_message};
use crate::tables::Session;
use crate::tables::doubt::{Finding, WATCH_US};
use crate::tunnel::Tunnel;

/// What is due.
#[derive(Clone, Debug)]
pub enum Due {
    /// Nothing but another turn of the loop.
    Wake,
    CoreSweep,
    /// Ask the kernel what it has dropped.
    DropSweep,
    /// Look for media flows that have fallen silent.
    FlowSweep,
    /// A listener for which there was no descriptor may be looked at again.
    Accept(u64),
    /// A stream's handshake or closing deadline.
    Stream(u64),
    /// A DTLS handshake's retransmission or end.
    Handshake {
        port: u64,
        peer: SocketAddr,
    },
    Keepalive(Arc<Tunnel>),
    Idle(Arc<Tunnel>),
}

struct Entry {
    at_us: u64,
    order: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.order) == (other.at_us, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// The heap.
#[derive(Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
    /// Datagram tunnels with media on them: whether they are still heard.
    watches: Wheel<Tunnel>,
    watched: Vec<Arc<Tunnel>>,
}

impl Timers {
    /// Something is due at `at_us`.
    pub fn at(&mut self, at_us: u64, due: Due) {
        self.order += 1;
        self.heap.push(Reverse(Entry { at_us, order: self.order, due }));
    }

    /// When the next thing is due.
    pub fn next(&self) -> Option<u64> {
        let first = self.heap.peek().map(|Reverse(entry)| entry.at_us);
        [first, self.watches.next()].into_iter().flatten().min()
    }

    /// The next thing that is due by now.
    pub fn pop(&mut self, now_us: u64) -> Option<Due> {
        self.heap.peek().filter(|Reverse(entry)| entry.at_us <= now_us)?;
        self.heap.pop().map(|Reverse(entry)| entry.due)
    }

    /// Start what the tunnel's wishes ask for and no entry stands for yet.
    pub fn arm(&mut self, tunnel: &Arc<Tunnel>, now_us: u64) {
        let wishes = &tunnel.wishes;
        let interval_us = u64::from(wishes.keepalive_ms.load(Ordering::Acquire)) * 1_000;
        let next_us = wishes.keepalive_next_us.load(Ordering::Acquire);
        // A shorter interval takes effect at once, a longer one after the probe that is due.
        if interval_us > 0 && (next_us == 0 || next_us > now_us + interval_us) {
            self.schedule_keepalive(tunnel, if next_us == 0 { now_us } else { now_us + interval_us });
        }
        let idle_ms = wishes.idle_ms.load(Ordering::Acquire);
        if idle_ms > 0 && !wishes.idle_armed.swap(true, Ordering::AcqRel) {
            self.at(now_us + u64::from(idle_ms) * 1_000, Due::Idle(Arc::clone(tunnel)));
        }
    }

    fn schedule_keepalive(&mut self, tunnel: &Arc<Tunnel>, at_us: u64) {
        tunnel.wishes.keepalive_next_us.store(at_us.max(1), Ordering::Release);
        self.at(at_us, Due::Keepalive(Arc::clone(tunnel)));
    }

    /// Send a probe and look whether earlier ones met silence.
    pub fn keepalive(&mut self, tunnel: &Arc<Tunnel>, forwarder: &mut Forwarder) {
        let interval = u64::from(tunnel.wishes.keepalive_ms.load(Ordering::Acquire));
        if interval == 0 || forwarder.engine.tunnels.get(&tunnel.id).is_none() {
            tunnel.wishes.keepalive_next_us.store(0, Ordering::Release);
            return;
        }
        let now = forwarder.now_us;
        if tunnel.wishes.keepalive_next_us.load(Ordering::Acquire) > now {
            return;
        }
        let (sequence, silence) = {
            let mut probe = tunnel.probe.lock();
            let accused =
                tunnel.is_datagram() && tunnel.session().as_ref().is_some_and(|s| s.doubt.accused(now));
            let silence = probe.silence(tunnel.last_rx_us.load(Ordering::Relaxed), accused, now);
            (probe.send(now), silence)
        };
        report_silence(tunnel, silence, forwarder);
        let size = tunnel.wishes.probe_size.load(Ordering::Relaxed) as usize;
        let message = keepalive_request(tunnel.tsid(), PROBE_SEQUENCE_BIT | sequence, now, size);
        let sent = if tunnel.is_datagram() {
            forwarder.send_frame(tunnel, message.bytes())
        } else {
            forwarder.queue_frame(tunnel, Class::Signalling, message.bytes())
        };
        if let Err(drop) = sent {
            forwarder.counters.add(drop);
        }
        self.schedule_keepalive(tunnel, now + interval * 1_000);
    }

    /// Media has begun on a datagram tunnel: look after it.
    pub fn begin_watch(&mut self, tunnel: Arc<Tunnel>, now_us: u64) {
        self.watches.at(now_us + WATCH_US, tunnel);
    }

    /// Look at the tunnels that are to be looked at by now.
    pub fn run_watches(&mut self, forwarder: &mut Forwarder) {
        let mut tunnels = std::mem::take(&mut self.watched);
        while self.watches.take(forwarder.now_us, &mut tunnels) {
            for tunnel in tunnels.drain(..) {
                self.watch(tunnel, forwarder);
            }
        }
        self.watched = tunnels;
    }

    /// Look at a datagram tunnel that carries media; tell the peer when it has fallen silent.
    fn watch(&mut self, tunnel: Arc<Tunnel>, forwarder: &mut Forwarder) {
        let Some(link) = tunnel.datagram() else { return };
        let session = tunnel.session();
        let now = forwarder.now_us;
        let mut times = link.times(tunnel.last_rx_us.load(Ordering::Relaxed));
        let finding = session.as_ref().map_or(Finding::Unused, |s| s.doubt.look(now, &times));
        let mut longest = u64::MAX;
        if let Some(session) = session.as_ref().filter(|s| s.coding.scheme().is_some()) {
            forwarder.flush_recovery(session, &tunnel);
            longest = FLUSH_US;
        }
        match finding {
            Finding::Unused => {
                link.watched.store(false, Ordering::Release);
                return;
            }
            Finding::Silent { alert: true } => {
                if let Some(session) = session.as_ref() {
                    alert_peer(session, forwarder);
                }
            }
            Finding::Silent { alert: false } | Finding::Well => {}
        }
        if times.pulse_due(now) {
            let message = short_message(PATH_PULSE, tunnel.tsid(), PROBE_SEQUENCE_BIT);
            let sent = forwarder.send_frame(&tunnel, &message);
            forwarder.counters.add(sent.err().unwrap_or(Counter::PathPulseSent));
            times.sent_us = now;
        }
        drop(session);
        self.watches.at(times.next_look_us(now).min(now.saturating_add(longest)), tunnel);
    }

    /// Report a tunnel that has been silent for its time, or look again when it may have been.
    pub fn idle(&mut self, tunnel: &Arc<Tunnel>, forwarder: &Forwarder) {
        let idle_us = u64::from(tunnel.wishes.idle_ms.load(Ordering::Acquire)) * 1_000;
        if idle_us == 0 || forwarder.engine.tunnels.get(&tunnel.id).is_none() {
            tunnel.wishes.idle_armed.store(false, Ordering::Release);
            return;
        }
        let last = tunnel.last_rx_us.load(Ordering::Relaxed);
        let silence = forwarder.now_us.saturating_sub(last);
        let next = if silence >= idle_us {
            forwarder.engine.events.push(Event::Idle { tunnel: tunnel.id, silent_ms: silence / 1_000 });
            forwarder.now_us + idle_us
        } else {
            last + idle_us
        };
        self.at(next, Due::Idle(Arc::clone(tunnel)));
    }
}

/// Say on the stream that the datagram tunnel is not heard.
pub fn alert_peer(session: &Session, forwarder: &mut Forwarder) {
    if let Some(stream) = session.any_stream() {
        let message = short_message(PATH_ALERT, stream.tsid(), PROBE_SEQUENCE_BIT);
        let sent = forwarder.queue_frame(&stream, Class::Signalling, &message);
        forwarder.counters.add(sent.err().unwrap_or(Counter::PathAlertSent));
    }
}

fn report_silence(tunnel: &Tunnel, silence_us: u64, forwarder: &Forwarder) {
    let limit = u64::from(tunnel.wishes.silent_ms.load(Ordering::Acquire)) * 1_000;
    if limit == 0 || silence_us < limit || tunnel.silent.swap(true, Ordering::Relaxed) {
        return;
    }
    let event = Event::Silent { tunnel: tunnel.id, silent_ms: silence_us / 1_000 };
    if !forwarder.engine.events.push(event) {
        forwarder.counters.add(Counter::EventQueueFull);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel() -> Arc<Tunnel> {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let link = crate::tunnel::Link::Stream(crate::tunnel::StreamLink::default());
        Arc::new(Tunnel::new(1, None, nowhere, nowhere, link, 0))
    }

    #[test]
    fn a_shorter_interval_takes_effect_at_once_and_a_longer_one_after_the_next_probe() {
        let (mut timers, tunnel) = (Timers::default(), tunnel());
        tunnel.wishes.keepalive_ms.store(5_000, Ordering::Release);
        timers.schedule_keepalive(&tunnel, 5_000_000);
        tunnel.wishes.keepalive_ms.store(200, Ordering::Release);
        timers.arm(&tunnel, 1_000_000);
        assert_eq!(timers.next(), Some(1_200_000));
        tunnel.wishes.keepalive_ms.store(9_000, Ordering::Release);
        timers.arm(&tunnel, 1_100_000);
        assert_eq!(timers.next(), Some(1_200_000));
    }

    #[test]
    fn things_fall_due_in_order_and_not_before() {
        let mut timers = Timers::default();
        timers.at(30, Due::Stream(3));
        timers.at(10, Due::Stream(1));
        timers.at(10, Due::Stream(2));
        assert_eq!(timers.next(), Some(10));
        assert!(timers.pop(9).is_none());
        let mut order = Vec::new();
        while let Some(Due::Stream(id)) = timers.pop(30) {
            order.push(id);
        }
        assert_eq!(order, [1, 2, 3]);
        assert_eq!(timers.next(), None);
    }
}
