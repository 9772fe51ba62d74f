"""Media of programs that know nothing of us: which of this host's flows it is, and where their switch stands.

SIP on the way (``SignalSeen``) -> ``callbook``: ports named in SDP  --+
RTP on the way (``FlowSeen``)   -> ports that carry it               --+--> flows in the steering table
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from opentsm.client.callbook import CallBook
from opentsm.client.signalling import Streams, read_untrusted
from opentsm.errors import LocalProtocolError, RemoteProtocolError, TunnelClosedError
from opentsm.limits import MAX_FLOWS_PER_SESSION
from opentsm.types import Flow, IpAddress, Path, PathMode, Protocol, SocketAddress
from opentsm.userplane._core import FlowQuiet, FlowSeen, FlowStats, SignalSeen

if TYPE_CHECKING:
    from opentsm.client.connection import Connection

MAX_HOST_FLOWS: Final = MAX_FLOWS_PER_SESSION // 2
"""Media flows of programs behind one device. Half of what a session may have: a program that sends RTP from
ever new ports must not use up the table."""

REVIEW_EVERY: Final = 30.0
"""Seconds between looks at whether known calls still carry packets; short beside ``callbook.UNUSED``."""

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """What the user says of media on this host.

    Args:
        mode: where it goes: datagram (the DDT, whenever there is one), auto (the better path), or stream.
        ports: ranges, both ends included, that carry nothing else.
        expedited: DSCP EF means media.
    """

    mode: PathMode = PathMode.DATAGRAM
    ports: tuple[tuple[int, int], ...] = ()
    expedited: bool = False


class HostFlow:
    """A media flow of some program on this host. Stands in the tunnel's book of flows beside its sockets.

    Attributes:
        mode: where its switch stands.
    """

    def __init__(self, connection: Connection, flow: Flow, mode: PathMode) -> None:
        self.flow = flow
        self.mode = mode
        self._connection = connection

    @property
    def media(self) -> bool:
        return True

    @property
    def owner(self) -> HostFlow:
        return self

    @property
    def path(self) -> Path:
        """The path its packets take now."""
        return self._connection.path(self.flow)

    def turn(self, mode: PathMode) -> None:
        """Turn its switch.

        Raises:
            LocalProtocolError: the session has no room for it, or is closed.
        """
        self._connection.set_mode(self.flow, mode)
        self.mode = mode

    def received(self, data: bytes, source: SocketAddress, path: int) -> None:
        """Never called: its datagrams are the kernel's."""

    def lost(self, error: TunnelClosedError) -> None:
        """The tunnel has another address or none; whoever owns the socket sees that by itself."""

    def lose(self, error: TunnelClosedError) -> None:
        """The tunnel has lost the address: the flow is over."""
        self.end()

    def end(self) -> None:
        """Its packets are plain traffic again."""
        self._connection.bindings.release(self)
        with contextlib.suppress(LocalProtocolError):
            self._connection.unset(self.flow)


