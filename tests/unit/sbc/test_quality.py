from __future__ import annotations

from dataclasses import dataclass

from opentsm.engine.quality import G711_PLC, G729A_VAD
from opentsm.sbc.quality import MAX_CHANGES, PathTrace, codec_for, direction


@dataclass
class Counts:
    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    lost: int = 0
    expected: int = 0
    jitter_us: int = 0
    by_datagram: int = 0
    idle_ms: int = 0
    wrong: int = 0
    stranger: tuple[str, int] | None = None
    report_blocks: int = 0
    reported_lost: int = 0
    reported_jitter: int = 0
    rtt_us: int = 0


def test_a_clean_call_scores_as_g711_does() -> None:
    clean = direction([Counts(1000, 200_000, expected=1000, by_datagram=1000)], G711_PLC, 20.0)
    assert clean.mos is not None
    assert clean.mos > 4.3
    assert (clean.loss_percent, clean.datagram_percent, clean.delay_ms) == (0.0, 100.0, 100.0)


def test_loss_jitter_and_delay_each_cost() -> None:
    clean = direction([Counts(1000, expected=1000)], G711_PLC, 20.0)
    lossy = direction([Counts(950, expected=1000, lost=50)], G711_PLC, 20.0)
    jittery = direction([Counts(1000, expected=1000, jitter_us=40_000)], G711_PLC, 20.0)
    slow = direction([Counts(1000, expected=1000)], G711_PLC, 400.0)
    assert lossy.loss_percent == 5.0
    assert jittery.jitter_ms == 40.0
    for worse in (lossy, jittery, slow):
        assert worse.mos is not None
        assert clean.mos is not None
        assert worse.mos < clean.mos - 0.1


def test_silence_has_no_score() -> None:
    assert direction([Counts()], G711_PLC, 0.0).mos is None
    assert direction([], G711_PLC, 0.0).packets == 0


def test_duplicates_are_no_negative_loss() -> None:
    assert direction([Counts(1010, expected=1000, lost=-10)], G711_PLC, 0.0).loss_percent == 0.0


def test_codecs_have_their_own_figures() -> None:
    assert codec_for("pcmu") is G711_PLC
    assert codec_for("G729") is G729A_VAD
    assert codec_for("whatever") is G711_PLC


def test_the_path_over_time_lists_changes() -> None:
    trace = PathTrace()
    trace.sample(5.0, 250, 0)
    trace.sample(10.0, 500, 0)
    trace.sample(15.0, 750, 240)
    trace.sample(20.0, 750, 240)
    trace.sample(25.0, 1000, 241)
    assert trace.changes == [(5.0, "stream"), (15.0, "datagram"), (25.0, "stream")]
    for number in range(1000):
        trace.sample(30.0 + number, 2000 + 100 * number, 2000 + 50 * number)
    assert len(trace.changes) <= MAX_CHANGES
