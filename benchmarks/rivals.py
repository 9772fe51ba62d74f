"""What a rival's set-ups and idle tunnels cost: small crowds of real clients, ours beside them.

CPU time and memory (proportional set size) of all processes of the server, between a first client that warms
it up and the last one. Ours are those of ``benchmarks.capacity``, more of them, because they cost little.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import coturn, ocserv, openvpn
from benchmarks.capacity import memory_kib
from benchmarks.figures import Figures
from benchmarks.parts import Part, Settings, Shown, module_rows, say
from benchmarks.rig import CLIENT, CORE, SERVER, UP_PORT, Rig, process_cpu
from benchmarks.turn import Allocation, over_stream, over_udp
from benchmarks.variants import PASSWORD, USER, Variant, make_keys
from opentsm.errors import PlatformError

CLIENTS: Final = 50
"""Of those whose clients are processes."""

ALLOCATIONS: Final = 500
"""A TURN client is a socket here, and its server's memory comes in larger steps."""

OURS: Final = 1_000
UP_WITHIN: Final = 60.0
SETTLE: Final = 1.0
"""Seconds before memory is read."""

STREAM: Final = "opentsm, TLS tunnel"
BOTH: Final = "opentsm, TLS tunnel with its datagram tunnel"
CPU: Final = "CPU, microseconds per set-up"
MEMORY: Final = "memory, KiB per idle client"
TICK: Final = os.sysconf("SC_CLK_TCK")


def _openconnects(variant: Variant) -> None:
    assert isinstance(variant, ocserv.Ocserv)
    log = variant.folder / f"{variant.name}.log"
    for number in range(1, CLIENTS + 1):
        words = ocserv.client_words(variant.folder, SERVER, USER, f"oc{number}", udp=variant.udp)
        client = variant.rig.start(variant.rig.client, words, ready="", log=log, stdin=subprocess.PIPE)
        variant.keep(client)
        assert client.stdin is not None
        client.stdin.write(PASSWORD + "\n")
        client.stdin.flush()
    _wait(lambda: _addresses(variant.rig) > CLIENTS, "openconnect")
    if variant.udp:
        _wait(
            lambda: log.read_text(errors="replace").count("Established DTLS") > CLIENTS, "openconnect's DTLS"
        )


def _addresses(rig: Rig) -> int:
    """Inner addresses of openconnect's devices."""
    return rig.client.run(["ip", "-o", "-4", "address", "show"]).stdout.count(" oc")


def _openvpns(variant: Variant) -> None:
    assert isinstance(variant, openvpn.OpenVpn)
    log = variant.folder / f"{variant.name}-crowd.log"
    log.unlink(missing_ok=True)
    for number in range(1, CLIENTS + 1):
        words = [*variant.client_command(), "--dev", f"ovc{number}", "--route-nopull"]
        variant.keep(variant.rig.start(variant.rig.client, words, ready="", log=log))
    _wait(lambda: log.read_text(errors="replace").count(openvpn.UP) >= CLIENTS, "OpenVPN")


def _allocations(variant: Variant) -> None:
    over_tls = isinstance(variant, coturn.CoturnTls)
    context = ssl.create_default_context(cafile=str(variant.folder / "ca.pem"))
    for _ in range(ALLOCATIONS):
        kind = socket.SOCK_STREAM if over_tls else socket.SOCK_DGRAM
        opened: socket.socket = variant.rig.client.socket(socket.AF_INET, kind)
        opened.settimeout(5.0)
        opened.bind((CLIENT, 0))
        opened.connect((SERVER, coturn.TLS_PORT if over_tls else coturn.PORT))
        if over_tls:
            opened = context.wrap_socket(opened, server_hostname=SERVER)
        variant.keep_open(opened)
        exchange = over_stream(opened) if over_tls else over_udp(opened)
        Allocation(exchange, USER, PASSWORD).bind(CORE, UP_PORT)


