"""Transactions: who sends what again, and until when.

RFC 3261 section 17 with the corrections of RFC 6026 (2xx answers have a state of their own, so that a
stateful proxy passes on repeated ones). Four machines, one table. A response that no transaction
waits for is dropped by name (RFC 6026 section 7.3).
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from opentsm.types import SocketAddress

from . import dialling
from .deadlines import Deadlines
from .hop import Hop
from .message import Request, Response


class Kind(enum.Enum):
    INVITE_CLIENT = "invite-client"
    CLIENT = "client"
    INVITE_SERVER = "invite-server"
    SERVER = "server"


class State(enum.Enum):
    CALLING = "calling"
    TRYING = "trying"
    PROCEEDING = "proceeding"
    ACCEPTED = "accepted"
    COMPLETED = "completed"
    CONFIRMED = "confirmed"
    TERMINATED = "terminated"


class Timer(enum.Enum):
    """Named as in RFC 3261 table 4 and RFC 6026."""

    A = "request again"
    B = "no answer"
    D = "absorb answers"
    E = "request again, other methods"
    F = "no answer, other methods"
    G = "answer again"
    H = "no ACK"
    I = "absorb ACKs"  # noqa: E741 - the RFC's letter
    J = "absorb requests"
    K = "absorb answers, other methods"
    L = "pass on 2xx, server"
    M = "pass on 2xx, client"


class Input(enum.Enum):
    """What can happen to a transaction. ``SEND_*``: its user answers; ``GOT_*``: the peer did; ``AGAIN``,
    ``OVER``: a timer that repeats, or that ends a wait."""

    GOT_PROVISIONAL = "got 1xx"
    GOT_SUCCESS = "got 2xx"
    GOT_FAILURE = "got 3xx-6xx"
    GOT_REQUEST = "got the request again"
    GOT_ACK = "got ACK"
    SEND_PROVISIONAL = "send 1xx"
    SEND_SUCCESS = "send 2xx"
    SEND_FAILURE = "send 3xx-6xx"
    AGAIN = "time to send again"
    OVER = "waited long enough"


class Do(enum.Enum):
    """What to do about it, beside the change of state."""

    TELL = "hand it to the transaction's user"
    SEND = "send what the user gave"
    REPEAT = "send the last message again"
    ACK = "acknowledge the failure"
    TIMEOUT = "tell the user that nobody answered"


@dataclass(frozen=True, slots=True)
class Timing:
    """RFC 3261 table 4, seconds."""

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0

    @property
    def patience(self) -> float:
        return 64 * self.t1


class TransactionKey(NamedTuple):
    """``side`` is ``client`` or ``server``. ``peer`` is the source address of a server transaction, so
    that nobody can meddle with another's, and empty for a client one (our branches cannot be guessed)."""

    side: str
    branch: str
    method: str
    peer: str = ""


_C, _S, _IC, _IS = Kind.CLIENT, Kind.SERVER, Kind.INVITE_CLIENT, Kind.INVITE_SERVER
_St, _In = State, Input

