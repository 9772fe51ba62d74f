"""What a packet costs that one client sends to another: ``python -m benchmarks.relay --help``.

The server of ``benchmarks.capacity`` on core 0, a crowd of real clients (``tsm-load crowd``) on core 1. A
packet counts once, when it is delivered: the server has then opened one record and sealed another (to the
core side or from it: one of the two). CPU time is the server's own, user and system, from the kernel.

Without a case of its own it measures the four of one-call clients; ``--trunk`` measures the four of a client
with 500 calls in one tunnel. Curves: ``--clients``, ``--calls``, ``--payload``, ``--rate``, ``--path`` take
lists, as ``--clients 2,20,200``, and every combination is measured. ``--total`` is the rate of all calls
together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.capacity import ADDRESS, PORT, prepare, serving
from benchmarks.machine import build_load_tool
from benchmarks.rig import process_cpu, stop

SERVER_CORE: Final = 0
CLIENT_CORE: Final = 1
WARM_UP: Final = 1.0
"""Seconds of the same load that are thrown away."""


PHONE_TICK_US: Final = 200
TRUNK_TICK_US: Final = 1000
"""How often the crowd hands packets to the kernel. One that is many phones does it often; a trunk's client
gathers what comes within a millisecond, as this user plane does when it reads a TUN device
(``worker/pace.rs``)."""

FAR: Final = {"core": "127.0.0.2:45000", "tun": "10.0.0.1:45000"}
"""Where the gateway on the server's side is, by how the server reaches it: by sockets of its own, or by a TUN
device."""

SHAPES: Final = ("pairs", "hub", *FAR)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table.

    Args:
        clients: an even number in pairs. path: of the media. rate: packets per second of each end of each
            call; 0: saturated. size: bytes of payload.
        shape: who talks to whom. ``pairs``: each client with its partner; ``hub``: one trunk with everybody
            else; ``core``, ``tun``: each with a gateway on the server's side of the network.
        calls: of each client, in ``pairs``, ``core`` and ``tun``.
    """

    clients: int
    path: str
    rate: float
    size: int = 172
    shape: str = "pairs"
    calls: int = 1

    @property
    def trunk(self) -> bool:
        """Several calls share a tunnel."""
        return self.shape == "hub" or self.calls > 1

    def __str__(self) -> str:
        load = f"{self.rate:g}/s each" if self.rate else "saturated"
        calls = f" x {self.calls} calls" if self.calls > 1 else ""
        shape = "" if self.shape == "pairs" else f" ({self.shape})"
        return f"{self.clients} clients{calls}{shape}, {self.path}, {load}, {self.size} bytes"


CASES: Final = (
    Case(1000, "datagram", 50),
    Case(64, "datagram", 0),
    Case(1000, "stream", 50),
    Case(64, "stream", 0),
)
"""The issue's own: one-call clients at 50 packets/s each way, and as many as go through."""

TRUNKS: Final = (
    Case(2, "datagram", 50, shape="pairs", calls=500),
    Case(501, "datagram", 50, shape="hub"),
    Case(1, "datagram", 50, shape="core", calls=500),
    Case(1, "datagram", 50, shape="tun", calls=500),
)
"""A site with 500 calls in one tunnel: to another one, to 500 phones, to the core side by sockets and by TUN
device."""


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
    words += ["--path", case.path, "--size", str(case.size), "--calls", str(case.calls)]
    words += ["--tick-us", str(TRUNK_TICK_US if case.trunk else PHONE_TICK_US)]
    if far := FAR.get(case.shape):
        words += ["--shape", "far", "--far", far]
    else:
        words += ["--shape", case.shape]
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


def talk(process: subprocess.Popen[str], rate: float, seconds: float) -> dict[str, Any]:
    """Let a crowd talk; returns what it says of it."""
    assert process.stdin is not None
    process.stdin.write(f"talk {rate} {seconds}\n")
    process.stdin.flush()
    return _answer(process)


def _give_core(settings: Path, shape: str) -> None:
    """The way to the gateway, if the case has one."""
    text = settings.read_text()
    if shape == "core":
        text = text.replace('core = "userspace"', 'core = "userspace"\nroutes = ["127.0.0.2/32"]')
    elif shape == "tun":
        text = text.replace('core = "userspace"', 'core = "tun"\ntun = "tsm-relay"').replace("echo = 7\n", "")
    settings.write_text(text)


def measure(case: Case, tool: Path, seconds: float) -> Result:
    """One case on a fresh server."""
    with tempfile.TemporaryDirectory(prefix="opentsm-relay-") as name:
        folder = Path(name)
        token = prepare(folder, workers=1)
        _give_core(folder / "server.toml", case.shape)
        with serving(folder) as server:
            for task in os.listdir(f"/proc/{server.pid}/task"):
                os.sched_setaffinity(int(task), {SERVER_CORE})
            with crowd(tool, folder, token, case) as clients:
                talk(clients, case.rate, WARM_UP)
                before = process_cpu(server.pid)
                answer = talk(clients, case.rate, seconds)
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


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def _cases(options: argparse.Namespace) -> Sequence[Case]:
    if not options.clients:
        return TRUNKS if options.trunk else CASES
    paths = options.path.split(",")
    cases = []
    every = itertools.product(options.clients, options.calls, options.payload, options.rate, paths)
    for clients, calls, size, rate, path in every:
        ends = clients * calls * (2 if options.shape in FAR else 1)
        if options.shape == "hub":
            ends = 2 * (clients - 1)
        each = options.total / ends if options.total else rate
        cases.append(Case(clients, path, each, size, options.shape, calls))
    return cases


def _in_namespace() -> None:
    """Go on in a network namespace of our own, where a TUN device with an address of ours disturbs nobody."""
    unshare = shutil.which("unshare")
    if unshare is None:
        raise SystemExit("a TUN device needs a network namespace: install util-linux (unshare)")
    words = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--net", "--map-root-user"]
    again = [sys.executable, "-m", "benchmarks.relay", *sys.argv[1:], "--in-namespace"]
    os.execv(unshare, [*words, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *again])


def main() -> None:
    """Measure all cases, or those given on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trunk", action="store_true", help="the four cases of a trunk")
    parser.add_argument("--clients", type=_numbers, help="cases of your own, by these options")
    parser.add_argument("--shape", choices=SHAPES, default="pairs")
    parser.add_argument("--calls", type=_numbers, default=[1], help="of each client")
    parser.add_argument("--path", default="datagram", help="datagram, stream or both with a comma")
    parser.add_argument("--rate", type=_numbers, default=[50], help="of each end of a call; 0: saturated")
    parser.add_argument("--total", type=float, help="packets per second of all calls together")
    parser.add_argument("--payload", "--size", type=_numbers, default=[172], help="bytes")
    parser.add_argument("--json", action="store_true", help="one line per result")
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = _cases(options)
    if any(case.shape == "tun" for case in cases) and not options.in_namespace:
        _in_namespace()
    tool = build_load_tool()
    results = []
    for case in (case for _ in range(options.rounds) for case in cases):
        results.append(measure(case, tool, options.seconds))
        if options.json:
            print(json.dumps(asdict(results[-1])), flush=True)
    if not options.json:
        print(table(results))


if __name__ == "__main__":
    main()
