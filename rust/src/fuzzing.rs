//! What the fuzz targets run: code that sees a peer's bytes first. Each function takes any bytes at all and must
//! come back, having kept its promises; `rust/fuzz` feeds them by libFuzzer, the test below by a seeded stream
//! in every test run.

use crate::boundary::{Event, EventQueue, TcpEvent};
use crate::coding::frames::{PACKED_PAYLOAD, Recovery, open_feedback};
use crate::coding::head::Head;
use crate::coding::headers::{Unpacked, Unpacker};
use crate::coding::receiver::{Decoder, Repair};
use crate::crypto::dtls_record::content_type;
use crate::crypto::{Datagrams, DtlsListener, ListenOutcome, records};
use crate::frame::{ControlHead, Frame, next_frame};
use crate::limits::{BATCH, MAX_CONTEXTS, MAX_CONTROL_MESSAGE, MAX_INNER_PACKET};
use crate::packet::{
    End, Meta, TCP, UDP, UDP_HEADER, echo_reply, header_checksum, pseudo_header, readdress,
    transport_checksum, udp_checksum_ok, udp_sum, write_ip,
};
use crate::runs::{HEADER, Runs};
use crate::tables::relays::{EARLY, End as Leg, Follow, Relays};
use crate::tables::signals::{Look, Signals};
use crate::tcp::Tuple;
use crate::tcp::connection::{Connection, Outbox};
use crate::tcp::segment::Segment;
use crate::tcp::shared::{Handle, Tcp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Cut bytes into frames as a stream does: every frame lies inside, and each step moves on.
pub fn frames(data: &[u8]) {
    let mut at = 0;
    while let Some(rest) = data.get(at..) {
        match next_frame(rest) {
            Ok(Frame::Inner(length)) => {
                assert!(length > 0 && length <= rest.len() && length <= MAX_INNER_PACKET);
                packet(&rest[..length]);
                at += length;
            }
            Ok(Frame::Control(length)) => {
                assert!(length >= 16 && length <= rest.len() && length <= MAX_CONTROL_MESSAGE);
                assert!(ControlHead::parse(&rest[..length]).is_some());
                at += length;
            }
            Ok(Frame::Sequenced(length)) => {
                assert!(length > 6 && length <= rest.len());
                packet(&rest[6..length]);
                at += length;
            }
            Ok(Frame::Packed(length)) => {
                assert!(length >= 4 && length <= rest.len());
                at += length;
            }
            Ok(Frame::Recovery(length)) => {
                assert!(length >= 4 && length <= rest.len());
                at += length;
            }
            Ok(Frame::Incomplete) => {
                assert!(rest.len() < 6 + MAX_INNER_PACKET.max(MAX_CONTROL_MESSAGE), "would wait for ever");
                return;
            }
            Err(_) => return,
        }
    }
}

/// One datagram of coded frames from a peer who has agreed to them: what is rebuilt is a whole packet with right
/// checksums, what is computed fits a frame, and what is known of the peer stays bounded.
pub fn coding(data: &[u8]) {
    let (mut unpacker, mut decoder) = (Unpacker::default(), Decoder::default());
    let (mut out, mut payload, mut at) = (Vec::new(), Vec::new(), 0);
    let mut anchor: Option<(u32, Head)> = None;
    while let Some(rest) = data.get(at..) {
        let length = match next_frame(rest) {
            Ok(Frame::Packed(length)) => {
                if let Unpacked::Packet(_) = unpacker.unpack(&rest[..length], at as u64, &mut out) {
                    rebuilt(&out, rest[2] >> 6 < 2);
                }
                let _ = open_feedback(&rest[..length]);
                length
            }
            Ok(Frame::Sequenced(length)) => {
                if let Some(parts) = Head::split(&rest[6..length]) {
                    anchor = Some((at as u32, parts.head));
                    decoder.note(&parts.head, at as u32, parts.payload, at as u64);
                }
                length
            }
            Ok(Frame::Recovery(length)) => {
                let parsed = Recovery::parse(&rest[..length]);
                let Ok(Some((recovery, whole))) = parsed else { panic!("a whole frame can be read") };
                assert_eq!((whole, recovery.size() <= length), (length, true));
                if let Some((number, head)) = &anchor
                    && let Repair::Frame(_) = decoder.repair(head, *number, &recovery, &mut payload)
                {
                    out.clear();
                    assert!(payload.len() <= PACKED_PAYLOAD && head.write(7, &payload, &mut out));
                    rebuilt(&out, true);
                }
                length
            }
            Ok(Frame::Inner(length) | Frame::Control(length)) => length,
            Ok(Frame::Incomplete) | Err(_) => break,
        };
        at += length;
    }
    assert!(unpacker.contexts() <= MAX_CONTEXTS);
}

/// What came out of a context or of recovery data is a packet from end to end.
fn rebuilt(packet: &[u8], ours: bool) {
    let parts = Head::split(packet);
    assert!(parts.is_some_and(|parts| !ours || parts.head.intact(packet)), "not a packet of its flow");
}

/// Look at bytes as an inner packet, then change it in every way we know.
pub fn packet(data: &[u8]) {
    let Ok(meta) = Meta::parse(data) else { return };
    assert!(meta.length <= data.len() && meta.transport <= meta.length);
    let _ = (meta.looks_like_media(data), udp_checksum_ok(&meta, data));
    if let Some(payload) = meta.udp_payload(data) {
        assert!(payload.len() < meta.length);
    }
    let signals = Signals::default();
    signals.watch(true);
    if let Look::Found(signal) = signals.look(&meta, data, 0) {
        assert!(!signal.data.is_empty() && signal.data.len() < meta.length);
    }
    let mut copy = data.to_vec();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        if readdress(&mut copy, &meta, End::Destination, address, 9) {
            let changed = Meta::parse(&copy);
            assert!(changed.is_ok_and(|m| m.destination == address && m.source == meta.source));
        }
    }
    let mut copy = data.to_vec();
    if let Ok(segment) = Segment::parse_untrusted(&meta, data) {
        let mut answer = Vec::new();
        assert!(segment.refusal(&mut answer) && answer.len() <= data.len());
    }
    let _ = echo_reply(&mut copy, &meta);
    assert_eq!(copy.len(), data.len());
}

