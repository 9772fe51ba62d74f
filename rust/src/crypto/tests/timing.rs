//! What a record costs: `cargo test --release -- --ignored --nocapture timing`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::super::aead::Aead;
use super::super::{DatagramOpener, DatagramSealer, ReplayWindow, StreamOpener, StreamSealer};
use super::records::{ALGORITHMS, sealer_and_opener};

const ROUNDS: u32 = 200_000;
const PLAIN: usize = 200;

/// The least time of several batches, for one call.
fn best(mut call: impl FnMut()) -> Duration {
    (0..7)
        .map(|_| {
            let start = Instant::now();
            (0..ROUNDS / 10).for_each(|_| call());
            start.elapsed() / (ROUNDS / 10)
        })
        .min()
        .unwrap()
}

#[test]
#[ignore = "prints times; run it by hand in release mode"]
fn timing_of_datagram_records() {
    println!(
        "bytes: Aead {}, DatagramSealer {}, DatagramOpener {}, ReplayWindow {}, StreamSealer {}, StreamOpener {}",
        size_of::<Aead>(),
        size_of::<DatagramSealer>(),
        size_of::<DatagramOpener>(),
        size_of::<ReplayWindow>(),
        size_of::<StreamSealer>(),
        size_of::<StreamOpener>()
    );
    for algorithm in ALGORITHMS {
        let (sealer, mut opener) = sealer_and_opener(algorithm);
        let mut buf = vec![0; PLAIN + sealer.overhead()];
        let seal = best(|| {
            black_box(sealer.seal_in_place(black_box(&mut buf), PLAIN).unwrap());
        });
        let mut records: Vec<Vec<u8>> = (0..ROUNDS)
            .map(|_| {
                sealer.seal_in_place(&mut buf, PLAIN).unwrap();
                buf.clone()
            })
            .collect();
        let mut next = records.iter_mut();
        let open = best(|| {
            black_box(opener.open_in_place(next.next().unwrap()).is_ok());
        });
        println!("{:20} seal {seal:?}, open {open:?} for {PLAIN} bytes", algorithm.name());
    }
}
