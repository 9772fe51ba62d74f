"""One call of ours: its dialog (RFC 3261 section 12) and its life, as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from opentsm.client.phone import sdp
from opentsm.client.phone.core import Core, Send, Sent, Template
from opentsm.client.phone.events import Changed, Ended, Established, Event, Ringing
from opentsm.client.phone.message import SipMessage
from opentsm.client.phone.transaction import GIVE_UP, Input, Transaction
from opentsm.errors import RemoteProtocolError

RING_LIMIT: Final = 120.0
"""Seconds a call rings before it is given up: INVITE has no timer of its own once somebody said 180."""

ALLOW: Final = "INVITE, ACK, CANCEL, BYE, OPTIONS"

_SDP: Final = ("Content-Type", "application/sdp")


class LegState(Enum):
    CALLING = auto()  # our INVITE is out
    CANCELLING = auto()  # we do not want it any more
    RINGING = auto()  # their INVITE is here
    ACCEPTING = auto()  # our 2xx is out, no ACK yet
    CLOSING = auto()  # the same, and we have hung up: BYE has to wait for the ACK (section 15)
    UP = auto()
    ENDING = auto()  # our BYE is out
    ENDED = auto()


class Happened(Enum):
    PROVISIONAL = auto()
    SUCCESS = auto()
    FAILURE = auto()
    TIMEOUT = auto()
    CANCEL = auto()
    ACK = auto()
    NO_ACK = auto()
    BYE = auto()
    BYE_DONE = auto()
    ACCEPT = auto()
    HANG_UP = auto()
    DEADLINE = auto()
    UNUSABLE = auto()  # no media in common


# (state, what happened) -> (state, names of Leg's methods to call, in order)
TABLE: Final[dict[tuple[LegState, Happened], tuple[LegState, tuple[str, ...]]]] = {
    (LegState.CALLING, Happened.PROVISIONAL): (LegState.CALLING, ("tell_ringing",)),
    (LegState.CALLING, Happened.SUCCESS): (LegState.UP, ("acknowledge", "tell_up")),
    (LegState.CALLING, Happened.UNUSABLE): (LegState.ENDING, ("acknowledge", "bye")),
    (LegState.CALLING, Happened.FAILURE): (LegState.ENDED, ("tell_end",)),
    (LegState.CALLING, Happened.TIMEOUT): (LegState.ENDED, ("tell_end",)),
    (LegState.CALLING, Happened.HANG_UP): (LegState.CANCELLING, ("cancel",)),
    (LegState.CALLING, Happened.DEADLINE): (LegState.CANCELLING, ("cancel",)),
    (LegState.CANCELLING, Happened.PROVISIONAL): (LegState.CANCELLING, ("cancel",)),
    (LegState.CANCELLING, Happened.SUCCESS): (LegState.ENDING, ("acknowledge", "bye")),
    (LegState.CANCELLING, Happened.UNUSABLE): (LegState.ENDING, ("acknowledge", "bye")),
    (LegState.CANCELLING, Happened.FAILURE): (LegState.ENDED, ("tell_end",)),
    (LegState.CANCELLING, Happened.TIMEOUT): (LegState.ENDED, ("tell_end",)),
    (LegState.CANCELLING, Happened.DEADLINE): (LegState.ENDED, ("tell_end",)),
    (LegState.RINGING, Happened.ACCEPT): (LegState.ACCEPTING, ("accept", "tell_up")),
    (LegState.RINGING, Happened.UNUSABLE): (LegState.ENDED, ("reject", "tell_end")),
    (LegState.RINGING, Happened.HANG_UP): (LegState.ENDED, ("reject", "tell_end")),
    (LegState.RINGING, Happened.DEADLINE): (LegState.ENDED, ("reject", "tell_end")),
    (LegState.RINGING, Happened.CANCEL): (LegState.ENDED, ("reject", "tell_end")),
    (LegState.ACCEPTING, Happened.ACK): (LegState.UP, ("tell_up",)),
    (LegState.ACCEPTING, Happened.UNUSABLE): (LegState.ENDING, ("bye",)),
    (LegState.ACCEPTING, Happened.NO_ACK): (LegState.ENDING, ("bye",)),
    (LegState.ACCEPTING, Happened.BYE): (LegState.ENDED, ("tell_end",)),
    (LegState.ACCEPTING, Happened.HANG_UP): (LegState.CLOSING, ()),
    (LegState.CLOSING, Happened.ACK): (LegState.ENDING, ("bye",)),
    (LegState.CLOSING, Happened.UNUSABLE): (LegState.ENDING, ("bye",)),
    (LegState.CLOSING, Happened.NO_ACK): (LegState.ENDING, ("bye",)),
    (LegState.CLOSING, Happened.BYE): (LegState.ENDED, ("tell_end",)),
    (LegState.UP, Happened.SUCCESS): (LegState.UP, ("acknowledge",)),
    (LegState.UP, Happened.NO_ACK): (LegState.ENDING, ("bye",)),
    (LegState.UP, Happened.BYE): (LegState.ENDED, ("tell_end",)),
    (LegState.UP, Happened.HANG_UP): (LegState.ENDING, ("bye",)),
    (LegState.ENDING, Happened.SUCCESS): (LegState.ENDING, ("acknowledge",)),
    (LegState.ENDING, Happened.BYE): (LegState.ENDED, ("tell_end",)),
    (LegState.ENDING, Happened.BYE_DONE): (LegState.ENDED, ("tell_end",)),
    (LegState.ENDING, Happened.TIMEOUT): (LegState.ENDED, ("tell_end",)),
    (LegState.ENDED, Happened.SUCCESS): (LegState.ENDED, ("acknowledge",)),
}


@dataclass(slots=True)
class Dialog:
    """Both ends' names and the way between them. ``local``, ``remote``: From/To texts with their tags."""

    call_id: str
    local: str
    local_tag: str
    remote: str = ""
    remote_tag: str = ""
    target: str = ""
    routes: tuple[str, ...] = ()
    cseq: int = 0
    remote_cseq: int = -1


