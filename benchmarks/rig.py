"""The rig: three hosts in a row, processes pinned to cores, loads, and the CPU time a server takes.

    client 10.77.1.2 -- veth -- 10.77.1.1 server 10.77.2.1 -- veth -- 10.77.2.2 core

The server runs on core 0, everything else on core 1. No emulator is in the way: what is measured is the
server, not a network.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from opentsm.errors import PlatformError
from opentsm.lab import registry
from opentsm.lab.host import Host
from opentsm.lab.netns import iproute, iproute_batch, processes_inside, sysctl
from opentsm.lab.plan import Interface

ROOT: Final = Path(__file__).resolve().parent.parent

CLIENT: Final = "10.77.1.2"
SERVER: Final = "10.77.1.1"
SERVER_INSIDE: Final = "10.77.2.1"
CORE: Final = "10.77.2.2"

UP_PORT: Final = 7000
"""Where the core listens."""

DOWN_PORT: Final = 4000
"""Where the client listens."""

FIRST_FLOW: Final = 4100
"""Source port of the first flow, in both directions."""

FLOWS: Final = 16
"""Flows of one load: calls of one site, or of a small trunk."""

PAYLOAD: Final = 172
"""20 ms of G.711 with its RTP header: a 200-byte inner packet."""

WARM_UP: Final = 0.8
"""Seconds of a load before it is measured. OpenTSM sends media that begins on a datagram path by both paths
for half a second; what is measured is a call that goes on."""

SERVER_CORE: Final = "0"
OTHER_CORE: Final = "1"

READY_WAIT: Final = 20.0
"""Seconds for a process to say that it is ready; ocserv and openconnect take under one."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load.

    Args:
        direction: "up" (client to core) or "down".
        rate: packets per second.
        seconds: how long.
        burst: packets that leave together.
        flows: how many source ports.
        payload: bytes of UDP payload.
        timed: delays are wanted. Otherwise the sink looks at its socket once per millisecond, so that
            the server is not charged for waking it.
    """

    direction: str
    rate: int
    seconds: float
    burst: int = 1
    flows: int = FLOWS
    payload: int = PAYLOAD
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a load goes in and where it comes out.

    Args:
        to: ADDRESS:PORT to send to. source: ADDRESS:PORT of the first flow.
        at: ADDRESS:PORT of the sink; default: ``to``.
        flows: source ports; None: those of the load.
        prefix: bytes before every payload. skip: bytes before the payload at the sink.
    """

    to: str
    source: str
    at: str = ""
    flows: int | None = None
    prefix: bytes = b""
    skip: int = 0

    def sending(self, load: Load) -> list[str]:
        """Arguments of ``tsm-load send``."""
        words = ["--to", self.to, "--from", self.source, "--flows", str(self.flows or load.flows)]
        words += ["--rate", str(load.rate), "--size", str(load.payload), "--burst", str(load.burst)]
        words += ["--seconds", f"{load.seconds:g}"]
        return words + (["--prefix", self.prefix.hex()] if self.prefix else [])

    def receiving(self, load: Load) -> list[str]:
        """Arguments of ``tsm-load receive``."""
        words = ["--at", self.at or self.to, "--seconds", f"{load.seconds + 5:g}", "--quiet-ms", "400"]
        words += ["--skip", str(self.skip)] if self.skip else []
        return words + ([] if load.timed else ["--poll-ms", "1"])


def through_device(load: Load, inner: str) -> Ends:
    """The ends of a tunnel with a network device: the core, and the client's inner address."""
    if load.direction == "up":
        return Ends(to=f"{CORE}:{UP_PORT}", source=f"{inner}:{FIRST_FLOW}")
    return Ends(to=f"{inner}:{DOWN_PORT}", source=f"{CORE}:{FIRST_FLOW}")


@dataclass(slots=True)
class Reading:
    """What one load showed.

    Args:
        sent, received, duplicated, reordered: packets.
        seconds: from the sender's first packet to its last.
        server_cpu: seconds of CPU of the server's processes, user and system, or None without any.
        delay_us: p50, p90, p99, p999, max of the one-way delay; None if it was not timed.
        tcp_segments: that the server's host sent and received meanwhile. On a datagram path more than a few
            mean that OpenTSM doubted the path (something stalled for 80 ms) and sent by both.
    """

    sent: int
    received: int
    duplicated: int
    reordered: int
    seconds: float
    server_cpu: float | None
    delay_us: dict[str, float] | None
    tcp_segments: int = 0

    @property
    def lost(self) -> float:
        """Share of the packets sent that never came."""
        return (self.sent - self.received) / self.sent if self.sent else 0.0

    @property
    def cpu_us(self) -> float | None:
        """Server CPU in microseconds per delivered packet."""
        if self.server_cpu is None or not self.received:
            return None
        return self.server_cpu * 1e6 / self.received

    @property
    def rate(self) -> float:
        """Delivered packets per second."""
        return self.received / self.seconds if self.seconds else 0.0

    @property
    def server_busy(self) -> float | None:
        """Share of its core that the server used."""
        return None if self.server_cpu is None or not self.seconds else self.server_cpu / self.seconds


def process_cpu(pid: int) -> float:
    """CPU seconds of a process with all its threads, dead ones too, to the nanosecond.

    The clock id is what clock_getcpuclockid(3) makes of a pid (CPUCLOCK_SCHED, see the kernel's
    posix-timers.h); /proc/PID/stat has the same in ticks of 10 ms. A process that has ended counts 0.
    """
    try:
        return time.clock_gettime((~pid) << 3 | 2)
    except OSError:
        return 0.0


