//! What the kernel has dropped before we saw it.

use std::mem::size_of_val;
use std::os::fd::RawFd;

use libc::socklen_t;

/// Datagrams that found no room in a socket's buffer since this was last asked.
#[derive(Debug, Default)]
pub struct SocketDrops {
    seen: u32,
}

impl SocketDrops {
    /// Count from now on.
    pub fn new(fd: RawFd) -> Self {
        Self { seen: dropped(fd).unwrap_or(0) }
    }

    /// How many there were since the last call.
    pub fn grown(&mut self, fd: RawFd) -> u64 {
        let now = dropped(fd).unwrap_or(self.seen);
        let grown = now.wrapping_sub(self.seen);
        self.seen = now;
        u64::from(grown)
    }
}

/// SK_MEMINFO_DROPS of SO_MEMINFO (linux/sock_diag.h, Linux 4.12): asked now and then, so that no packet pays for it.
fn dropped(fd: RawFd) -> Option<u32> {
    const DROPS: usize = 8;
    let mut info = [0u32; DROPS + 1];
    let mut length = size_of_val(&info) as socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a live array.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    (result == 0 && length as usize == size_of_val(&info)).then(|| info[DROPS])
}

/// Packets that a device of this thread's network namespace could not queue for us: its `tx dropped`.
pub fn device_drops(name: &str) -> Option<u64> {
    tx_dropped(&std::fs::read_to_string("/proc/thread-self/net/dev").ok()?, name)
}

/// The field of /proc/net/dev (proc(5)): eight of reception, then bytes, packets, errors, drops.
fn tx_dropped(table: &str, name: &str) -> Option<u64> {
    let row = table.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    row.split_ascii_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::set_option;

    #[test]
    fn datagrams_without_room_are_counted_once() {
        let (from, to) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let fd = to.as_raw_fd();
        set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 4_096).unwrap();
        let mut drops = SocketDrops::new(fd);
        assert_eq!(drops.grown(fd), 0);
        for _ in 0..100 {
            from.send_to(&[0; 172], to.local_addr().unwrap()).unwrap();
        }
        let grown = drops.grown(fd);
        to.set_nonblocking(true).unwrap();
        let came = std::iter::from_fn(|| to.recv(&mut [0; 200]).ok()).count() as u64;
        assert!(came > 0 && grown > 0);
        assert_eq!((grown + came, drops.grown(fd)), (100, 0));
    }

    #[test]
    fn a_device_is_found_by_its_whole_name() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes ...\n  tsm01:  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                     \x20 tsm0: 101 2 3 4 5 6 7 8 9 10 11 77 13 14 15 16\n";
        assert_eq!(tx_dropped(table, "tsm0"), Some(77));
        assert_eq!(tx_dropped(table, "tsm01"), Some(12));
        assert_eq!(tx_dropped(table, "tsm"), None);
        assert_eq!(device_drops("lo"), Some(0));
    }
}
