"""The server's side of a client's DDT: reservation, the tunnel, the flows' rows, the missing-pair check.

    ABSENT -> RESERVED -> READY -> UP <-> SILENT
       ^  Service     DTLS   Configuration
       |  Request            Request
       +-- released by the client, lost, or never completed

The whole table is ``states.SERVER_DDT``. A row is on the datagram tunnel only while the DDT is UP; in mode
auto also only when our own judgement of what we send (``use_path``) says so. The client judges what it sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentsm.limits import (
    MAX_FLOWS_PER_SESSION,
    PAIR_MISSING_REPEAT,
    PAIR_MISSING_WARN,
    RESERVATION_LIFETIME,
)
from opentsm.protocol.actions import (
    AttachDatagram,
    CloseTunnel,
    DdtDown,
    DdtUp,
    MediaMoved,
    ReserveDatagram,
    Steer,
    SteerMode,
    UnreserveDatagram,
    Unsteer,
)
from opentsm.protocol.core import Core, Machine
from opentsm.protocol.states import SERVER_DDT, ServerDdt, ServerDdtInput
from opentsm.types import Code, Flow, Path, PathMode, ServiceAction, Tsid
from opentsm.wire.messages import Message, ServiceRequest

DDT_SILENT_LIMIT: Final = 30.0
"""Seconds a silent DDT is kept. Much longer than the client waits (client_ddt.DDT_SILENT_LIMIT): the
client decides, and tells us; this is for the client that cannot."""

REMEMBERED_RESPONSES: Final = 8
"""Answers to datagram requests kept for their duplicates: more than one request's transmissions."""

PAIR_TIMER: Final = "pair-missing"
_TIMERS: Final = {
    ServerDdt.RESERVED: "ddt-reservation",
    ServerDdt.READY: "ddt-configuration",
    ServerDdt.SILENT: "ddt-silent",
}


