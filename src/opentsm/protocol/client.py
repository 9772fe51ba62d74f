"""Client half of a session: one stream tunnel, kept through reconnects, and its DDT.

    CONNECTING -> CONFIGURING -> ACTIVE -> RELEASING -> CLOSED
                                  |  ^
                   stream lost    v  |   resume proof accepted
                              PERSISTENT -> RESUMING -> RECONFIGURING (refused: fresh request, same stream)

A client whose network has changed need not lose its stream first: ``network_changed`` asks for another one
beside it, and the session goes from ACTIVE straight to RESUMING on that one.

The whole table is ``states.CLIENT``; the DDT's half is client_ddt.py. A session is driven by the
network (``stream_ready``, ``receive``, ``path_lost`` ...), by the application (``set_mode`` ...) and by
time (``tick``), and by nothing else. After each input: carry out ``actions()``, arm ``deadline()``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from opentsm.errors import LocalProtocolError
from opentsm.limits import (
    RECONNECT_EAGER,
    RECONNECT_EAGER_TIME,
    RECONNECT_FIRST,
    RECONNECT_MAX,
    RECONNECT_MIN,
)
from opentsm.protocol.actions import (
    Action,
    AttachStream,
    CloseTunnel,
    Configuration,
    Deadline,
    KeepaliveInterval,
    Lease,
    NagleSet,
    OpenSession,
    QualityReported,
    Reconnect,
    Resumed,
    SessionClosed,
    SetNagle,
    StreamLost,
    Terminated,
    TunnelUp,
)
from opentsm.protocol.client_coding import ClientCoding
from opentsm.protocol.client_ddt import DDT_TIMERS, ClientDatagram
from opentsm.protocol.client_flows import Batch
from opentsm.protocol.client_requests import (
    AskedCoding,
    AskedConfiguration,
    AskedNagle,
    AskedRedundancy,
    AskedRelease,
    StreamRequests,
)
from opentsm.protocol.client_streams import ClientStreams, owns_timer
from opentsm.protocol.core import Core, Machine, Rule, Rules, code_label
from opentsm.protocol.resume import resume_proof
from opentsm.protocol.states import CLIENT, Client, ClientDdt, ClientInput
from opentsm.types import (
    UNASSIGNED_TSID,
    Code,
    Coding,
    Flow,
    Path,
    PathMode,
    Redundancy,
    Service,
    ServiceAction,
    Tsid,
)
from opentsm.wire import messages as m

RELEASE_TIMEOUT: Final = 2.0
"""Seconds we wait for the answer to our Release Request: a courtesy, the application wants to go."""

RETRY_AFTER_MAX: Final = 3600.0
"""Longest wait (seconds) a server can impose: one that asks for more is broken or hostile."""

MOVE_ATTEMPTS: Final = 6
"""Attempts to move to a network that has come up beside one that still works: some five seconds. Then the one
that works is good enough, until the next change."""

_RELEASE_TIMER: Final = "release"
_BACKOFF_STEPS: Final = 16  # RECONNECT_MIN * 2^16 is past RECONNECT_MAX

_LIVE: Final = frozenset({Client.ACTIVE, Client.PERSISTENT, Client.RESUMING, Client.RECONFIGURING})
_ASKING: Final = frozenset({Client.CONFIGURING, Client.RESUMING, Client.RECONFIGURING})
_ON_STREAM: Final = _ASKING | {Client.ACTIVE, Client.RELEASING}
_FINAL_CODES: Final = frozenset(
    {Code.UNAUTHORIZED, Code.BAD_REQUEST, Code.NOT_ALLOWED, Code.UNSUPPORTED_VERSION, Code.UNKNOWN_TYPE}
)

_RULES: Final[Rules] = {
    (m.ConfigurationResponse, Path.STREAM): Rule("configuration_answered", _ASKING),
    (m.ConfigurationResponse, Path.DATAGRAM): Rule("ddt_configured", _LIVE),
    (m.ServiceRequest, Path.STREAM): Rule("service_asked", frozenset({Client.ACTIVE})),
    (m.ServiceResponse, Path.STREAM): Rule("service_answered", frozenset({Client.ACTIVE})),
    (m.ReleaseRequest, Path.STREAM): Rule("release_asked", _ON_STREAM),
    (m.ReleaseRequest, Path.DATAGRAM): Rule("ddt_release_asked", _LIVE),
    (m.ReleaseResponse, Path.STREAM): Rule("release_answered", frozenset({Client.ACTIVE, Client.RELEASING})),
    (m.KeepaliveRequest, Path.STREAM): Rule("keepalive_asked", _ON_STREAM),
    (m.KeepaliveRequest, Path.DATAGRAM): Rule("keepalive_asked", _LIVE),
    (m.QualityReport, Path.STREAM): Rule("quality_reported", frozenset({Client.ACTIVE})),
    (m.QualityReport, Path.DATAGRAM): Rule("quality_reported", _LIVE),
    (m.ErrorResponse, Path.STREAM): Rule("error_answered", _ON_STREAM),
    (m.UnknownMessage, Path.STREAM): Rule("unknown_type", _ON_STREAM),
    (m.UnknownMessage, Path.DATAGRAM): Rule("unknown_type", _LIVE),
}


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client says about itself.

    Args:
        client_id: 1 to 64 opaque bytes that stay the same for this client, or None.
        username: for password authentication, with ``password``.
        password: password or token, never shown.
        families: inner address families wanted.
        wanted_services: services the application would like; a hint to the server.
        software: name and version, for the server's log.
        reconnect: come back by itself after the stream was lost.
    """

    client_id: bytes | None = None
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    families: m.AddressFamilies = m.AddressFamilies.BOTH
    wanted_services: tuple[Service, ...] = ()
    software: str | None = None
    reconnect: bool = True


