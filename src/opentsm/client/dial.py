"""From a list of servers to one stream connection: the first that comes up, the others closed (RFC 8305).

Servers and their addresses are tried in order; the next attempt begins when the last one has failed or
CONNECT_STAGGER seconds have passed, whichever is first, and goes on beside the earlier ones. A name look-up
is an attempt too: a slow one delays nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from opentsm.client.address import ServerAddress
from opentsm.client.outcome import AttemptError, Outcome, classify, connect_error
from opentsm.client.proxy import Proxy, handshake
from opentsm.client.settings import TlsSettings
from opentsm.client.streaming import StreamSettings
from opentsm.errors import ConfigError
from opentsm.limits import CONNECT_STAGGER, CONNECT_TIMEOUT
from opentsm.tasks import cancel, spawn
from opentsm.types import SocketAddress, Transport
from opentsm.userplane._core import ControlMessage, StreamReady, TunnelClosed
from opentsm.userplane.plane import Plane, TunnelEvent, TunnelHandler
from opentsm.userplane.streamsocket import tune_stream

MAX_ADDRESSES: Final = 8
"""Addresses of one name that are tried: a name with more is a pool, and eight of it tell enough."""

EARLY_EVENTS: Final = 8
"""Events of a new connection kept until its owner has it. A server has nothing to say before it is asked."""


_log: Final = logging.getLogger(__name__)


class Opening:
    """A stream connection of ours: what became of it, until somebody takes it over with ``adopt``."""

    def __init__(self, plane: Plane, tunnel: int) -> None:
        self.tunnel = tunnel
        self._plane = plane
        self._early: deque[TunnelEvent] = deque(maxlen=EARLY_EVENTS)
        self._ready: asyncio.Future[StreamReady] = asyncio.get_running_loop().create_future()
        plane.watch_tunnel(tunnel, self._on_event)

    async def ready(self) -> StreamReady:
        """Wait until the connection is up.

        Raises:
            AttemptError: it will not be.
        """
        return await self._ready

    def adopt(self, handler: TunnelHandler) -> None:
        """From now on events go to ``handler``; those that came meanwhile go there at once."""
        self._plane.watch_tunnel(self.tunnel, handler)
        while self._early:
            handler(self._early.popleft())

    def abandon(self) -> None:
        """Close it; nobody wants to hear of it any more."""
        self._plane.unwatch_tunnel(self.tunnel)
        self._plane.core.close(self.tunnel)
        self._ready.cancel()

    def _on_event(self, event: TunnelEvent) -> None:
        if isinstance(event, StreamReady):
            if not self._ready.done():
                self._ready.set_result(event)
        elif self._ready.done():
            if not isinstance(event, ControlMessage) or len(self._early) < EARLY_EVENTS - 1:
                self._early.append(event)
        elif isinstance(event, TunnelClosed):
            self._ready.set_exception(AttemptError(event.reason, event.detail))


@dataclass(frozen=True, slots=True)
class Dialled:
    """The stream connection that won.

    Args:
        opening: its tunnel. server: which of the servers. remote: the address the TCP connection goes to (the
            proxy's, where there is one). binding: for the resume proof.
        attempts: the ones that failed before.
    """

    opening: Opening
    server: ServerAddress
    remote: SocketAddress
    local: SocketAddress
    binding: bytes
    tls_version: str | None
    attempts: tuple[Outcome, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One TCP address to try; ``address`` None: the name is still to be looked up."""

    server: ServerAddress
    family: socket.AddressFamily = socket.AF_UNSPEC
    address: Any = None

    def __str__(self) -> str:
        if self.address is None or self.address[0] == self.server.host:
            return str(self.server)
        return f"{self.server} ({self.address[0]})"


_Result = Dialled | list[_Candidate]


class Dialer:
    """Makes stream connections to one list of servers, again and again.

    Args:
        plane: where they end up.
        tls: what is checked of a TLS server.
        proxy: the way out, or None.
        streams: how they are tuned.
    """

    def __init__(
        self,
        plane: Plane,
        *,
        tls: TlsSettings,
        proxy: Proxy | None = None,
        streams: StreamSettings | None = None,
    ) -> None:
        self._plane = plane
        self._streams = streams or StreamSettings()
        self._tls = tls
        self._proxy = proxy
        self._profile: int | None = None
        self._known: dict[tuple[str, int], list[tuple[socket.AddressFamily, Any]]] = {}

    @property
    def proxied(self) -> bool:
        return self._proxy is not None

    async def dial(self, servers: tuple[ServerAddress, ...], *, patience: float = CONNECT_TIMEOUT) -> Dialled:
        """The first connection that comes up.

        Args:
            patience: seconds for each attempt, name look-up to TLS finished.

        Raises:
            ConnectError: none did; its text lists each attempt, its outcome, and what to do.
            ConfigError: certificate, key or CA cannot be used.
        """
        if any(server.transport is Transport.TLS for server in servers):
            self._tls_profile()
        attempt = functools.partial(self._attempt, patience=patience)
        race = _Race(attempt, [_Candidate(server) for server in servers])
        return await race.run()

    async def dial_again(self, dialled: Dialled) -> Dialled:
        """One more connection to the same address, by the same way.

        Raises:
            ConnectError: it did not come up.
        """
        family = socket.AF_INET6 if ":" in dialled.remote[0] else socket.AF_INET
        attempt = functools.partial(self._attempt, patience=CONNECT_TIMEOUT)
        race = _Race(attempt, [_Candidate(dialled.server, family, dialled.remote)])
        return await race.run()

    async def resolve(self, host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        """Addresses of a host for TCP and UDP, families taking turns (RFC 8305 section 4)."""
        found = await self._find(host, port)
        return [(family, (address[0], address[1])) for family, address in found]

    async def _find(self, host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
        """Look a name up; when that fails, what it was last: the name server may be behind the tunnel."""
        try:
            found = await _look_up(host, port)
        except socket.gaierror:
            if (host, port) not in self._known:
                raise
            return self._known[host, port]
        self._known[host, port] = found
        return found

    # -- attempts ---------------------------------------------------------------------------------------

    async def _attempt(self, candidate: _Candidate, *, patience: float) -> _Result:
        async with asyncio.timeout(patience):
            if candidate.address is None:
                first = self._proxy or candidate.server
                found = await self._find(first.host, first.port)
                return [_Candidate(candidate.server, family, address) for family, address in found]
            sock = await self._connect(candidate)
            return await self._attach(sock, candidate)

    async def _connect(self, candidate: _Candidate) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock = socket.socket(candidate.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            refusal = tune_stream(sock, self._streams.congestion_control)
            if refusal:
                _log.warning("%s", refusal)
            await loop.sock_connect(sock, candidate.address)
            if self._proxy is not None:
                await self._through_proxy(sock, self._proxy, candidate.server)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _through_proxy(self, sock: socket.socket, proxy: Proxy, server: ServerAddress) -> None:
        steps = handshake(proxy, server.host, server.port)
        want = next(steps)
        while True:
            got = await _exchange(sock, want.send, want.count)
            try:
                want = steps.send(got)
            except StopIteration:
                return

    async def _attach(self, sock: socket.socket, candidate: _Candidate) -> Dialled:
        remote = sock.getpeername()
        server = candidate.server
        secure = server.transport is Transport.TLS
        tunnel = self._plane.core.attach_stream(
            sock.detach(),
            tls_profile=self._tls_profile() if secure else None,
            server_name=(self._tls.server_name or server.host) if secure else "",
        )
        opening = Opening(self._plane, tunnel)
        try:
            ready = await opening.ready()
        except BaseException:
            opening.abandon()
            raise
        return Dialled(
            opening,
            server,
            (remote[0], remote[1]),
            ready.local,
            ready.resume_binding,
            ready.tls_version,
        )

    def _tls_profile(self) -> int:
        """Made once: reading the system's authorities takes milliseconds."""
        if self._profile is None:
            try:
                self._profile = self._plane.core.client_tls(
                    ca_pem=self._tls.ca_pem,
                    chain_pem=self._tls.chain_pem,
                    key_pem=self._tls.key_pem,
                    pin_sha256=self._tls.pin_sha256,
                    verify=self._tls.verify,
                )
            except ValueError as error:
                raise ConfigError(f"TLS: {error}", hint="check ca, client_cert and pin_sha256") from error
        return self._profile


class _Race:
    """Overlapping attempts, in order; the first connection wins."""

    def __init__(
        self, attempt: Callable[[_Candidate], Coroutine[Any, Any, _Result]], candidates: list[_Candidate]
    ) -> None:
        self._attempt = attempt
        self._pending = deque(candidates)
        self._running: dict[asyncio.Task[_Result], _Candidate] = {}
        self._failed: list[Outcome] = []

    async def run(self) -> Dialled:
        try:
            return await self._first()
        finally:
            await self._stop()

    async def _first(self) -> Dialled:
        while self._pending or self._running:
            self._begin()
            patience = CONNECT_STAGGER if self._pending else None
            done, _ = await asyncio.wait(self._running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            # In the order they were begun: when two are up at once, the earlier one is preferred.
            for task in [task for task in self._running if task in done]:
                winner = self._finished(task)
                if winner is not None:
                    return replace(winner, attempts=tuple(self._failed))
        raise connect_error(self._failed)

    def _begin(self) -> None:
        if self._pending:
            candidate = self._pending.popleft()
            task = spawn(f"connect {candidate}", self._attempt(candidate), on_failure=_reported_elsewhere)
            self._running[task] = candidate

    def _finished(self, task: asyncio.Task[_Result]) -> Dialled | None:
        candidate = self._running.pop(task)
        error = task.exception()
        if isinstance(error, ConfigError):
            raise error
        if error is not None:
            known = classify(error)
            self._failed.append(Outcome(str(candidate), known.reason, known.detail))
            return None
        result = task.result()
        if isinstance(result, Dialled):
            return result
        self._pending.extendleft(reversed(result))
        return None

    async def _stop(self) -> None:
        """End what is still running, and close what came up a moment too late."""
        losers = list(self._running)
        await cancel(*losers)
        for task in losers:
            if not task.cancelled() and task.exception() is None:
                result = task.result()
                if isinstance(result, Dialled):
                    result.opening.abandon()


def _reported_elsewhere(name: str, error: BaseException) -> None:
    """A failed attempt is no failure of ours: it is listed in the ConnectError, if there is one."""


async def _look_up(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Socket addresses of a host, families taking turns, the system's first one first."""
    with contextlib.suppress(ValueError):
        ip = ip_address(host.partition("%")[0])
        if "%" not in host:
            return [(socket.AF_INET if ip.version == 4 else socket.AF_INET6, (host, port))]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    lists: dict[socket.AddressFamily, list[Any]] = {}
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            lists.setdefault(family, []).append(address)
    turns = itertools.zip_longest(*([(family, a) for a in lists[family]] for family in lists))
    return [entry for turn in turns for entry in turn if entry is not None][:MAX_ADDRESSES]


async def _exchange(sock: socket.socket, send: bytes, count: int) -> bytes:
    """Send, then read exactly ``count`` bytes."""
    loop = asyncio.get_running_loop()
    if send:
        await loop.sock_sendall(sock, send)
    got = b""
    while len(got) < count:
        more = await loop.sock_recv(sock, count - len(got))
        if not more:
            raise AttemptError("proxy-error", "the proxy closed the connection")
        got += more
    return got
