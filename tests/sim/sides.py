"""The owners of the two halves: they carry actions out against the small user plane and the network."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from opentsm.limits import KEEPALIVE_TIMER_STREAM, MAX_STREAMS
from opentsm.protocol import actions as a
from opentsm.protocol.client import ClientSession, ClientSettings
from opentsm.protocol.resume import resume_secret
from opentsm.protocol.server import Entropy, Kept, ServerSession, ServerSettings, peek_resume
from opentsm.protocol.server_streams import peek_join
from opentsm.protocol.states import Client, Server
from opentsm.types import Flow, Path, Tsid
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import AddressFamilies, Message
from tests.sim.network import Clock, Tunnel, Weather
from tests.sim.plane import PROBE_INTERVAL, SILENT_AFTER, Media, Numbered, Plane, Probe

TICKS_AT_ONE_INSTANT = 50
HANDSHAKE_GIVES_UP = 7.0
SILENT_STREAM = 4.0


class Owner:
    """What both owners share: the drain loop, the timer, tunnels, probes."""

    def __init__(self, clock: Clock, session: ClientSession | ServerSession, side: int) -> None:
        self.clock = clock
        self.session: Any = session
        self.plane = Plane(side)
        self.events: list[Any] = []
        self.messages = 0
        self.closed: str | None = None
        self._timer = 0
        self._ticks = (0.0, 0)

    def settle(self) -> None:
        """Carry out what there is to do, then arm the one timer."""
        while actions := self.session.actions():
            for action in actions:
                assert self.closed is None, f"{action} after SessionClosed"
                getattr(self, "do_" + type(action).__name__)(action)
        self._timer += 1
        deadline, mine = self.session.deadline(), self._timer
        if deadline is not None:
            self.clock.at(deadline.at, lambda: self._tick(mine))

    def _tick(self, mine: int) -> None:
        if mine != self._timer:
            return
        at, count = self._ticks
        self._ticks = (self.clock.now, count + 1 if at == self.clock.now else 1)
        assert self._ticks[1] < TICKS_AT_ONE_INSTANT, "the session's deadline does not move on"
        self.session.tick(self.clock.now)
        self.settle()

    def arrived(self, tunnel: Tunnel, item: Any) -> None:
        if isinstance(item, Media | Numbered):
            self.plane.take(tunnel, item)
        elif isinstance(item, Probe):
            self._probed(tunnel, item)
        elif self.plane.tunnels.get(tunnel.path) is tunnel:
            self.session.receive(tunnel.path, decode_untrusted(item), self.clock.now)
            self.settle()
        elif tunnel.tsid is not None and self.plane.extras.get(tunnel.tsid) is tunnel:
            self.session.streams.receive(tunnel.tsid, decode_untrusted(item), self.clock.now)
            self.settle()

    def ended(self, tunnel: Tunnel, reason: str) -> None:
        self.plane.detach(tunnel)
        if self.plane.tunnels.get(tunnel.path) is tunnel:
            del self.plane.tunnels[tunnel.path]
            self.session.path_lost(tunnel.path, reason, self.clock.now)
            self.settle()
        elif tunnel.tsid is not None and self.plane.extras.get(tunnel.tsid) is tunnel:
            del self.plane.extras[tunnel.tsid]
            self.session.streams.lost(tunnel.tsid, reason, self.clock.now)
            self.settle()

    # -- probes of the datagram tunnel, as the user plane makes them -------------------------------------

    def _watch(self, tunnel: Tunnel) -> None:
        self.plane.echo_at, self.plane.silent = self.clock.now, False
        self._probe(tunnel)

    def _probe(self, tunnel: Tunnel) -> None:
        if self.plane.usable(Path.DATAGRAM) is not tunnel:
            return
        tunnel.send(self.plane.side, Probe())
        if not self.plane.silent and self.clock.now - self.plane.echo_at > SILENT_AFTER:
            self.plane.silent = True
            self.session.path_silent(Path.DATAGRAM, self.clock.now)
            self.settle()
        self.clock.after(PROBE_INTERVAL, lambda: self._probe(tunnel))

    def _probed(self, tunnel: Tunnel, probe: Probe) -> None:
        if not probe.echo:
            tunnel.send(self.plane.side, Probe(echo=True))
        elif self.plane.usable(Path.DATAGRAM) is tunnel:
            self.plane.echo_at = self.clock.now
            if self.plane.silent:
                self.plane.silent = False
                self.session.path_alive(Path.DATAGRAM, self.clock.now)
                self.settle()

    # -- actions ----------------------------------------------------------------------------------------

    def do_Send(self, action: a.Send) -> None:
        self.messages += 1
        tunnel = self.plane.tunnels.get(action.path)
        if tunnel is not None:
            tunnel.send(self.plane.side, encode(action.message))

    def do_OpenSession(self, action: a.OpenSession) -> None:
        assert not self.plane.extras, "further streams outlive the session they were of"
        if self.plane.addresses:  # other addresses: the old user-plane session goes, with rows and tunnels
            kept = self.plane.tunnels.pop(Path.STREAM)
            self.plane.clear()
            self.plane.tunnels[Path.STREAM] = kept
        self.plane.addresses = action.addresses

    def do_AttachStream(self, action: a.AttachStream) -> None:
        self.plane.attach(Path.STREAM)

    def do_AttachDatagram(self, action: a.AttachDatagram) -> None:
        self.plane.attach(Path.DATAGRAM)
        self._watch(self.plane.tunnels[Path.DATAGRAM])

    def do_SendExtra(self, action: a.SendExtra) -> None:
        self.messages += 1
        tunnel = self.plane.extras.get(action.tsid)
        if tunnel is not None:
            tunnel.send(self.plane.side, encode(action.message))

    def do_AttachExtra(self, action: a.AttachExtra) -> None:
        if (tunnel := self.plane.extras.get(action.tsid)) is not None:
            self.plane.attached.add(tunnel)

    def do_UseExtra(self, action: a.UseExtra) -> None:
        tunnel = self.plane.extras.get(action.tsid)
        if tunnel is None:
            return
        if tunnel in self.plane.used:
            self.plane.used.remove(tunnel)
        if action.used:
            assert len(self.plane.used) < MAX_STREAMS - 1, "more streams than may be"
            self.plane.used.append(tunnel)

    def do_CloseExtra(self, action: a.CloseExtra) -> None:
        tunnel = self.plane.extras.pop(action.tsid, None)
        if tunnel is not None:
            self.plane.detach(tunnel)
            tunnel.close(self.plane.side, "peer-closed")

    def do_SetCoding(self, action: a.SetCoding) -> None:
        """What datagrams hold besides their packet is no affair of this user plane."""

    def do_SetSpread(self, action: a.SetSpread) -> None:
        self.plane.spread = action.spread

    def do_Steer(self, action: a.Steer) -> None:
        self.plane.rows[action.flow] = action.mode

    def do_Unsteer(self, action: a.Unsteer) -> None:
        assert action.flow in self.plane.rows, "a row is removed that was never there"
        del self.plane.rows[action.flow]

    def do_CloseTunnel(self, action: a.CloseTunnel) -> None:
        tunnel = self.plane.tunnels.pop(action.path, None)
        if tunnel is not None:
            self.plane.detach(tunnel)
            tunnel.close(self.plane.side, "peer-closed")

    def do_Notify(self, action: a.Notify) -> None:
        self.events.append(action.event)

    def do_SessionClosed(self, action: a.SessionClosed) -> None:
        self.closed = action.reason
        self.plane.clear()

    def seen(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class ClientOwner(Owner):
    def __init__(self, world: World, settings: ClientSettings) -> None:
        self.world = world
        super().__init__(world.clock, ClientSession(settings, fraction=world.random.random), 0)
        self.session: ClientSession
        self.opened = 0
        self.reconnects = 0

    def connect(self) -> None:
        world = self.world
        if self.closed is not None:
            return
        if world.weather.down:
            self.session.connect_failed("refused", world.clock.now)
            self.settle()
            return
        tunnel = Tunnel(Path.STREAM, world.clock, world.random, world.weather, [self, None])
        tunnel.binding = world.random.randbytes(32)
        self.plane.tunnels[Path.STREAM] = tunnel
        tunnel.ends[1] = world.server.accept(tunnel)
        self.session.stream_ready(world.clock.now, binding=tunnel.binding)
        self.settle()

    def do_Reconnect(self, action: a.Reconnect) -> None:
        self.reconnects += 1
        assert action.after < 4000
        turn = self.reconnects
        self.clock.after(action.after, lambda: self.connect() if turn == self.reconnects else None)

    def do_OpenDatagram(self, action: a.OpenDatagram) -> None:
        self.opened += 1
        world = self.world
        tunnel = Tunnel(Path.DATAGRAM, world.clock, world.random, world.weather, [self, None], action.tsid)
        self.plane.tunnels[Path.DATAGRAM] = tunnel
        delay = world.random.uniform(*world.weather.delay) * 2
        if world.weather.blocked or world.random.random() < world.weather.loss:
            self.clock.after(HANDSHAKE_GIVES_UP, lambda: self._give_up(tunnel))
        else:
            self.clock.after(delay, lambda: self._server_finished(tunnel, delay))

    def do_OpenExtra(self, action: a.OpenExtra) -> None:
        self.opened += 1
        world, tsid = self.world, action.tsid
        delay = world.random.uniform(*world.weather.delay) * 4
        if world.weather.down:
            self.clock.after(delay, lambda: self._no_extra(tsid))
            return
        tunnel = Tunnel(Path.STREAM, world.clock, world.random, world.weather, [self, None], tsid)
        tunnel.binding = world.random.randbytes(32)
        self.plane.extras[tsid] = tunnel
        self.clock.after(delay, lambda: self._extra_connected(tunnel, tsid))

    def _no_extra(self, tsid: Tsid) -> None:
        self.session.streams.lost(tsid, "unreachable", self.clock.now)
        self.settle()

    def _extra_connected(self, tunnel: Tunnel, tsid: Tsid) -> None:
        if self.plane.extras.get(tsid) is not tunnel or not tunnel.alive[0]:
            return
        tunnel.ends[1] = self.world.server.accept(tunnel)
        if not self.session.streams.ready(tsid, self.clock.now, tunnel.binding):
            del self.plane.extras[tsid]
            tunnel.close(0)
        self.settle()

    def _give_up(self, tunnel: Tunnel) -> None:
        tunnel.close(0)
        self.ended(tunnel, "timeout")

    def _server_finished(self, tunnel: Tunnel, delay: float) -> None:
        if tunnel.alive[0] and self.world.server.datagram_arrived(tunnel):
            self.clock.after(delay / 2, lambda: self._finished(tunnel))
        elif tunnel.alive[0]:  # nobody answers: DTLS drops an identity it does not know
            self.clock.after(HANDSHAKE_GIVES_UP, lambda: self._give_up(tunnel))

    def _finished(self, tunnel: Tunnel) -> None:
        if tunnel.alive[0] and self.plane.tunnels.get(Path.DATAGRAM) is tunnel:
            assert tunnel.tsid is not None
            if not self.session.datagram_ready(tunnel.tsid, self.clock.now):
                tunnel.close(0)
            self.settle()


class ServerOwner(Owner):
    """The owner of one session on the server."""

    def __init__(self, server: ServerModel, tunnel: Tunnel | None, kept: Kept | None = None) -> None:
        self.server = server
        settings, now = server.settings, server.world.clock.now
        if kept is None:
            session = ServerSession(settings, entropy=server.entropy)
        else:
            session = ServerSession.restored(settings, kept, now, entropy=server.entropy)
        super().__init__(server.world.clock, session, 1)
        self.session: ServerSession
        self._fresh = tunnel is not None
        if tunnel is not None:
            self.plane.tunnels[Path.STREAM] = tunnel
            session.stream_ready(now, binding=tunnel.binding, peer=("192.0.2.9", 5000))
        self.settle()

    def arrived(self, tunnel: Tunnel, item: Any) -> None:
        if self._fresh and isinstance(item, bytes):
            self._fresh = False
            message = decode_untrusted(item)
            if self._joins(tunnel, message):
                return
            tsid = peek_resume(message)
            old = self.server.find(tsid) if tsid is not None else None
            if old is not None and old.session.verify_resume(message, tunnel.binding):
                self.server.owners.remove(self)
                self.closed = "handed over"
                self._timer += 1
                tunnel.ends[1] = old
                old.plane.tunnels[Path.STREAM] = tunnel
                old.session.resume(message, self.clock.now, binding=tunnel.binding, peer=("192.0.2.9", 5001))
                old.settle()
                return
        super().arrived(tunnel, item)

    def do_Notify(self, action: a.Notify) -> None:
        super().do_Notify(action)
        kept = self.session.kept
        if isinstance(action.event, a.Configured | a.Resumed) and kept is not None:
            self.server.write(kept.tsid, kept)
        elif isinstance(action.event, a.Terminated) and self.session.tsid is not None:
            self.server.write(self.session.tsid, None)

    def _joins(self, tunnel: Tunnel, message: Message) -> bool:
        """Whether the first message made this stream a further one of a session."""
        tsid = peek_join(message)
        old = None if tsid is None else self.server.joins.get(tsid)
        if tsid is None or old is None or not old.session.verify_join(message, tunnel.binding):
            return False
        self.server.owners.remove(self)
        self.closed = "handed over"
        self._timer += 1
        tunnel.ends[1] = old
        old.plane.extras[tsid] = tunnel
        old.session.join(message, self.clock.now)
        old.settle()
        return True

    def do_ReserveExtra(self, action: a.ReserveExtra) -> None:
        self.server.joins[action.tsid] = self

    def do_UnreserveExtra(self, action: a.UnreserveExtra) -> None:
        del self.server.joins[action.tsid]

    def idle(self, tunnel: Tunnel) -> None:
        """The user plane has heard nothing on this stream for its keepalive-timer."""
        if self.plane.tunnels.get(Path.STREAM) is tunnel and self.closed is None:
            self.session.path_idle(Path.STREAM, self.clock.now)
            self.settle()

    def do_Authenticate(self, action: a.Authenticate) -> None:
        delay = self.server.world.random.uniform(0, 0.1)
        self.clock.after(delay, lambda: self._answer("authenticated", "alice"))

    def do_Allocate(self, action: a.Allocate) -> None:
        lease = self.server.allocate(action.families)
        self.clock.after(0.001, lambda: self._answer("leased", lease))

    def _answer(self, method: str, value: Any) -> None:
        if self.closed == "killed":
            return
        getattr(self.session, method)(value, self.clock.now)
        if self.closed is None:
            self.settle()
        else:
            for action in self.session.actions():
                assert isinstance(action, a.ReleaseLease)
                self.do_ReleaseLease(action)

    def do_ReleaseLease(self, action: a.ReleaseLease) -> None:
        self.server.leased.remove(action.lease)

    def do_ReserveDatagram(self, action: a.ReserveDatagram) -> None:
        self.server.reserved[action.tsid] = self
        self.clock.after(action.lifetime, lambda: self.do_UnreserveDatagram(a.UnreserveDatagram(action.tsid)))

    def do_UnreserveDatagram(self, action: a.UnreserveDatagram) -> None:
        self.server.reserved.pop(action.tsid, None)

    def do_SessionClosed(self, action: a.SessionClosed) -> None:
        super().do_SessionClosed(action)
        if self in self.server.owners:
            self.server.owners.remove(self)


@dataclass
class ServerModel:
    """All sessions of a server, its pool, its reservations."""

    world: World
    settings: ServerSettings
    owners: list[ServerOwner] = field(default_factory=list)
    reserved: dict[Tsid, ServerOwner] = field(default_factory=dict)
    joins: dict[Tsid, ServerOwner] = field(default_factory=dict)
    leased: list[a.Lease] = field(default_factory=list)
    addresses: int = 0
    master: bytes = b"m" * 32
    pool: int = 10_000
    lag: float = 0.005
    saved: dict[Tsid, Kept] = field(default_factory=dict)
    lives: int = 1

    @property
    def entropy(self) -> Entropy:
        chance = self.world.random
        return Entropy(
            tsid=lambda: Tsid(chance.getrandbits(63)), secret=functools.partial(resume_secret, self.master)
        )

    def write(self, tsid: Tsid, kept: Kept | None) -> None:
        """The store's thread writes a moment later, unless the process has died until then."""
        life = self.lives

        def commit() -> None:
            if life != self.lives:
                return
            if kept is None:
                self.saved.pop(tsid, None)
            else:
                self.saved[tsid] = kept

        self.world.clock.after(self.lag, commit)

    def accept(self, tunnel: Tunnel) -> ServerOwner:
        owner = ServerOwner(self, tunnel)
        self.owners.append(owner)
        return owner

    def find(self, tsid: Tsid) -> ServerOwner | None:
        return next((o for o in self.owners if o.session.tsid == tsid), None)

    def allocate(self, families: AddressFamilies) -> a.Lease:
        used = {lease.ipv4 for lease in self.leased}
        while True:
            self.addresses = self.addresses % self.pool + 1
            ipv4 = IPv4Interface(f"10.0.{self.addresses // 250}.{1 + self.addresses % 250}/16")
            if ipv4 not in used:
                break
        lease = a.Lease(ipv4, IPv6Interface(f"fd00::{self.addresses:x}/64"))
        self.leased.append(lease)
        return lease

    def datagram_arrived(self, tunnel: Tunnel) -> bool:
        """The server's end of a DTLS handshake: only a reserved TSID has a key."""
        assert tunnel.tsid is not None
        owner = self.reserved.pop(tunnel.tsid, None)
        if owner is None or owner.closed is not None:
            return False
        tunnel.ends[1] = owner
        if not owner.session.datagram_ready(tunnel.tsid, self.world.clock.now):
            tunnel.close(1)
            return True
        owner.plane.tunnels[Path.DATAGRAM] = tunnel
        owner.settle()
        return True

    def restart(self, *, store: bool = False) -> None:
        """The process dies and comes back with an empty memory, or with what the store has of it."""
        self.lives += 1
        self.settings = dataclasses.replace(self.settings, epoch=self.lives)
        owners, self.owners = self.owners, []
        self.reserved.clear()
        self.joins.clear()
        self.leased.clear()
        for owner in owners:
            owner.closed = "killed"
            owner._timer += 1
            for tunnel in [*owner.plane.tunnels.values(), *owner.plane.extras.values()]:
                tunnel.close(1, "reset")
        if not store:
            self.saved.clear()
        for kept in list(self.saved.values()):
            self.leased.append(kept.lease)
            self.owners.append(ServerOwner(self, None, kept))


