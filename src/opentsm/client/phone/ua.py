"""A SIP user agent without I/O: messages and the time go in, messages and events come out.

REGISTER with digest, INVITE, ACK, BYE, CANCEL and OPTIONS, as client and as server (RFC 3261). Whoever drives
it calls ``receive_untrusted`` for each datagram, ``tick`` when ``deadline`` has come, and after either (and
after any command) sends what ``outgoing`` gives and reads ``events``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentsm.client.phone import sdp
from opentsm.client.phone.core import Account, Core, Send, Sent, Template
from opentsm.client.phone.events import Answered, Event, Incoming
from opentsm.client.phone.leg import ALLOW, Dialog, Leg, LegState
from opentsm.client.phone.message import SipMessage, parse_sip_untrusted, parse_uri
from opentsm.client.phone.registration import EXPIRES, Registration
from opentsm.client.phone.transaction import Transaction
from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress

MAX_CALLS: Final = 64
"""Calls at once; a test phone under load generation has a few dozen. More are told 486."""


class UserAgent:
    """One account on one inner address.

    Args:
        account: who we are. local: our inner address and SIP port.
        server: the SIP server (registrar and outbound proxy), or None to talk to each target directly.
        new_id: gives a fresh random token at each call, hexadecimal, 16 digits or more.
        transport: ``tcp``: requests go by connections; ``udp``: those that fit go as datagrams.

    Attributes:
        busy: answer every new call with 486.
    """

    def __init__(
        self,
        account: Account,
        *,
        local: SocketAddress,
        server: SocketAddress | None,
        new_id: Callable[[], str],
        transport: str = "udp",
    ) -> None:
        self.account = account
        self.busy = False
        self._core = Core(account, local, server, new_id, transport)
        self._events: list[Event] = []
        self._registration = Registration(self._core, self._events)
        self._legs: dict[str, Leg] = {}

    # -- out ------------------------------------------------------------------------------------------------

    def outgoing(self) -> list[Send]:
        """Datagrams to be sent now, in this order."""
        return self._core.take()

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        events = self._events[:]
        self._events.clear()
        return events

    @property
    def deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        times = [self._core.deadline, self._registration.deadline]
        times += [leg.deadline for leg in self._legs.values()]
        return min((t for t in times if t is not None), default=None)

    @property
    def local(self) -> SocketAddress:
        """Our inner address and SIP port."""
        return self._core.local

    @property
    def registered(self) -> bool:
        return self._registration.active

    @property
    def drops(self) -> dict[str, int]:
        """Messages that led to nothing, by reason."""
        return dict(self._core.drops)

    # -- commands -------------------------------------------------------------------------------------------

    def register(self, now: float, expires: int = EXPIRES) -> None:
        self._registration.start(now, expires)

    def unregister(self, now: float) -> None:
        self._registration.stop(now)

    def call(self, now: float, target: str, local: sdp.Local) -> str:
        """Call somebody.

        Args:
            target: ``sip:user@domain``, or a user of our own domain. local: our side of the media.

        Returns:
            The call's name in events and commands.

        Raises:
            ValueError: the target is no SIP address, or cannot be reached without a SIP server.
        """
        uri = str(parse_uri(target, self.account.domain))
        key, tag = self._core.new_id(), self._core.new_id()
        own = f"<{self.account.uri}>;tag={tag}"
        leg = Leg(self._core, self._events, key, Dialog(key, own, tag, remote=f"<{uri}>", target=uri))
        leg.place(now, uri, local, own)
        self._legs[key] = leg
        self._sweep()
        return key

    def accept(self, now: float, call: str, local: sdp.Local) -> None:
        """Take an incoming call."""
        if (leg := self._legs.get(call)) is not None:
            leg.answer(now, local)

    def reject(self, now: float, call: str, code: int = 603) -> None:
        """Refuse it: 603 no, 486 busy."""
        self.hang_up(now, call, code=code, reason="declined")

    def hang_up(self, now: float, call: str, *, code: int = 603, reason: str = "hung up") -> None:
        """End a call in any state; one that is unknown has ended already."""
        if (leg := self._legs.get(call)) is not None:
            leg.hang_up(now, code, reason)
            self._sweep()

    def options(self, now: float, target: str) -> str:
        """Ask whether somebody is there; ends in Answered."""
        uri = str(parse_uri(target, self.account.domain))
        key = self._core.new_id()
        own = f"<{self.account.uri}>;tag={self._core.new_id()}"
        template = Template("OPTIONS", uri, own, f"<{uri}>", key, headers=(("Accept", "application/sdp"),))
        self._core.send(now, template, _Question(key, self._events))
        return key

    # -- in -------------------------------------------------------------------------------------------------

    def receive_untrusted(
        self, now: float, data: bytes, source: SocketAddress, *, reliable: bool = False
    ) -> None:
        """A datagram has come, or (``reliable``) a whole message by the connection with ``source``.

        Raises:
            RemoteProtocolError: it is no SIP, or makes no sense here (``reason`` is the counter's name). What
                had to be answered has been; the user agent goes on as if nothing had happened.
        """
        if not data.strip(b"\r\n\x00"):  # keep-alives (RFC 5626 section 3.5.1 and what phones really send)
            return
        message = parse_sip_untrusted(data)
        if not message.is_request:
            self._core.response_untrusted(now, message)
        elif not self._core.absorbed(now, message):
            self._request_untrusted(now, message, source, reliable)
        self._sweep()

    def connection_failed(self, now: float, to: SocketAddress) -> None:
        """The connection with this address is gone, or could not be made."""
        self._core.connection_failed(now, to)
        if self._core.reliable and to == self._core.server:
            # The registrar knew us by it (RFC 5626 section 4.4): tell it of the next one.
            self._registration.renew(now)
        self._sweep()

    def tick(self, now: float) -> None:
        """Do what is due by now."""
        self._core.tick(now)
        self._registration.tick(now)
        for leg in list(self._legs.values()):
            leg.tick(now)
        self._sweep()

    # -- helpers --------------------------------------------------------------------------------------------

    def _request_untrusted(
        self, now: float, message: SipMessage, source: SocketAddress, reliable: bool
    ) -> None:
        leg = self._leg_of(message)
        if message.method == "ACK":
            if leg is None:
                raise RemoteProtocolError("sip-stray-ack")
            leg.on_request_untrusted(now, message, None)
            return
        transaction = self._core.begin_server(now, message, source, reliable=reliable)
        if leg is not None:
            leg.on_request_untrusted(now, message, transaction)
        elif message.method == "CANCEL":
            self._cancel_untrusted(now, message, transaction)
        elif message.to_tag:
            self._respond(now, transaction, message, 481)
        elif message.method == "INVITE":
            self._invite_untrusted(now, message, transaction)
        elif message.method == "OPTIONS":
            self._respond(now, transaction, message, 486 if self.busy else 200, _CAPABILITIES)
        else:
            self._respond(now, transaction, message, 405, [("Allow", ALLOW)])

    def _invite_untrusted(self, now: float, message: SipMessage, transaction: Transaction) -> None:
        if required := message.tokens("Require"):
            self._respond(now, transaction, message, 420, [("Unsupported", ", ".join(required))])
        elif message.body and "application/sdp" not in message.header("Content-Type").lower():
            self._respond(now, transaction, message, 415, [("Accept", "application/sdp")])
        elif not message.target:
            self._respond(now, transaction, message, 400)
        elif self.busy or len(self._legs) >= MAX_CALLS:
            self._respond(now, transaction, message, 486)
        else:
            self._ring_untrusted(now, message, transaction)

    def _ring_untrusted(self, now: float, message: SipMessage, transaction: Transaction) -> None:
        key, tag = self._core.new_id(), self._core.new_id()
        to_text = message.header("To")
        own = f"{to_text};tag={tag}" if ">" in to_text else f"<{message.to.uri}>;tag={tag}"
        dialog = Dialog(
            message.call_id,
            own,
            tag,
            remote=message.header("From"),
            remote_tag=message.from_tag,
            target=message.target,
            routes=message.routes,
            remote_cseq=message.cseq.sequence,
        )
        leg = Leg(self._core, self._events, key, dialog)
        try:
            leg.receive(now, message, transaction)
        except RemoteProtocolError:
            self._respond(now, transaction, message, 400)
            raise
        self._core.own(transaction, leg)
        self._legs[key] = leg
        self._events.append(Incoming(key, str(message.from_.uri)))

    def _cancel_untrusted(self, now: float, message: SipMessage, transaction: Transaction) -> None:
        known = self._core.cancelled(message)
        if known is None:
            self._respond(now, transaction, message, 481)
            return
        self._respond(now, transaction, message, 200)
        if isinstance(known[1], Leg):
            known[1].on_cancel(now)

    def _respond(
        self,
        now: float,
        transaction: Transaction,
        message: SipMessage,
        code: int,
        headers: list[tuple[str, str]] | None = None,
    ) -> None:
        self._core.respond(now, transaction, message, code, self._core.new_id(), headers)

    def _leg_of(self, message: SipMessage) -> Leg | None:
        """The dialog of a request: Call-ID and both tags (RFC 3261 section 12)."""
        for leg in self._legs.values():
            dialog = leg.dialog
            names = (dialog.call_id, dialog.local_tag, dialog.remote_tag)
            if message.to_tag and names == (message.call_id, message.to_tag, message.from_tag):
                return leg
        return None

    def _sweep(self) -> None:
        """Forget calls that have ended. Repeated 2xx still find them by their transaction."""
        self._legs = {key: leg for key, leg in self._legs.items() if leg.state is not LegState.ENDED}


class _Question:
    """Owner of an OPTIONS."""

    def __init__(self, key: str, events: list[Event]) -> None:
        self._key = key
        self._events = events

    def next_cseq(self) -> int:
        return 1

    def on_sent_again(self, sent: Sent) -> None: ...

    def on_response(self, now: float, method: str, message: SipMessage) -> None:
        if message.code >= 200:
            self._events.append(Answered(self._key, message.code))

    def on_timeout(self, now: float, method: str) -> None:
        self._events.append(Answered(self._key, 408))


_CAPABILITIES: Final = [("Allow", ALLOW), ("Accept", "application/sdp")]