class Rig:
    """Three namespaces. Use as a context manager; its end ends every process inside.

    Args:
        load_tool: the tsm-load program.
    """

    def __init__(self, load_tool: Path) -> None:
        self._tool = load_tool
        self.id = registry.new_lab_id()
        self.ready_line = ""
        """What the last program said that was waited for."""
        self.client, self.server, self.core = (
            Host(name, f"{self.id}-{name}", Interface(address, ""))
            for name, address in (("client", CLIENT), ("server", SERVER), ("core", CORE))
        )

    def __enter__(self) -> Rig:
        try:
            for host in (self.client, self.server, self.core):
                iproute("netns", "add", host.namespace)
                iproute_batch(["link set lo up"], namespace=host.namespace)
            self._link(self.client, CLIENT, self.server, SERVER, "wan0")
            self._link(self.core, CORE, self.server, SERVER_INSIDE, "core0")
            self.core.ip("route", "add", "default", "via", SERVER_INSIDE)
            sysctl(self.server.namespace, "net.ipv4.ip_forward", 1)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs inside and remove the namespaces."""
        for host in (self.client, self.core, self.server):
            host.stop_processes()
            with contextlib.suppress(PlatformError):
                registry.remove_namespace(host.namespace)

    def _link(self, outer: Host, address: str, server: Host, near: str, device: str) -> None:
        iproute(
            *("link", "add", "eth0", "netns", outer.namespace, "type", "veth"),
            *("peer", "name", device, "netns", server.namespace),
        )
        iproute_batch([f"address add {address}/24 dev eth0", "link set eth0 up"], namespace=outer.namespace)
        iproute_batch(
            [f"address add {near}/24 dev {device}", f"link set {device} up"], namespace=server.namespace
        )

    # -- processes ------------------------------------------------------------------------------------
    def start(
        self,
        host: Host,
        argv: Sequence[str],
        *,
        ready: str = "ready",
        log: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a program on its core and wait for a line that begins with ``ready`` ("": do not wait).

        Args:
            log: where its standard error goes, and its output if it is not waited for; default: ours.

        Raises:
            PlatformError: it ended, or was not ready in time.
        """
        core = SERVER_CORE if host is self.server else OTHER_CORE
        with log.open("ab") if log else contextlib.nullcontext() as errors:
            process: subprocess.Popen[str] = host.popen(
                ["taskset", "-c", core, *argv],
                stdout=subprocess.PIPE if ready else errors,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=_environment(),
                **options,
            )
        if ready:
            line = _line_beginning(process, ready)
            if line is None:
                stop(process)
                words = log.read_text(errors="replace").splitlines() if log else []
                raise PlatformError(f"`{' '.join(argv)}` did not get ready: {words[-1] if words else ''}")
            self.ready_line = line
        return process

    def start_module(
        self, host: Host, module: str, *arguments: str, log: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start one of our own modules."""
        return self.start(host, [sys.executable, "-m", module, *arguments], log=log)

    # -- loads ----------------------------------------------------------------------------------------
    def measure(self, load: Load, ends: Ends, server_pids: Sequence[int]) -> Reading:
        """Run one load through whatever is set up; the same before it, briefly, for nothing.

        Args:
            ends: where it goes in and comes out.
            server_pids: the processes whose CPU time counts.

        Raises:
            PlatformError: nothing came through.
        """
        self._run(replace(load, seconds=WARM_UP), ends, server_pids)
        return self._run(load, ends, server_pids)

    def _run(self, load: Load, ends: Ends, server_pids: Sequence[int]) -> Reading:
        up = load.direction == "up"
        source, sink = (self.client, self.core) if up else (self.core, self.client)
        receiver = sink.popen(
            ["taskset", "-c", OTHER_CORE, str(self._tool), "receive", *ends.receiving(load)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert receiver.stderr is not None
        if receiver.stderr.readline().strip() != "ready":
            raise PlatformError(f"the receiver cannot begin: {receiver.stderr.read()}")
        before = sum(map(process_cpu, server_pids))
        command = ["taskset", "-c", OTHER_CORE, str(self._tool), "send", *ends.sending(load)]
        sent = source.run(command, timeout=load.seconds + 10)
        output, _ = receiver.communicate(timeout=load.seconds + 10)
        after = sum(map(process_cpu, server_pids))
        cpu = after - before if server_pids else None
        reading = _reading(json.loads(sent.stdout), json.loads(output), cpu)
        if not reading.received:
            raise PlatformError(f"not one of {reading.sent} packets {load.direction} came through")
        return reading

    def server_processes(self) -> list[int]:
        """Ids of everything that runs in the server's namespace."""
        return processes_inside(self.server.namespace)


def _reading(sent: dict[str, Any], got: dict[str, Any], cpu: float | None) -> Reading:
    return Reading(
        sent=sent["sent"],
        received=got["received"],
        duplicated=got["duplicated"],
        reordered=got["reordered"],
        seconds=sent["seconds"],
        server_cpu=cpu,
        delay_us=got["delay_us"],
    )


def _environment() -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def _line_beginning(process: subprocess.Popen[str], word: str) -> str | None:
    assert process.stdout is not None
    deadline = time.monotonic() + READY_WAIT
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            line = process.stdout.readline()
            if not line or line.startswith(word):
                return line or None
    return None


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """End a process; returns what it said on its way out."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return output or ""


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Ends the process with the block."""
    try:
        yield process
    finally:
        stop(process)