class World:
    """One client, one server, one network, one clock."""

    def __init__(
        self,
        seed: int = 0,
        *,
        settings: ServerSettings,
        weather: Weather | None = None,
        client: ClientSettings | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.chosen: dict[Flow, Path] = {}
        self.whole = False
        self.downlink = Path.STREAM
        self.clock = Clock()
        self.weather = weather or Weather()
        self.server = ServerModel(self, settings)
        self.client = ClientOwner(self, client or ClientSettings(client_id=b"sim", username="alice"))

    def connect(self) -> ServerOwner:
        self.client.connect()
        self.clock.run(2.0)
        assert self.client.session.state is Client.ACTIVE
        return self.peer

    @property
    def peer(self) -> ServerOwner:
        """The server's side of the client's session."""
        configuration = self.client.session.configuration
        assert configuration is not None
        owner = self.server.find(configuration.tsid)
        assert owner is not None
        return owner

    def act(self, method: str, *args: Any) -> None:
        """An application call on the client."""
        getattr(self.client.session, method)(*args, self.clock.now)
        self.client.settle()

    def cut(self, *, server_knows: bool = True) -> None:
        tunnel = self.client.plane.tunnels.get(Path.STREAM)
        if tunnel is not None:
            tunnel.cut(server_knows=server_knows)
            if not server_knows:
                self.clock.after(KEEPALIVE_TIMER_STREAM, lambda: self.idle(tunnel))

    def cut_extra(self) -> None:
        """One further stream breaks, on both sides."""
        extras = list(self.client.plane.extras.values())
        if extras:
            self.random.choice(extras).cut(server_knows=True)

    def idle(self, tunnel: Tunnel) -> None:
        """The server's user plane reports silence to whoever has this stream by now."""
        owner = tunnel.ends[1]
        if isinstance(owner, ServerOwner):
            owner.idle(tunnel)

    def roam(self, client: ClientOwner, *, works: bool, lost: bool) -> None:
        """A client's machine comes into another network.

        Args:
            works: the old one still carries what is sent there. lost: the machine has lost its old address.
        """
        tunnels = list(client.plane.tunnels.values())
        if not works:
            for tunnel in tunnels:
                self.swallow(client, tunnel)
        client.session.network_changed(self.clock.now, lost=lost)
        client.settle()

    def swallow(self, client: ClientOwner, tunnel: Tunnel) -> None:
        """A tunnel goes dead without a word; probes find out, the server's much later."""
        tunnel.swallow()
        if tunnel.path is Path.STREAM:
            self.clock.after(SILENT_STREAM, lambda: self._silent(client, tunnel))
            self.clock.after(KEEPALIVE_TIMER_STREAM, lambda: self.idle(tunnel))

    def _silent(self, client: ClientOwner, tunnel: Tunnel) -> None:
        if client.plane.tunnels.get(Path.STREAM) is tunnel and client.closed is None:
            client.session.path_silent(Path.STREAM, self.clock.now)
            client.settle()

    def counts(self) -> Counter[str]:
        total = Counter(self.client.session.counts)
        for owner in self.server.owners:
            total.update(owner.session.counts)
        return total

    def live_sessions(self) -> list[ServerOwner]:
        return [o for o in self.server.owners if o.session.state is Server.ACTIVE]
