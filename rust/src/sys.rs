//! The Linux system calls the user plane lives on. Everything `unsafe` outside `crypto` is here, each
//! piece with its reason: these calls have no safe wrapper that neither allocates nor copies.

mod batch;
mod drops;
mod tun;
mod warm;

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, sockaddr_storage, socklen_t};

use crate::limits::{RESERVED_DESCRIPTORS, RESERVED_PART};

pub use batch::{Flushed, Merged, RecvBatch, SendBatch, merge_datagrams};
pub use drops::{SocketDrops, device_drops};
pub use tun::{tun_has_header, tun_name, tun_takes_runs, write_runs};
pub use warm::prefetch;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Take over a descriptor that the caller (Python) gives up.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only reads; it tells whether the number is an open descriptor at all.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, and the boundary's contract is that it is ours from here on.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Make reads and writes return instead of waiting.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with integer arguments touches no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Set an integer socket option.
pub fn set_option(fd: RawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer is to a live c_int and the length says so.
    check(unsafe {
        libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<c_int>() as socklen_t)
    })
    .map(drop)
}

/// Slice asked for: a thread that forwards a batch is done well before.
const SLICE_NS: u64 = 100_000;

/// Tell the scheduler that this thread runs briefly and wants to run soon (Linux 6.12: the `sched_runtime` of
/// an ordinary thread is its slice, and a shorter slice is an earlier deadline). Needs no privilege. It only
/// matters on a core that others use too: the thread then need not wait for the end of their slices. A
/// refusal (an older kernel, a seccomp filter) leaves things as they are.
pub fn ask_for_short_slices() {
    /// `struct sched_attr` of sched_setattr(2), first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    // SAFETY: integer arguments only; PRIO_PROCESS and 0 are the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let wanted = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: SLICE_NS,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the pointer is to a live value of the stated size; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
}

/// A pending error of a socket (the outcome of a non-blocking connect).
pub fn take_error(fd: RawFd) -> Option<io::Error> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: both pointers are to live values of the stated size.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut value).cast(), &raw mut length)
    };
    if result < 0 {
        return Some(io::Error::last_os_error());
    }
    (value != 0).then(|| io::Error::from_raw_os_error(value))
}

/// What the kernel knows of a TCP connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpInfo {
    pub rtt_us: u32,
    pub retransmits: u32,
    pub unsent: u32,
}

/// TCP_INFO and the unsent bytes.
pub fn tcp_info(fd: RawFd) -> TcpInfo {
    // SAFETY: tcp_info is plain integers, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as socklen_t;
    // SAFETY: both pointers are to live values; the kernel writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if result < 0 {
        return TcpInfo::default();
    }
    let mut unsent: c_int = 0;
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    // SAFETY: the ioctl writes one int to the pointer.
    unsafe { libc::ioctl(fd, SIOCOUTQNSD, &raw mut unsent) };
    TcpInfo {
        rtt_us: info.tcpi_rtt,
        retransmits: info.tcpi_total_retrans,
        unsent: u32::try_from(unsent).unwrap_or(0),
    }
}

/// The congestion control of a TCP connection by name; empty where the kernel does not say.
pub fn congestion_control(fd: RawFd) -> String {
    let mut name = [0u8; 16];
    let mut length = name.len() as socklen_t;
    // SAFETY: both pointers are to live values; the kernel writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let used = name.split(|byte| *byte == 0).next().unwrap_or_default();
    if result < 0 { String::new() } else { String::from_utf8_lossy(used).into_owned() }
}

/// Accept one connection, non-blocking and close-on-exec.
pub fn accept(fd: RawFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut storage = empty_address();
    let mut length = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: the storage is as large as any address and the length says so.
    let new = check(unsafe {
        libc::accept4(
            fd,
            (&raw mut storage).cast(),
            &raw mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: accept4 has just made this descriptor for us.
    let owned = unsafe { OwnedFd::from_raw_fd(new) };
    let peer = from_storage(&storage).ok_or(io::ErrorKind::InvalidData)?;
    Ok((owned, peer))
}

/// How many descriptors this process may have open now (the soft limit, which may change at any time).
pub fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is live for the call, and the kernel fills it.
    let asked = check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) });
    if asked.is_ok() { limit.rlim_cur } else { u64::MAX }
}

/// Whether a descriptor is one of the last few, which are not for tunnels. The kernel gives out the lowest free
/// number, so that all below this one are in use.
pub fn is_reserved_descriptor(fd: RawFd, limit: u64) -> bool {
    fd as u64 + RESERVED_DESCRIPTORS.min(limit / RESERVED_PART) >= limit
}

