"""One client beside rivals, in rounds over all variants in turn, so that noise hits all alike.

The first round is thrown away: it warms caches and finds what cannot be done at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import plot
from benchmarks.coturn import CoturnTls, CoturnUdp
from benchmarks.figures import Figures, table, verdict
from benchmarks.ocserv import OcservDtls, OcservTls
from benchmarks.openvpn import OpenVpnTcp, OpenVpnUdp
from benchmarks.parts import Part, Settings, Shown, say
from benchmarks.rig import Load, Reading, Rig
from benchmarks.variants import OpenTsmDtls, OpenTsmTls, Plain, Variant, make_keys
from benchmarks.wireguard import WireGuardGo
from opentsm.errors import PlatformError

VARIANTS: Final[tuple[type[Variant], ...]] = (
    *(Plain, OpenTsmDtls, OpenTsmTls, OcservDtls, OcservTls, OpenVpnUdp, OpenVpnTcp),
    *(CoturnUdp, CoturnTls, WireGuardGo),
)

OURS: Final = ("opentsm-dtls", "opentsm-tls")
STREAMS: Final = ("ocserv-tls", "openvpn-tcp", "coturn-tls")
"""Rivals whose packets go through TCP."""

IDLE_RATE: Final = 50
"""One call: a packet every 20 ms."""

SATURATING: Final = 120_000
SATURATING_BURST: Final = 64
"""More than any of them carries here, and not much more: a flood would only take core 1 from the client."""

TIMED_SECONDS: Final = 4.0
"""A delay's p99 is that of two hundred packets at least."""

MOST_OF_PEER: Final = 0.5
MOST_SATURATED_US: Final = 6.0
"""What OpenTSM has set itself (see docs/benchmarks.md)."""

SET_UP_SECONDS: Final = 2.0
AROUND_SECONDS: Final = 2.0
"""For estimates: what a variant takes to come up and go, and a load to begin and end."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One load of the comparison.

    Args:
        name: its heading.
        load: the load.
    """

    name: str
    load: Load


def _both_ways(name: str, rate: int, seconds: float, burst: int = 1) -> tuple[Cell, Cell]:
    up, down = (Load(way, rate, seconds, burst) for way in ("up", "down"))
    return Cell(f"{name} up", up), Cell(f"{name} down", down)


def loads(seconds: float) -> dict[str, tuple[Cell, ...]]:
    """The loads every variant is put under, by their names on the command line."""
    timed = max(seconds, TIMED_SECONDS)
    return {
        "20000": _both_ways("20,000/s", 20_000, seconds),
        "5000": _both_ways("5,000/s", 5_000, seconds),
        "saturated": _both_ways("saturated", SATURATING, seconds, SATURATING_BURST),
        "delay": tuple(
            Cell(f"50/s {way}, delay", Load(way, IDLE_RATE, timed, flows=1, timed=True))
            for way in ("up", "down")
        ),
    }


LOADS: Final = tuple(loads(1))


def _cells(settings: Settings) -> list[Cell]:
    offered = loads(settings.seconds)
    return [cell for name in settings.loads for cell in offered[name]]


def estimate(settings: Settings) -> float:
    """Seconds."""
    a_variant = SET_UP_SECONDS + sum(c.load.seconds + AROUND_SECONDS for c in _cells(settings))
    return settings.all_rounds * len(settings.variants) * a_variant


def run(settings: Settings, out: Figures) -> None:
    """Every variant under every load, in namespaces that are gone afterwards."""
    kinds = [kind for kind in VARIANTS if kind.name in settings.variants and _possible(kind, out)]
    with tempfile.TemporaryDirectory(prefix="opentsm-bench-") as name, Rig(settings.tool) as rig:
        folder = Path(name)
        make_keys(folder)
        for number in settings.numbers():
            for kind in kinds:
                if kind.name in out.left_out:
                    continue
                settings.say_round(number, kind.name)
                try:
                    one_variant(kind(rig, folder), _cells(settings), out if number else None)
                except (PlatformError, ConnectionError) as error:
                    out.left_out[kind.name] = str(error)
                    say(f"{kind.name} is left out from here on: {error}")


