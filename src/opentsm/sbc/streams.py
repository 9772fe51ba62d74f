"""SIP connections: plain asyncio protocols on whatever makes TCP, the kernel or the user plane.

A connection is named by its hop: our listening address and the neighbour's address and port, whoever opened
it. A message for a hop without a connection opens one (see ``dialling``). Nobody can hold more of us than the
bounds below say, and one slow neighbour costs the others nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

from opentsm.errors import OpenTsmError, RemoteProtocolError
from opentsm.tasks import cancel, spawn
from opentsm.types import SocketAddress

from .framing import Framing
from .hop import Hop

MAX_CONNECTIONS: Final = 20_000
"""Connections at once: as many as there may be registered phones on one server, some 2 KiB each."""

MAX_CORE: Final = 4_000
"""Of these, on the core side, where a stranger may have any number of addresses."""

MAX_PER_SOURCE: Final = 100
"""Connections of one address: a phone has one or two, a PBX may have one per line."""

MAX_UNSENT: Final = 256 * 1024
"""Bytes a neighbour may leave unread: eight of the largest messages. One that reads so slowly is cut off."""

PATIENCE: Final = 32.0
"""Seconds a message may take from its first byte to its last, and a new connection to its first message:
a transaction's lifetime, after which nobody waits for it."""

IDLE: Final = 2 * 7200.0
"""Seconds without a byte after which a connection is closed: twice the longest registration, so that phones
that send no keepalives are found dead some day too."""

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to open a connection: three SYNs of the kernel, and well within a transaction's patience."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds that connections may take to flush when the SBC stops."""

SWEEP: Final = 4.0
"""Seconds between two looks for connections that have been too slow."""


class Listener(Protocol):
    """What ``create_server`` returns, here and in ``opentsm.userplane.tcp``."""

    def close(self) -> None: ...


class Stack(Protocol):
    """Something that makes TCP connections: ``opentsm.userplane.tcp.InnerTcp`` or ``KernelTcp``."""

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], address: str, port: int
    ) -> Listener: ...
    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        address: str,
        port: int,
        *,
        local_addr: SocketAddress,
    ) -> Any: ...


class KernelTcp:
    """The kernel's TCP, for the core side."""

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], address: str, port: int
    ) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            protocol_factory, address, port, reuse_address=True
        )

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        address: str,
        port: int,
        *,
        local_addr: SocketAddress,
    ) -> Any:
        return await asyncio.get_running_loop().create_connection(
            protocol_factory, address, port, local_addr=local_addr
        )


@dataclass(frozen=True, slots=True)
class Told:
    """Whom a ``Streams`` tells of what.

    Args:
        message: a message came by this hop. broken: the stream cannot be read on; what there was of the last
            message, and why. unreachable: no connection to this hop can be had.
        drop: a named event to count, with the hop it is about.
    """

    message: Callable[[Hop, bytes], None]
    broken: Callable[[Hop, bytes, RemoteProtocolError], None]
    unreachable: Callable[[Hop], None]
    drop: Callable[[str, Hop], None]


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        local: our listening address. dialled: the neighbour's address, if we open it.
    """

    def __init__(self, streams: Streams, local: Hop, dialled: Hop | None = None) -> None:
        self._streams = streams
        self._local = local
        self._framing = Framing()
        self.hop = dialled
        self.transport: asyncio.Transport | None = None
        self.heard_at = self.since = streams.now()
        self.is_proven = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is a subclass of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=MAX_UNSENT)
        if self.hop is None:
            peer = transport.get_extra_info("peername")
            self.hop = replace(self._local, remote=(peer[0].partition("%")[0], peer[1]))
        self._streams.opened(self, self.hop)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.closed(self)

    def data_received(self, data: bytes) -> None:
        hop = self.hop
        assert hop is not None
        now = self._streams.now()
        if not self._framing.pending:
            self.since = now
        self.heard_at = now
        self._framing.feed(data)
        try:
            while (message := self._framing.next_untrusted()) is not None:
                self.is_proven, self.since = True, now
                self._streams.told.message(hop, message)
        except RemoteProtocolError as error:
            self._streams.told.broken(hop, self._framing.rest, error)
            self.close()

    def write(self, data: bytes) -> bool:
        """Send, unless the neighbour reads too slowly."""
        assert self.transport is not None
        if self.transport.get_write_buffer_size() + len(data) > MAX_UNSENT:
            self.transport.abort()
            return False
        self.transport.write(data)
        return True

    def is_overdue(self, now: float) -> str | None:
        """Why it is to be closed, if it is."""
        waiting = self._framing.pending or not self.is_proven
        if waiting and now - self.since > PATIENCE:
            return "stream-too-slow"
        return "stream-idle" if now - self.heard_at > IDLE else None

    def close(self) -> None:
        """Flush and close."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()


