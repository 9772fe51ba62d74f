//! The Linux system calls the user plane lives on. Everything `unsafe` outside `crypto` is in this file, each
//! piece with its reason: these calls have no safe wrapper that neither allocates nor copies.

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, iovec, mmsghdr, sockaddr_storage, socklen_t};

use crate::limits::{BATCH, DATAGRAM_SLOT};

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

/// Space for one recvmmsg call.
pub struct RecvBatch {
    slots: Box<[[u8; DATAGRAM_SLOT]; BATCH]>,
    peers: Box<[sockaddr_storage; BATCH]>,
    lengths: [usize; BATCH],
    count: usize,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self {
            slots: vec![[0; DATAGRAM_SLOT]; BATCH]
                .try_into()
                .unwrap_or_else(|_| Box::new([[0; DATAGRAM_SLOT]; BATCH])),
            peers: Box::new([empty_address(); BATCH]),
            lengths: [0; BATCH],
            count: 0,
        }
    }
}

impl RecvBatch {
    /// Receive up to BATCH datagrams without waiting. Returns how many.
    pub fn receive(&mut self, fd: RawFd) -> io::Result<usize> {
        self.count = 0;
        let mut iovecs: [MaybeUninit<iovec>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        // SAFETY: mmsghdr is integers and pointers, for which all zeros (null) is a value.
        let mut headers: [mmsghdr; BATCH] = unsafe { zeroed() };
        let slots = self.slots.iter_mut().zip(self.peers.iter_mut());
        for ((slot, peer), (vector, header)) in slots.zip(iovecs.iter_mut().zip(headers.iter_mut())) {
            let vector = vector.write(iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: DATAGRAM_SLOT });
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(peer).cast();
            header.msg_hdr.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
        }
        // SAFETY: every header points to a slot, an iovec and an address that outlive the call.
        let count = check(unsafe {
            libc::recvmmsg(fd, headers.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, std::ptr::null_mut())
        })?;
        self.count = count as usize;
        for (length, header) in self.lengths.iter_mut().zip(headers.iter()) {
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            *length = if truncated { usize::MAX } else { header.msg_len as usize };
        }
        Ok(self.count)
    }

    /// Datagram `index` and its sender; None if it did not fit its slot (or its sender makes no sense).
    pub fn get(&mut self, index: usize) -> Option<(&mut [u8], SocketAddr)> {
        if index >= self.count {
            return None;
        }
        let peer = from_storage(self.peers.get(index)?)?;
        let length = *self.lengths.get(index)?;
        Some((self.slots.get_mut(index)?.get_mut(..length)?, peer))
    }

    /// As `get`, for connected sockets, where the kernel names no sender.
    pub fn payload(&mut self, index: usize) -> Option<&mut [u8]> {
        let length = *self.lengths.get(index)?;
        self.slots.get_mut(index)?.get_mut(..length)
    }
}

/// Datagrams waiting for one sendmmsg call (or a few, if they leave by several sockets).
pub struct SendBatch {
    slots: Box<[[u8; DATAGRAM_SLOT]; BATCH]>,
    peers: Box<[sockaddr_storage; BATCH]>,
    peer_lengths: [socklen_t; BATCH],
    lengths: [usize; BATCH],
    fds: [RawFd; BATCH],
    count: usize,
}

/// Outcome of a flush.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flushed {
    pub sent: u64,
    pub would_block: u64,
    pub failed: u64,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self {
            slots: vec![[0; DATAGRAM_SLOT]; BATCH]
                .try_into()
                .unwrap_or_else(|_| Box::new([[0; DATAGRAM_SLOT]; BATCH])),
            peers: Box::new([empty_address(); BATCH]),
            peer_lengths: [0; BATCH],
            lengths: [0; BATCH],
            fds: [-1; BATCH],
            count: 0,
        }
    }
}

impl SendBatch {
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Build the next datagram in place: `build` gets the slot and returns the length, or None to give up.
    /// `to` is None on a connected socket. The batch must not be full.
    pub fn push(
        &mut self,
        fd: RawFd,
        to: Option<&SocketAddr>,
        build: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        let index = self.count;
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        let Some(length) = build(slot).filter(|l| *l <= DATAGRAM_SLOT) else {
            return false;
        };
        let (storage, size) = to.map_or_else(|| (empty_address(), 0), to_storage);
        self.peers[index] = storage;
        self.peer_lengths[index] = size;
        self.lengths[index] = length;
        self.fds[index] = fd;
        self.count += 1;
        true
    }

    /// Send everything. A datagram the kernel refuses never costs the rest of the batch.
    pub fn flush(&mut self) -> Flushed {
        let mut outcome = Flushed::default();
        if self.count == 0 {
            return outcome;
        }
        let mut iovecs: [MaybeUninit<iovec>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        // SAFETY: as in `RecvBatch::receive`.
        let mut headers: [mmsghdr; BATCH] = unsafe { zeroed() };
        for index in 0..self.count {
            let vector = iovecs[index].write(iovec {
                iov_base: self.slots[index].as_mut_ptr().cast(),
                iov_len: self.lengths[index],
            });
            let header = &mut headers[index].msg_hdr;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            if self.peer_lengths[index] > 0 {
                header.msg_name = std::ptr::from_mut(&mut self.peers[index]).cast();
                header.msg_namelen = self.peer_lengths[index];
            }
        }
        let mut start = 0;
        while start < self.count {
            let fd = self.fds[start];
            let run = self.fds[start..self.count].iter().take_while(|f| **f == fd).count();
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the headers of the run point to slots, iovecs and addresses that outlive the call.
            let sent = unsafe { libc::sendmmsg(fd, headers[start..].as_mut_ptr(), run as u32, flags) };
            if sent > 0 {
                outcome.sent += sent as u64;
                start += sent as usize;
                continue;
            }
            // The first of the run was refused: count it, go on behind it.
            match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => outcome.would_block += 1,
                _ => outcome.failed += 1,
            }
            start += 1;
        }
        self.count = 0;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn batches_cross_a_socket_pair_with_their_senders() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        let c = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut out = SendBatch::default();
        for i in 0..10u8 {
            assert!(out.push(a.as_raw_fd(), Some(&c.local_addr().unwrap()), |slot| {
                slot[0] = i;
                Some(usize::from(i) + 1)
            }));
        }
        // A refused datagram (wrong family for the socket) in the middle of others.
        assert!(out.push(a.as_raw_fd(), Some(&b.local_addr().unwrap()), |_| Some(1)));
        assert!(out.push(a.as_raw_fd(), Some(&c.local_addr().unwrap()), |_| Some(1)));
        let outcome = out.flush();
        assert_eq!((outcome.sent, outcome.failed), (11, 1));
        let mut batch = RecvBatch::default();
        assert_eq!(batch.receive(c.as_raw_fd()).unwrap(), 11);
        for i in 0..10u8 {
            let (data, peer) = batch.get(usize::from(i)).unwrap();
            assert_eq!((data.len(), data[0], peer), (usize::from(i) + 1, i, a.local_addr().unwrap()));
        }
        assert!(batch.get(11).is_none());
    }

    #[test]
    fn an_oversized_datagram_is_seen_as_such() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.send_to(&[0; DATAGRAM_SLOT + 1], b.local_addr().unwrap()).unwrap();
        let mut batch = RecvBatch::default();
        assert_eq!(batch.receive(b.as_raw_fd()).unwrap(), 1);
        assert!(batch.get(0).is_none());
    }

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
