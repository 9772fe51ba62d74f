"""Connections that are asked whether they live, fail, or bring nonsense; the clock is a virtual one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from opentsm.client.phone.connections import MAX_UNSENT, PING_AFTER, PONG_WITHIN, B, Connections
from opentsm.client.phone.framing import PING, PONG
from opentsm.types import SocketAddress
from tests.unit.client.phone.virtual import Deaf, run

FAR = ("10.64.0.1", 5060)
OPTIONS = b"OPTIONS sip:a@b SIP/2.0\r\nContent-Length: 0\r\n\r\n"


class Line(asyncio.Transport):
    """A connection whose other end is the test."""

    def __init__(self, protocol: asyncio.Protocol, far: SocketAddress = FAR) -> None:
        super().__init__({"peername": far})
        self.protocol = protocol
        self.written: list[bytes] = []
        self.unsent = 0
        self.open = True

    def write(self, data: Any) -> None:
        if data:
            self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self.open:
            self.open = False
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Lines:
    """Where connections are made; ``refuse`` makes none."""

    def __init__(self) -> None:
        self.made: list[Line] = []
        self.accept: Callable[[], asyncio.BaseProtocol] | None = None
        self.refuse = False

    async def create_connection(
        self,
        protocol_factory: Callable[[], B],
        host: str,
        port: int,
        *,
        local_addr: tuple[str | None, int] | None = None,
    ) -> tuple[asyncio.Transport, B]:
        if self.refuse:
            raise ConnectionRefusedError
        protocol = protocol_factory()
        assert isinstance(protocol, asyncio.Protocol)
        self.made.append(Line(protocol))
        protocol.connection_made(self.made[-1])
        return self.made[-1], protocol

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str | None = None, port: int = 0
    ) -> Deaf:
        self.accept = protocol_factory
        return Deaf()


class Story:
    """Connections, and what they have told."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.messages: list[tuple[bytes, SocketAddress]] = []
        self.failed: list[SocketAddress] = []
        self.connections = Connections(
            self.lines, "10.64.0.2", lambda data, far: self.messages.append((data, far)), self.failed.append
        )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def later(seconds: float) -> None:
    await asyncio.sleep(seconds)  # tree: allow sleep because the clock is a virtual one


def test_a_silent_far_end_is_asked_and_given_up() -> None:
    async def scenario() -> None:
        story = Story()
        story.connections.send(OPTIONS, FAR)
        await settle()
        (line,) = story.lines.made
        assert line.written == [OPTIONS]
        await later(PING_AFTER)
        assert line.written == [OPTIONS, PING]
        line.protocol.data_received(PONG)
        await later(PING_AFTER)
        assert line.written == [OPTIONS, PING, PING]
        assert not story.failed
        await later(PONG_WITHIN + 1)
        assert not line.open
        assert story.failed == [FAR]

    run(scenario())


def test_a_refused_connection_is_told_and_the_next_message_tries_again() -> None:
    async def scenario() -> None:
        story = Story()
        story.lines.refuse = True
        story.connections.send(OPTIONS, FAR)
        await settle()
        assert story.failed == [FAR]
        story.lines.refuse = False
        story.connections.send(OPTIONS, FAR)
        await settle()
        assert [line.written for line in story.lines.made] == [[OPTIONS]]

    run(scenario())


def test_who_asks_us_is_answered_and_answers_go_back_the_way_they_came() -> None:
    async def scenario() -> None:
        story = Story()
        await story.connections.listen(5060)
        assert story.lines.accept is not None
        protocol = story.lines.accept()
        assert isinstance(protocol, asyncio.Protocol)
        line = Line(protocol, ("10.64.0.9", 40000))
        protocol.connection_made(line)
        protocol.data_received(PING + OPTIONS[:10])
        protocol.data_received(OPTIONS[10:])
        assert line.written == [PONG]
        assert story.messages == [(OPTIONS, ("10.64.0.9", 40000))]
        story.connections.send(b"SIP/2.0 200 OK\r\n\r\n", ("10.64.0.9", 40000))
        assert line.written[1:] == [b"SIP/2.0 200 OK\r\n\r\n"]
        assert not story.lines.made
        story.connections.close()

    run(scenario())


def test_nonsense_and_a_far_end_that_does_not_read_are_cut_off() -> None:
    async def scenario() -> None:
        story = Story()
        for trouble, name in (("nonsense", "sip-content-length"), ("unread", "sip-connection-backed-up")):
            story.connections.send(OPTIONS, FAR)
            await settle()
            line = story.lines.made[-1]
            if trouble == "nonsense":
                line.protocol.data_received(b"GET / HTTP/1.1\r\n\r\n")
            else:
                line.unsent = MAX_UNSENT + 1
                story.connections.send(OPTIONS, FAR)
            await settle()
            assert not line.open
            assert story.connections.drops[name] == 1
        assert story.failed == [FAR, FAR]

    run(scenario())
