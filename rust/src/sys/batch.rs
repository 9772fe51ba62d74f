//! Many datagrams per system call (recvmmsg, sendmmsg), and many per way through the kernel's network stack
//! where they allow it: runs of one peer's datagrams of one length travel as one (UDP_SEGMENT, UDP_GRO;
//! Linux 5.0). A trunk with many calls in one tunnel saves most of the cost of sending; single calls neither
//! gain nor pay.

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::RawFd;

use libc::{c_int, iovec, mmsghdr, sockaddr_storage, socklen_t};

use super::{check, empty_address, from_storage, send, send_to, set_option, to_storage};
use crate::limits::{BATCH, DATAGRAM_SLOT};

/// Bytes of a receive slot. With UDP_GRO the kernel hands over up to 64 KiB at once; the odd 65 cache lines
/// on top keep the beginnings of the slots, which is all that is touched without it, in different cache sets.
const RECV_SLOT: usize = 64 * 1024 + 65 * 64;

/// Datagrams, merged ones counting once, per recvmmsg call.
const RECV_BATCH: usize = 32;

/// Room for one control message with an int or a u16 in it.
type Control = [u64; 3];

/// Ask for consecutive datagrams of one sender to be handed over in one piece (UDP_GRO). Kernels without it
/// refuse, and nothing is merged.
pub fn merge_datagrams(fd: RawFd) {
    let _ = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
}

/// Space for one recvmmsg call.
pub struct RecvBatch {
    slots: Vec<[u8; RECV_SLOT]>,
    peers: Box<[sockaddr_storage; RECV_BATCH]>,
    controls: [Control; RECV_BATCH],
    lengths: [usize; RECV_BATCH],
    /// Bytes of each datagram of a slot but the last, which may be shorter.
    segments: [usize; RECV_BATCH],
    count: usize,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self {
            slots: vec![[0; RECV_SLOT]; RECV_BATCH],
            peers: Box::new([empty_address(); RECV_BATCH]),
            controls: [[0; 3]; RECV_BATCH],
            lengths: [0; RECV_BATCH],
            segments: [0; RECV_BATCH],
            count: 0,
        }
    }
}

impl RecvBatch {
    /// Receive up to a batch without waiting. Returns how many slots are filled, and whether there may be
    /// more.
    pub fn receive(&mut self, fd: RawFd) -> io::Result<(usize, bool)> {
        self.count = 0;
        let mut iovecs: [MaybeUninit<iovec>; RECV_BATCH] = [const { MaybeUninit::uninit() }; RECV_BATCH];
        // SAFETY: mmsghdr is integers and pointers, for which all zeros (null) is a value.
        let mut headers: [mmsghdr; RECV_BATCH] = unsafe { zeroed() };
        let slots = self.slots.iter_mut().zip(self.peers.iter_mut().zip(self.controls.iter_mut()));
        for ((slot, (peer, control)), (vector, header)) in
            slots.zip(iovecs.iter_mut().zip(headers.iter_mut()))
        {
            let vector = vector.write(iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: RECV_SLOT });
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(peer).cast();
            header.msg_hdr.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of::<Control>();
        }
        // SAFETY: every header points to a slot, an iovec, an address and a control buffer that outlive the
        // call.
        let count = check(unsafe {
            let none = std::ptr::null_mut();
            libc::recvmmsg(fd, headers.as_mut_ptr(), RECV_BATCH as u32, libc::MSG_DONTWAIT, none)
        })?;
        self.count = count as usize;
        for (index, header) in headers.iter().enumerate().take(self.count) {
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let length = if truncated { usize::MAX } else { header.msg_len as usize };
            self.lengths[index] = length;
            self.segments[index] = segment_size(&header.msg_hdr).unwrap_or(length);
        }
        Ok((self.count, self.count == RECV_BATCH))
    }

    /// What is in slot `index`: its datagrams, all from one sender. None if they are longer than any we send
    /// (or their sender makes no sense).
    pub fn get(&mut self, index: usize) -> Option<(Merged<'_>, SocketAddr)> {
        if index >= self.count {
            return None;
        }
        let peer = from_storage(self.peers.get(index)?)?;
        Some((self.payload(index)?, peer))
    }

    /// Who sent what is in slot `index`, if it holds anything.
    pub fn sender(&self, index: usize) -> Option<SocketAddr> {
        self.peers.get(index).filter(|_| index < self.count).and_then(from_storage)
    }

    /// As `get`, for connected sockets, where the kernel names no sender.
    pub fn payload(&mut self, index: usize) -> Option<Merged<'_>> {
        let (length, segment) = (*self.lengths.get(index)?, *self.segments.get(index)?);
        let bytes = self.slots.get_mut(index)?.get_mut(..length).filter(|_| segment <= DATAGRAM_SLOT)?;
        Some(if length == 0 {
            Merged::empty()
        } else {
            Merged { bytes, segment: segment.max(1), empty: false }
        })
    }
}

