"""What idle tunnels cost those who talk: ``python -m benchmarks.idle --idle 0,1000,4000,8000``.

The server of ``benchmarks.capacity`` on core 0. Real clients with a TLS and a datagram tunnel each join stage
by stage and stay silent (``benchmarks.crowd``); at the end of each stage 800 others talk to each other in
pairs at 50 packets/s (``tsm-load crowd``) and go again. All clients are on core 1. CPU time is the server's,
user and system: per delivered packet while they talk, and per idle tunnel and second while nobody does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks import capacity, relay
from benchmarks.machine import build_load_tool
from benchmarks.rig import process_cpu, stop

TALKERS: Final = relay.Case(800, "datagram", 50)
QUIET: Final = 3.0
"""Seconds in which nobody talks."""

LINGER: Final = capacity.LINGER
"""Seconds until the state of finished handshakes has gone."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stage.

    Args:
        tunnels: that are idle, both kinds counted.
        packet_us: CPU per delivered packet. lost_percent: of the packets sent.
        idle_us: CPU of the server in a second in which nobody talks, over idle tunnels; 0 without any.
    """

    tunnels: int
    packet_us: float
    lost_percent: float
    idle_us: float


def measure(stages: list[int], seconds: float) -> Iterator[Row]:
    """A row for each number of idle clients, which grows."""
    tool = build_load_tool()
    with tempfile.TemporaryDirectory(prefix="opentsm-idle-") as name:
        folder = Path(name)
        token = capacity.prepare(folder, workers=1)
        with capacity.serving(folder) as server:
            for task in os.listdir(f"/proc/{server.pid}/task"):
                os.sched_setaffinity(int(task), {relay.SERVER_CORE})
            idle = capacity.Process(0, folder, token)
            for task in os.listdir(f"/proc/{idle.process.pid}/task"):
                os.sched_setaffinity(int(task), {relay.CLIENT_CORE})
            try:
                up = 0
                for clients in stages:
                    if clients > up:
                        idle.order(f"streams {clients - up}")
                        idle.order("datagrams")
                        up = clients
                        time.sleep(LINGER)
                    yield _stage(tool, folder, token, server.pid, 2 * up, seconds)
            finally:
                stop(idle.process)


def _stage(tool: Path, folder: Path, token: str, pid: int, tunnels: int, seconds: float) -> Row:
    before = process_cpu(pid)
    time.sleep(QUIET)
    quiet = process_cpu(pid) - before
    with relay.crowd(tool, folder, token, TALKERS) as talkers:
        relay.talk(talkers, TALKERS.rate, relay.WARM_UP)
        before = process_cpu(pid)
        answer = relay.talk(talkers, TALKERS.rate, seconds)
        used = process_cpu(pid) - before
    received = max(answer["received"], 1)
    return Row(
        tunnels=tunnels,
        packet_us=1e6 * used / received,
        lost_percent=100.0 * (1 - received / max(answer["sent"], 1)),
        idle_us=1e6 * quiet / QUIET / tunnels if tunnels else 0.0,
    )


def main() -> None:
    """Measure and print a line of JSON for each stage."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--idle", default="0,1000,4000,8000", help="idle clients at each stage, growing")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each talk")
    options = parser.parse_args()
    for row in measure([int(one) for one in options.idle.split(",")], options.seconds):
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()
