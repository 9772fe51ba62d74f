use super::super::replay::{Arrival, ReplayWindow, WINDOW};
use super::support::Prng;

#[test]
fn in_order_nothing_is_lost() {
    let mut window = ReplayWindow::new(100);
    for number in 100..5_000 {
        assert_eq!(window.mark(number), Arrival::Fresh);
    }
    let counters = window.counters();
    assert_eq!((counters.received, counters.lost, counters.reordered), (4_900, 0, 0));
}

#[test]
fn each_number_once() {
    let mut window = ReplayWindow::new(0);
    assert_eq!(window.mark(7), Arrival::Fresh);
    assert_eq!(window.mark(7), Arrival::Duplicate);
    assert_eq!(window.check(7), Arrival::Duplicate);
    assert_eq!(window.counters().duplicates, 2);
    assert_eq!(window.check(6), Arrival::Fresh);
}

#[test]
fn reordering_within_the_window_is_accepted_and_counted() {
    let mut window = ReplayWindow::new(0);
    assert_eq!(window.mark(WINDOW - 1), Arrival::Fresh);
    assert_eq!(window.mark(0), Arrival::Fresh);
    assert_eq!(window.counters().reordered, 1);
    assert_eq!(window.mark(0), Arrival::Duplicate);
}

#[test]
fn before_the_window_is_too_old() {
    let mut window = ReplayWindow::new(0);
    window.mark(WINDOW);
    assert_eq!(window.check(0), Arrival::TooOld);
    assert_eq!(window.check(1), Arrival::Fresh);
    assert_eq!(window.counters().too_old, 1);
}

#[test]
fn a_gap_is_lost_once_it_slides_out() {
    let mut window = ReplayWindow::new(0);
    for number in (0..200).filter(|number| !(10..15).contains(number)) {
        window.mark(number);
    }
    assert_eq!(window.counters().lost, 0, "they may still come");
    assert_eq!(window.counters().missing, 5);
    window.mark(12);
    assert_eq!(window.counters().missing, 4);
    for number in 200..2_000 {
        window.mark(number);
    }
    assert_eq!(window.counters().lost, 4);
}

#[test]
fn a_jump_counts_all_that_it_passes() {
    let mut window = ReplayWindow::new(1 << 20);
    window.mark(1 << 20);
    window.mark((1 << 20) + 1_000_000);
    for number in 0..2 * WINDOW {
        window.mark((1 << 20) + 1_000_001 + number);
    }
    assert_eq!(window.counters().lost, 999_999);
}

#[test]
fn numbers_before_the_first_are_no_loss() {
    let mut window = ReplayWindow::new(1 << 20);
    window.mark(3);
    window.mark(1 << 20);
    for number in 1..2 * WINDOW {
        window.mark((1 << 20) + number);
    }
    assert_eq!(window.counters().lost, 0);
}

#[test]
fn the_highest_numbers_do_not_overflow() {
    let mut window = ReplayWindow::new(0);
    let last = (1 << 48) - 1;
    assert_eq!(window.mark(last), Arrival::Fresh);
    assert_eq!(window.mark(last), Arrival::Duplicate);
    assert_eq!(window.mark(last - 5), Arrival::Fresh);
}

/// Against a plain model that keeps every number.
#[test]
fn it_agrees_with_a_model() {
    let mut prng = Prng(42);
    let mut window = ReplayWindow::new(0);
    let mut seen = std::collections::BTreeSet::new();
    let mut highest = 0_u64;
    for _ in 0..200_000 {
        let number = match prng.below(100) {
            0 => highest + prng.below(5_000) as u64,
            1..=20 => highest.saturating_sub(prng.below(1_500) as u64),
            _ => highest + prng.below(4) as u64,
        };
        let expected = if seen.contains(&number) && number + WINDOW > highest {
            Arrival::Duplicate
        } else if number + WINDOW <= highest {
            Arrival::TooOld
        } else {
            Arrival::Fresh
        };
        assert_eq!(window.mark(number), expected, "number {number}, highest {highest}");
        if expected == Arrival::Fresh {
            seen.insert(number);
            highest = highest.max(number);
        }
    }
    // Push all out: what never came is lost, exactly.
    let end = (highest / 64 + 40) * 64;
    for number in highest + 1..=end {
        window.mark(number);
    }
    let missing = highest + 1 - seen.len() as u64;
    assert_eq!(window.counters().lost, missing);
}
