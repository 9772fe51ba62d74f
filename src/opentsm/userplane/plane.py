"""``Plane``: the user plane in an asyncio program.

It watches the user plane's one descriptor, fetches events in bounded batches and hands each to whoever
registered for its tunnel, listener, session or socket. Handlers are plain functions: they decide and
return; what takes time they spawn. An exception in one handler is reported and costs nobody else an event.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from opentsm.types import SocketAddress
from opentsm.userplane._core import (
    ControlMessage,
    DatagramReady,
    FlowQuiet,
    FlowSeen,
    PathAlive,
    PathSilent,
    SignalSeen,
    StreamReady,
    TcpAccepted,
    TcpClosed,
    TcpConnected,
    TcpEof,
    TcpReceived,
    TcpWritable,
    TunnelClosed,
    TunnelIdle,
    UdpReceived,
    UserPlane,
)

if TYPE_CHECKING:
    from opentsm.userplane._core import Event

EVENTS_PER_TURN: Final = 512
"""Events handled before the loop may do something else; the descriptor stays readable if there are more."""

TunnelEvent = (
    StreamReady | DatagramReady | ControlMessage | TunnelClosed | TunnelIdle | PathSilent | PathAlive
)
ConnectionEvent = TcpConnected | TcpReceived | TcpEof | TcpWritable | TcpClosed
TunnelHandler = Callable[[TunnelEvent], None]
AcceptHandler = Callable[[StreamReady], None]
SessionHandler = Callable[[DatagramReady], None]
FlowEvent = FlowSeen | FlowQuiet | SignalSeen
FlowHandler = Callable[[FlowEvent], None]
SocketHandler = Callable[[bytes, SocketAddress, int], None]
TcpAcceptHandler = Callable[[TcpAccepted], None]
ConnectionHandler = Callable[[Any], None]
"""Called with each ``ConnectionEvent`` of one inner TCP connection."""

_log = structlog.get_logger("opentsm.userplane")


class Plane:
    """One user plane and the handlers of its events.

    Args:
        workers: packet threads; one per core that packets may use.

    Attributes:
        core: the commands (see ``_core.pyi``).
        unclaimed: events that nobody had registered for, by kind: harmless leftovers of closed tunnels. An
            accepted tunnel or inner TCP connection that nobody claims (whoever wanted it is just gone) is
            closed.
    """

    def __init__(self, *, workers: int = 1) -> None:
        self.core = UserPlane(workers=workers)
        self.unclaimed: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tunnels: dict[int, TunnelHandler] = {}
        self._listeners: dict[int, AcceptHandler] = {}
        self._sessions: dict[int, SessionHandler] = {}
        self._flows: dict[int, FlowHandler] = {}
        self._sockets: dict[int, SocketHandler] = {}
        self._tcp_listeners: dict[int, TcpAcceptHandler] = {}
        self._connections: dict[int, ConnectionHandler] = {}
        self._closed = False

    def start(self) -> None:
        """Begin to hand out events in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.core.event_fd, self.dispatch)

    async def close(self, *, flush: float = 0.5) -> None:
        """Flush queued signalling for at most ``flush`` seconds, close every tunnel, end the threads."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self.core.shutdown, int(flush * 1000))
        self.dispatch()
        if self._loop is not None:
            self._loop.remove_reader(self.core.event_fd)

    def watch_listener(self, listener: int, handler: AcceptHandler) -> None:
        """Call ``handler`` for each stream tunnel this listener accepts."""
        self._listeners[listener] = handler

    def unwatch_listener(self, listener: int) -> None:
        self._listeners.pop(listener, None)

    def watch_tunnel(self, tunnel: int, handler: TunnelHandler) -> None:
        """Call ``handler`` for each event of this tunnel; forgotten by itself after TunnelClosed."""
        self._tunnels[tunnel] = handler

    def unwatch_tunnel(self, tunnel: int) -> None:
        self._tunnels.pop(tunnel, None)

    def watch_session(self, session: int, handler: SessionHandler) -> None:
        """Call ``handler`` for each datagram tunnel that a listener accepts for this session."""
        self._sessions[session] = handler

    def unwatch_session(self, session: int) -> None:
        self._sessions.pop(session, None)

    def watch_flows(self, session: int, handler: FlowHandler) -> None:
        """Call ``handler`` for media flows found (or fallen silent), and SIP, on this session's device."""
        self._flows[session] = handler

    def unwatch_flows(self, session: int) -> None:
        self._flows.pop(session, None)

    def watch_socket(self, socket: int, handler: SocketHandler) -> None:
        """Call ``handler(data, source, path)`` for each datagram of a local inner UDP socket."""
        self._sockets[socket] = handler

    def unwatch_socket(self, socket: int) -> None:
        self._sockets.pop(socket, None)

    def watch_tcp_listener(self, listener: int, handler: TcpAcceptHandler) -> None:
        """Call ``handler`` for each inner TCP connection this listener accepts."""
        self._tcp_listeners[listener] = handler

    def unwatch_tcp_listener(self, listener: int) -> None:
        self._tcp_listeners.pop(listener, None)

    def watch_connection(self, connection: int, handler: ConnectionHandler) -> None:
        """Call ``handler`` for each event of this inner TCP connection; forgotten after TcpClosed."""
        self._connections[connection] = handler

    def unwatch_connection(self, connection: int) -> None:
        self._connections.pop(connection, None)

    def dispatch(self) -> None:
        """Fetch and hand out one batch of events."""
        for event in self.core.poll(EVENTS_PER_TURN):
            try:
                self._deliver(event)
            except Exception:
                _log.exception("event-handler-failed", kind=type(event).__name__)

    def _deliver(self, event: Event) -> None:
        if isinstance(event, ControlMessage):  # of all events on a server by far the most
            on_message = self._tunnels.get(event.tunnel)
            if on_message is not None:
                on_message(event)
                return
        elif isinstance(event, UdpReceived):
            on_data = self._sockets.get(event.socket)
            if on_data is not None:
                on_data(event.data, event.source, event.path)
                return
        else:
            handler = self._handler_of(event)
            if handler is not None:
                handler(event)
                return
        self.unclaimed[type(event).__name__] += 1
        if isinstance(event, StreamReady | DatagramReady):
            self.core.close(event.tunnel)
        elif isinstance(event, TcpAccepted):
            self.core.tcp_abort(event.connection)

    def _handler_of(
        self, event: TunnelEvent | FlowEvent | TcpAccepted | ConnectionEvent
    ) -> Callable[..., None] | None:
        if isinstance(event, TcpReceived | TcpEof | TcpWritable | TcpConnected):
            return self._connections.get(event.connection)
        if isinstance(event, TcpClosed):
            return self._connections.pop(event.connection, None)
        if isinstance(event, TcpAccepted):
            return self._tcp_listeners.get(event.listener)
        if isinstance(event, FlowSeen | FlowQuiet | SignalSeen):
            return self._flows.get(event.session)
        if isinstance(event, TunnelClosed):
            return self._tunnels.pop(event.tunnel, None)
        if isinstance(event, StreamReady) and event.listener is not None:
            return self._listeners.get(event.listener)
        if isinstance(event, DatagramReady) and event.listener is not None:
            return self._sessions.get(event.session)
        return self._tunnels.get(event.tunnel)