class ServerDatagram:
    """The datagram half of a server session.

    Args:
        new_tsid: makes the TSID of a reservation.
    """

    __slots__ = (
        "_answers",
        "_auto",
        "_core",
        "_enabled",
        "_last_warning",
        "_machine",
        "_moved",
        "_new_tsid",
        "_rows",
        "_steered",
        "_up",
        "_whole",
        "tsid",
    )

    def __init__(self, core: Core, *, new_tsid: Callable[[], Tsid]) -> None:
        self.tsid: Tsid | None = None
        self._core = core
        self._new_tsid = new_tsid
        self._machine: Machine[ServerDdt, ServerDdtInput] = Machine(SERVER_DDT, ServerDdt.ABSENT)
        self._rows: dict[Flow, PathMode | None] = {}
        # Flows as keys: an empty set is three times an empty dict, and most sessions have none.
        self._enabled: dict[Flow, None] = {}
        self._whole = False
        self._steered: dict[Flow, SteerMode] = {}
        self._answers: dict[int, Message] = {}
        self._last_warning: float | None = None
        self._up = False
        self._auto = Path.STREAM
        self._moved: dict[Path, list[Flow]] = {}

    @property
    def judges(self) -> bool:
        """Some flow is in mode auto, and there is a DDT to judge."""
        return self._up and PathMode.AUTO in self._rows.values()

    @property
    def state(self) -> ServerDdt:
        return self._machine.state

    @property
    def wanted(self) -> bool:
        """The client has the DDT enabled, for a flow or as a whole."""
        return self._whole or bool(self._enabled)

    # -- inputs ---------------------------------------------------------------------------------------

    def asked(self, message: ServiceRequest, now: float) -> Code:
        """A Service Request to enable or disable the DDT.

        Returns:
            SUCCESS (for an enable, ``tsid`` is then the tunnel's), or NOT_ALLOWED when the session would
            have too many flows; then nothing has changed.
        """
        if message.action == ServiceAction.ENABLE:
            return self._enable(message, now)
        self._disable(message)
        self._check_pair(now)
        return Code.SUCCESS

    def _enable(self, message: ServiceRequest, now: float) -> Code:
        new = {flow for flow in message.flows if flow not in self._rows}
        if len(self._rows) + len(new) > MAX_FLOWS_PER_SESSION:
            return Code.NOT_ALLOWED
        mode = PathMode.DATAGRAM if message.mode is None else message.mode
        self._whole = self._whole or not message.flows
        for flow in message.flows:
            self._rows[flow] = mode
            self._enabled[flow] = None
            self._steer(flow)
        self._tell_moved("the client holds it" if mode is PathMode.STREAM else "the client asked for it")
        self._machine.step(self, ServerDdtInput.ENABLE, now)
        self._check_pair(now)
        return Code.SUCCESS

    def _disable(self, message: ServiceRequest) -> None:
        if not message.flows:
            self._whole = False
        for flow in message.flows:
            self._enabled.pop(flow, None)
            if message.mode is None:
                self._rows.pop(flow, None)
            elif flow in self._rows:
                self._rows[flow] = None
            self._steer(flow)
        self._tell_moved("the client asked for it")

    def use_path(self, path: Path, reason: str) -> None:
        """The path of what we send of the flows in mode auto."""
        if path is not self._auto:
            self._auto = path
            self._steer_all(reason)

    def datagram_ready(self, tsid: Tsid, now: float) -> bool:
        if tsid != self.tsid or self.state is not ServerDdt.RESERVED:
            self._core.counts["wrong-tsid"] += 1
            return False
        return self._feed(ServerDdtInput.DATAGRAM_READY, now)

    def answer_once(self, request: Message, make: Callable[[], Message], now: float) -> None:
        """Answer a request on the datagram path: a duplicate gets the same answer and has no effect."""
        answer = self._answers.get(request.sequence)
        if answer is None:
            answer = self._answers[request.sequence] = make()
            if len(self._answers) > REMEMBERED_RESPONSES:
                del self._answers[next(iter(self._answers))]
        self._core.send(Path.DATAGRAM, answer)

    def configuration_asked(self, now: float) -> None:
        self._feed(ServerDdtInput.CONFIGURE, now)

    def lost(self, reason: str, now: float) -> None:
        self._feed(ServerDdtInput.LOST, now, reason)

    def released(self, now: float) -> None:
        self._feed(ServerDdtInput.RELEASED, now, "released")

    def silent(self, now: float) -> None:
        self._feed(ServerDdtInput.SILENT, now, "path-silent")

    def alive(self, now: float) -> None:
        self._feed(ServerDdtInput.ALIVE, now)

    def stream_lost(self) -> None:
        self._core.disarm(PAIR_TIMER)

    def stream_resumed(self, now: float) -> None:
        """A reservation made for the old stream's key is void; a living DDT goes on."""
        self._feed(ServerDdtInput.RESUMED, now, "stream-resumed")

    def reset(self, reason: str, now: float) -> None:
        self._machine.step(self, ServerDdtInput.RESET, now, reason)
        self._core.disarm(PAIR_TIMER)

    def timer(self, name: str, now: float, warn: Callable[[float], bool]) -> None:
        """A timer of ``DDT_TIMERS`` is due.

        Args:
            warn: sends the pair-missing warning; False if there is no stream to send it on.
        """
        if name != PAIR_TIMER:
            self._feed(ServerDdtInput.TIMER, now, name)
        elif warn(now):
            self._last_warning = now
            self._check_pair(now)

    # -- from state to state: handlers named in states.SERVER_DDT --------------------------------------------

    def _do_reserve(self, now: float, cause: object) -> None:
        self.tsid = self._new_tsid()
        self._arm(now + RESERVATION_LIFETIME)
        self._core.emit(ReserveDatagram(self.tsid, RESERVATION_LIFETIME))

    def _do_unreserve(self, now: float, cause: object) -> None:
        assert self.tsid is not None
        self._core.emit(UnreserveDatagram(self.tsid))
        self._forget()

    def _do_await_configuration(self, now: float, cause: object) -> None:
        self._arm(now + RESERVATION_LIFETIME)

    def _do_bring_up(self, now: float, cause: object) -> None:
        """The client attached before it asked, so its flows may move at once."""
        assert self.tsid is not None
        self._disarm()
        self._up = True
        self._core.emit(AttachDatagram(self.tsid))
        self._core.notify(DdtUp(self.tsid))
        self._auto = Path.STREAM
        self._steer_all("the datagram tunnel is up")

    def _do_confirm(self, now: float, cause: object) -> None:
        """Asked again with another sequence: the answer is the same, and nothing else happens."""

    def _do_hold(self, now: float, cause: object) -> None:
        self._arm(now + DDT_SILENT_LIMIT)
        self._steer_all("the datagram tunnel is silent")

    def _do_unhold(self, now: float, cause: object) -> None:
        self._disarm()
        self._steer_all("the datagram tunnel is heard again")

    def _do_take_down(self, now: float, reason: str) -> None:
        assert self.tsid is not None
        self._steer_all(f"the datagram tunnel is gone: {reason}")
        self._core.emit(CloseTunnel(Path.DATAGRAM, reason))
        if self._up:
            self._core.notify(DdtDown(self.tsid, reason))
        self._forget()

    # -- helpers ----------------------------------------------------------------------------------------

    def _feed(self, given: ServerDdtInput, now: float, cause: object = None) -> bool:
        moved = self._machine.step(self, given, now, cause)
        self._check_pair(now)
        return moved

    def _forget(self) -> None:
        self._disarm()
        self._answers.clear()
        self._up = False
        self.tsid = None

    def _check_pair(self, now: float) -> None:
        """Warn when the DDT is wanted and has no datagram half for PAIR_MISSING_WARN seconds."""
        if not self.wanted or self.state in (ServerDdt.UP, ServerDdt.SILENT):
            self._core.disarm(PAIR_TIMER)
        elif not self._core.armed(PAIR_TIMER):
            at = now + PAIR_MISSING_WARN
            if self._last_warning is not None:
                at = max(at, self._last_warning + PAIR_MISSING_REPEAT)
            self._core.arm(PAIR_TIMER, at)

    def _steer_all(self, reason: str) -> None:
        for flow in self._rows:
            self._steer(flow)
        self._tell_moved(reason)

    def _tell_moved(self, reason: str) -> None:
        moved, self._moved = self._moved, {}
        for path, flows in moved.items():
            self._core.notify(MediaMoved(tuple(flows), path, reason))

    def _steer(self, flow: Flow) -> None:
        old = self._steered.get(flow)
        if flow not in self._rows:
            if old is not None:
                del self._steered[flow]
                self._core.emit(Unsteer(flow))
            return
        mode = self._rows[flow]
        wanted = mode is PathMode.DATAGRAM or (mode is PathMode.AUTO and self._auto is Path.DATAGRAM)
        new = SteerMode.DATAGRAM if wanted and self.state is ServerDdt.UP else SteerMode.STREAM
        if new is not old:
            if old is not None or new is SteerMode.DATAGRAM:
                self._moved.setdefault(Path(int(new)), []).append(flow)
            self._steered[flow] = new
            self._core.emit(Steer(flow, new))

    def _arm(self, at: float) -> None:
        self._disarm()
        self._core.arm(_TIMERS[self.state], at)

    def _disarm(self) -> None:
        for timer in _TIMERS.values():
            self._core.disarm(timer)


DDT_TIMERS: Final = frozenset({PAIR_TIMER, *_TIMERS.values()})
"""Names of the timers that belong to ``ServerDatagram.timer``."""
