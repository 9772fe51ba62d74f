"""The client's dynamic datagram tunnel: asked for, opened, configured, used, lingering, given back.

    ABSENT -> REQUESTED -> OPENING -> CONFIGURING -> PROVING -> UP -> SILENT
      ^   Service Request  DTLS     Configuration     |   ^     |       |
      |                             Request           |   +-----|-------+
      +---- RELEASING <---------------------- LINGERING <-------+
      +---- WAITING (back-off)  <- any failure       UNAVAILABLE: until a new tunnel

The whole table is ``states.CLIENT_DDT``. Until the DDT is UP and the server has confirmed a flow, the
flow's packets stay on the stream; the moment it is not UP any more, they are there again. PROVING takes no
time for a DDT in good repute; one that comes and goes has to live ever longer before it is trusted again.
"""

from __future__ import annotations

from typing import Final

from opentsm.limits import (
    DDT_LINGER,
    DDT_RETRY_MAX,
    DDT_RETRY_MIN,
    PAIR_MISSING_WARN,
    REQUEST_ATTEMPTS,
    REQUEST_RTO_INITIAL,
    REQUEST_RTO_MAX,
)
from opentsm.protocol.actions import (
    AttachDatagram,
    CloseTunnel,
    DdtAvailable,
    DdtDisabled,
    DdtDown,
    DdtEnabled,
    DdtUp,
    KeepaliveInterval,
    OpenDatagram,
    PairMissing,
    Steer,
    SteerMode,
    Unsteer,
)
from opentsm.protocol.client_flows import Batch, FlowBook, Key
from opentsm.protocol.client_requests import Asked, AskedRelease, StreamRequests
from opentsm.protocol.core import Core, Machine, code_label
from opentsm.protocol.states import CLIENT_DDT, ClientDdt, ClientDdtInput
from opentsm.types import Code, Flow, IpAddress, Path, PathMode, ServiceAction, Tsid
from opentsm.wire.messages import ConfigurationRequest, ConfigurationResponse, ServiceResponse

DDT_OPEN_TIMEOUT: Final = 8.0
"""Seconds for the DTLS handshake. DTLS retransmits after 1, 2 and 4 s (RFC 6347 section 4.2.4.1), so three
lost flights are survived; it ends well before the server's reservation does (RESERVATION_LIFETIME)."""

DDT_SILENT_LIMIT: Final = 5.0
"""Seconds a DDT may stay silent before a new one is tried. A new one costs a handshake, so a hole of a
few seconds is sat out; a NAT that has forgotten the binding never comes back."""

DDT_REPUTE: Final = 60.0
"""Seconds for which it is remembered that a DDT that carried media fell silent or was lost. So long, too, a
path that has just worked is tried again every DDT_RETRY_MIN: most blocks are short."""

DDT_PROVING_MIN: Final = 3.0
"""Seconds a DDT must live after its second fall within DDT_REPUTE before it carries media again; doubled by
each further fall. Longer than a silence takes to be noticed (0.8 s) after a path that lasts 2 s: media does
not follow a UDP that comes and goes every two seconds more than once."""

DDT_PROVING_MAX: Final = 30.0
"""Ceiling of it: half of what is remembered, so that a path that has become good is believed."""

MEDIA_DATAGRAM: Final = 220
"""Bytes of the padded Configuration Request on the datagram tunnel and so of its answer: 20 ms of G.711 in
IPv6. A path that lets only small datagrams through gives no answer, and no DDT."""

DDT_STABLE: Final = 30.0
"""A DDT that lived this long (seconds) makes the next failure a first one for the back-off."""

REQUEST_RTO_MIN: Final = 0.1
"""Floor of a retransmission timer taken from a measured RTT: below, timer jitter makes duplicates."""

_PADDING: Final = MEDIA_DATAGRAM - 20  # the message's header and the padding's own

_USABLE: Final = frozenset(
    {
        ClientDdt.REQUESTED,
        ClientDdt.OPENING,
        ClientDdt.CONFIGURING,
        ClientDdt.PROVING,
        ClientDdt.UP,
        ClientDdt.SILENT,
    }
)
_HELD: Final = frozenset({ClientDdt.PROVING, ClientDdt.SILENT})
_NOT_KNOWN: Final = frozenset({Code.SERVICE_UNAVAILABLE, Code.UNKNOWN_SERVICE, Code.UNKNOWN_TYPE})
_TRY_LATER: Final = frozenset({Code.RATE_LIMITED, Code.INTERNAL_ERROR, Code.WRONG_STATE})
_TIMERS: Final = {
    ClientDdt.OPENING: "ddt-open",
    ClientDdt.CONFIGURING: "ddt-retransmit",
    ClientDdt.PROVING: "ddt-proving",
    ClientDdt.SILENT: "ddt-silent",
    ClientDdt.LINGERING: "ddt-linger",
    ClientDdt.WAITING: "ddt-retry",
}


