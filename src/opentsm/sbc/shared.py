"""What the parts of the core share: tables, settings, and the list of what is to be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .actions import Action, Note
from .dialogs import Calls
from .headers import is_literal
from .hop import FlowTokens, Hop
from .location import Location
from .message import Request, Response, reply
from .parties import IdentityOf
from .settings import SbcSettings
from .transactions import Timing, Transactions
from .users import Credentials


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not taken further.

    Args:
        code, reason: of the answer. event: stable name for counters and logs.
        headers: more headers of the answer.
    """

    code: int
    reason: str
    event: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Shared:
    """State of one SBC that more than one part works on.

    Args:
        new_id: gives a fresh word that cannot be guessed: 16 or more letters and digits.
        out: actions so far, in order; whoever calls the core takes them.
    """

    settings: SbcSettings
    credentials: Credentials
    identity_of: IdentityOf
    tokens: FlowTokens
    new_id: Callable[[], str]
    location: Location = field(default_factory=Location)
    calls: Calls = field(default_factory=Calls)
    transactions: Transactions = field(default_factory=lambda: Transactions(Timing()))
    out: list[Action] = field(default_factory=list)

    def note(self, event: str, *, warning: bool = False, **fields: Any) -> None:
        """A line for the log, and one more of this event."""
        self.out.append(Note(event, fields, warning))

    def is_own(self, host: str, port: int | None) -> bool:
        """Whether a URI's or Via's host and port are ours."""
        if port is not None and port != self.settings.port:
            return False
        name = host.lower().rstrip(".")
        return name == self.settings.domain.lower() or any(
            is_literal(name, address) for address in self.settings.addresses
        )

    def who(self, hop: Hop) -> dict[str, Any]:
        """Fields that name a neighbour in the log: its tunnel, or only its address."""
        client = self.identity_of(hop.remote[0])
        if client is None:
            return {"source": str(hop)}
        return {"source": str(hop), "client": client.name, "tsid": f"{client.tsid:016x}"}

    def reply(self, request: Request, code: int, reason: str = "") -> Response:
        """An answer of our own, with a fresh tag."""
        return reply(request, code, reason, tag=self.new_id(), server=self.settings.server_name)

    def refuse(self, request: Request, refusal: Refusal) -> Response:
        response = self.reply(request, refusal.code, refusal.reason)
        response.headers += refusal.headers
        return response
