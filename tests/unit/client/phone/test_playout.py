from __future__ import annotations

from array import array
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.playout import Concealer, Kind, PlayoutBuffer, PlayoutCounts, parse_playout

FRAME = 160
DELAY = 0.060


def tone(number: int) -> array[int]:
    """20 ms that are loud (so the buffer leaves its moment where it is) and tell which packet they are."""
    return array("h", [1000 + number % 20000] * FRAME)


def played(
    arrivals: Iterable[tuple[float, int]], delay: float | None = DELAY, end: float = 10.0, step: float = 0.0
) -> PlayoutBuffer:
    """Packets (arrival, number) through a buffer; with ``step`` the clock is looked at in between, too."""
    buffer = PlayoutBuffer(delay)
    clock = 0.0
    for arrival, number in sorted(arrivals):
        while step and clock < arrival:
            buffer.advance(clock)
            clock += step
        buffer.put(arrival, number, number * FRAME, tone(number))
    buffer.advance(end)
    return buffer


def heard(buffer: PlayoutBuffer) -> list[int]:
    """Which packet was heard in each slot; 0: none (concealed)."""
    return [frame.samples[0] - 1000 if frame.kind is Kind.PLAYED else 0 for frame in buffer.take()]


def test_a_steady_stream_is_heard_as_it_is() -> None:
    buffer = played([(n * 0.02, n) for n in range(1, 51)], end=1.2)
    assert heard(buffer)[:100] == [n for n in range(1, 51) for _ in (0, 1)]
    assert buffer.counts == PlayoutCounts(played=100)


def oracle(arrivals: dict[int, float], sent: int) -> tuple[int, int, int]:
    """(played, late, lost) slots, by looking at every half packet alone. The first packet sets the clock."""
    first = arrivals[0]
    counts = {"played": 0, "late": 0, "lost": 0}
    last = max(arrivals)
    for number in range(sent):
        for half in (0, 1):
            moment = first + DELAY + number * 0.02 + half * 0.01
            arrival = arrivals.get(number)
            if arrival is None:
                counts["lost"] += number < last  # nobody knows of packets after the last one that came
            else:
                counts["played" if arrival < moment - 1e-9 else "late"] += 1
    return counts["played"], counts["late"], counts["lost"]


# The first packet is as quick as any, and something quick comes often: then the moment stays where it is.
delays = st.lists(
    st.none() | st.just(0.0) | st.integers(0, 200).map(lambda n: n / 1000 + 0.0004), min_size=1, max_size=120
)


@given(delays, st.sampled_from([0.0, 0.007, 0.05]))
def test_late_and_lost_agree_with_a_slow_count(delays: list[float | None], step: float) -> None:
    """The same whenever the clock is looked at: a busy event loop makes no difference."""
    known = [0.0, *(0.0 if n % 25 == 0 else d for n, d in enumerate(delays))]
    arrivals = {n: n * 0.02 + d for n, d in enumerate(known) if d is not None}
    buffer = played([(at, n) for n, at in arrivals.items()], step=step)
    counts = buffer.counts
    assert (counts.played, counts.late, counts.lost) == oracle(arrivals, len(known))
    assert (counts.skipped, counts.inserted, counts.restarts) == (0, 0, 0)


@given(
    st.lists(st.none() | st.integers(0, 600).map(lambda n: n / 1000), max_size=200),
    st.sampled_from([None, 0.0, 0.02, 0.06, 0.2]),
    st.booleans(),
)
def test_every_slot_is_accounted_for_once(
    delays: list[float | None], delay: float | None, quiet: bool
) -> None:
    """Whatever comes when, fixed or adaptive, loud or silent: nothing is counted twice or forgotten."""
    buffer = PlayoutBuffer(delay)
    known = [(n * 0.02 + d, n) for n, d in enumerate([0.0, *delays]) if d is not None]
    for arrival, number in sorted(known):
        buffer.put(arrival, number, number * FRAME, array("h", bytes(2 * FRAME)) if quiet else tone(number))
    buffer.advance(10.0)
    counts = buffer.counts
    assert counts.expected + counts.unsent == 2 * (max(number for _, number in known) + 1)
    assert counts.played + counts.late + counts.skipped == 2 * len(known)
    frames = buffer.take()
    assert sum(frame.kind is Kind.PLAYED for frame in frames) == counts.played
    assert sum(frame.kind is Kind.INSERTED for frame in frames) == counts.inserted


def test_reordered_packets_are_heard_in_order() -> None:
    buffer = played([(0.0, 1), (0.03, 3), (0.04, 2), (0.06, 4)], end=0.135)
    assert heard(buffer) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_duplicate_is_counted_and_heard_once() -> None:
    buffer = played([(0.0, 1), (0.01, 1), (0.02, 2), (0.5, 2)], end=0.1)
    assert (buffer.counts.played, buffer.counts.duplicates, buffer.counts.late) == (4, 4, 0)


def test_silence_of_the_sender_is_no_loss() -> None:
    """A gap in time stamps without one in sequence numbers: nothing was sent (RFC 3550 section 5.1)."""
    buffer = PlayoutBuffer(DELAY)
    buffer.put(0.0, 1, 0, tone(1))
    buffer.put(1.0, 2, 50 * FRAME, tone(2))
    buffer.advance(2.0)
    assert (buffer.counts.played, buffer.counts.lost, buffer.counts.unsent) == (4, 0, 98)


