"""Phones on real sockets: the simulation's user agent in tunnels and on the server's own network."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from opentsm.sbc.framing import Framing
from opentsm.types import SocketAddress
from opentsm.userplane.tcp import InnerTcp
from tests.sim.sbc.phone import Phone
from tests.unit.server.harness import Client, Inner, until

PACKETS = 50
SAMPLES = 160


@dataclass
class Wire:
    """A phone's network: the running loop, and a way to send. Times are the loop's."""

    sender: Callable[[bytes], object] = lambda data: None
    handles: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def send(self, source: SocketAddress, data: bytes) -> None:
        self.sender(data)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.handles.append(asyncio.get_running_loop().call_later(seconds, call))

    def word(self) -> str:
        return secrets.token_hex(8)


class Media:
    """RTP of one phone: numbered packets out, and what came in."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.send: Callable[[bytes, str, int], object] = lambda data, address, port: None
        self.address = ""
        self.port = 0

    def packet(self, number: int) -> bytes:
        return struct.pack("!BBHII", 0x80, 0, number, number * SAMPLES, 7) + bytes(SAMPLES)

    def report(self, ntp: int, *, echo: int = 0, lost: int = 0) -> bytes:
        """A sender report with one block (RFC 3550 section 6.4.1)."""
        sender = struct.pack("!IIIIII", 7, ntp >> 16, ntp << 16 & 0xFFFFFFFF, 0, 10, 1600)
        block = struct.pack("!IIIIII", 7, lost, 70, 16, echo, 0)
        return struct.pack("!BBH", 0x81, 200, 12) + sender + block

    def numbers(self) -> list[int]:
        return [struct.unpack("!H", data[2:4])[0] for data in self.heard if data[1] == 0]


class CoreMedia(Media, asyncio.DatagramProtocol):
    """On a socket of the kernel's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        datagrams = cast("asyncio.DatagramTransport", transport)
        self.address, self.port = transport.get_extra_info("sockname")
        self.send = lambda data, address, port: datagrams.sendto(data, (address, port))

    def datagram_received(self, data: bytes, addr: SocketAddress) -> None:
        self.heard.append(data)


class CoreSip(asyncio.DatagramProtocol):
    """SIP of a phone on the server's own network, over UDP."""

    def __init__(self) -> None:
        self.phone: Phone | None = None

    def datagram_received(self, data: bytes, addr: SocketAddress) -> None:
        if self.phone is not None:
            self.phone.receive(data)


@dataclass
class Party:
    """A phone, its media, and what has to be closed.

    Attributes:
        paths: which tunnel each SIP message came by: 0 stream, 1 datagram.
    """

    phone: Phone
    media: Media
    wire: Wire
    stack: contextlib.AsyncExitStack
    paths: list[int] = field(default_factory=list)

    async def close(self) -> None:
        for handle in self.wire.handles:
            handle.cancel()
        await self.stack.aclose()


def media_socket(client: Client, *, ipv6: bool = False) -> Media:
    """Media of a phone in a tunnel."""
    inner, media = client.socket(ipv6=ipv6), Media()
    client.site.plane.watch_socket(inner.id, lambda data, source, path: media.heard.append(data))
    media.address, media.port = inner.address, inner.port
    media.send = inner.send
    return media


def tunnelled(client: Client, name: str, domain: str, sbc: SocketAddress) -> Party:
    """A phone in a tunnel, of the family of the SBC's address."""
    inner: Inner = client.socket(ipv6=":" in sbc[0])
    wire = Wire(lambda data: inner.send(data, *sbc))
    media = media_socket(client, ipv6=":" in sbc[0])
    phone = Phone(wire, name, inner.address, f"{name}-secret", domain, port=inner.port)
    phone.algorithm, phone.media_port, phone.ring_time = "MD5", media.port, 0.0
    party = Party(phone, media, wire, contextlib.AsyncExitStack())

    def received(data: bytes, source: SocketAddress, path: int) -> None:
        party.paths.append(path)
        phone.receive(data)

    client.site.plane.watch_socket(inner.id, received)
    return party


