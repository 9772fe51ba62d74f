from __future__ import annotations

from array import array

import pytest

from opentsm.client.phone.g711 import PCMU
from opentsm.client.phone.records import ReceivedPacket, SentPacket
from opentsm.client.phone.speech import speech
from opentsm.lab.demo.measure import (
    between,
    fates,
    longest_gap,
    mos_over_time,
    numbers,
    recording_score,
    repeated,
)
from opentsm.lab.hearing import why_no_pesq
from opentsm.types import Path
from tests.unit.lab.demo.made_up import PLAYOUT, packets

S, D = Path.STREAM, Path.DATAGRAM


def sent(at: float, sequence: int, path: Path = S) -> SentPacket:
    """Its time stamp wraps soon after packet 65,534, as its number does."""
    return SentPacket(at, sequence, (2**32 - 200 + 160 * ((sequence - 65_534) % 65_536)) % 2**32, path)


def came(at: float, sequence: int, path: Path | None = S, *, in_time: bool = True) -> ReceivedPacket:
    return ReceivedPacket(at, sequence, 0, path, in_time)


def test_both_ends_records_make_a_packets_fate() -> None:
    """Numbers and time stamps wrap on the way; a second copy does not count; one is late, one is lost."""
    there = [sent(10.0, 65_534), sent(10.02, 65_535, D), sent(10.04, 0, D)]
    here = [came(10.1, 65_534), came(10.3, 65_536, D, in_time=False), came(10.4, 65_534, D)]
    first, second, third = fates(there, here, origin=10.0, outward=True)
    assert (first.sent, first.path, first.in_time, first.position) == (0.0, S, True, 0)
    assert first.delay == pytest.approx(0.1)
    assert (second.came, second.path, second.in_time, second.position) == (None, D, False, 160)
    assert (third.in_time, third.position) == (False, 320)
    assert third.came == pytest.approx(0.3)


def test_inwards_the_path_is_the_receivers_and_a_lost_packet_went_like_the_one_before() -> None:
    there = [sent(n * 0.02, n) for n in range(4)]
    here = [came(0.1, 0, D), came(0.2, 2, S), came(0.3, 3, None)]
    assert [one.path for one in fates(there, here, origin=0.0, outward=False)] == [D, D, S, S]


def test_a_clean_line_and_a_bad_one() -> None:
    clean = numbers(packets(10), PLAYOUT)
    assert (clean.packets, clean.lost, clean.late, clean.gap, clean.missed_percent) == (500, 0, 0, 0.0, 0.0)
    assert clean.delay_p50 == pytest.approx(0.065)
    assert clean.mos > 4.3
    bad = numbers(packets(10, lost=lambda n: n % 20 == 0, late=lambda n: n % 20 in (1, 2)), PLAYOUT)
    assert (bad.lost, bad.late) == (25, 50)
    assert bad.missed_percent == pytest.approx(15.0)
    assert bad.gap == pytest.approx(0.06)
    assert bad.mos < 3
    assert bad.datagram_percent == 0
    assert numbers(packets(10, moved=5.0), PLAYOUT).datagram_percent == 50


def test_nothing_is_measured_of_nothing() -> None:
    empty = numbers([], PLAYOUT)
    assert (empty.packets, empty.missed_percent, empty.datagram_percent) == (0, 0.0, 0.0)
    assert longest_gap([]) == 0
    assert mos_over_time([], PLAYOUT) == []
    assert recording_score(speech(), array("h"), [], 0) is None


def test_mos_follows_the_line() -> None:
    """Bad up to 6 s, good from there on: so is the curve, but for its own width around the change."""
    line = packets(12, late=lambda n: n < 300 and n % 5 == 0)
    curve = mos_over_time(line, PLAYOUT)
    assert all(mos < 3 for at, mos in curve if at < 4.5)
    assert all(mos > 4 for at, mos in curve if at > 7.5)
    assert curve[0][0] == pytest.approx(1.5)
    assert curve[-1][0] <= 12 - 1.5


def test_a_stretch_is_what_was_sent_in_it() -> None:
    assert [one.position for one in between(packets(1), 0.1, 0.16)] == [800, 960, 1120]


def test_speech_is_repeated() -> None:
    source = array("h", [0, 1, 2, 3])
    assert repeated(source, 2, 9) == array("h", [2, 3, 0, 1, 2, 3, 0])
    assert repeated(source, 9, 10) == array("h", [1])


def test_a_recording_is_scored_against_what_was_said_then() -> None:
    """It begins late and has slipped by 20 ms; where packets were lost, there is silence in it."""
    if (reason := why_no_pesq()) is not None:
        pytest.skip(reason)
    line = packets(18)
    said = repeated(speech(), 0, 18 * 8000)
    recording = array("h", bytes(2 * 160)) + PCMU.decode(PCMU.encode(said[320:]))
    clean = recording_score(speech(), recording, line[100:], 320)
    assert clean is not None
    assert clean > 3.9
    for begin in range(40_000, len(recording) - 160, 1600):
        recording[begin : begin + 160] = array("h", bytes(320))
    bad = recording_score(speech(), recording, line[100:], 320)
    assert bad is not None
    assert bad < clean - 0.5
