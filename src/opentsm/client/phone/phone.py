"""``Phone``: a user agent on a tunnel's inner sockets. Registers, calls, is called.

async with opentsm.connect("tls://host:443", ...) as tunnel:
    async with Phone(tunnel, Account("alice", "example.org", "secret"), server=("10.64.0.1", 5060)) as phone:
        await phone.register()
        call = await phone.call("bob", CallSettings(samples=speech()))
        await call.answered()
        call.set_mode(PathMode.DATAGRAM)
        await call.ended()
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from typing import Any, Final

from opentsm.client.phone import sdp
from opentsm.client.phone.call import Call, CallError, CallSettings
from opentsm.client.phone.connections import Connections
from opentsm.client.phone.core import Account
from opentsm.client.phone.events import (
    Answered,
    Ended,
    Event,
    Incoming,
    Registered,
    RegistrationFailed,
    Unregistered,
)
from opentsm.client.phone.message import SIP_PORT
from opentsm.client.phone.ports import Datagrams, Ports, Sockets, SwitchedTransport
from opentsm.client.phone.ua import MAX_CALLS, UserAgent
from opentsm.errors import LocalProtocolError, RemoteProtocolError, TunnelError
from opentsm.types import SocketAddress

PATIENCE: Final = 2.0
"""Seconds that closing a phone waits for far ends and the registrar: a binding runs out by itself."""


class Phone:
    """A user agent on a tunnel: registers, calls, is called.

    Args:
        sockets: the tunnel. account: who we are.
        server: SIP server (registrar and proxy); None: each target is called directly at its address.
        port: our SIP port, 0: a free one.
        transport: what our requests go by: ``tcp``, or ``udp`` where they fit a datagram.

    Attributes:
        drops: SIP messages that led to nothing, by reason.
    """

    def __init__(
        self,
        sockets: Sockets,
        account: Account,
        *,
        server: SocketAddress | None = None,
        port: int = SIP_PORT,
        transport: str = "udp",
    ) -> None:
        self.account = account
        self.drops: Counter[str] = Counter()
        self._sockets = sockets
        self._server = server
        self._wanted_port = port
        self._by = transport
        self._connections: Connections | None = None
        self._ua: UserAgent | None = None
        self._transport: SwitchedTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[str, Call] = {}
        self._waiting: dict[str, Incoming] = {}
        self._incoming: asyncio.Queue[Incoming] = asyncio.Queue(MAX_CALLS)
        self._registration: asyncio.Future[float] | None = None
        self._unregistered: asyncio.Future[None] | None = None
        self._questions: dict[str, asyncio.Future[int]] = {}

    async def __aenter__(self) -> Phone:
        await self.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Bind the SIP port.

        Raises:
            OSError: it is taken.
        """
        host = str(self._sockets.inner_address)
        self._transport, _ = await self._sockets.create_datagram_endpoint(
            lambda: Datagrams(self._on_sip, self._on_lost), (host, self._wanted_port)
        )
        local = self._transport.get_extra_info("sockname")
        self._connections = Connections(self._sockets, host, self._on_message, self._on_connection_failed)
        try:
            await self._connections.listen(local[1])
        except BaseException:
            self._transport.close()
            raise
        self._ua = UserAgent(
            self.account,
            local=(local[0], local[1]),
            server=self._server,
            new_id=lambda: secrets.token_hex(10),
            transport=self._by,
        )

    async def close(self) -> None:
        """Hang up, take the registration back, close the port."""
        if self._ua is None or self._transport is None:
            return
        await self._hang_up_all()
        if self._ua.registered:
            self._unregistered = asyncio.get_running_loop().create_future()
            self._ua.unregister(self._now)
            self._pump()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._unregistered
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()
        if self._connections is not None:
            self._connections.close()
            self.drops.update(self._connections.drops)
        self._drop_calls("the phone was closed")
        self._ua = None

    # -- commands -------------------------------------------------------------------------------------------

    async def register(self) -> float:
        """Become known to the SIP server, and stay so; the seconds it was granted.

        Raises:
            CallError: it refused, or did not answer for 32 s.
        """
        self._registration = asyncio.get_running_loop().create_future()
        self.agent.register(self._now)
        self._pump()
        return await self._registration

    async def call(self, target: str, settings: CallSettings | None = None) -> Call:
        """Call somebody: ``sip:bob@example.org``, or ``bob`` at our own domain. Returns while it rings.

        Raises:
            ValueError: the target is no SIP address. OSError: no free port.
        """
        wanted = settings or CallSettings()
        ports = await Ports().open(self._sockets)
        try:
            key = self.agent.call(self._now, target, self._local(ports, wanted))
        except BaseException:
            ports.close()
            raise
        call = Call(key, target, ports, wanted, incoming=False, end=self.end)
        self._calls[key] = call
        self._pump()
        return call

    async def next_call(self) -> Incoming:
        """Wait for somebody who calls, and still does."""
        while True:
            incoming = await self._incoming.get()
            if incoming.call in self._waiting:
                return incoming

    async def answer(self, incoming: Incoming, settings: CallSettings | None = None) -> Call:
        """Take a call.

        Raises:
            CallError: the caller has given up, or offers no audio that we can speak.
        """
        ports = await Ports().open(self._sockets)
        if self._waiting.pop(incoming.call, None) is None:
            ports.close()
            raise CallError(f"call from {incoming.caller}", 487, "the caller gave up")
        wanted = settings or CallSettings()
        call = Call(incoming.call, incoming.caller, ports, wanted, incoming=True, end=self.end)
        self._calls[incoming.call] = call
        self.agent.accept(self._now, incoming.call, self._local(ports, wanted))
        self._pump()
        return call

    def reject(self, incoming: Incoming, code: int = 603) -> None:
        """Refuse a call: 603 no, 486 busy."""
        self._waiting.pop(incoming.call, None)
        self.agent.reject(self._now, incoming.call, code)
        self._pump()

    async def options(self, target: str) -> int:
        """Ask whether somebody is there: the code of the answer, 408 without one."""
        key = self.agent.options(self._now, target)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._questions[key] = answer
        self._pump()
        return await answer

    def set_busy(self, busy: bool) -> None:
        """Answer every new call with 486."""
        self.agent.busy = busy

    def end(self, call: Call, reason: str) -> None:
        """Begin to end a call; ``Call.hang_up`` also waits."""
        if self._ua is not None:
            self._ua.hang_up(self._now, call.key, reason=reason)
            self._pump()

    @property
    def agent(self) -> UserAgent:
        """The user agent.

        Raises:
            LocalProtocolError: the phone is not open.
        """
        if self._ua is None:
            raise LocalProtocolError("the phone is not open: use `async with Phone(...)`")
        return self._ua

    @property
    def calls(self) -> tuple[Call, ...]:
        """Calls that are not over."""
        return tuple(self._calls.values())

    # -- driving the user agent -----------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _local(self, ports: Ports, settings: CallSettings) -> sdp.Local:
        address, session = str(self._sockets.inner_address), secrets.randbits(31)
        return sdp.Local(address, ports.port, ports.port + 1, session, codecs=settings.codecs)

    def _on_sip(self, data: bytes, source: SocketAddress, *, reliable: bool = False) -> None:
        if self._ua is None:
            return
        try:
            self._ua.receive_untrusted(self._now, data, source, reliable=reliable)
        except RemoteProtocolError as error:
            self.drops[error.reason] += 1
        self._pump()

    def _on_message(self, data: bytes, source: SocketAddress) -> None:
        self._on_sip(data, source, reliable=True)

    def _on_connection_failed(self, far: SocketAddress) -> None:
        if self._ua is not None:
            self._ua.connection_failed(self._now, far)
            self._pump()

    def _on_timer(self) -> None:
        self._timer = None
        if self._ua is not None:
            self._ua.tick(self._now)
            self._pump()

    def _pump(self) -> None:
        """Send what is to be sent, spread the news, wait for the next deadline."""
        if self._ua is None or self._transport is None or self._connections is None:
            return
        for send in self._ua.outgoing():
            if send.reliable:
                self._connections.send(send.data, send.to)
            else:
                self._transport.sendto(send.data, send.to)
        for event in self._ua.events():
            self._on_event(event)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._ua.deadline
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._on_timer)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Registered | RegistrationFailed | Unregistered):
            self._on_registration(event)
        elif isinstance(event, Incoming):
            self._waiting[event.call] = event
            with contextlib.suppress(asyncio.QueueFull):
                self._incoming.put_nowait(event)
        elif isinstance(event, Answered):
            _resolve(self._questions.pop(event.call, None), event.code)
        else:
            call = self._calls.get(event.call)
            if call is not None:
                call.on_event(event)
            if isinstance(event, Ended):
                self._calls.pop(event.call, None)
                self._waiting.pop(event.call, None)

    def _on_registration(self, event: Registered | RegistrationFailed | Unregistered) -> None:
        if isinstance(event, Registered):
            _resolve(self._registration, event.expires)
            return
        _resolve(self._unregistered, None)
        waiting = self._registration
        if isinstance(event, RegistrationFailed) and waiting is not None and not waiting.done():
            what = f"registration of {self.account.uri}"
            waiting.set_exception(CallError(what, event.code, event.reason))

    def _on_lost(self, why: str) -> None:
        """The tunnel has taken the SIP port away: nothing can be said to anybody any more."""
        self._drop_calls(why)
        if self._registration is not None and not self._registration.done():
            self._registration.set_exception(CallError(f"registration of {self.account.uri}", 0, why))

    def _drop_calls(self, why: str) -> None:
        for call in self.calls:
            call.on_event(Ended(call.key, 0, why, "local"))
        self._calls.clear()
        self._waiting.clear()

    async def _hang_up_all(self) -> None:
        """Hang up and give the far ends a moment; a tunnel that is gone needs none."""
        for incoming in list(self._waiting.values()):
            self.reject(incoming, 480)
        calls = self.calls
        with contextlib.suppress(TimeoutError, TunnelError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(call.hang_up("the phone was closed") for call in calls))


def _resolve(future: asyncio.Future[Any] | None, value: object) -> None:
    if future is not None and not future.done():
        future.set_result(value)
