"""The proxy: stateful, record-routing, forking.

RFC 3261 section 16; RFC 4320 (no 408 to other methods than INVITE); RFC 5393 (loops, by a hash in the
branch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from opentsm.errors import RemoteProtocolError

from . import dialling
from .callcontrol import CallControl, has_sdp
from .challenges import answer_untrusted
from .deadlines import Deadlines
from .dialogs import Call, CallState
from .forking import Branch, Context, best
from .headers import (
    BRANCH_COOKIE,
    Essentials,
    essentials_untrusted,
    name_addr_untrusted,
    uri_untrusted,
    url_host,
    via_untrusted,
)
from .hop import Hop
from .message import Request, Response
from .parties import Client, Side
from .routing import Plan
from .shared import Refusal, Shared
from .transactions import (
    Gone,
    Output,
    Send,
    State,
    TimedOut,
    Transaction,
    TransactionKey,
    make_cancel,
)

DIALOG_METHODS: Final = frozenset({"INVITE", "SUBSCRIBE", "NOTIFY", "REFER", "UPDATE", "PUBLISH"})
"""Requests that are record-routed: those that make dialogs, and harmlessly some within."""

STRIPPED: Final = ("P-Asserted-Identity", "P-Preferred-Identity")
"""Identity headers count only from trusted neighbours (RFC 3325 section 9); a phone is none."""


class Proxy:
    """Requests on their way through, each with its branches.

    Args:
        control: is told what passes for calls.
    """

    def __init__(self, shared: Shared, control: CallControl) -> None:
        self._shared = shared
        self._control = control
        self._contexts: dict[TransactionKey, Context] = {}
        self._branches: dict[TransactionKey, tuple[Context, Branch]] = {}
        self._patience: Deadlines[TransactionKey] = Deadlines()
        self._unreachable = 0

    def next_deadline(self) -> float | None:
        return self._patience.next()

    # -- requests ---------------------------------------------------------------------------------
    def start(
        self,
        now: float,
        server: Transaction,
        plan: Plan,
        request: Request,
        essentials: Essentials,
        client: Client | None,
    ) -> None:
        """Send a request on its way. ``request`` is a copy that may be changed, without our own Routes."""
        call: Call | Refusal | None = plan.call
        first = request.method == "INVITE" and not essentials.to.tag
        carries = has_sdp(request)
        if first:
            targets = [target for group in plan.groups for target in group]
            call = self._control.begin(now, server.hop, request, essentials, client, targets)
        if isinstance(call, Refusal):
            self.refuse(now, server, call)
            return
        if call is not None:
            refusal = self._control.request_passes(call, plan.side, request, essentials)
            if refusal is not None:
                self.refuse(now, server, refusal)
                if first:
                    self._control.end(now, call, "server", refusal.event, refusal.code)
                return
        offered = carries and call is not None and call.media.has_offer_from is plan.side
        context = Context(server, _prepared(request), list(plan.groups), call, plan.side, offered)
        context.far_tag = essentials.to.tag if plan.side is Side.CALLER else essentials.from_.tag
        self._contexts[server.key] = context
        if context.is_invite:
            self.respond(now, server, self._shared.reply(request, 100))
        self._fork(now, context)

    def ack(self, plan: Plan, original: Request, request: Request, essentials: Essentials) -> None:
        """ACK for a 2xx: it has no transaction and no answer. ``request`` is a copy that may be changed."""
        if plan.call is not None and self._control.request_passes(plan.call, plan.side, request, essentials):
            request.with_body(b"")
        target = plan.groups[0][0]
        ack = _prepared(request)
        ack.uri = target.uri
        ack.prepend("Via", self._via(target.hop, self._branch(original)))
        fallback = dialling.for_request(target.hop, ack)
        self._shared.out.append(Send(target.hop, ack.encode(), fallback))

    def cancel(self, now: float, key: TransactionKey) -> None:
        """The caller gave up on the INVITE with this key (section 16.10)."""
        context = self._contexts.get(key)
        if context is None or context.done:
            return
        context.cancelled = True
        context.groups.clear()
        self._cancel_open(now, context)

    def refuse(self, now: float, server: Transaction, refusal: Refusal) -> None:
        """Answer a request ourselves, and say why in the log."""
        call_id = server.request.get("Call-ID") or ""
        who = self._shared.who(server.hop)
        self._shared.note(
            refusal.event, code=refusal.code, call_id=call_id, method=server.request.method, **who
        )
        self.respond(now, server, self._shared.refuse(server.request, refusal))

    def respond(self, now: float, server: Transaction, response: Response) -> None:
        self.carry_out(now, self._shared.transactions.respond(now, server, response))

    def _fork(self, now: float, context: Context) -> None:
        """Try the next group of targets, all of it at once."""
        for target in context.groups.pop(0):
            request = context.base.copy()
            branch_id = self._branch(context.request)
            token = self._shared.tokens.token(context.server.hop)
            request.uri = target.uri
            for route in reversed(target.routes):
                request.prepend("Route", route)
            if request.method in DIALOG_METHODS:
                request.prepend("Record-Route", self._record_route(token, target.hop))
            request.prepend("Via", self._via(target.hop, branch_id))
            key = TransactionKey("client", branch_id, request.method)
            self._send_branch(now, context, Branch(key, target, request, token))

    def _send_branch(self, now: float, context: Context, branch: Branch) -> None:
        context.branches.append(branch)
        self._branches[branch.key] = context, branch
        if context.is_invite:
            self._patience.set(branch.key, now + self._shared.settings.ring_timeout)
        hop, request = branch.target.hop, branch.request
        _, outputs = self._shared.transactions.start_client(now, branch.key, hop, request)
        self.carry_out(now, outputs)

    def _branch(self, request: Request) -> str:
        return f"{BRANCH_COOKIE}{self._shared.new_id()}.{loop_hash(request)}"

    def _via(self, hop: Hop, branch: str) -> str:
        host, port = url_host(hop.local[0]), hop.local[1]
        return f"SIP/2.0/{hop.transport.upper()} {host}:{port};branch={branch};rport"

    def _record_route(self, token: str, hop: Hop) -> str:
        transport = "" if hop.transport == "udp" else f";transport={hop.transport}"
        return f"<sip:{token}@{url_host(hop.local[0])}:{hop.local[1]};lr{transport}>"

    # -- answers ----------------------------------------------------------------------------------
    def answer(self, now: float, hop: Hop, response: Response) -> None:
        """A response came from this hop.

        Raises:
            RemoteProtocolError: it cannot be read; it is dropped.
        """
        essentials = essentials_untrusted(response)
        if not self._shared.is_own(essentials.via.host, essentials.via.port):
            raise RemoteProtocolError("foreign-via", essentials.via.host)
        key = TransactionKey("client", essentials.via.branch or "", essentials.method)
        transaction = self._shared.transactions.find(key)
        if transaction is None:
            self._shared.note("stray-response", code=response.code, call_id=essentials.call_id)
            return
        # On a reliable transport a final answer is the end of the transaction, and its branch is forgotten.
        found = self._branches.get(key)
        outputs, tell = self._shared.transactions.response(now, transaction, response)
        self.carry_out(now, outputs)
        if tell and found is not None:
            self._answered(now, hop, *found, response, essentials)

    def _answered(
        self,
        now: float,
        hop: Hop,
        context: Context,
        branch: Branch,
        response: Response,
        essentials: Essentials,
    ) -> None:
        up = self._upstream(context, branch, hop, response)
        if response.code < 200:
            self._provisional(now, hop, context, branch, up, essentials)
        elif response.code < 300:
            self._success(now, hop, context, branch, up, essentials)
        elif not self._answer_challenge(now, context, branch, response):
            self._close_branch(branch, up)
            if response.code >= 600:
                context.groups.clear()
                self._cancel_open(now, context)
            self._maybe_finish(now, context)

    def _answer_challenge(self, now: float, context: Context, branch: Branch, response: Response) -> bool:
        """A trunk where we have an account asks for it: the same request again, with the answer (section
        22.3).
        Returns whether there was one to give."""
        trunk = self._shared.trunk_of(branch.target.hop)
        if trunk is None or branch.authorized or branch.cancel_wanted or context.done:
            return False
        answer = answer_untrusted(response, branch.request, trunk, self._shared.new_id())
        if answer is None:
            return False
        context.branches.remove(branch)
        self._forget_branch(branch.key)
        branch_id = self._branch(context.request)
        request = branch.request.copy()
        request.set_values("Via", [self._via(branch.target.hop, branch_id), *request.values("Via")[1:]])
        request.headers.append(answer)
        key = TransactionKey("client", branch_id, request.method)
        again = Branch(key, branch.target, request, branch.token, authorized=True)
        self._send_branch(now, context, again)
        return True

    def _upstream(self, context: Context, branch: Branch, hop: Hop, response: Response) -> Response:
        """The response as the sender's side is to see it: our Via gone, and in our Record-Route the token of
        whom it will reach (section 16.7 step 8 allows to rewrite one's own)."""
        up = response.copy()
        up.set_values("Via", up.values("Via")[1:])
        for name in STRIPPED:
            up.remove(name)
        mine = self._record_route(branch.token, branch.target.hop)
        reached = branch.target.hop if hop.source == branch.target.hop.source else hop
        theirs = self._record_route(self._shared.tokens.token(reached), context.server.hop)
        routes = up.values("Record-Route")
        if routes:
            up.set_values("Record-Route", [theirs if _same(value, mine) else value for value in routes])
        return up

    def _provisional(
        self, now: float, hop: Hop, context: Context, branch: Branch, up: Response, essentials: Essentials
    ) -> None:
        branch.provisional = True
        if branch.cancel_wanted:
            self._cancel_branch(now, branch)
        if up.code == 100:
            return
        if context.is_invite and not branch.cancelled:
            self._patience.set(branch.key, now + self._shared.settings.ring_timeout)
        if context.done:
            return
        self._pass_on(now, hop, context, up, essentials)

    def _success(
        self, now: float, hop: Hop, context: Context, branch: Branch, up: Response, essentials: Essentials
    ) -> None:
        self._close_branch(branch, up)
        if context.done and not context.is_invite:
            return
        self._pass_on(now, hop, context, up, essentials)
        context.done = True
        context.groups.clear()
        self._cancel_open(now, context)

    def _pass_on(self, now: float, hop: Hop, context: Context, up: Response, essentials: Essentials) -> None:
        call = context.call
        if call is not None and call.state is not CallState.ENDED:
            self._control.response_passes(call, context, hop, up, essentials.to.tag)
            self._control.progress(now, context, hop, up, essentials.to.tag)
        self.respond(now, context.server, up)

    def _close_branch(self, branch: Branch, final: Response) -> None:
        if branch.final is None:
            branch.final = final
        self._patience.cancel(branch.key)

    def _maybe_finish(self, now: float, context: Context) -> None:
        """When all branches have failed: the next group, or the best failure."""
        if context.done or context.open_branches:
            return
        if context.groups:
            self._fork(now, context)
            return
        final = best(context.branches)
        if final is None:
            return
        if context.cancelled and final.code < 600 and context.is_invite:
            final = self._shared.reply(context.request, 487)
        context.done = True
        self._control.refused(now, context, final)
        self.respond(now, context.server, final)

    # -- cancelling and waiting -----------------------------------------------------------------------
    def _cancel_open(self, now: float, context: Context) -> None:
        if context.is_invite:
            for branch in context.open_branches:
                self._cancel_branch(now, branch)

    def _cancel_branch(self, now: float, branch: Branch) -> None:
        """A CANCEL must not overtake its INVITE: it waits for the first 1xx (section 9.1)."""
        branch.cancel_wanted = True
        if branch.cancelled or not branch.provisional or branch.final is not None:
            return
        branch.cancelled = True
        key = TransactionKey("client", branch.key.branch, "CANCEL")
        cancel = make_cancel(branch.request)
        _, outputs = self._shared.transactions.start_client(now, key, branch.target.hop, cancel)
        self._patience.set(branch.key, now + self._shared.transactions.timing.patience)
        self.carry_out(now, outputs)

    def expire(self, now: float) -> None:
        """Timer C: a phone that rings too long is cancelled; one that does not react to that is given up."""
        while (key := self._patience.pop_due(now)) is not None:
            context, branch = self._branches[key]
            if branch.provisional and not branch.cancelled:
                self._cancel_branch(now, branch)
                continue
            transaction = self._shared.transactions.find(key)
            if transaction is not None:
                self._shared.transactions.drop(transaction)
            self._give_up(now, context, branch, 408)
            self._forget_branch(key)

    def carry_out(self, now: float, outputs: Iterable[Output]) -> None:
        """What the transactions want done."""
        for output in outputs:
            if isinstance(output, Send):
                self._shared.out.append(output)
            elif isinstance(output, TimedOut):
                if (found := self._branches.get(output.transaction.key)) is not None:
                    self._give_up(now, *found, self._unreachable or 408)
            else:
                self._gone(output)

    def _gone(self, output: Gone) -> None:
        key = output.transaction.key
        if key.side == "client":
            self._forget_branch(key)
        else:
            self._contexts.pop(key, None)

    def _forget_branch(self, key: TransactionKey) -> None:
        self._branches.pop(key, None)
        self._patience.cancel(key)

    def _give_up(self, now: float, context: Context, branch: Branch, code: int) -> None:
        if branch.final is not None:
            return
        self._close_branch(branch, self._shared.reply(context.request, code))
        if context.is_invite or code != 408 or context.done:
            self._maybe_finish(now, context)
        elif not context.open_branches:
            self._fall_silent(now, context)

    def _fall_silent(self, now: float, context: Context) -> None:
        """A request other than INVITE that nobody answered: its sender has given up at the same moment, and a
        408 would only be one more message (RFC 4320 section 4.2)."""
        failures = [branch for branch in context.branches if branch.final and branch.final.code != 408]
        if failures or context.groups:
            self._maybe_finish(now, context)
            return
        context.done = True
        self._control.refused(now, context, self._shared.reply(context.request, 408))
        self._contexts.pop(context.server.key, None)
        if context.server.state is not State.TERMINATED:
            self._shared.transactions.drop(context.server)

    def unreachable(self, now: float, hop: Hop) -> None:
        """No connection to this hop can be had: its requests fail now, with 503 for a trunk (section 16.9)
        and 480 for a phone."""
        self._unreachable = 503 if self._shared.trunk_of(hop) is not None else 480
        try:
            self.carry_out(now, self._shared.transactions.unreachable(now, hop))
        finally:
            self._unreachable = 0

    # -- lost parties -----------------------------------------------------------------------------
    def lost(self, now: float, addresses: frozenset[str]) -> None:
        """The clients at these inner addresses are gone for good: end what they are part of."""
        for context in list(self._contexts.values()):
            if context.server.hop.source in addresses and context.is_invite:
                self.cancel(now, context.server.key)
            for branch in context.open_branches:
                if branch.target.hop.source in addresses:
                    self._patience.cancel(branch.key)
                    if (transaction := self._shared.transactions.find(branch.key)) is not None:
                        self._shared.transactions.drop(transaction)
                    self._branches.pop(branch.key, None)
                    self._give_up(now, context, branch, 480)
        for call in list(self._shared.calls):
            for side in Side:
                if call.state is CallState.ANSWERED and call.party(side).hop.source in addresses:
                    self.hang_up(now, call, side.other)
                    self._control.end(now, call, side.value, "tunnel-lost", call.code)

    def hang_up(self, now: float, call: Call, side: Side) -> None:
        """Send one party of an answered call the BYE that the other can no longer send."""
        party, other = call.party(side), call.party(side.other)
        bye = Request("BYE", party.contact or f"sip:{party.aor}")
        bye.headers = [
            ("Via", self._via(party.hop, self._branch(bye))),
            ("Max-Forwards", "70"),
            ("From", other.header),
            ("To", party.header),
            ("Call-ID", call.key.call_id),
            ("CSeq", f"{other.sequence + 1} BYE"),
            ("Content-Length", "0"),
        ]
        key = TransactionKey("client", via_untrusted(bye.values("Via")[0]).branch or "", "BYE")
        _, outputs = self._shared.transactions.start_client(now, key, party.hop, bye)
        self.carry_out(now, outputs)


def _prepared(request: Request) -> Request:
    """A copy to send on (section 16.6 steps 1 to 3)."""
    copy = request.copy()
    hops = copy.get("Max-Forwards")
    copy.set("Max-Forwards", str(int(hops) - 1 if hops is not None else 70))
    for name in STRIPPED:
        copy.remove(name)
    return copy


def loop_hash(request: Request) -> str:
    """What decides where a request goes (RFC 5393 section 4.2): the same again means a loop, not a spiral."""
    names = ("From", "To", "Call-ID", "CSeq")
    parts = [request.uri, *(request.get(name) or "" for name in names), *request.values("Route")]
    parts += request.lines("Proxy-Require") + request.lines("Proxy-Authorization")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def is_loop(shared: Shared, request: Request) -> bool:
    """Whether the request was here before, with the same way ahead (section 16.3 step 4).

    Raises:
        RemoteProtocolError: a Via cannot be read.
    """
    mine = loop_hash(request)
    for value in request.values("Via")[1:]:
        if mine not in value:
            continue
        via = via_untrusted(value)
        if shared.is_own(via.host, via.port) and (via.branch or "").endswith(f".{mine}"):
            return True
    return False


def _same(value: str, mine: str) -> bool:
    """Whether a Record-Route value that came back is the one we put in, however the phone spells it."""
    try:
        ours, theirs = (
            uri_untrusted(name_addr_untrusted(mine).uri),
            uri_untrusted(name_addr_untrusted(value).uri),
        )
    except RemoteProtocolError:
        return False
    return (ours.user, ours.host, ours.port) == (theirs.user, theirs.host, theirs.port)