@dataclass(slots=True)
class _End:
    code: int = 0
    reason: str = ""
    by: str = "local"


class Leg:
    """One call, placed or received.

    Args:
        key: its name towards the phone. local: our side of the media.
    """

    def __init__(self, core: Core, events: list[Event], key: str, dialog: Dialog) -> None:
        self.key = key
        self.dialog = dialog
        self.state = LegState.CALLING
        self.deadline: float | None = None
        self._core = core
        self._events = events
        self._local: sdp.Local | None = None
        self._remote: sdp.Media | None = None
        self._end = _End()
        self._invite: Sent | None = None
        self._incoming: tuple[SipMessage, Transaction] | None = None
        self._offered = False  # by us: the far end's description answers it
        self._told_up = False
        self._ack: Send | None = None
        self._last: SipMessage | None = None
        self._cancel_sent = False

    # -- what the phone does --------------------------------------------------------------------------------

    def place(self, now: float, target: str, local: sdp.Local, core_from: str) -> None:
        """Send INVITE with our offer."""
        self._local, self._offered = local, True
        self.deadline = now + RING_LIMIT
        template = Template(
            "INVITE",
            target,
            core_from,
            f"<{target}>",
            self.dialog.call_id,
            headers=(("Contact", self._core.contact), ("Allow", ALLOW), _SDP),
            body=sdp.offer(local),
        )
        self._invite = self._core.send(now, template, self)
        if self._invite is None:
            self._finish(0, "too many SIP transactions", "local")
            self.state = LegState.ENDED
            self.tell_end(now)

    def receive(self, now: float, message: SipMessage, transaction: Transaction) -> None:
        """An INVITE has come: ring.

        Raises:
            RemoteProtocolError: its description cannot be read.
        """
        self.state = LegState.RINGING
        self._incoming = (message, transaction)
        self.deadline = now + RING_LIMIT
        if message.body:
            self._remote = _audio_untrusted(message)
        self._core.respond(now, transaction, message, 180, self.dialog.local_tag, [self._contact])

    def answer(self, now: float, local: sdp.Local) -> None:
        self._local = local
        message, _ = self._incoming or (None, None)
        if message is not None and message.body and self._remote is None:
            self._finish(488, "no audio that both sides can speak", "local")
            self.happen(now, Happened.UNUSABLE)
        else:
            self.happen(now, Happened.ACCEPT)

    def hang_up(self, now: float, code: int, reason: str) -> None:
        """End it, whatever its state; ``code`` is for a caller who is still waiting."""
        ours = {LegState.RINGING: code, LegState.CALLING: 487}.get(self.state, 200)
        self._finish(ours, reason, "local")
        self.happen(now, Happened.HANG_UP)

    # -- what the network does ------------------------------------------------------------------------------

    def happen(self, now: float, happened: Happened) -> None:
        row = TABLE.get((self.state, happened))
        if row is None:
            return
        before, self.state = self.state, row[0]
        if self.state is not before:
            cancelling = self.state is LegState.CANCELLING
            ringing = self.state in (LegState.CALLING, LegState.RINGING)
            self.deadline = now + GIVE_UP if cancelling else self.deadline if ringing else None
        for name in row[1]:
            getattr(self, name)(now)

    def tick(self, now: float) -> None:
        if self.deadline is not None and self.deadline <= now:
            self.deadline = None
            self._finish(480, "nobody answered in time", "local")
            self.happen(now, Happened.DEADLINE)

    def on_request_untrusted(self, now: float, message: SipMessage, transaction: Transaction | None) -> None:
        """A request in our dialog; ACK has no transaction.

        Raises:
            RemoteProtocolError: a description that cannot be read (answered with 400 or 488).
        """
        if message.method == "ACK":
            self._on_ack(now, message)
            return
        assert transaction is not None  # every request but ACK has one
        if message.cseq.sequence <= self.dialog.remote_cseq:
            self._core.respond(now, transaction, message, 500, self.dialog.local_tag)
            return
        self.dialog.remote_cseq = message.cseq.sequence
        if message.method == "BYE":
            self._stop_repeating(now)
            self._core.respond(now, transaction, message, 200, self.dialog.local_tag)
            self._finish(200, _reason_text(message) or "the other side hung up", "remote")
            self.happen(now, Happened.BYE)
        elif message.method == "INVITE":
            self._on_reinvite_untrusted(now, message, transaction)
        else:
            self._core.respond(now, transaction, message, 405, self.dialog.local_tag, [("Allow", ALLOW)])

    def on_cancel(self, now: float) -> None:
        self._finish(487, "the caller gave up", "remote")
        self.happen(now, Happened.CANCEL)

    # -- our requests' owner --------------------------------------------------------------------------------

    def next_cseq(self) -> int:
        self.dialog.cseq += 1
        return self.dialog.cseq

    def on_sent_again(self, sent: Sent) -> None:
        if sent.template.method == "INVITE":
            self._invite = sent
            if self.state is LegState.CANCELLING:
                self._cancel_sent = False

    def on_response(self, now: float, method: str, message: SipMessage) -> None:
        if method != "INVITE":
            if message.code >= 200:
                self.happen(now, Happened.BYE_DONE)
            return
        self._last = message
        if message.code < 200:
            self.happen(now, Happened.PROVISIONAL)
        elif message.code < 300:
            self._on_success(now, message)
        else:
            self._finish(message.code, message.phrase, "remote")
            self.happen(now, Happened.FAILURE)

    def on_timeout(self, now: float, method: str) -> None:
        if method == "INVITE" and self._incoming is not None:
            self._finish(0, "the other side never acknowledged", "local")
            self.happen(now, Happened.NO_ACK)
            return
        self._finish(408, "no answer", "local")
        self.happen(now, Happened.TIMEOUT)

    # -- what the table calls -------------------------------------------------------------------------------

    def tell_ringing(self, now: float) -> None:
        if self._last is not None and self._last.code > 100:
            self._events.append(Ringing(self.key, self._last.code))

    def tell_up(self, now: float) -> None:
        """Once, and only when it is known where media goes (a late offer is answered in the ACK)."""
        if self._remote is not None and not self._told_up:
            self._told_up = True
            self._events.append(Established(self.key, self._remote))

    def tell_end(self, now: float) -> None:
        self._events.append(Ended(self.key, self._end.code, self._end.reason, self._end.by))

    def acknowledge(self, now: float) -> None:
        if self._ack is not None:
            self._core.post(self._ack.data, self._ack.to, self._ack.reliable)
            return
        assert self._invite is not None  # only a 2xx to our INVITE leads here
        self._ack = self._core.send_ack(self._template("ACK"), self._invite.cseq)

    def cancel(self, now: float) -> None:
        """Only after a provisional response (section 9.1); until then the wish waits."""
        if self._invite is None or self._cancel_sent or self._last is None or self._last.code >= 200:
            return
        self._cancel_sent = True
        self._core.send_cancel(now, self._invite)

    def bye(self, now: float) -> None:
        if self._core.send(now, self._template("BYE"), self) is None:
            self.happen(now, Happened.TIMEOUT)

    def accept(self, now: float) -> None:
        message, transaction = self._need_incoming()
        self._core.own(transaction, self)
        self._respond_with_media(now, message, transaction)

    def reject(self, now: float) -> None:
        message, transaction = self._need_incoming()
        code = self._end.code if self._end.code >= 400 else 480
        self._core.respond(now, transaction, message, code, self.dialog.local_tag)

    # -- helpers --------------------------------------------------------------------------------------------

    @property
    def _contact(self) -> tuple[str, str]:
        return ("Contact", self._core.contact)

    def _need_incoming(self) -> tuple[SipMessage, Transaction]:
        assert self._incoming is not None  # these states are reached by ``receive`` alone
        return self._incoming

    def _finish(self, code: int, reason: str, by: str) -> None:
        """Note why it ends; the first reason is the one that counts."""
        if not self._end.reason:
            self._end = _End(code, reason, by)

    def _template(self, method: str) -> Template:
        d = self.dialog
        return Template(method, d.target, d.local, d.remote, d.call_id, d.routes)

    def _on_success(self, now: float, message: SipMessage) -> None:
        dialog = self.dialog
        if dialog.remote_tag and message.to_tag != dialog.remote_tag:
            self._decline_fork(now, message)
            return
        if not dialog.remote_tag:
            dialog.remote_tag, dialog.remote = message.to_tag, message.header("To")
            dialog.routes = tuple(reversed(message.routes))
            dialog.target = message.target or dialog.target
            try:
                self._remote = _audio_untrusted(message)
            except RemoteProtocolError:
                self._core.drops["sip-bad-answer"] += 1
            if self._remote is None:
                self._finish(488, "no audio that both sides can speak", "local")
                self.happen(now, Happened.UNUSABLE)
                return
        self.happen(now, Happened.SUCCESS)

    def _decline_fork(self, now: float, message: SipMessage) -> None:
        """A second phone has answered too: take note, and leave it (section 13.2.2.4)."""
        assert self._invite is not None  # it is what they answer
        template = replace(
            self._template("ACK"),
            uri=message.target or self.dialog.target,
            to=message.header("To"),
            routes=tuple(reversed(message.routes)),
        )
        self._core.send_ack(template, self._invite.cseq)
        self._core.send(now, replace(template, method="BYE"), _Stranger(self._invite.cseq))

    def _on_ack(self, now: float, message: SipMessage) -> None:
        """Our 2xx has arrived; the answer to an offer in it comes with the ACK."""
        if self._incoming is None or self._incoming[0].cseq.sequence != message.cseq.sequence:
            return
        self._stop_repeating(now)
        if self._offered and message.body:
            self._offered = False
            try:
                answered = _audio_untrusted(message)
            except RemoteProtocolError:
                answered = None
                self._core.drops["sip-bad-answer"] += 1
            self._remote = answered or self._remote
            if answered is not None and self._told_up:
                self._events.append(Changed(self.key, answered))
        if self._remote is None:
            self._finish(488, "no audio that both sides can speak", "local")
            self.happen(now, Happened.UNUSABLE)
        else:
            self.happen(now, Happened.ACK)

    def _stop_repeating(self, now: float) -> None:
        """They have our 2xx: it says so in their ACK, or they could not have sent BYE."""
        if self._incoming is not None:
            self._incoming[1].feed(now, Input.ACK)

    def _on_reinvite_untrusted(self, now: float, message: SipMessage, transaction: Transaction) -> None:
        """The far end changes the media, or holds; we follow (RFC 3264 section 8)."""
        if self.state is not LegState.UP or self._local is None:
            self._core.respond(now, transaction, message, 491, self.dialog.local_tag)
            return
        try:
            offered = _audio_untrusted(message) if message.body else self._remote
        except RemoteProtocolError:
            self._core.respond(now, transaction, message, 400, self.dialog.local_tag)
            raise
        if offered is None:
            self._core.respond(now, transaction, message, 488, self.dialog.local_tag)
            return
        self.dialog.target = message.target or self.dialog.target
        self._local = replace(self._local, version=self._local.version + 1)
        self._incoming = (message, transaction)
        self._core.own(transaction, self)
        self._respond_with_media(now, message, transaction)
        self._remote = offered
        self._events.append(Changed(self.key, offered))

    def _respond_with_media(self, now: float, message: SipMessage, transaction: Transaction) -> None:
        """200 with an answer; with an offer, where the INVITE had none."""
        assert self._local is not None  # set before anything is accepted
        self._offered = not message.body
        body = sdp.answer(self._local, sdp.parse_sdp_untrusted(message.body)) if message.body else None
        headers = [self._contact, ("Allow", ALLOW), _SDP]
        content = body or sdp.offer(self._local)
        self._core.respond(now, transaction, message, 200, self.dialog.local_tag, headers, content)


class _Stranger:
    """Owner of a request whose outcome interests nobody."""

    def __init__(self, cseq: int) -> None:
        self._cseq = cseq

    def next_cseq(self) -> int:
        self._cseq += 1
        return self._cseq

    def on_sent_again(self, sent: Sent) -> None: ...
    def on_response(self, now: float, method: str, message: SipMessage) -> None: ...
    def on_timeout(self, now: float, method: str) -> None: ...


def _audio_untrusted(message: SipMessage) -> sdp.Media | None:
    """The audio in a message's description that we can speak."""
    return sdp.parse_sdp_untrusted(message.body).audio


def _reason_text(message: SipMessage) -> str:
    """The text of a Reason header (RFC 3326), for people."""
    _, found, rest = message.header("Reason").partition('text="')
    return rest.partition('"')[0][:80] if found else ""
