from __future__ import annotations

import asyncio
import socket
import time

import pytest

from opentsm.lab.traffic import MIN_PAYLOAD, MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all

FROM = ("192.0.2.1", 4000)


class Loopback:
    """A transport that hands every packet to a receiver at once; can lose and repeat."""

    def __init__(
        self, receiver: MediaReceiver, *, lose: frozenset[int] = frozenset(), copies: int = 1
    ) -> None:
        self.receiver = receiver
        self.lose = lose
        self.copies = copies
        self.packets: list[bytes] = []
        self.destinations: list[tuple[str, int] | None] = []

    def sendto(self, data: bytes, addr: tuple[str, int] | None = None, /) -> None:
        self.packets.append(data)
        self.destinations.append(addr)
        if len(self.packets) - 1 not in self.lose:
            for _ in range(self.copies):
                self.receiver.datagram_received(data, FROM)


def test_packets_are_rtp_of_the_size_asked_for() -> None:
    flow = MediaFlow(0xDEADBEEF, payload=160)
    first, second = flow.next_packet(1.0), flow.next_packet(1.02)
    assert len(first) == 172
    assert first[0] == 0x80
    assert (first[1], second[1]) == (0x80, 0x00)
    assert [int.from_bytes(p[2:4]) for p in (first, second)] == [0, 1]
    assert int.from_bytes(second[4:8]) - int.from_bytes(first[4:8]) == 160
    assert first[8:12] == bytes.fromhex("deadbeef")


async def test_what_arrives_is_recorded_by_flow() -> None:
    flows = [MediaFlow(n, rate=1000) for n in (1, 2)]
    receiver = MediaReceiver(flows)
    wire = Loopback(receiver, lose=frozenset({0, 3}))
    await send_all([MediaSender(wire, flow) for flow in flows], count=5)
    reports = [flow.report() for flow in flows]
    assert [r.sent for r in reports] == [5, 5]
    assert sum(r.lost for r in reports) == 2
    assert sum(len(flow.losses()) for flow in flows) == 2
    assert receiver.sources == {1: FROM, 2: FROM}
    assert all(delay >= 0 for flow in flows for _, delay in flow.delays())


async def test_copies_are_duplicates() -> None:
    flow = MediaFlow(1, rate=1000)
    await send_all([MediaSender(Loopback(MediaReceiver([flow]), copies=2), flow)], count=4)
    report = flow.report()
    assert (report.received, report.duplicated, report.lost) == (4, 4, 0)


async def test_a_number_of_seconds_is_an_exact_number_of_packets() -> None:
    flows = [MediaFlow(n, rate=100 * (n + 1)) for n in range(3)]
    wire = Loopback(MediaReceiver(flows))
    await send_all([MediaSender(wire, flow) for flow in flows], seconds=0.1)
    assert [len(flow.sent) for flow in flows] == [10, 20, 30]


async def test_packets_are_never_sent_ahead_of_their_time() -> None:
    flow = MediaFlow(1, rate=200)
    await send_all([MediaSender(Loopback(MediaReceiver([flow])), flow)], count=20)
    assert all(when - flow.sent[0] >= n / 200 - 0.005 for n, when in enumerate(flow.sent))


async def test_a_destination_is_passed_on() -> None:
    flow = MediaFlow(1, rate=1000)
    wire = Loopback(MediaReceiver([flow]))
    await send_all([MediaSender(wire, flow, ("192.0.2.9", 7))], count=1)
    assert wire.destinations == [("192.0.2.9", 7)]


@pytest.mark.parametrize("position", [0, 2, 12, 15, 40, 171])
def test_a_changed_byte_is_not_taken_for_a_packet(position: int) -> None:
    flow = MediaFlow(7)
    packet = bytearray(flow.next_packet(1.0))
    packet[position] ^= 0x55
    MediaReceiver([flow]).datagram_received(bytes(packet), FROM)
    report = flow.report()
    assert (report.received, report.corrupt) == (0, 1)


def test_strangers_are_counted_and_ignored() -> None:
    receiver = MediaReceiver([MediaFlow(1)])
    receiver.datagram_received(b"", FROM)
    receiver.datagram_received(bytes(200), FROM)
    assert receiver.unknown == 2


async def test_waiting_for_packets_ends_when_they_came_or_time_is_up() -> None:
    flow, silent = MediaFlow(1), MediaFlow(2)
    receiver = MediaReceiver([flow])
    receiver.expect(silent)
    waiting = asyncio.ensure_future(receiver.received(2))
    for _ in range(2):
        await asyncio.sleep(0)
        receiver.datagram_received(flow.next_packet(0.0), FROM)
    await waiting
    await receiver.heard([flow])
    with pytest.raises(TimeoutError):
        await receiver.heard([flow, silent], within=0.01)


def test_flows_that_cannot_be_are_refused() -> None:
    for wrong in ({"payload": MIN_PAYLOAD - 1}, {"rate": 0.0}):
        with pytest.raises(ValueError, match="payload"):
            MediaFlow(1, **wrong)
    with pytest.raises(ValueError, match="32-bit"):
        MediaFlow(1 << 32)


async def test_a_media_socket_takes_arrival_times_from_the_kernel() -> None:
    """The loop does not run for a while after the packet has arrived; that must not count as delay."""
    flow = MediaFlow(1)
    receiver = MediaReceiver([flow])
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for end in ends:
        end.bind(("127.0.0.1", 0))
        end.setblocking(False)
    far, near = (MediaSocket(end, receiver) for end in ends)
    MediaSender(near, flow, ends[0].getsockname()).send()
    before_the_loop_runs = time.monotonic()
    await receiver.received(1)
    assert flow.sent[0] <= flow.arrived[0] <= before_the_loop_runs
    assert receiver.sources == {1: ends[1].getsockname()}
    far.close()
    near.close()


async def test_a_refused_packet_is_an_error_of_the_receiver_and_not_of_the_sender() -> None:
    flow = MediaFlow(1)
    receiver = MediaReceiver([flow])
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.bind(("127.0.0.1", 0))
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.connect(closed.getsockname())
    end.setblocking(False)
    closed.close()
    media = MediaSocket(end, receiver)
    sender = MediaSender(media, flow)
    sender.send()
    sender.send()
    assert [type(error) for error in receiver.errors] == [ConnectionRefusedError]
    media.close()
