"""Server half of a session: one client, from its first Configuration Request to the end of its lease.

    WAITING -> AUTHENTICATING -> LEASING -> ACTIVE -> RELEASING -> CLOSED
                                            |  ^
                     stream lost or idle    v  |  verified resume on a new stream
                                          PERSISTENT -> (persistence time) CLOSED

The whole table is ``states.SERVER``; the DDT's side is server_ddt.py. Driven like the client half.

Resume, for the owner. Each new stream gets a new half in WAITING. When its first message comes:

1. ``tsid = peek_resume(message)``; None: give the message to the new half. Done.
2. Find the session of that TSID. If there is one and ``session.verify_resume(message, binding)`` holds,
   make the new tunnel that session's stream (from here on events of its older stream are dropped, the
   user plane closes it as ``replaced`` when AttachStream is carried out), call ``session.resume(...)``, and
   drop the new half without a word: it has done nothing yet.
3. Likewise a first message with a join proof (``server_streams.peek_join``): the session that has reserved
   its TSID, ``session.verify_join``, then ``session.join(...)``; the stream is one more of that session.
4. Else give the message to the new half, which answers ``resume-refused`` and waits for a fresh request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from opentsm.errors import LocalProtocolError
from opentsm.limits import CONFIGURATION_DEADLINE, TUNNEL_PERSISTENCE_TIME
from opentsm.protocol.actions import (
    Action,
    Allocate,
    AttachStream,
    Authenticate,
    CloseTunnel,
    Configured,
    Deadline,
    Lease,
    OpenSession,
    PairMissing,
    QualityReported,
    ReleaseLease,
    Resumed,
    ServiceAsked,
    SessionClosed,
    SetNagle,
    StreamLost,
    Terminated,
)
from opentsm.protocol.core import Core, Machine, Outstanding, Rule, Rules, is_newer
from opentsm.protocol.resume import proof_holds
from opentsm.protocol.server_answers import (
    Refusal,
    configuration_refused,
    endpoint,
    lease_fields,
    milliseconds,
    service_answer,
)
from opentsm.protocol.server_coding import ServerCoding, is_coding
from opentsm.protocol.server_ddt import DDT_TIMERS, ServerDatagram
from opentsm.protocol.server_streams import ServerStreams, owns_timer
from opentsm.protocol.states import SERVER, Server, ServerDdt, ServerInput
from opentsm.types import UNASSIGNED_TSID, Code, IpAddress, Path, Service, ServiceAction, SocketAddress, Tsid
from opentsm.wire import messages as m

RELEASE_TIMEOUT: Final = 2.0
"""Seconds a client has to answer our Release Request before its tunnel is closed anyway."""

RESUME_REFUSALS: Final = 3
"""Wrong proofs one connection may offer before it is closed: an honest client offers one."""

UNWRITTEN: Final = 4
"""Resumes of one session whose writing may have been lost with a process, or with several in a row. That
costs no security: nobody holds a secret that was not handed out yet."""

SERVER_REQUESTS: Final = 8
"""Our own unanswered requests on one stream: pair warnings (one a minute) and one release."""

_TIMERS: Final = {
    Server.WAITING: "configuration",
    Server.AUTHENTICATING: "configuration",
    Server.LEASING: "configuration",
    Server.PERSISTENT: "persistence",
    Server.RELEASING: "release",
}
_TIMER_REASONS: Final = {
    "configuration": "configuration-timeout",
    "persistence": "persistence-time-over",
    "release": "release-unanswered",
}

_UP: Final = frozenset({Server.ACTIVE})
_LIVE: Final = frozenset({Server.ACTIVE, Server.PERSISTENT})
_SETTING_UP: Final = frozenset({Server.WAITING, Server.AUTHENTICATING, Server.LEASING})
_ON_STREAM: Final = _SETTING_UP | {Server.ACTIVE, Server.RELEASING}

_RULES: Final[Rules] = {
    (m.ConfigurationRequest, Path.STREAM): Rule("configuration_asked", frozenset({Server.WAITING})),
    (m.ConfigurationRequest, Path.DATAGRAM): Rule("ddt_configuration_asked", _LIVE),
    (m.ServiceRequest, Path.STREAM): Rule("service_asked", _UP),
    (m.ServiceResponse, Path.STREAM): Rule("answered", _UP),
    (m.ReleaseRequest, Path.STREAM): Rule("release_asked", _ON_STREAM),
    (m.ReleaseRequest, Path.DATAGRAM): Rule("ddt_release_asked", _LIVE),
    (m.ReleaseResponse, Path.STREAM): Rule("release_answered", frozenset({Server.RELEASING})),
    (m.KeepaliveRequest, Path.STREAM): Rule("keepalive_asked", _ON_STREAM),
    (m.KeepaliveRequest, Path.DATAGRAM): Rule("keepalive_asked", _LIVE),
    (m.QualityReport, Path.STREAM): Rule("quality_reported", _UP),
    (m.QualityReport, Path.DATAGRAM): Rule("quality_reported", _LIVE),
    (m.ErrorResponse, Path.STREAM): Rule("answered", frozenset({Server.ACTIVE, Server.RELEASING})),
    (m.UnknownMessage, Path.STREAM): Rule("unknown_type", _ON_STREAM),
    (m.UnknownMessage, Path.DATAGRAM): Rule("unknown_type", _LIVE),
}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the server's interface gives its sessions; fixed for the life of a session, so that a reload
    touches only new ones.

    Args:
        services: services assigned to the interface.
        keepalive: seconds between the client's probes of the stream, 0 = none.
        keepalive_datagram: the same for the DDT.
        persistence: seconds a session outlives its stream.
        inner_mtu: largest inner packet in bytes.
        software: our name and version, or None to say nothing.
        epoch: another number in each server process: a client that resumes under another one knows that
            nothing but its addresses was kept. None: never say.
    """

    services: frozenset[Service] = frozenset()
    keepalive: float = 30.0
    keepalive_datagram: float = 1.0
    persistence: float = TUNNEL_PERSISTENCE_TIME
    inner_mtu: int = 1400
    software: str | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Entropy:
    """Where a session's unguessable values come from.

    Args:
        tsid: a fresh random TSID that no session or reservation has, and not all ones.
        secret: the 32-byte resume secret of a TSID and a generation (``opentsm.protocol.resume``).
    """

    tsid: Callable[[], Tsid]
    secret: Callable[[Tsid, int], bytes]


