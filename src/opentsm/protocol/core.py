"""What both halves stand on: action list, named timers, counters, a table-driven machine, requests."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from opentsm.protocol.actions import Action, Deadline, Notify, Send, SessionEvent
from opentsm.protocol.states import Table
from opentsm.types import Code, Path
from opentsm.wire.messages import Message

S = TypeVar("S", bound=enum.Enum)
I = TypeVar("I", bound=enum.Enum)  # noqa: E741
K = TypeVar("K")

_SEQUENCES: Final = 1 << 32


class Core:
    """Outputs of one session, shared by its machines."""

    __slots__ = ("_actions", "_counts", "_sequence", "_timers")

    def __init__(self) -> None:
        self._counts: Counter[str] | None = None
        self._actions: list[Action] = []
        self._timers: dict[str, float] = {}
        self._sequence = 0

    @property
    def counts(self) -> Counter[str]:
        """Named drops; made with the first of them, as most sessions have none."""
        if self._counts is None:
            self._counts = Counter()
        return self._counts

    @property
    def counted(self) -> bool:
        """Whether anything may have been counted."""
        return self._counts is not None

    def emit(self, action: Action) -> None:
        self._actions.append(action)

    def notify(self, event: SessionEvent) -> None:
        self.emit(Notify(event))

    def send(self, path: Path, message: Message) -> None:
        self.emit(Send(path, message))

    def drain(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def next_sequence(self) -> int:
        """Sequences of our own requests grow by one; after 2^32 - 1 comes 0."""
        self._sequence = (self._sequence + 1) % _SEQUENCES
        return self._sequence

    def arm(self, timer: str, at: float) -> None:
        self._timers[timer] = at

    def disarm(self, timer: str) -> None:
        self._timers.pop(timer, None)

    def disarm_all(self) -> None:
        self._timers.clear()

    def armed(self, timer: str) -> bool:
        return timer in self._timers

    def deadline(self) -> Deadline | None:
        if not self._timers:
            return None
        reason = min(self._timers, key=self._timers.__getitem__)
        return Deadline(self._timers[reason], reason)

    def pop_due(self, now: float) -> str | None:
        """The timer that is due longest, disarmed; None when none is."""
        deadline = self.deadline()
        if deadline is None or deadline.at > now:
            return None
        self.disarm(deadline.reason)
        return deadline.reason


class Machine(Generic[S, I]):
    """A state and the table that moves it.

    It does not hold its owner, who holds it: a session without reference cycles is freed when it ends, and
    needs no collector.
    """

    __slots__ = ("_state", "_table")

    def __init__(self, table: Table, start: S) -> None:
        self._table = table
        self._state = start

    @property
    def state(self) -> S:
        return self._state

    def step(self, owner: object, given: I, now: float, cause: Any = None) -> bool:
        """Feed one input; False if the table ignores it in this state.

        Args:
            owner: has the handlers, as methods ``_do_<handler>``.
            cause: what the handler needs to know (a message, a reason), passed on unread.
        """
        row = self._table[self._state, given]
        if row.ignored:
            return False
        self._state = row.next  # type: ignore[assignment]  # a table holds the states of one enum
        if row.handler:
            getattr(owner, "_do_" + row.handler)(now, cause)
        return True


@dataclass(frozen=True, slots=True)
class Rule:
    """When a message may come, and who handles it.

    Args:
        handler: method ``_on_<handler>`` of the session.
        states: states of the session it may come in.
    """

    handler: str
    states: frozenset[enum.Enum]


Rules = Mapping[tuple[type[Message], Path], Rule]
"""A message type on a path that has no rule is never allowed there."""


class Outstanding(Generic[K]):
    """Our unanswered requests on one stream, oldest first (a stream keeps order)."""

    __slots__ = ("_limit", "_requests")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: dict[int, tuple[float, K]] = {}

    @property
    def full(self) -> bool:
        return len(self._requests) >= self._limit

    @property
    def oldest(self) -> tuple[float, K] | None:
        """The request that waits longest, and when it was sent."""
        return next(iter(self._requests.values()), None)

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, sequence: int, request: K, now: float) -> None:
        self._requests[sequence] = (now, request)

    def take(self, sequence: int) -> K | None:
        """The request this sequence answers, no longer outstanding; None for one we never sent."""
        found = self._requests.pop(sequence, None)
        return found[1] if found else None

    def clear(self) -> list[K]:
        """Forget all of them and say which they were."""
        requests = [request for _, request in self._requests.values()]
        self._requests.clear()
        return requests


def is_newer(sequence: int, than: int) -> bool:
    """Whether a sequence comes after another, also where the numbers have wrapped in between (RFC 1982)."""
    return 0 < (sequence - than) % _SEQUENCES < _SEQUENCES // 2


def code_label(code: Code | int) -> str:
    """A stable name for logs, also for codes a newer peer invented."""
    return code.label if isinstance(code, Code) else f"code-{int(code)}"
