"""How cost grows: what a packet costs, against one thing at a time. Set-ups and memory against the number of
tunnels are in ``program_parts``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import plot
from benchmarks.coturn import CoturnUdp
from benchmarks.figures import Figures, table
from benchmarks.ocserv import OcservDtls
from benchmarks.parts import Part, Settings, Shown, module_rows
from benchmarks.rig import Load, Rig
from benchmarks.variants import OpenTsmDtls, Variant, make_keys

RATES: Final = (1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 80_000)
RATE_VARIANTS: Final[tuple[type[Variant], ...]] = (OpenTsmDtls, OcservDtls, CoturnUdp)

TOTAL: Final = 40_000
"""Packets per second of all calls together, where something else than the rate is on the axis."""

CLIENTS: Final = (2, 20, 200, 800)
"""In pairs; 800 have 50 packets/s each, as calls do."""

IDLE: Final = (0, 1_000, 4_000, 8_000)
"""Clients that are silent, with a TLS and a datagram tunnel each, beside 800 that talk. With theirs 17,600
tunnels are up, and the crowd's process has files for no more."""

SIZES: Final = (40, 80, 172, 320, 640, 1_000, 1_300)
CALLS: Final = (1, 10, 100, 1_000)
MOST_ROUNDS: Final = 2
"""Many points say what many rounds would."""

BOTH: Final = ("datagram", "stream")
AROUND_SECONDS: Final = 5.0
"""For estimates: what a relay case takes besides its load."""


def _rates(settings: Settings, out: Figures) -> None:
    """One client through a TUN device, ours and two rivals."""
    with tempfile.TemporaryDirectory(prefix="opentsm-bench-") as name, Rig(settings.tool) as rig:
        folder = Path(name)
        make_keys(folder)
        for kind in RATE_VARIANTS:
            if kind.name not in settings.variants or kind.obstacle():
                continue
            variant = kind(rig, folder)
            try:
                variant.set_up()
                for way in ("up", "down"):
                    for rate in RATES:
                        load = Load(way, rate, settings.seconds)
                        reading = rig.measure(load, variant.ends(load), variant.server_pids)
                        out.add(f"rate-{way}", f"{rate:,}", kind.name, reading.cpu_us)
            finally:
                variant.take_down()


def _relayed(
    metric: str,
    option: str,
    values: Sequence[int],
    more: Sequence[str],
    paths: Sequence[str],
    settings: Settings,
    out: Figures,
) -> None:
    """Tunnel to tunnel, with one thing that changes."""
    for path in paths:
        for value in values:
            [row] = module_rows(
                *("benchmarks.relay", "--json", "--seconds", f"{settings.seconds:g}", "--path", path),
                *("--total", str(TOTAL), option, str(value), *more),
            )
            out.add(metric, f"{value:,}", path, row["cpu_us"])
            out.add(f"{metric} lost", f"{value:,}", path, row["lost_percent"])


def _idle(settings: Settings, out: Figures) -> None:
    """Those who talk, beside more and more who do not."""
    words = ("--idle", ",".join(map(str, IDLE)), "--seconds", f"{settings.seconds:g}")
    for row in module_rows("benchmarks.idle", *words):
        tunnels = f"{row['tunnels']:,}"
        out.add("idle", tunnels, "datagram", row["packet_us"])
        out.add("idle lost", tunnels, "datagram", row["lost_percent"])
        out.add("idle cost", tunnels, "us a second", row["idle_us"])


@dataclass(frozen=True, slots=True)
class Curve:
    """What is measured along an axis.

    Args:
        seconds: about how long a round takes with loads of a second, and how much more for each further one.
        measure: a round.
    """

    seconds: tuple[float, float]
    measure: Callable[[Settings, Figures], None]


def _relay_seconds(cases: int) -> tuple[float, float]:
    return cases * (AROUND_SECONDS + 1), cases


CURVES: Final[dict[str, Curve]] = {
    "rate": Curve((80, 42), _rates),
    "tunnels": Curve(
        _relay_seconds(2 * len(CLIENTS)), partial(_relayed, "tunnels", "--clients", CLIENTS, (), BOTH)
    ),
    "idle": Curve((110, 4), _idle),
    "size": Curve(
        _relay_seconds(2 * len(SIZES)),
        partial(_relayed, "size", "--payload", SIZES, ("--clients", "64"), BOTH),
    ),
    "calls": Curve(
        _relay_seconds(len(CALLS)),
        partial(_relayed, "calls", "--calls", CALLS, ("--clients", "2"), BOTH[:1]),
    ),
}

_KINDS: Final = {"datagram": "datagram tunnels", "stream": "TLS tunnels"}
_CPU: Final = "server CPU, microseconds per packet"
PLOTS: Final[dict[str, tuple[str, plot.Axis, str]]] = {
    "rate-up": (f"One client, up: {_CPU}", plot.Axis("packets per second"), ".1f"),
    "rate-down": (f"One client, down: {_CPU}", plot.Axis("packets per second"), ".1f"),
    "tunnels": (
        f"Tunnel to tunnel, {TOTAL:,} packets/s of 172 bytes: {_CPU}",
        plot.Axis("clients that talk", names=_KINDS),
        ".1f",
    ),
    "idle": (
        f"800 clients that talk beside idle tunnels: {_CPU}",
        plot.Axis("idle tunnels", logarithmic=False, names={"datagram": "a packet"}),
        ".1f",
    ),
    "idle cost": (
        "An idle tunnel: server CPU, microseconds a second",
        plot.Axis("idle tunnels", logarithmic=False),
        ".2f",
    ),
    "size": (
        f"64 clients, {TOTAL:,} packets/s: {_CPU}",
        plot.Axis("bytes of payload", logarithmic=False, names=_KINDS),
        ".1f",
    ),
    "calls": (
        f"Two tunnels, {TOTAL:,} packets/s of 172 bytes: {_CPU}",
        plot.Axis("calls in each", names=_KINDS),
        ".1f",
    ),
}


def estimate(settings: Settings) -> float:
    """Seconds."""
    first_and_more = [CURVES[name].seconds for name in settings.curves]
    rounds = min(settings.rounds, MOST_ROUNDS) + settings.warm_up
    return rounds * sum(first + more * (settings.seconds - 1) for first, more in first_and_more)


def run(settings: Settings, out: Figures) -> None:
    """The curves that were asked for, in turn, in rounds."""
    for number in (number for number in settings.numbers() if number <= MOST_ROUNDS):
        for name in settings.curves:
            settings.say_round(number, f"curve: {name}")
            CURVES[name].measure(settings, out if number else Figures())


def show(figures: Figures) -> Shown:
    """A table and a plot for each."""
    shown = Shown()
    for metric, (title, axis, form) in PLOTS.items():
        if figures.rows(metric):
            shown.sections[title] = table(figures, metric, form, head=axis.name)
            if figures.rows(f"{metric} lost"):
                shown.sections[f"Lost, %, against {axis.name}"] = table(
                    figures, f"{metric} lost", ".2f", head=axis.name
                )
            shown.plots[f"curve-{metric.replace(' ', '-')}"] = plot.lines(figures, metric, title, axis)
    return shown


PART: Final = Part("curves", "How cost grows", estimate, run, show)
