"""A test call: RTP-like packets to an echo inside the tunnel, and what became of each, by path."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from opentsm.client.sockets import InnerSocket
from opentsm.client.tunnel import Tunnel
from opentsm.errors import TunnelClosedError
from opentsm.tasks import cancel, spawn
from opentsm.types import Path, SocketAddress

ECHO_PORT: Final = 7
"""The server's inner echo (RFC 862)."""

INTERVAL: Final = 0.02
"""Seconds between packets, as a phone sends speech (RFC 3551)."""

PAYLOAD: Final = 160
"""Bytes of 20 ms of G.711."""

LOST_AFTER: Final = 2.0
"""Seconds after which a packet without an echo is lost: far beyond any play-out buffer, and beyond what a
stream takes to send a segment again."""

_RTP: Final = struct.Struct("!BBHII")
_SEQUENCES: Final = 1 << 16


@dataclass(slots=True)
class Leg:
    """One path's share of a test call. Times in milliseconds, there and back."""

    sent: int = 0
    received: int = 0
    lost: int = 0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    worst_ms: float = 0.0

    @property
    def loss_percent(self) -> float:
        known = self.received + self.lost
        return 100.0 * self.lost / known if known else 0.0

    def echoed(self, delay_ms: float) -> None:
        """An echo has come: smoothed delay, interarrival jitter as in RFC 3550 section 6.4.1."""
        if self.received:
            self.jitter_ms += (abs(delay_ms - self.delay_ms) - self.jitter_ms) / 16
            self.delay_ms += (delay_ms - self.delay_ms) / 8
        else:
            self.delay_ms = delay_ms
        self.received += 1
        self.worst_ms = max(self.worst_ms, delay_ms)


class TestCall:
    """Sends 50 packets a second on a bound socket until it is stopped.

    Attributes:
        legs: what happened, by the path a packet was sent on.
        duplicates: echoes that had come before, or long after they were given up.
    """

    __test__ = False  # the name is a telephone word; pytest shall not collect it

    def __init__(self, socket: InnerSocket, target: SocketAddress) -> None:
        self.legs = {path: Leg() for path in Path}
        self.duplicates = 0
        self._socket = socket
        self._target = target
        self._sequence = 0
        self._all_back = asyncio.Event()
        self._waiting: OrderedDict[int, tuple[float, Path]] = OrderedDict()

    async def run(self, seconds: float | None = None) -> None:
        """Send for so long, or until cancelled; then wait for the last echoes."""
        reader = spawn("test-call echoes", self._read())
        try:
            await self._send(seconds)
            await self._drain()
        finally:
            await cancel(reader)

    async def _send(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        end = None if seconds is None else due + seconds
        while end is None or due < end:
            self._send_one(loop.time())
            due += INTERVAL
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOST_AFTER):
                await self._all_back.wait()
        self._give_up(float("inf"))

    def _send_one(self, now: float) -> None:
        self._give_up(now)
        self._sequence = (self._sequence + 1) % _SEQUENCES
        path = self._socket.path
        timestamp = self._sequence * PAYLOAD % (1 << 32)
        packet = _RTP.pack(0x80, 0, self._sequence, timestamp, 0x54534D) + bytes(PAYLOAD)
        self.legs[path].sent += 1
        self._waiting[self._sequence] = (now, path)
        self._all_back.clear()
        self._socket.sendto_nowait(packet, self._target)

    def _give_up(self, now: float) -> None:
        while self._waiting:
            sequence, (sent, path) = next(iter(self._waiting.items()))
            if now - sent < LOST_AFTER:
                return
            del self._waiting[sequence]
            self.legs[path].lost += 1

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, _ = await self._socket.recvfrom()
            except TunnelClosedError:
                return
            sequence = _RTP.unpack_from(data)[2] if len(data) >= _RTP.size else -1
            entry = self._waiting.pop(sequence, None)
            if entry is None:
                self.duplicates += 1
            else:
                self.legs[entry[1]].echoed(1000 * (loop.time() - entry[0]))
            if not self._waiting:
                self._all_back.set()


def echo_address(tunnel: Tunnel) -> SocketAddress:
    """Where the server's echo is: at its SIP address, else at the first address of our inner network."""
    lease = tunnel.configuration.lease
    if lease.sip_server is not None:
        return str(lease.sip_server[0]), ECHO_PORT
    interface = lease.ipv4 or lease.ipv6
    assert interface is not None
    network = ipaddress.ip_network(interface.network)
    return str(next(iter(network.hosts()))), ECHO_PORT
