"""The server's side of a client's streams beside the main one: reserved, joined by proof, used, given back.

    ABSENT -> RESERVED -> UP -> LEAVING -> ABSENT
       Service Request  join   released by the client, which closes it when it has our answer

The whole table is ``states.SERVER_STREAM``. A reservation has a TSID and a secret, both told on the
session's own stream only; a new stream becomes the session's by a proof made from that secret for its own
TLS connection, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentsm.limits import RESERVATION_LIFETIME
from opentsm.protocol.actions import (
    AttachExtra,
    CloseExtra,
    ReserveExtra,
    SendExtra,
    SetSpread,
    StreamsChanged,
    UnreserveExtra,
    UseExtra,
)
from opentsm.protocol.core import Core, Machine
from opentsm.protocol.resume import join_holds
from opentsm.protocol.states import SERVER_STREAM, ServerStream, ServerStreamInput
from opentsm.types import NO_REDUNDANCY, Code, ServiceAction, Spread, Tsid
from opentsm.wire import messages as m

LEAVE_TIMEOUT: Final = 4.0
"""Seconds a client has to close a stream it has given back before we do: it waits less for our answer."""

_TIMERS: Final = {ServerStream.RESERVED: "extra-reservation", ServerStream.LEAVING: "extra-leaving"}


def peek_join(message: m.Message) -> Tsid | None:
    """The reserved TSID under which this first message of a stream wants to join a session, or None."""
    if isinstance(message, m.ConfigurationRequest) and message.join_proof is not None:
        return message.tsid
    return None


class ServerStreams:
    """The further streams of a server session.

    Args:
        new_tsid, new_secret: where a reservation's unguessable values come from; the second takes a TSID and
            a generation.
    """

    __slots__ = ("_core", "_new_secret", "_new_tsid", "_spread", "_streams", "redundancy")

    def __init__(
        self, core: Core, *, new_tsid: Callable[[], Tsid], new_secret: Callable[[Tsid, int], bytes]
    ) -> None:
        self.redundancy = NO_REDUNDANCY
        self._core = core
        self._new_tsid = new_tsid
        self._new_secret = new_secret
        self._streams: dict[Tsid, _Further] = {}
        self._spread = Spread.SINGLE

    @property
    def up(self) -> int:
        """Further streams that carry media."""
        return sum(stream.state is ServerStream.UP for stream in self._streams.values())

    @property
    def states(self) -> dict[Tsid, ServerStream]:
        """Every further stream there is, and every reservation."""
        return {tsid: stream.state for tsid, stream in self._streams.items()}

    # -- inputs ---------------------------------------------------------------------------------------

    def asked(self, message: m.ServiceRequest, now: float) -> tuple[Code, Tsid | None, bytes | None]:
        """A Service Request to enable or disable redundancy.

        Returns:
            the code, and the TSID and secret of a stream that was reserved, if one was missing.
        """
        if message.action != ServiceAction.ENABLE:
            self.redundancy = NO_REDUNDANCY
            self._set_spread()
            for stream in tuple(self._streams.values()):
                if stream.state is ServerStream.RESERVED:
                    stream.feed(ServerStreamInput.RELEASED, now)
            return Code.SUCCESS, None, None
        if message.redundancy is None or message.redundancy == NO_REDUNDANCY:
            return Code.BAD_REQUEST, None, None
        self.redundancy = message.redundancy
        self._set_spread()
        held = sum(stream.state is not ServerStream.LEAVING for stream in self._streams.values())
        if held >= message.redundancy.streams - 1:
            return Code.SUCCESS, None, None
        tsid = self._new_tsid()
        secret = self._new_secret(tsid, 0)
        stream = self._streams[tsid] = _Further(self, self._core, tsid, secret)
        stream.feed(ServerStreamInput.ENABLE, now)
        return Code.SUCCESS, tsid, secret

    def verify(self, message: m.Message, binding: bytes) -> bool:
        """Whether this first message of a stream with this binding may join. Changes nothing."""
        tsid = peek_join(message)
        stream = None if tsid is None else self._streams.get(tsid)
        proof = getattr(message, "join_proof", None)
        return stream is not None and proof is not None and stream.holds(proof, binding)

    def join(self, message: m.Message, now: float, answer: m.ConfigurationResponse) -> None:
        """The stream whose first message was verified is ours; it gets this answer."""
        self._streams[message.tsid].feed(ServerStreamInput.JOIN, now, answer)
        self._set_spread()

    def receive(self, tsid: Tsid, message: m.Message, now: float) -> None:
        """A decoded control message from a further stream."""
        stream = self._streams.get(tsid)
        if stream is None or message.tsid != tsid:
            self._core.counts["wrong-tsid"] += 1
        elif isinstance(message, m.ReleaseRequest):
            answer = m.ReleaseResponse(tsid=tsid, sequence=message.sequence, code=Code.SUCCESS)
            stream.feed(ServerStreamInput.RELEASED, now, "released")
            self._core.emit(SendExtra(tsid, answer))
        elif isinstance(message, m.ConfigurationRequest | m.ServiceRequest):
            self._core.counts["not-allowed-now"] += 1
            wrong = m.ErrorResponse(tsid=tsid, sequence=message.sequence, code=Code.WRONG_STATE)
            self._core.emit(SendExtra(tsid, wrong))
        elif isinstance(message, m.UnknownMessage):
            self._core.counts["unknown-type"] += 1
            unknown = m.ErrorResponse(tsid=tsid, sequence=message.sequence, code=Code.UNKNOWN_TYPE)
            self._core.emit(SendExtra(tsid, unknown))
        elif not isinstance(message, m.ReleaseResponse):
            self._core.counts["unexpected-message"] += 1
        self._set_spread()

    def lost(self, tsid: Tsid, reason: str, now: float) -> None:
        """A further stream has ended, or is silent."""
        if (stream := self._streams.get(tsid)) is not None:
            stream.feed(ServerStreamInput.LOST, now, reason)
        self._set_spread()

    def released(self, tsid: Tsid, now: float) -> bool:
        """The client says on its main stream that this one is no more. False: there is none such."""
        stream = self._streams.get(tsid)
        if stream is None:
            return False
        if not stream.feed(ServerStreamInput.LOST, now, "released"):
            stream.feed(ServerStreamInput.RELEASED, now, "released")
        self._set_spread()
        return True

    def reset(self, reason: str, now: float) -> None:
        """The session ends."""
        for stream in tuple(self._streams.values()):
            stream.feed(ServerStreamInput.RESET, now, reason)
        self._set_spread()

    def timer(self, name: str, now: float) -> None:
        """A timer of ``owns_timer`` is due."""
        kind, _, tsid = name.partition(":")
        if (stream := self._streams.get(Tsid(int(tsid, 16)))) is not None:
            stream.feed(ServerStreamInput.TIMER, now, kind)

    # -- what the machines ask for ----------------------------------------------------------------------

    def forget(self, tsid: Tsid) -> None:
        self._streams.pop(tsid, None)

    def changed(self, reason: str) -> None:
        """``up`` counts the further streams only: whether there is a main one is the session's affair."""
        self._core.notify(StreamsChanged(self.redundancy, self.up, reason))

    def _set_spread(self) -> None:
        spread = self.redundancy.spread if self.up else Spread.SINGLE
        if spread is not self._spread:
            self._spread = spread
            self._core.emit(SetSpread(spread))