/// The datagrams of one slot, in the order they came.
pub struct Merged<'a> {
    bytes: &'a mut [u8],
    segment: usize,
    /// A single datagram without a byte in it, which is a datagram all the same.
    empty: bool,
}

impl Merged<'_> {
    fn empty() -> Self {
        Self { bytes: &mut [], segment: 1, empty: true }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = &'a mut [u8];

    fn next(&mut self) -> Option<&'a mut [u8]> {
        if std::mem::take(&mut self.empty) {
            return Some(&mut []);
        }
        if self.bytes.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let (first, rest) = bytes.split_at_mut(self.segment.min(bytes.len()));
        self.bytes = rest;
        Some(first)
    }
}

/// The size of merged datagrams, if the kernel says that it has merged some.
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled the control buffer and its length; CMSG_FIRSTHDR looks at nothing else.
    let control = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: null, or a whole header inside the control buffer.
    let head = unsafe { control.as_ref() }?;
    if (head.cmsg_level, head.cmsg_type) != (libc::SOL_UDP, libc::UDP_GRO) {
        return None;
    }
    // SAFETY: the payload of this type is an int (udp(7)); the control buffer has room for one.
    let size = unsafe { libc::CMSG_DATA(control).cast::<c_int>().read_unaligned() };
    usize::try_from(size).ok().filter(|s| *s > 0)
}

