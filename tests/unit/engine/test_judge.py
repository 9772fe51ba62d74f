"""Mode AUTO on either side: from readings and reports to decisions, without a tunnel."""

from __future__ import annotations

from typing import Any

from opentsm.engine.judge import STALLED, Judge, Reading, Receiver
from opentsm.engine.steering import ENOUGH, Decision, Reason, explain
from opentsm.types import Path
from opentsm.wire.messages import PathDecision, PathQuality


def report(received: int = 50, lost: int = 0, jitter_us: int = 500, interval_ms: int = 1000) -> PathQuality:
    return PathQuality(Path.DATAGRAM, interval_ms, received, lost, jitter_us, delay_us=0)


def feed(
    judge: Judge, seconds: range, *, stream: dict[str, Any], datagram: dict[str, Any] | None = None
) -> Decision:
    """A reading and a report a second; ``lost`` is per second."""
    for second in seconds:
        rtt, lost = stream["rtt"], stream.get("lost", 0)
        judge.stream_read(second, Reading(sent=50 * second, repeated=lost * second, rtt_us=rtt))
        if datagram is not None:
            judge.datagram_read(second, Reading(rtt_us=datagram["rtt"]))
            judge.reported(second, [report(50 - datagram.get("lost", 0), datagram.get("lost", 0))])
        decision = judge.decide(second)
    return decision


def test_two_good_paths_leave_the_call_where_it_is() -> None:
    decision = feed(Judge(), range(1, 12), stream={"rtt": 20_000}, datagram={"rtt": 20_000})
    assert (decision.path, decision.moved, decision.reason) == (Path.STREAM, False, Reason.ALIKE)


def test_a_stream_that_loses_hands_the_call_to_the_datagram_tunnel_and_says_why() -> None:
    judge = Judge()
    lossy = {"rtt": 150_000, "lost": 2}
    moved = None
    for second in range(1, 12):
        decision = feed(judge, range(second, second + 1), stream=lossy, datagram=lossy)
        moved = moved or (decision if decision.moved else None)
    assert moved is not None
    assert (moved.path, moved.reason) == (Path.DATAGRAM, Reason.BETTER)
    assert moved.stream is not None
    assert moved.datagram is not None
    assert moved.datagram.r > moved.stream.r
    assert judge.path is Path.DATAGRAM
    told = moved.told()
    assert (told.path, told.stream_r, told.datagram_r) == (
        Path.DATAGRAM,
        round(moved.stream.r),
        round(moved.datagram.r),
    )
    assert explain(told).startswith("moved to datagram: the other path was clearly better [stream: R ")


def test_a_decision_for_a_reason_of_the_future_can_still_be_read() -> None:
    assert explain(PathDecision(Path.STREAM, 99, None, 80)) == "moved to stream: reason 99 [datagram: R 80]"


def test_what_is_not_reported_is_not_known_and_too_little_is_not_enough() -> None:
    judge = Judge()
    bad = {"rtt": 150_000, "lost": 10}
    assert feed(judge, range(1, 5), stream=bad).reason is Reason.UNMEASURED
    judge.datagram_read(5, Reading(rtt_us=150_000))
    judge.reported(5.5, [report(ENOUGH - 1, interval_ms=500)])
    assert judge.decide(5.5).reason is Reason.UNMEASURED
    judge.reported(5.6, [report(1, interval_ms=100)])
    assert judge.decide(5.6).path is Path.DATAGRAM


def test_a_bad_datagram_tunnel_is_never_used() -> None:
    for lost in (10, 25, 50):
        decision = feed(
            Judge(), range(1, 30), stream={"rtt": 40_000, "lost": 1}, datagram={"rtt": 40_000, "lost": lost}
        )
        assert decision.path is Path.STREAM, f"{2 * lost} % lost"


def test_a_dead_datagram_tunnel_gives_the_call_back_at_once() -> None:
    judge = Judge(Path.DATAGRAM)
    decision = feed(judge, range(1, 4), stream={"rtt": 150_000, "lost": 2}, datagram={"rtt": 20_000})
    assert decision.path is Path.DATAGRAM
    judge.died(Path.DATAGRAM)
    decision = judge.decide(4.1)
    assert (decision.path, decision.reason) == (Path.STREAM, Reason.DEAD)