class _Further:
    """One further stream, or its reservation."""

    __slots__ = ("_core", "_machine", "_secret", "_streams", "_tsid")

    def __init__(self, streams: ServerStreams, core: Core, tsid: Tsid, secret: bytes) -> None:
        self._streams = streams
        self._core = core
        self._tsid = tsid
        self._secret: bytes | None = secret
        self._machine: Machine[ServerStream, ServerStreamInput] = Machine(SERVER_STREAM, ServerStream.ABSENT)

    @property
    def state(self) -> ServerStream:
        return self._machine.state

    def feed(self, given: ServerStreamInput, now: float, cause: object = None) -> bool:
        return self._machine.step(self, given, now, cause)

    def holds(self, proof: bytes, binding: bytes) -> bool:
        """Only a reservation can be joined, so a proof is good once."""
        reserved = self.state is ServerStream.RESERVED and self._secret is not None
        return reserved and join_holds(proof, self._secret or b"", self._tsid, binding)

    # -- from state to state: handlers named in states.SERVER_STREAM -----------------------------------------

    def _do_reserve(self, now: float, cause: object) -> None:
        self._arm(now + RESERVATION_LIFETIME)
        self._core.emit(ReserveExtra(self._tsid))

    def _do_unreserve(self, now: float, cause: object) -> None:
        self._core.emit(UnreserveExtra(self._tsid))
        self._end()

    def _do_bring_up(self, now: float, answer: m.ConfigurationResponse) -> None:
        """The client attached before it asked, so media may follow the answer at once."""
        self._disarm()
        self._secret = None
        self._core.emit(UnreserveExtra(self._tsid))
        self._core.emit(AttachExtra(self._tsid))
        self._core.emit(SendExtra(self._tsid, answer))
        self._core.emit(UseExtra(self._tsid, used=True))
        self._streams.changed("joined")

    def _do_let_go(self, now: float, cause: object) -> None:
        """Nothing more by it; the client closes it when it has our answer."""
        self._arm(now + LEAVE_TIMEOUT)
        self._core.emit(UseExtra(self._tsid, used=False))
        self._streams.changed("released")

    def _do_take_down(self, now: float, reason: str) -> None:
        self._core.emit(CloseExtra(self._tsid, reason))
        self._end()
        self._streams.changed(reason)

    def _do_close(self, now: float, reason: str) -> None:
        self._core.emit(CloseExtra(self._tsid, "released"))
        self._end()

    def _end(self) -> None:
        self._disarm()
        self._streams.forget(self._tsid)

    def _arm(self, at: float) -> None:
        self._disarm()
        self._core.arm(f"{_TIMERS[self.state]}:{self._tsid:016x}", at)

    def _disarm(self) -> None:
        for name in _TIMERS.values():
            self._core.disarm(f"{name}:{self._tsid:016x}")


_NAMES: Final = frozenset(_TIMERS.values())


def owns_timer(name: str) -> bool:
    """Whether a due timer is to be given to ``ServerStreams.timer``."""
    return name.partition(":")[0] in _NAMES