class ClientDatagram:
    """The datagram half of a client session. Every input ends with ``settle``."""

    def __init__(self, core: Core, requests: StreamRequests) -> None:
        self.tsid: Tsid | None = None
        self.addresses: tuple[IpAddress, ...] = ()
        self.flows = FlowBook()
        self._core = core
        self._requests = requests
        self._machine: Machine[ClientDdt, ClientDdtInput] = Machine(CLIENT_DDT, ClientDdt.ABSENT)
        self._available: bool | None = None
        self._gone: Tsid | None = None
        self._dead: Tsid | None = None
        self._failures = 0
        self._up_since: float | None = None
        self._trusted = False
        self._falls: list[float] = []
        self._why = "switched"
        self._request: ConfigurationRequest | None = None
        self._attempts = 0
        self._rto = REQUEST_RTO_INITIAL

    @property
    def state(self) -> ClientDdt:
        return self._machine.state

    # -- inputs ---------------------------------------------------------------------------------------

    def wish(self, key: Key, mode: PathMode | None, now: float) -> None:
        self.flows.wish(key, mode)
        self.settle(now)

    def use_path(self, flow: Flow, path: Path, now: float) -> None:
        if self.flows.choose(flow, path):
            self.settle(now)

    def datagram_ready(self, tsid: Tsid, now: float, rtt: float | None) -> bool:
        if tsid != self.tsid or self.state is not ClientDdt.OPENING:
            self._core.counts["wrong-tsid"] += 1
            return False
        self._rto = (
            REQUEST_RTO_INITIAL if rtt is None else min(max(3 * rtt, REQUEST_RTO_MIN), REQUEST_RTO_MAX)
        )
        self._feed(ClientDdtInput.DATAGRAM_READY, now)
        return True

    def configured(self, message: ConfigurationResponse, now: float) -> None:
        """The answer to our Configuration Request on the datagram tunnel."""
        if self._request is None or message.sequence != self._request.sequence:
            self._core.counts["unexpected-response"] += 1
            return
        given = tuple(a.ip for a in (message.inner_ipv4, message.inner_ipv6) if a is not None)
        if message.code != Code.SUCCESS:
            self._feed(ClientDdtInput.DENIED, now, code_label(message.code))
        elif given != self.addresses:
            self._feed(ClientDdtInput.DENIED, now, "other-address")
        else:
            self._feed(ClientDdtInput.GRANTED, now, message)

    def service_answered(self, batch: Batch, message: ServiceResponse, now: float) -> None:
        if message.code == Code.SUCCESS:
            self.flows.answered(batch, done=True)
            if batch.action is ServiceAction.ENABLE:
                self._announce(True)
                self._reserved(message.tunnel_id, now)
        else:
            self._service_refused(batch, message.code, now)
        self.settle(now)

    def release_answered(self, tunnel_id: Tsid | None, now: float) -> None:
        if tunnel_id == self.tsid:
            self._feed(ClientDdtInput.RELEASED, now)

    def lost(self, reason: str, now: float) -> None:
        self._feed(ClientDdtInput.LOST, now, reason)

    def silent(self, now: float) -> None:
        self._feed(ClientDdtInput.SILENT, now, "path-silent")

    def alive(self, now: float) -> None:
        self._feed(ClientDdtInput.ALIVE, now)

    def pair_missing(self, now: float) -> None:
        """The server has no datagram half. A warning that crossed our coming up on the way is old news:
        the server waits PAIR_MISSING_WARN before it says so."""
        self._core.notify(PairMissing())
        if self._up_since is None or now - self._up_since >= PAIR_MISSING_WARN:
            self._feed(ClientDdtInput.PAIR_MISSING, now, "pair-missing")

    def released_by_server(self, reason: str, now: float) -> None:
        self._feed(ClientDdtInput.SERVER_RELEASED, now, reason)

    def stream_lost(self, lost: list[Asked], now: float) -> None:
        self.flows.lost(asked for asked in lost if isinstance(asked, Batch))
        for asked in lost:
            if isinstance(asked, AskedRelease) and asked.tunnel_id is not None and not asked.further:
                self._gone = asked.tunnel_id
        self._feed(ClientDdtInput.STREAM_LOST, now, "stream-lost")

    def moved(self, now: float) -> None:
        """We are in another network, and the stream is there already: the DDT follows without waiting."""
        self._machine.step(self, ClientDdtInput.MOVED, now, "network-changed")

    def stream_up(self, now: float) -> None:
        self.settle(now)

    def reset(self, reason: str, now: float) -> None:
        """The server knows nothing of this session any more, or the session ends."""
        self._machine.step(self, ClientDdtInput.RESET, now, reason)
        self.flows.server_forgot()
        self._steer()

    def timer(self, name: str, now: float) -> None:
        # Giving the DDT back needs the stream; without it the linger goes on until it is there again.
        if name == _TIMERS[ClientDdt.LINGERING] and not self._requests.ready:
            self._arm(now + DDT_LINGER)
        else:
            self._feed(ClientDdtInput.TIMER, now, name)

    # -- from state to state: handlers named in states.CLIENT_DDT --------------------------------------------

    def _do_request(self, now: float, cause: object) -> None:
        self.flows.touch_wanting()

    def _do_open(self, now: float, tsid: Tsid) -> None:
        self.tsid = tsid
        self._arm(now + DDT_OPEN_TIMEOUT)
        self._core.emit(OpenDatagram(tsid))

    def _do_open_another(self, now: float, tsid: Tsid) -> None:
        """The server named another tunnel than ours: it has lost ours."""
        self._let_go("replaced")
        self._do_open(now, tsid)

    def _do_configure(self, now: float, cause: object) -> None:
        """Attach before asking: the server may send media as soon as it has the request."""
        assert self.tsid is not None
        self._core.emit(AttachDatagram(self.tsid))
        self._request = ConfigurationRequest(
            tsid=self.tsid, sequence=self._core.next_sequence(), padding=_PADDING
        )
        self._attempts = 0
        self._transmit(now)

    def _do_retransmit(self, now: float, cause: object) -> None:
        if self._attempts >= REQUEST_ATTEMPTS:
            self._machine.step(self, ClientDdtInput.NO_ANSWER, now, "no-answer")
            return
        self._rto = min(2 * self._rto, REQUEST_RTO_MAX)
        self._transmit(now)

    def _do_bring_up(self, now: float, message: ConfigurationResponse) -> None:
        assert self.tsid is not None
        self._disarm()
        self._up_since = now
        self._core.notify(DdtUp(self.tsid))
        if message.keepalive_datagram_ms is not None:
            self._core.notify(KeepaliveInterval(Path.DATAGRAM, message.keepalive_datagram_ms / 1000))
        self._prove(now)

    def _do_trust(self, now: float, cause: object) -> None:
        self._disarm()
        self._trusted = True
        self.flows.touch_wanting()

    def _do_hold(self, now: float, reason: str) -> None:
        self._why = reason
        self._fell(now)
        self._arm(now + DDT_SILENT_LIMIT)
        self.flows.touch_wanting()

    def _do_unhold(self, now: float, cause: object) -> None:
        self._prove(now)

    def _do_linger(self, now: float, cause: object) -> None:
        self._arm(now + DDT_LINGER)

    def _do_linger_no_more(self, now: float, cause: object) -> None:
        self._prove(now)

    def _do_release(self, now: float, cause: object) -> None:
        """Close only after the answer: until then the server may still send on it."""
        self._disarm()
        self.flows.touch_wanting()
        self._requests.ask_release(self.tsid, now)

    def _do_released(self, now: float, cause: object) -> None:
        self._let_go("released")

    def _do_fail(self, now: float, reason: str) -> None:
        if self._up_since is not None and now - self._up_since >= DDT_STABLE:
            self._failures = 0
        self._fell(now)
        self._do_drop(now, reason)
        if self._falls and now - self._falls[-1] < DDT_REPUTE:
            self._arm(now + DDT_RETRY_MIN)
            return
        self._arm(now + min(DDT_RETRY_MIN * 2**self._failures, DDT_RETRY_MAX))
        self._failures = min(self._failures + 1, 16)  # 2^16 is past DDT_RETRY_MAX; keeps the power small

    def _fell(self, now: float) -> None:
        """A DDT that carries media fell silent or is lost: remember it against its name."""
        if self._trusted:
            self._trusted = False
            self._falls = [at for at in self._falls if now - at < DDT_REPUTE] + [now]

    def _prove(self, now: float) -> None:
        """Trust the DDT at once, or after a while in which it must not fall silent."""
        self._disarm()
        falls = sum(now - at < DDT_REPUTE for at in self._falls)
        if falls > 1:
            self._arm(now + min(DDT_PROVING_MIN * 2 ** (falls - 2), DDT_PROVING_MAX))
        else:
            self._machine.step(self, ClientDdtInput.TIMER, now)

    def _do_drop(self, now: float, reason: str) -> None:
        """Give it up; the server is told over the stream, now or when there is one again."""
        if self.tsid is not None:
            self._gone = self.tsid
        self._let_go(reason)

    def _do_retry(self, now: float, cause: object) -> None:
        self._disarm()

    def _do_reset(self, now: float, reason: str) -> None:
        self._let_go(reason)
        self._available = None
        self._gone = None
        self._failures = 0
        self._falls.clear()

    # -- helpers ----------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Bring everything nearer to the wishes: the DDT's state, what the server knows, the rows."""
        if self.flows.wanting and (self._requests.up or self.state is ClientDdt.LINGERING):
            self._machine.step(self, ClientDdtInput.WANTED, now)
        elif self.flows.idle:
            self._machine.step(self, ClientDdtInput.UNWANTED, now)
        self._tell(now)
        self._steer()

    def _tell(self, now: float) -> None:
        if self._gone is not None and self._requests.ready:
            self._requests.ask_release(self._gone, now)
            self._gone = None
        while self._gone is None and self._requests.ready:
            held = self.state in _HELD
            batch = self.flows.next_batch(may_enable=self.state in _USABLE, held=held)
            if batch is None and self.state is ClientDdt.REQUESTED and not self.flows.asking:
                batch = self.flows.again()
            if batch is None:
                return
            self.flows.sent(batch)
            self._requests.ask_service(batch, now)

    def _steer(self) -> None:
        enabled: list[Flow] = []
        disabled: list[Flow] = []
        for flow, old, new in self.flows.steering(up=self.state is ClientDdt.UP):
            self._core.emit(Unsteer(flow) if new is None else Steer(flow, new))
            if new is SteerMode.DATAGRAM:
                enabled.append(flow)
            elif old is SteerMode.DATAGRAM:
                disabled.append(flow)
        if enabled:
            self._core.notify(DdtEnabled(tuple(enabled)))
        if disabled:
            self._core.notify(DdtDisabled(tuple(disabled), self._why))
        self._why = "switched"

    def _feed(self, given: ClientDdtInput, now: float, cause: object = None) -> None:
        self._machine.step(self, given, now, cause)
        self.settle(now)

    def _reserved(self, tunnel_id: Tsid | None, now: float) -> None:
        if not self.flows.wanting and self.state is ClientDdt.REQUESTED:
            return  # the wish is gone; should it come back before the server knows, _tell asks anew
        if tunnel_id is not None and tunnel_id not in (self.tsid, self._dead):
            self._machine.step(self, ClientDdtInput.RESERVED, now, tunnel_id)
        elif self.state is ClientDdt.REQUESTED and not self.flows.waiting_for_answers:
            self._machine.step(self, ClientDdtInput.REFUSED, now, "no-tunnel-named")

    def _service_refused(self, batch: Batch, code: Code | int, now: float) -> None:
        self._why = code_label(code)
        if batch.action is not ServiceAction.ENABLE:
            self.flows.refused(batch)
        elif code in _NOT_KNOWN and self.state is ClientDdt.REQUESTED:
            self.flows.answered(batch, done=False)
            self._announce(False)
            self._machine.step(self, ClientDdtInput.SERVICE_UNAVAILABLE, now, code_label(code))
        elif code in _TRY_LATER and self.state is ClientDdt.REQUESTED:
            self.flows.answered(batch, done=False)
            self._machine.step(self, ClientDdtInput.REFUSED, now, code_label(code))
        elif self.state in _USABLE:
            self.flows.refused(batch)
        else:
            self.flows.answered(batch, done=False)

    def _announce(self, available: bool) -> None:
        if self._available is not available:
            self._available = available
            self._core.notify(DdtAvailable(available))

    def _transmit(self, now: float) -> None:
        assert self._request is not None
        self._attempts += 1
        self._core.send(Path.DATAGRAM, self._request)
        self._arm(now + self._rto)

    def _let_go(self, reason: str) -> None:
        """Forget the tunnel, whatever state it was in."""
        self._disarm()
        self._request = None
        self._why = reason
        self.flows.touch_wanting()
        if self.tsid is None:
            return
        self._core.emit(CloseTunnel(Path.DATAGRAM, reason))
        if self._up_since is not None:
            self._core.notify(DdtDown(self.tsid, reason))
        self._dead, self.tsid, self._up_since = self.tsid, None, None
        self._trusted = False

    def _arm(self, at: float) -> None:
        self._disarm()
        self._core.arm(_TIMERS[self.state], at)

    def _disarm(self) -> None:
        for timer in _TIMERS.values():
            self._core.disarm(timer)


DDT_TIMERS: Final = frozenset(_TIMERS.values())
"""Names of the timers that belong to ``ClientDatagram.timer``."""
