"""Reports for people: text tables, and one self-contained HTML page with hand-drawn SVG plots."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from opentsm.lab.accounting import FlowReport, percentile

_WIDTH: Final = 960
_LEFT, _RIGHT = 64, 16
_DELAY_TOP, _DELAY_HEIGHT = 46, 250
_LOSS_GAP, _LOSS_HEIGHT = 40, 84
_COLUMNS: Final = 300
"""Time slices of a plot: each is drawn as one point of a line and one step of a band, so that the page
stays small however many packets there were."""

_COLORS: Final = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#ca8a04", "#db2777")
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "", "7 3")
"""Paths differ by dash as well, for those who cannot tell the colours."""


@dataclass(frozen=True, slots=True)
class PathSeries:
    """What happened on one path (or flow) over time. Seconds on one clock.

    Args:
        name: for the legend.
        delays: (time, one-way delay).
        losses: times at which lost packets were sent.
    """

    name: str
    delays: Sequence[tuple[float, float]]
    losses: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A moment worth a mark: "UDP blocked", "moved to DDT"."""

    time: float
    label: str


@dataclass(frozen=True, slots=True)
class Section:
    """One plot of a page, with a table of flows below it."""

    title: str
    paths: Sequence[PathSeries]
    events: Sequence[Event] = ()
    flows: Mapping[str, FlowReport] = field(default_factory=dict)


def text_table(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> str:
    """A plain table; numbers to the right, text to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells), 0) for i, column in enumerate(columns)]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(columns), rule, *(line(row) for row in cells)]) + "\n"


FLOW_COLUMNS: Final = (
    *("flow", "sent", "lost", "lost %", "dup", "reord", "late", "corrupt"),
    *("p50 ms", "p95 ms", "p99 ms", "max ms", "gap ms"),
)


def flow_rows(flows: Mapping[str, FlowReport]) -> list[tuple[object, ...]]:
    """Rows for ``text_table`` under ``FLOW_COLUMNS``."""
    return [
        (
            *(
                name,
                r.sent,
                r.lost,
                f"{r.loss_share * 100:.2f}",
                r.duplicated,
                r.reordered,
                r.late,
                r.corrupt,
            ),
            *(f"{value * 1e3:.1f}" for value in _delays(r)),
        )
        for name, r in flows.items()
    ]


def _delays(report: FlowReport) -> tuple[float, ...]:
    return report.delay_p50, report.delay_p95, report.delay_p99, report.delay_max, report.longest_gap


def flow_table(flows: Mapping[str, FlowReport]) -> str:
    """Reports of flows as a text table."""
    return text_table(flow_rows(flows), FLOW_COLUMNS)


def html_report(title: str, sections: Sequence[Section]) -> str:
    """One page: no script, nothing fetched, follows the reader's light or dark setting."""
    body = "".join(_section(section) for section in sections)
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head><body><main><h1>{name}</h1>{body}</main></body></html>\n"
    )


