"""What proxied messages mean for calls: their state, their media, their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from opentsm.errors import RemoteProtocolError

from .actions import CallEnded, CallStands, MediaAction
from .dialogs import MAX_SECONDS, SESSION_GRACE, Call, CallInput, CallKey, CallState, Party
from .forking import Context, Target
from .headers import Essentials, name_addr_untrusted, uri_untrusted
from .hop import Hop
from .keptcalls import restored_call
from .media import Leg, MediaSession, NoPorts, Pools, PortPool
from .message import Request, Response, SipMessage
from .parties import Client, Side
from .sdp import Description, parse_untrusted
from .shared import Refusal, Shared

OFFER_METHODS: Final = frozenset({"INVITE", "ACK", "PRACK", "UPDATE"})
"""Requests whose SDP is an offer or an answer (RFC 6337 section 2); in others it is just a body."""

RETRY_AFTER: Final = ("Retry-After", "10")
"""Seconds: ports and calls come free as others hang up."""

_BUSY: Final = Refusal(503, "No more calls", "too-many-calls", (RETRY_AFTER,))
_NO_PORTS: Final = Refusal(503, "No media ports", "no-media-ports", (RETRY_AFTER,))


class CallControl:
    """Follows calls through their messages and rewrites the SDP in them."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        core = shared.settings.core
        self.ports = PortPool(*shared.settings.media_ports)
        self._pools = Pools(self.ports, PortPool(*(core.media_ports if core is not None else (0, 0))))

    # -- beginning ----------------------------------------------------------------------------------
    def begin(
        self,
        now: float,
        hop: Hop,
        request: Request,
        essentials: Essentials,
        client: Client | None,
        targets: Sequence[Target],
    ) -> Call | Refusal:
        """A first INVITE. A Call-ID and tag that are taken harm nobody's call."""
        calls = self._shared.calls
        known = calls.find(essentials.call_id, essentials.from_.tag, "")
        if known is not None and not known.caller.owns(hop.source):
            return Refusal(403, "Call-ID in use", "call-id-collision")
        if known is not None:
            return Refusal(482, "Merged Request", "merged-request")
        if calls.is_full_for(hop.source):
            return _BUSY
        serial = calls.next_serial()
        caller = Party(
            aor=_name(essentials.from_.uri),
            hop=hop,
            client=client,
            tag=essentials.from_.tag,
            contact=_contact(request),
            header=request.get("From") or "",
            sequence=essentials.sequence,
            addresses={hop.source},
            trunk=self._trunk(hop),
        )
        callee = Party(
            aor=_name(essentials.to.uri),
            hop=targets[0].hop,
            client=self._shared.client_of(targets[0].hop),
            addresses={target.hop.source for target in targets},
            trunk=self._trunk(targets[0].hop),
        )
        media = MediaSession(
            serial, self._pools, self._leg(hop, caller.client), self._ringing(callee, targets),
            anchoring=self._shared.settings.anchoring,
        )  # fmt: skip
        key = CallKey(essentials.call_id, essentials.from_.tag)
        call = Call(key, serial, caller, callee, media, now, essentials.sequence)
        calls.add(call)
        self._note(call, "call-started", caller=caller.aor, callee=callee.aor, **self._shared.who(hop))
        return call

    def _leg(self, hop: Hop, client: Client | None, asked: Sequence[str] = ()) -> Leg:
        """One side of media. ``asked``: others that may be heard before there is an answer."""
        addresses = client.addresses if client is not None else ()
        early = tuple(dict.fromkeys([hop.remote[0], *addresses, *asked]))
        others = [a for a in self._shared.settings.addresses if a != hop.local[0] and not hop.core]
        return Leg(hop.local[0], addresses, hop.remote[0], hop.core, early, *others)

    def _ringing(self, callee: Party, targets: Sequence[Target]) -> Leg:
        """Who may be heard before it has answered: every phone that is rung first."""
        asked = [target.hop.remote[0] for target in targets]
        return self._leg(callee.hop, callee.client, asked)

    def _trunk(self, hop: Hop) -> str:
        trunk = self._shared.trunk_of(hop)
        return "" if trunk is None else trunk.name

    # -- requests and their SDP -----------------------------------------------------------------------
    def request_passes(
        self, call: Call, side: Side, request: Request, essentials: Essentials
    ) -> Refusal | None:
        """Rewrite a request's SDP, and learn from the request. The request is changed."""
        party = call.party(side)
        if request.method != "ACK":
            party.sequence = max(party.sequence, essentials.sequence)
        if request.method in ("INVITE", "UPDATE"):
            party.contact = _contact(request) or party.contact
        if request.method not in OFFER_METHODS or not has_sdp(request):
            return None
        answers = request.method == "ACK" or (
            request.method == "PRACK" and call.media.has_offer_from is side.other
        )
        refusal = self._rewrite(call, side, request, answers=answers)
        if refusal is None and answers:
            call.media.settle()
            self._stands(call)
        return refusal

    def response_passes(
        self, call: Call, context: Context, hop: Hop, response: Response, to_tag: str
    ) -> None:
        """Rewrite an answer's SDP. The response is changed. What cannot be read goes on without its SDP, so
        that no address leads around the tunnel."""
        if not has_sdp(response) or not 100 < response.code < 300:
            return
        side = context.side.other
        late = False
        if context.is_invite and side is Side.CALLEE:
            late = call.state is CallState.ANSWERED and bool(call.callee.tag) and call.callee.tag != to_tag
            if not late and call.state is not CallState.ANSWERED:
                leg = self._leg(self._callee_hop(call, context, hop), self._shared.client_of(hop))
                self._do(call.media.set_leg(Side.CALLEE, leg))
        refusal = self._rewrite(call, side, response, answers=context.offered, late=late)
        if refusal is not None:
            response.remove("Content-Type")
            response.with_body(b"")

    def _rewrite(
        self, call: Call, side: Side, message: SipMessage, *, answers: bool, late: bool = False
    ) -> Refusal | None:
        corrected = call.media.corrected
        try:
            description = parse_untrusted(message.body)
            if late:
                rewritten, actions = call.media.preview(side, description), list[MediaAction]()
            else:
                rewritten, actions = self._apply(call, side, description, answers=answers)
        except NoPorts:
            self._note(call, "no-media-ports", warning=True)
            return _NO_PORTS
        except RemoteProtocolError as error:
            who = self._shared.who(call.party(side).hop)
            self._note(call, error.reason, warning=True, detail=error.detail, **who)
            return Refusal(488, "Malformed SDP", error.reason)
        if call.media.corrected > corrected:
            self._note(call, "sdp-corrected", side=side.value)
        message.with_body(rewritten.encode())
        self._do(actions)
        return None

    def _apply(
        self, call: Call, side: Side, description: Description, *, answers: bool
    ) -> tuple[Description, list[MediaAction]]:
        return call.media.answer(side, description) if answers else call.media.offer(side, description)

    # -- progress -------------------------------------------------------------------------------------
    def progress(self, now: float, context: Context, hop: Hop, response: Response, to_tag: str) -> None:
        """A provisional or successful answer to any request of the call goes back."""
        call = context.call
        if call is None or call.state is CallState.ENDED:
            return
        first = context.is_invite and call.state is not CallState.ANSWERED
        if first and response.code < 200 and call.step(CallInput.RING):
            call.ringing = now
            self._note(call, "call-ringing", code=response.code)
        if first and response.code >= 200:
            self._answered(now, call, context, hop, response, to_tag)
        if response.code < 200:
            return
        if context.offered and context.request.method in ("INVITE", "UPDATE", "PRACK"):
            call.media.settle()
        if context.request.method in ("INVITE", "UPDATE"):
            self._watch(now, call, response)
            self._stands(call)
        if context.request.method == "BYE":
            self._hung_up(now, call, context)

    def _stands(self, call: Call) -> None:
        if call.state is CallState.ANSWERED:
            self._shared.out.append(CallStands(call))

    def restore(self, now: float, kept: dict[str, Any], offset: float) -> Call:
        """An answered call from before a restart goes on.

        Raises:
            NoPorts: its ports have another owner. KeyError, TypeError, ValueError: it was not written by this
                version.
        """
        call = restored_call(kept, self._pools, offset, anchoring=self._shared.settings.anchoring)
        for party in (call.caller, call.callee):
            party.client = self._shared.client_of(party.hop)
        calls = self._shared.calls
        calls.serial_used(call.serial)
        calls.add(call)
        calls.watch(call, call.until if call.until is not None else now + MAX_SECONDS)
        self._do(call.media.resume())
        self._note(call, "call-taken-up", caller=call.caller.aor, callee=call.callee.aor)
        return call

    def _answered(
        self, now: float, call: Call, context: Context, hop: Hop, response: Response, to_tag: str
    ) -> None:
        call.step(CallInput.ANSWER)
        call.answered, call.code = now, response.code
        callee = call.callee
        callee.hop = self._callee_hop(call, context, hop)
        callee.client, callee.trunk = self._shared.client_of(callee.hop), self._trunk(callee.hop)
        callee.tag, callee.header = to_tag, response.get("To") or ""
        callee.contact = _contact(response)
        callee.addresses = {hop.source, callee.hop.source}
        self._note(call, "call-answered", code=response.code, **self._shared.who(callee.hop))

    def _callee_hop(self, call: Call, context: Context, hop: Hop) -> Hop:
        """Where the phone that answers is to be reached: where the INVITE reached it, unless it answers from
        another address altogether."""
        reached = [b.target.hop for b in context.branches if b.target.hop.source == hop.source]
        return hop if hop in reached or not reached else reached[0]

    def _watch(self, now: float, call: Call, response: Response) -> None:
        """Session timers (RFC 4028) pass; a call that is not refreshed in time is forgotten."""
        text = (response.get("Session-Expires") or "").partition(";")[0].strip()
        answered = call.answered if call.answered is not None else now
        until = answered + MAX_SECONDS
        if text.isascii() and text.isdigit() and len(text) < 8:
            until = min(until, now + int(text) + SESSION_GRACE)
        self._shared.calls.watch(call, until)

    def refused(self, now: float, context: Context, response: Response) -> None:
        """A final answer over 299 goes back to a request of the call."""
        call = context.call
        if call is None or call.state is CallState.ENDED:
            return
        if context.offered and call.media.has_offer_from is context.side:
            call.media.discard_offer()
        if context.request.method == "BYE":
            self._hung_up(now, call, context)
        elif context.is_invite and call.state is not CallState.ANSWERED:
            by, reason = "callee", "refused"
            if context.cancelled:
                by, reason = "caller", "cancelled"
            elif response.code == 408:
                by, reason = "server", "no-answer"
            self.end(now, call, by, reason, response.code)

    def _hung_up(self, now: float, call: Call, context: Context) -> None:
        """Any final answer to a BYE ends the call, but for the BYE to a second phone that answered too
        late."""
        if not call.callee.tag or context.far_tag == call.callee.tag:
            self.end(now, call, context.side.value, "hung-up", call.code)

    def end(self, now: float, call: Call, by: str, reason: str, code: int) -> None:
        """The call is over, however: close its media, write its record, forget it."""
        if not call.step(CallInput.END):
            return
        call.ended, call.ended_by, call.reason, call.code = now, by, reason, code
        self._do(call.media.close())
        self._shared.calls.remove(call)
        self._note(call, "call-ended", by=by, reason=reason, code=code)
        self._shared.out.append(CallEnded(call))

    # -- helpers --------------------------------------------------------------------------------------
    def _do(self, actions: Sequence[MediaAction]) -> None:
        self._shared.out.extend(actions)

    def _note(self, call: Call, event: str, *, warning: bool = False, **fields: Any) -> None:
        self._shared.note(event, warning=warning, call_id=call.key.call_id, **fields)


def has_sdp(message: SipMessage) -> bool:
    kind = (message.get("Content-Type") or "").partition(";")[0].strip().lower()
    return bool(message.body) and kind == "application/sdp"


def _name(uri: str) -> str:
    """``user@host`` for records; what is no SIP URI as it stands."""
    try:
        parsed = uri_untrusted(uri)
    except RemoteProtocolError:
        return uri
    return f"{parsed.user}@{parsed.host}" if parsed.user and parsed.host else parsed.user or parsed.host


def _contact(message: SipMessage) -> str:
    """URI of the only Contact; empty if it cannot be read."""
    values = message.values("Contact")
    try:
        return name_addr_untrusted(values[0]).uri if values else ""
    except RemoteProtocolError:
        return ""
