"""One client: joins its pure session with the user plane, the loop's clock, and the hub.

Each entry point (an event, a timer, an answer) feeds the session one input, carries out its actions and sets
the one timer. An entry point that fails costs its own client the tunnel and nobody else anything.
"""

from __future__ import annotations

import asyncio
import functools
import operator
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, cast

import structlog

from opentsm.engine.addresses import Family
from opentsm.engine.judge import Reading
from opentsm.engine.pools import Lease as PoolLease
from opentsm.engine.pools import PoolExhausted
from opentsm.errors import RemoteProtocolError
from opentsm.limits import REPLACED_LINGER
from opentsm.protocol import actions as a
from opentsm.protocol.server import Kept, ServerSession, peek_resume
from opentsm.protocol.server_streams import peek_join
from opentsm.protocol.states import Server as State
from opentsm.protocol.states import ServerDdt
from opentsm.server.auth import AuthenticationFailed, Credentials, Identity
from opentsm.server.breaking import Downstream
from opentsm.server.coding import PeerCoding
from opentsm.server.counters import OF_SESSIONS, Count
from opentsm.server.further import FurtherStreams
from opentsm.server.judging import Downlink
from opentsm.server.leases import AddressTaken
from opentsm.server.offers import DATAGRAM_PROBE, DATAGRAM_SILENCE, PROBES_PER_TIMER, Offer, tunnel_limit
from opentsm.tasks import spawn
from opentsm.types import Code, Flow, IpAddress, Path, SocketAddress, Transport, Tsid
from opentsm.userplane._core import (
    ControlMessage,
    DatagramReady,
    PathAlive,
    PathSilent,
    StreamReady,
    TunnelClosed,
    TunnelIdle,
)
from opentsm.userplane.plane import TunnelEvent
from opentsm.userplane.readings import reading
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import Message, PathQuality

if TYPE_CHECKING:
    from opentsm.server.hub import Hub

MESSAGE_BURST: Final = 1024
"""Control messages a client may send at once: a trunk that moves each flow by a message of its own."""

MESSAGE_RATE: Final = 100.0
"""Control messages a second a client may send for long. Each costs the control plane some 50 microseconds, so
that one mad client takes half a percent of a core."""

MALFORMED_LIMIT: Final = 16
"""Control messages of one client that may be malformed before its tunnel is closed: none is honest, but a
newer client may have one we cannot read."""

P = ParamSpec("P")
_log: Final = structlog.get_logger("opentsm.server")


