"""A phone: a user agent of its own making (RFC 3261 sections 8, 12 to 15, 17), so that the SBC meets
something that was not written from its own code. Parsing by sipmessage; one phone, one address, any number
of calls."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sipmessage import AuthChallenge, Message, Request, Response

T1, T2 = 0.5, 4.0
_RECEIVED = re.compile(rb"received=([0-9a-f]*:[0-9a-f:]*)")


class Network(Protocol):
    """What a phone can do: send, wait, make up words."""

    @property
    def now(self) -> float: ...
    def send(self, source: tuple[str, int], data: bytes) -> None: ...
    def after(self, seconds: float, call: Callable[[], None]) -> None: ...
    def word(self) -> str: ...


@dataclass(eq=False)
class Leg:
    """One call as one phone sees it."""

    call_id: str
    own_tag: str
    far: str
    target: str
    outgoing: bool
    far_tag: str = ""
    routes: list[str] = field(default_factory=list)
    state: str = "new"  # new, ringing, answered, ended, failed
    code: int = 0
    sequence: int = 0
    far_sdp: str = ""
    invite: Request | None = None
    version: int = 1
    events: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)  # RSeq of provisional answers acknowledged


@dataclass(eq=False)
class _Pending:
    """A request of ours without a final answer."""

    data: bytes
    on_answer: Callable[[Response], None]
    done: bool = False
    heard: bool = False
    interval: float = T1


@dataclass(eq=False)
class Phone:
    network: Network
    name: str
    address: str
    password: str = ""
    domain: str = "example.org"
    server: str = "10.64.0.1"
    port: int = 5060
    media_address: str = ""
    media_port: int = 16000
    behaviour: str = "answer"  # answer, ring, busy, silent, reject603
    ring_time: float = 1.0
    algorithm: str = "SHA-256"
    calls: dict[str, Leg] = field(default_factory=dict)
    registered: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    more: list[tuple[str, str]] = field(default_factory=list)  # headers added to its 2xx
    transport: str = "udp"
    core: bool = False  # on the server's own network
    early: str = ""  # "": 180 without a body; "183": reliable, with SDP (RFC 3262)
    demands: str = ""  # "user:password" without which it is not called, and the code it asks with
    demand_code: int = 407
    lenient: bool = False  # drops what it cannot read, for tests that send such things
    _pending: dict[tuple[str, str], _Pending] = field(default_factory=dict)
    _served: dict[tuple[str, str], bytes] = field(default_factory=dict)
    _unacked: dict[str, bytes] = field(default_factory=dict)
    _sequence: int = 0

    @property
    def host(self) -> str:
        """Its address as it stands in a URI."""
        return f"[{self.address}]" if ":" in self.address else self.address

    # -- the wire -----------------------------------------------------------------------------------
    def _send(self, data: bytes) -> None:
        self.network.send((self.address, self.port), data)

    def _request(
        self, method: str, uri: str, headers: list[str], body: str, on_answer: Callable[[Response], None]
    ) -> str:
        branch = f"z9hG4bK{self.network.word()}"
        kind = ["Content-Type: application/sdp"] if body else []
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/{self.transport.upper()} {self.host}:{self.port};branch={branch};rport",
            "Max-Forwards: 70",
            *headers,
            *kind,
            f"Content-Length: {len(body)}",
        ]
        data = ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
        if method == "ACK":
            self._send(data)
            return branch
        pending = _Pending(data, on_answer)
        self._pending[branch, method] = pending
        self._send(data)
        self._repeat(pending, method, self.network.now + 64 * T1)
        return branch

    def _repeat(self, pending: _Pending, method: str, until: float) -> None:
        def again() -> None:
            if pending.done or (method == "INVITE" and pending.heard):
                return
            if self.network.now >= until:
                pending.done = True
                timeout = Response(408, "Timeout")
                pending.on_answer(timeout)
                return
            if self.transport == "udp":
                self._send(pending.data)
            pending.interval = pending.interval * 2 if method == "INVITE" else min(pending.interval * 2, T2)
            self.network.after(pending.interval, again)

        self.network.after(pending.interval, again)

    def receive(self, data: bytes) -> None:
        if not data.strip():
            return
        try:
            # sipmessage does not know IPv6 addresses there without brackets, as the RFC's grammar has them.
            self._take(Message.parse(_RECEIVED.sub(rb"received=[\1]", data)))
        except (ValueError, LookupError, TypeError, AssertionError):
            if not self.lenient:
                raise

    def _take(self, message: Request | Response) -> None:
        if isinstance(message, Request):
            self._got_request(message)
        else:
            self._got_response(message)

    def _got_response(self, response: Response) -> None:
        via = response.via[0]
        key = (str(via.parameters["branch"]), response.cseq.method)
        self.answers.append(response.code)
        pending = self._pending.get(key)
        if pending is None:
            return
        pending.heard = True
        if pending.done:
            if key[1] == "INVITE" and response.code >= 200:
                self._acknowledge(response, key[0])
            return
        if response.code >= 200:
            pending.done = True
            if key[1] == "INVITE":
                self._acknowledge(response, key[0])
        pending.on_answer(response)

    # -- registration -------------------------------------------------------------------------------
    def register(self, expires: int = 3600, user: str | None = None, contact: str = "") -> None:
        call_id, user = self.network.word(), user or self.name
        self._register(call_id, expires, user, contact or self._contact().partition(": ")[2], None)

    def _register(self, call_id: str, expires: int, user: str, contact: str, auth: str | None) -> None:
        self._sequence += 1
        uri = f"sip:{self.domain}"
        headers = [
            f"From: <sip:{user}@{self.domain}>;tag={self.network.word()}",
            f"To: <sip:{user}@{self.domain}>",
            f"Call-ID: {call_id}",
            f"CSeq: {self._sequence} REGISTER",
            f"Contact: {contact}",
            f"Expires: {expires}",
        ] + ([f"Authorization: {auth}"] if auth else [])

        def answered(response: Response) -> None:
            if response.code == 401 and auth is None:
                value = self._credentials(response, user, uri)
                self._register(call_id, expires, user, contact, value)
                return
            self.registered.append(str(response.code))

        self._request("REGISTER", uri, headers, "", answered)

    def _credentials(self, response: Response, user: str, uri: str) -> str:
        challenges = [AuthChallenge.parse(v) for v in response.headers.getlist("WWW-Authenticate")]
        chosen = next(c for c in challenges if c.parameters["algorithm"] == self.algorithm)
        hashed = hashlib.sha256 if self.algorithm == "SHA-256" else hashlib.md5

        def h(text: str) -> str:
            return hashed(text.encode()).hexdigest()

        realm, nonce = chosen.parameters["realm"], chosen.parameters["nonce"]
        a1, a2 = h(f"{user}:{realm}:{self.password}"), h(f"REGISTER:{uri}")
        result = h(f"{a1}:{nonce}:00000001:abc:auth:{a2}")
        return (
            f'Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{uri}", qop=auth, nc=00000001,'
            f' cnonce="abc", response="{result}", algorithm={self.algorithm}'
        )

    # -- calling ------------------------------------------------------------------------------------
    def sdp(self, leg: Leg, direction: str = "sendrecv") -> str:
        address = self.media_address or self.address
        family = "IP6" if ":" in address else "IP4"
        lines = [
            "v=0",
            f"o={self.name} 1 {leg.version} IN {family} {address}",
            "s=-",
            f"c=IN {family} {address}",
            "t=0 0",
            f"m=audio {self.media_port} RTP/AVP 0 8",
            f"a={direction}",
        ]
        return "\r\n".join(lines) + "\r\n"

    def call(
        self, user: str, *, late: bool = False, from_user: str = "", tag: str = "", call_id: str = ""
    ) -> Leg:
        uri = user if user.startswith(("sip:", "tel:")) else f"sip:{user}@{self.domain}"
        own_tag = tag or self.network.word()
        own = f"<sip:{from_user or self.name}@{self.domain}>;tag={own_tag}"
        leg = Leg(call_id or self.network.word(), own_tag, f"<{uri}>", uri, outgoing=True)
        leg.events.append(own)
        self.calls[leg.call_id] = leg
        self._invite(leg, uri, "" if late else self.sdp(leg))
        return leg

    def _invite(self, leg: Leg, uri: str, body: str) -> None:
        self._sequence += 1
        leg.sequence = self._sequence
        headers = [*self._dialog_headers(leg, f"{leg.sequence} INVITE"), self._contact()]

        def answered(response: Response) -> None:
            if response.code < 200:
                if response.code > 100 and leg.state == "new":
                    leg.state = "ringing"
                leg.far_sdp = response.body.decode() or leg.far_sdp
                if "100rel" in response.headers.getlist("Require"):
                    self._acknowledge_early(leg, response, offered=bool(body))
            elif response.code < 300:
                leg.far_sdp = response.body.decode() or leg.far_sdp
                leg.state = "answered"
            elif leg.state in ("new", "ringing"):
                leg.state, leg.code = "failed", response.code

        leg.events.append(self._request("INVITE", uri, headers, body, answered))

    def _acknowledge_early(self, leg: Leg, response: Response, *, offered: bool) -> None:
        """PRACK (RFC 3262 section 4), with the answer if the reliable answer held the offer."""
        number = response.headers["RSeq"]
        if number in leg.early:
            return
        leg.early.append(number)
        leg.far_tag = str(response.to_address.parameters["tag"])
        leg.routes = list(reversed(_split(response.headers.getlist("Record-Route"))))
        leg.target = str(response.contact[0].uri)
        rack = f"RAck: {number} {response.cseq.sequence} INVITE"
        self.in_dialog(leg, "PRACK", [rack], "" if offered else self.sdp(leg))

    def _contact(self) -> str:
        more = ";transport=tcp" if self.transport == "tcp" else ""
        return f"Contact: <sip:{self.name}@{self.host}:{self.port}{more}>"

    def _dialog_headers(self, leg: Leg, cseq: str) -> list[str]:
        own = leg.events[0] if leg.outgoing else f"<sip:{self.name}@{self.domain}>;tag={leg.own_tag}"
        far = f"{leg.far};tag={leg.far_tag}" if leg.far_tag else leg.far
        routes = [f"Route: {route}" for route in leg.routes]
        return [*routes, f"From: {own}", f"To: {far}", f"Call-ID: {leg.call_id}", f"CSeq: {cseq}"]

    def _acknowledge(self, response: Response, branch: str) -> None:
        leg = self.calls[response.call_id]
        if response.code >= 300:
            invite = Message.parse(self._pending[branch, "INVITE"].data)
            assert isinstance(invite, Request)
            ack = Request("ACK", invite.uri)
            for name in ("Via", "From", "Call-ID", "Route"):
                for value in invite.headers.getlist(name):
                    ack.headers.add(name, value)
            ack.headers.add("To", response.headers["To"])
            ack.headers.add("CSeq", f"{response.cseq.sequence} ACK")
            ack.headers.add("Max-Forwards", "70")
            ack.headers.add("Content-Length", "0")
            self._send(bytes(ack))
            return
        leg.far_tag = str(response.to_address.parameters["tag"])
        if leg.outgoing and not leg.routes:
            leg.routes = list(reversed(_split(response.headers.getlist("Record-Route"))))
        if response.contact:
            leg.target = str(response.contact[0].uri)
        offered = bool(Message.parse(self._pending[branch, "INVITE"].data).body)
        body = "" if offered else self.sdp(leg)
        headers = self._dialog_headers(leg, f"{response.cseq.sequence} ACK")
        self._request("ACK", leg.target, headers, body, lambda _: None)

    def cancel(self, leg: Leg) -> None:
        branch = leg.events[1]
        invite = self._pending[branch, "INVITE"]
        text = invite.data.decode().partition("\r\n\r\n")[0]
        lines = [line for line in text.split("\r\n") if not line.startswith(("Content-", "Contact"))]
        lines[0] = lines[0].replace("INVITE", "CANCEL", 1)
        lines = [line.replace(" INVITE", " CANCEL") if line.startswith("CSeq") else line for line in lines]
        data = ("\r\n".join([*lines, "Content-Length: 0"]) + "\r\n\r\n").encode()
        pending = _Pending(data, lambda _: None)
        self._pending[branch, "CANCEL"] = pending
        self._send(data)
        self._repeat(pending, "CANCEL", self.network.now + 64 * T1)

    def hang_up(self, leg: Leg) -> None:
        leg.state = "ended"
        leg.events.append("hung up here")
        self.in_dialog(leg, "BYE")

    def hold(self, leg: Leg) -> None:
        leg.version += 1
        self._sequence += 1
        headers = [*self._dialog_headers(leg, f"{self._sequence} INVITE"), self._contact()]
        self._request(
            "INVITE", leg.target, headers, self.sdp(leg, "sendonly"), lambda r: leg.events.append(str(r.code))
        )

    def update(self, leg: Leg) -> None:
        """UPDATE with a new offer (RFC 3311): media moves to another port."""
        leg.version += 1
        self.media_port += 100
        self.in_dialog(leg, "UPDATE", [self._contact()], self.sdp(leg))

    def in_dialog(self, leg: Leg, method: str, extra: list[str] | None = None, body: str = "") -> None:
        self._sequence += 1
        headers = [*self._dialog_headers(leg, f"{self._sequence} {method}"), *(extra or [])]
        self._request(method, leg.target, headers, body, lambda r: leg.events.append(f"{method} {r.code}"))

    def outside(self, method: str, user: str) -> None:
        """A request outside of any dialog."""
        self._sequence += 1
        headers = [
            f"From: <sip:{self.name}@{self.domain}>;tag={self.network.word()}",
            f"To: <sip:{user}@{self.domain}>",
            f"Call-ID: {self.network.word()}",
            f"CSeq: {self._sequence} {method}",
            self._contact(),
        ]
        self._request(method, f"sip:{user}@{self.domain}", headers, "", lambda _: None)

    # -- being called -------------------------------------------------------------------------------
    def _got_request(self, request: Request) -> None:
        key = (str(request.via[0].parameters["branch"]), request.method)
        if request.method == "ACK":
            self._unacked.pop(request.call_id, None)
            leg = self.calls.get(request.call_id)
            if leg is not None and request.body:
                leg.far_sdp = request.body.decode()
            return
        if key in self._served:
            if self._served[key]:
                self._send(self._served[key])
            return
        self._served[key] = b""
        self.received.append(request.method)
        self.bodies.append(request.body.decode(errors="replace"))
        self.requests.append(request)
        if request.method == "INVITE":
            self._got_invite(request, key)
        elif request.method == "CANCEL":
            self._got_cancel(request, key)
        elif request.method == "BYE":
            leg = self.calls.get(request.call_id)
            if leg is not None and leg.state == "answered":
                leg.state = "ended"
            self._answer(request, key, 200 if leg is not None else 481)
        elif self.behaviour != "silent":
            leg = self.calls.get(request.call_id)
            if leg is not None and request.body and "sdp" in (request.headers.get("Content-Type") or ""):
                leg.far_sdp = request.body.decode()
            body = self.sdp(leg) if leg is not None and request.method == "UPDATE" and request.body else ""
            self._answer(request, key, 200, leg, body)

    def _got_invite(self, request: Request, key: tuple[str, str]) -> None:
        known = self.calls.get(request.call_id)
        if known is not None and known.state == "answered":
            known.far_sdp = request.body.decode() or known.far_sdp
            self._accept(request, key, known)
            return
        if self.behaviour == "silent":
            return
        if self.demands and not self._is_authorized(request):
            self._demand(request, key)
            return
        if self.behaviour in ("busy", "reject603"):
            self._refuse(request, key, 486 if self.behaviour == "busy" else 603)
            return
        far = request.from_address
        leg = Leg(
            request.call_id, self.network.word(), f"<{far.uri}>", str(request.contact[0].uri), outgoing=False
        )
        leg.far_tag = str(far.parameters["tag"])
        leg.routes = _split(request.headers.getlist("Record-Route"))
        leg.far_sdp, leg.invite, leg.state = request.body.decode(), request, "ringing"
        self.calls[leg.call_id] = leg
        if self.early:
            extra = [("Require", "100rel"), ("RSeq", "7")]
            self._answer(request, key, 183, leg, self.sdp(leg), extra)
        else:
            self._answer(request, key, 180, leg)

        def answer() -> None:
            if leg.state == "ringing" and self.behaviour == "answer":
                leg.state = "answered"
                self._accept(request, key, leg)

        self.network.after(self.ring_time, answer)

    def _demand(self, request: Request, key: tuple[str, str]) -> None:
        kind = "Proxy" if self.demand_code == 407 else "WWW"
        lines = [
            f'Digest realm="provider", nonce="n{algorithm}", algorithm={algorithm}, opaque="o", qop="auth,x"'
            for algorithm in ("SHA-512-256", "MD5", "SHA-256")
        ]
        challenges = [(f"{kind}-Authenticate", line) for line in lines]
        self._answer(request, key, self.demand_code, extra=challenges)
        self._insist(request.call_id, self._served[key])

    def _is_authorized(self, request: Request) -> bool:
        """RFC 7616 section 3.4.1, checked as a server does."""
        kind = "Proxy-Authorization" if self.demand_code == 407 else "Authorization"
        value = request.headers.get(kind)
        if not value:
            return False
        got = dict(re.findall(r'(\w+)="?([^",]*)"?', value))
        user, _, password = self.demands.partition(":")

        def h(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        a1, a2 = h(f"{user}:provider:{password}"), h(f"INVITE:{request.uri}")
        expected = h(f"{a1}:nSHA-256:{got.get('nc')}:{got.get('cnonce')}:auth:{a2}")
        return (got.get("username"), got.get("response"), got.get("opaque")) == (user, expected, "o")

    def _accept(self, request: Request, key: tuple[str, str], leg: Leg) -> None:
        settled = bool(self.early) and leg.invite is request
        self._answer(request, key, 200, leg, "" if settled else self.sdp(leg))
        self._insist(request.call_id, self._served[key])

    def _refuse(self, request: Request, key: tuple[str, str], code: int) -> None:
        self._answer(request, key, code)
        self._insist(request.call_id, self._served[key])

    def _insist(self, call_id: str, data: bytes) -> None:
        """Repeat a final answer to an INVITE until the ACK comes (sections 13.3.1.4 and 17.2.1)."""
        self._unacked[call_id] = data
        until, interval = self.network.now + 64 * T1, [T1]

        def again() -> None:
            if self._unacked.get(call_id) is data and self.network.now < until:
                self._send(data)
                interval[0] = min(2 * interval[0], T2)
                self.network.after(interval[0], again)

        self.network.after(T1, again)

    def _got_cancel(self, request: Request, key: tuple[str, str]) -> None:
        leg = self.calls.get(request.call_id)
        self._answer(request, key, 200 if leg is not None else 481)
        if leg is not None and leg.state == "ringing" and leg.invite is not None:
            leg.state = "ended"
            self._refuse(leg.invite, (key[0], "INVITE"), 487)

    def _answer(
        self,
        request: Request,
        key: tuple[str, str],
        code: int,
        leg: Leg | None = None,
        body: str = "",
        extra: list[tuple[str, str]] | None = None,
    ) -> None:
        response = Response(code, "Because", body.encode())
        for name in ("Via", "From", "Call-ID", "CSeq", "Record-Route"):
            for value in request.headers.getlist(name):
                response.headers.add(name, value)
        to = request.headers["To"]
        tag = leg.own_tag if leg is not None else self.name
        response.headers.add("To", to if "tag=" in to else f"{to};tag={tag}")
        response.headers.add("Contact", self._contact().partition(": ")[2])
        for name, value in extra or []:
            response.headers.add(name, value)
        if 200 <= code < 300:
            for name, value in self.more:
                response.headers.add(name, value)
        if body:
            response.headers.add("Content-Type", "application/sdp")
        response.headers.add("Content-Length", str(len(body)))
        self._served[key] = bytes(response)
        self._send(self._served[key])


def _split(values: list[str]) -> list[str]:
    return [item.strip() for value in values for item in value.split(",")]
