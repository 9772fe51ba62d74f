"""Mode AUTO: from counters to decisions, without a tunnel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from opentsm.client.quality import Counted, PathJudge, quality_report
from opentsm.client.statistics import path_statistics
from opentsm.engine.steering import Reason
from opentsm.types import Path
from opentsm.userplane._core import TunnelStats
from opentsm.wire.messages import PathQuality


def stats(**values: int) -> TunnelStats:
    """Counters of a tunnel; what is not given is zero."""
    names = [name for name in TunnelStats.__dict__ if not name.startswith("_")]
    return cast(TunnelStats, SimpleNamespace(**dict.fromkeys(names, 0) | values))


def feed(judge: PathJudge, seconds: range, *, stream: dict[str, Any], datagram: dict[str, Any]) -> None:
    for second in seconds:
        sent = {"tx_records": 50 * second, "tcp_retransmits": stream["lost"] * second}
        judge.measured(second, Path.STREAM, stats(tcp_rtt_us=stream["rtt"], **sent))
        got = {"rx_records": 50 * second, "rx_lost": datagram["lost"] * second}
        judge.measured(second, Path.DATAGRAM, stats(rtt_us=datagram["rtt"], **got))


def test_two_good_paths_leave_the_call_where_it_is() -> None:
    judge = PathJudge()
    feed(judge, range(1, 12), stream={"rtt": 20_000, "lost": 0}, datagram={"rtt": 20_000, "lost": 0})
    decision = judge.decide(12)
    assert (decision.path, decision.moved, decision.reason) == (Path.STREAM, False, Reason.ALIKE)


def test_a_stream_that_loses_hands_the_call_to_the_datagram_tunnel_and_says_why() -> None:
    judge = PathJudge()
    feed(judge, range(1, 12), stream={"rtt": 150_000, "lost": 2}, datagram={"rtt": 150_000, "lost": 2})
    decision = judge.decide(12)
    assert (decision.path, decision.moved, decision.reason) == (Path.DATAGRAM, True, Reason.BETTER)
    assert decision.stream is not None
    assert decision.datagram is not None
    assert decision.datagram.r > decision.stream.r
    assert judge.path is Path.DATAGRAM


def test_a_dead_datagram_tunnel_gives_the_call_back_at_once() -> None:
    judge = PathJudge(Path.DATAGRAM)
    feed(judge, range(1, 4), stream={"rtt": 150_000, "lost": 2}, datagram={"rtt": 20_000, "lost": 0})
    assert judge.decide(4).path is Path.DATAGRAM
    judge.died(Path.DATAGRAM)
    decision = judge.decide(4.1)
    assert (decision.path, decision.reason) == (Path.STREAM, Reason.DEAD)


def test_loss_that_only_the_server_sees_counts() -> None:
    judge = PathJudge(Path.DATAGRAM)
    for second in range(1, 12):
        report = PathQuality(Path.DATAGRAM, 1000, received=30, lost=20, jitter_us=1000, delay_us=0)
        judge.reported(second, [report])
        good = {"rtt": 20_000, "lost": 0}
        feed(judge, range(second, second + 1), stream=good, datagram=good)
    decision = judge.decide(12)
    assert decision.datagram is not None
    assert decision.datagram.loss_percent > 30
    assert decision.path is Path.STREAM


def test_a_new_tunnel_with_younger_counters_is_no_negative_loss() -> None:
    judge = PathJudge()
    judge.measured(1, Path.DATAGRAM, stats(rtt_us=20_000, rx_records=1000, rx_lost=50))
    judge.measured(2, Path.DATAGRAM, stats(rtt_us=20_000, rx_records=10))
    judge.measured(3, Path.DATAGRAM, stats(rtt_us=20_000, rx_records=60))
    decision = judge.decide(3)
    assert decision.datagram is not None
    assert decision.datagram.loss_percent == 0


def test_what_is_reported_is_the_difference() -> None:
    before = Counted.of(Path.DATAGRAM, stats(rx_packets=100, rx_records=110, rx_lost=5))
    now = stats(rx_packets=150, rx_records=170, rx_lost=7, rtt_us=30_000, rtt_var_us=2_000)
    assert quality_report(Path.DATAGRAM, now, before, 2.0) == PathQuality(
        Path.DATAGRAM, 2000, received=50, lost=2, jitter_us=2_000, delay_us=30_000
    )


def test_statistics_of_a_path_that_is_not_there() -> None:
    numbers = path_statistics(Path.DATAGRAM, None)
    assert (numbers.up, numbers.delay_ms, numbers.loss_percent) == (False, None, 0.0)
    numbers = path_statistics(Path.DATAGRAM, stats(rx_records=98, rx_lost=2, rtt_us=1500, rtt_var_us=100))
    assert (numbers.loss_percent, numbers.delay_ms, numbers.jitter_ms) == (2.0, 1.5, 0.1)
