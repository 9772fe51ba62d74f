"""Being known to the registrar: REGISTER and its refreshes (RFC 3261 section 10.2)."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from opentsm.client.phone.core import Core, Sent, Template
from opentsm.client.phone.events import Event, Registered, RegistrationFailed, Unregistered
from opentsm.client.phone.message import SipMessage

EXPIRES: Final = 300
"""Seconds asked for: a phone that vanishes is called in vain for no longer."""

EXPIRES_MAX: Final = 86_400
"""Seconds believed of a registrar."""

REFRESH_AT: Final = 0.8
"""Part of the time after which it is asked again: leaves room for the longest transaction (32 s)."""

RETRY: Final = 30.0
"""Seconds until the next try after a failure that may pass (RFC 5626 section 4.5: the base time)."""

_FINAL: Final = frozenset({401, 403, 404, 407, 416, 606})
"""Answers that another try will not change: wrong password, unknown user."""


class _State(Enum):
    IDLE = auto()
    ASKING = auto()
    ACTIVE = auto()
    WAITING = auto()
    LEAVING = auto()


class Registration:
    """One binding of our address. ``deadline`` is when the next REGISTER is due."""

    def __init__(self, core: Core, events: list[Event]) -> None:
        self.deadline: float | None = None
        self._core = core
        self._events = events
        self._state = _State.IDLE
        self._call_id = ""
        self._cseq = 0
        self._expires = EXPIRES
        self._raised = False

    @property
    def active(self) -> bool:
        return self._state is _State.ACTIVE

    def start(self, now: float, expires: int = EXPIRES) -> None:
        """Register, or register anew."""
        self._expires, self._raised = expires, False
        self._call_id = self._call_id or self._core.new_id()
        self._ask(now, _State.ASKING)

    def renew(self, now: float) -> None:
        """The way by which the registrar reached us is gone: register anew, if we were registered."""
        if self._state is _State.ACTIVE:
            self._ask(now, _State.ASKING)

    def stop(self, now: float) -> None:
        """Take the binding back; ends in Unregistered or RegistrationFailed."""
        if self._state in (_State.IDLE, _State.LEAVING):
            return
        self._expires = 0
        self._ask(now, _State.LEAVING)

    def tick(self, now: float) -> None:
        if self.deadline is not None and self.deadline <= now:
            self._ask(now, _State.ASKING)

    # -- the request's owner --------------------------------------------------------------------------------

    def next_cseq(self) -> int:
        self._cseq += 1
        return self._cseq

    def on_sent_again(self, sent: Sent) -> None:
        """Nothing to note: REGISTER cannot be cancelled."""

    def on_response(self, now: float, method: str, message: SipMessage) -> None:
        if message.code < 200:
            return
        if message.code < 300:
            self._succeeded(now, message)
        elif message.code == 423 and not self._raised and self._state is _State.ASKING:
            self._raised = True  # once: a registrar that is never content is not argued with
            self._expires = min(max(message.number("Min-Expires") or 0, self._expires), EXPIRES_MAX)
            self._ask(now, _State.ASKING)
        else:
            self._failed(now, message.code, message.phrase)

    def on_timeout(self, now: float, method: str) -> None:
        self._failed(now, 408, "no answer from the SIP server")

    # -- helpers --------------------------------------------------------------------------------------------

    def _ask(self, now: float, state: _State) -> None:
        self.deadline = None
        self._state = state
        uri = self._core.account.uri
        domain = uri.rpartition("@")[2]
        headers = (("Contact", self._core.contact), ("Expires", str(self._expires)))
        template = Template(
            "REGISTER",
            f"sip:{domain}",
            f"<{uri}>;tag={self._core.new_id()}",
            f"<{uri}>",
            self._call_id,
            headers=headers,
        )
        if self._core.send(now, template, self) is None:
            self._failed(now, 0, "too many SIP transactions")

    def _succeeded(self, now: float, message: SipMessage) -> None:
        if self._state is _State.LEAVING:
            self._state = _State.IDLE
            self._events.append(Unregistered())
            return
        granted = self._granted(message)
        self._state = _State.ACTIVE
        self.deadline = now + max(1.0, REFRESH_AT * granted)
        self._events.append(Registered(granted))

    def _granted(self, message: SipMessage) -> int:
        """How long our own contact is good for: of several, and after Expires, the one that is ours."""
        host, port = self._core.local
        for contact in message.contacts:
            if contact.uri.host.strip("[]") == host and (contact.uri.port or 5060) == port:
                digits = contact.parameters.get("expires") or ""
                if digits.isascii() and digits.isdigit() and len(digits) < 10:
                    return min(int(digits), EXPIRES_MAX)
        return min(message.number("Expires") or self._expires, EXPIRES_MAX)

    def _failed(self, now: float, code: int, reason: str) -> None:
        leaving = self._state is _State.LEAVING
        retry = None if leaving or code in _FINAL else RETRY
        self._state = _State.IDLE if retry is None else _State.WAITING
        self.deadline = None if retry is None else now + retry
        self._events.append(RegistrationFailed(code, reason, retry))
