"""How many tunnels one server process holds, what each costs in memory, and what a set-up costs in CPU time.

    python -m benchmarks.capacity --tunnels 1000,6000,18000

Runs ``opentsm serve`` as a user would (token authentication, addresses from a pool, userspace core) and
crowds of clients on the loopback interface, ``PER_CROWD`` to a process. After each stage it reads memory
(proportional set size; the kernel's socket memory is not in it) and CPU time of the server, asks every tunnel
for an answer, and prints a row. Bounded by its arguments; ends everything it started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from benchmarks.rig import ROOT, process_cpu, stop
from opentsm.admin.certificates import create_authority, issue_server, write
from opentsm.server.auth.edit import set_account
from opentsm.server.auth.tokens import hash_token, make_token

ADDRESS: Final = "127.0.0.1"
PORT: Final = 44443
PER_CROWD: Final = 9_000
"""Clients in one process: each has two sockets, and a process may have 20,000 files here."""

SETTLE: Final = 1.0
"""Seconds before memory is read: timers of finished handshakes and the allocator's own housekeeping."""

LINGER: Final = 16.0
"""Seconds before memory of datagram tunnels is read: a finished DTLS handshake is kept for 15 s to answer a
client whose last flight was lost (``HANDSHAKE_LINGER_MS``)."""

_RAW: Final = argparse.RawDescriptionHelpFormatter

_CONFIG: Final = """\
[server]
workers = {workers}
admin-socket = "admin.sock"
log-level = "error"

[authentication]
methods = ["token"]
token-file = "tokens"

[realm.core]
core = "userspace"
addresses = ["10.0.0.1/8"]
echo = 7

[tls-profile.main]
certificate = "server.pem"
key = "server.key"

[tscf-port.one]
address = "{address}"
port = {port}
tls-profile = "main"

[tscf-address-pool.all]
ranges = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"]

[tscf-interface.access]
realm = "core"
ports = ["one"]
address-pools = ["all"]
assigned-services = ["SIP", "DDT"]
max-tunnels = 200000
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """What the set-ups of one kind of a stage cost, each; the units are those of ``Row``."""

    kib: float
    us: float
    control_us: float
    rate: float


@dataclass(frozen=True, slots=True)
class Row:
    """One stage.

    Args:
        tunnels: stream tunnels up.
        stream_kib, datagram_kib: server memory per tunnel of that kind since the stage began.
        stream_us, datagram_us: server CPU time per set-up.
        stream_control_us, datagram_control_us: the control plane's part of it, which is one thread.
        stream_rate, datagram_rate: set-ups per second that the whole machine managed.
        answered: tunnels that answered, of those that were asked.
    """

    tunnels: int
    stream_kib: float
    datagram_kib: float
    stream_us: float
    datagram_us: float
    stream_rate: float
    datagram_rate: float
    stream_control_us: float
    datagram_control_us: float
    asked: int
    answered: int
    notes: str = ""


class Process:
    """A crowd, and its orders."""

    def __init__(self, number: int, folder: Path, token: str) -> None:
        words = [sys.executable, "-m", "benchmarks.crowd", "--server", ADDRESS, "--port", str(PORT)]
        words += ["--ca", str(folder / "ca.pem"), f"--token={token}", "--source", f"127.0.1.{number + 1}"]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def order(self, line: str) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a crowd has died; its words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def memory_kib(pid: int) -> int:
    """Proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main_thread_cpu(pid: int) -> float:
    """CPU seconds of a process's first thread (kernel: Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def prepare(folder: Path, workers: int) -> str:
    """Certificates, a token and the settings; returns the token."""
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, folder, "ca", force=True)
    issued = issue_server(authority, now, names=["localhost"], addresses=[ip_address(ADDRESS)])
    write(issued, folder, "server", force=True)
    token = make_token()
    set_account(folder / "tokens", "crowd", hash_token(token.encode()), None)
    (folder / "server.toml").write_text(_CONFIG.format(address=ADDRESS, port=PORT, workers=workers))
    return token


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The real server, from ready to terminated."""
    words = [sys.executable, "-m", "opentsm.cli.main", "serve", str(folder / "server.toml")]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, text=True, cwd=ROOT)
        try:
            _wait_for(folder / "admin.sock", process)
            yield process
        finally:
            stop(process)


def _wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server did not start; see {path.parent}/server.log")
        time.sleep(0.05)


