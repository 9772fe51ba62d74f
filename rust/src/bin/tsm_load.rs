//! tsm-load: a paced or saturating source of UDP packets, and a sink that says what became of them.
//!
//! ```text
//! tsm-load send    --to ADDR:PORT [--from ADDR:PORT] [--flows N] [--rate PPS] [--burst N] [--size BYTES]
//!                  [--seconds S] [--count N]
//! tsm-load receive --at ADDR:PORT [--seconds S] [--quiet-ms MS] [--count N] [--poll-ms MS]
//! ```
//!
//! Both print one JSON object on standard output. Every payload carries its flow, its number within the flow
//! and CLOCK_MONOTONIC in nanoseconds, so that one-way delays need both ends on one machine. A rate of 0 sends
//! as fast as the kernel takes; otherwise packets leave at even intervals, in groups of `--burst`. A group is of
//! one flow, the next group of the next flow. Flow i sends from port PORT + i of `--from`. The sink prints `ready` on standard error once
//! it can receive, and ends when the time is up, the count is reached, or nothing came for `--quiet-ms` after
//! the first packet. With `--poll-ms` it looks at its socket at intervals instead of being woken by it: waking
//! it is work of whoever sends, which is the very process that a measurement of CPU time is about. Delays are
//! then those of the looking and are reported as null.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use _core::sys::{Epoll, READABLE, ReadyList, RecvBatch, SendBatch, set_option};

