"""The client's streams beside the main one: service *redundancy*, for networks that let no datagram through.

    ABSENT -> REQUESTED -> OPENING -> CONFIGURING -> UP -> RELEASING -> ABSENT
       ^   Service Request  TCP,TLS   Configuration
       |                              Request with
       +---- WAITING (back-off)       the join proof     UNAVAILABLE: until a new tunnel

The whole table is ``states.CLIENT_STREAM``; each further stream has a machine of its own. Signalling stays on
the main stream. A further stream that is lost costs nothing but its copies: the others go on, and it is made
anew after a back-off. It outlives the main stream, so that media goes on while that one is being resumed.
"""

from __future__ import annotations

from typing import Final

from opentsm.limits import MAX_STREAMS, REQUEST_TIMEOUT_STREAM, STREAM_RETRY_MAX, STREAM_RETRY_MIN
from opentsm.protocol.actions import (
    AttachExtra,
    CloseExtra,
    OpenExtra,
    SendExtra,
    SetSpread,
    StreamsChanged,
    UseExtra,
)
from opentsm.protocol.client_requests import Asked, AskedRedundancy, AskedRelease, StreamRequests
from opentsm.protocol.core import Core, Machine, code_label
from opentsm.protocol.resume import join_proof
from opentsm.protocol.states import CLIENT_STREAM, ClientStream, ClientStreamInput
from opentsm.types import NO_REDUNDANCY, UNASSIGNED_TSID, Code, IpAddress, Redundancy, Spread, Tsid
from opentsm.wire import messages as m

STREAM_STABLE: Final = 30.0
"""A further stream that lived this long (seconds) makes the next failure a first one for the back-off."""

RELEASE_TIMEOUT: Final = 2.0
"""Seconds to wait for what the server has still sent on a stream that is given back."""

_UNKNOWN: Final = frozenset({Code.SERVICE_UNAVAILABLE, Code.UNKNOWN_SERVICE, Code.UNKNOWN_TYPE})
_TIMERS: Final = {
    ClientStream.OPENING: "extra-open",
    ClientStream.CONFIGURING: "extra-open",
    ClientStream.RELEASING: "extra-release",
    ClientStream.WAITING: "extra-retry",
}
_BACKOFF_STEPS: Final = 16  # STREAM_RETRY_MIN * 2^16 is past STREAM_RETRY_MAX; keeps the power small


