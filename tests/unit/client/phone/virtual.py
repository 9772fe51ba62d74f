"""An event loop whose clock jumps to the next timer, and a network in memory: calls of minutes in moments.

Nothing here depends on how fast the machine is, so what is heard of a call can be asserted to the sample.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
from collections.abc import Callable, Coroutine, Mapping
from ipaddress import IPv4Address
from typing import Any, TypeVar

from opentsm.client.phone.connections import B
from opentsm.client.phone.ports import P
from opentsm.types import IpAddress, Path, PathMode, SocketAddress

T = TypeVar("T")

Fate = Callable[[bytes, Path], float | None]
"""Seconds a datagram takes on a path; None: it is lost."""


class _Jumping(selectors.DefaultSelector):
    """Does not wait: what would be waited is added to the loop's clock."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("every task waits for something that cannot come")
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 1000.0
        jumping = _Jumping()
        jumping.loop = self
        super().__init__(jumping)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            # tree: allow sleep because the clock is a virtual one
            await asyncio.sleep(0.005)


class Transport:
    """One bound port of the network, with a media switch that works at once."""

    def __init__(self, network: Network, at: SocketAddress, protocol: asyncio.DatagramProtocol) -> None:
        self.path = Path.STREAM
        self.mute = False
        self._network = network
        self._at = at
        self._protocol = protocol
        self._received = -1

    def set_mode(self, mode: PathMode) -> None:
        self.path = Path.STREAM if mode is PathMode.STREAM else Path.DATAGRAM

    def sendto(self, data: bytes, addr: Any = None) -> None:
        if not self.mute:
            self._network.carry(data, self.path, self._at, (addr[0], addr[1]))

    def received(self, data: bytes, source: SocketAddress, path: Path) -> None:
        self._received = int(path)
        self._protocol.datagram_received(data, source)

    def lose(self, why: str) -> None:
        """The tunnel takes the port away."""
        self.close()
        self._protocol.connection_lost(OSError(why))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": self._at, "received_path": self._received}.get(name, default)

    def close(self) -> None:
        self._network.ports.pop(self._at, None)


class Network:
    """Joins all addresses. ``fates``: what becomes of a datagram on a path; SIP ports lose nothing."""

    def __init__(self, fates: Mapping[Path, Fate] | None = None) -> None:
        self.ports: dict[SocketAddress, Transport] = {}
        self._fates = dict(fates or {})

    def carry(self, data: bytes, path: Path, source: SocketAddress, to: SocketAddress) -> None:
        delay: float | None = 0.02
        if source[1] != 5060 and path in self._fates:
            delay = self._fates[path](data, path)
        if delay is not None:
            asyncio.get_running_loop().call_later(delay, self._deliver, data, path, source, to)

    def _deliver(self, data: bytes, path: Path, source: SocketAddress, to: SocketAddress) -> None:
        if to in self.ports:
            self.ports[to].received(data, source, path)


class Deaf:
    """A listener on a network without TCP."""

    def close(self) -> None: ...


class Host:
    """One address on the network: what a phone takes for its tunnel."""

    def __init__(self, network: Network, address: str) -> None:
        self.inner_address: IpAddress = IPv4Address(address)
        self._network = network
        self._free = iter(range(40000, 50000))

    async def create_connection(
        self,
        protocol_factory: Callable[[], B],
        host: str,
        port: int,
        *,
        local_addr: tuple[str | None, int] | None = None,
    ) -> tuple[asyncio.Transport, B]:
        """Nobody on this network speaks TCP."""
        raise ConnectionRefusedError(errno.ECONNREFUSED, "no TCP here")

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str | None = None, port: int = 0
    ) -> Deaf:
        return Deaf()

    async def create_datagram_endpoint(
        self, protocol_factory: Callable[[], P], local_addr: tuple[str | None, int] | None = None
    ) -> tuple[Transport, P]:
        host, port = local_addr or (None, 0)
        at = (host or str(self.inner_address), port or next(self._free))
        if at in self._network.ports:
            raise OSError(errno.EADDRINUSE, "taken")
        protocol = protocol_factory()
        transport = self._network.ports[at] = Transport(self._network, at, protocol)
        return transport, protocol
