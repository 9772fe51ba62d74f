"""A TUN device as a tunnel's inner side.

A pair of datagram sockets stands for the device: a packet that a program sends is read from it, whole, and
what is written to it is what a program gets.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from opentsm import notifications as n
from opentsm.admin.certificates import Issued
from opentsm.client.hostmedia import MediaOptions
from opentsm.client.tun import TunDevice, check_name, open_device
from opentsm.client.tunnel import Tunnel, connect
from opentsm.errors import ConfigError, PlatformError, RefusedError
from opentsm.types import Code, Path, PathMode, Service
from tests.unit.client.peer import ECHO_PORT, GATEWAY, Peer, running_peer, until
from tests.unit.client.test_signalling import sdp, sip

VOICE_PORT = 40000


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(source: str, port: int, payload: bytes, to: tuple[str, int] = (GATEWAY, ECHO_PORT)) -> bytes:
    """An IPv4 UDP packet (RFC 791, RFC 768; UDP checksum 0: none)."""
    udp = struct.pack("!4H", port, to[1], 8 + len(payload), 0) + payload
    addresses = IPv4Address(source).packed + IPv4Address(to[0]).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def rtp(number: int, ssrc: int = 7) -> bytes:
    return struct.pack("!BBHII", 0x80, 0, number, number * 160, ssrc) + bytes(160)


@dataclass
class Rig:
    """A tunnel behind a device, and the kernel's end of it."""

    tunnel: Tunnel
    device: TunDevice
    kernel: socket.socket

    @property
    def address(self) -> str:
        return str(self.tunnel.inner_address)

    def send(self, payload: bytes, port: int = VOICE_PORT) -> None:
        self.kernel.send(packet(self.address, port, payload))

    async def receive(self) -> bytes:
        async with asyncio.timeout(30):
            return await asyncio.get_running_loop().sock_recv(self.kernel, 2048)

    async def echo(self, payload: bytes, port: int = VOICE_PORT) -> bytes:
        """The answer's payload."""
        self.send(payload, port)
        return (await self.receive())[28:]


@asynccontextmanager
async def rigged(
    peer: Peer, ca: bytes, media: PathMode = PathMode.DATAGRAM, options: MediaOptions | None = None
) -> AsyncIterator[Rig]:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kernel.setblocking(False)
    device = TunDevice(ours.detach(), options or MediaOptions(media))
    try:
        async with connect(peer.url, ca=ca, tun=device) as tunnel:
            yield Rig(tunnel, device, kernel)
    finally:
        device.close()
        kernel.close()


async def test_packets_go_through_with_the_leased_address(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca) as rig:
        rig.send(b"hello")
        answer = await rig.receive()
        assert answer[12:20] == IPv4Address(GATEWAY).packed + IPv4Address(rig.address).packed
        assert struct.unpack("!2H", answer[20:24]) == (ECHO_PORT, VOICE_PORT)
        assert answer[28:] == b"hello"
        assert rig.tunnel.statistics().stream.tx_packets == 1


async def test_packets_with_another_source_stay_out_of_the_tunnel(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca) as rig:
        rig.kernel.send(packet("10.99.0.77", VOICE_PORT, b"spoofed"))
        assert await rig.echo(b"honest") == b"honest"
        assert peer.echoed == 1
        assert rig.tunnel.plane.core.counters()["drop_inner_spoofed_source"] == 1


async def test_media_is_seen_and_moves_and_the_rest_stays(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca) as rig:
        assert await rig.echo(b"REGISTER sip:x SIP/2.0", 5060) == b"REGISTER sip:x SIP/2.0"
        moved = rig.tunnel.notifications()
        for number in range(4):
            assert await rig.echo(rtp(number)) == rtp(number)
        async with asyncio.timeout(30):
            enabled = await anext(_first(moved, n.DdtEnabled))
        assert isinstance(enabled, n.DdtEnabled)
        assert [owner.flow.port for owner in enabled.sockets if owner.flow] == [VOICE_PORT]
        before = rig.tunnel.statistics()
        for number in range(4, 14):
            assert await rig.echo(rtp(number)) == rtp(number)
        assert await rig.echo(b"BYE sip:x SIP/2.0", 5060) == b"BYE sip:x SIP/2.0"
        after = rig.tunnel.statistics()
        assert after.datagram.tx_packets - before.datagram.tx_packets == 10
        # What begins on a datagram tunnel goes by both at first, and the first copy counts.
        assert 1 <= after.stream.tx_packets - before.stream.tx_packets <= 11
        heard = sum(
            getattr(after, p).rx_packets - getattr(before, p).rx_packets for p in ("stream", "datagram")
        )
        assert heard == 11
        assert [(flow.flow.port, flow.path) for flow in rig.device.flows] == [(VOICE_PORT, Path.DATAGRAM)]


async def test_without_ddt_media_stays_where_it_was(certificate: Issued, ca: bytes) -> None:
    async with running_peer(certificate, frozenset({Service.SIP})) as peer, rigged(peer, ca) as rig:
        for number in range(10):
            assert await rig.echo(rtp(number)) == rtp(number)
        await until(lambda: rig.tunnel.ddt_available is False)
        assert await rig.echo(rtp(10)) == rtp(10)
        assert [flow.path for flow in rig.device.flows] == [Path.STREAM]


