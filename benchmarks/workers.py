"""What a second worker brings: ``python -m benchmarks.workers``.

A machine of two cores has to carry the load generators too. So one worker and one generator share core 0, and
are compared with two workers and two generators, worker i and generator i on core i: each pair has a core
to itself, and twice the packets would be the whole of it. A generator is a crowd of real clients (``tsm-load
crowd``) in pairs that send as much as comes back; the kernel spreads their connections over the workers
(SO_REUSEPORT), so that half of the packets come in at one worker and leave by the other's tunnel. Interleaved
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.capacity import ADDRESS, PORT, prepare, serving
from benchmarks.machine import build_load_tool
from benchmarks.rig import process_cpu, stop
from benchmarks.rows import Talker

CLIENTS: Final = 64
PATHS: Final = ("datagram", "stream")
WARM_UP: Final = 1.0


@contextmanager
def _running(tool: Path, path: str, workers: int) -> Iterator[tuple[int, list[Talker]]]:
    """A server, its workers on a core each, and as many crowds; the server's process id, and the crowds."""
    with tempfile.TemporaryDirectory(prefix="opentsm-workers-") as name:
        folder = Path(name)
        token = prepare(folder, workers)
        with serving(folder) as server:
            _pin(server.pid, workers)
            words = [str(tool), "crowd", "--to", f"{ADDRESS}:{PORT}", "--ca", str(folder / "ca.pem")]
            words += ["--token", token, "--clients", str(CLIENTS), "--path", path]
            crowds: list[Talker] = []
            try:
                for core in range(workers):
                    crowds.append(Talker(words, core))
                yield server.pid, crowds
            finally:
                for crowd in crowds:
                    stop(crowd.process)


def _pin(pid: int, workers: int) -> None:
    """Worker i to core i; everything else of the server to the cores of its workers."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        number = name.removeprefix("tsm-worker-")
        os.sched_setaffinity(int(task.name), {int(number)} if number != name else set(range(workers)))


def measure(tool: Path, path: str, workers: int, seconds: float) -> dict[str, Any]:
    """Saturate so many workers by as many crowds.

    Returns:
        ``rate``: packets delivered a second; ``cpu_us``: CPU time of the server for each.
    """
    with _running(tool, path, workers) as (pid, crowds):
        _talk(crowds, WARM_UP)
        before = process_cpu(pid)
        said = _talk(crowds, seconds)
        cpu = process_cpu(pid) - before
    received = sum(one["received"] for one in said)
    rate = sum(one["received"] / one["seconds"] for one in said)
    return {"path": path, "workers": workers, "rate": rate, "cpu_us": 1e6 * cpu / received}


def _talk(crowds: Sequence[Talker], seconds: float) -> list[dict[str, Any]]:
    for crowd in crowds:
        crowd.say(f"talk 0 {seconds}")
    return [crowd.answer() for crowd in crowds]


def main() -> None:
    """Measure and print; a list of readings and ratios with --json."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("two workers need two cores")
    tool = build_load_tool()
    readings = [
        measure(tool, path, workers, options.seconds)
        for _ in range(options.rounds)
        for path in options.paths
        for workers in (1, 2)
    ]
    found = {path: _ratios(readings, path) for path in options.paths}
    if options.json:
        print(json.dumps({"readings": readings, "ratios": found}))
        return
    for path, ratios in found.items():
        words = []
        for workers in (1, 2):
            own = [one for one in readings if (one["path"], one["workers"]) == (path, workers)]
            rate, cpu = (statistics.median(one[name] for one in own) for name in ("rate", "cpu_us"))
            words.append(f"{workers}: {rate:,.0f}/s at {cpu:.1f} us")
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{path}: {', '.join(words)}; ratio {spread}")


def _ratios(readings: Sequence[dict[str, Any]], path: str) -> list[float]:
    one, two = ([r["rate"] for r in readings if (r["path"], r["workers"]) == (path, n)] for n in (1, 2))
    return [b / a for a, b in zip(one, two, strict=True)]


if __name__ == "__main__":
    main()
