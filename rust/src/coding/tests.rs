//! A call over a seeded bad network: what comes in time, what it costs, and that nothing comes twice or damaged.
//!
//! `cargo test --release --no-default-features coding::tests::comparison -- --nocapture` prints the table of
//! docs/bad-networks.md.

use std::collections::HashMap;

use super::frames::Recovery;
use super::head::Head;
use super::head::tests::packet;
use super::headers::{Packed, Packer, Unpacked, Unpacker};
use super::receiver::{Decoder, Repair};
use super::sender::{Coder, FLUSH_US, Scheme, scheme};
use crate::frame::{Frame, next_frame, open_sequenced, sequenced_head, write_sequenced};
use crate::tables::doubt::Doubt;

const MS: u64 = 1_000;
const PTIME: u64 = 20 * MS;
const PLAYOUT: u64 = 60 * MS;

/// Outer IPv4 and UDP, DTLS header, explicit nonce and tag: what every datagram costs besides its frames.
const OUTER: usize = 28 + 13 + 8 + 16;

/// Plain bytes of a datagram, as `DatagramLink::room` has it.
const ROOM: usize = 1400 - 37;

/// xorshift64*.
#[derive(Clone)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn chance(&mut self, p: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= p
    }
}

/// Which datagrams are lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Each by itself with this probability.
    Random(f64),
    /// Runs of exactly so many, one in a hundred datagrams begins one.
    Runs(u32),
    /// Gilbert's two states: probability to enter the bad one and to leave it; in it all is lost.
    Bursts(f64, f64),
}

struct Lossy {
    loss: Loss,
    dice: Dice,
    bad: u32,
    spared: u32,
}

impl Lossy {
    fn new(loss: Loss, seed: u64) -> Self {
        Self { loss, dice: Dice(seed | 1), bad: 0, spared: 0 }
    }

    fn loses(&mut self) -> bool {
        match self.loss {
            Loss::Random(p) => self.dice.chance(p),
            Loss::Runs(length) => {
                if self.bad == 0 && self.spared == 0 && self.dice.chance(0.02) {
                    // Enough between two runs that each is seen by itself.
                    (self.bad, self.spared) = (length, 20);
                }
                let loses = self.bad > 0;
                (self.bad, self.spared) = match loses {
                    true => (self.bad - 1, self.spared),
                    false => (0, self.spared.saturating_sub(1)),
                };
                loses
            }
            Loss::Bursts(enter, leave) => {
                let flip = self.dice.chance(if self.bad > 0 { leave } else { enter });
                self.bad = u32::from((self.bad > 0) != flip);
                self.bad > 0
            }
        }
    }
}

/// What came of one call.
#[derive(Debug, Default)]
struct Outcome {
    sent: usize,
    in_time: usize,
    never: usize,
    bytes: usize,
    plain_bytes: usize,
}

impl Outcome {
    fn in_time_percent(&self) -> f64 {
        100.0 * self.in_time as f64 / self.sent as f64
    }

    fn overhead(&self) -> f64 {
        self.bytes as f64 / self.plain_bytes as f64
    }
}

/// A receiver as `crate::coded` makes one of the same parts.
#[derive(Default)]
struct Receiver {
    doubt: Doubt,
    decoder: Decoder,
    /// When each (flow, payload) was delivered.
    delivered: HashMap<Vec<u8>, u64>,
}

impl Receiver {
    fn datagram(&mut self, mut data: Vec<u8>, now: u64) {
        let (mut rest, mut anchor) = (data.as_mut_slice(), None);
        loop {
            match next_frame(rest) {
                Ok(Frame::Sequenced(length)) => {
                    let (frame, behind) = rest.split_at_mut(length);
                    let (number, inner) = open_sequenced(frame).unwrap();
                    let parts = Head::split(inner).unwrap();
                    anchor = Some((number, parts.head));
                    if self.doubt.first_of(number) {
                        self.decoder.note(&parts.head, number, parts.payload, now);
                        self.deliver(inner.to_vec(), now);
                    }
                    rest = behind;
                }
                Ok(Frame::Recovery(length)) => {
                    let (frame, behind) = rest.split_at_mut(length);
                    self.recover(anchor.unwrap(), Recovery::parse(frame).unwrap().unwrap().0, now);
                    rest = behind;
                }
                other => return assert_eq!((other, rest.len()), (Ok(Frame::Incomplete), 0)),
            }
        }
    }

