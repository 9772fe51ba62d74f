"""What the parts of the core share: tables, settings, and the list of what is to be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from .actions import Action, Note
from .dialogs import Calls
from .headers import is_literal
from .hop import FlowTokens, Hop
from .location import Location
from .message import Request, Response, reply
from .parties import Client, IdentityOf
from .settings import SbcSettings, Trunk
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
        name = host.lower().rstrip(".")
        named = name == self.settings.domain.lower()
        return any(
            port in (None, ours) and (named or is_literal(name, address))
            for address, ours in self.settings.locals
        )

    def client_of(self, hop: Hop) -> Client | None:
        """The tunnelled client behind a hop. Outside of the tunnels an address proves nothing."""
        return None if hop.core else self.identity_of(hop.remote[0])

    def trunk_of(self, hop: Hop) -> Trunk | None:
        """The trunk behind a hop. Where there is no socket on the core side, a core host reaches our inner
        address by the kernel's routing; the user plane lets none of them use a client's address."""
        if not hop.core and (self.settings.core is not None or self.client_of(hop) is not None):
            return None
        return next((trunk for trunk in self.settings.trunks if trunk.is_from(hop.remote[0])), None)

    def hop_to(self, trunk: Trunk) -> Hop:
        """The way to a trunk."""
        core, remote = self.settings.core, (trunk.address, trunk.port)
        if core is not None:
            return Hop(trunk.transport, (core.address, core.port), remote, core=True)
        version = ip_address(trunk.address).version
        fitting = [a for a in self.settings.addresses if ip_address(a).version == version]
        return Hop(trunk.transport, ((*fitting, self.settings.address)[0], self.settings.port), remote)

    def who(self, hop: Hop) -> dict[str, Any]:
        """Fields that name a neighbour in the log: its tunnel, or only its address."""
        client = self.client_of(hop)
        if client is None:
            trunk = self.trunk_of(hop)
            return {"source": str(hop)} | ({} if trunk is None else {"trunk": trunk.name})
        return {"source": str(hop), "client": client.name, "tsid": f"{client.tsid:016x}"}

    def reply(self, request: Request, code: int, reason: str = "") -> Response:
        """An answer of our own, with a fresh tag."""
        return reply(request, code, reason, tag=self.new_id(), server=self.settings.server_name)

    def refuse(self, request: Request, refusal: Refusal) -> Response:
        response = self.reply(request, refusal.code, refusal.reason)
        response.headers += refusal.headers
        return response
