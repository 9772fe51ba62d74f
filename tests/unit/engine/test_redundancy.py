"""How much recovery data a sender chooses, for every kind of weather."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from opentsm.engine.redundancy import (
    BACK_OFF_MIN,
    HOLD,
    REPORTS_END,
    Coder,
    Protection,
    Reason,
    Redundancy,
)
from opentsm.types import AUTOMATIC, NO_CODING, Coding, Path, Service
from opentsm.wire.messages import PathQuality

ALL = (Service.REDUNDANCY, Service.FEC, Service.HEADER_COMPRESSION)
PERIOD = 2.0


def report(percent: float, path: Path = Path.DATAGRAM, packets: int = 100) -> PathQuality:
    lost = round(packets * percent / 100)
    return PathQuality(path, 2000, packets - lost, lost, 0, 0)


class Weather:
    """A session's sender under a loss that the test makes, one report in two seconds."""

    def __init__(self, coding: Coding = AUTOMATIC, agreed: tuple[Service, ...] = ALL) -> None:
        self.redundancy = Redundancy(coding, agreed)
        self.now = 1000.0
        self.seen: list[Protection] = []

    def go(self, seconds: float, loss: float | Callable[[int], float]) -> Protection:
        for _ in range(round(seconds / PERIOD)):
            self.now += PERIOD
            factor = self.redundancy.decided[0]
            percent = loss(factor) if callable(loss) else loss
            self.redundancy.reported(self.now, [report(percent)])
            self.seen.append(self.redundancy.decide(self.now))
        return self.seen[-1]

    @property
    def changes(self) -> list[int]:
        return [one.factor for one in self.seen if one.changed]


def test_nothing_is_sent_while_little_is_lost() -> None:
    weather = Weather()
    assert weather.go(60, 0.0).reason is Reason.CLEAN
    assert weather.go(60, 0.4).factor == 0


@pytest.mark.parametrize(("loss", "factor"), [(2.0, 1), (5.0, 1), (8.0, 2), (20.0, 2)])
def test_loss_is_answered_within_seconds_and_by_its_size(loss: float, factor: int) -> None:
    weather = Weather()
    weather.go(10, 0.0)
    last = weather.go(12, loss)
    assert last.factor == factor
    assert last.fec
    assert next(i for i, one in enumerate(weather.seen) if one.factor) <= 7, "two reports are enough"


def test_it_ends_when_the_loss_has_ended_and_not_before() -> None:
    weather = Weather()
    weather.go(20, 3.0)
    assert weather.go(HOLD, 0.0).factor == 1, "a pause of the loss is no end"
    assert weather.go(30, 0.0).factor == 0
    assert weather.changes == [1, 0]


def test_a_loss_about_the_threshold_does_not_flap() -> None:
    weather = Weather()
    noise = random.Random(3)
    weather.go(600, lambda _: noise.choice((0.0, 1.0, 2.0)))
    assert len(weather.changes) == 1


def test_one_lost_packet_is_chance() -> None:
    weather = Weather()
    for _ in range(20):
        weather.now += PERIOD
        weather.redundancy.reported(weather.now, [report(10.0 if weather.now % 8 == 0 else 0.0, packets=10)])
        assert weather.redundancy.decide(weather.now).factor == 0


def test_a_raise_that_makes_loss_grow_is_taken_back_and_not_tried_again_soon() -> None:
    """A link that is full: each factor adds its bytes to what does not fit."""
    weather = Weather()
    full = lambda factor: 3.0 + 12.0 * factor  # noqa: E731
    weather.go(40, full)
    taken_back = next(one for one in weather.seen if one.reason is Reason.CONGESTION)
    assert taken_back.factor < 2
    at = weather.seen.index(taken_back)
    after = weather.seen[at + 1 : at + round(BACK_OFF_MIN / PERIOD) - 1]
    assert all(one.factor <= taken_back.factor for one in after)
    weather.go(600, full)
    tried = sum(one.changed and one.reason is Reason.RAISED for one in weather.seen)
    assert tried <= 8, "each attempt that fails makes the next one later"