    fn recover(&mut self, (base, head): (u32, Head), recovery: Recovery<'_>, now: u64) {
        let mut payload = recovery.body.to_vec();
        let repair = match recovery.ages() {
            [age] => Repair::Frame(base.wrapping_sub(u32::from(*age))),
            _ => self.decoder.repair(&head, base, &recovery, &mut payload),
        };
        assert_ne!(repair, Repair::Contradiction);
        if let Repair::Frame(number) = repair
            && self.doubt.first_of(number)
        {
            self.decoder.note(&head, number, &payload, now);
            let mut packet = Vec::new();
            assert!(head.write(number as u16, &payload, &mut packet));
            self.deliver(packet, now);
        }
    }

    fn deliver(&mut self, packet: Vec<u8>, now: u64) {
        assert!(self.delivered.insert(packet, now).is_none(), "a frame was delivered twice");
    }
}

/// A datagram under way: when it arrives, and a number that keeps ties in order.
type UnderWay = (u64, u64, Vec<u8>);

/// The network between both: loss, delays that reorder, duplicates.
struct Network {
    lossy: Lossy,
    jitter_us: u64,
    duplicates: f64,
    under_way: Vec<UnderWay>,
    sent: u64,
}

impl Network {
    fn new(loss: Loss, seed: u64) -> Self {
        Self { lossy: Lossy::new(loss, seed), jitter_us: 0, duplicates: 0.0, under_way: Vec::new(), sent: 0 }
    }

    fn send(&mut self, data: Vec<u8>, now: u64) {
        if self.lossy.loses() {
            return;
        }
        let copies = 1 + usize::from(self.lossy.dice.chance(self.duplicates));
        for _ in 0..copies {
            self.sent += 1;
            let late = if self.jitter_us > 0 { self.lossy.dice.next() % self.jitter_us } else { 0 };
            self.under_way.push((now + late, self.sent, data.clone()));
        }
    }

    fn arrived(&mut self, now: u64) -> Vec<UnderWay> {
        let (mut here, still): (Vec<_>, Vec<_>) = self.under_way.drain(..).partition(|d| d.0 <= now);
        self.under_way = still;
        here.sort();
        here
    }
}

fn payload_of(dice: &mut Dice, index: usize, size: usize) -> Vec<u8> {
    // The index makes each payload the only one of its kind.
    let mut payload = (index as u32).to_be_bytes().to_vec();
    payload.extend((4..size).map(|_| dice.next() as u8));
    payload
}

/// `frames` packets of one flow, a packet time apart, and then silence.
fn call(coding: Option<Scheme>, mut network: Network, frames: usize, sizes: &[usize]) -> Outcome {
    let (mut coder, mut receiver, mut outcome) = (Coder::default(), Receiver::default(), Outcome::default());
    let (mut dice, mut due) = (Dice(0x5eed), HashMap::new());
    let end = frames as u64 * PTIME + 300 * MS;
    for now in (0..end).step_by(FLUSH_US as usize) {
        let index = (now / PTIME) as usize;
        if now % PTIME == 0 && index < frames {
            let size = sizes[index % sizes.len()];
            let packet = packet(false, 5004, &payload_of(&mut dice, index, size));
            let parts = Head::split(&packet).unwrap();
            let mut frame = Vec::new();
            write_sequenced(index as u32, &packet, &mut frame);
            if let Some(scheme) = coding {
                coder.add(scheme, (&parts.head, index as u32, parts.payload), now, ROOM, &mut frame);
            }
            assert!(frame.len() <= ROOM);
            outcome.sent += 1;
            outcome.plain_bytes += OUTER + packet.len();
            outcome.bytes += OUTER + frame.len();
            network.send(frame, now);
            due.insert(packet, now + PLAYOUT);
        }
        if let Some(scheme) = coding {
            coder.flush(scheme, now, |head, frames| {
                let mut frame = Vec::new();
                for (number, payload) in frames {
                    sequenced_head(*number, &mut frame);
                    assert!(head.write(*number as u16, payload, &mut frame));
                }
                outcome.bytes += OUTER + frame.len();
                network.send(frame, now);
            });
        }
        for (at, _, data) in network.arrived(now) {
            receiver.datagram(data, at);
        }
    }
    for (packet, at) in &receiver.delivered {
        let due = due.remove(packet).expect("what is delivered is what was sent, byte for byte");
        outcome.in_time += usize::from(*at <= due);
    }
    outcome.never = due.len();
    outcome
}

fn kept(factor: u8, parity: bool) -> Option<Scheme> {
    scheme(factor, parity)
}