/// The first octets of a control message and everything a relay of it relies on.
pub fn control(data: &[u8]) {
    let mut message = vec![0x10, 0];
    message.extend_from_slice(data);
    frames(&message);
}

/// A datagram from nobody we know: cut into records, classified, shown to the DTLS listener.
pub fn datagram(data: &[u8]) {
    let mut copy = data.to_vec();
    let cut: usize = records(&mut copy).map(|record| record.len()).sum();
    assert_eq!(cut, data.len());
    let _ = content_type(data);
    let listener = DtlsListener::new([7; 32], Arc::new(|_| None));
    let mut out = Datagrams::default();
    let peer = SocketAddr::from(([192, 0, 2, 1], 4433));
    if let ListenOutcome::Reply = listener.feed(&peer, data, &mut out) {
        let answer: usize = out.iter().map(<[u8]>::len).sum();
        assert!(answer <= data.len(), "an answer longer than the question can be used to flood others");
    }
}

/// Packets of a client's for a TUN device, whatever they are: what the kernel makes of the writes is what came, and each
/// flow's in their order. Each packet begins with two bytes of length.
pub fn runs(data: &[u8]) {
    let (mut packets, mut rest) = (Vec::new(), data);
    while let Some((head, behind)) = rest.split_first_chunk::<2>() {
        let (packet, after) =
            behind.split_at(usize::from(u16::from_be_bytes(*head) & 0x7ff).min(behind.len()));
        packets.push(packet.to_vec());
        rest = after;
    }
    let _ = gathered(&packets);
}

