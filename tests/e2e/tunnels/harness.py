"""What the end-to-end tests of tunnels share: logging in, running in a host, an echo behind the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from opentsm.lab.host import Host
from opentsm.lab.serving import PASSWORD, USER, ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab

__all__ = ["PASSWORD", "USER", "ServerProcess", "Shape", "in_host", "login", "make_credentials", "start_echo"]

T = TypeVar("T")


def login(server: ServerProcess, *, ipv6: bool = False) -> dict[str, Any]:
    """Arguments of ``connect`` for the test user."""
    where = f"[{server.host.ipv6}]" if ipv6 else server.host.ipv4
    return {
        "servers": f"{server.shape.transport}://{where}:{server.shape.port}",
        "username": USER,
        "password": PASSWORD,
        "ca": server.folder / "ca.pem",
    }


def in_host(host: Host, scenario: Callable[[], Awaitable[T]], *, within: float = 90.0) -> T:
    """Run a coroutine in an event loop whose thread lives in the host: its sockets are the host's."""

    async def guarded() -> T:
        async with asyncio.timeout(within):
            return await scenario()

    return host.call(asyncio.run, guarded())


def start_echo(lab: Lab, host: str = "core", port: int = 4000, address: str = "") -> tuple[str, int]:
    """A UDP echo in a process of its own; returns where it is."""
    where = lab[host]
    at = address or where.ipv4
    program = str(Path(__file__).with_name("echo.py"))
    process = where.popen([sys.executable, program, at, str(port)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return at, port
