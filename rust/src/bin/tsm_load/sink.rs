//! `receive`: a sink that says what became of the packets.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use _core::sys::{Epoll, READABLE, ReadyList, RecvBatch, set_option};

use crate::histogram::Histogram;
use crate::{BUFFER, MAX_FLOWS, MAX_NUMBER, Options, monotonic_ns, read_head};

/// Which numbers of a flow have come.
#[derive(Default)]
struct Flow {
    seen: Vec<u64>,
    highest: u64,
    received: u64,
}

/// What the sink knows.
struct Sink {
    flows: HashMap<u32, Flow>,
    delays: Histogram,
    received: u64,
    duplicated: u64,
    reordered: u64,
    foreign: u64,
    first: Option<Instant>,
    last: Instant,
}

impl Sink {
    fn new() -> Self {
        Self {
            flows: HashMap::new(),
            delays: Histogram::new(),
            received: 0,
            duplicated: 0,
            reordered: 0,
            foreign: 0,
            first: None,
            last: Instant::now(),
        }
    }

    fn take(&mut self, payload: &[u8], now_ns: u64) {
        let Some((flow, number, sent_ns)) = read_head(payload) else {
            self.foreign += 1;
            return;
        };
        if number >= MAX_NUMBER || (self.flows.len() >= MAX_FLOWS && !self.flows.contains_key(&flow)) {
            self.foreign += 1;
            return;
        }
        let flow = self.flows.entry(flow).or_default();
        let (word, bit) = ((number / 64) as usize, 1u64 << (number % 64));
        if flow.seen.len() <= word {
            flow.seen.resize(word + 1, 0);
        }
        if flow.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        flow.seen[word] |= bit;
        self.reordered += u64::from(flow.received > 0 && number < flow.highest);
        flow.highest = flow.highest.max(number);
        flow.received += 1;
        self.received += 1;
        self.delays.add(now_ns.saturating_sub(sent_ns));
    }

    fn report(&self, timed: bool) -> String {
        let missing: u64 = self.flows.values().map(|f| f.highest + 1 - f.received).sum();
        let seconds = self.first.map_or(0.0, |first| self.last.duration_since(first).as_secs_f64());
        let delays = self.delays.summary();
        let delays = if timed { delays.as_str() } else { "null" };
        format!(
            "{{\"received\":{},\"duplicated\":{},\"reordered\":{},\"missing\":{missing},\"foreign\":{},\
             \"flows\":{},\"seconds\":{seconds:.6},\"delay_us\":{delays}}}",
            self.received,
            self.duplicated,
            self.reordered,
            self.foreign,
            self.flows.len(),
        )
    }
}

pub fn receive(options: &Options) -> Result<String, String> {
    let at = options.address("at")?;
    let length = options.seconds(10.0)?;
    let quiet = Duration::from_millis(options.get("quiet-ms", 500)?);
    let count: u64 = options.get("count", u64::MAX)?;
    let poll: u64 = options.get("poll-ms", 0)?;
    let skip: usize = options.get("skip", 0)?;
    let socket = UdpSocket::bind(at).map_err(|e| format!("cannot bind {at}: {e}"))?;
    socket.set_nonblocking(true).map_err(|e| e.to_string())?;
    let fd = socket.as_raw_fd();
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER);
    let epoll = Epoll::new().map_err(|e| e.to_string())?;
    epoll.add(fd, READABLE, 0).map_err(|e| e.to_string())?;
    eprintln!("ready");
    let (mut ready, mut batch, mut sink) = (ReadyList::default(), RecvBatch::default(), Sink::new());
    let begin = Instant::now();
    while begin.elapsed() < length && sink.received < count {
        if poll > 0 {
            std::thread::sleep(Duration::from_millis(poll));
        } else {
            epoll.wait(&mut ready, Some(50_000)).map_err(|e| e.to_string())?;
        }
        drain(fd, skip, &mut batch, &mut sink);
        if sink.first.is_some() && sink.last.elapsed() > quiet {
            break;
        }
    }
    Ok(sink.report(poll == 0))
}

fn drain(fd: i32, skip: usize, batch: &mut RecvBatch, sink: &mut Sink) {
    while let Ok((count, more)) = batch.receive(fd) {
        let (now, now_ns) = (Instant::now(), monotonic_ns());
        for index in 0..count {
            for payload in batch.get(index).into_iter().flat_map(|(datagrams, _)| datagrams) {
                sink.take(payload.get(skip..).unwrap_or_default(), now_ns);
            }
        }
        sink.first.get_or_insert(now);
        sink.last = now;
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HEAD, write_head};

    fn packet(flow: u32, number: u64) -> Vec<u8> {
        let mut slot = vec![0; HEAD];
        write_head(&mut slot, flow, number);
        slot
    }

    #[test]
    fn the_sink_tells_loss_repetition_and_disorder_apart() {
        let mut sink = Sink::new();
        for (flow, number) in [(0, 0), (0, 2), (0, 1), (0, 1), (1, 0), (1, 5)] {
            sink.take(&packet(flow, number), monotonic_ns());
        }
        sink.take(b"something else", 0);
        assert_eq!((sink.received, sink.duplicated, sink.reordered, sink.foreign), (5, 1, 1, 1));
        assert!(sink.report(true).contains("\"missing\":4"));
    }
}
