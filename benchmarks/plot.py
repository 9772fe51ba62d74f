"""Plots as SVG: bars with their spread, and lines."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.figures import Figures, Spread
from opentsm.lab.report import nice_ceiling

_OURS: Final = ("#0a7d5a", "#55b793", "#2c6fbb", "#86b6e8")
_COLORS: Final = {
    "plain": "#7d8590",
    "opentsm-dtls": "#0a7d5a",
    "opentsm-tls": "#55b793",
    "ocserv-dtls": "#b3541e",
    "ocserv-tls": "#e0a070",
    "openvpn-udp": "#7a4fa0",
    "openvpn-tcp": "#b99bd3",
    "coturn-udp": "#a8871c",
    "coturn-tls": "#d6bd62",
    "wireguard-go": "#b0305c",
}
_WIDTH: Final = 900
_HEIGHT: Final = 380
_LEFT: Final = 60
_RIGHT: Final = 20
_TOP: Final = 70
_BOTTOM: Final = 320
_KEY_WIDTH: Final = 136
_KEY_ROW: Final = 6


def color(name: str, place: int) -> str:
    """A product's own colour, or the next one."""
    return _COLORS.get(name, _OURS[place % len(_OURS)])


def bars(figures: Figures, metric: str, title: str, *, without: Sequence[str] = ()) -> str:
    """Bars with their spread: rows are groups, series the bars of each."""
    groups = figures.rows(metric)
    names = [name for name in figures.series(metric) if name not in without]
    spreads = {(g, n): s for g in groups for n in names if (s := figures.spread(metric, g, n))}
    top = nice_ceiling(max((s.most for s in spreads.values()), default=1.0))
    parts = [*_frame(title), *_grid(top), *_key(names)]
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(groups))
    for column, group in enumerate(groups):
        left = _LEFT + column * step
        parts.append(_text(left + step / 2, _BOTTOM + 20, group, "middle"))
        for place, name in enumerate(names):
            if (group, name) in spreads:
                width = step * 0.8 / len(names)
                x = left + step * 0.1 + place * width
                parts.append(_bar(x, width, spreads[group, name], top, color(name, place)))
    return "".join([*parts, "</svg>\n"])


@dataclass(frozen=True, slots=True)
class Axis:
    """A horizontal axis.

    Args:
        name: what is on it.
        logarithmic: powers of ten are evenly spaced; values are above 0 then.
    """

    name: str
    logarithmic: bool = True
    names: Mapping[str, str] = field(default_factory=dict)


def lines(figures: Figures, metric: str, title: str, axis: Axis) -> str:
    """Lines with their spread; rows are numbers."""
    xs = {row: float(row.replace(",", "")) for row in figures.rows(metric)}
    names = figures.series(metric)
    spreads = {(r, n): s for r in xs for n in names if (s := figures.spread(metric, r, n))}
    top = nice_ceiling(max((s.most for s in spreads.values()), default=1.0))
    place_of = _scale(list(xs.values()), axis.logarithmic)
    parts = [*_frame(title), *_grid(top), *_key([axis.names.get(n, n) for n in names], names)]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _BOTTOM + 42, axis.name, "middle"))
    parts += [_text(place_of(x), _BOTTOM + 20, f"{x:,.0f}", "middle") for x in sorted(set(xs.values()))]
    for place, name in enumerate(names):
        points = [
            (place_of(xs[r]), spreads[r, name])
            for r in sorted(xs, key=xs.__getitem__)
            if (r, name) in spreads
        ]
        shade, path = color(name, place), " ".join(f"{x:.1f},{_y(s.median, top):.1f}" for x, s in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{shade}" stroke-width="2"/>')
        for x, spread in points:
            parts.append(
                f'<circle cx="{x:.1f}" cy="{_y(spread.median, top):.1f}" r="3" fill="{shade}"/>'
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(spread.least, top):.1f}" '
                f'y2="{_y(spread.most, top):.1f}" stroke="{shade}"/>'
            )
    return "".join([*parts, "</svg>\n"])


class _scale:
    """Where a value stands on the horizontal axis."""

    def __init__(self, values: Sequence[float], logarithmic: bool) -> None:
        self._of = (lambda value: math.log10(max(value, 1e-9))) if logarithmic else (lambda value: value)
        self._least = min(map(self._of, values), default=0.0)
        self._span = (max(map(self._of, values), default=1.0) - self._least) or 1.0

    def __call__(self, value: float) -> float:
        share = (self._of(value) - self._least) / self._span
        return _LEFT + 20 + (_WIDTH - _LEFT - _RIGHT - 60) * share


def _frame(title: str) -> list[str]:
    name = html.escape(title)
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{name}</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<text x="{_LEFT}" y="20" font-weight="600">{name}</text>'
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _y(value: float, top: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * value / top


def _grid(top: float) -> list[str]:
    return [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y(v, top):.1f}" y2="{_y(v, top):.1f}" '
        'stroke="#ddd"/>'
        f'<text x="{_LEFT - 8}" y="{_y(v, top) + 4:.1f}" text-anchor="end" fill="#555">{v:,g}</text>'
        for v in (top * i / 5 for i in range(6))
    ]


def _key(names: Sequence[str], keys: Sequence[str] | None = None) -> list[str]:
    parts = []
    for place, (name, key) in enumerate(zip(names, keys or names, strict=True)):
        x, y = _LEFT + place % _KEY_ROW * _KEY_WIDTH, 28 + place // _KEY_ROW * 18
        parts.append(
            f'<rect x="{x}" y="{y}" width="12" height="12" fill="{color(key, place)}"/>'
            f'<text x="{x + 18}" y="{y + 10}">{html.escape(name)}</text>'
        )
    return parts


def _bar(x: float, width: float, spread: Spread, top: float, shade: str) -> str:
    y, middle = _y(spread.median, top), x + width / 2
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.9:.1f}" height="{_BOTTOM - y:.1f}" fill="{shade}"/>'
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{_y(spread.least, top):.1f}" '
        f'y2="{_y(spread.most, top):.1f}" stroke="#222" stroke-width="1.5"/>'
        f'<text x="{middle:.1f}" y="{_y(spread.most, top) - 4:.1f}" text-anchor="middle" font-size="9">'
        f"{spread.median:.1f}</text>"
    )