class Growth:
    """A server and its crowds, growing stage by stage.

    Args:
        pid: the server's process.
        folder: keys and settings.
        token: what clients show.
    """

    def __init__(self, pid: int, folder: Path, token: str) -> None:
        self._pid, self._folder, self._token = pid, folder, token
        self._crowds: list[Process] = []
        self._streams = 0
        self._notes: list[str] = []

    def to(self, target: int, *, datagrams: bool) -> Row:
        """Open stream tunnels until there are ``target``, then their datagram tunnels; measure both."""
        self._notes = []
        fresh = target - self._streams
        stream = self._phase(fresh, SETTLE, lambda: self._open(target))
        datagram = self._phase(fresh, LINGER, self._pair) if datagrams else Phase(0.0, 0.0, 0.0, 0.0)
        pings = [crowd.order("ping") for crowd in self._crowds]
        return Row(
            tunnels=target,
            stream_kib=stream.kib,
            stream_us=stream.us,
            stream_rate=stream.rate,
            datagram_kib=datagram.kib,
            datagram_us=datagram.us,
            datagram_rate=datagram.rate,
            stream_control_us=stream.control_us,
            datagram_control_us=datagram.control_us,
            asked=sum(answer["asked"] for answer in pings),
            answered=sum(answer["answered"] for answer in pings),
            notes="; ".join(self._notes),
        )

    def end(self) -> None:
        """End the crowds."""
        for crowd in self._crowds:
            with contextlib.suppress(OSError, RuntimeError):
                crowd.order("end")
            stop(crowd.process)

    def _phase(self, count: int, settle: float, work: Callable[[], None]) -> Phase:
        memory, cpu, began = memory_kib(self._pid), process_cpu(self._pid), time.monotonic()
        control = main_thread_cpu(self._pid)
        work()
        seconds, used = time.monotonic() - began, process_cpu(self._pid) - cpu
        control = main_thread_cpu(self._pid) - control
        time.sleep(settle)
        kib = (memory_kib(self._pid) - memory) / count
        return Phase(kib, 1e6 * used / count, 1e6 * control / count, count / seconds)

    def _open(self, target: int) -> None:
        while self._streams < target:
            at = self._streams // PER_CROWD
            if at == len(self._crowds):
                self._crowds.append(Process(at, self._folder, self._token))
            wanted = min(target, (at + 1) * PER_CROWD) - self._streams
            self._note(self._crowds[at].order(f"streams {wanted}"))
            self._streams += wanted

    def _pair(self) -> None:
        for crowd in self._crowds:
            self._note(crowd.order("datagrams"))

    def _note(self, answer: dict[str, Any]) -> None:
        if answer.get("limit"):
            self._notes.append(f"client: {answer['limit']}")
        if answer["failures"]:
            self._notes.append(f"failures: {answer['failures']}")


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    head = (
        "| tunnels | KiB per TLS tunnel | KiB per DDT | us CPU per TLS tunnel | us CPU per DDT "
        "| TLS/s | DDT/s | answered |\n|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    lines = [
        f"| {row.tunnels} | {row.stream_kib:.1f} | {row.datagram_kib:.1f} | {row.stream_us:.0f} "
        f"| {row.datagram_us:.0f} | {row.stream_rate:.0f} | {row.datagram_rate:.0f} "
        f"| {row.answered} of {row.asked} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Measure and print; one JSON line per stage with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_RAW)
    parser.add_argument("--tunnels", default="1000,4000", help="stages: stream tunnels in all, growing")
    parser.add_argument("--workers", type=int, default=1, help="packet threads of the server")
    parser.add_argument("--streams-only", action="store_true", help="no datagram tunnels")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    stages = [int(one) for one in options.tunnels.split(",")]
    rows = []
    with tempfile.TemporaryDirectory(prefix="opentsm-capacity-") as name:
        folder = Path(name)
        token = prepare(folder, options.workers)
        with serving(folder) as server:
            growth = Growth(server.pid, folder, token)
            try:
                for target in stages:
                    rows.append(growth.to(target, datagrams=not options.streams_only))
                    if options.json:
                        print(json.dumps(asdict(rows[-1])), flush=True)
                    else:
                        print(
                            f"{target} tunnels: {rows[-1].notes or 'no failure'}", file=sys.stderr, flush=True
                        )
            finally:
                growth.end()
    if not options.json:
        print(table(rows))


if __name__ == "__main__":
    main()
