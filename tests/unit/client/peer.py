"""The other end for client tests: real TLS and DTLS on 127.0.0.1, the server half of the protocol, an echo.

``Peer`` is the smallest thing that can hold a conversation: user plane, server sessions, fixed leases.
``Wire`` stands between client and peer and can lose UDP, or cut TCP, on one port number.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from opentsm.admin.certificates import Issued, create_authority, issue_server
from opentsm.errors import RemoteProtocolError
from opentsm.protocol import actions as a
from opentsm.protocol.resume import resume_secret
from opentsm.protocol.server import Entropy, ServerSession, ServerSettings, peek_resume
from opentsm.server.judging import Downlink
from opentsm.types import Code, Path, Service, Tsid
from opentsm.userplane._core import ControlMessage, DatagramReady, StreamReady, TunnelClosed
from opentsm.userplane.plane import Plane, TunnelEvent
from opentsm.userplane.readings import reading
from opentsm.wire.codec import decode_untrusted, encode

GATEWAY = "10.99.0.1"
ECHO_PORT = 7
PASSWORD = "open sesame"
_YESTERDAY = datetime.now(UTC) - timedelta(days=1)
_SESSIONS = itertools.count(1)


def make_authority(name: str = "Test CA") -> Issued:
    return create_authority(_YESTERDAY, name=name)


class Client:
    """One client of the peer: its session, its tunnels, its timer."""

    def __init__(self, peer: Peer, ready: StreamReady) -> None:
        self.peer = peer
        self.session = ServerSession(peer.settings, entropy=peer.entropy)
        self.number = next(_SESSIONS)
        self.tunnels: dict[Path, int] = {}
        self.downlink = Downlink()
        self._timer: asyncio.TimerHandle | None = None
        self.take(ready)
        self.session.stream_ready(peer.now(), binding=ready.resume_binding, peer=ready.peer)
        self.settle()

    def take(self, ready: StreamReady) -> None:
        self.tunnels[Path.STREAM] = ready.tunnel
        on_event = functools.partial(self.on_event, Path.STREAM, ready)
        self.peer.plane.watch_tunnel(ready.tunnel, on_event)

    def on_event(self, path: Path, ready: StreamReady | DatagramReady, event: TunnelEvent) -> None:
        if self.tunnels.get(path) != event.tunnel:
            return
        now = self.peer.now()
        if isinstance(event, ControlMessage):
            self._receive(path, ready, event.data, now)
        elif isinstance(event, TunnelClosed):
            del self.tunnels[path]
            self.session.path_lost(path, event.reason, now)
        self.settle()

    def _receive(self, path: Path, ready: StreamReady | DatagramReady, data: bytes, now: float) -> None:
        with suppress(RemoteProtocolError):
            message = decode_untrusted(data)
            self.peer.heard.append(message)
            tsid = peek_resume(message)
            older = self.peer.clients.get(tsid) if tsid is not None else None
            if older is not None and isinstance(ready, StreamReady):
                assert older.session.verify_resume(message, ready.resume_binding)
                older.take(ready)
                older.session.resume(message, now, binding=ready.resume_binding, peer=ready.peer)
                older.settle()
                self.tunnels.clear()
            else:
                self.session.receive(path, message, now)

    def on_datagram(self, event: DatagramReady) -> None:
        self.tunnels[Path.DATAGRAM] = event.tunnel
        self.peer.plane.watch_tunnel(event.tunnel, functools.partial(self.on_event, Path.DATAGRAM, event))
        self.session.datagram_ready(Tsid(event.tsid), self.peer.now())
        self.settle()

    def tick(self) -> None:
        self.session.tick(self.peer.now())
        self.settle()

    def settle(self) -> None:
        while actions := self.session.actions():
            for action in actions:
                getattr(self, "do_" + type(action).__name__.lower())(action)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.session.deadline()
        self._timer = self.peer.loop.call_at(deadline.at, self.tick) if deadline else None

    def do_send(self, action: a.Send) -> None:
        if action.path in self.tunnels:
            self.peer.plane.core.send_control(self.tunnels[action.path], encode(action.message))

    def do_authenticate(self, action: a.Authenticate) -> None:
        wanted = self.peer.password
        if wanted is None or action.password == wanted.encode():
            self.session.authenticated("somebody", self.peer.now())
        else:
            self.session.authentication_failed(Code.UNAUTHORIZED, self.peer.now(), text="who are you?")

    def do_allocate(self, action: a.Allocate) -> None:
        if self.peer.refuse is not None:
            self.session.lease_refused(self.peer.refuse, self.peer.now())
        else:
            address = IPv4Address(GATEWAY) + next(self.peer.hosts)
            self.session.leased(a.Lease(IPv4Interface(f"{address}/24")), self.peer.now())

    def do_opensession(self, action: a.OpenSession) -> None:
        addresses = [str(address) for address in action.addresses]
        self.peer.plane.core.session_open(self.number, role="server", addresses=addresses)
        self.peer.plane.watch_session(self.number, self.on_datagram)

    def do_attachstream(self, action: a.AttachStream) -> None:
        self.peer.clients[action.tsid] = self
        self.peer.plane.core.attach(self.number, self.tunnels[Path.STREAM], action.tsid)

    def do_reservedatagram(self, action: a.ReserveDatagram) -> None:
        stream, lifetime = self.tunnels[Path.STREAM], round(action.lifetime * 1000)
        self.peer.plane.core.reserve(stream=stream, tsid=action.tsid, lifetime_ms=lifetime)

    def do_unreservedatagram(self, action: a.UnreserveDatagram) -> None:
        self.peer.plane.core.unreserve(action.tsid)

    def do_attachdatagram(self, action: a.AttachDatagram) -> None:
        self.peer.plane.core.attach(self.number, self.tunnels[Path.DATAGRAM], action.tsid)

    def do_steer(self, action: a.Steer) -> None:
        flow = action.flow
        self.peer.plane.core.steer(
            self.number, protocol=int(flow.protocol), port=flow.port, ipv6=flow.ipv6, mode=int(action.mode)
        )

    def do_unsteer(self, action: a.Unsteer) -> None:
        flow = action.flow
        self.peer.plane.core.unsteer(self.number, protocol=int(flow.protocol), port=flow.port, ipv6=flow.ipv6)

    def do_closetunnel(self, action: a.CloseTunnel) -> None:
        tunnel = self.tunnels.pop(action.path, None)
        if tunnel is not None:
            self.peer.plane.core.close(tunnel, reason=action.reason)

    def do_notify(self, action: a.Notify) -> None:
        self.peer.events.append(action.event)
        if isinstance(action.event, a.QualityReported) and self.session.judges:
            self._answer_report(action.event)

    def _answer_report(self, event: a.QualityReported) -> None:
        stats = self.peer.plane.core.tunnel_stats
        readings = {path: reading(path, stats(tunnel)) for path, tunnel in self.tunnels.items()}
        now = self.peer.now()
        decision, reports = self.downlink.heard(now, event.reports, readings, path=event.path)
        self.session.use_path(decision.path, now, str(decision))
        told = decision.told() if decision.moved else None
        self.session.send_quality(reports, now, decision=told, path=event.path)

    def do_releaselease(self, action: a.ReleaseLease) -> None:
        pass

    def do_sessionclosed(self, action: a.SessionClosed) -> None:
        self.peer.plane.unwatch_session(self.number)
        with suppress(KeyError):  # one that never had a lease
            self.peer.plane.core.session_close(self.number)
        for tsid in [tsid for tsid, client in self.peer.clients.items() if client is self]:
            del self.peer.clients[tsid]


class Peer:
    """A server for tests.

    Args:
        certificate: chain and key; None: plain TCP and UDP.

    Attributes:
        clients: by TSID. events: what the sessions told. heard: control messages received.
        refuse: answer to every wish for an address. password: None lets everybody in.
    """

    def __init__(self, certificate: Issued | None, *, services: frozenset[Service]) -> None:
        self.plane = Plane()
        self.loop = asyncio.get_running_loop()
        self.settings = ServerSettings(services=services, keepalive=5.0)
        self.entropy = Entropy(
            tsid=lambda: Tsid(int.from_bytes(os.urandom(7), "big") + 1),
            secret=functools.partial(resume_secret, os.urandom(32)),
        )
        self.clients: dict[Tsid, Client] = {}
        self.events: list[a.SessionEvent] = []
        self.heard: list[Any] = []
        self.hosts = itertools.count(10)
        self.password: str | None = None
        self.refuse: Code | None = None
        self.echoed = 0
        self.port = 0
        self._certificate = certificate
        self._listeners: list[int] = []

    def now(self) -> float:
        return self.loop.time()

    def start(self) -> None:
        self.plane.start()
        self.plane.core.route_local(GATEWAY)
        echo, _ = self.plane.core.udp_open(session=None, address=GATEWAY, port=ECHO_PORT, queue=4096)

        def answer(data: bytes, source: tuple[str, int], path: int) -> None:
            self.echoed += 1
            self.plane.core.udp_send(echo, data, *source)

        self.plane.watch_socket(echo, answer)
        self.listen()

    def listen(self) -> None:
        """Open the port: TCP and UDP, the same number."""
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", self.port))
        tcp.listen(64)
        self.port = tcp.getsockname()[1]
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        udp.bind(("127.0.0.1", self.port))
        core = self.plane.core
        profile = None
        if self._certificate is not None:
            profile = core.server_tls(
                chain_pem=self._certificate.chain_pem, key_pem=self._certificate.key_pem
            )
        stream = core.listen_stream([tcp.detach()], tls_profile=profile)
        self.plane.watch_listener(stream, self._accept)
        self._listeners = [stream, core.listen_datagram([udp.detach()], dtls=profile is not None)]

    def _accept(self, ready: StreamReady) -> None:
        Client(self, ready)

    def vanish(self) -> None:
        """The process is gone as far as anybody can see: no listener, every connection closed."""
        for listener in self._listeners:
            self.plane.core.unlisten(listener)
        for client in self.clients.values():
            for tunnel in client.tunnels.values():
                self.plane.core.close(tunnel, reason="shutdown")

    def forget(self) -> None:
        """Sessions are lost, as by a server without a memory."""
        for client in list(self.clients.values()):
            client.session.terminate(Code.SHUTTING_DOWN, self.now())
            client.settle()
        self.clients.clear()

    async def stop(self) -> None:
        for client in self.clients.values():
            if client._timer is not None:
                client._timer.cancel()
        await self.plane.close(flush=0.1)

    @property
    def url(self) -> str:
        return f"{'tcp' if self._certificate is None else 'tls'}://127.0.0.1:{self.port}"


class Wire:
    """A relay of TCP and UDP on one port number, with a switch for UDP."""

    def __init__(self, port: int) -> None:
        self.udp_blocked = False
        self.udp_carried = 0
        self.port = 0
        self._target = ("127.0.0.1", port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._udp: dict[Any, asyncio.DatagramTransport] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._carry_tcp, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        near = _Relay(self._from_client)
        self._near, _ = await loop.create_datagram_endpoint(lambda: near, local_addr=("127.0.0.1", self.port))

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._near.close()
        for far in self._udp.values():
            far.close()
        await asyncio.sleep(0)

    async def _carry_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, far_writer}
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    def _from_client(self, data: bytes, client: Any) -> None:
        if self.udp_blocked:
            return
        self.udp_carried += 1
        far = self._udp.get(client)
        if far is None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(self._target)
            back = _Relay(lambda answer, _: None if self.udp_blocked else self._near.sendto(answer, client))
            task = asyncio.get_running_loop().create_task(self._open(sock, back, client, data))
            task.add_done_callback(lambda done: done.result())
        else:
            far.sendto(data)

    async def _open(self, sock: socket.socket, back: _Relay, client: Any, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._udp[client], _ = await loop.create_datagram_endpoint(lambda: back, sock=sock)
        self._udp[client].sendto(first)


class _Relay(asyncio.DatagramProtocol):
    def __init__(self, carry: Callable[[bytes, Any], None]) -> None:
        self._carry = carry

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._carry(data, addr)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def until(condition: Callable[[], bool], *, patience: float = 30.0) -> None:
    """Wait for what nobody announces. ``patience`` is a guard against a test that hangs."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(patience):
        while not condition():
            look_again = asyncio.Event()
            loop.call_later(0.005, look_again.set)
            await look_again.wait()


@asynccontextmanager
async def running_peer(
    certificate: Issued | None, services: frozenset[Service] = frozenset({Service.DDT})
) -> AsyncIterator[Peer]:
    """A peer that is listening."""
    peer = Peer(certificate, services=services)
    peer.start()
    try:
        yield peer
    finally:
        await peer.stop()


@asynccontextmanager
async def running_wire(peer: Peer) -> AsyncIterator[Wire]:
    """A wire to this peer."""
    wire = Wire(peer.port)
    await wire.start()
    try:
        yield wire
    finally:
        await wire.stop()


def server_certificate(authority: Issued, address: str = "127.0.0.1") -> Issued:
    """A certificate for 127.0.0.1, or another address."""
    return issue_server(authority, _YESTERDAY, names=[], addresses=[IPv4Address(address)])
