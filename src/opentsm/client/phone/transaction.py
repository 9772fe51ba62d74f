"""The four transaction machines of RFC 3261 section 17, with RFC 6026's corrections, as tables.

On a reliable transport nothing is repeated but the 2xx, and nobody waits for repetitions. One addition: a
server's 2xx to INVITE is repeated by its transaction and not by what is above it (RFC 3261 section 13.3.1.4
gives the timers); who sees the ACK says so with ``Input.ACK``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from opentsm.types import SocketAddress

T1: Final = 0.5
"""Round-trip estimate, first retransmission (RFC 3261 section 17.1.1.1)."""

T2: Final = 4.0
"""Longest retransmission interval of all but INVITE requests."""

T4: Final = 5.0
"""How long a message stays in the network."""

GIVE_UP: Final = 64 * T1
"""Timers B, F, H, J, L and M."""

TIMER_D: Final = 32.0
"""Wait for repeated final responses to INVITE on UDP."""


class Kind(Enum):
    INVITE_CLIENT = auto()
    CLIENT = auto()
    INVITE_SERVER = auto()
    SERVER = auto()


class State(Enum):
    CALLING = auto()
    TRYING = auto()
    PROCEEDING = auto()
    COMPLETED = auto()
    ACCEPTED = auto()
    CONFIRMED = auto()
    TERMINATED = auto()


class Input(Enum):
    """What can happen. Clients receive responses, servers receive requests and send responses."""

    PROVISIONAL = auto()
    SUCCESS = auto()
    FAILURE = auto()
    REQUEST = auto()
    ACK = auto()
    RETRANSMIT = auto()
    GIVE_UP = auto()
    LINGER = auto()


class Effect(Enum):
    """What is to be done: send the last message (again), acknowledge, tell the user."""

    SEND = auto()
    ACK = auto()
    UP = auto()
    TIMEOUT = auto()


_Row = tuple[State, tuple[Effect, ...]]
_Table = dict[tuple[State, Input], _Row]

_INVITE_CLIENT: Final[_Table] = {  # figure 5
    (State.CALLING, Input.RETRANSMIT): (State.CALLING, (Effect.SEND,)),
    (State.CALLING, Input.GIVE_UP): (State.TERMINATED, (Effect.TIMEOUT,)),
    (State.CALLING, Input.PROVISIONAL): (State.PROCEEDING, (Effect.UP,)),
    (State.CALLING, Input.SUCCESS): (State.ACCEPTED, (Effect.UP,)),
    (State.CALLING, Input.FAILURE): (State.COMPLETED, (Effect.ACK, Effect.UP)),
    (State.PROCEEDING, Input.PROVISIONAL): (State.PROCEEDING, (Effect.UP,)),
    (State.PROCEEDING, Input.SUCCESS): (State.ACCEPTED, (Effect.UP,)),
    (State.PROCEEDING, Input.FAILURE): (State.COMPLETED, (Effect.ACK, Effect.UP)),
    (State.COMPLETED, Input.FAILURE): (State.COMPLETED, (Effect.ACK,)),
    (State.COMPLETED, Input.LINGER): (State.TERMINATED, ()),
    (State.ACCEPTED, Input.SUCCESS): (State.ACCEPTED, (Effect.UP,)),
    (State.ACCEPTED, Input.LINGER): (State.TERMINATED, ()),
}

_CLIENT: Final[_Table] = {  # figure 6
    (State.TRYING, Input.RETRANSMIT): (State.TRYING, (Effect.SEND,)),
    (State.TRYING, Input.GIVE_UP): (State.TERMINATED, (Effect.TIMEOUT,)),
    (State.TRYING, Input.PROVISIONAL): (State.PROCEEDING, (Effect.UP,)),
    (State.TRYING, Input.SUCCESS): (State.COMPLETED, (Effect.UP,)),
    (State.TRYING, Input.FAILURE): (State.COMPLETED, (Effect.UP,)),
    (State.PROCEEDING, Input.RETRANSMIT): (State.PROCEEDING, (Effect.SEND,)),
    (State.PROCEEDING, Input.GIVE_UP): (State.TERMINATED, (Effect.TIMEOUT,)),
    (State.PROCEEDING, Input.PROVISIONAL): (State.PROCEEDING, (Effect.UP,)),
    (State.PROCEEDING, Input.SUCCESS): (State.COMPLETED, (Effect.UP,)),
    (State.PROCEEDING, Input.FAILURE): (State.COMPLETED, (Effect.UP,)),
    (State.COMPLETED, Input.LINGER): (State.TERMINATED, ()),
}

_INVITE_SERVER: Final[_Table] = {  # figure 7
    (State.PROCEEDING, Input.REQUEST): (State.PROCEEDING, (Effect.SEND,)),
    (State.PROCEEDING, Input.PROVISIONAL): (State.PROCEEDING, (Effect.SEND,)),
    (State.PROCEEDING, Input.SUCCESS): (State.ACCEPTED, (Effect.SEND,)),
    (State.PROCEEDING, Input.FAILURE): (State.COMPLETED, (Effect.SEND,)),
    (State.ACCEPTED, Input.REQUEST): (State.ACCEPTED, (Effect.SEND,)),
    (State.ACCEPTED, Input.RETRANSMIT): (State.ACCEPTED, (Effect.SEND,)),
    (State.ACCEPTED, Input.GIVE_UP): (State.TERMINATED, (Effect.TIMEOUT,)),
    (State.ACCEPTED, Input.ACK): (State.CONFIRMED, ()),
    (State.COMPLETED, Input.REQUEST): (State.COMPLETED, (Effect.SEND,)),
    (State.COMPLETED, Input.RETRANSMIT): (State.COMPLETED, (Effect.SEND,)),
    (State.COMPLETED, Input.GIVE_UP): (State.TERMINATED, ()),
    (State.COMPLETED, Input.ACK): (State.CONFIRMED, ()),
    (State.CONFIRMED, Input.LINGER): (State.TERMINATED, ()),
}

_SERVER: Final[_Table] = {  # figure 8
    (State.TRYING, Input.PROVISIONAL): (State.PROCEEDING, (Effect.SEND,)),
    (State.TRYING, Input.SUCCESS): (State.COMPLETED, (Effect.SEND,)),
    (State.TRYING, Input.FAILURE): (State.COMPLETED, (Effect.SEND,)),
    (State.PROCEEDING, Input.REQUEST): (State.PROCEEDING, (Effect.SEND,)),
    (State.PROCEEDING, Input.PROVISIONAL): (State.PROCEEDING, (Effect.SEND,)),
    (State.PROCEEDING, Input.SUCCESS): (State.COMPLETED, (Effect.SEND,)),
    (State.PROCEEDING, Input.FAILURE): (State.COMPLETED, (Effect.SEND,)),
    (State.COMPLETED, Input.REQUEST): (State.COMPLETED, (Effect.SEND,)),
    (State.COMPLETED, Input.LINGER): (State.TERMINATED, ()),
}

UNANSWERED: Final = frozenset({State.CALLING, State.TRYING})
"""A client's request of which nothing has been heard."""