def test_event_packets_between_two_words_are_no_loss_either() -> None:
    buffer = PlayoutBuffer(DELAY)
    buffer.put(0.0, 1, 0, tone(1))
    for number in range(2, 12):
        buffer.pass_over(0.02 * number, number)
    buffer.put(0.24, 12, 11 * FRAME, tone(2))
    buffer.advance(2.0)
    assert (buffer.counts.lost, buffer.counts.unsent) == (0, 20)


def test_gaps_are_concealed_by_repetition_that_fades() -> None:
    buffer = played([(0.0, 1), (0.02, 2), (0.22, 11)], end=0.3)
    samples = [frame.samples[0] for frame in buffer.take()]
    gap = samples[4:20]
    assert gap[0] == int(0.9 * 1002)
    assert gap[:6] == sorted(gap[:6], reverse=True)
    assert gap[6:] == [0] * 10
    assert samples[20] == 1011


def test_a_concealer_that_has_heard_nothing_is_silent() -> None:
    assert not any(Concealer().conceal())


def test_a_slower_path_moves_the_moment_once_and_loses_no_more() -> None:
    """In mid-call everything takes 150 ms longer. Within two seconds the buffer has followed."""
    arrivals = [(n * 0.02 + (0.15 if n >= 100 else 0.0), n) for n in range(400)]
    buffer = played(arrivals, end=9.0)
    late_slots = buffer.counts.late
    assert 0 < late_slots <= 2 * 115
    assert buffer.counts.inserted >= 7
    assert buffer.delay == pytest.approx(DELAY, abs=0.021)


def test_a_quicker_path_shortens_the_delay_in_silence_only() -> None:
    def through(sound: array[int]) -> PlayoutBuffer:
        buffer = PlayoutBuffer(DELAY)
        for n in range(300):
            buffer.put(n * 0.02 + (0.1 if n < 100 else 0.0), n, n * FRAME, sound)
        buffer.advance(7.0)
        return buffer

    silent, loud = through(array("h", bytes(2 * FRAME))), through(tone(0))
    assert silent.counts.skipped >= 8
    assert silent.delay == pytest.approx(DELAY, abs=0.021)
    assert loud.counts.skipped == 0
    assert (silent.counts.late, loud.counts.late) == (0, 0)


def test_adaptive_takes_the_delay_that_the_network_needs() -> None:
    def delay_with(jitter: float) -> float:
        buffer = PlayoutBuffer(None)
        for n in range(600):
            at = n * 0.02 + jitter * (n * 7 % 10) / 10
            buffer.put(at, n, n * FRAME, array("h", bytes(2 * FRAME)))
        return buffer.delay

    assert delay_with(0.0) == pytest.approx(0.02, abs=0.021)
    assert delay_with(0.2) == pytest.approx(0.19, abs=0.03)


def test_a_stream_that_begins_anew_is_heard() -> None:
    buffer = PlayoutBuffer(DELAY)
    for n in range(10):
        buffer.put(n * 0.02, n, n * FRAME, tone(n))
    for n in range(10):
        buffer.put(0.2 + n * 0.02, 5000 + n, 3_000_000_000 + n * FRAME, tone(100 + n))
    buffer.advance(3.0)
    assert buffer.counts.restarts == 1
    assert buffer.counts.played == 40
    assert buffer.counts.lost == 0


@pytest.mark.parametrize("first", [0, 0xFFFF_FFFF - 1000])
def test_time_stamps_go_on_across_the_wrap(first: int) -> None:
    buffer = PlayoutBuffer(DELAY)
    for n in range(50):
        buffer.put(n * 0.02, n, (first + n * FRAME) % (1 << 32), tone(n))
    buffer.advance(2.0)
    assert buffer.counts == PlayoutCounts(played=100)


@pytest.mark.parametrize("size", [80, 240, 480])
def test_other_packet_times_are_heard_too(size: int) -> None:
    buffer = PlayoutBuffer(DELAY)
    for n in range(20):
        buffer.put(n * size / 8000, n, n * size, array("h", [5000] * size))
    buffer.advance(5.0)
    assert buffer.counts == PlayoutCounts(played=20 * size // 80)


def test_odd_lengths_are_counted_and_left_out() -> None:
    buffer = PlayoutBuffer(DELAY)
    assert not buffer.put(0.0, 1, 0, array("h", [1] * 81))
    assert not buffer.put(0.0, 2, 0, array("h"))
    buffer.advance(1.0)
    assert (buffer.counts.odd, buffer.take()) == (2, [])


def test_many_gaps_take_no_memory() -> None:
    """One packet in ten comes, for a quarter of an hour: memory is bounded, what is counted is not."""
    buffer = PlayoutBuffer(DELAY)
    for n in range(0, 40_000, 10):
        buffer.put(n * 0.02, n, n * FRAME, tone(n))
        buffer.take()
    assert buffer.counts.played + buffer.counts.lost == pytest.approx(80_000, abs=40)
    assert len(buffer._missing) <= 3000


@pytest.mark.parametrize(
    ("text", "seconds"), [("60ms", 0.06), ("60", 0.06), ("0.2s", 0.2), (" Adaptive ", None), ("0", 0.0)]
)
def test_settings(text: str, seconds: float | None) -> None:
    assert parse_playout(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "-1ms", "3s", "nan"])
def test_settings_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"between|convert"):
        parse_playout(text)