CROWDS: Final[dict[type[Variant], tuple[Callable[[Variant], None], int]]] = {
    ocserv.OcservDtls: (_openconnects, CLIENTS),
    ocserv.OcservTls: (_openconnects, CLIENTS),
    openvpn.OpenVpnUdp: (_openvpns, CLIENTS),
    openvpn.OpenVpnTcp: (_openvpns, CLIENTS),
    coturn.CoturnUdp: (_allocations, ALLOCATIONS),
    coturn.CoturnTls: (_allocations, ALLOCATIONS),
}


def _wait(done: Callable[[], bool], who: str) -> None:
    deadline = time.monotonic() + UP_WITHIN
    while not done():
        if time.monotonic() > deadline:
            raise PlatformError(f"not all clients of {who} are up within {UP_WITHIN:g} s")
        time.sleep(0.1)


def _used(pids: list[int]) -> float:
    """CPU seconds of these processes, and of their children that have ended (proc(5): cutime, cstime)."""
    total = sum(map(process_cpu, pids))
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) / TICK
    return total


def _memory(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            total += memory_kib(pid)
    return total


def _measure(variant: Variant, out: Figures) -> None:
    crowd, count = CROWDS[type(variant)]
    try:
        variant.set_up()
        time.sleep(SETTLE)
        before, cpu = _memory(variant.server_pids), _used(variant.server_pids)
        crowd(variant)
        used = _used(variant.server_pids) - cpu
        time.sleep(SETTLE)
        after = _memory(variant.server_pids)
    finally:
        variant.take_down()
    out.add(CPU, variant.name, "value", used / count * 1e6)
    out.add(MEMORY, variant.name, "value", (after - before) / count)


def _ours(out: Figures) -> None:
    [row] = module_rows("benchmarks.capacity", "--json", "--tunnels", str(OURS))
    for metric, unit in ((CPU, "us"), (MEMORY, "kib")):
        stream = row[f"stream_{unit}"]
        out.add(metric, STREAM, "value", stream)
        out.add(metric, BOTH, "value", stream + row[f"datagram_{unit}"])


def estimate(settings: Settings) -> float:
    """Seconds."""
    return settings.all_rounds * (35 + 9 * len(CROWDS))


def run(settings: Settings, out: Figures) -> None:
    """All servers in turn, round by round."""
    with tempfile.TemporaryDirectory(prefix="opentsm-bench-") as name, Rig(settings.tool) as rig:
        folder = Path(name)
        make_keys(folder)
        for number in settings.numbers():
            kept = out if number else Figures(left_out=out.left_out)
            settings.say_round(number, "opentsm")
            _ours(kept)
            for kind in CROWDS:
                obstacle = kind.obstacle() if kind.name in settings.variants else "not asked for"
                if kind.name in out.left_out or obstacle:
                    out.left_out.setdefault(kind.name, obstacle or "")
                    continue
                settings.say_round(number, kind.name)
                try:
                    _measure(kind(rig, folder), kept)
                except (PlatformError, OSError) as error:
                    out.left_out[kind.name] = str(error)
                    say(f"{kind.name} is left out from here on: {error}")


def show(figures: Figures) -> Shown:
    """One table, with ours over theirs."""
    lines = [
        f"| server | {CPU} | ours over it | {MEMORY} | ours over it |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in figures.rows(CPU):
        stream_only = row in ("ocserv-tls", "openvpn-tcp", "coturn-tls")
        cells = []
        for metric, form in ((CPU, ",.0f"), (MEMORY, ".1f")):
            theirs, ours = figures.get(metric, row, "value"), STREAM if stream_only else BOTH
            spread = figures.spread(metric, row, "value")
            cells.append(spread.text(form) if spread else "-")
            pairs = zip(figures.get(metric, ours, "value"), theirs, strict=False)
            shares = sorted(a / b for a, b in pairs if b > 0)
            own = row in (STREAM, BOTH)
            cells.append("-" if own or not shares else f"{shares[len(shares) // 2]:.2f}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return Shown(sections={"Set-ups and idle tunnels beside rivals": lines} if figures.rows(CPU) else {})


PART: Final = Part("rivals", "What rivals' tunnels cost", estimate, run, show)