class ClientSession:
    """The client half. See the module's text for how it is driven.

    Args:
        settings: who we are.
        fraction: random numbers in [0, 1), for the jitter of reconnects.
    """

    def __init__(self, settings: ClientSettings, *, fraction: Callable[[], float]) -> None:
        self._settings = settings
        self._fraction = fraction
        self._core = Core()
        self._machine: Machine[Client, ClientInput] = Machine(CLIENT, Client.CONNECTING)
        self._requests = StreamRequests(self._core)
        self._ddt = ClientDatagram(self._core, self._requests)
        self.coding = ClientCoding(self._core, self._requests)
        self.streams = ClientStreams(self._core, self._requests)
        self._nagle: bool | None = None
        self._configuration: Configuration | None = None
        self._secret: bytes | None = None
        self._binding = b""
        self._attempts = 0
        self._active_since = 0.0
        self._away_since: float | None = None
        self._moving = False
        self._closing = False

    # -- outputs --------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """Named drops: ``wrong-tsid``, ``not-allowed-now``, ``unexpected-message``, ``unexpected-response``,
        ``unknown-type``."""
        return self._core.counts

    def actions(self) -> list[Action]:
        """What there is to do since the last call, in order."""
        return self._core.drain()

    def deadline(self) -> Deadline | None:
        """When ``tick`` is due next, and why."""
        return self._core.deadline()

    @property
    def state(self) -> Client:
        return self._machine.state

    @property
    def ddt_state(self) -> ClientDdt:
        return self._ddt.state

    @property
    def configuration(self) -> Configuration | None:
        """The last one the server gave; None before the first."""
        return self._configuration

    def mode(self, flow: Flow) -> PathMode:
        """The application's newest wish for this flow."""
        return self._ddt.flows.mode(flow)

    def path(self, flow: Flow) -> Path:
        """The path this flow's packets take now."""
        return self._ddt.flows.path(flow)

    # -- inputs: the network ----------------------------------------------------------------------------

    def stream_ready(self, now: float, *, binding: bytes) -> None:
        """A stream tunnel is connected (TLS finished).

        Args:
            binding: its 32-byte resume binding; zeros on plain TCP.
        """
        self._binding = binding
        self._machine.step(self, ClientInput.STREAM_READY, now)

    def connect_failed(self, reason: str, now: float) -> None:
        """No stream could be connected. Ends a session that never had one; else another Reconnect follows."""
        self._machine.step(self, ClientInput.CONNECT_FAILED, now, Terminated(reason))

    def receive(self, path: Path, message: m.Message, now: float) -> None:
        """A decoded control message from the session's tunnel of this path."""
        rule = _RULES.get((type(message), path))
        if rule is None:
            self.counts["unexpected-message"] += 1
        elif not self._addressed_to_us(path, message):
            self.counts["wrong-tsid"] += 1
        elif self.state not in rule.states:
            self.counts["not-allowed-now"] += 1
        else:
            getattr(self, "_on_" + rule.handler)(path, message, now)

    def datagram_ready(self, tsid: Tsid, now: float, *, rtt: float | None = None) -> bool:
        """The datagram tunnel asked for with OpenDatagram is up.

        Args:
            rtt: round trip time in seconds seen in its handshake, if known.

        Returns:
            False if this is not the tunnel that was asked for last; the owner then closes it.
        """
        return self._ddt.datagram_ready(tsid, now, rtt)

    def path_lost(self, path: Path, reason: str, now: float) -> None:
        """The session's tunnel of this path has ended, or could not be made."""
        if path is Path.DATAGRAM:
            self._ddt.lost(reason, now)
        else:
            self._machine.step(self, ClientInput.STREAM_LOST, now, Terminated(reason))

    def path_silent(self, path: Path, now: float) -> None:
        """Probes on this tunnel are not answered. A silent stream is given up: TCP would try for minutes."""
        if path is Path.DATAGRAM:
            self._ddt.silent(now)
        else:
            self._machine.step(self, ClientInput.NO_ANSWER, now, Terminated("path-silent"))

    def path_alive(self, path: Path, now: float) -> None:
        """A tunnel reported silent has been heard again."""
        if path is Path.DATAGRAM:
            self._ddt.alive(now)

    def network_changed(self, now: float, *, lost: bool = False) -> None:
        """This machine is in another network, or was asleep: a new stream is tried at once, beside the one
        there is, and the DDT is made anew when the server knows of it.

        Args:
            lost: the stream's own address is gone, so that it can carry nothing more.
        """
        given = ClientInput.NO_ANSWER if lost and self.state is Client.ACTIVE else ClientInput.NETWORK_CHANGED
        if self.state in _LIVE:
            self._moving = True
            self._attempts = 0
        self._machine.step(self, given, now, Terminated("network-changed"))

    def tick(self, now: float) -> None:
        """Time has come to ``now``; runs every timer that is due."""
        while (timer := self._core.pop_due(now)) is not None:
            if timer in DDT_TIMERS:
                self._ddt.timer(timer, now)
            elif owns_timer(timer):
                self.streams.timer(timer, now)
            else:
                self._machine.step(self, ClientInput.NO_ANSWER, now, Terminated("no-answer"))

    # -- inputs: the application ------------------------------------------------------------------------

    def set_mode(self, flow: Flow, mode: PathMode, now: float) -> None:
        """Turn the flow's switch: stream, datagram, or auto. At any time, as often as one likes.

        Raises:
            LocalProtocolError: the session is closed, or has MAX_FLOWS_PER_SESSION flows already.
        """
        if self.state is Client.CLOSED:
            raise LocalProtocolError("the session is closed; connect a new one")
        self._ddt.wish(flow, mode, now)

    def unset(self, flow: Flow, now: float) -> None:
        """The flow is over."""
        if self.state is not Client.CLOSED:
            self._ddt.wish(flow, None, now)

    def use_path(self, flow: Flow, path: Path, now: float) -> None:
        """The quality engine's choice for a flow in mode auto; without one, the DDT when it is up."""
        if self.state is not Client.CLOSED:
            self._ddt.use_path(flow, path, now)

    def set_coding(self, coding: Coding, now: float) -> None:
        """What the application permits, or has chosen, of redundancy on the DDT, FEC and header
        compression."""
        if self.state is not Client.CLOSED:
            self.coding.wished(coding, now)

    def want_ddt(self, wanted: bool, now: float) -> None:
        """Have a DDT (or not) whether or not a flow wants it yet."""
        if self.state is not Client.CLOSED:
            self._ddt.wish(None, PathMode.DATAGRAM if wanted else None, now)

    def set_redundancy(self, redundancy: Redundancy, now: float) -> None:
        """Have media on several streams, or (NO_REDUNDANCY) on the main one only."""
        if self.state is not Client.CLOSED:
            self.streams.wished(redundancy, now)

    def set_nagle(self, on: bool, now: float) -> None:
        """Have Nagle's algorithm on this session's streams, on both sides; NagleSet tells the outcome."""
        self._nagle = on
        self._ask_nagle(now)

    def _ask_nagle(self, now: float) -> None:
        if self._nagle is not None and self._requests.ready:
            self._requests.ask_nagle(self._nagle, now)

    def send_quality(
        self,
        reports: tuple[m.PathQuality, ...],
        now: float,
        *,
        decision: m.PathDecision | None = None,
        path: Path = Path.STREAM,
    ) -> None:
        """Tell the server what we receive, and where we now send; nothing happens without such a tunnel."""
        tsid = self._ddt.tsid if path is Path.DATAGRAM else self._requests.tsid if self._requests.up else None
        if tsid is not None:
            sequence = self._core.next_sequence()
            report = m.QualityReport(tsid=tsid, sequence=sequence, reports=reports, decision=decision)
            self._core.send(path, report)

    def close(self, now: float) -> None:
        """Release the tunnel and end the session; SessionClosed follows within RELEASE_TIMEOUT."""
        self._machine.step(self, ClientInput.CLOSE, now, Terminated("local-close"))

    # -- messages: handlers named in _RULES -----------------------------------------------------------------

    def _addressed_to_us(self, path: Path, message: m.Message) -> bool:
        if path is Path.DATAGRAM:
            return message.tsid == self._ddt.tsid
        # The answer to a Configuration Request is the message that tells us our TSID.
        return message.tsid == self._requests.tsid or isinstance(message, m.ConfigurationResponse)

    def _on_configuration_answered(self, path: Path, message: m.ConfigurationResponse, now: float) -> None:
        asked = self._requests.take(message.sequence)
        if not isinstance(asked, AskedConfiguration):
            self.counts["unexpected-response"] += 1
        elif message.code == Code.SUCCESS and message.tsid != UNASSIGNED_TSID and _lease(message).addresses:
            self._machine.step(self, ClientInput.GRANTED, now, (asked, message))
        elif message.code == Code.SUCCESS:
            self._machine.step(self, ClientInput.REFUSED, now, Terminated("incomplete-configuration"))
        else:
            given = _refusal_input(message.code)
            self._machine.step(self, given, now, _refusal(message.code, message.text, message.retry_after_ms))

    def _on_ddt_configured(self, path: Path, message: m.ConfigurationResponse, now: float) -> None:
        self._ddt.configured(message, now)

    def _on_service_answered(self, path: Path, message: m.ServiceResponse, now: float) -> None:
        asked = self._requests.take(message.sequence)
        if isinstance(asked, Batch):
            self._ddt.service_answered(asked, message, now)
        elif isinstance(asked, AskedCoding):
            self.coding.answered(asked, message.code, now)
        elif isinstance(asked, AskedRedundancy):
            self.streams.answered(asked, message, now)
        elif isinstance(asked, AskedNagle):
            self._nagle_answered(asked, message.code)
        else:
            self.counts["unexpected-response"] += 1
        self.coding.settle(now)

    def _nagle_answered(self, asked: AskedNagle, code: Code | int) -> None:
        granted = code == Code.SUCCESS
        if granted:
            self._core.emit(SetNagle(asked.on))
        self._core.notify(NagleSet(asked.on, granted))

    def _on_service_asked(self, path: Path, message: m.ServiceRequest, now: float) -> None:
        known = message.service == Service.DDT and message.action == ServiceAction.PAIR_MISSING
        code = Code.SUCCESS if known else Code.NOT_ALLOWED
        answer = m.ServiceResponse(
            tsid=message.tsid, sequence=message.sequence, code=code, service=message.service
        )
        self._core.send(Path.STREAM, answer)
        if known:
            self._ddt.pair_missing(now)

    def _on_release_asked(self, path: Path, message: m.ReleaseRequest, now: float) -> None:
        answer = m.ReleaseResponse(
            tsid=message.tsid, sequence=message.sequence, code=Code.SUCCESS, tunnel_id=message.tunnel_id
        )
        self._core.send(path, answer)
        cause = _refusal(
            Code.SUCCESS if message.code is None else message.code, message.text, message.retry_after_ms
        )
        if message.tunnel_id is not None:
            if message.tunnel_id == self._ddt.tsid:
                self._ddt.released_by_server("released-by-server", now)
        elif message.code == Code.SHUTTING_DOWN:
            self._ddt.released_by_server(cause.reason, now)
            self._machine.step(self, ClientInput.SERVER_STOPPING, now, cause)
        else:
            self._machine.step(self, ClientInput.SERVER_RELEASED, now, cause)

    def _on_ddt_release_asked(self, path: Path, message: m.ReleaseRequest, now: float) -> None:
        answer = m.ReleaseResponse(tsid=message.tsid, sequence=message.sequence, code=Code.SUCCESS)
        self._core.send(path, answer)
        self._ddt.released_by_server("released-by-server", now)

    def _on_release_answered(self, path: Path, message: m.ReleaseResponse, now: float) -> None:
        asked = self._requests.take(message.sequence)
        if not isinstance(asked, AskedRelease):
            self.counts["unexpected-response"] += 1
        elif asked.tunnel_id is not None:
            self._ddt.release_answered(asked.tunnel_id, now)
        else:
            self._machine.step(self, ClientInput.RELEASE_ANSWERED, now, Terminated("local-close"))

    def _on_keepalive_asked(self, path: Path, message: m.KeepaliveRequest, now: float) -> None:
        answer = m.KeepaliveResponse(
            tsid=message.tsid, sequence=message.sequence, timestamp=message.timestamp
        )
        self._core.send(path, answer)

    def _on_quality_reported(self, path: Path, message: m.QualityReport, now: float) -> None:
        self._core.notify(QualityReported(message.reports, message.decision, path))

    def _on_error_answered(self, path: Path, message: m.ErrorResponse, now: float) -> None:
        """The server does not know a type we used: the request has failed with the error's code."""
        asked = self._requests.take(message.sequence)
        if isinstance(asked, Batch):
            code = message.code if message.code != Code.SUCCESS else Code.UNKNOWN_TYPE
            failed = m.ServiceResponse(tsid=message.tsid, sequence=message.sequence, code=code)
            self._ddt.service_answered(asked, failed, now)
        elif isinstance(asked, AskedCoding):
            self.coding.answered(asked, Code.UNKNOWN_TYPE, now)
        elif isinstance(asked, AskedRedundancy):
            unknown = m.ServiceResponse(tsid=message.tsid, sequence=message.sequence, code=Code.UNKNOWN_TYPE)
            self.streams.answered(asked, unknown, now)
        elif isinstance(asked, AskedNagle):
            self._nagle_answered(asked, Code.UNKNOWN_TYPE)
        elif isinstance(asked, AskedConfiguration):
            self._machine.step(self, ClientInput.REFUSED, now, _refusal(message.code, message.text, None))
        elif isinstance(asked, AskedRelease) and asked.tunnel_id is not None:
            self._ddt.release_answered(asked.tunnel_id, now)
        elif asked is not None:
            self._machine.step(self, ClientInput.RELEASE_ANSWERED, now, Terminated("local-close"))
        else:
            self.counts["unexpected-response"] += 1

    def _on_unknown_type(self, path: Path, message: m.UnknownMessage, now: float) -> None:
        self.counts["unknown-type"] += 1
        answer = m.ErrorResponse(tsid=message.tsid, sequence=message.sequence, code=Code.UNKNOWN_TYPE)
        self._core.send(path, answer)

    # -- from state to state: handlers named in states.CLIENT --------------------------------------------

    def _do_send_configuration(self, now: float, cause: object) -> None:
        self._requests.tsid = UNASSIGNED_TSID
        self._secret = None
        self._ask_configuration(now, proof=None)

    def _do_send_resume(self, now: float, cause: object) -> None:
        """Under the old TSID and with the proof; a server that gave no secret is asked afresh."""
        if self._secret is None:
            self._do_send_configuration(now, cause)
            return
        proof = resume_proof(self._secret, self._requests.tsid, self._binding)
        self._ask_configuration(now, proof=proof)

    def _ask_configuration(self, now: float, *, proof: bytes | None) -> None:
        fresh = proof is None
        settings = self._settings
        request = m.ConfigurationRequest(
            tsid=self._requests.tsid,
            sequence=self._core.next_sequence(),
            client_id=settings.client_id,
            username=settings.username if fresh else None,
            password=settings.password if fresh else None,
            families=settings.families,
            wanted_services=settings.wanted_services,
            resume_proof=proof,
            software=settings.software,
        )
        self._core.send(Path.STREAM, request)
        self._requests.add(request.sequence, AskedConfiguration(resume=not fresh), now)

    def _do_tunnel_up(self, now: float, cause: tuple[AskedConfiguration, m.ConfigurationResponse]) -> None:
        """A fresh tunnel: the server has no flows and no DDT of ours, and may have given other addresses."""
        before = self._configuration
        configuration = self._adopt(cause[1], now)
        addresses = configuration.lease.addresses
        changed = before is not None and before.lease.addresses != addresses
        self._ddt.reset("new-tunnel", now)
        self._moving = False
        self.coding.reset()
        self._ddt.addresses = addresses
        self.streams.reset("new-tunnel", now)
        self._ddt.addresses = self.streams.addresses = addresses
        if before is None or changed:
            self._core.emit(OpenSession(addresses))
            self._ddt.flows.forget_rows()
        self._core.emit(AttachStream(configuration.tsid, fresh=True))
        self._core.notify(TunnelUp(configuration, changed))
        self._core.notify(KeepaliveInterval(Path.STREAM, configuration.keepalive))
        self._stream_up(now)

    def _do_resumed(self, now: float, cause: tuple[AskedConfiguration, m.ConfigurationResponse]) -> None:
        asked, message = cause
        before = self._configuration
        if not asked.resume or before is None or before.lease.addresses != _lease(message).addresses:
            self._do_tunnel_up(now, cause)
            return
        configuration = self._adopt(message, now)
        restarted = configuration.epoch != before.epoch
        if restarted:  # it kept our addresses; of flows and DDT it knows nothing
            self._ddt.reset("server-restarted", now)
            self.streams.reset("server-restarted", now)
        self._core.emit(AttachStream(configuration.tsid, fresh=restarted))
        self._core.notify(Resumed(configuration))
        self._core.notify(KeepaliveInterval(Path.STREAM, configuration.keepalive))
        if self._moving:
            self._moving = False
            self._ddt.moved(now)
            self.streams.moved(now)
        self._stream_up(now)

    def _stream_up(self, now: float) -> None:
        self._ddt.stream_up(now)
        if self._configuration is not None:
            self.coding.stream_up(self._configuration.services, now)
        self.streams.stream_up(now)
        self._ask_nagle(now)

    def _adopt(self, message: m.ConfigurationResponse, now: float) -> Configuration:
        self._active_since = now
        self._away_since = None
        self._secret = message.resume_secret
        self._requests.tsid = message.tsid
        self._requests.up = True
        self._configuration = Configuration(
            tsid=message.tsid,
            lease=_lease(message),
            keepalive=(message.keepalive_ms or 0) / 1000,
            keepalive_datagram=(message.keepalive_datagram_ms or 0) / 1000,
            inner_mtu=message.inner_mtu,
            observed_address=message.observed_address,
            services=message.offered_services,
            persistence=(message.persistence_ms or 0) / 1000,
            software=message.software,
            epoch=message.server_epoch,
        )
        return self._configuration

    def _do_look_for_another(self, now: float, cause: Terminated) -> None:
        """Dial at once. A stream that is there stays in use until the new one has taken its place."""
        if self._settings.reconnect:
            self._core.emit(Reconnect(0.0))

    def _do_look_again(self, now: float, cause: Terminated) -> None:
        """The new network did not let us through yet; the old stream is still there."""
        if self._moving and self._settings.reconnect and self._attempts < MOVE_ATTEMPTS:
            self._core.emit(Reconnect(self._back_off(RECONNECT_EAGER)))
        else:
            self._moving = False

    def _do_move(self, now: float, cause: object) -> None:
        """Another stream is up beside ours: resume on it. What was asked on the old one is asked again."""
        self._forget_asked(now)
        self._do_send_resume(now, cause)

    def _do_redial(self, now: float, cause: Terminated) -> None:
        """The new stream was made in the network that was left."""
        self._core.emit(CloseTunnel(Path.STREAM, cause.reason))
        self._requests.down()
        self._do_look_for_another(now, cause)

    def _do_drop_stream(self, now: float, cause: Terminated) -> None:
        """Give the stream up ourselves, then go on as if it had been lost."""
        self._core.emit(CloseTunnel(Path.STREAM, cause.reason))
        self._do_lose_stream(now, cause)

    def _do_lose_stream(self, now: float, cause: Terminated) -> None:
        if self._requests.up:
            self._core.notify(StreamLost(cause.reason))
            if now - self._active_since >= RECONNECT_MAX:
                self._attempts = 0
        self._forget_asked(now)
        self._do_reconnect(now, cause)

    def _forget_asked(self, now: float) -> None:
        """Nothing more is answered on the stream there was."""
        lost = self._requests.down()
        self._ddt.stream_lost(lost, now)
        self.coding.stream_lost(lost)
        self.streams.stream_lost(lost, now)

    def _do_reconnect(self, now: float, cause: Terminated) -> None:
        """Ask for a new stream after the back-off: almost none at first, then doubling, half of it random, so
        that the clients of a server that went down do not come back as one."""
        self._requests.down()
        if not self._settings.reconnect:
            self._machine.step(self, ClientInput.CLOSE, now, cause)
            return
        if self._away_since is None:
            self._away_since = now
        eager = now - self._away_since < RECONNECT_EAGER_TIME
        asked = min(cause.retry_after or 0.0, RETRY_AFTER_MAX)
        self._core.emit(Reconnect(asked + self._back_off(RECONNECT_EAGER if eager else RECONNECT_MAX)))

    def _back_off(self, longest: float) -> float:
        """Seconds to wait before the next attempt, and one more attempt counted."""
        delay = RECONNECT_FIRST * self._fraction()
        if self._attempts:
            delay = min(RECONNECT_MIN * 2 ** (self._attempts - 1), longest) * (0.5 + 0.5 * self._fraction())
        self._attempts = min(self._attempts + 1, _BACKOFF_STEPS)
        return delay

    def _do_send_release(self, now: float, cause: Terminated) -> None:
        self._closing = True
        self._requests.ask_release(None, now)
        self._core.arm(_RELEASE_TIMER, now + RELEASE_TIMEOUT)

    def _do_end(self, now: float, cause: Terminated) -> None:
        if self._closing:  # whatever ends a session that the application is closing: it was the application
            cause = Terminated("local-close")
        self._requests.down()
        self._ddt.reset(cause.reason, now)
        self.coding.reset()
        self.streams.reset(cause.reason, now)
        self._core.disarm_all()
        self._core.emit(CloseTunnel(Path.STREAM, cause.reason))
        self._core.notify(cause)
        self._core.emit(SessionClosed(cause.reason))

    def _do_close_stray_stream(self, now: float, cause: object) -> None:
        self._core.emit(CloseTunnel(Path.STREAM, "session-closed"))


def _lease(message: m.ConfigurationResponse) -> Lease:
    return Lease(message.inner_ipv4, message.inner_ipv6, message.dns_servers, message.sip_server)


def _refusal(code: Code | int, text: str | None, retry_after_ms: int | None) -> Terminated:
    reason = "released-by-server" if code == Code.SUCCESS else code_label(code)
    retry_after = None if retry_after_ms is None else retry_after_ms / 1000
    return Terminated(reason, code, text or "", retry_after)


def _refusal_input(code: Code | int) -> ClientInput:
    if code == Code.RESUME_REFUSED:
        return ClientInput.RESUME_REFUSED
    return ClientInput.REFUSED if code in _FINAL_CODES else ClientInput.REFUSED_FOR_NOW