class ClientStreams:
    """All further streams of a client session. Every input ends with ``settle``."""

    def __init__(self, core: Core, requests: StreamRequests) -> None:
        self.wish = NO_REDUNDANCY
        self.addresses: tuple[IpAddress, ...] = ()
        self.core = core
        self.requests = requests
        self._slots = [_Further(self, index) for index in range(MAX_STREAMS - 1)]
        self._told = NO_REDUNDANCY
        self._asking = False
        self._unavailable = False
        self._spread = Spread.SINGLE
        self._void: list[Tsid] = []
        self._shown = (NO_REDUNDANCY, 0)
        self._why = "joined"

    @property
    def up(self) -> int:
        """Further streams that carry media."""
        return sum(slot.state is ClientStream.UP for slot in self._slots)

    @property
    def states(self) -> tuple[ClientStream, ...]:
        """Each further stream's state, in a fixed order."""
        return tuple(slot.state for slot in self._slots)

    # -- inputs ---------------------------------------------------------------------------------------

    def wished(self, redundancy: Redundancy, now: float) -> None:
        """The application's (or the engine's) newest wish."""
        self.wish = redundancy
        self._why = "switched"
        self.settle(now)

    def ready(self, tsid: Tsid, now: float, binding: bytes) -> bool:
        """The stream asked for with OpenExtra is connected. False: it is not wanted any more; close it."""
        slot = self._find(tsid)
        taken = slot is not None and slot.feed(ClientStreamInput.READY, now, binding)
        self.settle(now)
        return taken

    def lost(self, tsid: Tsid, reason: str, now: float) -> None:
        """A further stream has ended, is silent, or could not be made."""
        slot = self._find(tsid)
        if slot is not None:
            slot.feed(ClientStreamInput.LOST, now, reason)
        self.settle(now)

    def receive(self, tsid: Tsid, message: m.Message, now: float) -> None:
        """A decoded control message from a further stream."""
        slot = self._find(tsid)
        if slot is None or message.tsid != tsid:
            self.core.counts["wrong-tsid"] += 1
            return
        slot.receive(message, now)
        self.settle(now)

    def answered(self, asked: AskedRedundancy, message: m.ServiceResponse, now: float) -> None:
        """The answer to a Service Request of ours."""
        self._asking = False
        slot = None if asked.slot is None else self._slots[asked.slot]
        self._told = asked.redundancy
        if message.code in _UNKNOWN:
            self._unavailable = True
            self._why = code_label(message.code)
            for each in self._slots:
                each.feed(ClientStreamInput.SERVICE_UNAVAILABLE, now)
        elif slot is not None and (place := self._place(message)) is not None:
            if not slot.feed(ClientStreamInput.RESERVED, now, place):
                self._void.append(place[0])
        elif slot is not None:
            reason = "no-stream-named" if message.code == Code.SUCCESS else code_label(message.code)
            slot.feed(ClientStreamInput.REFUSED, now, reason)
        elif message.tunnel_id is not None:
            self._void.append(message.tunnel_id)
        self.settle(now)

    def _place(self, message: m.ServiceResponse) -> tuple[Tsid, bytes] | None:
        """TSID and secret of the stream that was reserved for us: a new one, whatever the server says."""
        tsid, secret = message.tunnel_id, message.join_secret
        if message.code != Code.SUCCESS or not tsid or not secret:
            return None
        taken = tsid in (UNASSIGNED_TSID, self.requests.tsid) or self._find(tsid) is not None
        return None if taken else (tsid, secret)

    def stream_lost(self, lost: list[Asked], now: float) -> None:
        """The main stream is gone. What carries media goes on."""
        for asked in lost:
            if isinstance(asked, AskedRedundancy):
                self._asking = False
                self._told = NO_REDUNDANCY
            elif isinstance(asked, AskedRelease) and asked.further and asked.tunnel_id is not None:
                self._void.append(asked.tunnel_id)
        for slot in self._slots:
            slot.feed(ClientStreamInput.MAIN_LOST, now)
        self.settle(now)

    def moved(self, now: float) -> None:
        """The client is in another network: what goes by the old one is made anew from here."""
        for slot in self._slots:
            slot.feed(ClientStreamInput.LOST, now, "network-changed")
        self.settle(now)

    def stream_up(self, now: float) -> None:
        self.settle(now)

    def reset(self, reason: str, now: float) -> None:
        """The server knows nothing of this session any more, or the session ends. The wish stays."""
        self._why = reason
        for slot in self._slots:
            slot.feed(ClientStreamInput.RESET, now, reason)
        self._told = NO_REDUNDANCY
        self._asking = self._unavailable = False
        self._void.clear()
        self._set_spread()
        self._show()

    def timer(self, name: str, now: float) -> None:
        """A timer of ``owns_timer`` is due."""
        slot = self._slots[int(name.partition(":")[2])]
        slot.feed(ClientStreamInput.TIMER, now, name.partition(":")[0])
        self.settle(now)

    # -- helpers ----------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Bring everything nearer to the wish."""
        wanted = self.wish.streams - 1
        for slot in self._slots[wanted:]:
            slot.feed(ClientStreamInput.UNWANTED, now)
        if self.requests.up:
            self._tell(now, wanted)
        self._set_spread()
        self._show()

    def _tell(self, now: float, wanted: int) -> None:
        while self._void and self.requests.ready:
            self.requests.ask_release(self._void.pop(), now, further=True)
        if self._unavailable:
            return
        for slot in self._slots[:wanted]:
            if not self._asking and self.requests.ready:
                slot.feed(ClientStreamInput.WANTED, now)
        if not self._asking and self._told != self.wish and self.requests.ready:
            self.ask(None, now)

    def ask(self, slot: int | None, now: float) -> None:
        self._asking = True
        self.requests.ask_redundancy(AskedRedundancy(self.wish, slot), now)

    def void(self, tsid: Tsid) -> None:
        """The server shall forget this stream: now, or when there is a main stream to tell it by."""
        self._void.append(tsid)

    def _set_spread(self) -> None:
        spread = self.wish.spread if self.up else Spread.SINGLE
        if spread is not self._spread:
            self._spread = spread
            self.core.emit(SetSpread(spread))

    def _show(self) -> None:
        shown, self._shown = self._shown, (self.wish, self.up + int(self.requests.up))
        concerned = NO_REDUNDANCY not in (shown[0], self.wish) or shown[0] != self.wish
        refused = self._unavailable and self._why in _UNKNOWN_LABELS
        if (shown != self._shown and concerned) or refused:
            self.core.notify(StreamsChanged(*self._shown, reason=self._why))
            self._why = "joined"

    def because(self, reason: str) -> None:
        self._why = reason

    def _find(self, tsid: Tsid) -> _Further | None:
        return next((slot for slot in self._slots if slot.tsid == tsid), None)


