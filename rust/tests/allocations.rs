//! Nothing is allocated for a packet that is relayed from one datagram tunnel to another.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use _core::counters::{Counter, CounterSet};
use _core::engine::Running;
use _core::forward::Forwarder;
use _core::packet::{UdpHead, write_udp};
use _core::sys::RecvBatch;
use _core::tables::{Role, Session, Sink};
use _core::tunnel::{DatagramLink, Link, Outlet, Tunnel};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; the memory came from there.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// DSCP EF: media.
const EXPEDITED: u8 = 46 << 2;

/// A server's session with a plain datagram tunnel to `peer`.
fn client(
    running: &Running,
    sockets: &Arc<Vec<OwnedFd>>,
    id: u64,
    address: Ipv4Addr,
    peer: SocketAddr,
) -> (Arc<Session>, Arc<Tunnel>) {
    let outlet = Outlet { sockets: Arc::clone(sockets), addressed: true };
    let link = Link::Datagram(Box::new(DatagramLink::new(None, None, outlet)));
    let tunnel = Arc::new(Tunnel::new(id << 8, Some(1), peer, peer, link, 1));
    let session = Arc::new(Session::new(id, Role::Server, vec![IpAddr::V4(address)], Sink::Route));
    tunnel.set_session(Some(Arc::clone(&session)));
    session.attach(&tunnel);
    running.engine.sessions.insert(id, Arc::clone(&session));
    running.engine.routes.add_session(&session);
    (session, tunnel)
}

#[test]
fn a_relayed_packet_allocates_nothing() {
    let running = Running::start(1).unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    let own = Arc::new(vec![OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap())]);
    let to = far.local_addr().unwrap();
    let clients: Vec<_> =
        (1..=4).map(|n| client(&running, &own, n, Ipv4Addr::new(10, 0, 0, n as u8), to)).collect();
    let counters = Arc::new(CounterSet::default());
    let mut forwarder = Forwarder::new(Arc::clone(&running.engine), Arc::clone(&counters), Some(0));
    let mut packets: Vec<Vec<u8>> = Vec::new();
    for number in 0..4usize {
        for call in 0..50u16 {
            let [source, destination] = [number, number ^ 1].map(|n| clients[n].0.addresses[0]);
            let (source_port, destination_port) = (4000 + call, 4000 + call);
            let head = UdpHead { source, source_port, destination, destination_port, tos: EXPEDITED };
            let mut packet = Vec::new();
            assert!(write_udp(&head, &[7; 172], &mut packet));
            packets.push(packet);
        }
    }
    let mut drain = RecvBatch::default();
    let mut run = |turns: u64, from: u64| {
        for turn in 0..turns {
            forwarder.now_us = from + turn * 1_000;
            for (index, packet) in packets.iter_mut().enumerate() {
                forwarder.from_tunnel(&clients[index / 50].1, packet);
            }
            forwarder.deliver_waiting();
            forwarder.flush_datagrams();
            while drain.receive(far.as_raw_fd()).is_ok() {}
        }
    };
    assert!(ALLOCATIONS.get() > 0, "what is allocated is counted");
    // Rows are made by the first packets of a flow, and media that begins goes by both paths for a while.
    run(3, 1_000_000);
    run(3, 2_000_000);
    let before = (ALLOCATIONS.get(), counters.get(Counter::InnerTx));
    run(20, 2_100_000);
    assert_eq!(counters.get(Counter::InnerTx) - before.1, 4_000);
    assert_eq!(ALLOCATIONS.get() - before.0, 0);
}
