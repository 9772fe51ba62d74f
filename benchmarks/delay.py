"""One-way delay of forwarded packets, alone and while tunnels come and go: ``python -m benchmarks.delay``.

Three hosts in a row (see ``rig``). One flow of 50 packets/s, each way in turn, through plain routing; through
a real ``opentsm serve`` with a TUN device and token authentication, its packets on a datagram tunnel; and
through the same while ``tsm-load churn`` has 500 clients a second make a TLS tunnel, show their token, get an
address and give it back. Server and control plane share core 0; the clients that come and go run on core 1 at
the lowest priority, so that they do not keep the load generator and the sink from their work. Delays are
those of CLOCK_MONOTONIC at both ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import build_load_tool
from benchmarks.rig import CORE, OTHER_CORE, SERVER, Load, Rig, running, through_device
from benchmarks.variants import Plain
from opentsm.admin.certificates import create_authority, issue_server, write
from opentsm.admin.client import ask
from opentsm.server.auth.edit import set_account
from opentsm.server.auth.tokens import hash_token, make_token

PORT: Final = 443
RATE: Final = 50
CHURN: Final = 500
WARM_UP: Final = 0.5
"""Seconds of coming and going before the first packet that counts."""

WAYS: Final = ("plain", "idle", "churn")
DIRECTIONS: Final = ("up", "down")
QUANTILES: Final = ("p50", "p90", "p99", "max")

_CONFIG: Final = f"""\
[server]
admin-socket = "admin.sock"
log-level = "error"

[authentication]
methods = ["token"]
token-file = "tokens"

[realm.core]
core = "tun"
tun = "tsm0"
addresses = ["10.64.0.1/16"]

[tls-profile.main]
certificate = "server.pem"
key = "server.key"

[tscf-port.one]
address = "{SERVER}"
port = {PORT}
tls-profile = "main"

[tscf-address-pool.all]
ranges = ["10.64.1.0-10.64.255.254"]

