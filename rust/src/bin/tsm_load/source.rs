//! `send`: a paced or saturating source of UDP packets.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use _core::sys::{SendBatch, set_option};

use crate::{
    BUFFER, HEAD, MAX_FLOWS, MAX_NUMBER, MAX_SIZE, Options, monotonic_ns, sharpen_timers, sleep_until,
    write_head,
};

struct Source {
    sockets: Vec<UdpSocket>,
    to: SocketAddr,
    size: usize,
    prefix: Vec<u8>,
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
        let prefix = options.prefix()?;
        if prefix.len() + size > MAX_SIZE {
            return Err(format!("--prefix and --size together are at most {MAX_SIZE} bytes"));
        }
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let from: SocketAddr = options.get("from", any.parse().map_err(|_| "no address")?)?;
        let sockets = (0..flows).map(|flow| bind(from, flow)).collect::<Result<Vec<_>, _>>()?;
        let numbers = vec![0; flows];
        let batch = SendBatch::default();
        Ok(Self { sockets, to, size, prefix, numbers, next_flow: 0, batch, sent: 0, refused: 0 })
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
        let (flow, size, prefix) = (self.next_flow, self.size, &self.prefix);
        let number = self.numbers[flow];
        self.numbers[flow] += 1;
        self.batch.push(self.sockets[flow].as_raw_fd(), Some(&self.to), |slot| {
            let (front, payload) = slot.split_at_mut_checked(prefix.len())?;
            front.copy_from_slice(prefix);
            write_head(payload.get_mut(..size)?, flow as u32, number);
            Some(prefix.len() + size)
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

pub fn send(options: &Options) -> Result<String, String> {
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
