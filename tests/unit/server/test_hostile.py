"""Bytes nobody should send, on each transport, before and after authentication: others never notice."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from opentsm.server.peer import MALFORMED_LIMIT
from opentsm.types import UNASSIGNED_TSID, Flow, PathMode, Protocol
from opentsm.types import Path as TunnelPath
from opentsm.wire.codec import encode
from opentsm.wire.messages import ConfigurationRequest, ConfigurationResponse, KeepaliveRequest
from tests.unit.server.harness import Inner, Site, Stranger, configuration, running, until

SEED = 20
TEXT = {"realm": "echo = 7", "interface": "plain-transports = true"}
PLAIN = '[tscf-port.plain]\naddress = "127.0.0.1"\nport = 0\ntransport-protocol = "tcp"'


@pytest.fixture
async def site(certificates_folder: Path) -> AsyncIterator[Site]:
    text = configuration(certificates_folder, more=PLAIN, **TEXT)
    text = text.replace('ports = ["v4"]', 'ports = ["v4", "plain"]')
    async with running(certificates_folder, text) as running_site:
        yield running_site


@pytest.fixture
async def honest(site: Site) -> Inner:
    """Somebody who must not notice anything."""
    return (await site.up()).socket()


async def undisturbed(honest: Inner, word: bytes) -> None:
    honest.send(word, "10.64.0.1", 7)
    await honest.heard(word)


def control(
    *, kind: int = 1, count: int = 0, body: bytes = b"", first: int = 0x10, reserved: int = 0
) -> bytes:
    """A control message with whatever one likes in it."""
    return struct.pack("!BBBBQI", first, reserved, kind, count, UNASSIGNED_TSID, 1) + body


def noise(length: int) -> bytes:
    return random.Random(SEED).randbytes(length)


FRAMES = [
    pytest.param(bytes(64), "drop_frame_malformed", id="zeros"),
    pytest.param(b"\x1f" + bytes(63), "drop_frame_reserved", id="reserved"),
    pytest.param(b"\xff" * 64, "drop_frame_malformed", id="ones"),
    pytest.param(struct.pack("!BBH", 0x45, 0, 0xFFFF) + bytes(60), "drop_frame_oversized", id="oversized"),
    pytest.param(control(count=64, body=struct.pack("!HH", 3, 0xFFFF)), "drop_frame_oversized", id="big"),
]


async def greet(site: Site, *, tls: bool, configured: bool) -> Stranger:
    """A stranger, who may have got a tunnel in good order first."""
    stranger = await site.hostile_stream(tls=tls)
    if configured:
        await stranger.send(encode(ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1)))
        assert isinstance(await stranger.message(), ConfigurationResponse)
    return stranger


@pytest.mark.parametrize("configured", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "tcp"])
@pytest.mark.parametrize(("data", "counter"), FRAMES)
async def test_what_is_no_frame_closes_its_sender(
    site: Site, honest: Inner, data: bytes, counter: str, tls: bool, configured: bool
) -> None:
    stranger = await greet(site, tls=tls, configured=configured)
    before = site.counter(counter)
    await stranger.send(data)
    await stranger.ended()
    assert site.counter(counter) == before + 1
    await undisturbed(honest, b"here")


CODED = [
    pytest.param(bytes((0x11, 0, 0, 2, 9, 9)), "drop_coding_not_agreed", id="compressed"),
    pytest.param(bytes((0x11, 0, 0xC0, 5, 0, 0, 0, 0, 0)), "drop_coding_not_agreed", id="feedback"),
    pytest.param(bytes((0x13, 1, 1, 2, 9, 9)), "drop_coding_not_agreed", id="recovery"),
]


@pytest.mark.parametrize(("data", "counter"), CODED)
async def test_coded_frames_that_were_not_agreed_are_dropped_by_name(
    site: Site, honest: Inner, data: bytes, counter: str
) -> None:
    stranger = await greet(site, tls=True, configured=True)
    before = site.counter(counter)
    await stranger.send(data)
    await until(lambda: site.counter(counter) == before + 1)
    stranger.writer.close()
    await undisturbed(honest, b"here")


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "tcp"])
async def test_random_bytes_close_their_sender_or_are_waited_out(
    site: Site, honest: Inner, tls: bool
) -> None:
    for number in range(20):
        stranger = await site.hostile_stream(tls=tls)
        await stranger.send(random.Random(number).randbytes(5000))
        stranger.writer.close()
    await undisturbed(honest, b"here")
    await until(lambda: not site.server.hub.unconfigured, "every stranger is forgotten")


async def test_half_a_message_is_no_message(site: Site, honest: Inner) -> None:
    stranger = await site.hostile_stream()
    await stranger.send(
        encode(ConfigurationRequest(tsid=UNASSIGNED_TSID, sequence=1, client_id=b"half"))[:-1]
    )
    await undisturbed(honest, b"here")
    assert len(site.server.hub.unconfigured) == 1
    stranger.writer.close()
    await until(lambda: not site.server.hub.unconfigured)


async def test_malformed_messages_are_counted_and_in_the_end_close_their_sender(
    site: Site, honest: Inner
) -> None:
    stranger = await site.hostile_stream()
    bad_family = control(count=1, body=struct.pack("!HHB", 6, 1, 9))
    for _ in range(MALFORMED_LIMIT):
        await stranger.send(bad_family)
    await stranger.ended()
    counted = {
        name: n for name, n in site.server.facts().counters.items() if name.startswith("drop_control_")
    }
    assert sum(counted.values()) == MALFORMED_LIMIT
    await undisturbed(honest, b"here")


async def test_garbage_instead_of_tls(site: Site, honest: Inner) -> None:
    with socket.create_connection(("127.0.0.1", site.server.port("v4"))) as raw:
        raw.setblocking(False)
        raw.send(noise(2000))
        await until(lambda: site.counter("tls_handshake_failed") == 1)
    await undisturbed(honest, b"here")


async def test_garbage_on_the_datagram_port(site: Site, honest: Inner) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        chance = random.Random(SEED)
        for name in ("v4", "plain"):
            for _ in range(50):
                raw.sendto(chance.randbytes(chance.randrange(1, 1400)), ("127.0.0.1", site.server.port(name)))
        await until(
            lambda: sum(site.counter(name) for name in DATAGRAM_DROPS) >= 100,
            "every datagram is a named drop",
        )
    await undisturbed(honest, b"here")


DATAGRAM_DROPS = (
    "drop_stray_datagram",
    "drop_record_malformed",
    "drop_record_bad_tag",
    "drop_frame_malformed",
    "drop_frame_reserved",
    "drop_control_malformed",
    "dtls_handshake_failed",
)


async def test_a_flood_of_control_messages_closes_its_sender(site: Site, honest: Inner) -> None:
    client = await site.up()
    message = control(kind=99)[:4] + struct.pack("!QI", client.tsid, 1)
    turn = 0
    while not client.seen.closed:
        turn += 1
        for _ in range(200):
            if client.stream is not None:
                client.core.send_control(client.stream, message)
        await undisturbed(honest, b"turn %d" % turn)
    assert site.counter("drop_control_flood") >= 1
    assert len(site.server.hub.registry) == 2, "the session may come back"


async def test_a_spoofed_inner_source_is_dropped_and_counted(site: Site, honest: Inner) -> None:
    stranger = await greet(site, tls=True, configured=True)
    packet = inner_udp(IPv4Address(honest.address), IPv4Address("10.64.0.1"), 40000, 7, b"not me")
    await stranger.send(packet)
    await until(lambda: site.counter("drop_inner_spoofed_source") == 1)
    assert not any(data == b"not me" for data, _, _ in honest.received)
    await undisturbed(honest, b"here")
    stranger.writer.close()


async def test_packets_before_the_configuration_go_nowhere(site: Site, honest: Inner) -> None:
    stranger = await site.hostile_stream()
    await stranger.send(inner_udp(IPv4Address("10.64.1.9"), IPv4Address("10.64.0.1"), 40000, 7, b"early"))
    await until(lambda: site.counter("drop_inner_not_attached") == 1)
    stranger.writer.close()
    await undisturbed(honest, b"here")


async def test_garbage_inside_an_own_datagram_tunnel(site: Site, honest: Inner) -> None:
    """Authentic, and still nonsense: the sender keeps its tunnel, nobody else notices."""
    client = await site.up()
    inner = client.socket()
    client.act("set_mode", Flow(Protocol.UDP, inner.port), PathMode.DATAGRAM)
    await until(lambda: client.session.path(Flow(Protocol.UDP, inner.port)) is TunnelPath.DATAGRAM)
    for data in (noise(300), control(kind=1, count=3), b"\x10"):
        client.send_bytes(data, TunnelPath.DATAGRAM)
    await until(lambda: sum(site.counter(name) for name in DATAGRAM_DROPS) >= 3)
    inner.send(b"mine", "10.64.0.1", 7)
    await inner.heard(b"mine")
    await undisturbed(honest, b"here")


async def test_keepalives_are_answered_without_the_control_plane(site: Site) -> None:
    client = await site.up()
    client.send(KeepaliveRequest(tsid=client.tsid, sequence=7, timestamp=1234))
    await until(lambda: site.counter("keepalives_answered") >= 1)


def inner_udp(source: IPv4Address, destination: IPv4Address, port: int, far: int, data: bytes) -> bytes:
    """An inner IPv4 UDP packet, without a UDP checksum (RFC 768 allows that)."""
    length = 28 + len(data)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, source.packed, destination.packed)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    head = head[:10] + struct.pack("!H", checksum) + head[12:]
    return head + struct.pack("!HHHH", port, far, length - 20, 0) + data
