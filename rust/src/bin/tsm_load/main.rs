//! tsm-load: packets for benchmarks, and what became of them.
//!
//! ```text
//! tsm-load send    --to ADDR:PORT [--from ADDR:PORT] [--flows N] [--rate PPS] [--burst N] [--size BYTES]
//!                  [--seconds S] [--count N] [--prefix HEX]
//! tsm-load receive --at ADDR:PORT [--seconds S] [--quiet-ms MS] [--count N] [--poll-ms MS] [--skip BYTES]
//! tsm-load crowd   --to ADDR:PORT --ca FILE [--token TEXT] [--clients N] [--path datagram|stream] [--size BYTES]
//!                  [--shape pairs|hub|far] [--calls N] [--far ADDR:PORT] [--tick-us US]
//! tsm-load churn   --to ADDR:PORT --ca FILE [--token TEXT] [--rate PER_SECOND] [--seconds S]
//! ```
//!
//! `send` is a paced or saturating source of UDP packets, `receive` a sink; `crowd` is many clients of a TSM server
//! (see `crowd.rs`), `churn` clients that come and go (`churn.rs`). Each prints JSON on standard output. Every payload carries its flow, its number within the
//! flow and CLOCK_MONOTONIC in nanoseconds, so that one-way delays need both ends on one machine. A rate of 0 sends
//! as fast as the kernel takes; otherwise packets leave at even intervals, in groups of `--burst`. A group is of
//! one flow, the next group of the next flow. Flow i sends from port PORT + i of `--from`. The sink prints `ready`
//! on standard error once it can receive, and ends when the time is up, the count is reached, or nothing came for
//! `--quiet-ms` after the first packet. With `--poll-ms` it looks at its socket at intervals instead of being woken
//! by it: waking it is work of whoever sends, which is the very process that a measurement of CPU time is about.
//! Delays are then those of the looking and are reported as null.
//!
//! `--prefix` goes before every payload and `--skip` passes over as many bytes: a TURN client's ChannelData header
//! (RFC 8656 section 12.4), say, whose channel somebody else has bound.

mod churn;
mod crowd;
mod histogram;
mod messages;
mod sink;
mod source;
mod talk;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

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
        Some("send") => Options::parse(words).and_then(|o| source::send(&o)),
        Some("receive") => Options::parse(words).and_then(|o| sink::receive(&o)),
        Some("crowd") => Options::parse(words).and_then(|o| crowd::run(&o)),
        Some("churn") => Options::parse(words).and_then(|o| churn::run(&o)),
        _ => Err(
            "usage: tsm-load send|receive|crowd|churn --name value ... (see the head of tsm_load/main.rs)"
                .into(),
        ),
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
    const NAMES: [&str; 21] = [
        "to", "from", "at", "flows", "rate", "burst", "size", "seconds", "count", "quiet-ms", "poll-ms",
        "ca", "token", "clients", "path", "prefix", "skip", "shape", "calls", "far", "tick-us",
    ];

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

    /// The bytes of `--prefix`, given in hexadecimal.
    fn prefix(&self) -> Result<Vec<u8>, String> {
        let text = self.0.get("prefix").map_or("", String::as_str);
        let wrong = || format!("--prefix: cannot read {text:?} as hexadecimal");
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return Err(wrong());
        }
        let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        pairs.collect::<Result<_, _>>().map_err(|_| wrong())
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

fn write_head(slot: &mut [u8], flow: u32, number: u64) {
    slot[..4].copy_from_slice(&MAGIC);
    slot[4..8].copy_from_slice(&flow.to_be_bytes());
    slot[8..16].copy_from_slice(&number.to_be_bytes());
    slot[16..24].copy_from_slice(&monotonic_ns().to_be_bytes());
}

fn read_head(payload: &[u8]) -> Option<(u32, u64, u64)> {
    let head = payload.get(..HEAD).filter(|h| h[..4] == MAGIC)?;
    let flow = u32::from_be_bytes(head[4..8].try_into().ok()?);
    let number = u64::from_be_bytes(head[8..16].try_into().ok()?);
    let sent_ns = u64::from_be_bytes(head[16..24].try_into().ok()?);
    Some((flow, number, sent_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let parse = |words: &[&str]| Options::parse(words.iter().map(ToString::to_string));
        assert!(parse(&["--rat", "5"]).is_err());
        assert!(parse(&["--rate"]).is_err());
        assert!(parse(&["--rate", "x"]).unwrap().get("rate", 0u64).is_err());
        assert_eq!(parse(&["--rate", "5"]).unwrap().get("rate", 0u64), Ok(5));
    }
}
