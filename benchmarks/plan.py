"""What is measured, in what order: rounds over all variants in turn, so that noise hits all alike.

The first round is thrown away: it warms caches and finds what cannot be done at all.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.rig import SERVER, Load, Reading, Rig, running
from benchmarks.variants import OpenTsmDtls, Variant
from opentsm.errors import PlatformError

Say = Callable[[str], None]

IDLE_RATE: Final = 50
"""One call: a packet every 20 ms."""

SATURATING: Final = 120_000
SATURATING_BURST: Final = 64
"""More than any of them carries here, and not much more: a flood would only take core 1 from the client."""

BUSY_RATE: Final = 1_000
"""The forwarded packets beside a busy control plane: twenty calls, and enough of them for a p99."""

CHURN_RATE: Final = 20
"""Tunnel pairs per second that are set up and torn down beside it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One load of the comparison.

    Args:
        name: its heading.
        load: the load.
    """

    name: str
    load: Load


def cells(seconds: float) -> list[Cell]:
    """The loads every variant is put under."""
    return [
        Cell("20,000/s up", Load("up", 20_000, seconds)),
        Cell("20,000/s down", Load("down", 20_000, seconds)),
        Cell("5,000/s up", Load("up", 5_000, seconds)),
        Cell("5,000/s down", Load("down", 5_000, seconds)),
        Cell("saturated up", Load("up", SATURATING, seconds, SATURATING_BURST)),
        Cell("saturated down", Load("down", SATURATING, seconds, SATURATING_BURST)),
        Cell("50/s up, delay", Load("up", IDLE_RATE, max(seconds, 4.0), flows=1, timed=True)),
        Cell("50/s down, delay", Load("down", IDLE_RATE, max(seconds, 4.0), flows=1, timed=True)),
    ]


@dataclass(slots=True)
class Results:
    """Everything measured.

    Args:
        readings: cell -> variant -> one reading per round.
        busy: "idle" and "busy" -> one reading per round.
        left_out: variant -> why it was not measured (or not to the end).
    """

    readings: dict[str, dict[str, list[Reading]]] = field(default_factory=dict)
    busy: dict[str, list[Reading]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, cell: str, variant: str, reading: Reading) -> None:
        """Keep a reading."""
        self.readings.setdefault(cell, {}).setdefault(variant, []).append(reading)

    def as_json(self) -> dict[str, Any]:
        """The same in plain values."""
        return {
            "readings": {
                cell: {name: [asdict(r) for r in readings] for name, readings in row.items()}
                for cell, row in self.readings.items()
            },
            "busy_control_plane": {name: [asdict(r) for r in rs] for name, rs in self.busy.items()},
            "left_out": self.left_out,
        }


def compare(
    rig: Rig,
    folder: Path,
    kinds: Sequence[type[Variant]],
    rounds: int,
    seconds: float,
    say: Say,
    out: Results,
) -> None:
    """Every variant under every load, ``rounds`` times after one round for nothing."""
    for number in range(rounds + 1):
        for kind in kinds:
            if kind.name in out.left_out:
                continue
            say(f"round {number} of {rounds}{' (thrown away)' if not number else ''}: {kind.name}")
            try:
                _one_variant(kind(rig, folder), seconds, out if number else None)
            except PlatformError as error:
                out.left_out[kind.name] = str(error)
                say(f"{kind.name} is left out from here on: {error}")


def _one_variant(variant: Variant, seconds: float, out: Results | None) -> None:
    try:
        variant.set_up()
        for cell in cells(seconds):
            before = variant.outer_packets()
            reading = variant.rig.measure(cell.load, variant.inner, variant.server_pids)
            after = variant.outer_packets()
            variant.check_path(before, after, reading.received)
            reading.tcp_segments = after.tcp - before.tcp
            if out is not None:
                out.add(cell.name, variant.name, reading)
    finally:
        variant.take_down()


def busy_control_plane(rig: Rig, folder: Path, rounds: int, seconds: float, say: Say, out: Results) -> None:
    """Forwarded packets beside an idle and a busy control plane of the same server process, in turn."""
    variant = OpenTsmDtls(rig, folder)
    load = Load("up", BUSY_RATE, seconds, timed=True)
    try:
        variant.set_up()
        for number in range(rounds + 1):
            say(f"busy control plane, round {number} of {rounds}{' (thrown away)' if not number else ''}")
            pair = {"idle": rig.measure(load, variant.inner, variant.server_pids)}
            churn = rig.start_module(
                *(rig.client, "benchmarks.churn", "--server", SERVER, "--ca", str(folder / "ca.pem")),
                *("--rate", str(CHURN_RATE)),
            )
            with running(churn):
                variant.signal_server(signal.SIGUSR1)
                time.sleep(0.3)
                pair["busy"] = rig.measure(load, variant.inner, variant.server_pids)
                variant.signal_server(signal.SIGUSR2)
                if churn.poll() is not None:
                    raise PlatformError("the clients that come and go have failed; see above")
            if number:
                for name, reading in pair.items():
                    out.busy.setdefault(name, []).append(reading)
    except PlatformError as error:
        out.left_out["busy control plane"] = str(error)
        say(f"the busy control plane is left out: {error}")
    finally:
        variant.take_down()


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str = ".1f") -> str:
        """``5.1 (4.9-5.6)``."""
        return f"{self.median:{form}} ({self.least:{form}}-{self.most:{form}})"


def ratios(ours: Sequence[Reading], theirs: Sequence[Reading]) -> Spread | None:
    """CPU per packet of one variant over another's, round by round."""
    pairs = [(a.cpu_us, b.cpu_us) for a, b in zip(ours, theirs, strict=False)]
    values = [a / b for a, b in pairs if a is not None and b]
    return Spread.of(values) if values else None
