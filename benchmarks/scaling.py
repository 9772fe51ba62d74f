"""What a machine of many cores holds by what was measured here: ``python -m benchmarks.scaling RESULTS``.

Prints the tables of docs/scaling.md, each line with its arithmetic, from the results that ``make bench`` has
kept in a folder. Nothing is measured.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.figures import Figures

CORES: Final = 32
WORKERS: Final = 24
"""Cores with a user-plane thread; one more has the control plane, seven the network card's interrupts."""

LOAD: Final = 0.7
"""Of a core that may be in use: above it queues begin to be heard."""

TOGETHER: Final = 0.85
"""What a worker does beside others, of what it does alone: the least that the target for two asks for."""

PACKETS_PER_CALL: Final = 100
"""50 a second each way."""

KERNEL_KIB: Final = 4.7
"""Of the kernel for a TCP connection: socket, inode, file, epoll item (half of what /proc/slabinfo showed for
both ends of 3,000 connections). A datagram tunnel has none: all share their workers' sockets."""

STORM: Final = 200_000
PROCESSES: Final = 8


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured, in microseconds and KiB."""

    relayed: dict[str, float]
    stream_us: float
    datagram_us: float
    stream_control_us: float
    datagram_control_us: float
    stream_kib: float
    datagram_kib: float


CALLS: Final = {
    "1,000 clients, datagram, 50/s each": "between two clients, datagram tunnels",
    "1,000 clients, stream, 50/s each": "between two clients, TLS streams only",
    "1,000 clients, datagram, to the core side by a TUN device, 25/s each": "client to core side, TUN device",
    "one tunnel with 500 calls to another tunnel, 50/s each": "between two trunks",
    "one tunnel with 500 calls to the core side by a TUN device, 50/s each": "trunk to core side, TUN device",
}


def read(folder: Path) -> Costs:
    """The costs of a folder's results; each is the median of its rounds."""
    parts = json.loads((folder / "results.json").read_text())["parts"]
    figures = {name: Figures.from_json(part) for name, part in parts.items()}
    relayed = {}
    for part in ("relay", "trunk"):
        for row, what in CALLS.items():
            spread = figures[part].spread("cpu_us", row, "opentsm")
            if spread is not None:
                relayed[what] = spread.median
    stage = figures["set-up"].rows("us")[-1]

    def set_up(metric: str, series: str) -> float:
        spread = figures["set-up"].spread(metric, stage, series)
        if spread is None:
            raise SystemExit(f"{folder} has no set-ups: --parts set-up --into {folder}")
        return spread.median

    names = ("TLS tunnel", "datagram tunnel")
    stream_us, datagram_us = (set_up("us", name) for name in names)
    stream_control, datagram_control = (set_up("control_us", name) for name in names)
    stream_kib, datagram_kib = (set_up("kib", name) for name in names)
    return Costs(relayed, stream_us, datagram_us, stream_control, datagram_control, stream_kib, datagram_kib)


def calls(costs: Costs) -> list[str]:
    """Calls at once."""
    lines = ["| calls | us per packet | calls on a core | calls on the machine |", "|---|---:|---:|---:|"]
    for what, cost in costs.relayed.items():
        core = LOAD * 1e6 / cost / PACKETS_PER_CALL
        lines.append(f"| {what} | {cost:.1f} | {core:,.0f} | {core * TOGETHER * WORKERS:,.0f} |")
    return [
        *lines,
        "",
        f"A core: {LOAD} x 1,000,000 us / us per packet / {PACKETS_PER_CALL} packets per call and second. "
        f"The machine: that x {WORKERS} workers x {TOGETHER}.",
    ]


def tunnels(costs: Costs) -> list[str]:
    """Tunnels held, and their memory."""
    lines = ["| tunnels | memory of the process | of the kernel | open files |", "|---|---:|---:|---:|"]
    for count in (18_000, STORM):
        own = count * (costs.stream_kib + costs.datagram_kib) / 2**20
        kernel = count * KERNEL_KIB / 2**20
        lines.append(
            f"| {count:,} TLS, each with its datagram tunnel | {own:.1f} GiB | {kernel:.1f} GiB | {count:,} |"
        )
    return [
        *lines,
        "",
        f"A tunnel: {costs.stream_kib:.1f} + {costs.datagram_kib:.1f} KiB, and {KERNEL_KIB} of the kernel.",
    ]


def set_ups(costs: Costs) -> list[str]:
    """Set-ups per second, and how long a storm lasts."""
    lines = [
        f"| set-ups | us in all | of it control plane | /s of one process | /s of {PROCESSES} processes "
        f"| {STORM:,} on one | on {PROCESSES} |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    both = costs.stream_us + costs.datagram_us
    both_control = costs.stream_control_us + costs.datagram_control_us
    for what, all_us, control in (
        ("TLS tunnel with address and token", costs.stream_us, costs.stream_control_us),
        ("the same with its datagram tunnel", both, both_control),
    ):
        one = 1e6 / control
        # The workers' part is spread over them; the machine's cores bound what processes can do together.
        many = min(PROCESSES * one, CORES * LOAD * 1e6 / all_us)
        lines.append(
            f"| {what} | {all_us:.0f} | {control:.0f} | {one:,.0f} | {many:,.0f} "
            f"| {STORM / one:.0f} s | {STORM / many:.0f} s |"
        )
    return [
        *lines,
        "",
        "One process: 1,000,000 us / the control plane's part, which is one thread. Several: as many times "
        f"that, at most {CORES} cores x {LOAD} / all of it.",
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a folder of bench-results/")
    costs = read(parser.parse_args().results)
    for title, lines in (
        ("Calls", calls(costs)),
        ("Tunnels", tunnels(costs)),
        ("Set-ups", set_ups(costs)),
    ):
        print("\n".join([f"### {title}", "", *lines, ""]))


if __name__ == "__main__":
    main()