class _Further:
    """One further stream."""

    def __init__(self, streams: ClientStreams, index: int) -> None:
        self.tsid: Tsid | None = None
        self._streams = streams
        self._core = streams.core
        self._index = index
        self._machine: Machine[ClientStream, ClientStreamInput] = Machine(CLIENT_STREAM, ClientStream.ABSENT)
        self._secret = b""
        self._sequence: int | None = None
        self._failures = 0
        self._up_since: float | None = None

    @property
    def state(self) -> ClientStream:
        return self._machine.state

    def feed(self, given: ClientStreamInput, now: float, cause: object = None) -> bool:
        return self._machine.step(self, given, now, cause)

    def receive(self, message: m.Message, now: float) -> None:
        if isinstance(message, m.ConfigurationResponse):
            self._configured(message, now)
        elif isinstance(message, m.ReleaseRequest):
            answer = m.ReleaseResponse(tsid=message.tsid, sequence=message.sequence, code=Code.SUCCESS)
            self._send(answer)
            self.feed(ClientStreamInput.SERVER_RELEASED, now, "released-by-server")
        elif isinstance(message, m.ReleaseResponse) and message.sequence == self._sequence:
            self.feed(ClientStreamInput.RELEASED, now, "released")
        elif isinstance(message, m.ErrorResponse) and message.sequence == self._sequence:
            self.feed(ClientStreamInput.DENIED, now, code_label(message.code))
        else:
            self._core.counts["unexpected-message"] += 1

    def _configured(self, message: m.ConfigurationResponse, now: float) -> None:
        if message.sequence != self._sequence:
            self._core.counts["unexpected-response"] += 1
            return
        given = tuple(a.ip for a in (message.inner_ipv4, message.inner_ipv6) if a is not None)
        if message.code != Code.SUCCESS:
            self.feed(ClientStreamInput.DENIED, now, code_label(message.code))
        elif given != self._streams.addresses:
            self.feed(ClientStreamInput.DENIED, now, "other-address")
        else:
            self.feed(ClientStreamInput.GRANTED, now)

    # -- from state to state: handlers named in states.CLIENT_STREAM -----------------------------------------

    def _do_request(self, now: float, cause: object) -> None:
        self._streams.ask(self._index, now)

    def _do_open(self, now: float, cause: tuple[Tsid, bytes]) -> None:
        self.tsid, self._secret = cause
        self._arm(now + REQUEST_TIMEOUT_STREAM)
        self._core.emit(OpenExtra(self.tsid))

    def _do_configure(self, now: float, binding: bytes) -> None:
        """Attach before asking: the server may send media as soon as it has the request."""
        assert self.tsid is not None
        self._core.emit(AttachExtra(self.tsid))
        self._sequence = self._core.next_sequence()
        proof = join_proof(self._secret, self.tsid, binding)
        self._secret = b""
        self._send(m.ConfigurationRequest(tsid=self.tsid, sequence=self._sequence, join_proof=proof))
        self._arm(now + REQUEST_TIMEOUT_STREAM)

    def _do_bring_up(self, now: float, cause: object) -> None:
        assert self.tsid is not None
        self._disarm()
        self._up_since = now
        self._streams.because("joined")
        self._core.emit(UseExtra(self.tsid, used=True))

    def _do_release(self, now: float, cause: object) -> None:
        """Send nothing more on it, but take what the server has still sent until it answers."""
        assert self.tsid is not None
        self._streams.because("released")
        self._core.emit(UseExtra(self.tsid, used=False))
        self._sequence = self._core.next_sequence()
        self._send(m.ReleaseRequest(tsid=self.tsid, sequence=self._sequence))
        self._arm(now + RELEASE_TIMEOUT)

    def _do_give_up(self, now: float, cause: object) -> None:
        """No longer wanted before it was up."""
        assert self.tsid is not None
        self._streams.void(self.tsid)
        self._let_go("released")

    def _do_fail(self, now: float, reason: str) -> None:
        if self._up_since is not None and now - self._up_since >= STREAM_STABLE:
            self._failures = 0
        if self.tsid is not None:
            self._streams.void(self.tsid)
        self._streams.because(reason)
        self._let_go(reason)
        self._do_back_off(now, reason)

    def _do_back_off(self, now: float, reason: str) -> None:
        delay = min(STREAM_RETRY_MIN * 2**self._failures, STREAM_RETRY_MAX)
        self._failures = min(self._failures + 1, _BACKOFF_STEPS)
        self._arm(now + delay)

    def _do_retry(self, now: float, cause: object) -> None:
        self._disarm()

    def _do_drop(self, now: float, reason: str) -> None:
        self._let_go(reason)
        self._failures = 0

    def _let_go(self, reason: str) -> None:
        """Forget the stream, whatever state it was in."""
        self._disarm()
        self._secret = b""
        self._up_since = None
        tsid, self.tsid = self.tsid, None
        if tsid is not None:
            self._core.emit(CloseExtra(tsid, reason))

    def _send(self, message: m.Message) -> None:
        assert self.tsid is not None
        self._core.emit(SendExtra(self.tsid, message))

    def _arm(self, at: float) -> None:
        self._disarm()
        self._core.arm(f"{_TIMERS[self.state]}:{self._index}", at)

    def _disarm(self) -> None:
        for name in _TIMERS.values():
            self._core.disarm(f"{name}:{self._index}")


_UNKNOWN_LABELS: Final = frozenset(code_label(code) for code in _UNKNOWN)
_NAMES: Final = frozenset(_TIMERS.values())


def owns_timer(name: str) -> bool:
    """Whether a due timer is to be given to ``ClientStreams.timer``."""
    return name.partition(":")[0] in _NAMES
