"""Inner TCP through a line that loses 2 % each way: every byte arrives, whichever TCP is at either end."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import opentsm
from opentsm.lab.impairment import Settings
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.wan import python_environment
from opentsm.userplane.tcp import InnerServer
from tests.e2e.tunnels.harness import ServerProcess, Shape, in_host, login
from tests.e2e.up.harness import CORE, Up

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

UP, DOWN = random.Random(1).randbytes(1_000_000), random.Random(2).randbytes(1_000_000)
ECHO = ("10.64.0.1", 7)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(phones=2, seed=11, wan=Settings(delay=0.02, loss=0.02))) as lab:
        yield lab


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> Shape:
    core: str = getattr(request, "param", "userspace")
    return Shape(core=core)


async def swap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mine: bytes) -> bytes:
    """Send and receive at the same time; what came."""

    async def send() -> None:
        writer.write(mine)
        await writer.drain()
        writer.write_eof()

    got, _ = await asyncio.gather(reader.read(-1), send())
    writer.close()
    await writer.wait_closed()
    return got


def lost(lab: Lab) -> int:
    stats = lab.wan().stats()
    return stats.up.lost + stats.down.lost


async def echoed(host: str, port: int, local: str | None = None) -> bytes:
    """UP there and back by the kernel's TCP."""
    local_addr = (local, 0) if local else None
    reader, writer = await asyncio.open_connection(host, port, local_addr=local_addr)
    return await swap(reader, writer, UP)


def test_a_megabyte_there_and_back_without_a_kernel_at_either_end(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> bytes:
        async with opentsm.connect(**login(server)) as tunnel:
            reader, writer = await tunnel.open_connection(*ECHO)
            return await swap(reader, writer, UP)

    assert in_host(lab["phone1"], scenario, within=200) == UP
    assert lost(lab) > 20


def test_a_megabyte_each_way_between_two_clients(lab: Lab, server: ServerProcess) -> None:
    async def scenario() -> tuple[bytes, bytes]:
        there: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there.set_result(await swap(reader, writer, DOWN))

        async with opentsm.connect(**login(server)) as one, opentsm.connect(**login(server)) as other:
            listening = await one.start_server(answer)
            assert isinstance(listening, InnerServer)
            reader, writer = await other.open_connection(*listening.sockname)
            return await swap(reader, writer, UP), await there

    assert in_host(lab["phone1"], scenario, within=200) == (DOWN, UP)
    assert lost(lab) > 40


def test_the_kernels_tcp_behind_a_tun_device_and_a_server_without_a_kernel(
    lab: Lab, server: ServerProcess
) -> None:
    phone = lab["phone1"]
    with Up(lab, server) as up:
        own = up.address()
        assert in_host(phone, lambda: echoed(*ECHO, own), within=200) == UP
        with phone.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            with pytest.raises(ConnectionRefusedError):
                sock.connect((ECHO[0], 9))
        with phone.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(("fd00:64::1", 7))
            sock.sendall(b"by IPv6")
            assert sock.recv(100) == b"by IPv6"
    assert lost(lab) > 20


@pytest.mark.parametrize("shape", ["tun"], indirect=True)
def test_a_client_without_a_kernel_and_a_tcp_server_in_the_core(lab: Lab, server: ServerProcess) -> None:
    core = lab["core"]
    program = str(Path(__file__).with_name("tcp_echo.py"))
    process = core.popen(
        [sys.executable, program, core.ipv4, "4001"], stdout=subprocess.PIPE, env=python_environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    async def scenario() -> list[bytes]:
        async with opentsm.connect(**login(server)) as tunnel:
            answers = []
            for where in ((core.ipv4, 4001), ECHO):  # behind the server; the server's own, the kernel's
                reader, writer = await tunnel.open_connection(*where)
                answers.append(await swap(reader, writer, UP))
            return answers

    assert in_host(lab["phone1"], scenario, within=200) == [UP, UP]
    with Up(lab, server, *CORE) as up:
        own = up.address()
        assert in_host(lab["phone1"], lambda: echoed(core.ipv4, 4001, own), within=200) == UP


def test_connections_outlive_a_cut_of_the_line(lab: Lab, server: ServerProcess) -> None:
    """The firewall forgets the stream tunnel and the line is dead for a while; the client comes back."""

    async def scenario() -> bytes:
        async with opentsm.connect(**login(server), keepalive=0.5) as tunnel:
            reader, writer = await tunnel.open_connection(*ECHO)
            notifications = tunnel.notifications()
            exchange = asyncio.create_task(swap(reader, writer, UP))  # awaited below
            await asyncio.to_thread(lab.wan().set, tcp="drop")
            async for notification in notifications:
                if isinstance(notification, opentsm.notifications.TunnelLost):
                    break
            await asyncio.to_thread(lab.wan().set, tcp="pass")
            async for notification in notifications:
                if isinstance(notification, opentsm.notifications.TunnelResumed):
                    break
            return await exchange

    assert in_host(lab["phone1"], scenario, within=200) == UP