TABLES: Final = {
    Kind.INVITE_CLIENT: _INVITE_CLIENT,
    Kind.CLIENT: _CLIENT,
    Kind.INVITE_SERVER: _INVITE_SERVER,
    Kind.SERVER: _SERVER,
}

FIRST: Final = {
    Kind.INVITE_CLIENT: State.CALLING,
    Kind.CLIENT: State.TRYING,
    Kind.INVITE_SERVER: State.PROCEEDING,
    Kind.SERVER: State.TRYING,
}

# Timers that run in a state, set when it is entered. RETRANSMIT doubles, up to the ceiling below.
TIMERS: Final[dict[tuple[Kind, State], dict[Input, float]]] = {
    (Kind.INVITE_CLIENT, State.CALLING): {Input.RETRANSMIT: T1, Input.GIVE_UP: GIVE_UP},  # A, B
    (Kind.INVITE_CLIENT, State.COMPLETED): {Input.LINGER: TIMER_D},  # D
    (Kind.INVITE_CLIENT, State.ACCEPTED): {Input.LINGER: GIVE_UP},  # M
    (Kind.CLIENT, State.TRYING): {Input.RETRANSMIT: T1, Input.GIVE_UP: GIVE_UP},  # E, F
    (Kind.CLIENT, State.PROCEEDING): {Input.RETRANSMIT: T2, Input.GIVE_UP: GIVE_UP},  # E, F
    (Kind.CLIENT, State.COMPLETED): {Input.LINGER: T4},  # K
    (Kind.INVITE_SERVER, State.ACCEPTED): {Input.RETRANSMIT: T1, Input.GIVE_UP: GIVE_UP},  # L
    (Kind.INVITE_SERVER, State.COMPLETED): {Input.RETRANSMIT: T1, Input.GIVE_UP: GIVE_UP},  # G, H
    (Kind.INVITE_SERVER, State.CONFIRMED): {Input.LINGER: T4},  # I
    (Kind.SERVER, State.COMPLETED): {Input.LINGER: GIVE_UP},  # J
}