#[test]
fn five_percent_of_random_loss_costs_less_than_half_a_percent_of_the_frames() {
    for seed in 1..=2 {
        let bare = call(None, Network::new(Loss::Random(0.05), seed), 8_000, &[172]);
        assert!((93.5..96.5).contains(&bare.in_time_percent()), "{bare:?}");
        let once = call(kept(1, false), Network::new(Loss::Random(0.05), seed), 8_000, &[172]);
        assert!(once.in_time_percent() >= 99.5 && once.overhead() <= 2.0, "{once:?}");
        let parity = call(kept(1, true), Network::new(Loss::Random(0.05), seed), 8_000, &[172]);
        assert!(parity.in_time_percent() >= 99.9 && parity.overhead() <= 2.0, "{parity:?}");
    }
}

#[test]
fn bursts_of_two_are_survived_at_factor_two_and_of_three_by_fec() {
    for (length, coding) in [(1, kept(1, false)), (2, kept(2, false)), (3, kept(2, true))] {
        for seed in 1..=2 {
            let outcome = call(coding, Network::new(Loss::Runs(length), seed), 3_000, &[172]);
            // The very last frame has nothing but the flush behind it, which is a little later than a packet.
            assert!(outcome.in_time + 1 >= outcome.sent, "runs of {length}: {outcome:?}");
            assert_eq!(outcome.never, 0, "runs of {length}: {outcome:?}");
        }
    }
    let outcome = call(kept(1, false), Network::new(Loss::Runs(2), 1), 3_000, &[172]);
    assert!(outcome.never > 0, "the network of this test does lose");
}

#[test]
fn the_last_word_is_not_lost() {
    for (factor, parity) in [(1, false), (2, false), (1, true), (2, true)] {
        // Spurts of one, two, three ... packets of which the network takes the last.
        for length in 1..=6u32 {
            let coding = kept(factor, parity);
            let (mut coder, mut got) = (Coder::default(), Vec::new());
            for index in 0..length {
                let packet = packet(false, 5004, &[index as u8; 33]);
                let parts = Head::split(&packet).unwrap();
                let at = (&parts.head, index, parts.payload);
                coder.add(coding.unwrap(), at, u64::from(index) * PTIME, ROOM, &mut Vec::new());
            }
            let last = u64::from(length - 1) * PTIME;
            for now in (last..last + 10 * PTIME).step_by(FLUSH_US as usize) {
                coder.flush(coding.unwrap(), now, |_, frames| {
                    for (number, payload) in frames {
                        assert_eq!(*payload, [*number as u8; 33]);
                        got.push((*number, now - last));
                    }
                });
            }
            assert_eq!(got.first().map(|g| g.0), Some(length - 1));
            assert!(got.iter().all(|(_, late)| *late <= 80 * MS), "{got:?}");
            let copies = got.iter().filter(|g| g.0 == length - 1).count();
            assert!((1..=3).contains(&copies), "{factor} {parity}: {got:?}");
        }
    }
}

#[test]
fn nothing_comes_twice_or_damaged_whatever_the_network_does() {
    for seed in 1..=40u64 {
        let mut dice = Dice(seed * 77);
        let loss = match seed % 3 {
            0 => Loss::Random(0.3),
            1 => Loss::Bursts(0.05, 0.3),
            _ => Loss::Runs(1 + (seed % 5) as u32),
        };
        let mut network = Network::new(loss, seed);
        network.jitter_us = dice.next() % (120 * MS);
        network.duplicates = 0.2;
        let sizes: Vec<usize> = (0..7).map(|_| 4 + dice.next() as usize % 700).collect();
        let coding = kept(1 + (seed % 2) as u8, seed % 4 < 2);
        let bare = call(None, Network::new(loss, seed), 1_000, &sizes);
        let outcome = call(coding, network, 1_000, &sizes);
        assert!(outcome.never < bare.never, "{outcome:?}");
    }
}

#[test]
fn flows_do_not_mix() {
    let coding = kept(1, true).unwrap();
    let (mut coder, mut receiver) = (Coder::default(), Receiver::default());
    let mut lossy = Lossy::new(Loss::Random(0.1), 9);
    let mut number = 0;
    for round in 0..500u32 {
        for port in 0..20u16 {
            let payload = [round.to_be_bytes().as_slice(), &port.to_be_bytes()].concat();
            let packet = packet(port < 10, 6_000 + port, &payload);
            let parts = Head::split(&packet).unwrap();
            let mut frame = Vec::new();
            write_sequenced(number, &packet, &mut frame);
            let at = (&parts.head, number, parts.payload);
            coder.add(coding, at, u64::from(round) * PTIME, ROOM, &mut frame);
            number += 1;
            if !lossy.loses() {
                receiver.datagram(frame, 0);
            }
        }
    }
    let whole = receiver.delivered.keys().filter(|packet| {
        let parts = Head::split(packet).unwrap();
        let payload: [u8; 6] = parts.payload.try_into().unwrap();
        let port = u16::from_be_bytes([payload[4], payload[5]]);
        parts.head.intact(packet)
            && parts.head == Head::split(&self::packet(port < 10, 6_000 + port, &payload)).unwrap().head
    });
    assert_eq!(whole.count(), receiver.delivered.len());
    assert!(receiver.delivered.len() >= 9_950, "{}", receiver.delivered.len());
}

