"""RTP-like media: senders with exact pacing, a receiver that keeps a record of every packet.

Works over anything that is an asyncio DatagramTransport: real sockets, or those of a tunnel. Packets
are RTP (RFC 3550) with a payload that says who sent it when, so that nothing can be mistaken:

    RTP header 12 | packet number 4 | send time, ns 8 | pattern
"""

from __future__ import annotations

import asyncio
import heapq
import math
import socket
import struct
import time
from array import array
from collections.abc import Sequence
from typing import Final, Protocol, cast

from opentsm.lab.accounting import FlowReport, account

HEADER: Final = struct.Struct("!BBHIIIQ")
RTP_HEADER_SIZE: Final = 12
MIN_PAYLOAD: Final = HEADER.size - RTP_HEADER_SIZE

MAX_RECORD: Final = 2_000_000
"""Packets one flow may record (16 bytes each at both ends): eleven hours at 50 packets/s."""

_CLOCK_RATE: Final = 8000
_PAYLOAD_TYPE: Final = 0  # PCMU (RFC 3551)

_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("qq")
_CONTROL_SIZE: Final = 64
_READ_SIZE: Final = 2048
_READ_BATCH: Final = 256
"""Datagrams read in one turn of the loop, so that senders in the same loop keep their pace."""

_BREATHE: Final = 64
"""Packets in a row after which a sender that is catching up lets the event loop run."""


class DatagramSink(Protocol):
    """What a sender needs of a transport."""

    def sendto(self, data: bytes, addr: tuple[str, int] | None = None, /) -> None: ...