@dataclass(frozen=True, slots=True)
class Kept:
    """What has to survive of a configured session for its client to find it again after a restart.

    Args:
        tsid: of the stream tunnel. identity: who the client was authenticated as. lease: its inner addresses.
        generation: of the newest resume secret handed out, as far as it was written down.
        proved: of the one it was handed out for, which stays good until the client has spoken.
    """

    tsid: Tsid
    identity: str
    lease: Lease
    generation: int
    proved: int


def peek_resume(message: m.Message) -> Tsid | None:
    """The TSID of the session that this first message of a stream wants back, or None."""
    if isinstance(message, m.ConfigurationRequest) and message.resume_proof is not None:
        return None if message.tsid == UNASSIGNED_TSID else message.tsid
    return None


class ServerSession:
    """The server half for one client. See the module's text for resume.

    Args:
        settings: what the interface gives.
        entropy: where TSIDs and secrets come from.
    """

    __slots__ = (
        "__weakref__",
        "_core",
        "_ddt",
        "_ending",
        "_entropy",
        "_good",
        "_granted",
        "_has_certificate",
        "_identity",
        "_lease",
        "_machine",
        "_newest",
        "_observed",
        "_outstanding",
        "_request",
        "_resume_refusals",
        "_settings",
        "_tsid",
        "binding",
        "coding",
        "streams",
    )

    def __init__(self, settings: ServerSettings, *, entropy: Entropy) -> None:
        self.binding = bytes(32)
        """Resume binding of the stream this half was made for: what ``verify_resume`` of another wants."""
        self._settings = settings
        self._entropy = entropy
        self._core = Core()
        self._machine: Machine[Server, ServerInput] = Machine(SERVER, Server.WAITING)
        self._ddt = ServerDatagram(self._core, new_tsid=entropy.tsid)
        self.coding = ServerCoding(self._core)
        self.streams = ServerStreams(self._core, new_tsid=entropy.tsid, new_secret=entropy.secret)
        self._outstanding: Outstanding[str] = Outstanding(SERVER_REQUESTS)
        self._request: m.ConfigurationRequest | None = None
        self._tsid: Tsid | None = None
        self._lease: Lease | None = None
        self._identity: str | None = None
        self._newest = 0
        self._good: tuple[int, ...] = ()
        self._granted: int | None = None
        """Sequence of the last Configuration Request that was granted on a stream."""
        self._observed: tuple[IpAddress, int] | None = None
        self._has_certificate = False
        self._resume_refusals = 0
        self._ending: Terminated | None = None

    @classmethod
    def restored(cls, settings: ServerSettings, kept: Kept, now: float, *, entropy: Entropy) -> ServerSession:
        """A session of an earlier process, waiting for its client to come back.

        Its client may hold the generation that was written down, the one it was handed out for (the answer
        that carried the newer one was lost), or one of the next UNWRITTEN (the process ended before they were
        written).
        """
        session = cls(settings, entropy=entropy)
        session._tsid, session._identity, session._lease = kept.tsid, kept.identity, kept.lease
        session._newest = kept.generation
        session._good = (kept.proved, *range(kept.generation, kept.generation + UNWRITTEN + 1))
        session._machine = Machine(SERVER, Server.PERSISTENT)
        session._core.emit(OpenSession(kept.lease.addresses))
        session._arm(now + settings.persistence)
        return session

    # -- outputs --------------------------------------------------------------------------------------

    @property
    def kept(self) -> Kept | None:
        """What is worth keeping over a restart; None before the session is configured."""
        if self._tsid is None or self._lease is None or self.state not in _LIVE:
            return None
        return Kept(self._tsid, self._identity or "", self._lease, self._newest, self._good[0])

    @property
    def counts(self) -> Counter[str]:
        """Named drops: ``wrong-tsid``, ``not-allowed-now``, ``unexpected-message``, ``unexpected-response``,
        ``unknown-type``, ``resume-refused``."""
        return self._core.counts

    @property
    def counted(self) -> bool:
        """Whether there may be any; reading ``counts`` makes them."""
        return self._core.counted

    def actions(self) -> list[Action]:
        """What there is to do since the last call, in order."""
        return self._core.drain()

    def deadline(self) -> Deadline | None:
        """When ``tick`` is due next, and why."""
        return self._core.deadline()

    @property
    def state(self) -> Server:
        return self._machine.state

    @property
    def ddt_state(self) -> ServerDdt:
        return self._ddt.state

    @property
    def tsid(self) -> Tsid | None:
        """TSID of the stream tunnel; None before there is a lease."""
        return self._tsid

    @property
    def ddt_tsid(self) -> Tsid | None:
        """TSID of the reserved or living DDT."""
        return self._ddt.tsid

    @property
    def lease(self) -> Lease | None:
        return self._lease

    @property
    def identity(self) -> str | None:
        """Who the client was authenticated as."""
        return self._identity

    # -- inputs: the network ----------------------------------------------------------------------------

    def stream_ready(
        self, now: float, *, binding: bytes, peer: SocketAddress, has_certificate: bool = False
    ) -> None:
        """The first input: the client's stream tunnel is connected (TLS finished).

        Args:
            binding: its 32-byte resume binding (zeros on plain TCP); kept for the owner.
            peer: the client's outer address, told to it as observed-address.
            has_certificate: it showed a client certificate that was verified.
        """
        self.binding = binding
        self._observed = endpoint(peer)
        self._has_certificate = has_certificate
        self._arm(now + CONFIGURATION_DEADLINE)

    def receive(self, path: Path, message: m.Message, now: float) -> None:
        """A decoded control message from the session's tunnel of this path."""
        rule = _RULES.get((type(message), path))
        if rule is None:
            self.counts["unexpected-message"] += 1
        elif not self._addressed_to_us(path, message):
            self.counts["wrong-tsid"] += 1
        elif self.state not in rule.states:
            self.counts["not-allowed-now"] += 1
            self._answer_wrong_state(path, message)
        else:
            if path is Path.STREAM:  # it speaks on the stream it resumed, so it has the new secret
                self._good = self._good[-1:]
            getattr(self, "_on_" + rule.handler)(path, message, now)

    def datagram_ready(self, tsid: Tsid, now: float) -> bool:
        """A datagram tunnel has proved to hold the key of this TSID.

        Returns:
            False if that is not the reserved one (any more); the owner then closes it.
        """
        return self._ddt.datagram_ready(tsid, now)

    def path_lost(self, path: Path, reason: str, now: float) -> None:
        """The session's tunnel of this path has ended, or its reservation failed."""
        if path is Path.DATAGRAM:
            self._ddt.lost(reason, now)
        else:
            self._machine.step(self, ServerInput.STREAM_LOST, now, Terminated(reason))

    def path_silent(self, path: Path, now: float) -> None:
        """Probes on this tunnel are not answered; a silent stream is as good as idle."""
        if path is Path.DATAGRAM:
            self._ddt.silent(now)
        else:
            self._machine.step(self, ServerInput.STREAM_IDLE, now, Terminated("path-silent"))

    def path_alive(self, path: Path, now: float) -> None:
        """A tunnel reported silent has been heard again."""
        if path is Path.DATAGRAM:
            self._ddt.alive(now)

    def path_idle(self, path: Path, now: float) -> None:
        """Nothing was received on this tunnel for its keepalive-timer."""
        if path is Path.DATAGRAM:
            self._ddt.lost("idle", now)
        else:
            self._machine.step(self, ServerInput.STREAM_IDLE, now, Terminated("idle"))

    def tick(self, now: float) -> None:
        """Time has come to ``now``; runs every timer that is due."""
        while (timer := self._core.pop_due(now)) is not None:
            if timer in DDT_TIMERS:
                self._ddt.timer(timer, now, self._warn_pair_missing)
            elif owns_timer(timer):
                self.streams.timer(timer, now)
            else:
                self._machine.step(self, ServerInput.TIMER, now, Terminated(_TIMER_REASONS[timer]))

    # -- inputs: answers of the owner ---------------------------------------------------------------------

    def authenticated(self, identity: str, now: float) -> None:
        """Answer to Authenticate: the credentials are good and belong to ``identity``."""
        self._machine.step(self, ServerInput.AUTHENTICATED, now, identity)

    def authentication_failed(
        self, code: Code, now: float, *, text: str = "", retry_after: float | None = None
    ) -> None:
        """Answer to Authenticate: UNAUTHORIZED, RATE_LIMITED, ...

        Args:
            text: for the client; must not help a guesser.
            retry_after: seconds the client shall wait.
        """
        self._machine.step(self, ServerInput.AUTHENTICATION_FAILED, now, Refusal(code, text, retry_after))

    def leased(self, lease: Lease, now: float) -> None:
        """Answer to Allocate. A lease that comes after the client has gone is given back at once."""
        self._machine.step(self, ServerInput.LEASED, now, lease)

    def lease_refused(
        self, code: Code, now: float, *, text: str = "", retry_after: float | None = None
    ) -> None:
        """Answer to Allocate: NO_ADDRESS, TOO_MANY_TUNNELS, ..."""
        self._machine.step(self, ServerInput.LEASE_REFUSED, now, Refusal(code, text, retry_after))

    # -- inputs: resume ---------------------------------------------------------------------------------

    def verify_resume(self, message: m.Message, binding: bytes) -> bool:
        """Whether this message, on a new stream with this resume binding, may have this session.

        Changes nothing: a stranger who knows a TSID learns and harms nothing.
        """
        return self._proved_generation(message, binding) is not None

    def resume(self, message: m.Message, now: float, *, binding: bytes, peer: SocketAddress) -> None:
        """Take the session over to a new stream, whatever became of the old one.

        Raises:
            LocalProtocolError: ``verify_resume`` does not hold.
        """
        proved = self._proved_generation(message, binding)
        if proved is None:
            raise LocalProtocolError("resume() needs verify_resume() to hold first")
        self._observed = endpoint(peer)
        # Until the client shows that it has the new secret, the one it proved stays good: the response
        # that carries the new one may be lost with its stream.
        self._newest = max(proved, self._newest) + 1
        self._good = (proved, self._newest)
        self._granted = message.sequence
        self._machine.step(self, ServerInput.RESUME, now, message)

    def _proved_generation(self, message: m.Message, binding: bytes) -> int | None:
        """The generation whose secret the message's proof was made with, if it is one that is still good.

        A request older than the last one that was granted was overtaken by it: the client has given that
        stream up. Without this a late one would take the session away from the newer stream, and the secret
        that the client holds would be none of the good ones any more.
        """
        if self.state not in _LIVE or self._tsid is None or peek_resume(message) != self._tsid:
            return None
        if self._granted is not None and not is_newer(message.sequence, self._granted):
            return None
        proof = getattr(message, "resume_proof", None)
        for generation in reversed(self._good):
            secret = self._entropy.secret(self._tsid, generation)
            if proof is not None and proof_holds(proof, secret, self._tsid, binding):
                return generation
        return None

    # -- inputs: further streams ------------------------------------------------------------------------

    def verify_join(self, message: m.Message, binding: bytes) -> bool:
        """Whether this first message, on a new stream with this resume binding, makes that stream a further
        one of this session. Changes nothing."""
        return self.state in _LIVE and self.streams.verify(message, binding)

    def join(self, message: m.Message, now: float) -> None:
        """Take the new stream, whose tunnel the owner now knows by the message's TSID.

        Raises:
            LocalProtocolError: the session or the reservation is gone; ``verify_join`` was not asked.
        """
        if self.state not in _LIVE or message.tsid not in self.streams.states:
            raise LocalProtocolError("join() needs verify_join() to hold first")
        self.streams.join(message, now, self._further_configuration(message))

    def _further_configuration(self, message: m.Message) -> m.ConfigurationResponse:
        return self._same_addresses(message, keepalive_ms=milliseconds(self._settings.keepalive))

    def _same_addresses(self, message: m.Message, **more: Any) -> m.ConfigurationResponse:
        """The session's further tunnels have the addresses of its first; that is the point of them."""
        lease = self._lease or Lease()
        return m.ConfigurationResponse(
            tsid=message.tsid,
            sequence=message.sequence,
            code=Code.SUCCESS,
            inner_ipv4=lease.ipv4,
            inner_ipv6=lease.ipv6,
            inner_mtu=self._settings.inner_mtu,
            **more,
        )

    # -- inputs: the server -------------------------------------------------------------------------------

    def terminate(self, code: Code, now: float, *, text: str = "", retry_after: float | None = None) -> None:
        """Release the client's tunnel with this code, then close. SHUTTING_DOWN lets clients come back by
        themselves (after ``retry_after`` seconds at the earliest); any other code is final for them."""
        self._machine.step(self, ServerInput.TERMINATE, now, Refusal(code, text, retry_after))

    def send_quality(
        self,
        reports: tuple[m.PathQuality, ...],
        now: float,
        *,
        decision: m.PathDecision | None = None,
        path: Path = Path.STREAM,
    ) -> None:
        """Tell the client what we receive, and where we now send; nothing happens without such a tunnel."""
        stream = self._tsid if self.state is Server.ACTIVE else None
        tsid = self._ddt.tsid if path is Path.DATAGRAM else stream
        if tsid is not None:
            sequence = self._core.next_sequence()
            report = m.QualityReport(tsid=tsid, sequence=sequence, reports=reports, decision=decision)
            self._core.send(path, report)

    @property
    def judges(self) -> bool:
        """Some flow is in mode auto: the path of what we send of it is ours to choose."""
        return self._ddt.judges

    def use_path(self, path: Path, now: float, reason: str) -> None:
        """What we send of the flows in mode auto goes by this path, as far as there is a DDT."""
        self._ddt.use_path(path, reason)

    # -- messages: handlers named in _RULES -----------------------------------------------------------------

    def _addressed_to_us(self, path: Path, message: m.Message) -> bool:
        if path is Path.DATAGRAM:
            return self._ddt.state is not ServerDdt.RESERVED and message.tsid == self._ddt.tsid
        if self._tsid is not None:
            return message.tsid == self._tsid
        # Without a TSID yet; a Configuration Request that names one is a resume that found nobody.
        return message.tsid == UNASSIGNED_TSID or isinstance(message, m.ConfigurationRequest)

    def _answer_wrong_state(self, path: Path, message: m.Message) -> None:
        if path is not Path.STREAM or self.state in (Server.PERSISTENT, Server.CLOSED):
            return
        if isinstance(message, m.ConfigurationRequest):
            self._core.send(path, configuration_refused(message, Refusal(Code.WRONG_STATE)))
        elif isinstance(message, m.ServiceRequest):
            self._core.send(path, service_answer(message, Code.WRONG_STATE))

    def _on_configuration_asked(self, path: Path, message: m.ConfigurationRequest, now: float) -> None:
        if message.tsid == UNASSIGNED_TSID:
            self._machine.step(self, ServerInput.CONFIGURE, now, message)
        else:
            self._machine.step(self, ServerInput.RESUME_ASKED, now, message)

    def _on_ddt_configuration_asked(self, path: Path, message: m.ConfigurationRequest, now: float) -> None:
        self._ddt.configuration_asked(now)
        self._ddt.answer_once(message, lambda: self._ddt_configuration(message), now)

    def _ddt_configuration(self, message: m.ConfigurationRequest) -> m.ConfigurationResponse:
        return self._same_addresses(
            message,
            keepalive_datagram_ms=milliseconds(self._settings.keepalive_datagram),
            padding=message.padding,  # as large as the request: the way back has to carry media too
        )

    def _on_service_asked(self, path: Path, message: m.ServiceRequest, now: float) -> None:
        code = self._judge(message)
        named: tuple[Tsid | None, bytes | None] = (None, None)
        if code is Code.SUCCESS and message.action != ServiceAction.QUERY:
            if message.service is Service.DDT:
                code = self._ddt.asked(message, now)
                named = (self._ddt.tsid if message.action == ServiceAction.ENABLE else None, None)
            elif is_coding(message):
                code = self.coding.asked(message)
            elif message.service is Service.REDUNDANCY:
                code, tsid, secret = self.streams.asked(message, now)
                named = (tsid, secret)
            elif message.service is Service.NAGLE:
                self._core.emit(SetNagle(message.action == ServiceAction.ENABLE))
        self._core.send(path, self._service_answered(message, code, *named))
        if code is Code.SUCCESS:
            asked = ServiceAsked(Service(message.service), ServiceAction(message.action), message.flows)
            self._core.notify(asked)

    def _judge(self, message: m.ServiceRequest) -> Code:
        """The code for a Service Request, before anything is done."""
        if not isinstance(message.service, Service):
            return Code.UNKNOWN_SERVICE
        if not isinstance(message.action, ServiceAction):
            return Code.BAD_REQUEST
        if message.action is ServiceAction.PAIR_MISSING:
            return Code.NOT_ALLOWED
        return Code.SUCCESS if message.service in self._settings.services else Code.SERVICE_UNAVAILABLE

    def _service_answered(
        self, message: m.ServiceRequest, code: Code, tsid: Tsid | None, secret: bytes | None
    ) -> m.ServiceResponse:
        offered = self._offered if message.action == ServiceAction.QUERY else ()
        if code is not Code.SUCCESS:
            tsid = secret = None
        return service_answer(message, code, tunnel_id=tsid, join_secret=secret, offered=offered)

    def _on_release_asked(self, path: Path, message: m.ReleaseRequest, now: float) -> None:
        answer = m.ReleaseResponse(
            tsid=message.tsid, sequence=message.sequence, code=Code.SUCCESS, tunnel_id=message.tunnel_id
        )
        if message.tunnel_id is None:
            self._core.send(path, answer)
            self._machine.step(self, ServerInput.CLIENT_RELEASED, now, Terminated("released-by-client"))
            return
        if message.tunnel_id == self._ddt.tsid:
            self._ddt.released(now)
        else:
            self.streams.released(message.tunnel_id, now)
        self._core.send(path, answer)

    def _on_ddt_release_asked(self, path: Path, message: m.ReleaseRequest, now: float) -> None:
        self._core.send(
            path, m.ReleaseResponse(tsid=message.tsid, sequence=message.sequence, code=Code.SUCCESS)
        )
        self._ddt.released(now)

    def _on_release_answered(self, path: Path, message: m.ReleaseResponse, now: float) -> None:
        if self._outstanding.take(message.sequence) is None:
            self.counts["unexpected-response"] += 1
        else:
            self._machine.step(self, ServerInput.RELEASE_ANSWERED, now, Terminated("released"))

    def _on_answered(self, path: Path, message: m.Message, now: float) -> None:
        """The client has our warning; nothing follows from that."""
        if self._outstanding.take(message.sequence) is None:
            self.counts["unexpected-response"] += 1

    def _on_keepalive_asked(self, path: Path, message: m.KeepaliveRequest, now: float) -> None:
        answer = m.KeepaliveResponse(
            tsid=message.tsid, sequence=message.sequence, timestamp=message.timestamp
        )
        self._core.send(path, answer)

    def _on_quality_reported(self, path: Path, message: m.QualityReport, now: float) -> None:
        self._core.notify(QualityReported(message.reports, message.decision, path))

    def _on_unknown_type(self, path: Path, message: m.UnknownMessage, now: float) -> None:
        self.counts["unknown-type"] += 1
        answer = m.ErrorResponse(tsid=message.tsid, sequence=message.sequence, code=Code.UNKNOWN_TYPE)
        self._core.send(path, answer)

    # -- from state to state: handlers named in states.SERVER --------------------------------------------

    def _do_authenticate(self, now: float, message: m.ConfigurationRequest) -> None:
        self._request = message
        self._core.emit(
            Authenticate(message.client_id, message.username, message.password, self._has_certificate)
        )

    def _do_refuse_resume(self, now: float, message: m.ConfigurationRequest) -> None:
        self.counts["resume-refused"] += 1
        self._resume_refusals += 1
        self._core.send(Path.STREAM, configuration_refused(message, Refusal(Code.RESUME_REFUSED)))
        if self._resume_refusals >= RESUME_REFUSALS:
            self._machine.step(self, ServerInput.STREAM_IDLE, now, Terminated("resume-refused"))

    def _do_allocate(self, now: float, identity: str) -> None:
        assert self._request is not None
        self._identity = identity
        self._core.emit(Allocate(identity, self._request.families or m.AddressFamilies.BOTH))

    def _do_configure(self, now: float, lease: Lease) -> None:
        assert self._request is not None
        self._disarm()
        self._lease = lease
        self._tsid = self._entropy.tsid()
        self._good = (self._newest,)
        self._granted = self._request.sequence
        self._core.emit(OpenSession(lease.addresses))
        self._core.emit(AttachStream(self._tsid))
        self._core.send(Path.STREAM, self._configuration(self._request.sequence))
        self._request = None  # its password is not kept
        self._core.notify(Configured(self._identity or "", lease, self._tsid))

    def _do_take_over(self, now: float, message: m.ConfigurationRequest) -> None:
        assert self._tsid is not None
        self._disarm()
        self._outstanding.clear()
        self._core.emit(AttachStream(self._tsid))
        self._core.send(Path.STREAM, self._configuration(message.sequence))
        self._core.notify(Resumed())
        self._ddt.stream_resumed(now)

    def _configuration(self, sequence: int) -> m.ConfigurationResponse:
        assert self._lease is not None
        assert self._tsid is not None
        settings = self._settings
        return m.ConfigurationResponse(
            tsid=self._tsid,
            sequence=sequence,
            code=Code.SUCCESS,
            **lease_fields(self._lease),
            keepalive_ms=milliseconds(settings.keepalive),
            keepalive_datagram_ms=milliseconds(settings.keepalive_datagram),
            inner_mtu=settings.inner_mtu,
            resume_secret=self._entropy.secret(self._tsid, self._newest),
            observed_address=self._observed,
            offered_services=self._offered,
            persistence_ms=milliseconds(settings.persistence),
            software=settings.software,
            server_epoch=settings.epoch,
        )

    @property
    def _offered(self) -> tuple[Service, ...]:
        return tuple(sorted(self._settings.services))

    def _do_refuse(self, now: float, refusal: Refusal) -> None:
        if self._request is not None:
            self._core.send(Path.STREAM, configuration_refused(self._request, refusal))
        self._do_end(now, refusal)

    def _do_drop_stream(self, now: float, cause: Terminated) -> None:
        self._core.emit(CloseTunnel(Path.STREAM, cause.reason))
        self._do_lose_stream(now, cause)

    def _do_lose_stream(self, now: float, cause: Terminated) -> None:
        self._outstanding.clear()
        self._ddt.stream_lost()
        self._core.notify(StreamLost(cause.reason))
        self._arm(now + self._settings.persistence)

    def _do_send_release(self, now: float, refusal: Refusal) -> None:
        assert self._tsid is not None
        request = m.ReleaseRequest(
            tsid=self._tsid,
            sequence=self._core.next_sequence(),
            code=refusal.code,
            text=refusal.text or None,
            retry_after_ms=milliseconds(refusal.retry_after),
        )
        self._core.send(Path.STREAM, request)
        self._outstanding.add(request.sequence, "release", now)
        self._arm(now + RELEASE_TIMEOUT)
        self._ending = refusal.as_event()

    def _do_end(self, now: float, cause: Terminated | Refusal) -> None:
        """Over. What we announced in a Release Request stays the reason, however the end then comes."""
        event = self._ending or (cause.as_event() if isinstance(cause, Refusal) else cause)
        self._request = None
        self._ddt.reset(event.reason, now)
        self.streams.reset(event.reason, now)
        self._core.disarm_all()
        self._core.emit(CloseTunnel(Path.STREAM, event.reason))
        if self._lease is not None:
            self._core.emit(ReleaseLease(self._lease))
        self._core.notify(event)
        self._core.emit(SessionClosed(event.reason))

    def _do_return_lease(self, now: float, lease: Lease) -> None:
        self._core.emit(ReleaseLease(lease))

    # -- helpers ----------------------------------------------------------------------------------------

    def _warn_pair_missing(self, now: float) -> bool:
        """Tell the client, on the stream, that its datagram half is missing."""
        if self.state is not Server.ACTIVE or self._tsid is None or self._outstanding.full:
            return False
        sequence = self._core.next_sequence()
        warning = m.ServiceRequest(
            tsid=self._tsid, sequence=sequence, service=Service.DDT, action=ServiceAction.PAIR_MISSING
        )
        self._core.send(Path.STREAM, warning)
        self._outstanding.add(sequence, "pair-missing", now)
        self._core.notify(PairMissing())
        return True

    def _arm(self, at: float) -> None:
        self._disarm()
        self._core.arm(_TIMERS[self.state], at)

    def _disarm(self) -> None:
        for timer in _TIMERS.values():
            self._core.disarm(timer)
