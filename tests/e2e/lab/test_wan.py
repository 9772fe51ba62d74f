"""The emulator does to real packets what it was told, exactly as its seed foretells."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from opentsm.errors import LocalProtocolError, PlatformError
from opentsm.lab import GilbertElliott, Lab, LabSpec, Settings, predict
from opentsm.lab.impairment import Direction
from opentsm.lab.probe import probe

pytestmark = pytest.mark.netns

WAIT = 10.0
PORT = 5000
Family = Literal["ipv4", "ipv6"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(seed=42)) as made:
        yield made


@pytest.fixture(autouse=True)
def _perfect_wire(lab: Lab) -> None:
    lab.wan().replace("both", Settings())
    lab.wan().reseed(42)


@contextlib.contextmanager
def pair(lab: Lab, family: Family = "ipv4") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A phone's socket connected to a server's; both wait at most ``WAIT``."""
    server = lab["server"].udp(getattr(lab["server"], family), PORT)
    client = lab["phone1"].udp(getattr(lab["phone1"], family))
    with server, client:
        client.connect((getattr(lab["server"], family), PORT))
        for each in (server, client):
            each.settimeout(WAIT)
        yield client, server


def taken(lab: Lab, direction: Direction, protocol: str = "udp") -> int:
    """Packets of a protocol the emulator has decided about so far."""
    stats = lab.wan().stats()
    return (stats.up if direction == "up" else stats.down).by_protocol.get(protocol, 0)


def wait_until_taken(lab: Lab, direction: Direction, count: int) -> None:
    deadline = time.monotonic() + WAIT
    while taken(lab, direction) < count:
        assert time.monotonic() < deadline, "the emulator does not take the packets"