TABLE: Final[dict[tuple[Kind, State, Input], tuple[State, tuple[Do, ...]]]] = {
    # INVITE client: RFC 3261 figure 5, RFC 6026 figure 5
    (_IC, _St.CALLING, _In.AGAIN): (_St.CALLING, (Do.REPEAT,)),
    (_IC, _St.CALLING, _In.OVER): (_St.TERMINATED, (Do.TIMEOUT,)),
    (_IC, _St.CALLING, _In.GOT_PROVISIONAL): (_St.PROCEEDING, (Do.TELL,)),
    (_IC, _St.CALLING, _In.GOT_SUCCESS): (_St.ACCEPTED, (Do.TELL,)),
    (_IC, _St.CALLING, _In.GOT_FAILURE): (_St.COMPLETED, (Do.ACK, Do.TELL)),
    (_IC, _St.PROCEEDING, _In.GOT_PROVISIONAL): (_St.PROCEEDING, (Do.TELL,)),
    (_IC, _St.PROCEEDING, _In.GOT_SUCCESS): (_St.ACCEPTED, (Do.TELL,)),
    (_IC, _St.PROCEEDING, _In.GOT_FAILURE): (_St.COMPLETED, (Do.ACK, Do.TELL)),
    (_IC, _St.ACCEPTED, _In.GOT_SUCCESS): (_St.ACCEPTED, (Do.TELL,)),
    (_IC, _St.ACCEPTED, _In.OVER): (_St.TERMINATED, ()),
    (_IC, _St.COMPLETED, _In.GOT_FAILURE): (_St.COMPLETED, (Do.ACK,)),
    (_IC, _St.COMPLETED, _In.OVER): (_St.TERMINATED, ()),
    # other client: figure 6
    (_C, _St.TRYING, _In.AGAIN): (_St.TRYING, (Do.REPEAT,)),
    (_C, _St.TRYING, _In.OVER): (_St.TERMINATED, (Do.TIMEOUT,)),
    (_C, _St.TRYING, _In.GOT_PROVISIONAL): (_St.PROCEEDING, (Do.TELL,)),
    (_C, _St.TRYING, _In.GOT_SUCCESS): (_St.COMPLETED, (Do.TELL,)),
    (_C, _St.TRYING, _In.GOT_FAILURE): (_St.COMPLETED, (Do.TELL,)),
    (_C, _St.PROCEEDING, _In.AGAIN): (_St.PROCEEDING, (Do.REPEAT,)),
    (_C, _St.PROCEEDING, _In.OVER): (_St.TERMINATED, (Do.TIMEOUT,)),
    (_C, _St.PROCEEDING, _In.GOT_PROVISIONAL): (_St.PROCEEDING, (Do.TELL,)),
    (_C, _St.PROCEEDING, _In.GOT_SUCCESS): (_St.COMPLETED, (Do.TELL,)),
    (_C, _St.PROCEEDING, _In.GOT_FAILURE): (_St.COMPLETED, (Do.TELL,)),
    (_C, _St.COMPLETED, _In.OVER): (_St.TERMINATED, ()),
    # INVITE server: figure 7, RFC 6026 figure 4
    (_IS, _St.PROCEEDING, _In.GOT_REQUEST): (_St.PROCEEDING, (Do.REPEAT,)),
    (_IS, _St.PROCEEDING, _In.SEND_PROVISIONAL): (_St.PROCEEDING, (Do.SEND,)),
    (_IS, _St.PROCEEDING, _In.SEND_SUCCESS): (_St.ACCEPTED, (Do.SEND,)),
    (_IS, _St.PROCEEDING, _In.SEND_FAILURE): (_St.COMPLETED, (Do.SEND,)),
    (_IS, _St.ACCEPTED, _In.SEND_SUCCESS): (_St.ACCEPTED, (Do.SEND,)),
    (_IS, _St.ACCEPTED, _In.OVER): (_St.TERMINATED, ()),
    (_IS, _St.COMPLETED, _In.GOT_REQUEST): (_St.COMPLETED, (Do.REPEAT,)),
    (_IS, _St.COMPLETED, _In.AGAIN): (_St.COMPLETED, (Do.REPEAT,)),
    (_IS, _St.COMPLETED, _In.GOT_ACK): (_St.CONFIRMED, ()),
    (_IS, _St.COMPLETED, _In.OVER): (_St.TERMINATED, ()),
    (_IS, _St.CONFIRMED, _In.OVER): (_St.TERMINATED, ()),
    # other server: figure 8
    (_S, _St.TRYING, _In.SEND_PROVISIONAL): (_St.PROCEEDING, (Do.SEND,)),
    (_S, _St.TRYING, _In.SEND_SUCCESS): (_St.COMPLETED, (Do.SEND,)),
    (_S, _St.TRYING, _In.SEND_FAILURE): (_St.COMPLETED, (Do.SEND,)),
    (_S, _St.PROCEEDING, _In.GOT_REQUEST): (_St.PROCEEDING, (Do.REPEAT,)),
    (_S, _St.PROCEEDING, _In.SEND_PROVISIONAL): (_St.PROCEEDING, (Do.SEND,)),
    (_S, _St.PROCEEDING, _In.SEND_SUCCESS): (_St.COMPLETED, (Do.SEND,)),
    (_S, _St.PROCEEDING, _In.SEND_FAILURE): (_St.COMPLETED, (Do.SEND,)),
    (_S, _St.COMPLETED, _In.GOT_REQUEST): (_St.COMPLETED, (Do.REPEAT,)),
    (_S, _St.COMPLETED, _In.OVER): (_St.TERMINATED, ()),
}
"""What is not in the table changes nothing: late answers, ACKs for a 2xx, repeats while being worked on."""

