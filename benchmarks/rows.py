"""What 200,000 tunnels in the tables cost the thousand that talk: ``python -m benchmarks.rows``.

For each number of ``--rows`` a real server (``rows_server``) gets as many tunnels in its registry, address
pools and user-plane tables, all but a thousand of them generated; then rounds go over all servers in turn. In
each a thousand real clients (``tsm-load crowd``) make their TLS tunnels and go; a thousand make TLS and
datagram tunnels, talk at 50 packets/s each, and go; and the admin socket is asked. The address pool is just
large enough. Server on core 0, clients on core 1; CPU time is the server's, user and system, from the kernel.
Rows have no sockets (a process may have 20,000 here) and are not probed; their timers stand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from benchmarks.capacity import ADDRESS, PORT, memory_kib, prepare
from benchmarks.machine import MANIFEST, build_load_tool
from benchmarks.rig import ROOT, process_cpu, stop
from opentsm.admin.client import ask
from opentsm.errors import PlatformError

TALKERS: Final = 1000
RATE: Final = 50
SPARE: Final = 3 * TALKERS
"""Addresses beyond the rows: those that the clients of the round before have given back rest for a while."""

FIRST_PORT: Final = 24_443
FIRST_ADDRESS: Final = int(IPv4Address("10.1.0.0"))
SETTLE: Final = 3.0
"""Seconds after filling: each row gets the one probe that was due."""

ASKED: Final = 5
WARM_UP: Final = 1.0
PATIENCE: Final = 20.0
COSTS: Final = ("packet_us", "stream_us", "datagram_us", "close_us")
FIGURES: Final = (*COSTS, "status_ms", "metrics_ms", "page_ms", "stall_ms")


@dataclass(slots=True)
class Result:
    """One number of rows.

    Args:
        rows: tunnels in the tables, the talkers among them.
        kib: server memory per generated row. fill_us: CPU time of the server per generated row.
        rounds: one dict of ``FIGURES`` per round: CPU microseconds per relayed packet, per TLS tunnel with
            its address, per datagram tunnel and per tunnel closed; milliseconds until the admin socket has
            answered ``status``, ``metrics`` and a page of ``tunnels`` from the middle; longest absence of the
            event loop.
    """

    rows: int
    kib: float = 0.0
    fill_us: float = 0.0
    rounds: list[dict[str, float]] = field(default_factory=list)

    def median(self, figure: str) -> float:
        """Over the rounds."""
        return statistics.median(one[figure] for one in self.rounds)


def build_core() -> Path:
    """Build the user plane with the feature ``rows`` and say where it is.

    Raises:
        PlatformError: cargo failed.
    """
    cargo = shutil.which("cargo") or str(Path.home() / ".cargo/bin/cargo")
    words = [cargo, "build", "--release", "--locked", "--quiet", "--lib", "--features", "rows"]
    words += ["--manifest-path", str(MANIFEST), "--message-format", "json"]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "_core":
            return next(Path(name) for name in message["filenames"] if name.endswith(".so"))
    raise PlatformError("the user plane cannot be built; cargo's words are above")


class Talker:
    """A program that takes orders as lines and answers each with one of JSON."""

    def __init__(self, words: Sequence[str], core: int) -> None:
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.answer()

    def order(self, line: str) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        self.say(line)
        return self.answer()

    def say(self, line: str) -> None:
        """Give an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a program of the measurement has died; its words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Subject:
    """A server with rows.

    Args:
        folder: keys and settings. core, tool: what was built. number: tells servers apart. rows: how many.
    """

    def __init__(self, folder: Path, core: Path, tool: Path, number: int, rows: int) -> None:
        self.result = Result(rows)
        self._folder, self._tool, self._port = folder, tool, FIRST_PORT + number
        self._token = prepare(folder, workers=1)
        (folder / "token").write_text(self._token)
        last = IPv4Address(FIRST_ADDRESS + rows + SPARE)
        text = (folder / "server.toml").read_text().replace(f"port = {PORT}", f"port = {self._port}")
        begin = text.index("ranges = ")
        text = f'{text[:begin]}ranges = ["10.1.0.0-{last}"]{text[text.index("]", begin) + 1 :]}'
        text += "\n[timers]\nkeepalive-timer = 660\ntunnel-persistence-time = 0\n"
        (folder / "server.toml").write_text(text)
        words = [sys.executable, "-m", "benchmarks.rows_server", str(core), str(folder / "server.toml")]
        self._server = Talker(words, core=0)
        self._generated = 0

    @property
    def _pid(self) -> int:
        return self._server.process.pid

    def fill(self) -> None:
        """Generate the rows."""
        count = self.result.rows - TALKERS
        if count <= 0:
            return
        memory, cpu = memory_kib(self._pid), process_cpu(self._pid)
        self._generated = self._server.order(f"rows {count}")["rows"]
        self.result.fill_us = 1e6 * (process_cpu(self._pid) - cpu) / count
        time.sleep(SETTLE)
        self.result.kib = (memory_kib(self._pid) - memory) / count

    def round(self, seconds: float) -> None:
        """Everything once."""
        self._server.order("stall")
        figures: dict[str, float] = {}
        crowd, figures["stream_us"] = self._crowd("stream")
        figures["close_us"] = self._dismiss(crowd)
        crowd, both = self._crowd("datagram")
        figures["datagram_us"] = both - figures["stream_us"]
        crowd.order(f"talk {RATE} {WARM_UP}")
        cpu = process_cpu(self._pid)
        said = crowd.order(f"talk {RATE} {seconds}")
        figures["packet_us"] = 1e6 * (process_cpu(self._pid) - cpu) / said["received"]
        for what, arguments in self._asking().items():
            figures[f"{what}_ms"] = self._asked(**arguments)
        self._dismiss(crowd)
        figures["stall_ms"] = self._server.order("stall")["stall_ms"]
        self.result.rounds.append(figures)

    def _crowd(self, path: str) -> tuple[Talker, float]:
        """A thousand clients that are up, and what each cost the server."""
        words = [str(self._tool), "crowd", "--to", f"{ADDRESS}:{self._port}", "--token", self._token]
        words += ["--ca", str(self._folder / "ca.pem"), "--clients", str(TALKERS), "--path", path]
        cpu = process_cpu(self._pid)
        crowd = Talker(words, core=1)
        return crowd, 1e6 * (process_cpu(self._pid) - cpu) / TALKERS

    def _dismiss(self, crowd: Talker) -> float:
        """End a crowd; returns what the end of each client cost the server."""
        cpu = process_cpu(self._pid)
        stop(crowd.process)
        end = time.monotonic() + PATIENCE
        while self._status()["interfaces"][0]["active"] > self._generated:
            if time.monotonic() > end:
                raise RuntimeError("the server does not notice that its clients have gone")
            time.sleep(0.05)
        return 1e6 * (process_cpu(self._pid) - cpu) / TALKERS

    def _status(self) -> dict[str, Any]:
        return ask(self._folder / "admin.sock", "status")

    def _asking(self) -> dict[str, dict[str, Any]]:
        middle = {"command": "tunnels", "after": self._generated // 2, "limit": 50}
        return {"status": {"command": "status"}, "metrics": {"command": "metrics"}, "page": middle}

    def _asked(self, command: str, **arguments: Any) -> float:
        """Milliseconds until the admin socket has answered, the median of some times."""
        took = []
        for _ in range(ASKED):
            begin = time.monotonic()
            ask(self._folder / "admin.sock", command, **arguments)
            took.append(1e3 * (time.monotonic() - begin))
        return statistics.median(took)

    def end(self) -> None:
        """End the server, without goodbyes to those who are not there."""
        self._server.process.kill()
        self._server.process.wait()


def measure(counts: Sequence[int], rounds: int, seconds: float, ready: Callable[[], None]) -> list[Result]:
    """All servers, filled one after the other, then measured in turn.

    Args:
        counts: rows of each. rounds: after one that is thrown away. seconds: of each talk.
        ready: called between filling and measuring.
    """
    core, tool = build_core(), build_load_tool()
    with ExitStack() as stack:
        subjects = []
        for number, rows in enumerate(counts):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opentsm-rows-")))
            built = shutil.copy(core, folder / "_core.abi3.so")
            subjects.append(Subject(folder, Path(built), tool, number, rows))
            stack.callback(subjects[-1].end)
            subjects[-1].fill()
            print(f"{rows} rows: {subjects[-1].result.fill_us:.0f} us each", file=sys.stderr, flush=True)
        ready()
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}{' (thrown away)' * (not number)}", file=sys.stderr, flush=True)
            for subject in subjects:
                subject.round(seconds)
                if not number:
                    subject.result.rounds.clear()
        return [subject.result for subject in subjects]