/// Datagrams waiting for one sendmmsg call (or a few, if they leave by several sockets).
pub struct SendBatch {
    slots: Box<[[u8; DATAGRAM_SLOT]; BATCH]>,
    peers: Box<[sockaddr_storage; BATCH]>,
    peer_lengths: [socklen_t; BATCH],
    lengths: [usize; BATCH],
    fds: [RawFd; BATCH],
    /// The next datagram to the same peer by the same socket; zero: none.
    after: [u8; BATCH],
    /// One more than the last datagram to each peer, by a few bits of its address.
    last: [u8; PLACES],
    count: usize,
    /// The kernel may cut one long datagram into many (UDP_SEGMENT); false once it has refused to.
    may_merge: bool,
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
            after: [0; BATCH],
            last: [0; PLACES],
            count: 0,
            may_merge: true,
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
        self.link(index, place_of(fd, to));
        self.count += 1;
        true
    }

    /// Chain a datagram to the one before it that goes the same way: there may be others between them.
    fn link(&mut self, index: usize, place: usize) {
        self.after[index] = 0;
        let before = std::mem::replace(&mut self.last[place], index as u8 + 1);
        if let Some(before) = usize::from(before).checked_sub(1)
            && self.fds[before] == self.fds[index]
            && self.peer_lengths[before] == self.peer_lengths[index]
            && same_peer(&self.peers[before], &self.peers[index], self.peer_lengths[index])
        {
            self.after[before] = index as u8;
        }
    }

    /// Send everything, socket by socket and peer by peer; the datagrams of one peer keep their order. One that the
    /// kernel refuses never costs the rest of the batch.
    pub fn flush(&mut self) -> Flushed {
        let mut outcome = Flushed::default();
        let mut taken = [false; BATCH];
        for start in 0..self.count {
            if taken[start] {
                continue;
            }
            let (fd, mut order, mut length) = (self.fds[start], [0u8; BATCH], 0);
            for first in start..self.count {
                if taken[first] || self.fds[first] != fd {
                    continue;
                }
                let mut index = first;
                loop {
                    (order[length], taken[index]) = (index as u8, true);
                    length += 1;
                    index = usize::from(self.after[index]);
                    if index == 0 {
                        break;
                    }
                }
            }
            self.send_run(fd, &order[..length], &mut outcome);
        }
        self.count = 0;
        self.last = [0; PLACES];
        outcome
    }

    /// Send datagrams that leave by one socket, in this order.
    fn send_run(&mut self, fd: RawFd, order: &[u8], outcome: &mut Flushed) {
        let mut iovecs: [MaybeUninit<iovec>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        for (index, vector) in order.iter().map(|index| usize::from(*index)).zip(iovecs.iter_mut()) {
            let base = self.slots[index].as_mut_ptr().cast();
            vector.write(iovec { iov_base: base, iov_len: self.lengths[index] });
        }
        // SAFETY: as in `RecvBatch::receive`.
        let mut headers: [mmsghdr; BATCH] = unsafe { zeroed() };
        let mut controls: [Control; BATCH] = [[0; 3]; BATCH];
        let mut firsts = [0usize; BATCH + 1];
        let (mut next, mut groups) = (0, 0);
        while next < order.len() {
            let (length, first) = (self.group(&order[next..]), usize::from(order[next]));
            let header = &mut headers[groups].msg_hdr;
            header.msg_iov = iovecs[next].as_mut_ptr();
            header.msg_iovlen = length;
            if self.peer_lengths[first] > 0 {
                header.msg_name = std::ptr::from_mut(&mut self.peers[first]).cast();
                header.msg_namelen = self.peer_lengths[first];
            }
            if length > 1 {
                ask_to_cut(header, &mut controls[groups], self.lengths[first] as u16);
            }
            firsts[groups] = next;
            (next, groups) = (next + length, groups + 1);
        }
        firsts[groups] = order.len();
        let mut done = 0;
        while done < groups {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let left = (groups - done) as u32;
            // SAFETY: the headers point to slots, iovecs, addresses and controls that outlive the call.
            let sent = unsafe { libc::sendmmsg(fd, headers[done..].as_mut_ptr(), left, flags) };
            if sent > 0 {
                let after = done + sent as usize;
                outcome.sent += (firsts[after] - firsts[done]) as u64;
                done = after;
                continue;
            }
            // The first group was refused: count it, or send it in pieces, and go on behind it.
            let error = io::Error::last_os_error();
            let group = firsts[done]..firsts[done + 1];
            match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => outcome.would_block += group.len() as u64,
                _ if group.len() > 1 => self.send_singly(&order[group], &error, outcome),
                _ => outcome.failed += 1,
            }
            done += 1;
        }
    }

    /// How many datagrams at the beginning may leave as one: same peer, same length, the last one maybe shorter.
    fn group(&self, order: &[u8]) -> usize {
        let Some((first, rest)) = order.split_first() else { return 0 };
        let first = usize::from(*first);
        let (length, mut total) = (self.lengths[first], self.lengths[first]);
        let (mut count, mut before) = (1, first);
        for next in rest.iter().map(|index| usize::from(*index)) {
            if !self.may_merge
                || total + self.lengths[next] > MERGED
                || !(1..=length).contains(&self.lengths[next])
                || self.lengths[before] != length
                || self.peer_lengths[first] != self.peer_lengths[next]
                || !same_peer(&self.peers[first], &self.peers[next], self.peer_lengths[first])
            {
                break;
            }
            total += self.lengths[next];
            (count, before) = (count + 1, next);
        }
        count
    }

    /// The kernel did not take a merged group: give it the datagrams one by one.
    fn send_singly(&mut self, group: &[u8], why: &io::Error, outcome: &mut Flushed) {
        // What a device without checksum offload, or a kernel without UDP_SEGMENT, answers. Anything else is
        // about this peer (its path's MTU, a pending ICMP error) and says nothing about the next.
        self.may_merge &=
            !matches!(why.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT));
        for index in group.iter().map(|index| usize::from(*index)) {
            let to = (self.peer_lengths[index] > 0).then(|| from_storage(&self.peers[index])).flatten();
            let data = &self.slots[index][..self.lengths[index]];
            let sent = match to {
                Some(to) => send_to(self.fds[index], data, &to),
                None => send(self.fds[index], data),
            };
            match sent {
                Ok(_) => outcome.sent += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => outcome.would_block += 1,
                Err(_) => outcome.failed += 1,
            }
        }
    }
}