/// Whether a call failed for want of a descriptor, of this process's or of the machine's.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The local address of a socket.
pub fn local_address(fd: RawFd) -> io::Result<SocketAddr> {
    let mut storage = empty_address();
    let mut length = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: as in `accept`.
    check(unsafe { libc::getsockname(fd, (&raw mut storage).cast(), &raw mut length) })?;
    from_storage(&storage).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The peer's address of a connected socket.
pub fn peer_address(fd: RawFd) -> io::Result<SocketAddr> {
    let mut storage = empty_address();
    let mut length = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: as in `accept`.
    check(unsafe { libc::getpeername(fd, (&raw mut storage).cast(), &raw mut length) })?;
    from_storage(&storage).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Read without waiting.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a live slice.
    check_len(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Write without waiting (and without SIGPIPE on sockets: see `send`).
pub fn write(fd: RawFd, buffer: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a live slice.
    check_len(unsafe { libc::write(fd, buffer.as_ptr().cast(), buffer.len()) })
}

/// Send on a connected socket, never raising SIGPIPE.
pub fn send(fd: RawFd, buffer: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a live slice.
    check_len(unsafe {
        libc::send(fd, buffer.as_ptr().cast(), buffer.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    })
}

/// Send one datagram to an address.
pub fn send_to(fd: RawFd, buffer: &[u8], to: &SocketAddr) -> io::Result<usize> {
    let (storage, length) = to_storage(to);
    // SAFETY: the buffer is a live slice, the address a live storage with its true length.
    check_len(unsafe {
        libc::sendto(
            fd,
            buffer.as_ptr().cast(),
            buffer.len(),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            (&raw const storage).cast(),
            length,
        )
    })
}

/// End the sending half.
pub fn shutdown_write(fd: RawFd) {
    // SAFETY: integer arguments only; an error means the connection is gone already.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

fn empty_address() -> sockaddr_storage {
    // SAFETY: sockaddr_storage is plain bytes, for which all zeros is a value.
    unsafe { zeroed() }
}

fn to_storage(address: &SocketAddr) -> (sockaddr_storage, socklen_t) {
    let mut storage = empty_address();
    let length = match address {
        SocketAddr::V4(a) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: a.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is defined to be large and aligned enough for any address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(a) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: a.port().to_be(),
                sin6_flowinfo: a.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                sin6_scope_id: a.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as socklen_t)
}

fn from_storage(storage: &sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which kind of address the storage holds.
            let raw = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(
                SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), raw.sin6_flowinfo, raw.sin6_scope_id)
                    .into(),
            )
        }
        _ => None,
    }
}

/// The address without the IPv4-mapped disguise a dual-stack socket gives it.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Wakes a thread, or tells asyncio that there is something to fetch.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    pub fn new() -> io::Result<Self> {
        // SAFETY: integer arguments only.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: eventfd has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub fn wake(&self) {
        // A full counter is as readable as one: the error can be ignored.
        let _ = write(self.0.as_raw_fd(), &1u64.to_ne_bytes());
    }

    pub fn clear(&self) {
        let mut count = [0u8; 8];
        let _ = read(self.0.as_raw_fd(), &mut count);
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Level-triggered epoll with a 64-bit token per descriptor.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

pub const READABLE: u32 = libc::EPOLLIN as u32;
pub const WRITABLE: u32 = libc::EPOLLOUT as u32;

/// One readiness.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
}

/// Events per epoll_wait; more are simply reported by the next call.
const READY: usize = 256;

/// Space for epoll_wait, owned by the loop so that waiting does not allocate.
pub struct ReadyList {
    raw: Box<[libc::epoll_event; READY]>,
    count: usize,
}

impl Default for ReadyList {
    fn default() -> Self {
        Self { raw: Box::new([libc::epoll_event { events: 0, u64: 0 }; READY]), count: 0 }
    }
}

impl ReadyList {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn get(&self, index: usize) -> Option<Ready> {
        const BROKEN: u32 = (libc::EPOLLHUP | libc::EPOLLERR) as u32;
        let raw = self.raw.get(..self.count)?.get(index)?;
        let events = raw.events;
        Some(Ready {
            token: raw.u64,
            // A broken connection shows its error to whoever reads next.
            readable: events & (READABLE | BROKEN) != 0,
            writable: events & (WRITABLE | BROKEN) != 0,
        })
    }
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: integer arguments only.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: epoll_create1 has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn control(&self, operation: c_int, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the event is live for the call; the kernel copies it.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
    }

    pub fn add(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub fn modify(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    pub fn remove(&self, fd: RawFd) {
        // An error means the descriptor was not registered, which is what is wanted.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Wait at most `timeout_us` (None: until something happens).
    pub fn wait(&self, list: &mut ReadyList, timeout_us: Option<u64>) -> io::Result<()> {
        let timeout = timeout_us.map(|us| libc::timespec {
            tv_sec: (us / 1_000_000) as libc::time_t,
            tv_nsec: ((us % 1_000_000) * 1_000) as libc::c_long,
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        list.count = 0;
        // SAFETY: the list has room for READY events; the timeout is null or live; no signal mask is given.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.as_raw_fd(),
                list.raw.as_mut_ptr(),
                READY as c_int,
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        match count {
            n if n >= 0 => {
                list.count = n as usize;
                Ok(())
            }
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_reports_and_times_out() {
        let epoll = Epoll::new().unwrap();
        let wake = EventFd::new().unwrap();
        epoll.add(wake.as_raw_fd(), READABLE, 42).unwrap();
        let mut list = ReadyList::default();
        epoll.wait(&mut list, Some(0)).unwrap();
        assert!(list.is_empty());
        wake.wake();
        epoll.wait(&mut list, None).unwrap();
        assert_eq!(list.get(0).map(|r| (r.token, r.readable)), Some((42, true)));
        wake.clear();
        epoll.wait(&mut list, Some(0)).unwrap();
        assert!(list.is_empty() && list.get(0).is_none());
    }
}