/// First bytes of our payloads; whatever else arrives is counted apart.
const MAGIC: [u8; 4] = *b"tsmL";
/// Magic, flow, number, time.
const HEAD: usize = 4 + 4 + 8 + 8;
/// Largest payload: what one slot of a batch holds on an Ethernet path.
const MAX_SIZE: usize = 1472;
/// Each flow costs a socket here and a bit map at the sink.
const MAX_FLOWS: usize = 4096;
/// Numbers per flow that are told apart; 16 M packets of one flow are 2 MiB of bits.
const MAX_NUMBER: u64 = 1 << 24;
/// Kernel buffer of the sink, so that the tool is not what loses packets.
const BUFFER: libc::c_int = 32 * 1024 * 1024;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let outcome = match words.next().as_deref() {
        Some("send") => Options::parse(words).and_then(|o| send(&o)),
        Some("receive") => Options::parse(words).and_then(|o| receive(&o)),
        _ => Err("usage: tsm-load send|receive --name value ... (see the head of tsm_load.rs)".into()),
    };
    match outcome {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tsm-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `--name value` pairs.
struct Options(HashMap<String, String>);

impl Options {
    const NAMES: [&str; 11] =
        ["to", "from", "at", "flows", "rate", "burst", "size", "seconds", "count", "quiet-ms", "poll-ms"];

    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut pairs = HashMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").filter(|n| Self::NAMES.contains(n));
            let name = name.ok_or_else(|| format!("unknown option {word}"))?.to_owned();
            let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
            pairs.insert(name, value);
        }
        Ok(Self(pairs))
    }

    fn get<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.0.get(name) {
            Some(text) => text.parse().map_err(|_| format!("--{name}: cannot read {text:?}")),
            None => Ok(default),
        }
    }

    fn address(&self, name: &str) -> Result<SocketAddr, String> {
        let text = self.0.get(name).ok_or_else(|| format!("--{name} ADDR:PORT is needed"))?;
        text.parse().map_err(|_| format!("--{name}: cannot read {text:?} as ADDR:PORT"))
    }

    fn seconds(&self, default: f64) -> Result<Duration, String> {
        Duration::try_from_secs_f64(self.get("seconds", default)?).map_err(|e| format!("--seconds: {e}"))
    }
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleep until a moment of CLOCK_MONOTONIC; the kernel's default slack of 50 us would bunch the packets.
fn sleep_until(at_ns: u64) {
    let at = libc::timespec {
        tv_sec: (at_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (at_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the pointer is to a live timespec; a remainder is not asked for.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const at, std::ptr::null_mut())
    };
}

fn sharpen_timers() {
    // SAFETY: integer arguments only; on failure timers are merely less exact.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

// -- sending ----------------------------------------------------------------------------------------

struct Source {
    sockets: Vec<UdpSocket>,
    to: SocketAddr,
    size: usize,
    numbers: Vec<u64>,
    next_flow: usize,
    batch: SendBatch,
    sent: u64,
    refused: u64,
}

impl Source {
    fn open(options: &Options) -> Result<Self, String> {
        let to = options.address("to")?;
        let flows: usize = options.get("flows", 1)?;
        let size: usize = options.get("size", 172)?;
        if !(1..=MAX_FLOWS).contains(&flows) || !(HEAD..=MAX_SIZE).contains(&size) {
            return Err(format!("--flows is 1 to {MAX_FLOWS}, --size is {HEAD} to {MAX_SIZE} bytes"));
        }
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let from: SocketAddr = options.get("from", any.parse().map_err(|_| "no address")?)?;
        let sockets = (0..flows).map(|flow| bind(from, flow)).collect::<Result<Vec<_>, _>>()?;
        let numbers = vec![0; flows];
        let batch = SendBatch::default();
        Ok(Self { sockets, to, size, numbers, next_flow: 0, batch, sent: 0, refused: 0 })
    }

    /// Build `count` packets of the next flow and give them to the kernel, which takes a group of one flow at a
    /// fraction of the cost.
    fn emit(&mut self, count: u64) {
        (0..count).for_each(|_| self.build());
        self.flush();
        self.next_flow = (self.next_flow + 1) % self.sockets.len();
    }

    fn build(&mut self) {
        if self.batch.is_full() {
            self.flush();
        }
        let (flow, size) = (self.next_flow, self.size);
        let number = self.numbers[flow];
        self.numbers[flow] += 1;
        self.batch.push(self.sockets[flow].as_raw_fd(), Some(&self.to), |slot| {
            write_head(slot.get_mut(..size)?, flow as u32, number);
            Some(size)
        });
    }

    fn flush(&mut self) {
        let flushed = self.batch.flush();
        self.sent += flushed.sent;
        self.refused += flushed.would_block + flushed.failed;
    }
}

fn bind(from: SocketAddr, flow: usize) -> Result<UdpSocket, String> {
    let port = if from.port() == 0 { 0 } else { from.port() + flow as u16 };
    let address = SocketAddr::new(from.ip(), port);
    let socket = UdpSocket::bind(address).map_err(|e| format!("cannot bind {address}: {e}"))?;
    let _ = set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER);
    Ok(socket)
}

fn write_head(slot: &mut [u8], flow: u32, number: u64) {
    slot[..4].copy_from_slice(&MAGIC);
    slot[4..8].copy_from_slice(&flow.to_be_bytes());
    slot[8..16].copy_from_slice(&number.to_be_bytes());
    slot[16..24].copy_from_slice(&monotonic_ns().to_be_bytes());
}

fn send(options: &Options) -> Result<String, String> {
    let mut source = Source::open(options)?;
    let rate: u64 = options.get("rate", 0)?;
    let burst: u64 = options.get("burst", 1)?;
    let count: u64 = options.get("count", MAX_NUMBER * source.sockets.len() as u64)?;
    let length = options.seconds(5.0)?;
    let begin = monotonic_ns();
    let end = begin + length.as_nanos() as u64;
    if rate == 0 {
        saturate(&mut source, count, end);
    } else {
        sharpen_timers();
        pace(&mut source, rate, burst.max(1), count, begin, end);
    }
    let took = (monotonic_ns() - begin) as f64 / 1e9;
    Ok(format!(
        "{{\"sent\":{},\"refused\":{},\"seconds\":{took:.6},\"rate\":{:.1}}}",
        source.sent,
        source.refused,
        source.sent as f64 / took
    ))
}

fn saturate(source: &mut Source, count: u64, end: u64) {
    while source.sent + source.refused < count && monotonic_ns() < end {
        source.emit(64.min(count - source.sent - source.refused));
    }
}

fn pace(source: &mut Source, rate: u64, burst: u64, count: u64, begin: u64, end: u64) {
    let mut done = 0u64;
    while done < count {
        // From the beginning, not from the last one: a late turn is made good by the next.
        let due = begin + (u128::from(done) * 1_000_000_000 / u128::from(rate)) as u64;
        if due >= end {
            return;
        }
        sleep_until(due);
        let group = burst.min(count - done);
        source.emit(group);
        done += group;
    }
}

// -- receiving --------------------------------------------------------------------------------------

/// Which numbers of a flow have come.
#[derive(Default)]
struct Flow {
    seen: Vec<u64>,
    highest: u64,
    received: u64,
}

/// Counts of delays in buckets whose width is under 1 % of their value.
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// Buckets per power of two.
const STEPS: u32 = 7;

impl Histogram {
    fn new() -> Self {
        Self { buckets: vec![0; (64 - STEPS as usize + 1) << STEPS], count: 0, max: 0 }
    }

    fn add(&mut self, value: u64) {
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS + 1);
        let index = ((shift as usize) << STEPS) + (value >> shift) as usize;
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// The lower edge of the bucket that holds the given share of all values.
    fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut sum = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            sum += bucket;
            if sum >= wanted.max(1) {
                let shift = (index >> STEPS).saturating_sub(1);
                return ((index - (shift << STEPS)) as u64) << shift;
            }
        }
        self.max
    }
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
        let us = |share: f64| self.delays.quantile(share) as f64 / 1e3;
        let delays = format!(
            "{{\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"max\":{:.1}}}",
            us(0.5),
            us(0.9),
            us(0.99),
            us(0.999),
            self.delays.max as f64 / 1e3
        );
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