def test_a_hole_that_is_over_does_not_count_against_the_tunnel_that_came_back() -> None:
    judge = Judge(Path.DATAGRAM)
    feed(judge, range(1, 4), stream={"rtt": 20_000}, datagram={"rtt": 20_000})
    judge.died(Path.DATAGRAM)
    judge.datagram_read(8, Reading(rtt_us=20_000))
    judge.reported(8.1, [report(50, 200, interval_ms=5000)])
    judge.reported(9.1, [report(50, 0)])
    _, datagram = judge.scores(9.2)
    assert datagram is not None
    assert datagram.loss_percent == 0


def test_a_stream_that_stands_still_is_dead_for_a_listener() -> None:
    judge = Judge()
    feed(judge, range(1, 5), stream={"rtt": 20_000}, datagram={"rtt": 20_000})
    judge.stream_read(8, Reading(sent=200, rtt_us=20_000, silent_s=STALLED + 0.1))
    decision = judge.decide(8)
    assert (decision.path, decision.moved, decision.reason) == (Path.DATAGRAM, True, Reason.DEAD)


def test_a_path_whose_delay_varies_is_late_though_it_loses_nothing() -> None:
    judge = Judge()
    judge.datagram_read(0, Reading(rtt_us=40_000))
    for second in range(1, 12):
        judge.reported(second, [report(jitter_us=40_000)])
    _, datagram = judge.scores(12)
    assert datagram is not None
    assert datagram.late_percent > 20


def test_a_new_connection_with_younger_counters_is_no_negative_loss() -> None:
    judge = Judge()
    judge.stream_read(1, Reading(sent=1000, repeated=50, rtt_us=20_000))
    judge.stream_read(2, Reading(sent=10, rtt_us=20_000))
    judge.stream_read(3, Reading(sent=60, rtt_us=20_000))
    stream, _ = judge.scores(3)
    assert stream is not None
    assert stream.late_percent == 0


def test_what_is_reported_is_the_difference_and_at_first_all_of_it() -> None:
    receiver = Receiver()
    first = receiver.report(10.0, Path.DATAGRAM, Reading(received=60, lost=3, age_s=1.5))
    assert first == PathQuality(Path.DATAGRAM, 1500, 60, 3, 0, 0)
    now = Reading(received=120, lost=5, rtt_us=30_000, jitter_us=2_000, age_s=3.5)
    assert receiver.report(12.0, Path.DATAGRAM, now) == PathQuality(Path.DATAGRAM, 2000, 60, 2, 2_000, 30_000)
    assert receiver.report(13.0, Path.DATAGRAM, Reading(received=130, lost=4, age_s=4.5)) == PathQuality(
        Path.DATAGRAM, 1000, 10, 0, 0, 0
    ), "one came after all"
    fresh = receiver.report(14.0, Path.DATAGRAM, Reading(received=7, lost=1, age_s=0.5))
    assert fresh == PathQuality(Path.DATAGRAM, 500, 7, 1, 0, 0), "another tunnel"


def test_of_a_silence_nothing_is_reported() -> None:
    receiver = Receiver()
    receiver.report(10.0, Path.DATAGRAM, Reading(received=60, age_s=1.0))
    receiver.pause(Path.DATAGRAM)
    assert receiver.report(15.0, Path.DATAGRAM, Reading(received=80, lost=200, age_s=6.0)) is None
    again = receiver.report(16.0, Path.DATAGRAM, Reading(received=130, lost=200, age_s=7.0))
    assert again == PathQuality(Path.DATAGRAM, 1000, 50, 0, 0, 0)


def test_numbers_too_large_for_the_wire_are_cut() -> None:
    old = Reading(received=1, rtt_us=1 << 40, jitter_us=1 << 40, age_s=1e9)
    found = Receiver().report(1e10, Path.STREAM, old)
    assert found is not None
    assert found.interval_ms == found.jitter_us == found.delay_us == 0xFFFF_FFFF
