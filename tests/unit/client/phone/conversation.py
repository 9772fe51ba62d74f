"""User agents on a network that a test controls: a clock that jumps, messages that are lost by number."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from opentsm.client.phone import sdp
from opentsm.client.phone.core import Account
from opentsm.client.phone.events import Established, Event, Incoming
from opentsm.client.phone.ua import UserAgent
from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress

ALICE = ("10.64.0.2", 5060)
BOB = ("10.64.0.3", 5060)
SERVER = ("10.64.0.1", 5060)

ONE_WAY = 0.03

Receiver = Callable[[float, bytes, SocketAddress], Iterable[tuple[bytes, SocketAddress]]]


@dataclass(order=True)
class _Flight:
    at: float
    number: int
    data: bytes = field(compare=False)
    source: SocketAddress = field(compare=False)
    to: SocketAddress = field(compare=False)
    reliable: bool = field(compare=False, default=False)


class Network:
    """Carries messages between user agents (and one plain function, the "server")."""

    def __init__(self, lose: Callable[[int, bytes], bool] = lambda number, data: False) -> None:
        self.now = 100.0
        self.log: list[str] = []
        self.seen: list[bytes] = []
        self.refused: list[str] = []
        self.agents: dict[SocketAddress, UserAgent] = {}
        self.events: dict[SocketAddress, list[Event]] = {}
        self.servers: dict[SocketAddress, Receiver] = {}
        self.by_tcp: list[str] = []
        self.without_tcp = False
        self.on_event: Callable[[SocketAddress, Event], None] = lambda address, event: None
        self._lose = lose
        self._sent = 0
        self._flying: list[_Flight] = []

    def add(
        self,
        name: str,
        address: SocketAddress,
        server: SocketAddress | None = None,
        *,
        transport: str = "udp",
        **account: str,
    ) -> UserAgent:
        counter = itertools.count(1)
        agent = UserAgent(
            Account(name, "example.org", **account),
            local=address,
            server=server,
            new_id=lambda: f"{name}{next(counter):08x}",
            transport=transport,
        )
        self.agents[address] = agent
        self.events[address] = []
        return agent

    def send(self, data: bytes, source: SocketAddress, to: SocketAddress, *, reliable: bool = False) -> None:
        if reliable and self.without_tcp:
            self.agents[source].connection_failed(self.now, to)
            return
        self._sent += 1
        self.seen.append(data)
        first = data.split(b"\r\n", 1)[0].decode()
        lost = self._lose(self._sent, data)
        self.log.append(f"{'lost ' if lost else ''}{first}")
        if reliable:
            self.by_tcp.append(first)
        if not lost:
            flight = _Flight(self.now + ONE_WAY, self._sent, data, source, to, reliable)
            heapq.heappush(self._flying, flight)

    def pump(self) -> None:
        """Take what agents have to send and to say."""
        busy = True
        while busy:
            busy = False
            for address, agent in self.agents.items():
                for send in agent.outgoing():
                    self.send(send.data, address, send.to, reliable=send.reliable)
                for event in agent.events():
                    busy = True
                    self.events[address].append(event)
                    self.on_event(address, event)

    def run(self, seconds: float = 200.0, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until nothing is left to do, the condition holds, or the time is over."""
        end = self.now + seconds
        self.pump()
        while not until():
            times = [self._flying[0].at] if self._flying else []
            times += [t for agent in self.agents.values() if (t := agent.deadline) is not None]
            if not times or min(times) > end:
                break
            self.now = max(self.now, min(times))
            self._deliver()
            for agent in self.agents.values():
                agent.tick(self.now)
            self.pump()
        else:
            return
        self.now = max(self.now, end)

    def _deliver(self) -> None:
        while self._flying and self._flying[0].at <= self.now:
            flight = heapq.heappop(self._flying)
            if flight.to in self.servers:
                for data, to in self.servers[flight.to](self.now, flight.data, flight.source):
                    self.send(data, flight.to, to)
            elif flight.to in self.agents:
                try:
                    agent = self.agents[flight.to]
                    agent.receive_untrusted(self.now, flight.data, flight.source, reliable=flight.reliable)
                except RemoteProtocolError as error:
                    self.refused.append(error.reason)
            self.pump()


def local(address: SocketAddress, port: int = 20000) -> sdp.Local:
    return sdp.Local(address[0], port, port + 1, session=7)


def answering(network: Network, address: SocketAddress) -> None:
    """The agent at this address takes every call as soon as it comes."""
    before = network.on_event

    def on_event(at: SocketAddress, event: Event) -> None:
        before(at, event)
        if at == address and isinstance(event, Incoming):
            network.agents[at].accept(network.now, event.call, local(at, 30000))

    network.on_event = on_event


def kinds(events: Iterable[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def established(events: Iterable[Event]) -> bool:
    return any(isinstance(event, Established) for event in events)