class HostMedia:
    """The media flows behind one TUN device, for as long as the tunnel has one address.

    Attributes:
        unread: SIP that could not be read, by what is wrong with it.
    """

    def __init__(
        self, connection: Connection, session: int, addresses: tuple[IpAddress, ...], options: MediaOptions
    ) -> None:
        self.unread: Counter[str] = Counter()
        self._connection = connection
        self._session = session
        self._options = options
        self._mode = options.mode
        self._book = CallBook(addresses)
        self._streams = Streams()
        self._found: set[Flow] = set()
        self._flows: dict[Flow, HostFlow] = {}
        self._carried: dict[Flow, int] = {}
        self._wanting = False
        self._timer: asyncio.TimerHandle | None = None
        connection.plane.watch_flows(session, self._on_event)
        self._watch()

    @property
    def flows(self) -> tuple[HostFlow, ...]:
        """Media flows that are alive, or expected by a call."""
        return tuple(self._flows.values())

    @property
    def calls(self) -> int:
        """Calls that are known from their signalling."""
        return len(self._book)

    def rows(self) -> list[tuple[FlowStats, Path]]:
        """Packets of each flow, and the path they take now."""
        rows: list[FlowStats] = []
        with contextlib.suppress(KeyError):  # the session is ending
            rows = self._connection.plane.core.flow_stats(self._session)
        known = [(row, self._flows.get(_flow(row))) for row in rows]
        return [(row, flow.path) for row, flow in known if flow is not None]

    def set_mode(self, mode: PathMode) -> None:
        """Turn the switch of all media, present and to come."""
        self._mode = mode
        self._watch()
        for flow in self.flows:
            with contextlib.suppress(LocalProtocolError):  # the tunnel is closing
                flow.turn(mode)
        self._want()

    def close(self) -> None:
        """The tunnel's session is about to end, and its flows with it."""
        self._connection.plane.unwatch_flows(self._session)
        if self._timer is not None:
            self._timer.cancel()
        self._flows.clear()

    # -- what goes by -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._connection.plane.core.watch_media(
            self._session,
            signals=True,
            datagram=self._mode is PathMode.DATAGRAM,
            ports=self._options.ports,
            expedited=self._options.expedited,
        )

    def _on_event(self, event: FlowSeen | FlowQuiet | SignalSeen) -> None:
        if isinstance(event, SignalSeen):
            self._on_signal(event)
            return
        flow = Flow(Protocol(event.protocol), event.port, ipv6=event.ipv6)
        if isinstance(event, FlowSeen):
            self._found.add(flow)
        else:
            self._found.discard(flow)
        self._settle()

    def _on_signal(self, event: SignalSeen) -> None:
        now = asyncio.get_running_loop().time()
        messages = [event.data]
        if event.protocol == Protocol.TCP:
            direction = (event.source, event.destination)
            messages = list(self._streams.feed_untrusted(direction, event.sequence, event.data))
        for data in messages:
            try:
                message = read_untrusted(data)
            except RemoteProtocolError as error:
                self.unread[error.reason] += 1
                continue
            self._book.receive(message, sent=event.sent, ipv6=":" in event.source[0], now=now)
        self._settle()
        if self._timer is None and len(self._book):
            self._timer = asyncio.get_running_loop().call_later(REVIEW_EVERY, self._review)

    # -- what follows -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Bring the steering table in line with what is known."""
        wanted = self._book.flows() | self._found
        for flow in self._flows.keys() - wanted:
            self._flows.pop(flow).end()
            _log.info("media ended", port=flow.port)
        for flow in wanted - self._flows.keys():
            if len(self._flows) < MAX_HOST_FLOWS:
                self._begin(flow)
        self._want()

    def _begin(self, flow: Flow) -> None:
        new = HostFlow(self._connection, flow, self._mode)
        self._connection.bindings.adopt(new)
        try:
            new.turn(self._mode)
        except LocalProtocolError as error:
            self._connection.bindings.release(new)
            _log.info("media stays on the stream", port=flow.port, reason=str(error))
            return
        self._flows[flow] = new
        how = "seen" if flow in self._found else "announced"
        _log.info(f"media {how}", port=flow.port, ipv6=flow.ipv6)

    def _want(self) -> None:
        """While a call rings, the datagram tunnel is made, so that the first word finds it up."""
        wanting = self._mode is not PathMode.STREAM and bool(len(self._book))
        if wanting != self._wanting:
            self._wanting = wanting
            self._connection.want_ddt(wanting)

    def _review(self) -> None:
        """A call whose end was not seen is over when its flows have long carried nothing."""
        loop = asyncio.get_running_loop()
        carried = {
            _flow(row): row.tx_stream + row.tx_datagram + row.rx_stream + row.rx_datagram
            for row, _ in self.rows()
        }
        used = [flow for flow, count in carried.items() if count != self._carried.get(flow, 0)]
        self._carried = carried
        self._book.used(used, loop.time())
        self._book.expire(loop.time())
        self._settle()
        self._timer = loop.call_later(REVIEW_EVERY, self._review) if len(self._book) else None


def _flow(row: FlowStats) -> Flow:
    return Flow(Protocol(row.protocol), row.port, ipv6=row.ipv6)
