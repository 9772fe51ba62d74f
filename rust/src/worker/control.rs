//! What the user plane does with frames that came out of a tunnel: inner packets go forward, keepalives are
//! answered here, other control messages go up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::boundary::Event;
use crate::counters::Counter;
use crate::egress::Class;
use crate::forward::Forwarder;
use crate::frame::{
    ControlHead, Frame, FrameError, KEEPALIVE_REQUEST, KEEPALIVE_RESPONSE, PATH_ALERT, PATH_PULSE,
    PROBE_SEQUENCE_BIT, UNASSIGNED_TSID, answer_keepalive, keepalive_time, next_frame,
};
use crate::tunnel::Tunnel;

/// How far a run over frames got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// This many bytes are done; what is left is the beginning of a frame.
    Consumed(usize),
    /// The control plane is behind: stop reading from this sender after so many bytes.
    Full(usize),
    /// After so many bytes came something that is no frame.
    Broken(usize, FrameError),
}

/// Handle all whole frames at the start of `data`.
pub fn frames(forwarder: &mut Forwarder, tunnel: &Arc<Tunnel>, data: &mut [u8]) -> Progress {
    let mut at = 0;
    while let Some(rest) = data.get_mut(at..) {
        match next_frame(rest) {
            Ok(Frame::Incomplete) => break,
            Ok(Frame::Inner(length)) => {
                if let Some(packet) = rest.get_mut(..length) {
                    forwarder.from_tunnel(tunnel, packet);
                }
                at += length;
            }
            Ok(Frame::Sequenced(length)) => {
                if let Some(frame) = rest.get_mut(..length) {
                    forwarder.from_both_paths(tunnel, frame);
                }
                at += length;
            }
            Ok(Frame::Packed(length)) => {
                if let Some(frame) = rest.get(..length) {
                    forwarder.from_packed(tunnel, frame);
                }
                at += length;
            }
            Ok(Frame::Recovery(length)) => {
                if let Some(frame) = rest.get(..length) {
                    forwarder.from_recovery(tunnel, frame);
                }
                at += length;
            }
            Ok(Frame::Control(length)) => {
                if let Some(message) = rest.get_mut(..length)
                    && !control(forwarder, tunnel, message)
                {
                    return Progress::Full(at);
                }
                at += length;
            }
            Err(error) => return Progress::Broken(at, error),
        }
    }
    Progress::Consumed(at)
}

/// The counter of a frame error.
pub fn frame_counter(error: FrameError) -> Counter {
    match error {
        FrameError::Malformed => Counter::FrameMalformed,
        FrameError::Reserved => Counter::FrameReserved,
        FrameError::Oversized => Counter::FrameOversized,
    }
}

/// Handle one control message. False if it has to wait.
fn control(forwarder: &mut Forwarder, tunnel: &Arc<Tunnel>, message: &mut [u8]) -> bool {
    let Some(head) = ControlHead::parse(message) else {
        forwarder.counters.add(Counter::ControlMalformed);
        return true;
    };
    let ours = tunnel.tsid();
    if ours != UNASSIGNED_TSID && head.tsid != ours {
        forwarder.counters.add(Counter::ControlWrongTsid);
        return true;
    }
    match head.kind {
        KEEPALIVE_REQUEST => {
            if let Some(sent) = keepalive_time(message).filter(|_| head.sequence & PROBE_SEQUENCE_BIT != 0) {
                tunnel.probe.lock().came(sent, forwarder.now_us);
            }
            answer(forwarder, tunnel, message);
        }
        // Its coming was all it had to say.
        PATH_PULSE => {}
        PATH_ALERT => {
            // The peer no longer hears us on the datagram tunnel: send by both until it says no more.
            if let Some(session) = tunnel.session().as_ref() {
                session.doubt.accuse(forwarder.now_us);
                forwarder.counters.add(Counter::PathAlertHeard);
            }
        }
        KEEPALIVE_RESPONSE if head.sequence & PROBE_SEQUENCE_BIT != 0 => {
            let now = forwarder.engine.now_us();
            if tunnel.probe.lock().answered(head.sequence & !PROBE_SEQUENCE_BIT, now) {
                answered(forwarder, tunnel);
            }
        }
        _ => {
            if !forwarder.engine.events.offer_control(tunnel.id, message) {
                return false;
            }
        }
    }
    forwarder.counters.add(Counter::ControlRx);
    true
}

fn answer(forwarder: &mut Forwarder, tunnel: &Arc<Tunnel>, message: &mut [u8]) {
    answer_keepalive(message);
    let sent = if tunnel.is_datagram() {
        forwarder.send_frame(tunnel, message)
    } else {
        forwarder.queue_frame(tunnel, Class::Signalling, message)
    };
    forwarder.counters.add(match sent {
        Ok(()) => Counter::KeepalivesAnswered,
        Err(drop) => drop,
    });
}

/// A probe has come back: the tunnel carries both ways, which hearing something does not prove.
fn answered(forwarder: &Forwarder, tunnel: &Tunnel) {
    let was_silent = tunnel.silent.swap(false, Ordering::Relaxed);
    if was_silent && !forwarder.engine.events.push(Event::Alive { tunnel: tunnel.id }) {
        forwarder.counters.add(Counter::EventQueueFull);
    }
}