def _possible(kind: type[Variant], out: Figures) -> bool:
    obstacle = kind.obstacle()
    if obstacle is not None:
        out.left_out[kind.name] = obstacle
        say(f"{kind.name} is left out: {obstacle}")
    return obstacle is None


def one_variant(variant: Variant, cells: Sequence[Cell], out: Figures | None) -> None:
    """Set a variant up, put it under loads, take it down.

    Raises:
        PlatformError: it does not come up, carries nothing, or carries it another way.
    """
    try:
        variant.set_up()
        for cell in cells:
            before = variant.outer_packets()
            reading = variant.rig.measure(cell.load, variant.ends(cell.load), variant.server_pids)
            after = variant.outer_packets()
            variant.check_path(before, after, reading.received)
            reading.tcp_segments = after.tcp - before.tcp
            if out is not None:
                keep(out, cell.name, variant.name, reading)
    finally:
        variant.take_down()


def keep(out: Figures, row: str, series: str, reading: Reading) -> None:
    """Write a reading down."""
    if reading.delay_us:
        for quantile in ("p50", "p90", "p99", "max"):
            out.add(f"delay {quantile}", row, series, reading.delay_us[quantile])
        return
    out.add("cpu_us", row, series, reading.cpu_us)
    out.add("rate", row, series, reading.rate)
    out.add("lost", row, series, reading.lost * 100)
    busy = reading.server_busy
    out.add("busy", row, series, None if busy is None else busy * 100)
    out.add("tcp", row, series, 100 * reading.tcp_segments / reading.received)


# -- what is shown ------------------------------------------------------------------------------------


def rivals(figures: Figures, metric: str) -> list[str]:
    """Everybody else who was measured."""
    return [name for name in figures.series(metric) if name not in (*OURS, "plain")]


def show(figures: Figures) -> Shown:
    """Tables, verdicts, a plot."""
    shown = Shown(verdicts=_verdicts(figures))
    shown.sections = {
        "Server CPU, microseconds per delivered packet": table(figures, "cpu_us"),
        "Ours over the best rival of the same round": _ratio_lines(figures),
        "Delivered packets per second": table(figures, "rate", ",.0f"),
        "Lost, %": table(figures, "lost", ".2f"),
        "The server's core in use, %": table(figures, "busy", ".0f"),
        "TCP segments at the server per 100 packets": table(figures, "tcp"),
    }
    for quantile in ("p50", "p90", "p99", "max"):
        shown.sections[f"One-way delay, {quantile}, microseconds"] = table(
            figures, f"delay {quantile}", ".0f"
        )
    if figures.rows("cpu_us"):
        shown.plots["one-client"] = plot.bars(
            figures, "cpu_us", "Server CPU, microseconds per delivered packet"
        )
    return shown


def _verdicts(figures: Figures) -> list[str]:
    lines = []
    others = rivals(figures, "cpu_us")
    for rate in ("20,000/s", "5,000/s"):
        for way in ("up", "down"):
            row = f"{rate} {way}"
            best = figures.best("cpu_us", row, others)
            share = figures.ratio("cpu_us", row, OURS[0], others)
            target = f"one client, {row}: at most half of the best rival's CPU ({best or 'no rival'})"
            lines.append(verdict(target, share, MOST_OF_PEER, ".2f"))
    for way in ("up", "down"):
        row = f"saturated {way}"
        target = f"one client, {row}: at most {MOST_SATURATED_US:g} us of CPU per packet"
        lines.append(verdict(target, figures.spread("cpu_us", row, OURS[0]), MOST_SATURATED_US))
    return lines


def _ratio_lines(figures: Figures) -> list[str]:
    others = rivals(figures, "cpu_us")
    streams = [name for name in others if name in STREAMS]
    lines = ["| load | best rival | opentsm-dtls | best over TCP | opentsm-tls |", "|---|---|---:|---|---:|"]
    for row in figures.rows("cpu_us"):
        cells = []
        for ours, theirs in ((OURS[0], others), (OURS[1], streams)):
            share = figures.ratio("cpu_us", row, ours, theirs)
            cells += [figures.best("cpu_us", row, theirs) or "-", share.text(".2f") if share else "-"]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


PART: Final = Part("one-client", "One client beside rivals", estimate, run, show)