def _guarded(method: Callable[Concatenate[Peer, P], None]) -> Callable[Concatenate[Peer, P], None]:
    """An entry point: what goes wrong inside ends this client and is logged, and goes no further."""

    @functools.wraps(method)
    def entry(self: Peer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.gone:
            return
        try:
            method(self, *args, **kwargs)
            self.settle()
        except Exception as error:
            self._crash(error)

    return cast("Callable[Concatenate[Peer, P], None]", entry)


class Peer:
    """One client of the server.

    Args:
        hub: all clients, and what they share.
        offer: what the interface gives, as it stands now.
        transport: of the stream the client came on.
        ready: the event of that stream.

    Attributes:
        gone: nothing of this client is left; calls have no effect.
        quality: the client's last view of what we send.
        since: when it was configured, on the loop's clock.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_asking",
        "_certificate",
        "_coding",
        "_counted",
        "_downlink",
        "_downstream",
        "_folded",
        "_former",
        "_further",
        "_lease",
        "_malformed",
        "_opened",
        "_timer",
        "_timer_at",
        "_tokens",
        "_tokens_at",
        "datagram",
        "datagram_outer",
        "gone",
        "hub",
        "identity",
        "offer",
        "outer",
        "quality",
        "session",
        "session_id",
        "since",
        "stream",
        "tls_version",
        "transport",
    )

    def __init__(self, hub: Hub, offer: Offer, transport: Transport, ready: StreamReady | None) -> None:
        self.hub = hub
        self.offer = offer
        self.transport = transport
        self.stream: int | None = None if ready is None else ready.tunnel
        self.datagram: int | None = None
        self.datagram_outer: SocketAddress | None = None
        self.outer: SocketAddress = ("", 0) if ready is None else ready.peer
        self.tls_version = None if ready is None else ready.tls_version
        self.session_id: int | None = None
        self.identity: Identity | None = None
        self.quality: tuple[PathQuality, ...] = ()
        self.since = 0.0
        self.gone = False
        self._certificate = None if ready is None else ready.peer_certificate
        self._former: int | None = None
        self._lease: PoolLease | None = None
        self._opened = False
        # Made when they are first needed: most clients only hold a tunnel.
        self._further: FurtherStreams | None = None
        self._downlink: Downlink | None = None
        self._downstream: Downstream | None = None
        self._coding: PeerCoding | None = None
        self._arrived = False
        self._asking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._malformed = 0
        self._folded: Counter[str] | None = None
        self._counted = 0
        self._tokens = float(MESSAGE_BURST)
        self._tokens_at = hub.now()
        if ready is not None:  # else it comes with ``take_up``
            self.session = ServerSession(offer.session, entropy=hub.entropy)

    @classmethod
    def waiting(
        cls, hub: Hub, offer: Offer, transport: Transport, identity: Identity, lease: PoolLease
    ) -> Peer:
        """A client of an earlier process, whose lease is taken; to be completed with ``take_up``."""
        peer = cls(hub, offer, transport, None)
        peer.identity, peer._lease, peer.since = identity, lease, hub.now()
        return peer

    def take_up(self, tsid: Tsid, generations: tuple[int, int], outer: SocketAddress) -> None:
        """Its session waits for it to come back.

        Args:
            generations: of the newest secret and of the one that was shown for it.

        Raises:
            TooManyTunnels, LocalProtocolError: there is no room for it; nothing is left of it.
        """
        assert self.identity is not None
        assert self._lease is not None
        self.outer = outer
        kept = Kept(tsid, self.identity.name, self._protocol_lease(self._lease), *generations)
        now = self.hub.now()
        self.session = ServerSession.restored(self.offer.session, kept, now, entropy=self.hub.entropy)
        try:
            self.settle()
            assert self.session_id is not None
            self.hub.taken_up(self, self.session_id, kept)
        except BaseException:
            self._dissolve()
            raise

    @property
    def further(self) -> FurtherStreams:
        """Its streams beside the main one."""
        if self._further is None:
            self._further = FurtherStreams(self)
        return self._further

    @property
    def downlink(self) -> Downlink:
        """Our judgement of what we send, and the last changes of path."""
        if self._downlink is None:
            self._downlink = Downlink()
        return self._downlink

    @property
    def downstream(self) -> Downstream:
        """The circuit breakers of what we send."""
        if self._downstream is None:
            self._downstream = Downstream()
        return self._downstream

    def _coded(self) -> PeerCoding:
        assert self.session_id is not None
        if self._coding is None:
            self._coding = PeerCoding(self.hub.core, self.session_id)
        return self._coding

    # -- entry points -----------------------------------------------------------------------------------

    @_guarded
    def begin(self, ready: StreamReady) -> None:
        """The client's stream is up."""
        self.session.stream_ready(
            self.hub.now(),
            binding=ready.resume_binding,
            peer=ready.peer,
            has_certificate=ready.peer_certificate is not None,
        )

    @_guarded
    def on_event(self, event: TunnelEvent) -> None:
        """An event of one of the client's tunnels; those of tunnels it no longer has are leftovers."""
        path = self._path_of(event.tunnel)
        if path is None:
            self._on_further_event(event)
            return
        now = self.hub.now()
        match event:
            case ControlMessage():
                self._receive(path, event.data, now)
            case TunnelClosed():
                self._forget(path)
                self.session.path_lost(path, event.reason, now)
            case TunnelIdle():
                self.session.path_idle(path, now)
            case PathSilent():
                self.session.path_silent(path, now)
            case PathAlive():
                self.session.path_alive(path, now)
            case _:
                self.hub.counts[Count.UNEXPECTED_EVENT] += 1

    def _on_further_event(self, event: TunnelEvent) -> None:
        """An event of a stream beside the main one."""
        tsid = None if self._further is None else self._further.tsid_of(event.tunnel)
        if tsid is None:
            return
        now = self.hub.now()
        match event:
            case ControlMessage():
                message = self._read(Path.STREAM, event.tunnel, event.data, now)
                if message is not None:
                    self.hub.log_message(self, Path.STREAM, "in", message)
                    self.session.streams.receive(tsid, message, now)
            case TunnelClosed():
                self.further.ended(tsid)
                self.session.streams.lost(tsid, event.reason, now)
            case TunnelIdle() | PathSilent():
                self.session.streams.lost(tsid, "path-silent", now)
            case _:
                pass

    @_guarded
    def on_datagram(self, event: DatagramReady) -> None:
        """A datagram tunnel of this session is up."""
        if not self.session.datagram_ready(Tsid(event.tsid), self.hub.now()):
            self.hub.core.close(event.tunnel)
            return
        self.datagram, self.datagram_outer = event.tunnel, event.peer
        self.hub.plane.watch_tunnel(event.tunnel, self.on_event)

    @_guarded
    def terminate(self, code: Code, text: str = "", retry_after: float | None = None) -> None:
        """End the client's tunnel, politely."""
        self.session.terminate(code, self.hub.now(), text=text, retry_after=retry_after)

    @_guarded
    def give_way(self) -> None:
        """End at once: the same account has come back and wants its address."""
        now = self.hub.now()
        self.session.path_lost(Path.STREAM, "replaced", now)
        self.session.terminate(Code.NOT_ALLOWED, now, text="the account has another tunnel now")

    @_guarded
    def _tick(self) -> None:
        self._timer = None
        self.session.tick(self.hub.now())

    @_guarded
    def take_stream(self, other: Peer, message: Message) -> None:
        """The client is back on the stream that ``other`` was made for; its proof has been verified."""
        assert other.stream is not None
        self._former = self.stream
        self.stream, self.outer, self.tls_version = other.stream, other.outer, other.tls_version
        self.hub.plane.watch_tunnel(self.stream, self.on_event)
        self.hub.log_message(self, Path.STREAM, "in", message)
        self.session.resume(message, self.hub.now(), binding=other.session.binding, peer=other.outer)

    @_guarded
    def take_further(self, other: Peer, message: Message) -> None:
        """The stream that ``other`` was made for is one more of ours; its proof has been verified."""
        assert other.stream is not None
        self.further.add(message.tsid, other.stream)
        self.hub.plane.watch_tunnel(other.stream, self.on_event)
        self.hub.log_message(self, Path.STREAM, "in", message)
        self.session.join(message, self.hub.now())

    @_guarded
    def _decided(self, verdict: Identity | AuthenticationFailed) -> None:
        now = self.hub.now()
        if isinstance(verdict, Identity):
            self.identity = verdict
            self.session.authenticated(verdict.name, now)
        else:
            self.hub.refused(self, verdict.code, verdict.reason)
            self.session.authentication_failed(verdict.code, now, retry_after=verdict.retry_after)

    # -- messages ---------------------------------------------------------------------------------------

    def _receive(self, path: Path, data: bytes, now: float) -> None:
        tunnel = self.stream if path is Path.STREAM else self.datagram
        message = None if tunnel is None else self._read(path, tunnel, data, now)
        if message is None:
            return
        if not self._arrived and path is Path.STREAM:
            self._arrived = True
            if self._belongs_elsewhere(message):
                return
        self.hub.log_message(self, path, "in", message)
        self.session.receive(path, message, now)
        if self.session.counted and self.session.counts.total() != self._counted:
            self._count()

    def _belongs_elsewhere(self, message: Message) -> bool:
        """Whether the first message has given this stream to a session that was there before."""
        if peek_join(message) is not None:
            return self.hub.join(self, message)
        return peek_resume(message) is not None and self.hub.hand_over(self, message)

    def _read(self, path: Path, tunnel: int, data: bytes, now: float) -> Message | None:
        """A control message; None for one too many and for one that is none."""
        if not self._admit(now):
            self.hub.counts[Count.CONTROL_FLOOD] += 1
            self.hub.core.close(tunnel, reason="rate-limited")
            return None
        try:
            return decode_untrusted(data)
        except RemoteProtocolError as error:
            self._malformed += 1
            self.hub.malformed(self, path, error)
            if self._malformed >= MALFORMED_LIMIT:
                self.hub.core.close(tunnel, reason="protocol-error")
            return None

    def _count(self) -> None:
        """Add to the server's counters what the session has counted since the last time."""
        for name, count in (self.session.counts - (self._folded or Counter())).items():
            self.hub.counts[OF_SESSIONS[name]] += count
        self._folded = self.session.counts.copy()
        self._counted = self._folded.total()

    def _admit(self, now: float) -> bool:
        """Token bucket over the client's control messages."""
        self._tokens = min(MESSAGE_BURST, self._tokens + (now - self._tokens_at) * MESSAGE_RATE)
        self._tokens_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _close(self, path: Path, reason: str) -> None:
        """Close a tunnel of a client that misbehaves; TunnelClosed then tells the session."""
        tunnel = self.stream if path is Path.STREAM else self.datagram
        if tunnel is not None:
            self.hub.core.close(tunnel, reason=reason)

    def _path_of(self, tunnel: int) -> Path | None:
        if tunnel == self.stream:
            return Path.STREAM
        return Path.DATAGRAM if tunnel == self.datagram else None

    def _forget(self, path: Path) -> None:
        if path is Path.STREAM:
            self.stream = None
        else:
            self.datagram = self.datagram_outer = None
            if self._coding is not None:
                self._coding.path_gone(self.hub.now())

    # -- carrying out -------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Carry out what the session asks for, then see to its timer."""
        while found := self.session.actions():
            for action in found:
                _HANDLERS[type(action)](self, action)
        if not self.gone:
            self._arm()

    def _arm(self) -> None:
        """One timer. It is moved only when it would come too late; one that comes early looks again."""
        deadline = self.session.deadline()
        if deadline is None:
            return
        if self._timer is not None:
            if self._timer_at <= deadline.at:
                return
            self._timer.cancel()
        self._timer_at = deadline.at
        self._timer = self.hub.loop.call_at(deadline.at, self._tick)

    def _send(self, action: a.Send) -> None:
        tunnel = self.stream if action.path is Path.STREAM else self.datagram
        if tunnel is None:
            return
        self.hub.log_message(self, action.path, "out", action.message)
        if not self.hub.core.send_control(tunnel, encode(action.message)):
            # A client that does not read; what it misses it could not make up for. It may come back.
            self.hub.counts[Count.CONTROL_NOT_SENT] += 1
            self._close(action.path, "timeout")

    def _authenticate(self, action: a.Authenticate) -> None:
        if not self.offer.interface.enabled:
            self.hub.refused(self, Code.SHUTTING_DOWN, "interface-disabled")
            self.session.authentication_failed(Code.SHUTTING_DOWN, self.hub.now(), text="out of service")
            return
        credentials = Credentials(
            client_id=action.client_id or b"",
            username=action.username or "",
            password=action.password or b"",
            certificate=self._certificate,
            source=self.outer,
        )
        self._asking = spawn("authenticate", self._ask(credentials))

    async def _ask(self, credentials: Credentials) -> None:
        try:
            verdict: Identity | AuthenticationFailed = await self.hub.door.authenticate(credentials)
        except AuthenticationFailed as failure:
            verdict = failure
        self._asking = None
        self._decided(verdict)

    def _allocate(self, action: a.Allocate) -> None:
        now = self.hub.now()
        if not self.hub.registry.room(self.offer.name):
            limit = tunnel_limit(self.offer.interface)
            self._refuse_lease(Code.TOO_MANY_TUNNELS, "too-many-tunnels", f"all {limit} tunnels are in use")
            return
        assert self.identity is not None
        try:
            self._lease = self.hub.lease(self, Family(int(action.families)), self.identity)
        except AddressTaken as error:
            self._refuse_lease(Code.NO_ADDRESS, "address-taken", f"your address {error.address} is not free")
        except PoolExhausted:
            self._refuse_lease(Code.NO_ADDRESS, "pool-exhausted", "no inner address is free")
        else:
            self.session.leased(self._protocol_lease(self._lease), now)

    def _refuse_lease(self, code: Code, reason: str, text: str) -> None:
        self.hub.refused(self, code, reason)
        self.session.lease_refused(code, self.hub.now(), text=text)

    def _protocol_lease(self, lease: PoolLease) -> a.Lease:
        name = lease.parts[0].pool
        pool = self.offer.pool(name)
        length = self.offer.interface.realm.prefix_length
        # By number: an address given as such is written as text and read again, twice.
        four, six = lease.ipv4, lease.ipv6
        ipv4 = None if four is None else IPv4Interface((int(four), length(four)))
        ipv6 = None if six is None else IPv6Interface((int(six), length(six)))
        dns = () if pool is None else pool.dns
        families = functools.reduce(operator.or_, map(Family.of, lease.addresses))
        return a.Lease(ipv4, ipv6, dns, self.offer.sip_server(name, families))

    def _release_lease(self, action: a.ReleaseLease) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            self.hub.leases.release(lease.addresses, self._owner, self.hub.now())

    @property
    def _owner(self) -> str | None:
        """Who may have a just released address back: an account, but not everybody who is anonymous."""
        return None if self.identity is None or self.identity.method == "anonymous" else self.identity.name

    def _open_session(self, action: a.OpenSession) -> None:
        assert self._lease is not None
        self.session_id = self.hub.new_session_id()
        upstream, downstream = self.offer.rates(self._lease.parts[0].pool)
        self.hub.core.session_open(
            self.session_id,
            role="server",
            addresses=[str(address) for address in self._lease.addresses],
            inter_client=self.offer.between_clients,
            upstream_rate=upstream,
            downstream_rate=downstream,
        )
        self._opened = True
        self.hub.plane.watch_session(self.session_id, self.on_datagram)

    def _attach_stream(self, action: a.AttachStream) -> None:
        assert self.session_id is not None
        if self.stream is None:
            return  # it ended while we decided; path_lost is on its way
        try:
            former, self._former = self._former, None
            linger = former is not None
            probe = self.offer.probe_stream
            self.hub.core.attach(
                self.session_id,
                self.stream,
                action.tsid,
                fresh=action.fresh,
                linger=linger,
                idle_ms=self.offer.idle_stream,
                keepalive_ms=probe,
                silent_after_ms=probe * PROBES_PER_TIMER,
                media_age_ms=self.offer.media_age,
            )
            if former is not None:
                close = functools.partial(self.hub.core.close, former, reason="replaced")
                self.hub.loop.call_later(REPLACED_LINGER, close)
        except KeyError:
            self.hub.counts[Count.ATTACH_TOO_LATE] += 1

    def _attach_datagram(self, action: a.AttachDatagram) -> None:
        if self.datagram is None or self.session_id is None:
            return
        try:
            self.hub.core.attach(
                self.session_id,
                self.datagram,
                action.tsid,
                idle_ms=self.offer.idle_datagram,
                keepalive_ms=round(DATAGRAM_PROBE * 1000),
                silent_after_ms=round(DATAGRAM_SILENCE * 1000),
            )
        except KeyError:
            self.hub.counts[Count.ATTACH_TOO_LATE] += 1

    def _reserve(self, action: a.ReserveDatagram) -> None:
        if self.stream is None or self.session_id is None:
            return
        try:
            self.hub.core.reserve(
                stream=self.stream, tsid=action.tsid, lifetime_ms=round(action.lifetime * 1000)
            )
        except (KeyError, ValueError, OSError):
            self.hub.counts[Count.RESERVATION_FAILED] += 1
            self.session.path_lost(Path.DATAGRAM, "reservation-failed", self.hub.now())
            return
        self.hub.registry.set_ddt(self.session_id, action.tsid)

    def _unreserve(self, action: a.UnreserveDatagram) -> None:
        self.hub.core.unreserve(action.tsid)
        self._forget_ddt()

    def _forget_ddt(self) -> None:
        if self.session_id is not None and self.session_id in self.hub.registry:
            self.hub.registry.set_ddt(self.session_id, None)

    def _set_coding(self, action: a.SetCoding) -> None:
        self._coded().set(action, self.hub.now())

    def _set_spread(self, action: a.SetSpread) -> None:
        assert self.session_id is not None
        self.hub.core.set_spread(self.session_id, int(action.spread))

    def _set_nagle(self, action: a.SetNagle) -> None:
        if self.stream is not None:
            with suppress(KeyError, OSError):  # just closed; the event is on its way
                self.hub.core.set_nagle(self.stream, action.on)
        if self._further is not None:
            self._further.set_nagle(action.on)

    def _steer(self, action: a.Steer) -> None:
        assert self.session_id is not None
        try:
            self.hub.core.steer(self.session_id, mode=int(action.mode), **_flow(action.flow))
        except OSError:
            self.hub.counts[Count.STEERING_FULL] += 1

    def _unsteer(self, action: a.Unsteer) -> None:
        assert self.session_id is not None
        self.hub.core.unsteer(self.session_id, **_flow(action.flow))

    def _close_tunnel(self, action: a.CloseTunnel) -> None:
        self._close(action.path, action.reason)
        self._forget(action.path)
        if action.path is Path.DATAGRAM:
            self._forget_ddt()

    def _notify(self, action: a.Notify) -> None:
        match action.event:
            case a.Configured():
                self.since = self.hub.now()
                assert self.session_id is not None
                self.hub.entered(self, self.session_id, action.event)
            case a.QualityReported():
                self._quality_reported(action.event)
            case a.MediaMoved(flows, path, reason):
                moved = self.downlink.moved(self.hub.now(), "down", path, reason, flows)
                self.hub.media_moved(self, moved)
            case _:
                self.hub.note(self, action.event)

    def _quality_reported(self, event: a.QualityReported) -> None:
        """What the client receives decides where we send; what we receive decides it for the client."""
        self.quality = event.reports
        now = self.hub.now()
        if event.decision is not None:
            self.hub.media_moved(self, self.downlink.client_moved(now, event.decision))
        self._break(event.reports, now)
        coding = self._coding is not None and self._coding.reported(event.reports, now)
        if self.session.judges:
            decision, reports = self.downlink.heard(now, event.reports, self._readings(), path=event.path)
            self.session.use_path(decision.path, now, str(decision))
            told = decision.told() if decision.moved else None
            self.session.send_quality(reports, now, decision=told, path=event.path)
        elif coding:
            self.session.send_quality(self.downlink.report(now, self._readings()), now)

    def _break(self, reports: tuple[PathQuality, ...], now: float) -> None:
        """Hold back media of which nothing arrives."""
        found = {}
        for path, tunnel in ((Path.STREAM, self.stream), (Path.DATAGRAM, self.datagram)):
            if tunnel is not None:
                with suppress(KeyError):
                    found[path] = (tunnel, self.hub.core.tunnel_stats(tunnel))
        further = [] if self._further is None else self._further.stats()
        for path, decision in self.downstream.heard(now, reports, found, further):
            with suppress(KeyError):
                self.hub.core.set_breaker(
                    self.session_id or 0, path is Path.DATAGRAM, round(decision.every * 1000)
                )
            self.hub.breaker_moved(self, path, str(decision))

    def _readings(self) -> dict[Path, Reading]:
        """Of the tunnels that are there and heard."""
        found = {}
        heard = self.session.ddt_state is ServerDdt.UP
        for path, tunnel in ((Path.STREAM, self.stream), (Path.DATAGRAM, self.datagram if heard else None)):
            if tunnel is not None:
                with suppress(KeyError):
                    found[path] = reading(path, self.hub.core.tunnel_stats(tunnel))
        return found

    def _closed(self, action: a.SessionClosed) -> None:
        self._dissolve()

    # -- the end ------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Its stream now belongs to the session it proved to be; this half has done nothing."""
        self.stream = None
        self._dissolve()

    def _crash(self, error: Exception) -> None:
        _log.error("client dropped after an error of ours", **self.describe(), exc_info=error)
        self.hub.counts[Count.PEER_CRASHED] += 1
        for path in Path:
            self._close(path, "local-close")
        self._dissolve()

    def _dissolve(self) -> None:
        """Give back whatever is still held; safe whatever has or has not happened before."""
        if self.gone:
            return
        self.gone = True
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        if self._further is not None:  # it holds us, and we hold it no more
            self._further.close_all()
            self._further = None
        if self._lease is not None:
            self.hub.leases.release(self._lease.addresses, self._owner, self.hub.now())
        if self._opened and self.session_id is not None:
            self.hub.plane.unwatch_session(self.session_id)
            with suppress(KeyError):
                self.hub.core.session_close(self.session_id)
        self.hub.left(self)

    def describe(self) -> dict[str, Any]:
        """The client in a log line."""
        lease = self.session.lease
        tsid = self.session.tsid
        return {
            "tsid": None if tsid is None else f"{tsid:016x}",
            "identity": None if self.identity is None else self.identity.name,
            "inner": [] if lease is None else [str(address) for address in lease.addresses],
            "outer": _endpoint(self.outer),
            "interface": self.offer.name,
        }

    def describe_coding(self) -> dict[str, object]:
        """Redundancy, FEC and header compression, for the status."""
        return self._coded().describe() if self._opened else {}

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        """Its inner addresses."""
        return () if self._lease is None else self._lease.addresses

    @property
    def state(self) -> State:
        return self.session.state


def _endpoint(address: SocketAddress) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _flow(flow: Flow) -> dict[str, Any]:
    far = None if flow.far is None else (str(flow.far[0]), flow.far[1])
    return {"protocol": int(flow.protocol), "port": flow.port, "ipv6": flow.ipv6, "far": far}


_HANDLERS: Final[dict[type, Callable[[Peer, Any], None]]] = {
    a.Send: Peer._send,
    a.Authenticate: Peer._authenticate,
    a.Allocate: Peer._allocate,
    a.ReleaseLease: Peer._release_lease,
    a.OpenSession: Peer._open_session,
    a.AttachStream: Peer._attach_stream,
    a.ReserveDatagram: Peer._reserve,
    a.UnreserveDatagram: Peer._unreserve,
    a.AttachDatagram: Peer._attach_datagram,
    a.SetCoding: Peer._set_coding,
    a.SendExtra: lambda self, action: self.further.send(action),
    a.ReserveExtra: lambda self, action: self.further.reserve(action),
    a.UnreserveExtra: lambda self, action: self.further.unreserve(action),
    a.AttachExtra: lambda self, action: self.further.attach(action),
    a.UseExtra: lambda self, action: self.further.use(action),
    a.CloseExtra: lambda self, action: self.further.close(action),
    a.SetSpread: Peer._set_spread,
    a.SetNagle: Peer._set_nagle,
    a.Steer: Peer._steer,
    a.Unsteer: Peer._unsteer,
    a.CloseTunnel: Peer._close_tunnel,
    a.Notify: Peer._notify,
    a.SessionClosed: Peer._closed,
}
"""Every action a server's session can ask for."""
