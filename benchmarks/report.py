"""Tables, verdicts and a plot of what was measured."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from benchmarks.plan import Results, Spread, cells, ratios
from benchmarks.rig import Reading
from opentsm.lab.report import nice_ceiling

OURS: Final = "opentsm-dtls"
PEER: Final = "ocserv-dtls"

MOST_SATURATED_US: Final = 6.0
MOST_OF_PEER: Final = 0.5
MOST_P99_MOVE_US: Final = 1_000.0
"""What OpenTSM has set itself (see docs/benchmarks.md)."""


def markdown(results: Results, facts: dict[str, str]) -> str:
    """The whole report."""
    parts = ["# Results", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    parts += ["## Verdicts", "", *(f"- {line}" for line in verdicts(results)), ""]
    parts += ["## Server CPU, microseconds per delivered packet", "", *_table(results, _cpu), ""]
    parts += [f"## {OURS} over {PEER}, CPU per packet, round by round", "", *_ratio_lines(results), ""]
    parts += ["## Delivered packets per second", "", *_table(results, _rate), ""]
    parts += ["## Lost, %", "", *_table(results, _lost), ""]
    parts += ["## TCP segments per 100 packets", "", *_table(results, _beside), ""]
    parts += ["## One-way delay, microseconds", "", *_delays(results), ""]
    parts += ["## Forwarded packets beside a busy control plane", "", *_busy(results), ""]
    if results.left_out:
        parts += ["## Left out", "", *(f"- {n}: {why}" for n, why in results.left_out.items()), ""]
    parts.append("Median (least-most) of the rounds. `-`: no process to charge, or not measured.")
    return "\n".join(parts) + "\n"


def verdicts(results: Results) -> list[str]:
    """One line per target: met, missed, undecided or not measured."""
    lines = []
    for name in ("saturated up", "saturated down"):
        cpu = _spread(results.readings.get(name, {}).get(OURS, ()), lambda r: r.cpu_us)
        lines.append(
            _verdict(f"{name}: CPU per packet at most {MOST_SATURATED_US:g} us", cpu, MOST_SATURATED_US)
        )
    for name in ("20,000/s up", "20,000/s down"):
        row = results.readings.get(name, {})
        share = ratios(row.get(OURS, ()), row.get(PEER, ()))
        lines.append(_verdict(f"{name}: at most half of ocserv's CPU", share, MOST_OF_PEER, ".2f"))
    lines.append(_busy_verdict(results))
    return lines


def _busy_verdict(results: Results) -> str:
    target = f"busy control plane: p99 moves by at most {MOST_P99_MOVE_US:,.0f} us"
    idle = _spread(results.busy.get("idle", ()), lambda r: r.delay_us["p99"] if r.delay_us else None)
    if idle is not None and idle.most - idle.least > MOST_P99_MOVE_US:
        noise = f"the p99 beside an idle one alone is {idle.text('.0f')}"
        move = busy_move(results)
        return f"undecided: {target}: {noise}; moved by {move.text('.0f') if move else '-'}"
    return _verdict(target, busy_move(results), MOST_P99_MOVE_US, ".0f")


def busy_move(results: Results) -> Spread | None:
    """By how much the p99 of forwarded packets moves when the control plane is busy, in microseconds."""
    pairs = zip(results.busy.get("busy", ()), results.busy.get("idle", ()), strict=False)
    values = [b.delay_us["p99"] - i.delay_us["p99"] for b, i in pairs if b.delay_us and i.delay_us]
    return Spread.of(values) if values else None


def _verdict(target: str, value: Spread | None, most: float, form: str = ".1f") -> str:
    """Met or missed if every round says so; anything else is for a quieter machine to decide."""
    if value is None:
        return f"not measured: {target}"
    word = "met" if value.most <= most else "MISSED" if value.least > most else "undecided"
    return f"{word}: {target}: {value.text(form)}"


def _spread(readings: Iterable[Reading], what: Callable[[Reading], float | None]) -> Spread | None:
    values = [value for value in map(what, readings) if value is not None]
    return Spread.of(values) if values else None


def _names(results: Results) -> list[str]:
    names: dict[str, None] = {}
    for row in results.readings.values():
        names.update(dict.fromkeys(row))
    return list(names)


def _table(results: Results, cell_text: Callable[[Sequence[Reading]], str]) -> list[str]:
    names = _names(results)
    lines = [f"| load | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for cell in cells(1):
        row = results.readings.get(cell.name)
        if row is not None and not cell.load.timed:
            lines.append(f"| {cell.name} | {' | '.join(cell_text(row.get(n, ())) for n in names)} |")
    return lines


def _cpu(readings: Sequence[Reading]) -> str:
    spread = _spread(readings, lambda r: r.cpu_us)
    if spread is None:
        return "-"
    busy = _spread(readings, lambda r: r.server_busy)
    return spread.text() + (f", {busy.median:.0%} of core" if busy else "")


def _beside(readings: Sequence[Reading]) -> str:
    spread = _spread(readings, lambda r: 100 * r.tcp_segments / r.received)
    return spread.text() if spread else "-"


def _rate(readings: Sequence[Reading]) -> str:
    spread = _spread(readings, lambda r: r.rate)
    return spread.text(",.0f") if spread else "-"


def _lost(readings: Sequence[Reading]) -> str:
    spread = _spread(readings, lambda r: r.lost * 100)
    return spread.text(".2f") if spread else "-"


def _ratio_lines(results: Results) -> list[str]:
    lines = ["| load | datagram path | stream path |", "|---|---:|---:|"]
    for cell in cells(1):
        row = results.readings.get(cell.name, {})
        if cell.load.timed:
            continue
        datagram = ratios(row.get(OURS, ()), row.get(PEER, ()))
        stream = ratios(row.get("opentsm-tls", ()), row.get("ocserv-tls", ()))
        texts = [value.text(".2f") if value else "-" for value in (datagram, stream)]
        lines.append(f"| {cell.name} | {' | '.join(texts)} |")
    return lines


def _delay_row(name: str, readings: Sequence[Reading]) -> str:
    texts = []
    for quantile in ("p50", "p90", "p99", "max"):
        spread = _spread(readings, lambda r, q=quantile: r.delay_us[q] if r.delay_us else None)  # type: ignore[misc]
        texts.append(spread.text(".0f") if spread else "-")
    return f"| {name} | {' | '.join(texts)} |"


def _delays(results: Results) -> list[str]:
    lines = ["| path | p50 | p90 | p99 | max |", "|---|---:|---:|---:|---:|"]
    for cell in cells(1):
        if cell.load.timed:
            row = results.readings.get(cell.name, {})
            lines += [
                _delay_row(f"{name}, {cell.load.direction}", readings) for name, readings in row.items()
            ]
    return lines


def _busy(results: Results) -> list[str]:
    lines = ["| control plane | p50 | p90 | p99 | max |", "|---|---:|---:|---:|---:|"]
    return lines + [_delay_row(name, readings) for name, readings in results.busy.items()]


# -- plot ---------------------------------------------------------------------------------------------

_COLORS: Final = {
    "plain": "#7d8590",
    "opentsm-dtls": "#0a7d5a",
    "opentsm-tls": "#55b793",
    "ocserv-dtls": "#b3541e",
    "ocserv-tls": "#e0a070",
}
_WIDTH: Final = 900
_HEIGHT: Final = 360
_LEFT: Final = 60
_TOP: Final = 50
_BOTTOM: Final = 310


def svg(results: Results) -> str:
    """Bars of CPU per packet with their spread, one group per load."""
    groups = [c.name for c in cells(1) if c.name in results.readings and not c.load.timed]
    names = [name for name in _names(results) if name != "plain"]
    spreads = {
        (g, n): spread
        for g in groups
        for n in names
        if (spread := _spread(results.readings[g].get(n, ()), lambda r: r.cpu_us))
    }
    top = nice_ceiling(max((s.most for s in spreads.values()), default=1.0))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12"><title>Server CPU per packet</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-weight="600">Server CPU, microseconds per delivered packet</text>',
        *_grid(top),
        *_key(names),
    ]
    step = (_WIDTH - _LEFT - 20) / max(1, len(groups))
    for column, group in enumerate(groups):
        left, label = _LEFT + column * step, html.escape(group)
        parts.append(
            f'<text x="{left + step / 2:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{label}</text>'
        )
        for place, name in enumerate(names):
            if (group, name) in spreads:
                width = step * 0.8 / len(names)
                parts.append(_bar(left + step * 0.1 + place * width, width, spreads[group, name], top, name))
    return "".join([*parts, "</svg>\n"])


def _y(value: float, top: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * value / top


def _grid(top: float) -> list[str]:
    return [
        f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{_y(v, top):.1f}" y2="{_y(v, top):.1f}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 8}" y="{_y(v, top) + 4:.1f}" text-anchor="end" fill="#555">{v:g}</text>'
        for v in (top * i / 5 for i in range(6))
    ]


def _key(names: Sequence[str]) -> list[str]:
    return [
        f'<rect x="{_LEFT + i * 130}" y="28" width="12" height="12" fill="{_COLORS.get(n, "#333")}"/>'
        f'<text x="{_LEFT + i * 130 + 18}" y="38">{html.escape(n)}</text>'
        for i, n in enumerate(names)
    ]


def _bar(x: float, width: float, spread: Spread, top: float, name: str) -> str:
    y, middle = _y(spread.median, top), x + width / 2
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.9:.1f}" height="{_BOTTOM - y:.1f}" '
        f'fill="{_COLORS.get(name, "#333")}"/>'
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{_y(spread.least, top):.1f}" '
        f'y2="{_y(spread.most, top):.1f}" stroke="#222" stroke-width="1.5"/>'
        f'<text x="{middle:.1f}" y="{_y(spread.most, top) - 4:.1f}" text-anchor="middle" font-size="10">'
        f"{spread.median:.1f}</text>"
    )