@dataclass(slots=True)
class _Dial:
    """A connection being opened, and what waits for it."""

    waiting: list[tuple[Hop, bytes]]
    size: int = 0


class Streams:
    """All SIP connections of one SBC."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self._open: dict[Hop, Connection] = {}
        self._dials: dict[Hop, _Dial] = {}
        self._per_source: Counter[str] = Counter()
        self._core = 0
        self._listeners: list[Listener] = []
        self._stacks: dict[SocketAddress, Stack] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._dialling: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._open)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def listen(self, stack: Stack, local: SocketAddress, *, core: bool) -> None:
        """Accept connections there, and open those to neighbours that are reached from there.

        Raises:
            OSError, OpenTsmError: the stack cannot.
        """
        hop = Hop("tcp", local, ("", 0), core)
        self._listeners.append(await stack.create_server(lambda: Connection(self, hop), *local))
        self._stacks[local] = stack
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    async def close(self) -> None:
        """Close listeners and connections; flush for at most CLOSE_TIMEOUT."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in self._listeners:
            listener.close()
        await cancel(*self._dialling)
        for connection in list(self._open.values()):
            connection.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._open.values()):
                connection.abort()
            await self._empty.wait()

    def send(self, hop: Hop, data: bytes, fallback: SocketAddress | None) -> None:
        """Send by the hop's connection, or by one that is opened for it."""
        goal = hop if fallback is None else replace(hop, remote=fallback)
        connection = self._open.get(hop) or self._open.get(goal)
        if connection is not None:
            if not connection.write(data):
                self.told.drop("send-stream-too-slow", hop)
            return
        stack = self._stacks.get(hop.local)
        if stack is None or self._is_closed:
            self.told.drop("send-no-socket", hop)
            return
        self._wait(goal, hop, data, stack)

    def _wait(self, goal: Hop, hop: Hop, data: bytes, stack: Stack) -> None:
        dial = self._dials.get(goal)
        if dial is None:
            if len(self._open) + len(self._dials) >= MAX_CONNECTIONS:
                self.told.drop("send-streams-full", hop)
                return
            dial = self._dials[goal] = _Dial([])
            task = spawn("sip dial", self._dial(goal, stack))
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)
        if dial.size + len(data) > MAX_UNSENT:
            self.told.drop("send-stream-too-slow", hop)
            return
        dial.waiting.append((hop, data))
        dial.size += len(data)

    async def _dial(self, goal: Hop, stack: Stack) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await stack.create_connection(
                    lambda: Connection(self, goal, goal), *goal.remote, local_addr=(goal.local[0], 0)
                )
        except (OSError, OpenTsmError, TimeoutError):
            pass
        dial = self._dials.pop(goal)
        connection = self._open.get(goal)
        if connection is None:
            self.told.drop("stream-unreachable", goal)
            for hop in dict.fromkeys(hop for hop, _ in dial.waiting):
                self.told.unreachable(hop)
            return
        connection.is_proven = True
        for _, data in dial.waiting:
            connection.write(data)

    # -- told by connections --------------------------------------------------------------------------
    def opened(self, connection: Connection, hop: Hop) -> None:
        """A connection stands; one too many is cut off."""
        full = len(self._open) >= MAX_CONNECTIONS or (hop.core and self._core >= MAX_CORE)
        if full or self._per_source[hop.source] >= MAX_PER_SOURCE or hop in self._open or self._is_closed:
            self.told.drop("stream-refused", hop)
            connection.abort()
            return
        self._open[hop] = connection
        self._core += hop.core
        self._empty.clear()
        self._per_source[hop.source] += 1

    def closed(self, connection: Connection) -> None:
        hop = connection.hop
        if hop is None or self._open.get(hop) is not connection:
            return
        del self._open[hop]
        self._core -= hop.core
        if not self._open:
            self._empty.set()
        self._per_source[hop.source] -= 1
        if not self._per_source[hop.source]:
            del self._per_source[hop.source]

    def _sweep(self) -> None:
        now = self.now()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP, self._sweep)
        for connection in list(self._open.values()):
            reason = connection.is_overdue(now)
            if reason is not None and connection.hop is not None:
                self.told.drop(reason, connection.hop)
                connection.abort()
