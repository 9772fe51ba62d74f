"""The SBC without I/O: bytes and time in, actions out.

Nothing one message contains can stop the next: what cannot be read is answered 400 or dropped, by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from opentsm.errors import RemoteProtocolError

from . import stun
from .actions import Action, SaveBindings
from .callcontrol import CallControl
from .dialogs import Call, CallState
from .digest import Nonces
from .flood import FloodGate
from .headers import (
    BRANCH_COOKIE,
    Essentials,
    essentials_untrusted,
    number_untrusted,
    scheme_of,
    uri_untrusted,
    via_received,
    via_untrusted,
)
from .hop import FlowTokens, Hop
from .location import Binding
from .media import NoPorts
from .message import (
    Request,
    Response,
    cut_body_untrusted,
    parse_head_untrusted,
    parse_refusable_untrusted,
    reply,
)
from .parties import Client, IdentityOf, Side
from .proxy import Proxy, is_loop
from .registrar import Registrar
from .routing import ForUs, Plan, plan
from .settings import SbcSettings
from .shared import Refusal, Shared
from .transactions import Send, State, Transaction, TransactionKey
from .users import Credentials

MAX_TRANSACTIONS: Final = 20_000
"""Client and server transactions at once, about 4 KiB each: 150 calls set up and ended a second, as each
transaction lingers for 32 s."""

MAX_TRANSACTIONS_PER_SOURCE: Final = 4_000
"""Server transactions of one inner address: so no single client can take them all."""

IN_DIALOG_RESERVE: Final = 1.25
"""Calls that stand may be changed and ended while new ones are refused."""

MAX_PATH: Final = 2048
"""Characters of the Path values of one REGISTER, which are stored: a few edge proxies have 100 each."""

RETRY_AFTER: Final = "5"
"""Seconds, in a 503: transactions come free all the time."""

ALLOW: Final = (
    "INVITE, ACK, CANCEL, BYE, OPTIONS, REGISTER, UPDATE, PRACK, INFO, REFER, MESSAGE, SUBSCRIBE, NOTIFY"
)

_CODES: Final = {"bad-version": 505, "unknown-scheme": 416}


class SbcCore:
    """Registrar, proxy and call control of one SBC.

    Args:
        identity_of: the client at an inner address.
        key: secret for flow tokens and nonces.
        new_id: gives fresh words that cannot be guessed.
    """

    def __init__(
        self,
        settings: SbcSettings,
        credentials: Credentials,
        identity_of: IdentityOf,
        *,
        key: bytes,
        new_id: Callable[[], str],
    ) -> None:
        self._shared = Shared(settings, credentials, identity_of, FlowTokens(key), new_id)
        self._control = CallControl(self._shared)
        self._proxy = Proxy(self._shared, self._control)
        self._registrar = Registrar(settings, self._shared.location, credentials, Nonces(key), new_id)
        self._flood = FloodGate()

    # -- what others may look at ------------------------------------------------------------------
    @property
    def calls(self) -> Iterable[Call]:
        return self._shared.calls

    def sizes(self) -> dict[str, int]:
        """How full the bounded tables are."""
        return {
            "calls": len(self._shared.calls),
            "transactions": len(self._shared.transactions),
            "users": len(self._shared.location),
            "media-ports-free": self._control.ports.free,
        }

    def bindings(self, aor: str) -> list[Binding]:
        """Contacts of ``user@domain`` now."""
        return self._shared.location.of(aor)

    # -- inputs -----------------------------------------------------------------------------------
    def restore(self, now: float, bindings: Iterable[Binding]) -> None:
        """Bindings that survived a restart."""
        for binding in bindings:
            if binding.expires_at > now and not self._shared.location.is_full_for(binding.aor):
                self._shared.location.put(binding)

    def restore_calls(self, now: float, kept: Iterable[dict[str, Any]], offset: float) -> list[Action]:
        """Answered calls that survived a restart. One whose party has no tunnel any more ends.

        Args:
            offset: seconds from this clock to the time since 1970.
        """
        gone: set[str] = set()
        for one in kept:
            try:
                call = self._control.restore(now, one, offset)
            except (NoPorts, KeyError, TypeError, ValueError) as error:
                self._shared.note("call-not-taken-up", warning=True, error=f"{type(error).__name__}: {error}")
                continue
            for side in Side:
                party, leg = call.party(side), call.media.legs[side]
                if leg.addresses and party.client is None:
                    gone.add(party.hop.source)
        if gone:
            self._proxy.lost(now, frozenset(gone))
        return self.take()

    def receive(self, now: float, hop: Hop, data: bytes) -> list[Action]:
        """One datagram (or one message cut from a stream)."""
        try:
            self._receive_untrusted(now, hop, data)
        except RemoteProtocolError as error:
            who = self._shared.who(hop)
            self._shared.note(f"sip-{error.reason}", warning=True, detail=error.detail, **who)
        return self.take()

    def expire(self, now: float) -> list[Action]:
        """Do what is due at ``now``."""
        self._proxy.carry_out(now, self._shared.transactions.expire(now))
        self._proxy.expire(now)
        for aor in self._shared.location.expire(now):
            self._shared.note("binding-expired", user=aor)
            self._save(aor)
        for call in self._shared.calls.expire(now):
            for side in Side:
                if call.state is CallState.ANSWERED:
                    self._proxy.hang_up(now, call, side)
            self._control.end(now, call, "server", "session-timer", call.code)
        return self.take()

    def next_deadline(self) -> float | None:
        """When ``expire`` has something to do, or None."""
        shared = self._shared
        deadlines = [
            shared.transactions.next_deadline(),
            self._proxy.next_deadline(),
            shared.location.next_deadline(),
            shared.calls.next_deadline(),
        ]
        return min((when for when in deadlines if when is not None), default=None)

    def broken(self, hop: Hop, data: bytes, error: RemoteProtocolError) -> list[Action]:
        """A stream cannot be read on. If it still says whose request ``data`` begins, the sender is told
        why."""
        who = self._shared.who(hop)
        self._shared.note(f"sip-{error.reason}", warning=True, detail=error.detail, **who)
        try:
            message = parse_head_untrusted(data)
            if isinstance(message, Request):
                self._reject_unread(hop, message, error)
        except RemoteProtocolError:
            pass
        return self.take()

    def unreachable(self, now: float, hop: Hop) -> list[Action]:
        """No connection to this neighbour can be had."""
        self._proxy.unreachable(now, hop)
        return self.take()

    def client_lost(self, now: float, addresses: Iterable[str]) -> list[Action]:
        """A client's session is closed: its contacts and calls end."""
        gone = frozenset(addresses)
        self._proxy.lost(now, gone)
        for address in sorted(gone):
            for aor in sorted(self._shared.location.at(address)):
                for binding in self._shared.location.of(aor):
                    if binding.hop.source == address:
                        self._shared.location.remove(aor, binding.key)
                self._save(aor)
        return self.take()

    def media_dead(self, now: float, call: Call) -> list[Action]:
        """Neither party has sent media for too long: tell both, and end the call."""
        if call.state is CallState.ANSWERED:
            for side in Side:
                self._proxy.hang_up(now, call, side)
            self._control.end(now, call, "server", "media-timeout", call.code)
        return self.take()

    def shut_down(self, now: float, *, keep: bool = False) -> list[Action]:
        """The server stops: records of the calls that stand. Their parties are told nothing, as their calls
        can go on through the next server.

        Args:
            keep: answered calls are in a store, and have no end yet.
        """
        for call in list(self._shared.calls):
            if keep and call.state is CallState.ANSWERED:
                continue
            self._control.end(now, call, "server", "shut-down", call.code)
        return self.take()

    def take(self) -> list[Action]:
        """Actions that were decided before an exception; they stand."""
        actions, self._shared.out = self._shared.out, []
        return actions

    # -- messages -----------------------------------------------------------------------------------
    def _receive_untrusted(self, now: float, hop: Hop, data: bytes) -> None:
        if not self._flood.admits(now, hop.source, len(data)):
            raise RemoteProtocolError("flood")
        if not data.strip(b"\r\n\0"):
            if data.startswith(b"\r\n\r\n"):
                self._shared.out.append(Send(hop, b"\r\n"))
            return
        if stun.is_stun(data):
            if (pong := stun.answer(data, hop.remote)) is not None:
                self._shared.out.append(Send(hop, pong))
            return
        try:
            message = parse_head_untrusted(data)
        except RemoteProtocolError as error:
            if error.reason == "bad-start-line":
                self._reject_unread(hop, parse_refusable_untrusted(data), error)
            raise
        if isinstance(message, Response):
            cut_body_untrusted(message)
            self._proxy.answer(now, hop, message)
            return
        try:
            essentials = self._checked_untrusted(hop, message)
        except RemoteProtocolError as error:
            self._reject_unread(hop, message, error)
            raise
        self._request(now, hop, message, essentials)

    def _checked_untrusted(self, hop: Hop, request: Request) -> Essentials:
        """What must hold before a request may make a transaction."""
        if request.version != "2.0":
            raise RemoteProtocolError("bad-version", request.version)
        essentials = essentials_untrusted(request)
        if hop.reliable and not request.lines("Content-Length"):
            raise RemoteProtocolError("bad-content-length", "none, on a stream")
        cut_body_untrusted(request)
        if scheme_of(request.uri) in ("sip", "sips", "tel"):
            uri_untrusted(request.uri)
            if "?" in request.uri:
                # Only URIs in Contact or Refer-To may carry headers (RFC 3261 section 19.1.1, table 1).
                raise RemoteProtocolError("bad-uri", "headers in a Request-URI")
        if (hops := request.get("Max-Forwards")) is not None:
            number_untrusted(hops, "bad-max-forwards", 255)
        _note_source(request, hop)
        return essentials

    def _reject_unread(self, hop: Hop, request: Request, error: RemoteProtocolError) -> None:
        """Answer what could not be read, without making state, if it says enough of itself to be answered."""
        vias = request.values("Via")
        if not vias or not request.get("CSeq") or request.method == "ACK":
            return
        via_untrusted(vias[0])
        _note_source(request, hop)
        code = _CODES.get(error.reason, 400)
        reason = f"Bad Request ({error.reason})" if code == 400 else ""
        self._shared.out.append(Send(hop, reply(request, code, reason, tag=self._shared.new_id()).encode()))

    def _request(self, now: float, hop: Hop, request: Request, essentials: Essentials) -> None:
        key = server_key(hop, request, essentials)
        transactions = self._shared.transactions
        known = transactions.find(key)
        if known is not None:
            self._proxy.carry_out(now, transactions.request_again(now, known, request.method))
            # Some phones send the ACK for a 2xx on the INVITE's branch; it is end to end and goes on.
            if request.method != "ACK" or known.state is not State.ACCEPTED:
                return
        if request.method == "ACK":
            self._ack(hop, request, essentials)
            return
        if self._is_overloaded(hop, essentials):
            response = self._shared.reply(request, 503)
            response.headers.append(("Retry-After", RETRY_AFTER))
            self._shared.out.append(Send(hop, response.encode()))
            self._shared.note("overload", warning=True, call_id=essentials.call_id, **self._shared.who(hop))
            return
        server = transactions.start_server(now, key, hop, request)
        try:
            refusal = self._handle_untrusted(now, server, request.copy(), essentials)
        except RemoteProtocolError as error:
            refusal = Refusal(400, f"Bad Request ({error.reason})", f"sip-{error.reason}")
        if refusal is not None:
            self._proxy.refuse(now, server, refusal)

    def _is_overloaded(self, hop: Hop, essentials: Essentials) -> bool:
        reserve = IN_DIALOG_RESERVE if essentials.to.tag or essentials.method == "CANCEL" else 1.0
        transactions = self._shared.transactions
        return (
            len(transactions) >= MAX_TRANSACTIONS * reserve
            or transactions.of_peer(hop.source) >= MAX_TRANSACTIONS_PER_SOURCE * reserve
        )

    def _handle_untrusted(
        self, now: float, server: Transaction, request: Request, essentials: Essentials
    ) -> Refusal | None:
        """Everything that has a server transaction. Returns what to refuse it with, if anything."""
        hop = server.hop
        if request.method == "CANCEL":
            return self._cancel(now, server)
        if (request.get("Max-Forwards") or "").strip() == "0":
            return Refusal(483, "", "too-many-hops")
        if is_loop(self._shared, request):
            return Refusal(482, "", "loop-detected")
        if wanted := request.values("Proxy-Require"):
            return Refusal(420, "", "bad-extension", (("Unsupported", ", ".join(wanted)),))
        client = self._shared.client_of(hop)
        if request.method == "REGISTER":
            return self._register(now, server, request, essentials, client)
        decision = plan(self._shared, hop, request, essentials, client)
        if isinstance(decision, Refusal):
            return decision
        if isinstance(decision, ForUs):
            response = self._shared.reply(request, 200)
            response.headers += [("Allow", ALLOW), ("Accept", "application/sdp")]
            self._proxy.respond(now, server, response)
            return None
        self._proxy.start(now, server, decision, request, essentials, client)
        return None

    def _cancel(self, now: float, server: Transaction) -> Refusal | None:
        invite = server.key._replace(method="INVITE")
        if self._shared.transactions.find(invite) is None:
            return Refusal(481, "", "cancel-of-nothing")
        self._proxy.respond(now, server, self._shared.reply(server.request, 200))
        self._proxy.cancel(now, invite)
        return None

    def _register(
        self,
        now: float,
        server: Transaction,
        request: Request,
        essentials: Essentials,
        client: Client | None,
    ) -> Refusal | None:
        hop = server.hop
        uri, to = uri_untrusted(request.uri), uri_untrusted(essentials.to.uri)
        if not self._shared.is_own(uri.host, uri.port) or not self._shared.is_own(to.host, None):
            return Refusal(403, "Not our domain", "register-foreign-domain")
        if sum(map(len, request.values("Path"))) > MAX_PATH:
            return Refusal(400, "Path too long", "register-bad-path")
        outcome = self._registrar.register(now, hop, request, essentials, client)
        self._shared.note(
            outcome.event, user=essentials.to.uri, call_id=essentials.call_id, **self._shared.who(hop)
        )
        if outcome.changed is not None:
            self._save(outcome.changed)
        self._proxy.respond(now, server, outcome.response)
        return None

    def _ack(self, hop: Hop, request: Request, essentials: Essentials) -> None:
        """An ACK is never answered, whatever is wrong with it."""
        if (request.get("Max-Forwards") or "").strip() == "0" or is_loop(self._shared, request):
            self._shared.note("ack-dropped", call_id=essentials.call_id)
            return
        client, copy = self._shared.client_of(hop), request.copy()
        decision = plan(self._shared, hop, copy, essentials, client)
        if isinstance(decision, Plan) and essentials.to.tag:
            self._proxy.ack(decision, request, copy, essentials)
        else:
            self._shared.note("ack-dropped", call_id=essentials.call_id)

    def _save(self, aor: str) -> None:
        self._shared.out.append(SaveBindings(aor, tuple(self._shared.location.of(aor))))


def _note_source(request: Request, hop: Hop) -> None:
    vias = request.values("Via")
    request.set_values("Via", [via_received(vias[0], *hop.remote), *vias[1:]])


def server_key(hop: Hop, request: Request, essentials: Essentials) -> TransactionKey:
    """Key of a server transaction (RFC 3261 section 17.2.3); ACK finds its INVITE's. Branches without the
    cookie, or with nothing behind it, are replaced by what RFC 2543 compared."""
    via = essentials.via
    branch = via.branch or ""
    if not branch.startswith(BRANCH_COOKIE) or branch == BRANCH_COOKIE:
        to_tag = "" if request.method in ("ACK", "INVITE") else essentials.to.tag
        parts = (
            request.uri,
            to_tag,
            essentials.from_.tag,
            essentials.call_id,
            str(essentials.sequence),
            branch,
        )
        branch = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    sent_by = f"{branch}@{via.host}:{via.port or 5060}"
    method = "INVITE" if request.method == "ACK" else request.method
    return TransactionKey("server", sent_by, method, hop.source)
