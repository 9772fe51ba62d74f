"""Events reach whoever registered for them, whatever goes wrong with the others'."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from opentsm.userplane import Plane
from opentsm.userplane._core import StreamReady, TunnelClosed
from opentsm.userplane.plane import TunnelEvent
from tests.unit.server.harness import until


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    made = Plane()
    made.start()
    yield made
    await made.close(flush=0.05)


def listener(plane: Plane) -> tuple[int, int]:
    """A plain TCP listener: its id and its port."""
    one = socket.create_server(("127.0.0.1", 0))
    one.setblocking(False)
    number = one.getsockname()[1]
    return plane.core.listen_stream([one.detach()], tls_profile=None), number


async def test_a_listener_hears_of_its_streams_and_a_tunnel_of_its_end(plane: Plane) -> None:
    accepted: list[StreamReady] = []
    events: list[TunnelEvent] = []
    where, number = listener(plane)
    plane.watch_listener(where, accepted.append)
    with socket.create_connection(("127.0.0.1", number)) as client:
        await until(lambda: accepted)
        assert accepted[0].peer == client.getsockname()
        plane.watch_tunnel(accepted[0].tunnel, events.append)
    await until(lambda: events)
    assert [type(event) for event in events] == [TunnelClosed]


async def test_one_failing_handler_costs_nobody_else_an_event(plane: Plane) -> None:
    accepted: list[StreamReady] = []
    (bad, bad_number), (good, good_number) = listener(plane), listener(plane)

    def broken(event: StreamReady) -> None:
        raise RuntimeError("a bug")

    plane.watch_listener(bad, broken)
    plane.watch_listener(good, accepted.append)
    with (
        socket.create_connection(("127.0.0.1", bad_number)),
        socket.create_connection(("127.0.0.1", good_number)),
    ):
        await until(lambda: accepted)


async def test_a_stream_that_nobody_claims_is_closed_and_counted(plane: Plane) -> None:
    _, number = listener(plane)
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    assert await asyncio.wait_for(reader.read(1), 20) == b""
    writer.close()
    assert plane.unclaimed["StreamReady"] == 1


async def test_local_sockets_hear_each_other(plane: Plane) -> None:
    heard: list[bytes] = []
    for address in ("10.0.0.1", "10.0.0.2"):
        plane.core.route_local(address)
    one, _ = plane.core.udp_open(session=None, address="10.0.0.1", port=0)
    other, far = plane.core.udp_open(session=None, address="10.0.0.2", port=0)
    plane.watch_socket(other, lambda data, source, path: heard.append(data))
    assert plane.core.udp_send(one, b"hello", "10.0.0.2", far) is None
    await until(lambda: heard)
    plane.unwatch_socket(other)
    plane.core.udp_close(other)
    assert plane.core.udp_send(one, b"gone", "10.0.0.2", far) == "drop_socket_unbound"
    assert heard == [b"hello"]


async def test_closing_twice_is_harmless(plane: Plane) -> None:
    await plane.close()
    await plane.close()


async def test_commands_about_nobody_say_so(plane: Plane) -> None:
    with pytest.raises(KeyError):
        plane.core.tunnel_stats(99)
    with pytest.raises(KeyError):
        plane.core.session_close(99)
    with pytest.raises(ValueError, match="role"):
        plane.core.session_open(1, role="king", addresses=["10.0.0.1"])
    assert plane.core.send_control(99, b"") is False
