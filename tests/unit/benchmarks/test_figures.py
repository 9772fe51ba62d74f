"""What is said of figures: ratios round by round, verdicts, tables, plots, results that are put together."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import one_client, plot, scaling
from benchmarks.__main__ import PARTS, Folder
from benchmarks.figures import Figures, Spread, table, verdict, verdict_least


def some() -> Figures:
    figures = Figures()
    for ours, quick, slow in ((4.0, 10.0, 20.0), (6.0, 12.0, 11.0)):
        for name, value in (("opentsm-dtls", ours), ("ocserv-dtls", quick), ("coturn-udp", slow)):
            figures.add("cpu_us", "20,000/s up", name, value)
    return figures


def test_a_ratio_is_taken_against_the_best_rival_of_each_round() -> None:
    share = some().ratio("cpu_us", "20,000/s up", "opentsm-dtls", ["ocserv-dtls", "coturn-udp"])
    assert share is not None
    assert share.least == pytest.approx(0.4)
    assert share.most == pytest.approx(6 / 11)


@pytest.mark.parametrize(
    ("least", "most", "word"), [(0.2, 0.5, "met"), (0.6, 0.9, "MISSED"), (0.4, 0.6, "undecided")]
)
def test_a_verdict_needs_every_round(least: float, most: float, word: str) -> None:
    assert verdict("x", Spread(0.5, least, most), 0.5).startswith(f"{word}:")


@pytest.mark.parametrize(("least", "word"), [(1.7, "met"), (1.6, "undecided")])
def test_more_can_be_better(least: float, word: str) -> None:
    assert verdict_least("x", Spread(1.8, least, 1.9), 1.7).startswith(f"{word}:")
    assert verdict_least("x", None, 1.7) == "not measured: x"


def test_what_was_not_measured_is_shown_as_such() -> None:
    figures = some()
    figures.add("cpu_us", "20,000/s down", "opentsm-dtls", 3.0)
    assert table(figures, "cpu_us")[-1] == "| 20,000/s down | 3.0 | - | - |"
    assert "not measured: one client, 5,000/s up: at most half of the best rival's CPU (no rival)" in (
        one_client.show(figures).verdicts
    )


def test_every_part_can_be_shown_before_it_was_measured() -> None:
    for part in PARTS.values():
        shown = part.show(Figures())
        assert all(line.startswith("not measured") for line in shown.verdicts), part.name


def test_plots_are_xml_and_have_every_series() -> None:
    figures = some()
    figures.add("rate", "1,000", "opentsm-dtls", 5.0)
    figures.add("rate", "20,000", "opentsm-dtls", 3.0)
    for svg in (
        plot.bars(figures, "cpu_us", "a < b"),
        plot.lines(figures, "rate", "a & b", plot.Axis("packets/s", names={"opentsm-dtls": "ours"})),
    ):
        words = [element.text for element in ElementTree.fromstring(svg).iter() if element.text]
        assert words[0] in ("a < b", "a & b")
        assert {"opentsm-dtls", "ours"} & set(words)


def test_results_of_two_runs_are_put_together(tmp_path: Path) -> None:
    for value in (4.0, 6.0):
        folder = Folder(tmp_path / "results")
        folder.runs.append({"date": "today"})
        figures = folder.figures.setdefault("one-client", Figures())
        figures.add("cpu_us", "20,000/s up", "opentsm-dtls", value)
        folder.keep()
    stored = json.loads((tmp_path / "results" / "results.json").read_text())
    assert len(stored["runs"]) == 2
    assert "| 20,000/s up | 5.0 (4.0-6.0) |" in (tmp_path / "results" / "results.md").read_text()


def test_what_a_large_machine_holds_follows_from_the_costs() -> None:
    costs = scaling.Costs({"a call": 7.0}, 600.0, 250.0, 400.0, 100.0, 18.0, 4.0)
    # 0.7 x 1,000,000 / 7 / 100 calls on a core; 24 workers at 0.85.
    assert "| a call | 7.0 | 1,000 | 20,400 |" in scaling.calls(costs)
    # One control thread: 1,000,000 / 500 set-ups a second; eight are bounded by 32 cores.
    assert "| 850 | 500 | 2,000 | 16,000 | 100 s | 12 s |" in scaling.set_ups(costs)[-3]