def test_loss_that_grows_by_itself_later_is_no_fault_of_ours() -> None:
    weather = Weather()
    weather.go(30, 2.0)
    assert weather.go(20, 12.0).factor == 2


def test_without_reports_it_ends() -> None:
    weather = Weather()
    weather.go(20, 3.0)
    assert weather.redundancy.decide(weather.now + REPORTS_END - 1).factor == 1
    last = weather.redundancy.decide(weather.now + REPORTS_END + 1)
    assert (last.factor, last.reason) == (0, Reason.NO_REPORTS)


def test_what_the_application_has_chosen_wins() -> None:
    weather = Weather(Coding(2))
    assert weather.go(20, 0.0).reason is Reason.CHOSEN
    assert weather.redundancy.decided == (2, True)
    weather = Weather(Coding(0))
    assert weather.go(20, 10.0).factor == 0


def test_nothing_is_done_that_the_peer_has_not_agreed_to() -> None:
    assert Weather(Coding(2), agreed=(Service.FEC,)).go(20, 10.0).reason is Reason.NOT_AGREED
    assert not Weather(Coding(2), agreed=(Service.REDUNDANCY,)).go(20, 10.0).fec
    assert not Weather(Coding(2, fec=False)).go(20, 10.0).fec


def test_the_stream_s_loss_is_not_the_datagram_tunnel_s() -> None:
    redundancy = Redundancy(AUTOMATIC, ALL)
    redundancy.reported(1.0, [report(50.0, Path.STREAM)])
    assert redundancy.decide(1.0).reason is Reason.NO_REPORTS


def test_a_new_datagram_tunnel_begins_without() -> None:
    weather = Weather()
    weather.go(20, 10.0)
    weather.redundancy.path_gone()
    assert weather.redundancy.decide(weather.now).factor == 0


@pytest.mark.parametrize("seed", range(20))
def test_it_is_bounded_and_calm_in_any_weather(seed: int) -> None:
    weather, dice = Weather(), random.Random(seed)
    for _ in range(40):
        weather.go(dice.choice((2, 10, 30)), dice.choice((0.0, 0.5, 2.0, 7.0, 30.0)))
    assert all(0 <= one.factor <= 2 for one in weather.seen)
    times = [i * PERIOD for i, one in enumerate(weather.seen) if one.changed]
    falls = [one.factor for one in weather.seen if one.changed and one.reason is Reason.LOWERED]
    assert len(times) <= len(weather.seen) / 4
    assert len(falls) * HOLD <= len(weather.seen) * PERIOD


def test_the_coder_says_what_the_user_plane_is_to_do() -> None:
    coder = Coder()
    applied = coder.agree(1.0, ALL, ALL, Coding(1))
    assert (applied.factor, applied.fec, applied.compress) == (1, True, True)
    assert applied.take_recovery
    assert applied.take_compressed
    applied = coder.agree(2.0, ALL, (), Coding(1))
    assert (applied.factor, applied.compress, applied.take_recovery) == (0, False, True)
    applied = coder.agree(2.0, (), (), NO_CODING)
    assert not any((applied.factor, applied.fec, applied.compress, applied.take_recovery))


def test_a_coding_is_one_number_for_socket_options() -> None:
    assert Coding().number == 0x3F
    assert NO_CODING.number == 0
    for number in (0, 1, 2, 0x0F, 0x11, 0x22, 0x3F):
        assert Coding.from_number(number).number == number
    for number in (3, 14, 0x40, -1):
        with pytest.raises(ValueError, match=r"number|factor"):
            Coding.from_number(number)


@pytest.mark.parametrize("text", ["auto", "off", "0", "1", "2,no-fec", "auto,no-fec,no-compression"])
def test_a_coding_reads_as_it_is_written(text: str) -> None:
    assert str(Coding.parse(text)) == text


@pytest.mark.parametrize("text", ["", "3", "on", "off,no-fec", "1,", "no-fec", "1 no-fec"])
def test_what_is_no_coding_says_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="no-compression"):
        Coding.parse(text)