def send_until_refused(sender: socket.socket, data: bytes) -> None:
    """Send again and again until the kernel has heard of a smaller MTU and says so, or time is up."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        sender.send(data)


def delivered(lab: Lab, direction: Direction) -> int:
    """UDP packets the emulator has let through so far, on a wire without delay."""
    stats = lab.wan().stats()
    one = stats.up if direction == "up" else stats.down
    dropped = sum(count for reason, count in one.dropped.items() if reason.startswith("udp/"))
    return one.by_protocol.get("udp", 0) - dropped + one.duplicated


def drain(receiver: socket.socket) -> list[bytes]:
    """What has arrived by now."""
    receiver.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(receiver.recv(2000))
    receiver.settimeout(WAIT)
    return found


def arrivals(
    lab: Lab, sender: socket.socket, receiver: socket.socket, count: int, direction: Direction
) -> list[int]:
    """Send numbered packets; the numbers that arrived, in order."""
    found: list[int] = []
    before, let_through = taken(lab, direction), delivered(lab, direction)
    for number in range(count):
        sender.send(number.to_bytes(2))
        if number % 100 == 99 or number == count - 1:
            wait_until_taken(lab, direction, before + number + 1)
            while len(found) < delivered(lab, direction) - let_through:
                found.append(int.from_bytes(receiver.recv(2000)))
    return found + [int.from_bytes(data) for data in drain(receiver)]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_the_lost_packets_are_exactly_those_the_seed_foretells(lab: Lab, family: Family) -> None:
    settings = Settings(loss=0.1, burst=GilbertElliott(0.05, 0.4))
    lab.wan().replace("up", settings)
    with pair(lab, family) as (client, server):
        arrived = set(arrivals(lab, client, server, 400, "up"))
    assert [number in arrived for number in range(400)] == predict(settings, 42, "up", "udp", 400)


def test_the_same_holds_for_the_way_back_and_for_another_seed(lab: Lab) -> None:
    settings = Settings(loss=0.3)
    with pair(lab) as (client, server):
        client.send(b"open the NAT")
        server.connect(server.recvfrom(100)[1])
        lab.wan().replace("down", settings)
        for seed in (1, 2):
            lab.wan().reseed(seed)
            arrived = set(arrivals(lab, server, client, 200, "down"))
            assert [n in arrived for n in range(200)] == predict(settings, seed, "down", "udp", 200)


def test_tcp_in_between_does_not_change_what_udp_loses(lab: Lab) -> None:
    settings = Settings(loss=0.2)
    listener = lab["server"].listen(port=443)
    stream = lab["phone1"].socket()
    stream.settimeout(WAIT)
    with pair(lab) as (client, server), listener, stream:
        stream.connect((lab["server"].ipv4, 443))
        lab.wan().reseed(42)
        lab.wan().replace("up", settings)
        before, let_through = taken(lab, "up"), delivered(lab, "up")
        for number in range(200):
            stream.send(bytes(500))
            client.send(number.to_bytes(2))
        wait_until_taken(lab, "up", before + 200)
        count = delivered(lab, "up") - let_through
        arrived = {int.from_bytes(server.recv(100)) for _ in range(count)}
        assert taken(lab, "up", "tcp") > 0
        lab.wan().replace("up", Settings())
    assert [n in arrived for n in range(200)] == predict(settings, 42, "up", "udp", 200)


def test_nothing_arrives_before_its_delay_is_over(lab: Lab) -> None:
    lab.wan().set("up", delay=0.08)
    lab.wan().set("down", delay=0.04)
    with pair(lab) as (client, server):
        began = time.monotonic()
        client.send(b"ping")
        _, source = server.recvfrom(100)
        half = time.monotonic()
        assert half - began >= 0.08
        server.sendto(b"pong", source)
        client.recv(100)
        assert time.monotonic() - half >= 0.04


def test_jitter_without_order_reorders_and_with_order_does_not(lab: Lab) -> None:
    with pair(lab) as (client, server):
        for keep_order in (True, False):
            lab.wan().replace("up", Settings(jitter=0.05, keep_order=keep_order))
            for number in range(100):
                client.send(number.to_bytes(2))
            got = [int.from_bytes(server.recv(100)) for _ in range(100)]
            assert sorted(got) == list(range(100))
            assert (got == sorted(got)) is keep_order


def test_duplicates_arrive(lab: Lab) -> None:
    lab.wan().set("up", duplicate=1.0)
    with pair(lab) as (client, server):
        assert arrivals(lab, client, server, 10, "up") == [n for n in range(10) for _ in "xx"]
    assert lab.wan().stats().up.duplicated >= 10


def test_a_rate_limit_drops_what_its_queue_cannot_hold(lab: Lab) -> None:
    before = lab.wan().stats().up.dropped.get("udp/queue-full", 0)
    lab.wan().set("up", rate=200_000, queue_bytes=5_000)
    with pair(lab) as (client, server):
        base = taken(lab, "up")
        for number in range(20):
            client.send(number.to_bytes(2) + bytes(970))
        wait_until_taken(lab, "up", base + 20)
        dropped = lab.wan().stats().up.dropped["udp/queue-full"] - before
        assert 0 < dropped < 20
        got = [int.from_bytes(server.recv(2000)[:2]) for _ in range(20 - dropped)]
        assert got == sorted(got)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_udp_can_be_refused_aloud(lab: Lab, family: Family) -> None:
    with pair(lab, family) as (client, server):
        client.send(b"hello")
        assert server.recv(100) == b"hello"
        lab.wan().set("up", udp="reject")
        client.send(b"refuse me")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
        lab.wan().set("up", udp="pass")
        client.send(b"again")
        assert server.recv(100) == b"again"


def test_udp_can_be_dropped_silently_while_tcp_goes_on(lab: Lab) -> None:
    lab.wan().set(udp="drop")
    dropped = lab.wan().stats().up.dropped.get("udp/blocked-udp", 0)
    with pair(lab) as (client, server), lab["server"].listen(port=443) as listener:
        assert arrivals(lab, client, server, 10, "up") == []
        with lab["phone1"].socket() as stream:
            stream.settimeout(WAIT)
            stream.connect((lab["server"].ipv4, 443))
        listener.settimeout(WAIT)
        listener.accept()[0].close()
    assert lab.wan().stats().up.dropped["udp/blocked-udp"] == dropped + 10


def test_a_tcp_connection_can_be_refused_aloud(lab: Lab) -> None:
    lab.wan().set("up", tcp="reject")
    with lab["server"].listen(port=443), lab["phone1"].socket() as stream:
        stream.settimeout(WAIT)
        with pytest.raises(ConnectionRefusedError):
            stream.connect((lab["server"].ipv4, 443))


@pytest.mark.parametrize(("family", "overhead"), [("ipv4", 28), ("ipv6", 48)])
def test_large_packets_are_answered_with_the_mtu(lab: Lab, family: Family, overhead: int) -> None:
    lab.wan().set("up", mtu=1300)
    with pair(lab, family) as (client, server):
        client.send(bytes(1300 - overhead))
        assert len(server.recv(2000)) == 1300 - overhead
        level, discover, probing = (
            (socket.IPPROTO_IP, 10, 2) if family == "ipv4" else (socket.IPPROTO_IPV6, 23, 2)
        )
        client.setsockopt(level, discover, probing)  # IP_MTU_DISCOVER = DO
        with pytest.raises(OSError, match="too long"):
            send_until_refused(client, bytes(1400 - overhead))


def test_a_black_hole_says_nothing(lab: Lab) -> None:
    lab.wan().set("up", mtu=1000, mtu_signal=False)
    answered = lab.wan().stats().up.answered
    with pair(lab) as (client, server):
        before = taken(lab, "up")
        for _ in range(5):
            client.send(bytes(1200))
        wait_until_taken(lab, "up", before + 5)
        assert drain(server) == []
    assert lab.wan().stats().up.answered == answered


def test_settings_change_in_place_and_wrong_ones_are_refused(lab: Lab) -> None:
    lab.wan().set("up", delay=0.1)
    lab.wan().set("up", loss=0.5)
    assert lab.wan().settings("up") == Settings(delay=0.1, loss=0.5)
    assert lab.wan().settings("down") == Settings()
    with pytest.raises(ValueError, match="speed"):
        lab.wan().set(speed=3)
    with pytest.raises(ValueError, match="loss"):
        lab.wan().set(loss=3)
    assert lab.wan().settings("up") == Settings(delay=0.1, loss=0.5)


async def test_a_probe_accounts_for_every_packet_both_ways(lab: Lab) -> None:
    lab.wan().set(delay=0.02)
    result = await probe(lab["phone1"], lab["server"], flows=3, seconds=0.5)
    for flow in (*result.up, *result.down):
        report = flow.report()
        assert (report.sent, report.received, report.duplicated, report.corrupt) == (25, 25, 0, 0)
        assert report.delay_min >= 0.02
    assert [path.name for path in result.section("x").paths] == ["up", "down"]


async def test_a_probe_through_a_block_reports_silence(lab: Lab) -> None:
    lab.wan().set("up", udp="drop")
    result = await probe(lab["phone1"], lab["server"], seconds=0.2)
    assert (result.up[0].report().lost, len(result.down[0].sent)) == (10, 0)


def test_a_lab_without_emulator_says_so() -> None:
    with Lab(LabSpec(emulate=False)) as plain, pytest.raises(LocalProtocolError, match="emulate"):
        plain.wan()


def test_a_lab_that_is_gone_says_so() -> None:
    with Lab(LabSpec()) as gone:
        wan = gone.wan()
    with pytest.raises(PlatformError, match="does not answer"):
        wan.stats()
