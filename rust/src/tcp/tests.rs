//! Two connections with a bad network between them, and one stack with peers that want too much.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::connection::{Connection, Outbox};
use super::segment::Segment;
use super::shared::{Handle, Tcp, wish};
use super::stack::{Order, Party, Stack};
use super::{Scope, Tuple};
use crate::boundary::{Event, EventQueue, TcpEvent};
use crate::counters::{Counter, CounterSet};
use crate::engine::Engine;
use crate::forward::Forwarder;
use crate::limits::{
    TCP_CONNECTIONS_PER_PEER, TCP_CREDIT, TCP_HALF_OPEN_PER_PEER, TCP_OPENING_MS, TCP_SEND_QUEUE,
    TCP_SILENCE_MS,
};
use crate::packet::{Meta, TCP, transport_checksum, write_ip};
use crate::tables::{Role, Session, Sink};
use crate::tunnel::{Link, StreamLink, Tunnel};

/// xorshift64*: a failing run is found again by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }
}

/// One end: a connection and the program behind it.
struct Side {
    connection: Connection,
    handle: Arc<Handle>,
    events: EventQueue,
    to_send: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    eof: bool,
    closed: Option<&'static str>,
    established: bool,
    reads: bool,
    /// A stack makes an accepted connection when its SYN comes.
    born: bool,
}

impl Side {
    fn new(connection: Connection, handle: Arc<Handle>, to_send: Vec<u8>) -> Self {
        Self {
            connection,
            handle,
            events: EventQueue::new().unwrap(),
            to_send,
            sent: 0,
            got: Vec::new(),
            eof: false,
            closed: None,
            established: false,
            reads: true,
            born: false,
        }
    }

