"""Pictures of the demonstration as inline SVG: no script, nothing fetched, colours from the page's style.

Classes used: ``s`` and ``d`` (stream and datagram tunnel), ``x`` and ``l`` (lost and late packets), ``g``
(grid), ``t`` (small text), ``h`` (headings), ``e`` and ``m`` (a moment and its label), ``p`` (the latest
moment at which a packet can still be heard).
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from opentsm.lab.accounting import percentile
from opentsm.lab.demo.measure import Fate, mos_over_time
from opentsm.lab.demo.phones import PLAYOUT
from opentsm.lab.demo.story import Direction, Mark, Played
from opentsm.lab.report import nice_ceiling
from opentsm.types import Path

WIDTH: Final = 980
_LEFT, _RIGHT = 58, 14
_HEAD: Final = 34
"""Room above a panel for its heading."""

_DELAY_HEIGHT, _MISSED_HEIGHT, _MOS_HEIGHT = 150, 22, 96
_FOOT: Final = 34

MOS_CLASSES: Final = ("s1", "s2")
"""How the two directions' MOS curves are drawn."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps ``begin`` .. ``end`` of a quantity to pixels ``low`` .. ``high``; outside values to its ends."""

    begin: float
    end: float
    low: float
    high: float

    def __call__(self, value: float) -> float:
        share = (value - self.begin) / (self.end - self.begin)
        return self.low + min(1.0, max(0.0, share)) * (self.high - self.low)


def call_plot(played: Played) -> str:
    """One call: each packet's delay and tunnel in both directions, what was missed, and the MOS."""
    everything = [packet for direction in played.directions for packet in direction.packets]
    end = max((packet.sent for packet in everything), default=1.0)
    across = Axis(0.0, end, _LEFT, WIDTH - _RIGHT)
    height = 8 + 2 * (_HEAD + _DELAY_HEIGHT + _MISSED_HEIGHT) + _HEAD + _MOS_HEIGHT
    top, parts = 8.0, [_moment_line(mark, across, height) for mark in played.marks]
    for direction in played.directions:
        parts.append(_delay_panel(direction, across, top + _HEAD))
        top += _HEAD + _DELAY_HEIGHT + _MISSED_HEIGHT
    parts.append(_mos_panel(played.directions, across, top + _HEAD))
    bottom = top + _HEAD + _MOS_HEIGHT
    parts.append(_seconds(across, bottom))
    marks = "".join(_moment_label(mark, across, row) for row, mark in enumerate(played.marks))
    label = f"delay, tunnel and quality over time: part {played.part.letter}"
    return svg(bottom + _FOOT, "".join(parts) + marks, label)