_ONLY_FOR_REPETITIONS: Final = frozenset(
    {
        (Kind.INVITE_CLIENT, State.COMPLETED),  # D
        (Kind.CLIENT, State.COMPLETED),  # K
        (Kind.INVITE_SERVER, State.CONFIRMED),  # I
        (Kind.SERVER, State.COMPLETED),  # J
    }
)
"""States that last no time at all on a reliable transport: they wait for what it would have to repeat."""

_REPEATED_END_TO_END: Final = (Kind.INVITE_SERVER, State.ACCEPTED)
"""A 2xx may have unreliable transports behind this one (RFC 3261 section 13.3.1.4)."""

_CEILING: Final = {Kind.INVITE_CLIENT: GIVE_UP}


def input_for(code: int) -> Input:
    """The input that a response is, on either side."""
    return Input.PROVISIONAL if code < 200 else Input.SUCCESS if code < 300 else Input.FAILURE


@dataclass(slots=True)
class Transaction:
    """One transaction.

    Args:
        message: what was sent last, to be sent again; empty: nothing yet. to: where.
        reliable: by a transport that repeats what is lost by itself.
    """

    kind: Kind
    key: tuple[str, ...]
    to: SocketAddress
    message: bytes = b""
    reliable: bool = field(default=False, kw_only=True)
    state: State = field(init=False)
    _deadlines: dict[Input, float] = field(default_factory=dict)
    _interval: float = T1

    def __post_init__(self) -> None:
        self.state = FIRST[self.kind]

    def start(self, now: float) -> None:
        """Its first message has been sent (clients) or received (servers)."""
        self._enter(now)

    def give_up(self) -> None:
        """It cannot be sent."""
        self.state = State.TERMINATED
        self._deadlines = {}

    def by_unreliable(self, now: float, message: bytes) -> None:
        """A client's request, not answered yet, goes out anew on a transport that may lose it."""
        self.reliable, self.message = False, message
        self._enter(now)

    @property
    def deadline(self) -> float | None:
        return min(self._deadlines.values(), default=None)

    @property
    def over(self) -> bool:
        return self.state is State.TERMINATED

    def due(self, now: float) -> Input | None:
        """The timer that has run out longest ago."""
        if not self._deadlines:
            return None
        timer = min(self._deadlines, key=lambda name: self._deadlines[name])
        return timer if self._deadlines[timer] <= now else None

    def feed(self, now: float, happened: Input) -> tuple[Effect, ...]:
        """Something has happened; what is to be done. What the table does not list changes nothing."""
        row = TABLES[self.kind].get((self.state, happened))
        if row is None:
            self._deadlines.pop(happened, None)
            return ()
        before, self.state = self.state, row[0]
        if self.state is not before:
            self._enter(now)
        elif happened is Input.RETRANSMIT:
            self._interval = min(2 * self._interval, _CEILING.get(self.kind, T2))
            self._deadlines[Input.RETRANSMIT] = now + self._interval
        return row[1]

    def _enter(self, now: float) -> None:
        """Set the timers of the state. F goes on where the first provisional response changes the state."""
        given_up = self._deadlines.get(Input.GIVE_UP)
        timers = TIMERS.get((self.kind, self.state), {})
        if self.reliable:
            timers = self._without_repetition(timers)
        self._deadlines = {name: now + seconds for name, seconds in timers.items()}
        self._interval = timers.get(Input.RETRANSMIT, T1)
        if self.kind is Kind.CLIENT and given_up is not None and Input.GIVE_UP in timers:
            self._deadlines[Input.GIVE_UP] = given_up

    def _without_repetition(self, timers: dict[Input, float]) -> dict[Input, float]:
        place = (self.kind, self.state)
        if place in _ONLY_FOR_REPETITIONS:
            return dict.fromkeys(timers, 0.0)
        if place == _REPEATED_END_TO_END:
            return timers
        return {name: seconds for name, seconds in timers.items() if name is not Input.RETRANSMIT}