#[test]
fn a_datagram_is_never_longer_than_its_room() {
    let coding = kept(2, false).unwrap();
    for size in [100, 400, 440, 441, 620, 639, 640, 641, 700] {
        let mut coder = Coder::default();
        let (mut longest, mut made) = (0, 0);
        for index in 0..5u32 {
            let packet = packet(true, 5004, &vec![1; size]);
            let parts = Head::split(&packet).unwrap();
            let mut frame = Vec::new();
            write_sequenced(index, &packet, &mut frame);
            let done = coder.add(coding, (&parts.head, index, parts.payload), 0, ROOM, &mut frame);
            made += done.copies;
            longest = longest.max(frame.len());
        }
        assert!(longest <= ROOM);
        let expected = if size <= 430 { 7 } else { if size <= 640 { 4 } else { 0 } };
        assert_eq!(made, expected, "{size}");
    }
}

/// An ideal block code (Reed-Solomon): groups of `k` frames, `m` parities that ride on the datagrams after the group.
/// A frame that was lost is there as soon as any `k` of its group have come.
fn ideal_block(k: usize, m: usize, loss: Loss, seed: u64, frames: usize) -> Outcome {
    let mut lossy = Lossy::new(loss, seed);
    let lost: Vec<bool> = (0..frames + k + m).map(|_| lossy.loses()).collect();
    let mut outcome = Outcome { sent: frames, plain_bytes: frames * (OUTER + 200), ..Outcome::default() };
    outcome.bytes = frames * (OUTER + 206) + frames / k * m * (172 + 6);
    for (index, gone) in lost.iter().take(frames).enumerate() {
        let group = index / k * k;
        let arrivals = (group..group + k + m).filter(|slot| !lost[*slot]).take(k).collect::<Vec<_>>();
        let there = arrivals.get(k - 1).map(|slot| (slot.max(&index) - index) as u64 * PTIME);
        outcome.in_time += usize::from(!gone || there.is_some_and(|late| late <= PLAYOUT));
    }
    outcome
}

#[test]
fn comparison() {
    const FRAMES: usize = if cfg!(debug_assertions) { 1_500 } else { 100_000 };
    let losses = [
        ("1 % random", Loss::Random(0.01)),
        ("5 % random", Loss::Random(0.05)),
        ("10 % random", Loss::Random(0.10)),
        ("runs of 2", Loss::Runs(2)),
        ("runs of 3", Loss::Runs(3)),
        ("bursts, 5 %, mean 2", Loss::Bursts(0.0263, 0.5)),
    ];
    let schemes: [(&str, Option<Scheme>); 8] = [
        ("none", None),
        ("factor 1: copy of the one before", scheme(1, false)),
        ("factor 2: copies of the two before", scheme(2, false)),
        ("FEC 1: 1 xor 3 before", scheme(1, true)),
        ("FEC 2: copies of 1 and 3 before", scheme(2, true)),
        ("not kept: copy of the third before", Some(Scheme { sets: &[0b100] })),
        ("not kept: 1 xor 2 before", Some(Scheme { sets: &[0b011] })),
        ("not kept: 1 xor 2, and 3 before", Some(Scheme { sets: &[0b011, 0b100] })),
    ];
    println!(
        "| in time, % ({FRAMES} G.711 frames each) | bytes |{}",
        losses.map(|l| format!(" {} |", l.0)).concat()
    );
    println!("|---|---:|{}", "---:|".repeat(losses.len()));
    let row = |name: &str, run: &dyn Fn(Loss) -> Outcome| {
        let outcomes = losses.map(|(_, loss)| run(loss));
        let cells = outcomes.iter().map(|o| format!(" {:.2} |", o.in_time_percent())).collect::<String>();
        println!("| {name} | {:.2} |{cells}", outcomes[0].overhead());
        outcomes.map(|o| o.in_time_percent())
    };
    let kept =
        schemes.map(|(name, coding)| row(name, &|loss| call(coding, Network::new(loss, 11), FRAMES, &[172])));
    for (k, m) in [(1, 1), (2, 1), (2, 2), (3, 3), (4, 2)] {
        row(&format!("not kept: ideal block code {k}+{m}"), &|loss| ideal_block(k, m, loss, 11, FRAMES));
    }
    // What is kept pays: parity is better than copies for the same bytes.
    assert!(kept[3][2] > kept[1][2] && kept[4][4] > kept[2][4]);
}

