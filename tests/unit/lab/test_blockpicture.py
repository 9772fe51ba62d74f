"""The picture of a block: what was seen is drawn, where it was seen."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from opentsm.lab.blockpicture import SLICE, Trace, draw

SVG = "{http://www.w3.org/2000/svg}"


def trace(late: bool = False) -> Trace:
    """Two seconds: one on the datagram tunnel, one on the stream; 5 packets in each slice, both ways."""
    times = [0.0]
    for number in range(20):
        times.append(times[-1] + (SLICE * (2.0 if late and number == 5 else 1.0)))
    made = Trace(blocked=1.0, opened=1.5, fell=1.2, back=1.8, lost_up=[1.02], lost_down=[1.04, 1.06])
    for at in times:
        datagram, stream = round(50 * min(at, 1.0)), round(50 * max(0.0, at - 1.0))
        made.samples.append((at, stream, datagram, stream, datagram))
    return made


def bars(made: Trace, colour: str) -> list[float]:
    root = ElementTree.fromstring(draw(made))
    found = [r for r in root.iter(f"{SVG}rect") if r.get("fill") == colour]
    return [float(r.get("height", "0")) for r in found if r.get("y") != "12"]


def test_each_path_has_its_bars_and_each_loss_its_mark() -> None:
    assert len(bars(trace(), "#2b7a78")) == len(bars(trace(), "#e09f3e")) == 20
    root = ElementTree.fromstring(draw(trace()))
    marks = [line for line in root.iter(f"{SVG}line") if line.get("stroke") == "#c1121f"]
    assert len(marks) == 3
    assert "lost: 1 packets up, 2 down; on the stream alone after 0.20 s, back 0.30 s" in draw(trace())


def test_a_sample_that_was_late_is_wider_and_not_taller() -> None:
    assert max(bars(trace(late=True), "#2b7a78")) == pytest.approx(max(bars(trace(), "#2b7a78")), abs=0.2)