    fn program(&mut self) {
        for event in self.events.take(1_000).0 {
            match event {
                Event::Tcp(TcpEvent::Connected { .. }) | Event::Tcp(TcpEvent::Accepted { .. }) => {
                    self.established = true
                }
                Event::Tcp(TcpEvent::Received { data, .. }) => {
                    if self.reads {
                        self.handle.give_back(data.len());
                    }
                    self.got.extend(data);
                }
                Event::Tcp(TcpEvent::Eof { .. }) => self.eof = true,
                Event::Tcp(TcpEvent::Closed { reason, .. }) => self.closed = Some(reason),
                Event::Tcp(TcpEvent::Writable { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        if self.established && self.sent < self.to_send.len() {
            self.sent += self.handle.send(&self.to_send[self.sent..]);
            if self.sent == self.to_send.len() {
                self.handle.wish(wish::SHUTDOWN);
            }
        }
    }
}

/// A network that loses, doubles and shuffles.
struct Network {
    dice: Dice,
    loss_percent: u64,
    on_the_way: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    number: u64,
    down: bool,
}

impl Network {
    fn new(seed: u64, loss_percent: u64) -> Self {
        Self { dice: Dice(seed | 1), loss_percent, on_the_way: BTreeMap::new(), number: 0, down: false }
    }

    fn carry(&mut self, to: usize, packet: &[u8], now_us: u64) {
        if self.down || self.dice.roll(100) < self.loss_percent {
            return;
        }
        let copies = 1 + usize::from(self.loss_percent > 0 && self.dice.roll(50) == 0);
        for _ in 0..copies {
            let jitter = if self.loss_percent > 0 { self.dice.roll(8_000) } else { 0 };
            self.number += 1;
            self.on_the_way.insert((now_us + 20_000 + jitter, self.number), (to, packet.to_vec()));
        }
    }
}

fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
    if v6 {
        ("[fd00::1]:40000".parse().unwrap(), "[fd00::2]:5060".parse().unwrap())
    } else {
        ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:5060".parse().unwrap())
    }
}

fn pair(v6: bool, from_client: Vec<u8>, from_server: Vec<u8>) -> [Side; 2] {
    let (client, server) = ends(v6);
    let tcp = Tcp::new(1);
    let listener = tcp.listen(1, None, server, 4, 1400).unwrap();
    assert!(listener.reserve());
    let handles = [Arc::new(Handle::new(10)), Arc::new(Handle::new(11))];
    let ours = Tuple { scope: Some(1), local: client, remote: server };
    let theirs = Tuple { scope: None, local: server, remote: client };
    let connect = Connection::connect(ours, Arc::clone(&handles[0]), 1400, 7, 0).unwrap();
    let accept = Connection::accept(theirs, listener, Arc::clone(&handles[1]), 9, 0).unwrap();
    let [a, b] = handles;
    [Side::new(connect, a, from_client), Side::new(accept, b, from_server)]
}

/// Let time pass until `done` or `until_us`; returns when it ended.
fn run(
    sides: &mut [Side; 2],
    network: &mut Network,
    mut now_us: u64,
    until_us: u64,
    done: impl Fn(&[Side; 2]) -> bool,
) -> u64 {
    let mut out = Outbox::default();
    let mut first = true;
    while now_us < until_us && !done(sides) {
        let arrived = network.on_the_way.first_key_value().map(|((at, _), _)| *at);
        let packet = match arrived {
            Some(at) if at <= now_us => network.on_the_way.pop_first().map(|(_, packet)| packet),
            _ => None,
        };
        for (index, side) in sides.iter_mut().enumerate() {
            side.program();
            let mine = packet.as_ref().filter(|(to, _)| *to == index).map(|(_, bytes)| &bytes[..]);
            let touched = side.handle.touched.load(std::sync::atomic::Ordering::Acquire);
            let due = side.born && side.connection.next_us(now_us).is_some_and(|at| at <= now_us);
            side.born |= index == 0 || mine.is_some();
            let moving = side.sent > 0 || touched || first;
            if side.born && !side.connection.is_over() && (mine.is_some() || due || moving) {
                side.connection.turn(mine, now_us, &mut out, &side.events);
                out.drain(|bytes| network.carry(1 - index, bytes, now_us));
            }
            side.program();
        }
        first = false;
        if packet.is_none() {
            let next = sides.iter_mut().filter_map(|s| s.connection.next_us(now_us));
            let next = next.chain(arrived).filter(|at| *at > now_us).min();
            now_us = next.unwrap_or(until_us).min(now_us + 50_000);
        }
    }
    now_us
}

fn bytes(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ salt).collect()
}

#[test]
fn every_byte_arrives_in_order_both_ways_through_a_bad_network() {
    for seed in 1..=12 {
        let (up, down) = (bytes(150_000, 1), bytes(200_000, 2));
        let mut sides = pair(seed % 2 == 0, up.clone(), down.clone());
        let mut network = Network::new(seed, 3);
        let both_told = |s: &[Side; 2]| s.iter().all(|s| s.closed.is_some());
        run(&mut sides, &mut network, 0, 300_000_000, both_told);
        assert!(sides[1].got == up && sides[0].got == down, "seed {seed}");
        assert!(sides.iter().all(|s| s.eof && s.closed == Some("closed")), "seed {seed}");
    }
}

#[test]
fn a_program_that_does_not_read_stops_its_peer() {
    let mut sides = pair(false, bytes(500_000, 1), Vec::new());
    sides[1].reads = false;
    let mut network = Network::new(5, 0);
    let now = run(&mut sides, &mut network, 0, 20_000_000, |_| false);
    assert_eq!(sides[1].got.len(), TCP_CREDIT);
    assert!(sides[0].sent <= 3 * 65_536 + TCP_SEND_QUEUE && sides[0].closed.is_none());
    sides[1].reads = true;
    if sides[1].handle.give_back(TCP_CREDIT) {
        sides[1].handle.touch();
    }
    run(&mut sides, &mut network, now, 120_000_000, |s| s[1].eof);
    assert_eq!(sides[1].got, bytes(500_000, 1));
}

#[test]
fn a_connection_outlives_an_outage_and_hurries_when_the_way_is_back() {
    let mut sides = pair(false, bytes(3_000_000, 1), Vec::new());
    let mut network = Network::new(5, 0);
    let mut now = run(&mut sides, &mut network, 0, 2_000_000, |_| false);
    network.down = true;
    now = run(&mut sides, &mut network, now, now + 200_000_000, |_| false);
    assert!(sides.iter().all(|s| s.closed.is_none()));
    // The other end of the tunnel is ready a moment later than ours.
    for side in &mut sides {
        side.connection.hurry(now);
    }
    now = run(&mut sides, &mut network, now, now + 500_000, |_| false);
    network.down = false;
    let before = sides[1].got.len();
    run(&mut sides, &mut network, now, now + 1_000_000, |_| false);
    assert!(sides[1].got.len() > before + 100_000, "{before} then {}", sides[1].got.len());
    run(&mut sides, &mut network, now, now + 300_000_000, |s| s[1].eof);
    assert_eq!(sides[1].got, bytes(3_000_000, 1));
}

#[test]
fn both_ends_of_an_outage_hurry_though_each_is_heard_before_it_is_answered() {
    let mut sides = pair(false, bytes(600_000, 1), bytes(600_000, 2));
    let mut network = Network::new(5, 0);
    let mut now = run(&mut sides, &mut network, 0, 300_000, |_| false);
    network.down = true;
    now = run(&mut sides, &mut network, now, now + 100_000_000, |_| false);
    // One end's tunnel is ready first; what it sends at once is lost, and it hears the other before it tries again.
    sides[1].connection.hurry(now);
    now = run(&mut sides, &mut network, now, now + 10_000, |_| false);
    network.down = false;
    sides[0].connection.hurry(now);
    run(&mut sides, &mut network, now, now + 10_000_000, |s| s.iter().all(|s| s.eof));
    let got = (sides[1].got.len(), sides[0].got.len());
    assert_eq!(got, (600_000, 600_000));
    assert!(sides[1].got == bytes(600_000, 1) && sides[0].got == bytes(600_000, 2));
}

#[test]
fn a_silent_peer_ends_a_connection_and_so_does_one_that_never_answers() {
    let mut sides = pair(false, Vec::new(), Vec::new());
    let mut network = Network::new(5, 0);
    let now = run(&mut sides, &mut network, 0, 1_000_000, |s| s.iter().all(|s| s.established));
    network.down = true;
    let end = run(&mut sides, &mut network, now, now + 2 * TCP_SILENCE_MS * 1_000, |s| {
        s.iter().all(|s| s.closed.is_some())
    });
    assert!(sides.iter().all(|s| s.closed == Some("timeout")));
    assert!(end - now >= TCP_SILENCE_MS * 1_000);

    let mut sides = pair(false, Vec::new(), Vec::new());
    network.on_the_way.clear();
    let end = run(&mut sides, &mut network, 0, 10 * TCP_OPENING_MS * 1_000, |s| s[0].closed.is_some());
    assert_eq!(sides[0].closed, Some("timeout"));
    let limit = TCP_OPENING_MS * 1_000;
    assert!((limit..limit + 100_000).contains(&end), "{end}");
}

#[test]
fn a_quiet_connection_with_a_live_peer_stays() {
    let mut sides = pair(false, Vec::new(), Vec::new());
    let mut network = Network::new(5, 0);
    run(&mut sides, &mut network, 0, 2 * TCP_SILENCE_MS * 1_000, |_| false);
    assert!(sides.iter().all(|s| s.established && s.closed.is_none()));
}

#[test]
fn an_abort_is_a_reset_at_the_other_end_after_the_data_before_it() {
    let mut sides = pair(false, bytes(10_000, 1), Vec::new());
    let mut network = Network::new(5, 0);
    let now = run(&mut sides, &mut network, 0, 1_000_000, |s| s[1].got.len() == 10_000);
    sides[0].handle.wish(wish::ABORT);
    run(&mut sides, &mut network, now, now + 1_000_000, |s| s[1].closed.is_some());
    assert_eq!(sides[1].closed, Some("reset"));
    assert_eq!((sides[0].closed, sides[0].connection.is_over()), (None, true));
}

// -- one stack ------------------------------------------------------------------------------------------------

/// A server's stack, and a client's tunnel from which its answers can be read.
struct Host {
    stack: Stack,
    forwarder: Forwarder,
    tunnel: Arc<Tunnel>,
}

const CLIENT: &str = "10.0.0.9";
const SERVER: &str = "10.0.0.1:5060";

fn host() -> Host {
    let engine = Arc::new(Engine::new(1).unwrap());
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let tunnel = Arc::new(Tunnel::new(256, None, nowhere, nowhere, Link::Stream(StreamLink::default()), 0));
    let session = Arc::new(Session::new(1, Role::Server, vec![CLIENT.parse().unwrap()], Sink::Route));
    session.attach(&tunnel);
    engine.routes.add_session(&session);
    engine.sessions.insert(1, session);
    let mut forwarder = Forwarder::new(engine, Arc::new(CounterSet::default()), Some(0));
    forwarder.now_us = 1_000;
    Host { stack: Stack::new(0), forwarder, tunnel }
}

impl Host {
    fn listen(&self, address: &str, backlog: usize) {
        self.forwarder.engine.tcp.listen(1, None, address.parse().unwrap(), backlog, 1400).unwrap();
    }

    fn bring(&mut self, packet: &[u8]) {
        let scope: Scope = None;
        self.forwarder.engine.tcp.knock(0, scope, packet).unwrap();
        self.stack.run(&mut self.forwarder);
    }

    fn count(&self, counter: Counter) -> u64 {
        self.forwarder.counters.get(counter)
    }

    /// What has gone into the client's tunnel: flags of each segment.
    fn answers(&self) -> Vec<(u8, Segment)> {
        let mut out = Vec::new();
        while self.tunnel.stream().unwrap().egress.lock().take_record(&mut out) > 0 {}
        let mut found = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            let meta = Meta::parse(rest).unwrap();
            let segment = Segment::parse_untrusted(&meta, rest).unwrap();
            found.push((rest[meta.transport + 13], segment));
            rest = &rest[meta.length..];
        }
        found
    }
}

/// A segment from the client.
fn segment(port: u16, to: &str, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    from(CLIENT, port, to, flags, sequence, payload)
}

fn from(source: &str, port: u16, to: &str, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let (source, to): (std::net::IpAddr, SocketAddr) = (source.parse().unwrap(), to.parse().unwrap());
    let mut packet = Vec::new();
    assert!(write_ip(source, to.ip(), TCP, 0, 20 + payload.len(), &mut packet));
    let start = packet.len();
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend_from_slice(payload);
    let check = transport_checksum(source, to.ip(), TCP, &packet[start..]);
    packet[start + 16..start + 18].copy_from_slice(&check.to_be_bytes());
    packet
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[test]
fn a_port_without_listener_answers_rst_and_an_rst_is_never_answered() {
    let mut host = host();
    host.bring(&segment(40_000, SERVER, SYN, 100, b""));
    host.bring(&segment(40_001, SERVER, ACK, 100, b"hello"));
    host.bring(&segment(40_002, SERVER, RST, 100, b""));
    let flags: Vec<u8> = host.answers().iter().map(|(flags, _)| *flags).collect();
    assert_eq!(flags, [RST | ACK, RST]);
    assert_eq!(host.count(Counter::TcpRefused), 2);
}

#[test]
fn half_open_connections_are_bounded_per_peer_and_time_out() {
    let mut host = host();
    host.listen(SERVER, 64);
    for port in 0..20 {
        host.bring(&segment(40_000 + port, SERVER, SYN, 100, b""));
    }
    let open = host.answers().iter().filter(|(flags, _)| *flags == SYN | ACK).count();
    assert_eq!(open, TCP_HALF_OPEN_PER_PEER);
    assert_eq!(host.count(Counter::TcpPeerFull), 20 - TCP_HALF_OPEN_PER_PEER as u64);
    host.forwarder.now_us += TCP_OPENING_MS * 1_000;
    host.stack.run_due(&mut host.forwarder);
    assert_eq!((host.stack.next(), host.forwarder.engine.tcp.connections.load(Relaxed)), (None, 0));
    host.answers();
    host.bring(&segment(41_000, SERVER, SYN, 100, b""));
    assert_eq!(host.answers().len(), 1);
}

#[test]
fn the_backlog_is_bounded_and_one_peer_cannot_have_every_connection() {
    let mut host = host();
    host.listen(SERVER, 3);
    for peer in 0..5 {
        host.bring(&from(&format!("10.0.1.{peer}"), 40_000, SERVER, SYN, 100, b""));
    }
    assert_eq!(host.count(Counter::TcpBacklogFull), 2);

    let mut host = self::host();
    host.listen(SERVER, 64);
    for port in 0..2 * TCP_CONNECTIONS_PER_PEER as u16 {
        establish(&mut host, 40_000 + port);
        host.forwarder.engine.events.take(10);
    }
    assert_eq!(host.count(Counter::TcpAccepted), TCP_CONNECTIONS_PER_PEER as u64);
    assert_eq!(host.count(Counter::TcpPeerFull), TCP_CONNECTIONS_PER_PEER as u64);
}

/// Open a connection from the client; None if the SYN met silence.
fn establish(host: &mut Host, port: u16) -> Option<(u32, u32)> {
    host.answers();
    host.bring(&segment(port, SERVER, SYN, 100, b""));
    let (_, answer) = *host.answers().first()?;
    let (theirs, ours) = (answer.sequence(), 101);
    let mut ack = segment(port, SERVER, ACK, ours, b"");
    acknowledge(&mut ack, theirs.wrapping_add(1));
    host.bring(&ack);
    Some((ours, theirs.wrapping_add(1)))
}

fn acknowledge(packet: &mut [u8], number: u32) {
    packet[28..32].copy_from_slice(&number.to_be_bytes());
    packet[36..38].copy_from_slice(&[0, 0]);
    let meta = Meta::parse(packet).unwrap();
    let check = transport_checksum(meta.source, meta.destination, TCP, &packet[20..]);
    packet[36..38].copy_from_slice(&check.to_be_bytes());
}

#[test]
fn connections_of_an_address_that_changes_hands_are_gone_without_a_word() {
    let mut host = host();
    host.listen(SERVER, 64);
    establish(&mut host, 40_000).unwrap();
    let accepted = host.forwarder.engine.events.take(10).0;
    assert!(matches!(accepted[..], [Event::Tcp(TcpEvent::Accepted { .. })]));
    host.answers();
    let party = Party::Peer(vec![CLIENT.parse().unwrap()]);
    host.stack.order(Order::Gone(party), &mut host.forwarder);
    let told = host.forwarder.engine.events.take(10).0;
    assert!(matches!(told[..], [Event::Tcp(TcpEvent::Closed { reason: "session-closed", .. })]));
    assert!(host.answers().is_empty() && host.stack.next().is_none());
    assert!(host.forwarder.engine.tcp.handles.values().is_empty());
}

#[test]
fn hostile_segments_are_named_and_dropped() {
    let mut host = host();
    host.listen(SERVER, 64);
    let mut bad = segment(40_000, SERVER, SYN, 1, b"");
    bad[30] ^= 1;
    host.bring(&bad);
    let mut fragment = segment(40_000, SERVER, SYN, 1, b"");
    fragment[6] = 0x20;
    host.bring(&fragment);
    let mut short = segment(40_000, SERVER, SYN, 1, b"");
    short[32] = 3 << 4;
    host.bring(&short);
    host.bring(&from("224.0.0.1", 40_000, SERVER, SYN, 1, b""));
    host.bring(&segment(0, SERVER, SYN, 1, b""));
    assert_eq!(host.count(Counter::TcpBadChecksum), 1);
    assert_eq!(host.count(Counter::TcpFragment), 1);
    assert_eq!(host.count(Counter::TcpMalformed), 3);
    assert!(host.answers().is_empty() && host.forwarder.engine.tcp.handles.values().is_empty());
}