fn read_head(payload: &[u8]) -> Option<(u32, u64, u64)> {
    let head = payload.get(..HEAD).filter(|h| h[..4] == MAGIC)?;
    let flow = u32::from_be_bytes(head[4..8].try_into().ok()?);
    let number = u64::from_be_bytes(head[8..16].try_into().ok()?);
    let sent_ns = u64::from_be_bytes(head[16..24].try_into().ok()?);
    Some((flow, number, sent_ns))
}

fn receive(options: &Options) -> Result<String, String> {
    let at = options.address("at")?;
    let length = options.seconds(10.0)?;
    let quiet = Duration::from_millis(options.get("quiet-ms", 500)?);
    let count: u64 = options.get("count", u64::MAX)?;
    let poll: u64 = options.get("poll-ms", 0)?;
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
        drain(fd, &mut batch, &mut sink);
        if sink.first.is_some() && sink.last.elapsed() > quiet {
            break;
        }
    }
    Ok(sink.report(poll == 0))
}

fn drain(fd: i32, batch: &mut RecvBatch, sink: &mut Sink) {
    while let Ok((count, more)) = batch.receive(fd) {
        let (now, now_ns) = (Instant::now(), monotonic_ns());
        for index in 0..count {
            for payload in batch.get(index).into_iter().flat_map(|(datagrams, _)| datagrams) {
                sink.take(payload, now_ns);
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

    #[test]
    fn quantiles_are_within_a_hundredth() {
        let mut delays = Histogram::new();
        (1..=100_000u64).for_each(|v| delays.add(v * 10));
        for (share, exact) in [(0.5, 500_000.0), (0.9, 900_000.0), (0.99, 990_000.0)] {
            let error = (delays.quantile(share) as f64 - exact).abs() / exact;
            assert!(error < 0.01, "{share}: {error}");
        }
        assert_eq!(delays.max, 1_000_000);
    }

    #[test]
    fn options_are_checked() {
        let parse = |words: &[&str]| Options::parse(words.iter().map(ToString::to_string));
        assert!(parse(&["--rat", "5"]).is_err());
        assert!(parse(&["--rate"]).is_err());
        assert!(parse(&["--rate", "x"]).unwrap().get("rate", 0u64).is_err());
        assert_eq!(parse(&["--rate", "5"]).unwrap().get("rate", 0u64), Ok(5));
    }
}
