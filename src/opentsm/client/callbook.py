"""Where the calls of this host have their media, by what was said in SIP. Pure: ``now`` is an argument.

Rows of the steering table are named by the client's own port, so only what this host says of itself counts
(RFC 3264: the ports of an offer or answer are where its sender wants to receive, and symmetric phones,
RFC 4961, send from there). The address in its ``c=`` line is often another one, of an interface outside the
tunnel; the SBC corrects that, and here it is not looked at then. What the far end says can take ports away
(port 0: refused; rtcp-mux: no port for RTCP), never add any.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import zip_longest
from typing import Final

from opentsm.client.signalling import Message
from opentsm.errors import RemoteProtocolError
from opentsm.sbc.sdp import Description, Endpoint, endpoint_untrusted
from opentsm.types import Flow, IpAddress, Protocol

MAX_CALLS: Final = 512
"""Calls known at once; a host with more is a trunk. The one that was heard of longest ago makes room."""

RINGING: Final = 180.0
"""Seconds after the last word of a call that is not answered (RFC 3261 section 16.6, timer C)."""

CANCELLED: Final = 32.0
"""Seconds after a CANCEL in which the call may still be answered (64 x T1)."""

UNUSED: Final = 600.0
"""Seconds without a packet after which an answered call counts as over: its BYE was missed. One that was only
on hold is found again by its RTP."""

_OFFERING: Final = frozenset({"INVITE", "UPDATE", "PRACK", "ACK"})


class State(Enum):
    """Of a call."""

    RINGING = "ringing"
    CANCELLED = "cancelled"
    ANSWERED = "answered"


_LIFETIME: Final = {State.RINGING: RINGING, State.CANCELLED: CANCELLED, State.ANSWERED: UNUSED}


class Unsaid(Enum):
    """What the far end says of an m-line before it has said anything."""

    UNSAID = "unsaid"


UNSAID: Final = Unsaid.UNSAID

Streams = tuple[Endpoint | None, ...]
"""Of a description, by m-line; None: refused, or no datagrams."""


@dataclass
class Side:
    """What one end said: in force, and on offer."""

    agreed: Streams = ()
    offered: Streams | None = None

    def settle(self, accepted: bool) -> None:
        if accepted and self.offered is not None:
            self.agreed = self.offered
        self.offered = None


@dataclass
class Call:
    """One call, by its Call-ID. ``ipv6``: its signalling is."""

    ipv6: bool
    until: float
    state: State = State.RINGING
    own: Side = field(default_factory=Side)
    far: Side = field(default_factory=Side)

    def flows(self, addresses: frozenset[str]) -> set[Flow]:
        """Ports of this host, which has these addresses, from which media may come."""
        far = self.far.offered if self.far.offered is not None else self.far.agreed
        found: set[Flow] = set()
        for own in (self.own.agreed, self.own.offered or ()):
            for mine, theirs in zip_longest(own, far[: len(own)], fillvalue=UNSAID):
                if isinstance(mine, Endpoint) and theirs is not None:
                    v6 = ":" in mine.address if mine.address in addresses else self.ipv6
                    found.update(Flow(Protocol.UDP, port, ipv6=v6) for port in _ports(mine, theirs))
        return found


class CallBook:
    """All calls of a host.

    Args:
        addresses: its inner addresses.
    """

    def __init__(self, addresses: Iterable[IpAddress] = ()) -> None:
        self._addresses = frozenset(map(str, addresses))
        self._calls: OrderedDict[str, Call] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    def flows(self) -> set[Flow]:
        """Where media is to be expected now."""
        return set().union(*(call.flows(self._addresses) for call in self._calls.values()))

    def receive(self, message: Message, *, sent: bool, ipv6: bool, now: float) -> None:
        """A message has gone by.

        Args:
            sent: by this host. ipv6: in a packet of this family.
        """
        call = self._calls.get(message.call_id)
        if message.method == "BYE":
            if message.status == 0:
                self._calls.pop(message.call_id, None)
            return
        if call is None:
            if message.method != "INVITE" or message.status:
                return
            call = self._begin(message.call_id, ipv6, now)
        self._calls.move_to_end(message.call_id)
        if message.media is not None and message.method in _OFFERING:
            side = call.own if sent else call.far
            side.offered = _streams(message.media)
        self._step(call, message)
        if message.method == "INVITE" and message.status >= 300 and call.state is not State.ANSWERED:
            del self._calls[message.call_id]
            return
        call.until = now + _LIFETIME[call.state]

    def used(self, flows: Iterable[Flow], now: float) -> None:
        """Packets of these flows have passed."""
        passed = set(flows)
        for call in self._calls.values():
            if not passed.isdisjoint(call.flows(self._addresses)):
                call.until = max(call.until, now + _LIFETIME[call.state])

    def expire(self, now: float) -> None:
        """Forget the calls of which nothing was heard for too long."""
        for call_id in [one for one, call in self._calls.items() if call.until <= now]:
            del self._calls[call_id]

    def _begin(self, call_id: str, ipv6: bool, now: float) -> Call:
        if len(self._calls) >= MAX_CALLS:
            self._calls.popitem(last=False)
        call = self._calls[call_id] = Call(ipv6, now + RINGING)
        return call

    def _step(self, call: Call, message: Message) -> None:
        if message.method == "CANCEL" and message.status == 0 and call.state is State.RINGING:
            call.state = State.CANCELLED
        elif message.method == "ACK":
            self._settle(call, accepted=True)
        elif message.status >= 200 and message.method in _OFFERING:
            accepted = message.status < 300
            if message.method == "INVITE" and accepted:
                call.state = State.ANSWERED
            # An offer in a 2xx is answered in the ACK, one in a request is now.
            if accepted or call.state is State.ANSWERED:  # else the INVITE's own offer still stands
                self._settle(call, accepted=accepted)

    def _settle(self, call: Call, *, accepted: bool) -> None:
        call.own.settle(accepted)
        call.far.settle(accepted)


def _streams(description: Description) -> Streams:
    found: list[Endpoint | None] = []
    for media in description.media:
        usable = media.port and media.is_datagram
        try:
            found.append(endpoint_untrusted(description, media) if usable else None)
        except RemoteProtocolError:
            found.append(None)
    return tuple(found)


def _ports(mine: Endpoint, theirs: Endpoint | Unsaid) -> tuple[int, ...]:
    muxed = mine.mux and isinstance(theirs, Endpoint) and theirs.mux
    return (mine.port, mine.rtcp_port) if mine.rtp and not muxed else (mine.port,)
