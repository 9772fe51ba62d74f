"""Fills a server's tables with tunnels that have no peers; runs inside the server (``rows_server``).

Orders come as lines on standard input, each answered by one JSON line: ``rows N`` adds tunnels, ``stall``
says for how long the event loop was away at most since the last time it was asked.

A row goes every way of a real tunnel but the socket and the handshake: the user plane reports a stream, its
peer "asks" for a configuration with a token, then for a datagram tunnel for one media flow, which then is
there with record keys of its own and asks for its own configuration. What answers is the server's code, and
all its tables are written by it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from opentsm.cli.serve import run
from opentsm.config import Settings, load
from opentsm.engine.registry import Record
from opentsm.protocol.states import ServerDdt
from opentsm.server import Server, logs
from opentsm.server.peer import Peer
from opentsm.tasks import spawn
from opentsm.types import (
    UNASSIGNED_TSID,
    Flow,
    PathMode,
    Protocol,
    Service,
    ServiceAction,
)
from opentsm.userplane import _core
from opentsm.wire.codec import encode
from opentsm.wire.messages import AddressFamilies, ConfigurationRequest, ServiceRequest

BATCH: Final = 512
"""Rows on their way at once; far fewer than the server lets wait for a configuration."""

FIRST_PEER: Final = int(IPv4Address("127.64.0.0"))
PEER_PORT: Final = 9
"""Outer addresses of the rows: loopback, where nobody answers the one probe each of them is sent."""

MEDIA_PORT: Final = 4000
SELDOM_MS: Final = 3_600_000
"""Rows are not probed while measuring: nobody would answer. Their timers stand all the same."""

PATIENCE: Final = 30.0
TICK: Final = 0.005


class Filler:
    """Adds rows.

    Args:
        server: a running one with one interface. token: lets a client in.
    """

    def __init__(self, server: Server, token: bytes) -> None:
        self._server = server
        self._core: Any = server.plane.core
        self._rows: Any = _core
        (port,) = server.listeners.open_ports
        self._stream, self._datagram = port.ids
        self._token = token
        self._made = 0

    async def add(self, count: int) -> None:
        """Add so many tunnels with their datagram tunnels."""
        while count > 0:
            await self._batch(min(count, BATCH))
            count -= BATCH

    async def _batch(self, count: int) -> None:
        registry = self._server.hub.registry
        last = max((record.session for record in registry.after(self._newest())), default=self._newest())
        asking = encode(
            ConfigurationRequest(
                tsid=UNASSIGNED_TSID, sequence=1, password=self._token, families=AddressFamilies.IPV4
            )
        )
        wanted = len(registry) + count
        for _ in range(count):
            tunnel = self._rows.row_stream(self._core, self._stream, self._peer())
            self._rows.row_control(self._core, tunnel, asking)
        await _until(lambda: len(registry) >= wanted)
        records = list(registry.after(last))
        for record in records:
            self._rows.row_control(self._core, record.value.stream, encode(_media(record)))
        await _until(lambda: all(record.ddt_tsid is not None for record in records))
        for number, record in enumerate(records):
            peer = (str(IPv4Address(FIRST_PEER + self._made - count + number)), PEER_PORT)
            self._rows.row_datagram(self._core, self._datagram, peer, record.ddt_tsid)
        await _until(lambda: all(record.value.datagram is not None for record in records))
        for record in records:
            assert record.ddt_tsid is not None
            asking = encode(ConfigurationRequest(tsid=record.ddt_tsid, sequence=1))
            self._rows.row_control(self._core, record.value.datagram, asking)
        await _until(lambda: all(one.value.session.ddt_state is ServerDdt.UP for one in records))
        self._probe_seldom(records)

    def _newest(self) -> int:
        return self._server.hub._session_ids - 1

    def _peer(self) -> tuple[str, int]:
        self._made += 1
        return str(IPv4Address(FIRST_PEER + self._made - 1)), PEER_PORT

    def _probe_seldom(self, records: Iterable[Record[Peer]]) -> None:
        for record in records:
            for tunnel in (record.value.stream, record.value.datagram):
                if tunnel is not None:
                    self._core.set_keepalive(tunnel, interval_ms=SELDOM_MS, silent_after_ms=0)


def _media(record: Record[Peer]) -> ServiceRequest:
    return ServiceRequest(
        tsid=record.stream_tsid,
        sequence=2,
        service=Service.DDT,
        action=ServiceAction.ENABLE,
        mode=PathMode.DATAGRAM,
        flows=(Flow(Protocol.UDP, MEDIA_PORT),),
    )


async def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the server does not take the rows")
        await asyncio.sleep(0.001)


class Stall:
    """How long the event loop was away at most."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        """Look all the time."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK)
            self.longest = max(self.longest, time.monotonic() - before - TICK)


async def _serve(settings: Settings, token: bytes) -> None:
    server = Server(settings)
    await server.start()
    stall = Stall()
    watching = spawn("watch the loop", stall.watch())
    filler = Filler(server, token)
    print(json.dumps({"ready": True}), flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            begin = time.monotonic()
            match line.split():
                case ["rows", count]:
                    await filler.add(int(count))
                    answer: dict[str, Any] = {"rows": len(server.hub.registry)}
                case ["stall"]:
                    answer = {"stall_ms": stall.longest * 1e3}
                    stall.longest = 0.0
                case _:
                    answer = {"error": line}
            print(json.dumps({**answer, "seconds": time.monotonic() - begin}), flush=True)
    finally:
        watching.cancel()


def main(config: Path) -> None:
    """Serve until the input ends. The token is in the configuration's folder, in ``token``."""
    settings = load(config)
    logs.configure(settings.server.log_level, settings.server.log_format)
    run(_serve(settings, (config.parent / "token").read_bytes()))
