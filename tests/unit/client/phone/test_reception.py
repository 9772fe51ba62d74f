from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.phone.reception import Reception
from opentsm.client.phone.rtcp import SenderInfo
from opentsm.client.phone.rtp import RtpPacket


def packet(sequence: int, timestamp: int | None = None) -> RtpPacket:
    return RtpPacket(0, sequence % 65536, (sequence * 160 if timestamp is None else timestamp) % (1 << 32), 5)


def fed(sequences: list[int], spacing: float = 0.02) -> Reception:
    reception = Reception(packet(sequences[0]), 0.0)
    for number, sequence in enumerate(sequences[1:], 1):
        reception.add(packet(sequence), number * spacing)
    return reception


def test_loss_is_expected_minus_received() -> None:
    reception = fed([10, 11, 13, 14, 12, 17])
    assert (reception.expected, reception.received, reception.lost, reception.reordered) == (8, 6, 2, 1)


def test_duplicates_make_loss_negative_as_the_rfc_wants() -> None:
    assert fed([1, 2, 2, 2, 3]).lost == -2


def test_numbers_go_on_across_the_wrap() -> None:
    reception = fed([65533, 65534, 65535, 65536, 65538])
    assert (reception.expected, reception.lost, reception.highest) == (6, 1, 65538)


@given(st.sets(st.integers(0, 300), max_size=60))
def test_loss_is_counted_exactly_whatever_is_missing(missing: set[int]) -> None:
    kept = [0, *(n for n in range(1, 400) if n not in missing), 400]
    reception = fed([65000 + n for n in kept])
    assert reception.lost == len(missing - {0})
    assert reception.expected == 401


def test_the_fraction_counts_from_report_to_report() -> None:
    reception = fed([0, 1, 2, 3])
    assert (reception.block(1.0).fraction, reception.block(1.0).lost) == (0, 0)
    for sequence in (4, 6, 7):
        reception.add(packet(sequence), 0.1)
    block = reception.block(2.0)
    assert (block.fraction, block.lost, block.highest) == (64, 1, 7)  # 1 of 4 in 1/256
    assert reception.block(3.0).fraction == 0


def test_jitter_of_a_steady_stream_is_none_and_of_a_shaking_one_converges() -> None:
    steady = fed(list(range(100)))
    assert steady.jitter == pytest.approx(0.0, abs=1e-6)
    shaking = Reception(packet(0), 0.0)
    for n in range(1, 400):
        shaking.add(packet(n), n * 0.02 + (0.005 if n % 2 else 0.0))
    assert shaking.jitter == pytest.approx(40.0, abs=0.1)  # |D| is 5 ms = 40 samples each time
    assert shaking.jitter_ms == pytest.approx(5.0, abs=0.1)


def test_jitter_follows_appendix_a_8_step_by_step() -> None:
    """J += (|D| - J) / 16 for transits of 0, 16, 0 samples: 1, then 1 + 15/16."""
    reception = Reception(packet(0), 0.0)
    reception.add(packet(1), 0.020 + 16 / 8000)
    assert reception.jitter == pytest.approx(1.0)
    reception.add(packet(2), 0.040)
    assert reception.jitter == pytest.approx(1.0 + 15 / 16)


def test_a_jump_is_believed_when_it_goes_on() -> None:
    reception = fed([0, 1, 2])
    assert reception.add(packet(20000), 0.1) is None
    assert reception.lost == 0
    assert reception.add(packet(3), 0.1) == 3  # a stray packet: the stream goes on
    assert reception.add(packet(30000), 0.1) is None
    assert reception.add(packet(30001), 0.1) is not None
    assert (reception.restarts, reception.lost, reception.expected) == (1, 0, 6)


def test_the_block_says_how_long_the_senders_clock_was_held() -> None:
    reception = fed([0, 1])
    assert reception.block(1.0).last_sr == 0
    reception.heard_sender(SenderInfo(0x1111_2222_3333_4444, 0, 0, 0), 10.0)
    block = reception.block(10.5)
    assert (block.last_sr, block.delay) == (0x2222_3333, 0x8000)