[tscf-interface.access]
realm = "core"
ports = ["one"]
address-pools = ["all"]
assigned-services = ["SIP", "DDT"]
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one flow saw.

    Args:
        way: "plain", "idle" or "churn". direction: "up" (client to core) or "down".
        sent, received: packets. delay_us: quantiles of the one-way delay.
        server_cpu: share of a core that the server used meanwhile.
    """

    way: str
    direction: str
    sent: int
    received: int
    delay_us: dict[str, float]
    server_cpu: float | None = None


class Bench:
    """The rig, the keys, and what was read.

    Args:
        rig: three hosts. folder: for keys and settings. tool: tsm-load. seconds: of each flow.
    """

    def __init__(self, rig: Rig, folder: Path, tool: Path, seconds: float) -> None:
        self._rig, self._folder, self._tool, self._seconds = rig, folder, tool, seconds
        self.token = prepare(folder)
        self.readings: list[Reading] = []
        self.churns: list[dict[str, Any]] = []

    def round(self, churn: int) -> None:
        """Each way once."""
        plain = Plain(self._rig, self._folder)
        plain.set_up()
        try:
            self._measure("plain", plain.inner, [])
        finally:
            plain.take_down()
        with self._serving() as server, self._client() as inner:
            self._measure("idle", inner, [server.pid])
            with self._coming_and_going(churn):
                self._measure("churn", inner, [server.pid])

    def _measure(self, way: str, inner: str, pids: Sequence[int]) -> None:
        for direction in DIRECTIONS:
            load = Load(direction, RATE, self._seconds, flows=1, timed=True)
            got = self._rig.measure(load, through_device(load, inner), pids)
            assert got.delay_us is not None
            self.readings.append(
                Reading(
                    way, direction, got.sent, got.received, got.delay_us, got.server_busy if pids else None
                )
            )

    @contextmanager
    def _serving(self) -> Iterator[subprocess.Popen[str]]:
        ready = self._folder / "admin.sock"
        ready.unlink(missing_ok=True)
        log = self._folder / "server.log"
        words = [sys.executable, "-m", "opentsm.cli.main", "serve", str(self._folder / "server.toml")]
        process = self._rig.start(self._rig.server, words, ready="", log=log)
        with running(process):
            end = time.monotonic() + 20
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server did not start: {log.read_text()}")
                time.sleep(0.05)
            yield process

    @contextmanager
    def _client(self) -> Iterator[str]:
        """The inner address of the client that is measured."""
        words = ["--server", SERVER, "--port", str(PORT), "--ca", str(self._folder / "ca.pem")]
        words += [f"--token={self.token}", "--far", CORE]
        with running(self._rig.start_module(self._rig.client, "benchmarks.delay_client", *words)):
            (tunnel,) = ask(self._folder / "admin.sock", "tunnels")["tunnels"]
            yield tunnel["inner"][0]

    @contextmanager
    def _coming_and_going(self, rate: int) -> Iterator[None]:
        words = ["taskset", "-c", OTHER_CORE, "nice", "-n", "19", str(self._tool), "churn"]
        words += ["--to", f"{SERVER}:{PORT}", "--ca", str(self._folder / "ca.pem"), "--token", self.token]
        process = self._rig.client.popen(
            [*words, "--rate", str(rate)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the clients that come and go cannot begin; their words are above")
            time.sleep(WARM_UP)
            yield
            process.stdin.close()
            self.churns.append(json.loads(process.stdout.readline()))
            process.wait(10)
        finally:
            process.kill()
            process.wait()


def prepare(folder: Path) -> str:
    """Certificates, a token and the settings; returns the token."""
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, folder, "ca", force=True)
    issued = issue_server(authority, now, names=["localhost"], addresses=[ip_address(SERVER)])
    write(issued, folder, "server", force=True)
    token = make_token()
    set_account(folder / "tokens", "bench", hash_token(token.encode()), None)
    (folder / "server.toml").write_text(_CONFIG)
    return token


def measure(rounds: int, seconds: float, churn: int) -> dict[str, Any]:
    """All rounds; the first one more than asked for, and thrown away.

    Returns:
        ``readings``: a list of ``Reading`` as plain values, in the order of measuring; ``churn``: what
        ``tsm-load churn`` says of each round: ``done``, ``failed``, ``rate`` a second, ``set_up_us``;
        ``summary``: way -> direction -> quantile -> median over the rounds, in microseconds.
    """
    tool = build_load_tool()
    with tempfile.TemporaryDirectory(prefix="opentsm-delay-") as name, Rig(tool) as rig:
        bench = Bench(rig, Path(name), tool, seconds)
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}{' (thrown away)' * (not number)}", file=sys.stderr, flush=True)
            if number == 1:
                bench.readings.clear()
                bench.churns.clear()
            bench.round(churn)
    return {
        "readings": [asdict(one) for one in bench.readings],
        "churn": bench.churns,
        "summary": summary(bench.readings),
    }


def summary(readings: Sequence[Reading]) -> dict[str, dict[str, dict[str, float]]]:
    """Way -> direction -> quantile -> median over the rounds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for way in WAYS:
        for direction in DIRECTIONS:
            rounds = [one for one in readings if (one.way, one.direction) == (way, direction)]
            found.setdefault(way, {})[direction] = {
                name: statistics.median(one.delay_us[name] for one in rounds) for name in QUANTILES
            }
    return found


def table(results: dict[str, Any]) -> str:
    """The summary as Markdown."""
    lines = ["| way | direction | p50 us | p90 us | p99 us | max us |", "|---|---|---:|---:|---:|---:|"]
    for way, directions in results["summary"].items():
        for direction, quantiles in directions.items():
            cells = " | ".join(f"{quantiles[name]:.0f}" for name in QUANTILES)
            lines.append(f"| {way} | {direction} | {cells} |")
    rates = [f"{one['rate']:.0f}/s ({one['failed']} failed)" for one in results["churn"]]
    return "\n".join([*lines, "", f"Tunnels that came and went: {', '.join(rates)}"])


def main() -> None:
    """Measure and print; one JSON object with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each flow")
    parser.add_argument("--churn", type=int, default=CHURN, help="tunnels a second that come and go")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options.rounds, options.seconds, options.churn)
    print(json.dumps(results) if options.json else table(results))


if __name__ == "__main__":
    main()
