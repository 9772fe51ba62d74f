"""A server on loopback and raw clients for it: the pure client half on a user plane of its own, no SDK.

A client that has lost its stream comes back only when the test says so (``redial``).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any, Final

from opentsm.admin import certificates
from opentsm.config import Settings, loads
from opentsm.protocol import actions as a
from opentsm.protocol.client import ClientSession, ClientSettings
from opentsm.protocol.states import Client as State
from opentsm.server import Server
from opentsm.types import Path, Transport, Tsid
from opentsm.userplane import Plane
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
from opentsm.wire.codec import decode_untrusted, encode
from opentsm.wire.messages import AddressFamilies, Message

GUARD: Final = 20.0
"""Seconds a condition may take before the test gives up: ten times what the slowest honest one takes."""

_sessions = itertools.count(1)

CONFIGURATION: Final = """\
[server]
admin-socket = ""

[timers]
keepalive-timer = 300
tunnel-persistence-time = 60

[authentication]
{authentication}

[realm.core]
core = "userspace"
addresses = ["10.64.0.1/16", "fd00:64::1/64"]
{realm}

[tls-profile.main]
certificate = "{folder}/server.pem"
key = "{folder}/server.key"
{tls}

[tscf-port.v4]
address = "127.0.0.1"
port = 0
tls-profile = "main"

[tscf-address-pool.office]
ranges = ["10.64.1.0/24", "fd00:64:0:0:1::/96"]
{pool}

