"""Calls: from the first INVITE to the last word about them.

One call is one INVITE of one caller and whatever it leads to; several phones of the callee that ring are
one call, and the one that answers is its callee.

    TRYING ──> RINGING ──> ANSWERED ──> ENDED          any state but ENDED may end
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .deadlines import Deadlines
from .hop import Hop
from .media import MediaSession
from .parties import Client, Side

MAX_CALLS: Final = 10_000
"""Calls at once. Each has about 4 KiB and up to 4 ports per m-line; ports run out sooner."""

MAX_CALLS_PER_CLIENT: Final = 1_000
"""Calls one tunnelled client may have begun: a trunk of 500 lines, twice over. So one client cannot take
everybody's ports."""

MAX_SECONDS: Final = 24 * 3600.0
"""An answered call ends after a day: somebody's BYE was lost while the server was being restarted."""

SESSION_GRACE: Final = 32.0
"""Added to a session timer (RFC 4028): the refresher's own transaction may take that long."""


class CallState(enum.Enum):
    TRYING = "trying"
    RINGING = "ringing"
    ANSWERED = "answered"
    ENDED = "ended"


class CallInput(enum.Enum):
    RING = "180 or 183"
    ANSWER = "2xx"
    END = "refused, cancelled, hung up, timed out or lost"


TABLE: Final = {
    (CallState.TRYING, CallInput.RING): CallState.RINGING,
    (CallState.TRYING, CallInput.ANSWER): CallState.ANSWERED,
    (CallState.TRYING, CallInput.END): CallState.ENDED,
    (CallState.RINGING, CallInput.ANSWER): CallState.ANSWERED,
    (CallState.RINGING, CallInput.END): CallState.ENDED,
    (CallState.ANSWERED, CallInput.END): CallState.ENDED,
}
"""What is not in the table changes nothing (a second 180, a repeated 200)."""


class CallKey(NamedTuple):
    """Call-ID and the caller's tag: two callers with the same Call-ID have nothing to do with each other."""

    call_id: str
    tag: str


@dataclass(slots=True)
class Party:
    """One side of a call.

    Attributes:
        aor: ``user@domain``, or what it called itself. hop: where its requests come from and go to.
        client: the tunnel behind it, or None on the core side.
        tag: its dialog tag; empty until the callee has answered. contact: URI of its last Contact.
        header: its From or To text, tag and all. sequence: its last CSeq.
        addresses: sources (``Hop.source``) it has used in this call.
        trunk: name of the trunk behind it; empty if it is none.
    """

    aor: str
    hop: Hop
    client: Client | None
    tag: str = ""
    contact: str = ""
    sequence: int = 0
    header: str = ""
    addresses: set[str] = field(default_factory=set)
    trunk: str = ""

    def owns(self, address: str) -> bool:
        """Whether a request from this address can be this party's."""
        return address in self.addresses or (self.client is not None and address in self.client.addresses)


@dataclass(slots=True, eq=False)
class Call:
    """One call. Times are seconds on the core's clock; None: it did not come to that.

    Attributes:
        serial: unique for the life of the process; names its relays.
        until: when it ends by itself.
        ended_by: ``caller``, ``callee`` or ``server``. code: final SIP code of the INVITE.
        reason: stable name of why it ended.
    """

    key: CallKey
    serial: int
    caller: Party
    callee: Party
    media: MediaSession
    started: float
    sequence: int
    state: CallState = CallState.TRYING
    ringing: float | None = None
    answered: float | None = None
    ended: float | None = None
    ended_by: str = ""
    reason: str = ""
    code: int = 0
    until: float | None = None

    def step(self, what: CallInput) -> bool:
        """Returns whether the state changed."""
        new = TABLE.get((self.state, what))
        if new is None:
            return False
        self.state = new
        return True

    def party(self, side: Side) -> Party:
        return self.caller if side is Side.CALLER else self.callee

    def side_of(self, from_tag: str) -> Side:
        """Who sends a request with this From tag."""
        return Side.CALLER if from_tag == self.key.tag else Side.CALLEE


class Calls:
    """All calls of one SBC, found by any request of their dialogs."""

    def __init__(self) -> None:
        self._calls: dict[CallKey, Call] = {}
        self._deadlines: Deadlines[CallKey] = Deadlines()
        self._per_client: Counter[str] = Counter()
        self._serial = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def find(self, call_id: str, from_tag: str, to_tag: str) -> Call | None:
        """The call of a request, from whichever side."""
        call = self._calls.get(CallKey(call_id, from_tag))
        return call if call is not None else self._calls.get(CallKey(call_id, to_tag))

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def serial_used(self, serial: int) -> None:
        """A call from before a restart has this one."""
        self._serial = max(self._serial, serial)

    def is_full_for(self, address: str) -> bool:
        return len(self._calls) >= MAX_CALLS or self._per_client[address] >= MAX_CALLS_PER_CLIENT

    def add(self, call: Call) -> None:
        self._calls[call.key] = call
        self._per_client[call.caller.hop.source] += 1

    def remove(self, call: Call) -> None:
        if self._calls.pop(call.key, None) is None:
            return
        self._deadlines.cancel(call.key)
        address = call.caller.hop.source
        self._per_client[address] -= 1
        if not self._per_client[address]:
            del self._per_client[address]

    def watch(self, call: Call, until: float) -> None:
        """The call ends by itself unless it is watched anew before."""
        call.until = until
        self._deadlines.set(call.key, until)

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def expire(self, now: float) -> list[Call]:
        """Calls whose time is up; the caller ends them."""
        due = []
        while (key := self._deadlines.pop_due(now)) is not None:
            due.append(self._calls[key])
        return due
