"""The parts made of ``benchmarks.relay``: one-call clients that talk to each other, and trunks."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from benchmarks.figures import Figures, verdict
from benchmarks.parts import Part, Settings, Shown, module_rows

MOST_US: Final = {
    "1,000 clients, datagram, 50/s each": 7.0,
    "64 clients, datagram, saturated": 5.5,
    "1,000 clients, stream, 50/s each": 9.0,
}
"""Targets, by the rows' names."""

MOST_TRUNK_US: Final = 2.5
SERIES: Final = "opentsm"
METRICS: Final = {
    "cpu_us": ("Server CPU, microseconds per delivered packet", ".1f"),
    "rate": ("Delivered packets per second", ",.0f"),
    "lost_percent": ("Lost, %", ".2f"),
    "busy_percent": ("The server's core in use, %", ".0f"),
    "p50_us": ("Delay from client to client, p50, microseconds", ",.0f"),
    "p99_us": ("Delay from client to client, p99, microseconds", ",.0f"),
}

SHAPES: Final = {
    "pairs": "to another tunnel",
    "hub": "to as many clients",
    "core": "to the core side by sockets",
    "tun": "to the core side by a TUN device",
}

TO_CORE: Final = ("--shape", "tun", "--clients", "1000", "--total", "50000")
"""One-call clients whose calls go to a gateway on the core side, through a TUN device; at half a call's rate,
so that the crowd is not what is short."""

CASES: Final = 5
AROUND_SECONDS: Final = 4.0
"""For estimates: a case's server, its crowd and the load that is thrown away."""


def case_name(case: dict[str, Any]) -> str:
    """A row's name."""
    rate = f"{case['rate']:g}/s each" if case["rate"] else "saturated"
    shape, calls = case.get("shape", "pairs"), case.get("calls", 1)
    if shape == "hub":
        return f"one tunnel with {case['clients'] - 1:,} calls {SHAPES[shape]}, {rate}"
    if calls > 1:
        return f"one tunnel with {calls:,} calls {SHAPES[shape]}, {rate}"
    where = "" if shape == "pairs" else f", {SHAPES[shape]}"
    return f"{case['clients']:,} clients, {case['path']}{where}, {rate}"


def run(runs: tuple[tuple[str, ...], ...], settings: Settings, out: Figures) -> None:
    """All cases, round by round; each of ``runs`` has arguments of ``benchmarks.relay``."""
    for number in settings.numbers():
        settings.say_round(number, "relayed packets")
        for words in runs:
            _one_run(words, settings, out if number else Figures())


def _one_run(words: tuple[str, ...], settings: Settings, out: Figures) -> None:
    for row in module_rows("benchmarks.relay", "--json", "--seconds", f"{settings.seconds:g}", *words):
        for metric in METRICS:
            out.add(metric, case_name(row["case"]), SERIES, row[metric])


def estimate(settings: Settings) -> float:
    """Seconds."""
    return settings.all_rounds * CASES * (settings.seconds + AROUND_SECONDS)


def _sections(figures: Figures) -> dict[str, list[str]]:
    """All metrics of a case in one line."""
    rows = figures.rows("cpu_us")
    heads = [title for title, _ in METRICS.values()]
    lines = [f"| load | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for row in rows:
        spreads = [(figures.spread(metric, row, SERIES), form) for metric, (_, form) in METRICS.items()]
        lines.append(f"| {row} | {' | '.join(s.text(form) if s else '-' for s, form in spreads)} |")
    return {"Relayed packets": lines} if rows else {}


def show_relay(figures: Figures) -> Shown:
    """The table, and a verdict for each target."""
    verdicts = [
        verdict(
            f"relayed, {row}: at most {most:g} us of CPU per packet",
            figures.spread("cpu_us", row, SERIES),
            most,
        )
        for row, most in MOST_US.items()
    ]
    return Shown(verdicts, _sections(figures))


def show_trunk(figures: Figures) -> Shown:
    """The table, and a verdict for each way of the trunk."""
    verdicts = [
        verdict(
            f"trunk, {row}: at most {MOST_TRUNK_US:g} us of CPU per packet",
            figures.spread("cpu_us", row, SERIES),
            MOST_TRUNK_US,
        )
        for row in figures.rows("cpu_us")
    ]
    return Shown(verdicts or ["not measured: trunk"], _sections(figures))


RELAY: Final = Part("relay", "Tunnel to tunnel", estimate, partial(run, ((), TO_CORE)), show_relay)
TRUNK: Final = Part("trunk", "Many calls in one tunnel", estimate, partial(run, (("--trunk",),)), show_trunk)