/// How many packets went in company.
fn gathered(packets: &[Vec<u8>]) -> usize {
    let (mut runs, mut merged) = (Runs::default(), 0);
    for turn in packets.chunks(BATCH) {
        let mut cut = Vec::new();
        for packet in turn {
            assert!(runs.push(packet, true));
        }
        for write in 0..runs.writes() {
            let whole = runs.pieces(write).collect::<Vec<_>>().concat();
            let alone: Vec<_> = runs.singly(write).map(|packet| packet[HEADER..].to_vec()).collect();
            let by_kernel = cut_run(&whole);
            assert_eq!(by_kernel.len(), runs.packets(write));
            for (one, other) in by_kernel.iter().zip(&alone) {
                assert_eq!(without_atomic_id(one), without_atomic_id(other));
            }
            merged += if alone.len() > 1 { alone.len() } else { 0 };
            cut.extend(alone);
        }
        runs.clear();
        assert!(runs.is_empty());
        // The same packets, and those of one flow (here: of one pair of addresses) in their order.
        let (mut had, mut got) = (turn.to_vec(), cut);
        had.sort_by_key(|packet| flow_of(packet));
        got.sort_by_key(|packet| flow_of(packet));
        assert_eq!(had, got);
    }
    merged
}

/// Addresses and ports of UDP; what is no UDP is sorted by itself. Sorting keeps the order of equals.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    match Meta::parse(packet) {
        Ok(meta) if meta.protocol == UDP && !meta.fragment => {
            let end = (meta.transport + 4).min(packet.len());
            let addresses = if meta.source.is_ipv4() { 12..20 } else { 8..40 };
            [&packet[addresses], &packet[meta.transport.min(end)..end]].concat()
        }
        _ => packet.to_vec(),
    }
}

/// What a kernel makes of a write (virtio 1.2 section 5.1.6.2; Linux: `inet_gso_segment`, `__udp_gso_segment`).
fn cut_run(whole: &[u8]) -> Vec<Vec<u8>> {
    let (header, packet) = whole.split_at(HEADER);
    if header == [0; HEADER] {
        return vec![packet.to_vec()];
    }
    let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (size, head) = (field(4), field(6));
    assert_eq!((header[0], header[1], field(2), field(8)), (1, 5, packet.len(), 6));
    let (heads, payload) = packet.split_at(head + UDP_HEADER);
    assert!(payload.len() > size && size > 0 && packet.len() <= 65_535);
    let stated = u16::from_be_bytes([packet[head + 4], packet[head + 5]]);
    assert_eq!(usize::from(stated), UDP_HEADER + payload.len());
    let begun = u16::from_be_bytes([packet[head + 6], packet[head + 7]]);
    assert_eq!(begun, pseudo_header(packet, head, UDP_HEADER + payload.len()));
    let mut out = Vec::new();
    for (number, part) in payload.chunks(size).enumerate() {
        let mut one = [heads, part].concat();
        let udp = ((UDP_HEADER + part.len()) as u16).to_be_bytes();
        if head == 20 {
            let id = u16::from_be_bytes([one[4], one[5]]).wrapping_add(number as u16);
            let total = ((head + UDP_HEADER + part.len()) as u16).to_be_bytes();
            one[2..4].copy_from_slice(&total);
            one[4..6].copy_from_slice(&id.to_be_bytes());
        } else {
            one[4..6].copy_from_slice(&udp);
        }
        one[head + 4..head + 6].copy_from_slice(&udp);
        mend(&mut one, head);
        out.push(one);
    }
    out
}

