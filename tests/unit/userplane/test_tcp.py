"""Inner TCP as asyncio programs see it: between two inner addresses of one user plane."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from opentsm.userplane import Plane
from opentsm.userplane.tcp import InnerServer, InnerTcp
from opentsm.userplane.transport import HIGH_WATER, InnerTransport
from tests.unit.server.harness import until

HERE, THERE = "10.98.0.1", "10.98.0.2"
HERE6, THERE6 = "fd00:98::1", "fd00:98::2"


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    made = Plane()
    made.start()
    for address in (HERE, THERE, HERE6, THERE6):
        made.core.route_local(address)
    yield made
    await made.close(flush=0.05)


@pytest.fixture
async def tcp(plane: Plane) -> InnerTcp:
    return InnerTcp(plane)


class Recorder(asyncio.Protocol):
    """What a transport does to its protocol."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.transport: Any = None
        self.lost: list[Exception | None] = []
        self.keep_open = keep_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.calls[-1] != "data":
            self.calls.append("data")
        self.data += data

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.append(exc)


class Pair:
    """Both ends of a connection and the listener."""

    def __init__(self, server: InnerServer, ours: Recorder, theirs: Recorder) -> None:
        self.server, self.ours, self.theirs = server, ours, theirs


async def pair(tcp: InnerTcp, *, keep_open: bool = False, there: str = THERE, here: str = HERE) -> Pair:
    accepted: list[Recorder] = []

    def factory() -> Recorder:
        accepted.append(Recorder(keep_open=keep_open))
        return accepted[-1]

    server = await tcp.create_server(factory, there, 0)
    _, ours = await tcp.create_connection(
        lambda: Recorder(keep_open=keep_open), *server.sockname, local_addr=(here, 0)
    )
    await until(lambda: accepted and accepted[0].calls)
    return Pair(server, ours, accepted[0])


@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), (HERE6, THERE6)])
async def test_both_ends_know_each_other_and_every_byte_comes_through(
    tcp: InnerTcp, here: str, there: str
) -> None:
    both = await pair(tcp, here=here, there=there, keep_open=True)
    ours, theirs = both.ours.transport, both.theirs.transport
    assert ours.get_extra_info("peername") == theirs.get_extra_info("sockname") == both.server.sockname
    assert theirs.get_extra_info("peername") == ours.get_extra_info("sockname")
    up, down = random.Random(1).randbytes(1_000_000), random.Random(2).randbytes(1_000_000)
    ours.write(up)
    theirs.write(down)
    ours.write_eof()
    theirs.write_eof()
    await until(lambda: both.ours.lost and both.theirs.lost)
    assert both.theirs.data == up
    assert both.ours.data == down
    assert both.ours.lost == both.theirs.lost == [None]
    assert both.ours.calls[0] == "made"
    assert [call for call in both.ours.calls if call in ("eof", "lost")] == ["eof", "lost"]


async def test_a_close_sends_what_is_queued_and_the_other_end_sees_an_orderly_end(tcp: InnerTcp) -> None:
    both = await pair(tcp)
    message = random.Random(3).randbytes(400_000)
    both.ours.transport.write(message)
    both.ours.transport.close()
    assert both.ours.transport.is_closing()
    both.ours.transport.write(b"too late")
    await until(lambda: both.theirs.lost)
    assert both.theirs.data == message
    assert both.theirs.calls[-2:] == ["eof", "lost"]
    assert both.theirs.lost == both.ours.lost == [None]


async def test_half_closed_connections_still_carry_the_other_way(tcp: InnerTcp) -> None:
    both = await pair(tcp, keep_open=True)
    both.ours.transport.write_eof()
    with pytest.raises(RuntimeError, match="write_eof"):
        both.ours.transport.write(b"x")
    await until(lambda: "eof" in both.theirs.calls)
    both.theirs.transport.write(b"still here")
    await until(lambda: both.ours.data == b"still here")
    assert not both.theirs.lost
    both.theirs.transport.close()
    await until(lambda: both.ours.lost)
    assert both.ours.lost == [None]


async def test_an_abort_is_a_reset_at_the_other_end(tcp: InnerTcp) -> None:
    both = await pair(tcp)
    both.ours.transport.abort()
    await until(lambda: both.theirs.lost)
    assert isinstance(both.theirs.lost[0], ConnectionResetError)
    assert both.ours.lost == [None]


async def test_nobody_listening_refuses(tcp: InnerTcp) -> None:
    with pytest.raises(ConnectionRefusedError):
        await tcp.create_connection(Recorder, THERE, 9, local_addr=(HERE, 0))


async def test_a_closed_listener_refuses_and_its_connections_stay(tcp: InnerTcp) -> None:
    both = await pair(tcp)
    both.server.close()
    assert not both.server.is_serving()
    with pytest.raises(ConnectionRefusedError):
        await tcp.create_connection(Recorder, *both.server.sockname, local_addr=(HERE, 0))
    both.ours.transport.write(b"hello")
    await until(lambda: both.theirs.data == b"hello")
    both.ours.transport.close()
    await asyncio.wait_for(both.server.wait_closed(), 10)


