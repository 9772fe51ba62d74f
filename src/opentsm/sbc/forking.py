"""One request and the branches it went out on; which of their answers goes back (RFC 3261 section 16.7)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .dialogs import Call
from .hop import Hop
from .message import Request, Response
from .parties import Side
from .transactions import Transaction, TransactionKey

PREFERRED: Final = (401, 407, 415, 420, 484)
"""Of the 4xx these tell the caller how to succeed (section 16.7 step 6)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One place a request goes to.

    Args:
        hop: next neighbour. uri: new Request-URI. routes: Route values to put on top (a contact's Path).
    """

    hop: Hop
    uri: str
    routes: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Branch:
    """One copy of the request.

    Attributes:
        token: our Record-Route token in it. provisional: a 1xx came, so it can be cancelled.
        cancel_wanted, cancelled: it is to be cancelled; the CANCEL is out.
        final: its final answer, as it would go upstream.
        authorized: it answers a challenge, so a further one is the caller's to see.
    """

    key: TransactionKey
    target: Target
    request: Request
    token: str
    provisional: bool = False
    cancel_wanted: bool = False
    cancelled: bool = False
    final: Response | None = None
    authorized: bool = False


@dataclass(slots=True, eq=False)
class Context:
    """A request being proxied.

    Attributes:
        server: its server transaction. base: the request as it goes on, but for what differs by branch.
        groups: targets not tried yet, in groups of equal q.
        call, side: the call it belongs to and who sent it, if any. offered: it carried an SDP offer.
        cancelled: the caller gave up. done: a final answer went back.
        far_tag: the callee's tag in this request, whoever sent it; empty in a first one.
    """

    server: Transaction
    base: Request
    groups: list[tuple[Target, ...]]
    call: Call | None
    side: Side
    offered: bool = False
    branches: list[Branch] = field(default_factory=list)
    cancelled: bool = False
    done: bool = False
    far_tag: str = ""

    @property
    def request(self) -> Request:
        return self.server.request

    @property
    def is_invite(self) -> bool:
        return self.server.request.method == "INVITE"

    @property
    def open_branches(self) -> list[Branch]:
        return [branch for branch in self.branches if branch.final is None]


def best(branches: list[Branch]) -> Response | None:
    """The answer to send back when all branches have one: a 6xx if there is any, else one of the lowest
    class; within 4xx one that helps. Challenges of all branches go together (section 16.7 step 7)."""
    finals = [branch.final for branch in branches if branch.final is not None]
    if not finals:
        return None
    chosen = min(finals, key=_rank)
    if chosen.code in (401, 407):
        chosen = _with_all_challenges(chosen, finals)
    if chosen.code == 503:
        # It would keep the caller away from all our users for one busy phone (section 16.7 step 6).
        chosen = chosen.copy()
        chosen.code, chosen.reason = 500, "Server Internal Error"
        chosen.remove("Retry-After")
    return chosen


def _rank(response: Response) -> tuple[int, int]:
    group = response.code // 100
    if group == 6:
        return 0, 0
    helps = 0 if response.code in PREFERRED else 2 if response.code in (408, 503) else 1
    return group, helps


def _with_all_challenges(chosen: Response, finals: list[Response]) -> Response:
    merged = chosen.copy()
    for other in finals:
        if other is not chosen and other.code in (401, 407):
            merged.headers += [
                (name, value)
                for name, value in other.headers
                if name.lower() in ("www-authenticate", "proxy-authenticate")
            ]
    return merged
