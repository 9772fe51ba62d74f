"""SIP connections of the kernel's on loopback: reuse, dialling, and neighbours that mean no good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from opentsm.errors import RemoteProtocolError
from opentsm.sbc import streams as module
from opentsm.sbc.framing import PING
from opentsm.sbc.hop import Hop
from opentsm.sbc.streams import KernelTcp, Streams, Told
from opentsm.types import SocketAddress
from tests.unit.sbc.test_framing import message

GUARD = 20.0


@dataclass
class Heard:
    messages: list[tuple[Hop, bytes]] = field(default_factory=list)
    broken: list[tuple[bytes, str]] = field(default_factory=list)
    unreachable: list[Hop] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self) -> Told:
        def on_message(hop: Hop, data: bytes) -> None:
            self.messages.append((hop, data))
            self.changed.set()

        def on_broken(hop: Hop, data: bytes, error: RemoteProtocolError) -> None:
            self.broken.append((data, error.reason))
            self.changed.set()

        def on_unreachable(hop: Hop) -> None:
            self.unreachable.append(hop)
            self.changed.set()

        def on_drop(event: str, hop: Hop) -> None:
            self.drops.append(event)
            self.changed.set()

        return Told(on_message, on_broken, on_unreachable, on_drop)

    async def more(self) -> None:
        async with asyncio.timeout(GUARD):
            await self.changed.wait()
        self.changed.clear()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Streams, Heard, SocketAddress]]:
    heard = Heard()
    streams = Streams(heard.told())
    stack = KernelTcp()
    server = await stack.create_server(asyncio.Protocol, "127.0.0.1", 0)
    local: SocketAddress = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    await streams.listen(stack, local, core=True)
    try:
        yield streams, heard, local
    finally:
        await streams.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            # tree: allow sleep because this is the loop that waits for what must happen
            await asyncio.sleep(0.001)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the other side closed."""
    data = b""
    async with asyncio.timeout(GUARD):
        try:
            while piece := await reader.read(65536):
                data += piece
        except ConnectionError:
            pass
    return data


async def test_an_answer_goes_by_the_connection_of_its_request() -> None:
    async with listening() as (streams, heard, local):
        reader, writer = await asyncio.open_connection(*local)
        writer.write(message(b"one") + message(b"two")[:20])
        await heard.more()
        ((hop, data),) = heard.messages
        assert (data, hop.transport, hop.local, hop.core) == (message(b"one"), "tcp", local, True)
        assert hop.remote == writer.get_extra_info("sockname")
        writer.write(message(b"two")[20:] + PING)
        while len(heard.messages) < 3:
            await heard.more()
        assert [data for _, data in heard.messages[1:]] == [message(b"two"), PING]
        streams.send(hop, b"answer", ("127.0.0.1", 1))
        assert await reader.readexactly(6) == b"answer"
        writer.close()


async def test_a_request_opens_a_connection_and_what_follows_uses_it() -> None:
    async with listening() as (streams, heard, local):
        accepted: list[asyncio.StreamWriter] = []
        got = bytearray()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append(writer)
            writer.write(message(b"from there"))
            while piece := await reader.read(1000):
                got.extend(piece)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        goal = server.sockets[0].getsockname()
        gone, there = (Hop("tcp", local, ("127.0.0.1", port), core=True) for port in (9, goal[1]))
        streams.send(gone, b"first ", goal)
        streams.send(there, b"second ", None)
        await heard.more()
        streams.send(gone, b"third", goal)
        await until(lambda: bytes(got) == b"first second third")
        assert len(accepted) == 1
        assert heard.messages == [(there, message(b"from there"))]
        server.close()
        for one in accepted:
            one.close()


async def test_what_cannot_be_reached_is_said_once_to_each_sender() -> None:
    async with listening() as (streams, heard, local):
        hop = Hop("tcp", local, ("127.0.0.1", 1), core=True)
        streams.send(hop, b"a", None)
        streams.send(hop, b"b", None)
        await heard.more()
        assert heard.unreachable == [hop]
        assert heard.drops == ["stream-unreachable"]


async def test_a_stream_that_cannot_be_read_on_is_closed() -> None:
    async with listening() as (_, heard, local):
        reader, writer = await asyncio.open_connection(*local)
        writer.write(b"INVITE sip:a@b SIP/2.0\r\nVia: x\r\n\r\nrest")
        await heard.more()
        assert heard.broken[0][1] == "bad-content-length"
        assert heard.broken[0][0].startswith(b"INVITE")
        assert await ended(reader) == b""
        writer.close()


async def test_one_source_holds_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PER_SOURCE", 2)
    async with listening() as (streams, heard, local):
        held = [await asyncio.open_connection(*local) for _ in range(2)]
        reader, writer = await asyncio.open_connection(*local)
        assert await ended(reader) == b""
        assert heard.drops == ["stream-refused"]
        assert len(streams) == 2
        for _, one in held:
            one.close()
        writer.close()


async def test_a_neighbour_that_does_not_read_is_cut_off() -> None:
    async with listening() as (streams, heard, local):
        _, writer = await asyncio.open_connection(*local)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(message())
        await heard.more()
        hop = heard.messages[0][0]
        for _ in range(20_000):
            streams.send(hop, b"x" * 30_000, None)
            if heard.drops:
                break
        assert heard.drops == ["send-stream-too-slow"]
        await until(lambda: len(streams) == 0)
        writer.close()


@pytest.mark.parametrize(
    ("first", "age", "reason"),
    [
        (b"", module.PATIENCE + 1, "stream-too-slow"),
        (message(b"abc")[:-1], module.PATIENCE + 1, "stream-too-slow"),
        (message(b"abc"), module.PATIENCE + 1, None),
        (message(b"abc"), module.IDLE + 1, "stream-idle"),
    ],
)
async def test_who_is_too_slow_or_silent_is_closed(
    first: bytes, age: float, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as (streams, heard, local):
        reader, writer = await asyncio.open_connection(*local)
        writer.write(first or b"\r\n")
        heard_at_all = lambda c: bool(c._framing._breaks or c._framing.pending)  # noqa: E731
        await until(lambda: bool(heard.messages) or any(map(heard_at_all, streams._open.values())))
        now = streams.now()
        monkeypatch.setattr(streams, "now", lambda: now + age)
        assert streams._sweeper is not None
        streams._sweeper.cancel()
        streams._sweep()
        assert heard.drops == ([reason] if reason else [])
        if reason:
            await ended(reader)
            assert len(streams) == 0
        writer.close()