/// Compute a packet's checksums.
fn mend(packet: &mut [u8], head: usize) {
    if head == 20 {
        packet[10..12].fill(0);
        let sum = header_checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet[head + 6..head + 8].fill(0);
    let sum = match udp_sum(packet, head) {
        0 => 0xffff,
        sum => sum,
    };
    packet[head + 6..head + 8].copy_from_slice(&sum.to_be_bytes());
}

/// With DF set the identification means nothing (RFC 6864 section 4.1), nor how a right header sum writes zero.
fn without_atomic_id(packet: &[u8]) -> Vec<u8> {
    let mut copy = packet.to_vec();
    if copy.first() == Some(&0x45) && copy.get(6).is_some_and(|flags| flags & 0x40 != 0) && copy.len() >= 20 {
        copy[4..6].fill(0);
        copy[10..12].fill(0);
    }
    copy
}

/// Media for a relay from one party, read for its statistics: each chunk is one packet.
pub fn media(data: &[u8]) {
    let here = SocketAddr::from(([10, 0, 0, 2], 4000));
    let end = |port| Leg { local: ([10, 0, 0, 1], port).into(), remote: Some(here), early: [None; EARLY] };
    let follow = Follow { rtp: true, rtcp: true };
    let relays = Relays::default();
    let Ok(relay) = relays.open(1, [end(1), end(2)], [None, None], follow) else { return };
    let mut now_us = 0;
    for packet in data.chunks(1 + usize::from(data.first().copied().unwrap_or(0))) {
        now_us += 20_000;
        let side = packet.len() & 1;
        assert!(relay.pass(side, here, packet, 1, now_us).is_ok());
    }
    for leg in relay.legs() {
        assert!(leg.reception.lost() <= leg.reception.expected());
    }
}

/// A peer that sends any segments at all to a connection of ours: no panic, whatever the program does meanwhile.
/// Each 12 bytes are one segment near the numbers that would be right, so that its depths are reached.
pub fn tcp(data: &[u8]) {
    let _ = segments(data);
}

/// How many bytes the program got.
fn segments(data: &[u8]) -> usize {
    let local = SocketAddr::from(([10, 0, 0, 1], 5060));
    let remote = SocketAddr::from(([10, 0, 0, 2], 40_000));
    let (Ok(listener), Ok(events)) = (Tcp::new(1).listen(1, None, local, 4, 1400), EventQueue::new()) else {
        return 0;
    };
    let tuple = Tuple { scope: None, local, remote };
    let handle = Arc::new(Handle::new(2));
    let (we_ask, data) = data.split_first().map_or((false, data), |(first, rest)| (first & 1 == 1, rest));
    let opened = if we_ask {
        Connection::connect(tuple, Arc::clone(&handle), 1400, 1, 0)
    } else {
        Connection::accept(tuple, listener, Arc::clone(&handle), 1, 0)
    };
    let Some(mut connection) = opened else { panic!("these are addresses of hosts") };
    let (mut out, mut now_us) = (Outbox::default(), 1);
    // What the other end of a sane connection would send next, and acknowledge.
    let (mut sequence, mut acknowledged) = (1_000u32, 0u32);
    let mut got = 0;
    for step in data.chunks_exact(12) {
        let number = |at: usize| u32::from(u16::from_be_bytes([step[at], step[at + 1]]));
        let near = |base: u32, at: usize| base.wrapping_add(number(at)).wrapping_sub(0x8000);
        let exact = step[1];
        let sequence_sent = if exact & 1 == 0 { sequence } else { near(sequence, 2) };
        let acknowledged_sent = if exact & 2 == 0 { acknowledged } else { near(acknowledged, 4) };
        let packet = segment(&tuple, step, sequence_sent, acknowledged_sent);
        let Ok(meta) = Meta::parse(&packet) else { break };
        now_us += u64::from(step[10]) * u64::from(step[10]) * 1_000;
        handle.send(&[7; 300][..usize::from(step[8])]);
        if step[9] & 7 == 7 {
            handle.wish(step[9] >> 5 & 7);
        }
        let whole = Segment::parse_untrusted(&meta, &packet).is_ok() && exact & 12 != 12;
        connection.turn(whole.then_some(&packet[..]), now_us, &mut out, &events);
        out.drain(|sent| {
            let Ok(meta) = Meta::parse(sent) else { panic!("our own packet is malformed") };
            assert!(Segment::parse_untrusted(&meta, sent).is_ok());
            let at = |i: usize| {
                let field = &sent[meta.transport + i..meta.transport + i + 4];
                u32::from_be_bytes([field[0], field[1], field[2], field[3]])
            };
            let taken = meta.length - meta.transport - usize::from(sent[meta.transport + 12] >> 4) * 4;
            acknowledged = at(4).wrapping_add(taken as u32 + u32::from(sent[meta.transport + 13] & 3 != 0));
            if sent[meta.transport + 13] & 16 != 0 {
                sequence = at(8);
            }
        });
        for event in events.take(64).0 {
            if let Event::Tcp(TcpEvent::Received { data, .. }) = event {
                got += data.len();
                if step[11] & 1 == 0 {
                    handle.give_back(data.len());
                }
            }
        }
        if connection.is_over() {
            break;
        }
        let _ = connection.next_us(now_us);
    }
    got
}

fn segment(tuple: &Tuple, step: &[u8], sequence: u32, acknowledged: u32) -> Vec<u8> {
    const OPTIONS: [&[u8]; 4] = [&[], &[2, 4, 0, 1], &[3, 3, 14, 0], &[4, 2, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9]];
    let options = OPTIONS[usize::from(step[1] >> 4 & 3)];
    let payload = vec![step[6]; usize::from(step[6]) * usize::from(step[1] >> 6)];
    let mut packet = Vec::new();
    let length = 20 + options.len() + payload.len();
    write_ip(tuple.remote.ip(), tuple.local.ip(), TCP, 0, length, &mut packet);
    packet.extend_from_slice(&tuple.remote.port().to_be_bytes());
    packet.extend_from_slice(&tuple.local.port().to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&acknowledged.to_be_bytes());
    let offset = ((5 + options.len() / 4) as u8) << 4;
    packet.extend_from_slice(&[offset, step[0], step[7], step[7], 0, 0, 0, 0]);
    packet.extend_from_slice(options);
    packet.extend_from_slice(&payload);
    let check = transport_checksum(tuple.remote.ip(), tuple.local.ip(), TCP, &packet[20..]);
    packet[36..38].copy_from_slice(&check.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: the same bytes in every run; a failing round is found again by its number.
    struct Bytes(u64);

    impl Bytes {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn fill(&mut self, length: usize) -> Vec<u8> {
            (0..length).map(|_| self.next() as u8).collect()
        }
    }

    /// Random bytes seldom look like anything, so most rounds begin with a plausible head.
    fn sample(bytes: &mut Bytes) -> Vec<u8> {
        const HEADS: &[&[u8]] = &[
            &[],
            &[0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17],
            &[0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6],
            &[0x60, 0, 0, 0, 0, 20, 17, 64],
            &[0x60, 0, 0, 0, 0, 20, 44, 64],
            &[0x10, 0, 5, 3],
            &[0x80, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 7],
            &[0x81, 200, 0, 12, 0, 0, 0, 7],
            &[0x9f, 201, 0xff, 0xff, 0, 0, 0, 7],
            &[0x12, 0, 0, 0, 0, 9, 0x45, 0, 0, 40],
            &[0x11, 3, 0x80, 0, 0x45, 0, 0, 40],
            &[0x11, 3, 0, 20],
            &[0x13, 1, 1, 20],
            &[0x13, 0x12, 0, 1, 0, 3, 0, 20, 0, 20],
            &[22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60, 1, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0, 48],
            &[23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 0, 40],
        ];
        let head = HEADS[bytes.next() as usize % HEADS.len()];
        let length = bytes.next() as usize % 300;
        let mut data = head.to_vec();
        data.extend(bytes.fill(length));
        data
    }

    /// A context or two, sequenced frames of a flow, then what a hostile peer makes of them.
    fn coded_datagram(bytes: &mut Bytes, tail: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for number in 0..3u8 {
            let payload = bytes.next() as u8 % 40;
            let mut packet = Vec::new();
            assert!(write_ip(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                17,
                0,
                8 + usize::from(payload),
                &mut packet
            ));
            packet.extend_from_slice(&[0, 9, 0, 10, 0, 8 + payload, 0, 0]);
            packet.extend(bytes.fill(usize::from(payload)));
            out.extend_from_slice(&if number == 0 {
                vec![0x11, 3, 0x80, 0]
            } else {
                vec![0x12, 0, 0, 0, 0, number]
            });
            out.extend_from_slice(&packet);
        }
        out.extend_from_slice(tail);
        out
    }

    #[test]
    fn no_bytes_break_the_parsers() {
        let mut bytes = Bytes(0x0bad_5eed);
        for _ in 0..30_000 {
            let data = sample(&mut bytes);
            frames(&data);
            packet(&data);
            control(&data);
            coding(&data);
            coding(&coded_datagram(&mut bytes, &data));
            datagram(&data);
            media(&data);
        }
    }

    /// Packets of a few flows that can mostly go together, and what a hostile client does to some of them.
    fn flows(bytes: &mut Bytes) -> Vec<Vec<u8>> {
        let size = 1 + bytes.next() as usize % 60;
        let count = bytes.next() as usize % 100;
        let mut packets: Vec<Vec<u8>> = (0..count).map(|n| flow_packet(bytes, n, size)).collect();
        for packet in &mut packets {
            match bytes.next() % 12 {
                0 => {
                    let at = bytes.next() as usize % packet.len();
                    packet[at] ^= 1 << (bytes.next() % 8);
                }
                1 => packet.truncate(bytes.next() as usize % (packet.len() + 1)),
                2 => packet.extend([0; 3]),
                _ => {}
            }
        }
        packets
    }

    fn flow_packet(bytes: &mut Bytes, number: usize, size: usize) -> Vec<u8> {
        let (flow, v6) = (bytes.next() % 3, bytes.next().is_multiple_of(4));
        let payload = if bytes.next().is_multiple_of(8) { bytes.next() as usize % (size + 2) } else { size };
        let (from, to) = if v6 {
            (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        } else {
            (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)))
        };
        let mut packet = Vec::new();
        assert!(write_ip(from, to, UDP, 0xb8, UDP_HEADER + payload, &mut packet));
        let head = packet.len();
        if !v6 && bytes.next().is_multiple_of(4) {
            // Not atomic: its number counts.
            packet[4..8].copy_from_slice(&[0, number as u8, 0, 0]);
        }
        packet.extend_from_slice(&[0, 9, 0, flow as u8, 0, (UDP_HEADER + payload) as u8, 0, 0]);
        packet.extend(bytes.fill(payload));
        mend(&mut packet, head);
        if bytes.next().is_multiple_of(16) {
            packet[head + 6..head + 8].fill(0);
        }
        packet
    }

    #[test]
    fn packets_for_a_device_come_out_as_they_went_in() {
        let (mut bytes, mut merged) = (Bytes(0x9050_5eed), 0);
        for _ in 0..4_000 {
            let mut packets = flows(&mut bytes);
            merged += gathered(&packets);
            let at = bytes.next() as usize % (packets.len() + 1);
            packets.insert(at, sample(&mut bytes));
            let _ = gathered(&packets);
            runs(&sample(&mut bytes));
        }
        assert!(merged > 20_000, "hardly any runs: {merged}");
    }

    /// One round in which the peer mostly keeps to the rules; a broken one now and then shows more.
    #[test]
    fn no_segments_break_a_connection() {
        let (mut bytes, mut got) = (Bytes(0x7c9_5eed), 0);
        for round in 0..2_500 {
            let mut data = bytes.fill(1 + 12 * 40);
            for step in data[1..].chunks_exact_mut(12) {
                if round % 3 != 0 {
                    step[0] = [16, 16, 16, 24, 17, 16][usize::from(step[0]) % 6];
                    step[1] &= if step[5] % 8 == 0 { 0xf3 } else { 0xf0 };
                }
                step[10] %= 30;
            }
            if data[0] & 1 == 0 {
                data[1..3].copy_from_slice(&[2, 0]);
            }
            got += segments(&data);
        }
        assert!(got > 300_000, "the rounds hardly reach an open connection: {got}");
    }
}