/// Places in the table of peers: twice as many as there can be peers in a batch, so that few share one.
const PLACES: usize = 2 * BATCH;

/// Where in the table of peers the last datagram to this one is remembered.
fn place_of(fd: RawFd, to: Option<&SocketAddr>) -> usize {
    let address = match to {
        None => 0,
        Some(SocketAddr::V4(to)) => u32::from(*to.ip()) ^ u32::from(to.port()).rotate_left(16),
        Some(SocketAddr::V6(to)) => {
            let bits = u128::from(*to.ip());
            (bits as u32) ^ ((bits >> 32) as u32) ^ u32::from(to.port()).rotate_left(16)
        }
    };
    // The multiplier of Knuth's: the top bits depend on all.
    ((address ^ (fd as u32).rotate_left(8)).wrapping_mul(2_654_435_769) >> 16) as usize % PLACES
}

/// Most bytes of a merged group: the payload of the longest UDP datagram over IPv6 and IPv4.
const MERGED: usize = 65_507;

fn same_peer(one: &sockaddr_storage, other: &sockaddr_storage, length: socklen_t) -> bool {
    let length = (length as usize).min(size_of::<sockaddr_storage>());
    // SAFETY: both are plain bytes, all of them written (zeroed first), and `length` does not exceed them.
    unsafe {
        let one = std::slice::from_raw_parts(std::ptr::from_ref(one).cast::<u8>(), length);
        one == std::slice::from_raw_parts(std::ptr::from_ref(other).cast::<u8>(), length)
    }
}

