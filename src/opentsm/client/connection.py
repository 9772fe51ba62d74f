"""One client session joined to the user plane, to time, and to the application.

    dial -> ClientSession (decides) -> actions -> user plane
                  ^                                   |
                  +------- events, timers <-----------+

Every input ends in ``settle``: carry out the session's actions, arm one timer for its deadline. An action
that makes a new input (a socket that cannot be opened, a callback that turns a switch) only adds actions; the
outermost ``settle`` carries them out, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from opentsm.client import notifications as n
from opentsm.client.address import ServerAddress
from opentsm.client.binding import Bindings
from opentsm.client.breaking import Breakers
from opentsm.client.coding import CodingControl
from opentsm.client.datagram import open_datagram_socket
from opentsm.client.dial import Dialer, Dialled
from opentsm.client.further import FurtherStreams
from opentsm.client.inner_tcp import TunnelTcp
from opentsm.client.messages import MessageLogger
from opentsm.client.monitor import Monitor
from opentsm.client.planes import new_session_id
from opentsm.client.roaming import Roaming
from opentsm.client.settings import ConnectSettings
from opentsm.client.statistics import Statistics, path_statistics
from opentsm.client.telling import failure, switched, told
from opentsm.errors import RemoteProtocolError, TunnelClosedError, TunnelError
from opentsm.limits import CONNECT_TIMEOUT, REPLACED_LINGER
from opentsm.protocol import actions as a
from opentsm.protocol.client import ClientSession
from opentsm.protocol.states import ClientDdt
from opentsm.tasks import cancel, spawn
from opentsm.types import (
    NO_REDUNDANCY,
    Coding,
    Flow,
    IpAddress,
    Path,
    PathMode,
    Redundancy,
    SocketAddress,
    Transport,
    Tsid,
)
from opentsm.userplane._core import (
    ControlMessage,
    DatagramReady,
    PathAlive,
    PathSilent,
    TunnelClosed,
    TunnelStats,
)
from opentsm.userplane.plane import Plane, TunnelEvent
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import PathDecision, PathQuality

if TYPE_CHECKING:
    from opentsm.client.tun import TunDevice

COMEBACK_PATIENCE: Final = 2.0
"""Seconds an attempt to come back may take before the next begins: enough for three lost segments on a good
path, and what fell silent in between (a server that was just being started, a box that swallows) is asked
again. Half as long again after each failure, up to CONNECT_TIMEOUT, for paths that are slow."""

_log: Final = logging.getLogger(__name__)
_DDT_THERE: Final = frozenset({ClientDdt.PROVING, ClientDdt.UP, ClientDdt.SILENT, ClientDdt.LINGERING})


class Connection:
    """A tunnel's engine room.

    Args:
        plane: the user plane to use. settings: who to connect to, and how. hub: whom to tell.
        tun: where inner packets come from and go to, instead of sockets of this process.

    Attributes:
        counts: control messages dropped, by name.
        dialled: the stream connection that is, or was last, in use.
        last_error: why the last attempt to come back failed; empty when none did.
    """

    def __init__(
        self,
        plane: Plane,
        settings: ConnectSettings,
        hub: n.NotificationHub,
        tun: TunDevice | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.plane = plane
        self.hub = hub
        self.counts: Counter[str] = Counter()
        self.dialled: Dialled | None = None
        self.last_error = ""
        self.available: bool | None = None
        self.session = ClientSession(settings.session, fraction=random.random)
        self.bindings = Bindings(plane, self)
        self.tcp = TunnelTcp(self)
        self.plane_session: int | None = None
        self.closed: asyncio.Future[a.Terminated] = loop.create_future()
        self._loop = loop
        self._settings = settings
        self._tun = tun
        self._dialer = Dialer(plane, tls=settings.tls, proxy=settings.proxy, streams=settings.streams)
        self.message_log = MessageLogger(settings.message_log)
        self.further = FurtherStreams(self)
        self._breakers = Breakers(self)
        self._media_age: float | None = None
        self._monitor = Monitor(self, keepalive=settings.keepalive)
        self._roaming = Roaming(self)
        self._former: int | None = None
        self._dials = 0
        self._dialling = 0
        self._failures = 0
        self.coding = CodingControl(self)
        self._tunnels: dict[Path, int] = {}
        self._up: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._captures = 0
        self._settling = False
        self._ended: a.Terminated | None = None

    # -- life -------------------------------------------------------------------------------------------

    async def open(self, servers: tuple[ServerAddress, ...]) -> None:
        """Connect and be configured.

        Raises:
            ConnectError: no server could be reached, or what was reached did not go on.
            RefusedError: the server said no.
        """
        self._servers = servers
        self.session.set_coding(self._settings.coding, self._loop.time())
        self.set_redundancy(self._settings.streams.redundancy)
        self._take(await self._dialer.dial(servers))
        await self._up
        self._roaming.start()

    async def close(self) -> None:
        """Release the tunnel and wait until that is done (at most RELEASE_TIMEOUT)."""
        self.session.close(self._loop.time())
        self.settle()
        await self.closed
        await cancel(*self._tasks.values())

    def abort(self) -> None:
        """End at once, without a word to the server beyond the closing of the connection."""
        if not self.closed.done():
            self._finish(a.Terminated("local-close"))

    # -- what the application may ask ---------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        configuration = self.session.configuration
        return configuration.lease.addresses if configuration else ()

    @property
    def has_tun(self) -> bool:
        """Whether the kernel has the inner addresses, on a TUN device."""
        return self._tun is not None

    def require_session(self) -> int:
        """The user plane's session, or TunnelClosedError when there is none."""
        if self.plane_session is None:
            reason = self._ended.reason if self._ended else "not connected"
            raise TunnelClosedError(f"the tunnel is closed: {reason}")
        return self.plane_session

    def set_mode(self, flow: Flow, mode: PathMode) -> None:
        now = self._loop.time()
        self.session.set_mode(flow, mode, now)
        self._monitor.flows_changed()
        if mode is PathMode.AUTO and self._monitor.auto_path is not None:
            self.session.use_path(flow, self._monitor.auto_path, now)
        self.settle()

    def unset(self, flow: Flow) -> None:
        self.session.unset(flow, self._loop.time())
        self._monitor.flows_changed()
        self.settle()

    def path(self, flow: Flow) -> Path:
        return self.session.path(flow)

    def set_coding(self, coding: Coding) -> None:
        self.session.set_coding(coding, self._loop.time())
        self.settle()

    def set_redundancy(self, redundancy: Redundancy | None) -> None:
        """The application's wish, which wins; None leaves it to mode AUTO."""
        self._monitor.spread_automatically(redundancy is None)
        self.apply_redundancy(redundancy or NO_REDUNDANCY)

    def apply_redundancy(self, redundancy: Redundancy) -> None:
        self.session.set_redundancy(redundancy, self._loop.time())
        self.settle()

    def set_media_age(self, seconds: float) -> None:
        self._media_age = seconds
        for tunnel in (self._tunnels.get(Path.STREAM), *self.further.tunnels.values()):
            if tunnel is not None:
                self.age_media(tunnel)

    def age_media(self, tunnel: int) -> None:
        """Give a stream the age at which its media is stale, where the application has one."""
        if self._media_age is not None:
            with contextlib.suppress(KeyError):  # just closed; the event is on its way
                self.plane.core.set_media_age(tunnel, max_ms=round(self._media_age * 1000))

    def set_nagle(self, on: bool) -> None:
        self.session.set_nagle(on, self._loop.time())
        self.settle()

    async def dial_again(self) -> Dialled:
        """One more connection to the address that the main stream is at."""
        if self.dialled is None:
            raise TunnelClosedError("there is no connection yet")
        return await self._dialer.dial_again(self.dialled)

    def want_ddt(self, wanted: bool) -> None:
        self.session.want_ddt(wanted, self._loop.time())
        self.settle()

    def use_path(self, flow: Flow, path: Path) -> None:
        self.session.use_path(flow, path, self._loop.time())
        self.settle()

    def send_quality(
        self, reports: tuple[PathQuality, ...], now: float, *, decision: PathDecision | None, path: Path
    ) -> None:
        self.session.send_quality(reports, now, decision=decision, path=path)
        self.settle()

    @property
    def outer(self) -> tuple[SocketAddress, SocketAddress] | None:
        """Local and remote address of the stream connection that is in use or was last."""
        return None if self.dialled is None else (self.dialled.local, self.dialled.remote)

    @property
    def inner(self) -> tuple[str, ...]:
        """Inner addresses, as text."""
        return tuple(map(str, self.addresses))

    def network_changed(self, *, lost: bool = False) -> None:
        """This machine is in another network, or was asleep.

        Args:
            lost: it no longer has the stream's own address.
        """
        self._failures = 0
        self.session.network_changed(self._loop.time(), lost=lost)
        self.settle()

    def moved(self, source: str | None) -> None:
        """Tell the application from where the server is reached now."""
        self.hub.publish(n.NetworkChanged(source))

    def tunnel(self, path: Path) -> int | None:
        """The user plane's id of the tunnel of this path."""
        return self._tunnels.get(path)

    def tunnel_stats(self, path: Path) -> TunnelStats | None:
        tunnel = self._tunnels.get(path)
        if tunnel is None:
            return None
        try:
            return self.plane.core.tunnel_stats(tunnel)
        except KeyError:  # gone, the event is on its way
            return None

    def statistics(self) -> Statistics:
        drops: dict[str, int] = {}
        if self.plane_session is not None:
            with contextlib.suppress(KeyError):
                drops = self.plane.core.session_drops(self.plane_session)
        up = self.session.ddt_state in _DDT_THERE
        return Statistics(
            stream=path_statistics(Path.STREAM, self.tunnel_stats(Path.STREAM)),
            datagram=path_statistics(Path.DATAGRAM, self.tunnel_stats(Path.DATAGRAM) if up else None),
            coding=self.coding.numbers(),
            further=tuple(path_statistics(Path.STREAM, stats) for stats in self.further.stats()),
            redundancy=self.session.streams.wish,
            session_drops={name: count for name, count in drops.items() if count},
            control_drops=dict(self.counts + self.session.counts),
        )

    # -- inputs -----------------------------------------------------------------------------------------

    def _take(self, dialled: Dialled) -> None:
        """A stream connection is up: it is the session's from now on."""
        self.dialled = dialled
        self.last_error = ""
        self._failures = 0
        tunnel = dialled.opening.tunnel
        if (former := self._tunnels.get(Path.STREAM)) is not None:
            # In the user plane it carries packets until the new one is attached in its place.
            self.plane.unwatch_tunnel(former)
            self._former = former
        self._tunnels[Path.STREAM] = tunnel
        self.session.stream_ready(self._loop.time(), binding=dialled.binding)
        dialled.opening.adopt(functools.partial(self._on_event, Path.STREAM))
        self.settle()

    def _on_event(self, path: Path, event: TunnelEvent) -> None:
        if self._tunnels.get(path) != event.tunnel:
            return
        now = self._loop.time()
        if isinstance(event, ControlMessage):
            self._receive(path, event.data, now)
        elif isinstance(event, TunnelClosed):
            del self._tunnels[path]
            detail = f"{event.reason}: {event.detail}" if event.detail else event.reason
            _log.info("%s tunnel closed: %s", path.name.lower(), detail)
            self.last_error = detail
            self._monitor.lost(path)
            self._breakers.lost(path)
            self._close_former(path)
            self.session.path_lost(path, event.reason, now)
        elif isinstance(event, DatagramReady):
            self._datagram_ready(event, now)
        elif isinstance(event, PathSilent):
            self.hub.publish(n.PathSilent(path, event.silent_ms / 1000))
            self._monitor.lost(path)
            self.session.path_silent(path, now)
        elif isinstance(event, PathAlive):
            self.hub.publish(n.PathAlive(path))
            self.session.path_alive(path, now)
        self.settle()

    def _receive(self, path: Path, data: bytes, now: float) -> None:
        try:
            message = decode_untrusted(data)
        except RemoteProtocolError as error:
            self.counts[f"malformed-{error.reason}"] += 1
            return
        self.message_log.log("received", path, message)
        self.session.receive(path, message, now)

    def _datagram_ready(self, event: DatagramReady, now: float) -> None:
        stats = self.tunnel_stats(Path.STREAM)
        rtt = stats.tcp_rtt_us / 1e6 if stats is not None and stats.tcp_rtt_us else None
        if not self.session.datagram_ready(Tsid(event.tsid), now, rtt=rtt):
            self._drop(Path.DATAGRAM, "local-close")

    def _on_timer(self) -> None:
        self.session.tick(self._loop.time())
        self.settle()

    # -- actions ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        if self._settling:
            return
        self._settling = True
        try:
            while actions := self.session.actions():
                for action in actions:
                    _HANDLERS[type(action)](self, action)
        finally:
            self._settling = False
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.session.deadline()
        if deadline is not None and not self.closed.done():
            self._timer = self._loop.call_at(deadline.at, self._on_timer)

    def _send(self, action: a.Send) -> None:
        self.message_log.log("sent", action.path, action.message)
        tunnel = self._tunnels.get(action.path)
        if tunnel is None or not self.plane.core.send_control(tunnel, encode(action.message)):
            self.counts["control-not-queued"] += 1

    def _open_session(self, action: a.OpenSession) -> None:
        if self.plane_session is not None:
            new = ", ".join(map(str, action.addresses))
            self.bindings.lose_all(
                f"the server gave the tunnel another inner address ({new}): open a new socket and "
                "tell the far end (a new SIP registration and offer)"
            )
            self._close_session()
        self.plane_session = new_session_id()
        self.plane.core.session_open(
            self.plane_session,
            role="client",
            addresses=[str(address) for address in action.addresses],
            sink="local" if self._tun is None else "route",
        )
        if self._tun is not None:
            self._tun.opened(self, self.plane_session, action.addresses)
        self._capture(self.plane_session)

    def _capture(self, session: int) -> None:
        """A session with another address gets a file of its own: the first one is not written over."""
        path = self._settings.pcap
        if path is None:
            return
        name = path if self._captures == 0 else f"{path}.{self._captures}"
        self._captures += 1
        try:
            self.plane.core.capture(session, name)
        except OSError as error:
            _log.error("no capture to %s: %s", name, error.strerror)

    def _attach(self, path: Path, tsid: int, *, fresh: bool = False, linger: bool = False) -> None:
        tunnel = self._tunnels.get(path)
        if tunnel is not None and self.plane_session is not None:
            with contextlib.suppress(KeyError):  # just closed; the event is on its way
                self.plane.core.attach(self.plane_session, tunnel, tsid, fresh=fresh, linger=linger)

    def _attach_stream(self, action: a.AttachStream) -> None:
        former, self._former = self._former, None
        self._attach(Path.STREAM, action.tsid, fresh=action.fresh, linger=former is not None)
        if former is not None:
            close = functools.partial(self.plane.core.close, former, reason="replaced")
            self._loop.call_later(REPLACED_LINGER, close)
        if (tunnel := self._tunnels.get(Path.STREAM)) is not None:
            self.age_media(tunnel)

    def _attach_datagram(self, action: a.AttachDatagram) -> None:
        self._attach(Path.DATAGRAM, action.tsid)

    def _open_datagram(self, action: a.OpenDatagram) -> None:
        self.spawn("open-datagram", self._dial_datagram(action))

    async def _dial_datagram(self, action: a.OpenDatagram) -> None:
        """The pair's socket: the server's address and the same port number; behind a proxy, straight on."""
        dialled = self.dialled
        stream = self._tunnels.get(Path.STREAM)
        if dialled is None or stream is None:
            return
        server = dialled.server
        try:
            remote = dialled.remote
            if self._dialer.proxied:
                remote = (await self._dialer.resolve(server.host, server.port))[0][1]
            sock = open_datagram_socket(remote)
            stats = self.tunnel_stats(Path.STREAM)
            tunnel = self.plane.core.attach_datagram(
                sock.detach(),
                dtls=server.transport is Transport.TLS,
                tsid=action.tsid,
                stream=stream,
                rtt_hint_ms=stats.tcp_rtt_us // 1000 if stats else 0,
            )
        except (OSError, KeyError, ValueError) as error:
            _log.info("no datagram tunnel: %s", error)
            self.session.path_lost(Path.DATAGRAM, "no-datagram-socket", self._loop.time())
        else:
            self._tunnels[Path.DATAGRAM] = tunnel
            self.plane.watch_tunnel(tunnel, functools.partial(self._on_event, Path.DATAGRAM))
        self.settle()

    def _set_spread(self, action: a.SetSpread) -> None:
        if self.plane_session is not None:
            self.plane.core.set_spread(self.plane_session, int(action.spread))

    def _set_nagle(self, action: a.SetNagle) -> None:
        tunnel = self._tunnels.get(Path.STREAM)
        if tunnel is not None:
            with contextlib.suppress(KeyError, OSError):  # just closed; the event is on its way
                self.plane.core.set_nagle(tunnel, action.on)
        self.further.set_nagle(action.on)

    def _set_coding(self, action: a.SetCoding) -> None:
        self.coding.set(action)

    def _steer(self, action: a.Steer) -> None:
        self._with_row(
            action.flow, functools.partial(self.plane.core.steer, mode=int(action.mode), media=True)
        )

    def _unsteer(self, action: a.Unsteer) -> None:
        self._with_row(action.flow, self.plane.core.unsteer)

    def _with_row(self, flow: Flow, command: Callable[..., None]) -> None:
        if self.plane_session is None:
            return
        far = None if flow.far is None else (str(flow.far[0]), flow.far[1])
        command(self.plane_session, protocol=int(flow.protocol), port=flow.port, ipv6=flow.ipv6, far=far)

    def _close_tunnel(self, action: a.CloseTunnel) -> None:
        if action.path is Path.DATAGRAM and (task := self._tasks.pop("open-datagram", None)):
            task.cancel()
        self._drop(action.path, action.reason)

    def _close_former(self, path: Path) -> None:
        """The stream before the present one, if that has not taken its place."""
        if path is Path.STREAM and self._former is not None:
            self.plane.core.close(self._former)
            self._former = None

    def _drop(self, path: Path, reason: str) -> None:
        self._close_former(path)
        tunnel = self._tunnels.pop(path, None)
        if tunnel is not None:
            self._monitor.lost(path)
            self._breakers.lost(path)
            self.plane.unwatch_tunnel(tunnel)
            self.plane.core.close(tunnel, reason=reason)

    def _reconnect(self, action: a.Reconnect) -> None:
        if action.after > 0 and self._dialling:
            return  # its outcome is the answer to this wish, too
        self._dials += 1
        self._dialling = 0
        self.spawn("reconnect", self._come_back(action.after, self._dials))

    async def _come_back(self, after: float, turn: int) -> None:
        await asyncio.sleep(after)
        self._dialling = turn
        try:
            await self._dial_back()
        finally:
            if self._dialling == turn:
                self._dialling = 0

    async def _dial_back(self) -> None:
        # Only the server we were at has our session.
        servers = self._servers
        if self.dialled is not None:
            servers = (self.dialled.server, *(s for s in servers if s != self.dialled.server))
        try:
            patience = min(COMEBACK_PATIENCE * 1.5**self._failures, CONNECT_TIMEOUT)
            dialled = await self._dialer.dial(servers, patience=patience)
        except TunnelError as error:
            self.last_error = str(error)
            _log.info("not back yet: %s", error)
            self._failures += 1
            self._dialling = 0
            self._tasks.pop("reconnect", None)
            self.session.connect_failed("unreachable", self._loop.time())
            self.settle()
        else:
            self._dialling = 0
            self._tasks.pop("reconnect", None)
            self._take(dialled)

    def _notify(self, action: a.Notify) -> None:
        event = action.event
        if isinstance(event, a.Terminated):
            self._ended = event
        elif isinstance(event, a.TunnelUp) and not self._up.done():
            self._up.set_result(None)
            self._breakers.start()
        elif isinstance(event, a.DdtAvailable):
            self.available = event.available
        elif isinstance(event, a.KeepaliveInterval):
            self._monitor.keepalive(event.path, event.seconds)
        elif isinstance(event, a.QualityReported):
            self._monitor.reported(event)
            self._breakers.reported(event.reports)
        notification = told(event, self.bindings)
        if notification is not None:
            self.hub.publish(notification)
        switch = switched(event, self.bindings, self._monitor.deciding)
        if switch is not None:
            ports = sorted({owner.flow.port for owner in switch.sockets if owner.flow is not None})
            path = switch.path.name.lower()
            _log.info(
                "media of ports %s (%s) goes by the %s: %s", ports, switch.direction, path, switch.reason
            )
            self.hub.publish(switch)
        if isinstance(event, a.DdtUp | a.DdtDown | a.DdtEnabled | a.DdtDisabled):
            self._monitor.flows_changed()

    def _session_closed(self, action: a.SessionClosed) -> None:
        self._finish(self._ended or a.Terminated(action.reason))

    def _finish(self, ended: a.Terminated) -> None:
        """Everything this connection holds goes; nothing comes after it."""
        if self.closed.done():
            return
        self._ended = ended
        self.closed.set_result(ended)
        if not self._up.done():
            self._up.set_exception(failure(ended, self.last_error))
            self._up.exception()  # read: a caller who was cancelled does not come for it
        for task in self._tasks.values():
            task.cancel()
        self._monitor.stop()
        self._breakers.stop()
        self._roaming.stop()
        self._close_former(Path.STREAM)
        for path in tuple(self._tunnels):
            self._drop(path, ended.reason)
        self.further.close_all(ended.reason)
        self.bindings.lose_all(f"the tunnel is closed: {ended.reason}")
        self._close_session()
        self.message_log.close()
        self.hub.end()
        self._arm()

    def _close_session(self) -> None:
        session, self.plane_session = self.plane_session, None
        if session is not None:
            self.tcp.lose()
            if self._tun is not None:
                self._tun.closing()
            self.plane.core.session_close(session)

    def spawn(self, name: str, coroutine: Any) -> None:
        """One task of each name; a new one takes the older one's place."""
        if older := self._tasks.get(name):
            older.cancel()
        task = self._tasks[name] = spawn(name, coroutine)
        task.add_done_callback(functools.partial(self._task_ended, name))

    def _task_ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]

    def stop_task(self, name: str) -> None:
        """End the task of this name, if there is one; a task may ask for its own end."""
        task = self._tasks.pop(name, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()


_HANDLERS: Final[dict[type, Callable[[Connection, Any], None]]] = {
    a.Send: Connection._send,
    a.OpenSession: Connection._open_session,
    a.AttachStream: Connection._attach_stream,
    a.AttachDatagram: Connection._attach_datagram,
    a.OpenDatagram: Connection._open_datagram,
    a.SetCoding: Connection._set_coding,
    a.SendExtra: lambda self, action: self.further.send(action),
    a.OpenExtra: lambda self, action: self.further.open(action),
    a.AttachExtra: lambda self, action: self.further.attach(action),
    a.UseExtra: lambda self, action: self.further.use(action),
    a.CloseExtra: lambda self, action: self.further.close(action),
    a.SetSpread: Connection._set_spread,
    a.SetNagle: Connection._set_nagle,
    a.Steer: Connection._steer,
    a.Unsteer: Connection._unsteer,
    a.CloseTunnel: Connection._close_tunnel,
    a.Reconnect: Connection._reconnect,
    a.Notify: Connection._notify,
    a.SessionClosed: Connection._session_closed,
}
