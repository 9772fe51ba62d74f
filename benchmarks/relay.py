"""What a packet costs that one client sends to another: ``python -m benchmarks.relay --help``.

The server of ``benchmarks.capacity`` on core 0, a crowd of real clients (``tsm-load crowd``) in pairs on
core 1. A packet counts once, when it is delivered: the server has then opened one record and sealed another.
CPU time is the server's own, user and system, from the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.capacity import ADDRESS, PORT, prepare, serving
from benchmarks.machine import build_load_tool
from benchmarks.rig import process_cpu, stop

SERVER_CORE: Final = 0
CLIENT_CORE: Final = 1
WARM_UP: Final = 1.0
"""Seconds of the same load that are thrown away."""


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table.

    Args:
        clients: an even number. path: of the media. rate: packets per second of each client; 0: saturated.
        size: bytes of payload.
    """

    clients: int
    path: str
    rate: int
    size: int = 172

    def __str__(self) -> str:
        load = f"{self.rate}/s each" if self.rate else "saturated"
        return f"{self.clients} clients, {self.path}, {load}, {self.size} bytes"


CASES: Final = (
    Case(1000, "datagram", 50),
    Case(64, "datagram", 0),
    Case(1000, "stream", 50),
    Case(64, "stream", 0),
)
"""The issue's own: one-call clients at 50 packets/s each way, and as many as go through."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of a case."""

    case: Case
    cpu_us: float
    lost_percent: float
    rate: float
    busy_percent: float
    p50_us: float
    p99_us: float


@contextmanager
def crowd(tool: Path, folder: Path, token: str, case: Case) -> Iterator[subprocess.Popen[str]]:
    """A crowd that is up."""
    words = ["taskset", "-c", str(CLIENT_CORE), str(tool), "crowd", "--to", f"{ADDRESS}:{PORT}"]
    words += ["--ca", str(folder / "ca.pem"), "--token", token, "--clients", str(case.clients)]
    words += ["--path", case.path, "--size", str(case.size)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _answer(process)
        yield process
    finally:
        stop(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("tsm-load has died; its words are above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _talk(process: subprocess.Popen[str], rate: int, seconds: float) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(f"talk {rate} {seconds}\n")
    process.stdin.flush()
    return _answer(process)


def measure(case: Case, tool: Path, seconds: float) -> Result:
    """One case on a fresh server."""
    with tempfile.TemporaryDirectory(prefix="opentsm-relay-") as name:
        folder = Path(name)
        token = prepare(folder, workers=1)
        with serving(folder) as server:
            for task in os.listdir(f"/proc/{server.pid}/task"):
                os.sched_setaffinity(int(task), {SERVER_CORE})
            with crowd(tool, folder, token, case) as clients:
                _talk(clients, case.rate, WARM_UP)
                before = process_cpu(server.pid)
                answer = _talk(clients, case.rate, seconds)
                used = process_cpu(server.pid) - before
    received = answer["received"]
    return Result(
        case=case,
        cpu_us=1e6 * used / max(received, 1),
        lost_percent=100.0 * (1 - received / max(answer["sent"], 1)),
        rate=received / answer["seconds"],
        busy_percent=100.0 * used / answer["seconds"],
        p50_us=answer["delay_us"]["p50"],
        p99_us=answer["delay_us"]["p99"],
    )


def table(results: Sequence[Result]) -> str:
    """Results as Markdown."""
    head = (
        "| load | us CPU per packet | delivered/s | lost % | server's core busy % | delay p50 / p99 us |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    lines = [
        f"| {one.case} | {one.cpu_us:.1f} | {one.rate:,.0f} | {one.lost_percent:.2f} "
        f"| {one.busy_percent:.0f} | {one.p50_us:.0f} / {one.p99_us:.0f} |"
        for one in results
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Measure all cases, or one given on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients", type=int, help="one case of your own; with --path, --rate, --size")
    parser.add_argument("--path", choices=("datagram", "stream"), default="datagram")
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--size", type=int, default=172)
    options = parser.parse_args()
    cases: Sequence[Case] = CASES
    if options.clients:
        cases = [Case(options.clients, options.path, options.rate, options.size)]
    tool = build_load_tool()
    results = [measure(case, tool, options.seconds) for _ in range(options.rounds) for case in cases]
    print(table(results))


if __name__ == "__main__":
    main()