async def test_media_stays_on_the_stream_until_its_switch_is_turned_and_comes_back(
    peer: Peer, ca: bytes
) -> None:
    async with rigged(peer, ca, PathMode.STREAM) as rig:
        for number in range(10):
            assert await rig.echo(rtp(number)) == rtp(number)
        await until(lambda: bool(rig.device.flows))
        assert ([flow.path for flow in rig.device.flows], rig.tunnel.ddt_state) == ([Path.STREAM], "absent")
        rig.device.set_mode(PathMode.DATAGRAM)
        await until(lambda: rig.device.flows[0].path is Path.DATAGRAM)
        assert await rig.echo(rtp(10)) == rtp(10)
        rig.device.set_mode(PathMode.STREAM)
        await until(lambda: rig.device.flows[0].path is Path.STREAM)
        assert await rig.echo(rtp(11)) == rtp(11)
        ((row, _),) = rig.device.rows()
        assert (row.tx_datagram, row.media) == (1, True)


async def test_in_mode_auto_seen_media_is_judged(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca, PathMode.AUTO) as rig:
        decided = rig.tunnel.notifications()
        for number in range(4):
            assert await rig.echo(rtp(number)) == rtp(number)
        async with asyncio.timeout(30):
            judged = await anext(_first(decided, n.PathDecided))
        assert isinstance(judged, n.PathDecided)
        assert rig.device.flows[0].path is judged.decision.path


async def _first(stream: n.NotificationStream, kind: type[n.Notification]) -> AsyncIterator[n.Notification]:
    async for one in stream:
        if isinstance(one, kind):
            yield one
            return


async def test_another_address_takes_the_old_ones_place_on_the_device(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca) as rig:
        for number in range(4):
            await rig.echo(rtp(number))
        await until(lambda: bool(rig.device.flows))
        old = rig.address
        told = rig.tunnel.notifications()
        # The server loses its memory: the resume is refused, and a new address is given.
        peer.forget()
        async with asyncio.timeout(30):
            up = await anext(_first(told, n.TunnelUp))
        assert isinstance(up, n.TunnelUp)
        assert up.address_changed
        assert rig.address != old
        assert await rig.echo(b"again") == b"again"
        assert rig.device.flows == ()


def test_a_device_name_is_checked_before_the_kernel_is_asked() -> None:
    assert check_name("tsm0") == "tsm0"
    for bad in ("", "much-too-long-for-a-device", "a/b", "a b", ".."):
        with pytest.raises(ConfigError, match="cannot be a network device's name"):
            check_name(bad)


def test_a_name_in_use_is_told_with_the_way_out() -> None:
    with pytest.raises(PlatformError, match=r"network device lo already.*--name"):
        open_device("lo")


async def test_a_refusal_leaves_the_device_free(peer: Peer, ca: bytes) -> None:
    peer.refuse = Code.NO_ADDRESS
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with kernel:
        device = TunDevice(ours.detach())
        with pytest.raises(RefusedError, match="no-address"):
            await connect(peer.url, ca=ca, tun=device)
        device.close()
        kernel.setblocking(False)
        with pytest.raises(ConnectionError):
            kernel.send(b"x")


def invite(address: str) -> bytes:
    return sip("INVITE sip:bob@example.test SIP/2.0", "1 INVITE", sdp(VOICE_PORT, address))


async def test_media_announced_in_sdp_is_on_the_datagram_tunnel_from_its_first_packet(
    peer: Peer, ca: bytes
) -> None:
    async with rigged(peer, ca) as rig:
        assert await rig.echo(invite("192.168.1.5"), 5060) == invite("192.168.1.5"), "an address outside"
        await until(lambda: [flow.path for flow in rig.device.flows] == [Path.DATAGRAM] * 2)
        assert rig.device.calls == 1
        for number in range(10):
            assert await rig.echo(rtp(number)) == rtp(number)
        assert await rig.echo(b"\x81\xc9\0\1\0\0\0\7", VOICE_PORT + 1)
        rows = {row.port: row for row, _ in rig.device.rows()}
        assert [(r.tx_stream, r.tx_datagram) for r in (rows[VOICE_PORT], rows[VOICE_PORT + 1])] == [
            (0, 10),
            (0, 1),
        ]
        bye = sip("BYE sip:bob@example.test SIP/2.0", "2 BYE")
        assert await rig.echo(bye, 5060) == bye
        await until(lambda: not rig.device.flows)
        assert rig.device.calls == 0


async def test_a_ringing_phone_has_its_datagram_tunnel_before_the_answer(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca) as rig:
        # The echo sends our own INVITE back with another Call-ID, as if somebody called.
        rig.send(sip("INVITE sip:alice@example.test SIP/2.0", "1 INVITE", call_id="in"))
        await until(lambda: rig.tunnel.ddt_state == "up")
        assert rig.device.flows == ()


async def test_ports_that_the_user_calls_media_need_no_rtp(peer: Peer, ca: bytes) -> None:
    options = MediaOptions(ports=((VOICE_PORT, VOICE_PORT + 9),))
    async with rigged(peer, ca, options=options) as rig:
        assert await rig.echo(b"fax", VOICE_PORT + 3) == b"fax"
        await until(lambda: [flow.path for flow in rig.device.flows] == [Path.DATAGRAM])
        assert await rig.echo(b"fax", VOICE_PORT + 4) == b"fax"
        rows = {row.port: row for row in rig.tunnel.plane.core.flow_stats(_session(rig))}
        assert (rows[VOICE_PORT + 4].tx_stream, rows[VOICE_PORT + 4].tx_datagram) == (0, 1), "at once"
        assert await rig.echo(b"other", VOICE_PORT + 10) == b"other"
        assert len(rig.device.flows) == 2


def _session(rig: Rig) -> int:
    session = rig.tunnel._connection.plane_session
    assert session is not None
    return session


async def test_what_cannot_be_read_is_counted_and_goes_its_way(peer: Peer, ca: bytes) -> None:
    async with rigged(peer, ca) as rig:
        broken = b"INVITE sip:x SIP/2.0\r\n\r\n"
        assert await rig.echo(broken, 5060) == broken
        media = rig.device._media
        assert media is not None
        await until(lambda: media.unread["sip-syntax"] == 2)
