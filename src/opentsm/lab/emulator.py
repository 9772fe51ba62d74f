"""The WAN emulator: carries packets between two TUN devices and does to them what it was told.

A process of its own (``python -m opentsm.lab.emulator``), so that what it costs is not the caller's
time. It inherits the descriptors of both devices and of a listening unix socket, over which it takes
commands, one JSON object a line (see ``wan``). It ends when its standard input does: a lab that dies
takes its emulators with it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import heapq
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from opentsm.lab.impairment import (
    CLASSES,
    DIRECTIONS,
    Direction,
    Drop,
    Impairment,
)
from opentsm.lab.packets import forbids_fragmentation, is_routable, parse, too_big, unreachable
from opentsm.lab.tally import Tally, settings_from_json

BATCH: Final = 64
"""Packets read from one side before deliveries and the other side get their turn: under 2 ms."""

READ_SIZE: Final = 65_536
"""No IP packet is larger, so none is ever cut short."""

MAX_HELD: Final = 100_000
"""Packets in flight per direction: five seconds of the fastest stream this process can carry."""

MAX_HELD_BYTES: Final = 128 << 20
"""Memory for them; both bounds drop by the name ``held-full``."""

MAX_COMMAND: Final = 65_536
"""Bytes of one command line."""

_PR_SET_TIMERSLACK: Final = 29


class Pipe:
    """One direction: reads a device, decides, holds, writes the other device.

    Args:
        impairment: the decisions.
        source, sink: descriptors of the devices, non-blocking.
        routers: the addresses (IPv4, IPv6) that this direction's ICMP errors come from.
    """

    def __init__(self, impairment: Impairment, source: int, sink: int, routers: tuple[str, str]) -> None:
        self.impairment = impairment
        self.source = source
        self.tally = Tally()
        self._sink = sink
        self._routers = routers
        self._held: list[tuple[float, int, bytes]] = []
        self._held_bytes = 0
        self._order = 0

    @property
    def due(self) -> float | None:
        """When the next held packet is to be delivered."""
        return self._held[0][0] if self._held else None

    def read(self) -> None:
        """Take in what waits on the device, at most a batch."""
        read, source = os.read, self.source
        try:
            for _ in range(BATCH):
                self._take(read(source, READ_SIZE), time.monotonic())
        except BlockingIOError:
            pass

    def deliver(self, now: float) -> None:
        """Write every packet whose time has come."""
        held, tally = self._held, self.tally
        while held and held[0][0] <= now:
            due, _, packet = heapq.heappop(held)
            self._held_bytes -= len(packet)
            lateness = now - due
            if lateness > 0.001:
                tally.late_1ms += 1
            if lateness > tally.worst_lateness:
                tally.worst_lateness = lateness
            self._write(packet)

    def _take(self, packet: bytes, now: float) -> None:
        if not is_routable(packet):
            self.tally.dropped["other/link-scope"] += 1
            return
        tally, length = self.tally, len(packet)
        protocol = packet[9] if packet[0] >> 4 == 4 else _protocol_v6(packet)
        kind = CLASSES.get(protocol, "other")
        tally.packets_in += 1
        tally.bytes_in += length
        tally.by_protocol[kind] += 1
        decision = self.impairment.decide(now, length, protocol)
        if isinstance(decision, Drop):
            tally.dropped[f"{kind}/{decision.reason}"] += 1
            if decision.answer:
                self._answer(packet, decision.answer)
            return
        tally.duplicated += len(decision) - 1
        for due in decision:
            if due <= now and not self._held:
                self._write(packet)
            else:
                self._hold(due, packet, kind)

    def _hold(self, due: float, packet: bytes, kind: str) -> None:
        if len(self._held) >= MAX_HELD or self._held_bytes + len(packet) > MAX_HELD_BYTES:
            self.tally.dropped[f"{kind}/held-full"] += 1
            return
        self._order += 1
        heapq.heappush(self._held, (due, self._order, packet))
        self._held_bytes += len(packet)
        self.tally.held_most = max(self.tally.held_most, len(self._held))

    def _write(self, packet: bytes) -> None:
        try:
            os.write(self._sink, packet)
        except OSError:
            # The far device is down, or takes no more: a real wire would lose it as well.
            self.tally.dropped["other/device-refused"] += 1
            return
        self.tally.packets_out += 1
        self.tally.bytes_out += len(packet)

    def _answer(self, packet: bytes, answer: str) -> None:
        router = self._routers[0 if packet[0] >> 4 == 4 else 1]
        if not router:
            return
        if answer == "too-big":
            mtu = self.impairment.settings.mtu or 0
            error = too_big(packet, router, mtu) if forbids_fragmentation(packet) else None
        else:
            error = unreachable(packet, router, admin=answer == "admin")
        if error is not None:
            with contextlib.suppress(OSError):
                os.write(self.source, error)
                self.tally.answered += 1


def _protocol_v6(packet: bytes) -> int:
    if packet[6] in CLASSES:
        return packet[6]
    header = parse(packet)
    return header.protocol if header is not None else 255


class Control:
    """Commands: ``set``, ``get``, ``reseed``, ``stats``. Each answers {"ok": true, ...} or {"error": ...}."""

    def __init__(self, pipes: dict[Direction, Pipe]) -> None:
        self._pipes = pipes

    def execute(self, line: bytes) -> dict[str, Any]:
        """Carry out one line. Mistakes in it are answered, never raised."""
        try:
            command = json.loads(line)
            handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
                "set": self._set,
                "get": self._get,
                "reseed": self._reseed,
                "stats": self._stats,
            }
            return {"ok": True, **handlers[command["op"]](command)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _set(self, command: dict[str, Any]) -> dict[str, Any]:
        settings = {name: settings_from_json(value) for name, value in command["settings"].items()}
        for name, value in settings.items():
            self._pipes[name].impairment.settings = value
        return {}

    def _get(self, command: dict[str, Any]) -> dict[str, Any]:
        return {name: asdict(pipe.impairment.settings) for name, pipe in self._pipes.items()}

    def _reseed(self, command: dict[str, Any]) -> dict[str, Any]:
        for pipe in self._pipes.values():
            pipe.impairment.reseed(int(command["seed"]))
        return {}

    def _stats(self, command: dict[str, Any]) -> dict[str, Any]:
        return {name: pipe.tally.as_json() for name, pipe in self._pipes.items()}


class Loop:
    """Waits for devices, commands and deliveries, in one thread.

    ``select`` and not ``epoll``: its time-out has microseconds, epoll's in Python has milliseconds,
    and there are never more than a handful of descriptors.
    """

    def __init__(self, pipes: dict[Direction, Pipe], listener: socket.socket, lifeline: int) -> None:
        self._pipes = list(pipes.values())
        self._by_source = {pipe.source: pipe for pipe in self._pipes}
        self._control = Control(pipes)
        self._listener = listener
        self._lifeline = lifeline
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}

    def run(self) -> None:
        """Until the lifeline ends."""
        while True:
            watched = [self._lifeline, self._listener.fileno(), *self._by_source, *self._clients]
            ready, _, _ = select.select(watched, [], [], self._patience())
            for descriptor in ready:
                pipe = self._by_source.get(descriptor)
                if pipe is not None:
                    pipe.read()
                elif descriptor == self._lifeline:
                    if not os.read(descriptor, 64):
                        return
                elif descriptor in self._clients:
                    self._converse(descriptor)
                else:
                    self._accept()
            now = time.monotonic()
            for pipe in self._pipes:
                pipe.deliver(now)

    def _patience(self) -> float | None:
        dues = [pipe.due for pipe in self._pipes if pipe.due is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            client.setblocking(True)
            client.settimeout(1.0)
            self._clients[client.fileno()] = (client, bytearray())

    def _converse(self, descriptor: int) -> None:
        client, buffer = self._clients[descriptor]
        try:
            data = client.recv(MAX_COMMAND)
            buffer += data
            while b"\n" in buffer:
                line, _, rest = bytes(buffer).partition(b"\n")
                buffer[:] = rest
                client.sendall(json.dumps(self._control.execute(line)).encode() + b"\n")
        except OSError:
            data = b""
        if not data or len(buffer) > MAX_COMMAND:
            client.close()
            del self._clients[descriptor]


def _be_punctual() -> None:
    """Ask for exact timers, and to run at once when one fires.

    The default slack of 50 microseconds per sleep would be added to the delay. On a busy machine an
    ordinary process waits several milliseconds for its turn, which would be jitter that nobody asked
    for; a real wire does not wait for the CPU. Without the right to real time it stays ordinary.
    """
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``python -m opentsm.lab.emulator``; started by ``wan.start_emulator``, not by hand."""
    parser = argparse.ArgumentParser(prog="opentsm.lab.emulator", description=__doc__)
    parser.add_argument("--near", type=int, required=True, help="descriptor of the site's TUN device")
    parser.add_argument("--far", type=int, required=True, help="descriptor of the internet's TUN device")
    parser.add_argument("--listen", type=int, required=True, help="descriptor of the control socket")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--near-routers", default=",", help="IPv4,IPv6 source of errors about upward packets")
    parser.add_argument("--far-routers", default=",", help="the same for downward packets")
    parser.add_argument("--settings", default="{}", help="JSON: direction -> settings")
    options = parser.parse_args(argv)
    _be_punctual()
    given: dict[str, Any] = json.loads(options.settings)
    ends = {"up": (options.near, options.far), "down": (options.far, options.near)}
    routers = {"up": options.near_routers, "down": options.far_routers}
    pipes: dict[Direction, Pipe] = {}
    for direction in DIRECTIONS:
        impairment = Impairment(direction, options.seed, settings_from_json(given.get(direction, {})))
        ipv4, _, ipv6 = routers[direction].partition(",")
        os.set_blocking(ends[direction][0], False)
        pipes[direction] = Pipe(impairment, *ends[direction], (ipv4, ipv6))
    Loop(pipes, socket.socket(fileno=options.listen), sys.stdin.fileno()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