RUNNING: Final[dict[tuple[Kind, State], tuple[Timer, ...]]] = {
    (_IC, _St.CALLING): (Timer.A, Timer.B),
    (_IC, _St.ACCEPTED): (Timer.M,),
    (_IC, _St.COMPLETED): (Timer.D,),
    (_C, _St.TRYING): (Timer.E, Timer.F),
    (_C, _St.PROCEEDING): (Timer.E, Timer.F),
    (_C, _St.COMPLETED): (Timer.K,),
    (_IS, _St.ACCEPTED): (Timer.L,),
    (_IS, _St.COMPLETED): (Timer.G, Timer.H),
    (_IS, _St.CONFIRMED): (Timer.I,),
    (_S, _St.COMPLETED): (Timer.J,),
}
"""Timers that run in a state; one that already ran in the state before goes on."""

REPEATING: Final = frozenset({Timer.A, Timer.E, Timer.G})
"""Timers that send again, with doubling intervals; not needed where the transport is reliable."""

ABSORBING: Final = frozenset({Timer.D, Timer.I, Timer.J, Timer.K})
"""Timers that wait for stray repeats; zero where the transport is reliable."""

_FIRST: Final = {
    _IC: State.CALLING,
    _C: State.TRYING,
    _IS: State.PROCEEDING,
    _S: State.TRYING,
}


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction.

    Attributes:
        hop: the neighbour. request: as sent (client) or as received (server).
        wire: the message last sent, for repeats.
        fallback: where to send if the connection to the hop is gone.
    """

    key: TransactionKey
    kind: Kind
    hop: Hop
    request: Request
    state: State
    wire: bytes = b""
    interval: float = 0.0
    timers: set[Timer] = field(default_factory=set)
    fallback: SocketAddress | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for a hop; if it is a connection that is gone, by one to the ``fallback`` address."""

    hop: Hop
    data: bytes
    fallback: SocketAddress | None = None


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Nobody answered, or (INVITE server) nobody acknowledged."""

    transaction: Transaction


@dataclass(frozen=True, slots=True)
class Gone:
    """The transaction is over and forgotten."""

    transaction: Transaction


Output = Send | TimedOut | Gone


class Transactions:
    """All transactions of one SBC, and their timers."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self._all: dict[TransactionKey, Transaction] = {}
        self._deadlines: Deadlines[tuple[TransactionKey, Timer]] = Deadlines()
        self._per_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def of_peer(self, address: str) -> int:
        """Server transactions that this source address has."""
        return self._per_peer[address]

    def find(self, key: TransactionKey) -> Transaction | None:
        return self._all.get(key)

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def start_client(
        self, now: float, key: TransactionKey, hop: Hop, request: Request
    ) -> tuple[Transaction, list[Output]]:
        """Send a request and see to it that it is answered or given up."""
        kind = Kind.INVITE_CLIENT if request.method == "INVITE" else Kind.CLIENT
        transaction = self._add(now, key, kind, hop, request)
        transaction.fallback = dialling.for_request(hop, request)
        transaction.wire = request.encode()
        return transaction, [Send(hop, transaction.wire, transaction.fallback)]

    def start_server(self, now: float, key: TransactionKey, hop: Hop, request: Request) -> Transaction:
        """Take on a request that came."""
        kind = Kind.INVITE_SERVER if request.method == "INVITE" else Kind.SERVER
        self._per_peer[key.peer] += 1
        transaction = self._add(now, key, kind, hop, request)
        transaction.fallback = dialling.for_answers(hop, request)
        return transaction

    def request_again(self, now: float, transaction: Transaction, method: str) -> list[Output]:
        """The same request came again, or the ACK that ends it."""
        what = Input.GOT_ACK if method == "ACK" else Input.GOT_REQUEST
        return self._step(now, transaction, what)[0]

    def respond(self, now: float, transaction: Transaction, response: Response) -> list[Output]:
        """The transaction's user answers; what the state has no use for is not sent."""
        what = (
            Input.SEND_PROVISIONAL
            if response.code < 200
            else Input.SEND_SUCCESS
            if response.code < 300
            else Input.SEND_FAILURE
        )
        return self._step(now, transaction, what, response.encode())[0]

    def response(self, now: float, transaction: Transaction, response: Response) -> tuple[list[Output], bool]:
        """An answer came. Returns what to send, and whether the transaction's user is to see it."""
        what = (
            Input.GOT_PROVISIONAL
            if response.code < 200
            else Input.GOT_SUCCESS
            if response.code < 300
            else Input.GOT_FAILURE
        )
        ack = b""
        if what is Input.GOT_FAILURE and transaction.kind is Kind.INVITE_CLIENT:
            ack = make_ack(transaction.request, response).encode()
        return self._step(now, transaction, what, ack)

    def drop(self, transaction: Transaction) -> None:
        """Forget a transaction without a word."""
        self._finish(transaction)

    def unreachable(self, now: float, hop: Hop) -> list[Output]:
        """Nothing can be sent to this hop (RFC 3261 sections 17.1.4, 17.2.4): its unanswered requests have
        failed at once, and answers to it are of no use."""
        outputs: list[Output] = []
        for transaction in [one for one in self._all.values() if one.hop == hop]:
            if transaction.key.side == "server":
                if transaction.state is not State.TRYING and transaction.state is not State.PROCEEDING:
                    self._finish(transaction)
                    outputs.append(Gone(transaction))
            elif transaction.state in (State.CALLING, State.TRYING):
                outputs += self._step(now, transaction, Input.OVER)[0]
        return outputs

    def expire(self, now: float) -> list[Output]:
        """Do what is due."""
        outputs: list[Output] = []
        while (due := self._deadlines.pop_due(now)) is not None:
            key, timer = due
            transaction = self._all[key]
            transaction.timers.discard(timer)
            again = timer in REPEATING
            outputs += self._step(now, transaction, Input.AGAIN if again else Input.OVER)[0]
            if again and transaction.state is not State.TERMINATED:
                self._back_off(now, transaction, timer)
        return outputs

    # -- inside -----------------------------------------------------------------------------------
    def _add(self, now: float, key: TransactionKey, kind: Kind, hop: Hop, request: Request) -> Transaction:
        transaction = Transaction(key, kind, hop, request, _FIRST[kind])
        self._all[key] = transaction
        self._arrange_timers(now, transaction)
        return transaction

    def _step(
        self, now: float, transaction: Transaction, what: Input, data: bytes = b""
    ) -> tuple[list[Output], bool]:
        row = TABLE.get((transaction.kind, transaction.state, what))
        if row is None:
            return [], False
        changed = transaction.state is not row[0]
        transaction.state = row[0]
        outputs: list[Output] = []
        for do in row[1]:
            if do is Do.SEND:
                transaction.wire = data
            if do in (Do.SEND, Do.REPEAT) and transaction.wire:
                outputs.append(Send(transaction.hop, transaction.wire, transaction.fallback))
            elif do is Do.ACK:
                outputs.append(Send(transaction.hop, data, transaction.fallback))
            elif do is Do.TIMEOUT:
                outputs.append(TimedOut(transaction))
        if changed and self._arrange_timers(now, transaction):
            self._finish(transaction)
            outputs.append(Gone(transaction))
        return outputs, Do.TELL in row[1]

    def _arrange_timers(self, now: float, transaction: Transaction) -> bool:
        """Stop and start timers for the state just entered. Returns whether the transaction is over."""
        wanted = set(RUNNING.get((transaction.kind, transaction.state), ()))
        if transaction.hop.reliable:
            wanted -= REPEATING
            if wanted & ABSORBING:
                transaction.state = State.TERMINATED
        if transaction.state is State.TERMINATED:
            return True
        for timer in transaction.timers - wanted:
            self._deadlines.cancel((transaction.key, timer))
        for timer in wanted - transaction.timers:
            self._deadlines.set((transaction.key, timer), now + self._duration(transaction, timer))
        transaction.timers = wanted
        return False

    def _duration(self, transaction: Transaction, timer: Timer) -> float:
        if timer in REPEATING:
            transaction.interval = self.timing.t1
            return self.timing.t1
        if timer in (Timer.I, Timer.K):
            return self.timing.t4
        return self.timing.patience

    def _back_off(self, now: float, transaction: Transaction, timer: Timer) -> None:
        """Timer A doubles without end (B ends it); E and G up to T2; E is T2 once a 1xx came."""
        doubled = 2 * transaction.interval
        if timer is not Timer.A:
            doubled = min(doubled, self.timing.t2)
        if transaction.kind is Kind.CLIENT and transaction.state is State.PROCEEDING:
            doubled = self.timing.t2
        transaction.interval = doubled
        transaction.timers.add(timer)
        self._deadlines.set((transaction.key, timer), now + doubled)

    def _finish(self, transaction: Transaction) -> None:
        transaction.state = State.TERMINATED
        for timer in transaction.timers:
            self._deadlines.cancel((transaction.key, timer))
        transaction.timers = set()
        if self._all.pop(transaction.key, None) is not None and transaction.key.side == "server":
            self._per_peer[transaction.key.peer] -= 1
            if not self._per_peer[transaction.key.peer]:
                del self._per_peer[transaction.key.peer]