async def test_what_cannot_be_bound_says_why(tcp: InnerTcp, plane: Plane) -> None:
    server = await tcp.create_server(Recorder, HERE, 5060)
    assert server.sockname == (HERE, 5060)
    for address, port, number in [(HERE, 5060, errno.EADDRINUSE), ("10.98.0.77", 0, errno.EADDRNOTAVAIL)]:
        with pytest.raises(OSError, match=r"\w") as refused:
            await tcp.create_server(Recorder, address, port)
        assert refused.value.errno == number
    with pytest.raises(OSError, match=r"\w") as refused:
        await tcp.create_connection(Recorder, HERE, 1, local_addr=("10.98.0.77", 0))
    assert refused.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(ValueError, match="cannot be reached"):
        await tcp.create_connection(Recorder, HERE6, 1, local_addr=(HERE, 0))
    both = await pair(tcp)
    taken = both.ours.transport.get_extra_info("sockname")
    with pytest.raises(OSError, match=r"\w") as refused:
        await tcp.create_connection(Recorder, *both.server.sockname, local_addr=taken)
    assert refused.value.errno == errno.EADDRINUSE


async def test_a_reader_that_pauses_stops_the_writer(tcp: InnerTcp) -> None:
    both = await pair(tcp)
    both.theirs.transport.pause_reading()
    assert not both.theirs.transport.is_reading()
    total = 0
    while "pause" not in both.ours.calls:
        both.ours.transport.write(bytes(10_000))
        total += 10_000
        await asyncio.sleep(0)
        assert total < 5_000_000
    # Whatever else may be under way: without reading, no more than the buffers on the way are taken.
    await until(lambda: both.ours.transport.get_write_buffer_size() > HIGH_WATER // 4)
    assert both.theirs.data == b""
    assert both.ours.calls.count("pause") == 1
    both.theirs.transport.resume_reading()
    await until(lambda: len(both.theirs.data) == total)
    assert both.ours.calls.count("resume") == 1


async def test_a_protocol_that_fails_loses_its_connection_and_no_other(tcp: InnerTcp) -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("a bug")

    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    broken = Broken()
    server = await tcp.create_server(lambda: broken, THERE, 0)
    _, ours = await tcp.create_connection(Recorder, *server.sockname, local_addr=(HERE, 0))
    other = await pair(tcp)
    ours.transport.write(b"poison")
    await until(lambda: ours.lost)
    assert isinstance(ours.lost[0], ConnectionResetError)
    assert isinstance(broken.lost[0], RuntimeError)
    assert "data_received" in reported[0]["message"]
    other.ours.transport.write(b"fine")
    await until(lambda: other.theirs.data == b"fine")


async def test_a_factory_that_fails_resets_what_it_was_called_for(tcp: InnerTcp) -> None:
    def factory() -> asyncio.Protocol:
        raise RuntimeError("a bug")

    server = await tcp.create_server(factory, THERE, 0)
    _, ours = await tcp.create_connection(Recorder, *server.sockname, local_addr=(HERE, 0))
    await until(lambda: ours.lost)
    assert isinstance(ours.lost[0], ConnectionResetError)


async def test_a_cancelled_connect_leaves_nothing_behind(tcp: InnerTcp, plane: Plane) -> None:
    plane.core.unroute(THERE)  # packets to it are lost: nobody answers
    connecting = asyncio.ensure_future(tcp.create_connection(Recorder, THERE, 5060, local_addr=(HERE, 5061)))
    await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    plane.core.route_local(THERE)
    server = await tcp.create_server(Recorder, THERE, 5060)

    # The order to give the port up was given before this one.
    await tcp.create_connection(Recorder, *server.sockname, local_addr=(HERE, 5061))


async def test_buffered_protocols_and_streams_ride_on_it(tcp: InnerTcp) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer, self.got = bytearray(7), bytearray()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.got += self.buffer[:nbytes]

    made = Buffered()
    server = await tcp.create_server(lambda: made, THERE, 0)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    transport, protocol = await tcp.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), *server.sockname, local_addr=(HERE, 0)
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    writer.write(b"a sentence longer than seven bytes")
    await writer.drain()
    await until(lambda: made.got == b"a sentence longer than seven bytes")
    server.close_clients()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_writing_into_nothing_is_harmless_and_write_takes_bytes_only(tcp: InnerTcp) -> None:
    both = await pair(tcp)
    with pytest.raises(TypeError):
        both.ours.transport.write("text")
    both.theirs.transport.abort()
    await until(lambda: both.ours.lost)
    both.ours.transport.write(b"to nobody")
    both.ours.transport.close()
    both.ours.transport.abort()
    await asyncio.sleep(0)
    assert len(both.ours.lost) == 1


async def test_write_buffer_limits_are_asyncios(tcp: InnerTcp) -> None:
    transport: InnerTransport = (await pair(tcp)).ours.transport
    assert transport.get_write_buffer_limits() == (HIGH_WATER // 4, HIGH_WATER)
    transport.set_write_buffer_limits(high=100)
    assert transport.get_write_buffer_limits() == (25, 100)
    with pytest.raises(ValueError, match="low"):
        transport.set_write_buffer_limits(high=1, low=2)


async def test_counters_tell_of_connections_and_refusals(tcp: InnerTcp, plane: Plane) -> None:
    await pair(tcp)
    with pytest.raises(ConnectionRefusedError):
        await tcp.create_connection(Recorder, THERE, 9, local_addr=(HERE, 0))
    counters: Callable[[], dict[str, int]] = plane.core.counters
    assert (counters()["tcp_accepted"], counters()["tcp_refused"]) == (1, 1)
