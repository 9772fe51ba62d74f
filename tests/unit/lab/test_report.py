from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from opentsm.lab.accounting import account
from opentsm.lab.report import (
    Event,
    PathSeries,
    Section,
    flow_table,
    html_report,
    loss_shares,
    nice_ceiling,
    svg_plot,
    text_table,
)

STREAM = PathSeries("stream <TLS>", [(i * 0.02, 0.05 + i % 7 * 0.001) for i in range(500)], [3.0, 3.02])
DATAGRAM = PathSeries("datagram", [(5 + i * 0.02, 0.03) for i in range(250)])


def test_a_table_lines_up_numbers_right_and_text_left() -> None:
    table = text_table([("a", 5), ("long name", 12345)], ("name", "packets"))
    assert table.splitlines() == [
        "name       packets",
        "---------  -------",
        "a                5",
        "long name    12345",
    ]


def test_an_empty_table_still_has_its_head() -> None:
    assert text_table([], ("a", "bc")) == "a  bc\n-  --\n"


def test_a_flow_table_says_what_was_lost() -> None:
    sent = [0.0, 0.02, 0.04, 0.06]
    table = flow_table({"call 1": account(sent, [(0, 0.1), (1, 0.12), (3, 0.16)])})
    assert re.search(r"call 1 +4 +1 +25\.00", table)


def test_a_plot_is_well_formed_and_names_its_paths_and_events() -> None:
    plot = svg_plot([STREAM, DATAGRAM], [Event(5.0, "moved & kept"), Event(9.9, "end")])
    tree = ElementTree.fromstring(plot)
    texts = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert {"stream <TLS>", "datagram", "moved & kept", "one-way delay, ms"} <= set(texts)
    assert len([e for e in tree.iter() if e.tag.endswith("polyline")]) == 2


def test_everything_is_drawn_inside_the_picture() -> None:
    tree = ElementTree.fromstring(svg_plot([STREAM, DATAGRAM], [Event(0.0, "a"), Event(9.98, "b")]))
    width, height = map(float, tree.attrib["viewBox"].split()[2:])
    for line in (e for e in tree.iter() if e.tag.endswith(("polyline", "polygon"))):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_a_silence_breaks_the_line() -> None:
    halves = [(t * 0.02, 0.03) for t in [*range(100), *range(300, 400)]]
    tree = ElementTree.fromstring(svg_plot([PathSeries("p", halves)]))
    assert len([e for e in tree.iter() if e.tag.endswith("polyline")]) == 2


def test_sparse_packets_are_still_one_line() -> None:
    tree = ElementTree.fromstring(svg_plot([PathSeries("p", [(float(t), 0.03) for t in range(10)])]))
    assert len([e for e in tree.iter() if e.tag.endswith("polyline")]) == 1


def test_a_plot_stays_small_however_many_packets_there_were() -> None:
    many = PathSeries("p", [(i * 0.0005, 0.03 + i % 100 * 1e-4) for i in range(100_000)])
    assert len(svg_plot([many])) < 60_000


@pytest.mark.parametrize("paths", [[], [PathSeries("quiet", [])], [PathSeries("one", [(1.0, 0.0)])]])
def test_nothing_to_show_is_no_error(paths: list[PathSeries]) -> None:
    ElementTree.fromstring(svg_plot(paths))


def test_a_page_needs_nothing_from_elsewhere() -> None:
    flows = {"<b>": account([0.0], [(0, 0.1)])}
    page = html_report("A & B", [Section("first <plot>", [STREAM], flows=flows)])
    assert "A &amp; B" in page
    assert "first &lt;plot&gt;" in page
    assert "<b>" not in page
    assert not re.search(r"<script|<link|@import|(src|href)=", page)
    assert set(re.findall(r"https?://[^\"']+", page)) == {"http://www.w3.org/2000/svg"}


def test_loss_is_shown_where_it_happened() -> None:
    path = PathSeries("p", [(0.0, 0.1), (1.0, 0.1), (9.9, 0.1)], [9.8])
    assert loss_shares(path, 0.0, 10.0, slices=10) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5]


@pytest.mark.parametrize(
    ("value", "ceiling"),
    [(1.0, 1.0), (1.1, 2.0), (2.1, 2.5), (3, 5.0), (51, 100.0), (0.06, 0.1), (1e-4, 1e-4)],
)
def test_axes_end_at_round_numbers(value: float, ceiling: float) -> None:
    assert nice_ceiling(value) == pytest.approx(ceiling)