def make_ack(invite: Request, response: Response) -> Request:
    """ACK for a failure (RFC 3261 section 17.1.1.3): hop by hop, on the INVITE's own branch."""
    ack = Request("ACK", invite.uri)
    ack.headers = [("Via", invite.values("Via")[0])]
    ack.headers += [("Route", value) for value in invite.values("Route")]
    ack.headers += [("Max-Forwards", "70"), ("From", invite.get("From") or "")]
    ack.headers += [("To", response.get("To") or ""), ("Call-ID", invite.get("Call-ID") or "")]
    number = (invite.get("CSeq") or "").split()[0]
    ack.headers += [("CSeq", f"{number} ACK"), ("Content-Length", "0")]
    return ack


def make_cancel(invite: Request) -> Request:
    """CANCEL for an INVITE that we sent (RFC 3261 section 9.1): the same top Via, tags and number."""
    cancel = Request("CANCEL", invite.uri)
    cancel.headers = [("Via", invite.values("Via")[0])]
    cancel.headers += [("Route", value) for value in invite.values("Route")]
    cancel.headers += [("Max-Forwards", "70")]
    cancel.headers += [(name, invite.get(name) or "") for name in ("From", "To", "Call-ID")]
    number = (invite.get("CSeq") or "").split()[0]
    cancel.headers += [("CSeq", f"{number} CANCEL"), ("Content-Length", "0")]
    return cancel