[tscf-interface.access]
realm = "core"
ports = ["v4"]
address-pools = ["office"]
assigned-services = ["SIP", "DDT"]
{interface}
{more}
"""
ANONYMOUS: Final = "anonymous = true"


def configuration(folder: FilePath, **parts: str) -> str:
    """A configuration text; ``parts`` are lines for the places in CONFIGURATION."""
    places = dict.fromkeys(("realm", "tls", "pool", "interface", "more"), "")
    return CONFIGURATION.format(**{"folder": folder, "authentication": ANONYMOUS, **places, **parts})


def make_certificates(folder: FilePath) -> None:
    """A CA (ca.pem), a server for localhost, and a client called alice."""
    now = datetime.now(UTC)
    authority = certificates.create_authority(now)
    certificates.write(authority, folder, certificates.AUTHORITY_STEM)
    addresses = [ip_address("127.0.0.1"), ip_address("::1")]
    server = certificates.issue_server(authority, now, names=["localhost"], addresses=addresses)
    certificates.write(server, folder, "server")
    certificates.write(certificates.issue_client(authority, now, name="alice"), folder, "alice")


async def until(condition: Callable[[], Any], what: str = "condition") -> None:
    """Wait until something is so; GUARD seconds at most."""
    async with asyncio.timeout(GUARD) as guard:
        try:
            while not condition():  # noqa: ASYNC110 - many conditions live in threads that set no event
                # tree: allow sleep because this is the loop that waits for what must happen
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            assert not guard.expired(), f"waited in vain for: {what}"
            raise


@dataclass
class Seen:
    """What a client has been told, in order."""

    events: list[Any]
    messages: list[Message]
    closed: list[TunnelClosed]

    def last(self, kind: type) -> Any:
        return next((event for event in reversed(self.events) if isinstance(event, kind)), None)


class Client:
    """One TSM client without comfort.

    Args:
        site: where it is.
        settings: who it is.
        transport: of its stream.
    """

    def __init__(
        self,
        site: Site,
        *,
        username: str | None = None,
        password: bytes | None = None,
        families: AddressFamilies = AddressFamilies.BOTH,
        transport: Transport = Transport.TLS,
        profile: int | None = None,
        port: str | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.site = site
        self.core = site.plane.core
        self.transport = transport
        self.seen = Seen([], [], [])
        self.stream: int | None = None
        self.datagram: int | None = None
        self.session_id = next(_sessions)
        self.open = False
        self._host = host
        self._number = site.server.port(port)
        self._profile = profile if profile is not None else site.profile
        settings = ClientSettings(client_id=b"test", username=username, password=password, families=families)
        self.session = ClientSession(settings, fraction=random.random)
        self._timer: asyncio.TimerHandle | None = None

    # -- driving ----------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def dial(self) -> Client:
        """Open the stream."""
        fd = self._connected(socket.SOCK_STREAM)
        profile = self._profile if self.transport.is_secure else None
        self.stream = self.core.attach_stream(fd, tls_profile=profile, server_name="localhost")
        self.site.plane.watch_tunnel(self.stream, self._on_event)
        return self

    async def connect(self) -> Client:
        """Open the stream and wait for the server's answer, whatever it is."""
        self.dial()
        await until(lambda: self.session.state in (State.ACTIVE, State.CLOSED), "an answer")
        return self

    def _connected(self, kind: socket.SocketKind) -> int:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        one = socket.socket(family, kind)
        one.setblocking(False)
        one.connect_ex((self._host, self._number))
        return one.detach()

    def act(self, method: str, *args: Any) -> None:
        """Call an input of the session that takes the time last."""
        getattr(self.session, method)(*args, self.now)
        self._settle()

    def send(self, message: Message, path: Path = Path.STREAM) -> None:
        """Send a message the session would not send."""
        self.send_bytes(encode(message), path)

    def send_bytes(self, data: bytes, path: Path = Path.STREAM) -> None:
        tunnel = self.stream if path is Path.STREAM else self.datagram
        assert tunnel is not None
        assert self.core.send_control(tunnel, data)

    def cut(self) -> None:
        """Lose the stream without a word of the protocol."""
        assert self.stream is not None
        self.core.close(self.stream)

    def redial(self) -> None:
        """Come back with the resume proof."""
        self.dial()

    @property
    def ended(self) -> a.Terminated | None:
        """How the session ended, if it did."""
        found = self.seen.last(a.Terminated)
        assert found is None or isinstance(found, a.Terminated)
        return found

    @property
    def tsid(self) -> Tsid:
        configuration = self.session.configuration
        assert configuration is not None
        return configuration.tsid

    @property
    def inner(self) -> list[str]:
        configuration = self.session.configuration
        assert configuration is not None
        return [str(address) for address in configuration.lease.addresses]

    def _on_event(self, event: TunnelEvent) -> None:
        if isinstance(event, TunnelClosed):
            self.seen.closed.append(event)
        path = {self.stream: Path.STREAM, self.datagram: Path.DATAGRAM}.get(event.tunnel)
        if path is None:
            return
        match event:
            case StreamReady():
                self.session.stream_ready(self.now, binding=event.resume_binding)
            case DatagramReady():
                if not self.session.datagram_ready(Tsid(event.tsid), self.now):
                    self.core.close(event.tunnel)
            case ControlMessage():
                message = decode_untrusted(event.data)
                self.seen.messages.append(message)
                self.session.receive(path, message, self.now)
            case TunnelClosed():
                if path is Path.STREAM:
                    self.stream = None
                else:
                    self.datagram = None
                if path is Path.STREAM and self.session.state is State.CONNECTING:
                    self.session.connect_failed(event.reason, self.now)
                else:
                    self.session.path_lost(path, event.reason, self.now)
            case PathSilent():
                self.session.path_silent(path, self.now)
            case PathAlive():
                self.session.path_alive(path, self.now)
            case TunnelIdle():
                pass
        self._settle()

    def _settle(self) -> None:
        while found := self.session.actions():
            for action in found:
                self._carry_out(action)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.session.deadline()
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline.at, self._tick)

    def _tick(self) -> None:
        self.session.tick(self.now)
        self._settle()

    def _carry_out(self, action: a.Action) -> None:
        match action:
            case a.Send():
                tunnel = self.stream if action.path is Path.STREAM else self.datagram
                if tunnel is not None:
                    self.core.send_control(tunnel, encode(action.message))
            case a.OpenSession():
                if self.open:  # other addresses: the old session goes, with its sockets
                    self.core.session_close(self.session_id)
                    self.session_id = next(_sessions)
                addresses = [str(address) for address in action.addresses]
                self.core.session_open(self.session_id, role="client", addresses=addresses, sink="local")
                self.open = True
            case a.AttachStream():
                assert self.stream is not None
                self.core.attach(self.session_id, self.stream, action.tsid)
            case a.OpenDatagram():
                assert self.stream is not None
                fd = self._connected(socket.SOCK_DGRAM)
                secure = self.transport.is_secure
                self.datagram = self.core.attach_datagram(
                    fd, dtls=secure, tsid=action.tsid, stream=self.stream
                )
                self.site.plane.watch_tunnel(self.datagram, self._on_event)
            case a.AttachDatagram():
                assert self.datagram is not None
                self.core.attach(self.session_id, self.datagram, action.tsid)
            case a.Steer():
                flow = action.flow
                self.core.steer(
                    self.session_id,
                    protocol=flow.protocol,
                    port=flow.port,
                    ipv6=flow.ipv6,
                    mode=int(action.mode),
                )
            case a.Unsteer():
                flow = action.flow
                self.core.unsteer(self.session_id, protocol=flow.protocol, port=flow.port, ipv6=flow.ipv6)
            case a.CloseTunnel():
                tunnel = self.stream if action.path is Path.STREAM else self.datagram
                if tunnel is not None:
                    self.core.close(tunnel)
            case a.Notify():
                self.seen.events.append(action.event)
            case a.SessionClosed() if self.open:
                self.open = False
                with suppress(KeyError):  # the test may have ended, and the plane with it
                    self.core.session_close(self.session_id)
            case _:
                pass

    # -- inner packets ------------------------------------------------------------------------------------

    def socket(self, *, ipv6: bool = False) -> Inner:
        """An inner UDP socket of this client."""
        address = next(one for one in self.inner if (":" in one) == ipv6)
        return Inner(self, address)