class InnerSip(asyncio.Protocol):
    """SIP of a phone in a tunnel, over inner TCP."""

    def __init__(self) -> None:
        self.phone: Phone | None = None
        self.transport: asyncio.Transport | None = None
        self._framing = Framing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._framing.feed(data)
        while (message := self._framing.next_untrusted()) is not None:
            if self.phone is not None:
                self.phone.receive(message)


async def tunnelled_by_tcp(client: Client, name: str, domain: str, sbc: SocketAddress) -> Party:
    """A phone in a tunnel whose SIP goes by one inner TCP connection; nothing listens at its Contact."""
    media = media_socket(client)
    tcp = InnerTcp(client.site.plane, session=client.session_id)
    transport, sip = await tcp.create_connection(InnerSip, *sbc, local_addr=(media.address, 0))
    wire, stack = Wire(transport.write), contextlib.AsyncExitStack()
    stack.callback(transport.close)
    port = transport.get_extra_info("sockname")[1]
    phone = Phone(wire, name, media.address, f"{name}-secret", domain, port=port, transport="tcp")
    phone.algorithm, phone.media_port, phone.ring_time = "MD5", media.port, 0.0
    sip.phone = phone
    return Party(phone, media, wire, stack)


async def on_the_network(name: str, domain: str, sbc: SocketAddress, port: int, transport: str) -> Party:
    """A phone on 127.0.0.1, outside of all tunnels."""
    loop, stack = asyncio.get_running_loop(), contextlib.AsyncExitStack()
    media_transport, media = await loop.create_datagram_endpoint(CoreMedia, local_addr=("127.0.0.1", 0))
    stack.callback(media_transport.close)
    wire = Wire()
    phone = Phone(
        wire, name, "127.0.0.1", f"{name}-secret", domain, port=port, transport=transport, core=True
    )
    phone.algorithm, phone.media_port, phone.ring_time = "MD5", media.port, 0.0
    if transport == "udp":
        sip_transport, sip = await loop.create_datagram_endpoint(CoreSip, local_addr=("127.0.0.1", port))
        sip.phone = phone
        wire.sender = lambda data: sip_transport.sendto(data, sbc)
        stack.callback(sip_transport.close)
    else:
        connections = Connections(phone, sbc)
        server = await asyncio.start_server(connections.serve, "127.0.0.1", port)
        wire.sender = connections.send
        stack.push_async_callback(connections.close)
        stack.callback(server.close)
    return Party(phone, media, wire, stack)


class Connections:
    """TCP of one phone: one connection for everything, whoever opened it."""

    def __init__(self, phone: Phone, sbc: SocketAddress) -> None:
        self.phone = phone
        self._sbc = sbc
        self._writers: list[asyncio.StreamWriter] = []
        self._queue: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        framing = Framing()
        for data in self._queue:
            writer.write(data)
        self._queue.clear()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                framing.feed(data)
                while (message := framing.next_untrusted()) is not None:
                    self.phone.receive(message)

    def send(self, data: bytes) -> None:
        if self._writers:
            self._writers[-1].write(data)
            return
        self._queue.append(data)
        task = asyncio.get_running_loop().create_task(self._dial())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self) -> None:
        await self.serve(*await asyncio.open_connection(*self._sbc))

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def speak(one: Party, to: SocketAddress, other: Party, first: int = 0, packets: int = PACKETS) -> None:
    """Some RTP from one party to its port at the SBC, all of it heard by the other."""
    wanted = list(range(first, first + packets))
    for number in wanted:
        one.media.send(one.media.packet(number), *to)
        await asyncio.sleep(0)
    await until(lambda: set(other.media.numbers()) >= set(wanted), f"media of {one.phone.name}")
