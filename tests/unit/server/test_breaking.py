"""A server holds back media of which a client says that nothing comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from opentsm.engine.breaker import INTERVALS
from opentsm.server.breaking import Downstream
from opentsm.types import Path
from opentsm.wire.messages import PathQuality


@dataclass
class Stats:
    """What of a tunnel's counters is looked at."""

    tx_packets: int = 0
    tx_records: int = 0
    tx_dropped: int = 0


class Downlink:
    def __init__(self) -> None:
        self.downstream = Downstream()
        self.now = 0.0
        self.tunnel = 1
        self.stream, self.datagram = Stats(), Stats()
        self.further: list[Stats] = []

    def report(self, received: int) -> list[tuple[Path, bool]]:
        self.now += 2.0
        report = PathQuality(Path.DATAGRAM, 2000, received, 0, 0, 0)
        tunnels: Any = {Path.STREAM: (100, self.stream), Path.DATAGRAM: (self.tunnel, self.datagram)}
        moved = self.downstream.heard(self.now, (report,), tunnels, cast("Any", self.further))
        return [(path, decision.open) for path, decision in moved]


def test_what_does_not_arrive_by_datagram_is_held_back_until_it_does() -> None:
    downlink = Downlink()
    downlink.report(0)
    moved: list[tuple[Path, bool]] = []
    for received in [100] * 3 + [0] * INTERVALS:
        downlink.datagram.tx_records += 100
        moved += downlink.report(received)
    assert moved == [(Path.DATAGRAM, True)]
    assert downlink.downstream.is_open(Path.DATAGRAM)
    downlink.datagram.tx_records += 4
    assert downlink.report(4) == [(Path.DATAGRAM, False)]


def test_a_stream_that_stands_still_is_relieved_unless_another_one_moves() -> None:
    for others in (0, 1):
        downlink = Downlink()
        downlink.further = [Stats() for _ in range(others)]
        moved = []
        for _ in range(INTERVALS + 1):
            downlink.stream.tx_packets += 100
            for other in downlink.further:
                other.tx_records += 100
            moved += downlink.report(0)
        assert moved == ([] if others else [(Path.STREAM, True)])


def test_a_new_tunnel_is_judged_by_itself() -> None:
    downlink = Downlink()
    downlink.report(0)
    for _ in range(INTERVALS):
        downlink.datagram.tx_records += 100
        downlink.report(0)
    assert downlink.downstream.is_open(Path.DATAGRAM)
    downlink.tunnel, downlink.datagram = 2, Stats()
    assert downlink.report(0) == [(Path.DATAGRAM, False)]


def test_of_a_path_that_the_client_holds_for_silent_nothing_is_concluded() -> None:
    """In a block of UDP media goes by both tunnels, and the client reports of the stream alone."""
    downlink = Downlink()
    downlink.report(0)
    of_stream = (PathQuality(Path.STREAM, 2000, 100, 0, 0, 0),)
    for _ in range(2 * INTERVALS):
        downlink.now += 2.0
        downlink.datagram.tx_records += 100
        tunnels: Any = {Path.DATAGRAM: (downlink.tunnel, downlink.datagram)}
        assert downlink.downstream.heard(downlink.now, of_stream, tunnels, []) == []
    assert downlink.report(100) == []
    assert not downlink.downstream.is_open(Path.DATAGRAM)