/// What others put around an inner packet in a datagram: outer IPv4 and UDP, then what their protocols say.
const OTHERS: [(&str, usize); 2] = [
    // DTLS 1.2 with AES-GCM, and the octet of the CSTP type.
    ("ocserv, DTLS", OUTER + 1),
    // P_DATA_V2: opcode and peer id 4, packet id 4, tag 16.
    ("OpenVPN, UDP, AES-GCM", 28 + 24),
];

/// Outer IPv4 and TCP with time stamps; header, content type and tag of a TLS 1.3 record.
const STREAM: usize = 20 + 32 + 5 + 1 + 16;

/// Bytes of one packet in the middle of a call, as our own code makes it.
fn on_the_wire(v6: bool, payload: usize, compressed: bool, coding: Option<Scheme>) -> usize {
    let (mut packer, mut unpacker, mut coder) = (Packer::default(), Unpacker::default(), Coder::default());
    let mut frame = Vec::new();
    for index in 0..10u8 {
        let packet = packet(v6, 5004, &vec![index; payload]);
        let mut inner = Vec::new();
        if !compressed || matches!(packer.pack(&packet, u64::from(index) * PTIME, &mut inner), Packed::Plain)
        {
            inner.clone_from(&packet);
        } else if let Unpacked::Packet(Some(word)) = unpacker.unpack(&inner, 0, &mut Vec::new()) {
            packer.heard(&word);
        }
        frame.clear();
        let Some(scheme) = coding else {
            frame = inner;
            continue;
        };
        sequenced_head(u32::from(index), &mut frame);
        frame.extend_from_slice(&inner);
        let parts = Head::split(&packet).unwrap();
        coder.add(scheme, (&parts.head, u32::from(index), parts.payload), 0, ROOM, &mut frame);
    }
    frame.len()
}

#[test]
fn bytes_on_the_wire() {
    // An RTP header and the frame: 20 ms of G.711, and of AMR at 12.2 kbit/s with its octets of RFC 4867.
    let sizes = [(false, 12 + 160), (true, 12 + 160), (false, 12 + 33), (true, 12 + 33)];
    let row = |name: &str, of: &dyn Fn(bool, usize) -> usize| {
        let cells = sizes.map(|(v6, payload)| of(v6, payload));
        println!("| {name} |{}", cells.map(|bytes| format!(" {bytes} |")).concat());
        cells
    };
    println!(
        "| bytes on the wire, one way | G.711, inner IPv4 | inner IPv6 | AMR 12.2, inner IPv4 | inner IPv6 |"
    );
    println!("|---|---:|---:|---:|---:|");
    row("the packet itself", &|v6, payload| on_the_wire(v6, payload, false, None));
    for (name, around) in OTHERS {
        row(name, &|v6, payload| around + on_the_wire(v6, payload, false, None));
    }
    let ddt = |compressed, coding| move |v6, payload| OUTER + on_the_wire(v6, payload, compressed, coding);
    let plain = row("OpenTSM, DDT", &ddt(false, None));
    let compressed = row("DDT, headers compressed", &ddt(true, None));
    let once = row("DDT, factor 1", &ddt(false, scheme(1, false)));
    let both = row("DDT, factor 1, headers compressed", &ddt(true, scheme(1, false)));
    let fec = row("DDT, FEC 1, headers compressed", &ddt(true, scheme(1, true)));
    let twice = row("DDT, factor 2, headers compressed", &ddt(true, scheme(2, false)));
    row("OpenTSM, stream", &|v6, payload| STREAM + on_the_wire(v6, payload, false, None));
    row("stream, headers compressed", &|v6, payload| STREAM + on_the_wire(v6, payload, true, None));
    for index in 0..sizes.len() {
        let saved = if sizes[index].0 { 44 } else { 24 };
        assert_eq!(compressed[index] + saved, plain[index]);
        assert_eq!(both[index] + saved, once[index]);
        assert!(once[index] <= 2 * plain[index] && fec[index] <= 2 * plain[index]);
        assert!(twice[index] <= 3 * plain[index]);
    }
}