def svg(height: float, content: str, label: str) -> str:
    """A picture as wide as the page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{html.escape(label)}" font-family="system-ui, sans-serif" font-size="12">'
        f"{content}</svg>"
    )


def dots(points: Iterable[tuple[float, float]], name: str) -> str:
    """Many dots as one path of lines without length, whose round caps are what is seen."""
    steps = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path class="o {name}" d="{steps}"/>' if steps else ""


def ticks(xs: Iterable[float], top: float, bottom: float, name: str) -> str:
    """Short vertical lines."""
    steps = "".join(f"M{x:.1f} {top:.1f}V{bottom:.1f}" for x in xs)
    return f'<path class="k {name}" d="{steps}"/>' if steps else ""


def text(x: float, y: float, words: str, name: str = "t", anchor: str = "start") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _delay_panel(direction: Direction, across: Axis, top: float) -> str:
    packets = direction.packets
    delays = sorted(packet.delay for packet in packets if packet.came is not None)
    ceiling = nice_ceiling(max(percentile(delays, 99.5), 0.1) * 1.02)
    down = Axis(0.0, ceiling, top + _DELAY_HEIGHT, top)
    parts = [text(_LEFT, top - 10, f"{direction.name}: one-way delay of each packet, ms", "h")]
    for step in range(6):
        value = ceiling * step / 5
        parts.append(_rule(across, down(value)))
        parts.append(text(_LEFT - 8, down(value) + 4, f"{1000 * value:g}", "t", "end"))
    limit = (delays[0] if delays else 0.0) + PLAYOUT
    parts.append(f'<path class="p" d="M{across.low} {down(limit):.1f}H{across.high}"/>')
    parts.append(text(across.high, down(limit) - 5, "latest that can be heard", "t", "end"))
    for path, name in ((Path.STREAM, "s"), (Path.DATAGRAM, "d")):
        on = [packet for packet in packets if packet.path is path and packet.came is not None]
        parts.append(dots(((across(p.sent), down(p.delay)) for p in on), name))
    return "".join(parts) + _missed(packets, across, top + _DELAY_HEIGHT + 8)


def _missed(packets: Sequence[Fate], across: Axis, top: float) -> str:
    lost = [across(packet.sent) for packet in packets if packet.came is None]
    late = [across(p.sent) for p in packets if p.came is not None and not p.in_time]
    bottom = top + 12
    words = text(_LEFT - 8, bottom - 2, "missed", "t", "end")
    return words + ticks(late, top, bottom, "l") + ticks(lost, top, bottom, "x")


def _mos_panel(directions: Sequence[Direction], across: Axis, top: float) -> str:
    down = Axis(1.0, 4.5, top + _MOS_HEIGHT, top)
    parts = [text(_LEFT, top - 10, "MOS over three seconds (E-model)", "h")]
    for value in (1, 2, 3, 4):
        parts.append(_rule(across, down(value)))
        parts.append(text(_LEFT - 8, down(value) + 4, str(value), "t", "end"))
    x = _LEFT + 250.0
    for direction, name in zip(directions, MOS_CLASSES, strict=False):
        points = mos_over_time(direction.packets, PLAYOUT)
        line = " ".join(f"{across(at):.1f},{down(mos):.1f}" for at, mos in points)
        parts.append(f'<polyline class="c {name}" points="{line}"/>')
        parts.append(
            f'<path class="c {name}" d="M{x} {top - 14}h24"/>{text(x + 30, top - 10, direction.name)}'
        )
        x += 150
    return "".join(parts)


def _rule(across: Axis, y: float) -> str:
    return f'<path class="g" d="M{across.low} {y:.1f}H{across.high}"/>'


def _seconds(across: Axis, y: float) -> str:
    step = max(1.0, nice_ceiling(across.end / 14))
    parts = [
        text(across(step * n), y + 16, f"{step * n:g}", "t", "middle")
        for n in range(int(across.end / step) + 1)
    ]
    return "".join(parts) + text(across.high, y + 30, "seconds since the call's first packet", "t", "end")


def _moment_line(mark: Mark, across: Axis, bottom: float) -> str:
    """Through all panels, and behind everything."""
    return f'<path class="e" d="M{across(mark.at):.1f} {_HEAD + 8}V{bottom}"/>'


def _moment_label(mark: Mark, across: Axis, row: int) -> str:
    """Labels of neighbours stand in different rows."""
    x = across(mark.at)
    right = x < WIDTH * 0.7
    return text(
        x + (5 if right else -5), _HEAD + 20 + row % 3 * 15, mark.label, "m", "start" if right else "end"
    )


def network_picture(left: Sequence[str], middle: Sequence[str], right: Sequence[str]) -> str:
    """Who is where: three boxes' captions, and the two tunnels between the phones and the server.

    Args:
        left, middle, right: lines about Alice's line, the server, and Bob's line.
    """
    boxes = [
        _box(14, 34, 120, 76, ["alice", "phone, NAT"]),
        _box(168, 34, 92, 76, ["firewall", "port 443", "only"]),
        _box(430, 12, 120, 120, ["TSM server", "registrar,", "proxy, media", "anchor"]),
        _box(720, 34, 92, 76, ["firewall", "port 443", "only"]),
        _box(846, 34, 120, 76, ["bob", "phone, NAT"]),
    ]
    tunnels = [
        _tunnel(134, 430, 56, "s", "TLS over TCP 443: SIP, voice"),
        _tunnel(134, 430, 88, "d", "DTLS over UDP 443: voice"),
        _tunnel(550, 846, 56, "s", ""),
        _tunnel(550, 846, 88, "d", ""),
    ]
    notes = [
        *(text(345, 112 + 15 * row, line, "t", "middle") for row, line in enumerate(left)),
        *(text(490, 152 + 15 * row, line, "t", "middle") for row, line in enumerate(middle)),
        *(text(635, 112 + 15 * row, line, "t", "middle") for row, line in enumerate(right)),
    ]
    return svg(178, "".join([*tunnels, *boxes, *notes]), "the network of the demonstration")


def _box(x: float, y: float, width: float, height: float, lines: Sequence[str]) -> str:
    middle = y + height / 2 - 8 * (len(lines) - 1) + 4
    words = [
        text(x + width / 2, middle + 16 * row, line, "t" if row else "h", "middle")
        for row, line in enumerate(lines)
    ]
    return f'<rect class="b" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>' + "".join(words)


def _tunnel(begin: float, end: float, y: float, name: str, words: str) -> str:
    dash = ' stroke-dasharray="9 6"' if name == "d" else ""
    line = f'<path class="w {name}" d="M{begin} {y}H{end}"{dash}/>'
    return line + (text(345, y - 9, words, "t", "middle") if words else "")