class Inner:
    """An inner UDP socket that remembers what it received."""

    def __init__(self, client: Client, address: str) -> None:
        self.received: list[tuple[bytes, tuple[str, int], int]] = []
        self.address = address
        self._core = client.core
        self.id, self.port = client.core.udp_open(session=client.session_id, address=address, port=0)
        client.site.plane.watch_socket(self.id, lambda *got: self.received.append(got))

    def send(self, data: bytes, address: str, port: int) -> str | None:
        return self._core.udp_send(self.id, data, address, port)

    async def heard(self, data: bytes) -> tuple[bytes, tuple[str, int], int]:
        """Wait for a datagram with this content."""
        await until(lambda: any(got[0] == data for got in self.received), f"{data!r}")
        return next(got for got in self.received if got[0] == data)


class Site:
    """A server and a user plane for its clients."""

    def __init__(self, folder: FilePath, server: Server, plane: Plane) -> None:
        self.folder = folder
        self.server = server
        self.plane = plane
        ca = (folder / "ca.pem").read_bytes()
        self.profile = plane.core.client_tls(ca_pem=ca)

    def certificate_profile(self, name: str = "alice") -> int:
        """A client TLS profile with a certificate."""
        return self.plane.core.client_tls(
            ca_pem=(self.folder / "ca.pem").read_bytes(),
            chain_pem=(self.folder / f"{name}.pem").read_bytes(),
            key_pem=(self.folder / f"{name}.key").read_bytes(),
        )

    def client(self, **settings: Any) -> Client:
        return Client(self, **settings)

    async def up(self, **settings: Any) -> Client:
        """A client with a tunnel."""
        client = await self.client(**settings).connect()
        assert client.session.state is State.ACTIVE, client.ended
        return client

    def counter(self, name: str) -> int:
        """A counter of the server: of its user plane, or a drop of its control plane."""
        return self.server.facts().counters.get(name, 0)

    async def hostile_stream(self, *, tls: bool = True) -> Stranger:
        """A stream to the server whose bytes the test chooses."""
        context = None
        if tls:
            context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
            context.set_alpn_protocols(["opentsm/1"])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.server.port("v4" if tls else "plain"),
            ssl=context,
            server_hostname="localhost" if tls else None,
        )
        return Stranger(reader, writer)


@dataclass
class Stranger:
    """A connection whose bytes the test chooses."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ended(self) -> None:
        """Wait until the server has closed it."""
        async with asyncio.timeout(GUARD):
            try:
                while await self.reader.read(4096):
                    pass
            except (ConnectionError, ssl.SSLError):
                pass
        self.writer.close()

    async def message(self) -> Message:
        """The next control message of the server; the smallest are one read."""
        async with asyncio.timeout(GUARD):
            return decode_untrusted(await self.reader.read(4096))


@asynccontextmanager
async def running(
    folder: FilePath, text: str | Settings, *, file: FilePath | None = None
) -> AsyncIterator[Site]:
    """A running server and a place for clients."""
    settings = loads(text, source="test.toml", base=folder) if isinstance(text, str) else text
    server = Server(settings, configuration=file)
    await server.start()
    plane = Plane()
    plane.start()
    try:
        yield Site(folder, server, plane)
    finally:
        await plane.close(flush=0.05)
        await server.stop()