/// Tell the kernel to cut a message into datagrams of `size` bytes.
fn ask_to_cut(header: &mut libc::msghdr, control: &mut Control, size: u16) {
    header.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE and CMSG_LEN compute; the buffer has room for a header and a u16 behind it.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
        let head = libc::CMSG_FIRSTHDR(header);
        (*head).cmsg_level = libc::SOL_UDP;
        (*head).cmsg_type = libc::UDP_SEGMENT;
        (*head).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
        libc::CMSG_DATA(head).cast::<u16>().write_unaligned(size);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;

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
        assert_eq!(batch.receive(c.as_raw_fd()).unwrap(), (11, false));
        for i in 0..10u8 {
            let (mut datagrams, peer) = batch.get(usize::from(i)).unwrap();
            let data = datagrams.next().unwrap();
            assert_eq!((data.len(), data[0], peer), (usize::from(i) + 1, i, a.local_addr().unwrap()));
            assert!(datagrams.next().is_none());
        }
        assert!(batch.get(11).is_none());
    }

    /// What arrives at `to` of datagrams with these lengths, the number of each in its first byte.
    fn exchange(lengths: &[usize], to: &UdpSocket) -> Vec<(usize, u8)> {
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut out = SendBatch::default();
        for (number, length) in lengths.iter().enumerate() {
            assert!(out.push(from.as_raw_fd(), Some(&to.local_addr().unwrap()), |slot| {
                if *length > 0 {
                    slot[0] = number as u8;
                }
                Some(*length)
            }));
        }
        assert_eq!(out.flush().sent, lengths.len() as u64);
        let (mut batch, mut seen) = (RecvBatch::default(), Vec::new());
        while seen.len() < lengths.len() {
            let (count, _) = batch.receive(to.as_raw_fd()).unwrap();
            for index in 0..count {
                let (datagrams, _) = batch.get(index).unwrap();
                seen.extend(datagrams.map(|d| (d.len(), d.first().copied().unwrap_or(0))));
            }
        }
        seen
    }

    #[test]
    fn merging_keeps_lengths_and_order() {
        let lengths = [200, 200, 200, 150, 150, 0, 200, 201, 200, 1, 1, 1, 1400, 1400, 700];
        let expected: Vec<_> =
            lengths.iter().enumerate().map(|(n, l)| (*l, if *l > 0 { n as u8 } else { 0 })).collect();
        let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(exchange(&lengths, &plain), expected);
        let merging = UdpSocket::bind("127.0.0.1:0").unwrap();
        merge_datagrams(merging.as_raw_fd());
        assert_eq!(exchange(&lengths, &merging), expected);
    }

    #[test]
    fn what_goes_to_one_peer_leaves_as_one_whoever_is_between() {
        let trunk = UdpSocket::bind("127.0.0.1:0").unwrap();
        merge_datagrams(trunk.as_raw_fd());
        let to = trunk.local_addr().unwrap();
        let phones: Vec<_> = (0..15).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut batch = SendBatch::default();
        for (number, phone) in phones.iter().enumerate() {
            for (socket, to) in [(&one, to), (&other, to), (&one, phone.local_addr().unwrap())] {
                assert!(batch.push(socket.as_raw_fd(), Some(&to), |slot| {
                    slot[..200].fill(number as u8);
                    Some(200)
                }));
            }
        }
        assert_eq!(batch.flush().sent, 45);
        let mut received = RecvBatch::default();
        assert_eq!(received.receive(trunk.as_raw_fd()).unwrap(), (2, false), "one piece by each socket");
        for (slot, from) in [&one, &other].into_iter().enumerate() {
            let (datagrams, peer) = received.get(slot).unwrap();
            assert_eq!(peer, from.local_addr().unwrap());
            let numbers: Vec<u8> = datagrams.map(|d| d[0]).collect();
            assert_eq!(numbers, (0..15).collect::<Vec<u8>>());
        }
        for (number, phone) in phones.iter().enumerate() {
            assert_eq!(received.receive(phone.as_raw_fd()).unwrap().0, 1);
            assert_eq!(received.payload(0).unwrap().next().unwrap()[0], number as u8);
        }
    }

    #[test]
    fn a_merged_group_is_bounded_by_the_longest_datagram() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        merge_datagrams(to.as_raw_fd());
        let seen = exchange(&[1400; BATCH], &to);
        assert_eq!(seen.len(), BATCH);
        assert!(seen.iter().enumerate().all(|(n, (length, number))| (*length, *number) == (1400, n as u8)));
    }

    #[test]
    fn what_is_refused_merged_is_sent_singly() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        let mut out = SendBatch::default();
        out.push(a.as_raw_fd(), None, |_| Some(100));
        out.push(a.as_raw_fd(), None, |_| Some(100));
        let mut outcome = Flushed::default();
        out.send_singly(&[0, 1], &io::Error::from_raw_os_error(libc::EINVAL), &mut outcome);
        assert!(outcome.sent == 2 && out.may_merge);
        out.send_singly(&[0, 1], &io::Error::from_raw_os_error(libc::EIO), &mut outcome);
        assert!(outcome.sent == 4 && !out.may_merge);
        assert_eq!(out.flush().sent, 2);
    }

    #[test]
    fn an_oversized_datagram_is_seen_as_such() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.send_to(&[0; DATAGRAM_SLOT + 1], b.local_addr().unwrap()).unwrap();
        let mut batch = RecvBatch::default();
        assert_eq!(batch.receive(b.as_raw_fd()).unwrap(), (1, false));
        assert!(batch.get(0).is_none() && batch.payload(0).is_none() && batch.get(1).is_none());
    }
}