def table(results: Sequence[Result]) -> str:
    """Results as Markdown; what is dear is said as a part of the first one's, too."""
    lines = [
        "| tunnels in tables | KiB per row | us per packet | us per TLS tunnel | us per DDT | us per end "
        "| status ms | metrics ms | page ms | longest stall ms |",
        "|---:|" + "---:|" * 9,
    ]
    for one in results:
        cells = [f"{one.median(name):.1f}{_part(one, results[0], name)}" for name in FIGURES]
        lines.append(f"| {one.rows:,} | {one.kib:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _part(one: Result, first: Result, name: str) -> str:
    if one is first or name not in COSTS:
        return ""
    parts = [a[name] / b[name] for a, b in zip(one.rounds, first.rounds, strict=True) if b[name]]
    return f" ({statistics.median(parts):.2f})"


def _wait() -> None:
    print("filled", flush=True)
    sys.stdin.readline()


def main() -> None:
    """Measure and print; one JSON object with --json."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rows", default="1000,50000,200000", help="tunnels of each server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each talk")
    parser.add_argument(
        "--wait", action="store_true", help="between filling and measuring, for a line of input"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = [int(one) for one in options.rows.split(",")]
    results = measure(counts, options.rounds, options.seconds, _wait if options.wait else lambda: None)
    print(json.dumps([asdict(one) for one in results]) if options.json else table(results))


if __name__ == "__main__":
    main()