class MediaFlow:
    """One flow and all that is known of its packets, at either end or at both.

    Args:
        ssrc: its 32-bit name (RFC 3550).
        rate: packets per second.
        payload: bytes after the RTP header; 160 is 20 ms of G.711.
    """

    def __init__(self, ssrc: int, *, rate: float = 50.0, payload: int = 160) -> None:
        if not 0 <= ssrc < 1 << 32:
            raise ValueError("ssrc is a 32-bit number")
        if payload < MIN_PAYLOAD or rate <= 0:
            raise ValueError(f"payload is at least {MIN_PAYLOAD} bytes, and rate above 0")
        self.ssrc = ssrc
        self.rate = rate
        self.sent = array("d")
        self.numbers = array("L")
        self.arrived = array("d")
        self.corrupt = 0
        self._step = round(_CLOCK_RATE / rate)
        self._pattern = (ssrc.to_bytes(4) * (payload // 4 + 1))[: payload - MIN_PAYLOAD]

    def next_packet(self, now: float) -> bytes:
        """The next packet, counted as sent at ``now`` (seconds, ``time.monotonic``)."""
        number = len(self.sent)
        if number >= MAX_RECORD:
            raise ValueError(f"a flow records at most {MAX_RECORD} packets; use several flows")
        self.sent.append(now)
        # The marker bit says that a talk spurt begins (RFC 3551 section 4.1).
        second = _PAYLOAD_TYPE | (0x80 if number == 0 else 0)
        stamp = number * self._step & 0xFFFF_FFFF
        head = HEADER.pack(0x80, second, number & 0xFFFF, stamp, self.ssrc, number, int(now * 1e9))
        return head + self._pattern

    def take(self, data: bytes, now: float) -> None:
        """Record an arrival. The packet's SSRC is ours; anything else wrong with it is corruption."""
        first, _, sequence, _, _, number, _ = HEADER.unpack_from(data)
        whole = first == 0x80 and sequence == number & 0xFFFF and data[HEADER.size :] == self._pattern
        if not whole or len(self.numbers) >= MAX_RECORD:
            self.corrupt += 1
            return
        self.numbers.append(number)
        self.arrived.append(now)

    def report(self, playout: float = 0.060) -> FlowReport:
        """Account for the flow as known now.

        Args:
            playout: seconds a listener's buffer waits, counted from the fastest packet.
        """
        arrivals = zip(self.numbers, self.arrived, strict=True)
        return account(self.sent, arrivals, playout=playout, corrupt=self.corrupt)

    def delays(self) -> list[tuple[float, float]]:
        """(send time, one-way delay) of each arrival, copies included; for plots."""
        return [
            (self.sent[number], when - self.sent[number])
            for number, when in zip(self.numbers, self.arrived, strict=True)
            if number < len(self.sent)
        ]

    def losses(self) -> list[float]:
        """Send times of the packets that never arrived."""
        seen = set(self.numbers)
        return [when for number, when in enumerate(self.sent) if number not in seen]


class MediaReceiver(asyncio.DatagramProtocol):
    """Takes the packets of any number of flows.

    Args:
        flows: those it expects; more by ``expect``.
    """

    def __init__(self, flows: Sequence[MediaFlow] = ()) -> None:
        self._flows = {flow.ssrc: flow for flow in flows}
        self._changed = asyncio.Event()
        self.transport: asyncio.DatagramTransport | None = None
        self.unknown = 0
        self.errors: list[Exception] = []
        self.sources: dict[int, tuple[str, int]] = {}

    def expect(self, flow: MediaFlow) -> None:
        """Record the packets of this flow from now on."""
        self._flows[flow.ssrc] = flow

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own UDP transport is not a subclass of DatagramTransport, so it is not checked.
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.take(data, addr, time.monotonic())

    def take(self, data: bytes, addr: tuple[str, int], when: float) -> None:
        """Record a packet that arrived at ``when`` (``time.monotonic``)."""
        flow = self._flows.get(int.from_bytes(data[8:12])) if len(data) >= HEADER.size else None
        if flow is None:
            self.unknown += 1
            return
        self.sources[flow.ssrc] = addr
        flow.take(data, when)
        self._changed.set()

    def error_received(self, exc: Exception) -> None:
        """ICMP errors about our own packets; kept for tests (at most 1,000)."""
        if len(self.errors) < 1000:
            self.errors.append(exc)

    async def received(self, count: int, *, within: float = 10.0) -> None:
        """Wait until this many packets of expected flows have arrived, copies included.

        Args:
            count: packets.
            within: seconds.

        Raises:
            TimeoutError: they did not come.
        """
        async with asyncio.timeout(within):
            while sum(len(flow.numbers) for flow in self._flows.values()) < count:
                self._changed.clear()
                await self._changed.wait()

    async def heard(self, flows: Sequence[MediaFlow], *, within: float = 10.0) -> None:
        """Wait until at least one packet of each of these flows has arrived.

        Raises:
            TimeoutError: one of them stayed silent for ``within`` seconds.
        """
        async with asyncio.timeout(within):
            while not all(flow.numbers for flow in flows):
                self._changed.clear()
                await self._changed.wait()


class MediaSocket:
    """A real UDP socket for media: reads in batches and takes arrival times from the kernel.

    asyncio's transport reads one datagram per turn of its loop, so with thousands of packets a second
    it would measure its own queue. Here a late turn of the loop adds nothing to the delay.

    Args:
        sock: bound, non-blocking; closed by ``close``.
        receiver: takes what arrives.
    """

    def __init__(self, sock: socket.socket, receiver: MediaReceiver) -> None:
        self._socket = sock
        self._receiver = receiver
        self.unsent = 0
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    def sendto(self, data: bytes, addr: tuple[str, int] | None = None, /) -> None:
        """Send now. What the kernel has no room for is counted in ``unsent``; errors go to the receiver."""
        try:
            if addr is None:
                self._socket.send(data)
            else:
                self._socket.sendto(data, addr)
        except BlockingIOError:
            self.unsent += 1
        except OSError as error:
            self._receiver.error_received(error)

    def close(self) -> None:
        """Stop reading and close the socket."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        # The kernel stamps with the wall clock, which may step: its distance is taken anew each time.
        distance = time.time() - time.monotonic()
        for _ in range(_READ_BATCH):
            try:
                data, control, _, source = self._socket.recvmsg(_READ_SIZE, _CONTROL_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                self._receiver.error_received(error)
                continue
            self._receiver.take(data, source[:2], _stamp(control, distance))


def _stamp(control: list[tuple[int, int, bytes]], distance: float) -> float:
    """The kernel's arrival time on the monotonic clock."""
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return float(seconds + nanoseconds * 1e-9 - distance)
    return time.monotonic()


class MediaSender:
    """Sends one flow over a transport.

    Args:
        transport: where to.
        flow: what, and the record of it.
        destination: for transports that are not connected.
    """

    def __init__(
        self, transport: DatagramSink, flow: MediaFlow, destination: tuple[str, int] | None = None
    ) -> None:
        self.transport = transport
        self.flow = flow
        self.destination = destination

    def send(self) -> None:
        """Send the next packet now."""
        packet = self.flow.next_packet(time.monotonic())
        if self.destination is None:
            self.transport.sendto(packet)
        else:
            self.transport.sendto(packet, self.destination)


async def send_all(
    senders: Sequence[MediaSender], *, seconds: float | None = None, count: int | None = None
) -> None:
    """Pace any number of senders: each at its flow's rate, spread evenly over the interval.

    Deadlines are absolute, so a late wake-up is caught up and the number of packets is exact.

    Args:
        senders: flows may differ in rate.
        seconds: how long; or
        count: how many packets of each flow. Neither: until cancelled.
    """
    limits = [_packets(sender.flow.rate, seconds, count) for sender in senders]
    start = time.monotonic()
    queue: list[tuple[float, int, int]] = []
    for index, sender in enumerate(senders):
        offset = index / len(senders) / sender.flow.rate
        queue.append((start + offset, index, 0))
    heapq.heapify(queue)
    run = 0
    while queue:
        due, index, number = queue[0]
        pause = due - time.monotonic()
        if pause > 0:
            run = 0
            await asyncio.sleep(pause)
            continue
        sender = senders[index]
        if number >= limits[index]:
            heapq.heappop(queue)
            continue
        sender.send()
        heapq.heapreplace(queue, (due + 1 / sender.flow.rate, index, number + 1))
        run += 1
        if run >= _BREATHE:
            run = 0
            await asyncio.sleep(0)


def _packets(rate: float, seconds: float | None, count: int | None) -> float:
    """Packets of one flow; whichever limit is reached first."""
    by_time = math.inf if seconds is None else max(1, round(seconds * rate))
    return by_time if count is None else min(by_time, count)