def svg_plot(paths: Sequence[PathSeries], events: Sequence[Event] = (), *, title: str = "") -> str:
    """Delay (median line in its min-max band) above, loss below, events as marks through both."""
    scale = _Scale.of(paths, events)
    height = _DELAY_TOP + _DELAY_HEIGHT + _LOSS_GAP + _LOSS_HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">'
        f"<title>{html.escape(title or 'delay and loss')}</title>",
        f"<style>{_SVG_CSS}</style>",
        _grid(scale),
        *(_event(event, scale, row) for row, event in enumerate(sorted(events, key=lambda e: e.time))),
        *(_path(path, scale, index) for index, path in enumerate(paths)),
        *_loss_bars(paths, scale),
        _legend(paths),
        "</svg>",
    ]
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Axes: seconds from ``begin`` to ``end``, delay up to ``delay`` seconds, loss up to ``loss`` (share)."""

    begin: float
    end: float
    delay: float
    loss: float

    @classmethod
    def of(cls, paths: Sequence[PathSeries], events: Sequence[Event]) -> _Scale:
        times = [t for path in paths for t, _ in path.delays] + [t for path in paths for t in path.losses]
        times += [event.time for event in events]
        begin, end = (min(times), max(times)) if times else (0.0, 1.0)
        end = max(end, begin + 1e-3)
        highest = max((d for path in paths for _, d in path.delays), default=0.0)
        half = cls(begin, end, nice_ceiling(max(highest, 1e-4)), 1.0)
        worst = max((share for path in paths for share in loss_shares(path, begin, end)), default=0.0)
        return cls(half.begin, half.end, half.delay, min(1.0, nice_ceiling(max(worst, 0.01))))

    def x(self, when: float) -> float:
        return _LEFT + (when - self.begin) / (self.end - self.begin) * (_WIDTH - _LEFT - _RIGHT)

    def y_delay(self, delay: float) -> float:
        return _DELAY_TOP + _DELAY_HEIGHT * (1 - max(delay, 0.0) / self.delay)

    def y_loss(self, share: float) -> float:
        return _DELAY_TOP + _DELAY_HEIGHT + _LOSS_GAP + _LOSS_HEIGHT * (1 - share / self.loss)


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^n that is not below ``value`` (above 0)."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))


def loss_shares(path: PathSeries, begin: float, end: float, slices: int = _COLUMNS // 3) -> list[float]:
    """Share of packets lost in each time slice; 0 where none was sent."""
    lost, heard = [0] * slices, [0] * slices

    def slot(when: float) -> int:
        return min(slices - 1, max(0, int((when - begin) / (end - begin) * slices)))

    for when in path.losses:
        lost[slot(when)] += 1
    for when, _ in path.delays:
        heard[slot(when)] += 1
    return [a / (a + b) if a + b else 0.0 for a, b in zip(lost, heard, strict=True)]


def _grid(scale: _Scale) -> str:
    right, bottom = _WIDTH - _RIGHT, _DELAY_TOP + _DELAY_HEIGHT
    parts = []
    for i in range(6):
        value = scale.delay * i / 5
        y = scale.y_delay(value)
        parts.append(f'<line class="g" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="t" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value * 1e3:g}</text>'
        )
    for i in range(3):
        share = scale.loss * i / 2
        y = scale.y_loss(share)
        parts.append(f'<line class="g" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="t" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * 100:g}</text>'
        )
    step = nice_ceiling((scale.end - scale.begin) / 10)
    bottom_axis = scale.y_loss(0)
    for i in range(int((scale.end - scale.begin) / step) + 1):
        x = scale.x(scale.begin + i * step)
        parts.append(f'<line class="g" x1="{x:.1f}" y1="{_DELAY_TOP}" x2="{x:.1f}" y2="{bottom_axis:.1f}"/>')
        parts.append(
            f'<text class="t" x="{x:.1f}" y="{bottom_axis + 17:.1f}" text-anchor="middle">{i * step:g}</text>'
        )
    parts.append(f'<text class="t" x="{right}" y="{bottom_axis + 33:.1f}" text-anchor="end">seconds</text>')
    parts.append(f'<text class="h" x="{_LEFT}" y="{_DELAY_TOP - 8}">one-way delay, ms</text>')
    parts.append(f'<text class="h" x="{_LEFT}" y="{bottom + _LOSS_GAP - 8}">packets lost, %</text>')
    return "".join(parts)


def _path(path: PathSeries, scale: _Scale, index: int) -> str:
    """A band from least to most, and a line through the medians; broken where nothing arrived."""
    slices: list[list[float]] = [[] for _ in range(_COLUMNS)]
    for when, delay in path.delays:
        slot = int((when - scale.begin) / (scale.end - scale.begin) * _COLUMNS)
        slices[min(_COLUMNS - 1, max(0, slot))].append(delay)
    color, dash = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    parts = []
    for run in _runs(slices):
        points = [(scale.x(_slice_middle(scale, at)), sorted(values)) for at, values in run]
        high = [f"{x:.1f},{scale.y_delay(values[-1]):.1f}" for x, values in points]
        low = [f"{x:.1f},{scale.y_delay(values[0]):.1f}" for x, values in reversed(points)]
        middle = [f"{x:.1f},{scale.y_delay(percentile(values, 50)):.1f}" for x, values in points]
        if len(points) == 1:
            x, y = middle[0].split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="1.5" fill="{color}"/>')
            continue
        parts.append(f'<polygon points="{" ".join(high + low)}" fill="{color}" fill-opacity="0.16"/>')
        parts.append(
            f'<polyline points="{" ".join(middle)}" fill="none" stroke="{color}" stroke-width="1.7" '
            f'stroke-linejoin="round"{style}/>'
        )
    return "".join(parts)


_MAX_HOLE: Final = 3
"""Empty slices a line bridges: fewer packets than slices is no gap."""


def _runs(slices: list[list[float]]) -> list[list[tuple[int, list[float]]]]:
    filled = [(at, values) for at, values in enumerate(slices) if values]
    # With few packets, most slices are empty; then a hole is one much wider than the usual spacing.
    usual = _COLUMNS / max(1, len(filled))
    runs: list[list[tuple[int, list[float]]]] = []
    for at, values in filled:
        if runs and at - runs[-1][-1][0] <= max(_MAX_HOLE, 3 * usual):
            runs[-1].append((at, values))
        else:
            runs.append([(at, values)])
    return runs


def _slice_middle(scale: _Scale, at: int) -> float:
    return scale.begin + (at + 0.5) / _COLUMNS * (scale.end - scale.begin)


def _loss_bars(paths: Sequence[PathSeries], scale: _Scale) -> list[str]:
    parts, bottom = [], scale.y_loss(0)
    for index, path in enumerate(paths):
        shares = loss_shares(path, scale.begin, scale.end)
        width = (_WIDTH - _LEFT - _RIGHT) / len(shares)
        thin = max(1.0, width / max(1, len(paths)) - 0.6)
        for at, share in enumerate(shares):
            if share:
                x, y = _LEFT + at * width + index * width / len(paths), scale.y_loss(share)
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{thin:.1f}" height="{bottom - y:.1f}" '
                    f'fill="{_COLORS[index % len(_COLORS)]}"/>'
                )
    return parts


def _event(event: Event, scale: _Scale, row: int) -> str:
    """A line through both plots. Neighbours' labels take turns in three rows so that they do not collide."""
    x, y = scale.x(event.time), _DELAY_TOP + 13 + row % 3 * 15
    near_end = x > _WIDTH - 160
    anchor, shift = ("end", -5) if near_end else ("start", 5)
    return (
        f'<line class="e" x1="{x:.1f}" y1="{_DELAY_TOP}" x2="{x:.1f}" y2="{scale.y_loss(0):.1f}"/>'
        f'<text class="l" x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}">'
        f"{html.escape(event.label)}</text>"
    )


