//! What a TUN device can do, asked of the kernel (tun(4), linux/if_tun.h), and writing in pieces.

use std::io;
use std::mem::zeroed;
use std::os::fd::RawFd;

use libc::{c_int, c_uint, iovec};

use super::{check, check_len};
use crate::limits::BATCH;
use crate::runs::{HEADER, Runs};

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// Whether reads and writes of this descriptor have a `virtio_net_hdr` in front (it was opened with
/// IFF_VNET_HDR). It is then made to have the length we know.
pub fn tun_has_header(fd: RawFd) -> bool {
    let Some(request) = interface(fd) else { return false };
    // SAFETY: TUNGETIFF has filled in the flags.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let size = HEADER as c_int;
    flags & libc::IFF_VNET_HDR != 0
        // SAFETY: the ioctl reads one int.
        && check(unsafe { libc::ioctl(fd, TUNSETVNETHDRSZ as _, &raw const size) }).is_ok()
}

/// The name of the device; empty if it is none.
pub fn tun_name(fd: RawFd) -> String {
    let name = interface(fd).map_or([0; libc::IFNAMSIZ], |request| request.ifr_name);
    name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect()
}

/// TUNGETIFF: name and flags. Of anything but a TUN device it is refused.
fn interface(fd: RawFd) -> Option<libc::ifreq> {
    // SAFETY: ifreq is integers and bytes, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // SAFETY: the ioctl fills the ifreq it is given.
    check(unsafe { libc::ioctl(fd, TUNGETIFF as _, &raw mut request) }).ok().map(|_| request)
}

/// Whether the kernel knows runs of UDP packets (Linux 6.2). We ask for none ourselves: what a device gives us is
/// whole packets with whole checksums.
pub fn tun_takes_runs(fd: RawFd) -> bool {
    const CSUM: c_uint = 0x01;
    const USO: c_uint = 0x20 | 0x40;
    let set = |what: c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(fd, TUNSETOFFLOAD as _, libc::c_ulong::from(what)) }).is_ok()
    };
    let known = set(CSUM | USO);
    set(0) && known
}

/// What became of gathered packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub packets: u64,
    pub failed: u64,
    /// Writes that held several.
    pub runs: u64,
    /// The device knows no runs after all.
    pub refused_run: bool,
}

/// Write what is gathered, without waiting, and forget it. A packet that is refused never costs the others.
pub fn write_runs(fd: RawFd, runs: &mut Runs, header: bool) -> Written {
    let mut written = Written::default();
    let skip = if header { 0 } else { HEADER };
    for index in 0..runs.writes() {
        let count = runs.packets(index) as u64;
        match write_pieces(fd, runs.pieces(index), skip) {
            Ok(_) => {
                written.packets += count;
                written.runs += u64::from(count > 1);
            }
            Err(error) if count > 1 && error.raw_os_error() == Some(libc::EINVAL) => {
                written.refused_run = true;
                for packet in runs.singly(index) {
                    match super::write(fd, packet) {
                        Ok(_) => written.packets += 1,
                        Err(_) => written.failed += 1,
                    }
                }
            }
            Err(_) => written.failed += count,
        }
    }
    runs.clear();
    written
}

/// Write several pieces as one, but the first `skip` bytes.
fn write_pieces<'a>(fd: RawFd, mut pieces: impl Iterator<Item = &'a [u8]>, skip: usize) -> io::Result<usize> {
    let first = pieces.next().and_then(|piece| piece.get(skip..)).unwrap_or_default();
    let Some(second) = pieces.next() else { return super::write(fd, first) };
    let piece = |bytes: &[u8]| iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut vectors = [piece(&[]); BATCH];
    let mut count = 0;
    for (vector, bytes) in vectors.iter_mut().zip([first, second].into_iter().chain(pieces)) {
        *vector = piece(bytes);
        count += 1;
    }
    // SAFETY: `count` vectors point to live slices, which are only read.
    check_len(unsafe { libc::writev(fd, vectors.as_ptr(), count) })
}
