"""What all SIP conversations of one phone share: transactions, credentials, and the messages that leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final, Protocol

from opentsm.client.phone.digest import Challenge, choose_untrusted, credentials
from opentsm.client.phone.message import (
    SIP_PORT,
    SipMessage,
    host_port,
    parse_uri,
    request,
    response,
)
from opentsm.client.phone.transaction import (
    UNANSWERED,
    Effect,
    Input,
    Kind,
    State,
    Transaction,
    input_for,
)
from opentsm.errors import RemoteProtocolError
from opentsm.types import SocketAddress

MAX_TRANSACTIONS: Final = 512
"""Transactions at once. A finished one rests for 32 s, so this is 16 requests a second: a phone's plenty."""

MAX_AUTH_TRIES: Final = 3
"""Times one request is sent with credentials: proxy and registrar may both ask, and a nonce may be stale."""

MAX_FORWARDS: Final = "70"

LARGEST_BY_UDP: Final = 1300
"""Bytes of a request above which it goes by a stream (RFC 3261 section 18.1.1)."""

TRANSPORTS: Final = ("udp", "tcp")


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are.

    Args:
        user, domain: our address, sip:user@domain. password: None where nobody asks.
        auth_user: the name in credentials, where it is another than ``user``.
    """

    user: str
    domain: str
    password: str | None = None
    auth_user: str | None = None

    @property
    def uri(self) -> str:
        return str(parse_uri(self.user, self.domain))


@dataclass(frozen=True, slots=True)
class Send:
    """A message that is to leave: as a datagram, or (``reliable``) by the connection with that address."""

    data: bytes
    to: SocketAddress
    reliable: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """A request without what changes from one try to the next (Via, CSeq, credentials)."""

    method: str
    uri: str
    from_: str
    to: str
    call_id: str
    routes: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Owner(Protocol):
    """Who sent a request and wants to know what became of it."""

    def next_cseq(self) -> int: ...
    def on_response(self, now: float, method: str, message: SipMessage) -> None: ...
    def on_sent_again(self, sent: Sent) -> None:
        """The request went out anew, with credentials."""

    def on_timeout(self, now: float, method: str) -> None:
        """No final response (a client's request), or no ACK (our 2xx to INVITE)."""


@dataclass(slots=True)
class Sent:
    """A request of ours on its way."""

    template: Template
    transaction: Transaction
    owner: Owner | None
    cseq: int
    tries: int = 0


class Core:
    """Transactions of one phone.

    Args:
        local: our inner address and SIP port. server: where everything goes; None: straight to each target.
        new_id: gives a fresh random token at each call (hexadecimal, 16 digits or more).
        transport: what our requests go by: ``tcp``, or ``udp`` where they fit a datagram.
    """

    def __init__(
        self,
        account: Account,
        local: SocketAddress,
        server: SocketAddress | None,
        new_id: Callable[[], str],
        transport: str = "udp",
    ) -> None:
        if transport not in TRANSPORTS:
            raise ValueError(f"SIP goes by udp or tcp, not by {transport!r}")
        self.reliable = transport == "tcp"
        self.account = account
        self.local = local
        self.server = server
        self.new_id = new_id
        self.drops: Counter[str] = Counter()
        self._outbox: list[Send] = []
        self._clients: dict[tuple[str, ...], Sent] = {}
        self._servers: dict[tuple[str, ...], tuple[Transaction, Owner | None]] = {}
        self._challenges: dict[str, tuple[Challenge, int]] = {}
        self._without_tcp: set[SocketAddress] = set()

    # -- what leaves ----------------------------------------------------------------------------------------

    def take(self) -> list[Send]:
        outbox, self._outbox = self._outbox, []
        return outbox

    @property
    def contact(self) -> str:
        host = f"[{self.local[0]}]" if ":" in self.local[0] else self.local[0]
        uri = replace(parse_uri(self.account.uri), host=host, port=self.local[1])
        return f"<{uri};transport=tcp>" if self.reliable else f"<{uri}>"

    def send(self, now: float, template: Template, owner: Owner | None, *, tries: int = 0) -> Sent | None:
        """Send a request in a transaction of its own; None: there are too many already (counted)."""
        if len(self._clients) >= MAX_TRANSACTIONS:
            self.drops["sip-too-many-transactions"] += 1
            return None
        branch = self._branch()
        kind = Kind.INVITE_CLIENT if template.method == "INVITE" else Kind.CLIENT
        cseq = owner.next_cseq() if owner is not None else 1
        extra = self._credentials(template)
        reliable = self._goes_by_tcp(template)
        message = self.assemble(template, branch, cseq, extra, reliable=reliable)
        to = self.next_hop(template)
        if len(message) > LARGEST_BY_UDP and not reliable and to not in self._without_tcp:
            reliable = True
            message = self.assemble(template, branch, cseq, extra, reliable=True)
        transaction = Transaction(kind, (branch, template.method), to, message, reliable=reliable)
        sent = Sent(template, transaction, owner, cseq, tries)
        self._clients[transaction.key] = sent
        transaction.start(now)
        self.post(message, to, reliable)
        return sent

    def send_cancel(self, now: float, invite: Sent) -> None:
        """CANCEL has branch, number and route of what it cancels (RFC 3261 section 9.1)."""
        template = replace(invite.template, method="CANCEL", headers=(), body=b"")
        key = (invite.transaction.key[0], "CANCEL")
        to, reliable = invite.transaction.to, invite.transaction.reliable
        message = self.assemble(template, key[0], invite.cseq, reliable=reliable)
        transaction = Transaction(Kind.CLIENT, key, to, message, reliable=reliable)
        self._clients[key] = Sent(template, transaction, None, invite.cseq)
        transaction.start(now)
        self.post(message, to, reliable)

    def send_ack(self, template: Template, cseq: int) -> Send:
        """ACK to a 2xx: no transaction of its own (RFC 3261 section 13.2.2.4). To be repeated as needed."""
        reliable = self._goes_by_tcp(template)
        message = self.assemble(template, self._branch(), cseq, reliable=reliable)
        self.post(message, self.next_hop(template), reliable)
        return self._outbox[-1]

    def post(self, data: bytes, to: SocketAddress, reliable: bool = False) -> None:
        self._outbox.append(Send(data, to, reliable))

    def connection_failed(self, now: float, to: SocketAddress) -> None:
        """There is no connection with this address, and what was to go by it has not arrived.

        A request that was only too large for a datagram is sent as one after all (RFC 3261 section 18.1.1);
        others fail at once (section 17.1.4).
        """
        for sent in list(self._clients.values()):
            transaction = sent.transaction
            if transaction.to != to or not transaction.reliable or transaction.state not in UNANSWERED:
                continue
            if self._goes_by_tcp(sent.template):
                transaction.give_up()
                self._timed_out(now, transaction)
            else:
                self._without_tcp.add(to)
                message = _by_udp(transaction.message)
                transaction.by_unreliable(now, message)
                self.post(message, to)
        self.forget()

    def assemble(
        self,
        template: Template,
        branch: str,
        cseq: int,
        extra: tuple[tuple[str, str], ...] = (),
        *,
        reliable: bool = False,
    ) -> bytes:
        protocol = "TCP" if reliable else "UDP"
        headers = [
            ("Via", f"SIP/2.0/{protocol} {host_port(self.local)};branch={branch};rport"),
            *(("Route", route) for route in template.routes),
            ("Max-Forwards", MAX_FORWARDS),
            ("From", template.from_),
            ("To", template.to),
            ("Call-ID", template.call_id),
            ("CSeq", f"{cseq} {template.method}"),
            *template.headers,
            *extra,
        ]
        return request(template.method, template.uri, headers, template.body)

    def next_hop(self, template: Template) -> SocketAddress:
        """Where a request goes: to the server, if there is one; else to its first route or its target."""
        if self.server is not None:
            return self.server
        text = template.routes[0].partition("<")[2].partition(">")[0] if template.routes else template.uri
        uri = parse_uri(text)
        try:
            host = str(ip_address(uri.host.strip("[]")))
        except ValueError:
            raise ValueError(f"{uri.host!r} is no IP address, and there is no SIP server to ask") from None
        return host, uri.port or SIP_PORT

    def _goes_by_tcp(self, template: Template) -> bool:
        """Our wish, or where there is no server between us, what the target's URI asks for (RFC 3263)."""
        asked = self.server is None and ";transport=tcp" in template.uri.lower()
        return self.reliable or asked

    def _branch(self) -> str:
        return f"z9hG4bK{self.new_id()}"

    # -- what comes -----------------------------------------------------------------------------------------

    def response_untrusted(self, now: float, message: SipMessage) -> None:
        """A response: to its transaction, or nobody's.

        Raises:
            RemoteProtocolError: ``sip-stray-response``, ``challenge-syntax``.
        """
        sent = self._clients.get((message.branch, message.method))
        if sent is None:
            raise RemoteProtocolError("sip-stray-response", f"{message.code} {message.method}")
        for effect in sent.transaction.feed(now, input_for(message.code)):
            if effect is Effect.ACK:
                self._ack_failure(sent, message)
            elif effect is Effect.UP and not self._try_again(now, sent, message) and sent.owner:
                sent.owner.on_response(now, sent.template.method, message)

    def absorbed(self, now: float, message: SipMessage) -> bool:
        """Whether a request is a repetition, or an ACK to a failure, which end here."""
        known = self._servers.get(_server_key(message))
        if known is None:
            return False
        transaction, _ = known
        success = transaction.state is State.ACCEPTED
        happened = Input.ACK if message.method == "ACK" else Input.REQUEST
        self._carry_out(transaction, transaction.feed(now, happened))
        # An ACK to a 2xx has a branch of its own; one with INVITE's is from an old phone, and for the call.
        return not (message.method == "ACK" and success)

    def begin_server(
        self,
        now: float,
        message: SipMessage,
        source: SocketAddress,
        owner: Owner | None = None,
        *,
        reliable: bool = False,
    ) -> Transaction:
        """A new request; it is answered the way it came (RFC 3261 section 18.2.2).

        Raises:
            RemoteProtocolError: ``sip-too-many-transactions``.
        """
        if len(self._servers) >= MAX_TRANSACTIONS:
            raise RemoteProtocolError("sip-too-many-transactions")
        kind = Kind.INVITE_SERVER if message.method == "INVITE" else Kind.SERVER
        transaction = Transaction(kind, _server_key(message), source, reliable=reliable)
        self._servers[transaction.key] = (transaction, owner)
        transaction.start(now)
        return transaction

    def cancelled(self, message: SipMessage) -> tuple[Transaction, Owner | None] | None:
        """The INVITE that a CANCEL is about."""
        return self._servers.get((*_server_key(message)[:2], "INVITE"))

    def own(self, transaction: Transaction, owner: Owner) -> None:
        """``owner`` is told when our 2xx in this transaction is not acknowledged."""
        self._servers[transaction.key] = (transaction, owner)

    def respond(
        self,
        now: float,
        transaction: Transaction,
        to: SipMessage,
        code: int,
        tag: str,
        headers: list[tuple[str, str]] | None = None,
        body: bytes = b"",
    ) -> None:
        transaction.message = response(to, code, tag, headers, body, source=transaction.to)
        self._carry_out(transaction, transaction.feed(now, input_for(code)))

    def _carry_out(self, transaction: Transaction, effects: tuple[Effect, ...]) -> None:
        if Effect.SEND in effects and transaction.message:
            self.post(transaction.message, transaction.to, transaction.reliable)

    def _ack_failure(self, sent: Sent, message: SipMessage) -> None:
        """ACK to a final response other than 2xx: branch and route of the INVITE (section 17.1.1.3)."""
        template = replace(sent.template, method="ACK", to=message.header("To"), headers=(), body=b"")
        reliable = sent.transaction.reliable
        ack = self.assemble(template, sent.transaction.key[0], sent.cseq, reliable=reliable)
        self.post(ack, sent.transaction.to, reliable)

    # -- time -----------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        times = [t for transaction in self._transactions() if (t := transaction.deadline) is not None]
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Run out the timers that are due, and forget what is over."""
        for transaction in self._transactions():
            while (timer := transaction.due(now)) is not None:
                effects = transaction.feed(now, timer)
                self._carry_out(transaction, effects)
                if Effect.TIMEOUT in effects:
                    self._timed_out(now, transaction)
        self.forget()

    def forget(self) -> None:
        """Drop transactions that are over."""
        self._clients = {key: sent for key, sent in self._clients.items() if not sent.transaction.over}
        self._servers = {key: known for key, known in self._servers.items() if not known[0].over}

    def _transactions(self) -> list[Transaction]:
        clients = [sent.transaction for sent in self._clients.values()]
        return clients + [transaction for transaction, _ in self._servers.values()]

    def _timed_out(self, now: float, transaction: Transaction) -> None:
        sent = self._clients.get(transaction.key)
        owner = sent.owner if sent is not None else self._servers[transaction.key][1]
        if owner is not None:
            owner.on_timeout(now, transaction.key[-1])

    # -- credentials ----------------------------------------------------------------------------------------

    def _try_again(self, now: float, sent: Sent, message: SipMessage) -> bool:
        """Answer a challenge with the same request and credentials. False: it is not one, or no use."""
        if message.code not in (401, 407) or self.account.password is None or sent.tries >= MAX_AUTH_TRIES:
            return False
        name, answer = _AUTH_HEADERS[message.code]
        challenge = choose_untrusted(message.raw.getlist(name))
        if challenge is None:
            return False
        used = self._challenges.get(answer)
        refused = sent.tries > 0 and used is not None and used[0].realm == challenge.realm
        if refused and not challenge.stale:
            return False  # the same realm again, and not because the nonce was old: the password is wrong
        self._challenges[answer] = (challenge, 0)
        again = self.send(now, sent.template, sent.owner, tries=sent.tries + 1)
        if again is not None and sent.owner is not None:
            sent.owner.on_sent_again(again)
        return again is not None

    def _credentials(self, template: Template) -> tuple[tuple[str, str], ...]:
        """Headers for what we know of; a nonce that is still good saves a round trip."""
        if self.account.password is None:
            return ()
        headers = []
        for name, (challenge, count) in self._challenges.items():
            self._challenges[name] = (challenge, count + 1)
            value = credentials(
                challenge,
                username=self.account.auth_user or self.account.user,
                password=self.account.password,
                method=template.method,
                uri=template.uri,
                cnonce=self.new_id(),
                count=count + 1,
            )
            headers.append((name, value))
        return tuple(headers)


_AUTH_HEADERS: Final = {
    401: ("WWW-Authenticate", "Authorization"),
    407: ("Proxy-Authenticate", "Proxy-Authorization"),
}


def _by_udp(message: bytes) -> bytes:
    """Our own request with its Via changed; the branch stays, so that it stays the same transaction."""
    return message.replace(b"SIP/2.0/TCP ", b"SIP/2.0/UDP ", 1)


def _server_key(message: SipMessage) -> tuple[str, ...]:
    """RFC 3261 section 17.2.3: branch, sent-by and method; ACK belongs to its INVITE."""
    via = message.vias[0]
    method = "INVITE" if message.method == "ACK" else message.method
    branch = message.branch or f"{message.call_id} {message.cseq.sequence} {message.from_tag}"
    return branch, f"{via.host}:{via.port}", method