def _legend(paths: Sequence[PathSeries]) -> str:
    parts, x = [], _LEFT
    for index, path in enumerate(paths):
        color, dash = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
        parts.append(
            f'<line x1="{x}" y1="14" x2="{x + 26}" y2="14" stroke="{color}" stroke-width="3" '
            f'stroke-dasharray="{dash or "none"}"/>'
            f'<text class="h" x="{x + 32}" y="18">{html.escape(path.name)}</text>'
        )
        x += 52 + 7 * len(path.name)
    return "".join(parts)


def _section(section: Section) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in FLOW_COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>"
        for row in flow_rows(section.flows)
    )
    table = f'<div class="w"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    plot = svg_plot(section.paths, section.events, title=section.title)
    return f"<section><h2>{html.escape(section.title)}</h2>{plot}{table if rows else ''}</section>"


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True


_SVG_CSS: Final = (
    ".g{stroke:#94a3b8;stroke-opacity:.28}.t{fill:#64748b}.h{fill:currentColor;font-weight:600}"
    ".e{stroke:#dc2626;stroke-dasharray:4 3}.l{fill:#dc2626;font-size:11px}"
)
_CSS: Final = (
    ":root{color-scheme:light dark;--bg:#f8fafc;--card:#fff;--ink:#0f172a;--rule:#e2e8f0}"
    "@media(prefers-color-scheme:dark){:root{--bg:#0b1120;--card:#111a2e;--ink:#e2e8f0;--rule:#24314d}}"
    "body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}"
    "main{max-width:1040px;margin:0 auto;padding:28px 20px}h1{font-size:1.6rem}h2{font-size:1.1rem}"
    "section{background:var(--card);border:1px solid var(--rule);border-radius:12px;"
    "padding:16px 20px;margin:20px 0}"
    "svg{width:100%;height:auto}.w{overflow-x:auto}"
    "table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:5px 8px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}"
)
