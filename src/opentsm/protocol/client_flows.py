"""A client's flows: what the application wishes, what the server was told, where packets go.

The three are kept apart on purpose. A wish is free and immediate; telling the server takes a round trip
and may be refused; steering follows from both. Each flow has at most one request in flight, and when its
answer comes the newest wish is compared with what was told: so wishes may change as fast as they like,
the newest wins, and none is lost.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from opentsm.errors import LocalProtocolError
from opentsm.limits import MAX_FLOWS_PER_SESSION
from opentsm.protocol.actions import SteerMode
from opentsm.types import Flow, Path, PathMode, ServiceAction

Key = Flow | None
"""A flow, or None: the tunnel as a whole (an application that wants a DDT before it has a flow)."""

FLOWS_PER_REQUEST: Final = 48
"""Flows named in one Service Request: under the 64 TLVs of a message, with room for the others."""


class Told(enum.Enum):
    """What the server knows about a flow, as far as it has confirmed it."""

    NOTHING = "nothing"
    MEDIA = "media on the stream"
    HELD = "wants the DDT, stream for now"
    DATAGRAM = "datagram"
    AUTO = "auto"
    UNKNOWN = "a request was lost with its stream"


_ENABLED: Final = frozenset({Told.HELD, Told.DATAGRAM, Told.AUTO, Told.UNKNOWN})
_REQUESTS: Final[dict[Told, tuple[ServiceAction, PathMode | None]]] = {
    Told.NOTHING: (ServiceAction.DISABLE, None),
    Told.MEDIA: (ServiceAction.DISABLE, PathMode.STREAM),
    Told.HELD: (ServiceAction.ENABLE, PathMode.STREAM),
    Told.DATAGRAM: (ServiceAction.ENABLE, PathMode.DATAGRAM),
    Told.AUTO: (ServiceAction.ENABLE, PathMode.AUTO),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """One Service Request about several flows: what the server is to know of them."""

    target: Told
    keys: tuple[Key, ...]

    @property
    def action(self) -> ServiceAction:
        return _REQUESTS[self.target][0]

    @property
    def mode(self) -> PathMode | None:
        return _REQUESTS[self.target][1]

    @property
    def flows(self) -> tuple[Flow, ...]:
        return tuple(key for key in self.keys if key is not None)


class FlowBook:
    """Wishes, told states and steering rows of one client session. Bounded by MAX_FLOWS_PER_SESSION."""

    def __init__(self) -> None:
        self.wanting: set[Key] = set()
        """Keys whose wish needs a DDT and was not refused."""
        self._wishes: dict[Key, PathMode] = {}
        self._chosen: dict[Flow, Path] = {}
        self._told: dict[Key, Told] = {}
        self._enabled: set[Key] = set()
        self._pending: set[Key] = set()
        self._asking = 0
        self._untold: dict[Key, None] = {}
        self._unsteered: dict[Flow, None] = {}
        self._rows: dict[Flow, SteerMode] = {}

    # -- wishes ---------------------------------------------------------------------------------------

    def wish(self, key: Key, mode: PathMode | None) -> None:
        """The application's newest wish; None: the flow is over.

        Raises:
            LocalProtocolError: this would be one flow too many.
        """
        if mode is None:
            self._wishes.pop(key, None)
        elif key not in self._wishes and len(self._wishes) >= MAX_FLOWS_PER_SESSION:
            raise LocalProtocolError(f"a session has at most {MAX_FLOWS_PER_SESSION} flows; unset one first")
        else:
            if key is not None and mode is PathMode.AUTO and self._wishes.get(key) is not PathMode.AUTO:
                self._chosen[key] = self.path(key)  # until somebody judges it stays where it is
            self._wishes[key] = mode
        if mode in (PathMode.DATAGRAM, PathMode.AUTO):
            self.wanting.add(key)
        else:
            self.wanting.discard(key)
        if key is not None and mode is not PathMode.AUTO:
            self._chosen.pop(key, None)
        self._touch(key)

    def choose(self, flow: Flow, path: Path) -> bool:
        """The path a flow in mode auto uses while both are there; False if it is not in that mode."""
        if self._wishes.get(flow) is not PathMode.AUTO:
            return False
        self._chosen[flow] = path
        self._unsteered[flow] = None
        return True

    def mode(self, flow: Flow) -> PathMode:
        return self._wishes.get(flow, PathMode.STREAM)

    @property
    def idle(self) -> bool:
        """Nobody wants a DDT, and the server knows that."""
        return not self.wanting and not self._enabled and not self._pending

    @property
    def waiting_for_answers(self) -> bool:
        return bool(self._pending)

    @property
    def asking(self) -> bool:
        """A request to enable is in flight: its answer will name a tunnel."""
        return self._asking > 0

    # -- telling the server -----------------------------------------------------------------------------

    def touch_wanting(self) -> None:
        """The DDT's state has changed: look again at every flow that wants it or had it."""
        for key in (*self.wanting, *self._enabled):
            self._touch(key)

    def next_batch(self, *, may_enable: bool, held: bool) -> Batch | None:
        """The next request that brings the server nearer to the wishes, or None when nothing is to be told.

        Args:
            may_enable: False while a DDT cannot be asked for; enabling waits for ``touch_wanting``.
            held: the DDT is silent: flows keep it, but use the stream.
        """
        target: Told | None = None
        keys: list[Key] = []
        for key in list(self._untold):
            wanted = self._target(key, may_enable, held)
            if wanted is self._told.get(key, Told.NOTHING):
                del self._untold[key]
            elif len(keys) == FLOWS_PER_REQUEST:
                continue
            elif target is None or (wanted is target and None not in (key, *keys[:1])):
                target = wanted
                keys.append(key)
        return Batch(target, tuple(keys)) if target else None

    def again(self) -> Batch | None:
        """A request that changes nothing but makes the server name a tunnel: for one wanting flow that it
        has been told of. None if there is none without a request in flight."""
        for key in self.wanting:
            told = self._told.get(key, Told.NOTHING)
            if key not in self._pending and told in (Told.HELD, Told.DATAGRAM, Told.AUTO):
                return Batch(told, (key,))
        return None

    def sent(self, batch: Batch) -> None:
        self._pending.update(batch.keys)
        self._asking += batch.action is ServiceAction.ENABLE
        for key in batch.keys:
            self._untold.pop(key, None)

    def answered(self, batch: Batch, *, done: bool) -> None:
        """The server's answer to a batch: done, or the server's knowledge is as before."""
        self._landed(batch)
        for key in batch.keys:
            if done:
                self._know(key, batch.target)
            self._touch(key)

    def refused(self, batch: Batch) -> None:
        """The server will not do this: an enabled flow stays on the stream until its next wish."""
        self._landed(batch)
        for key in batch.keys:
            if batch.action is ServiceAction.ENABLE:
                self.wanting.discard(key)
            else:
                self._know(key, batch.target)
            self._touch(key)

    def lost(self, batches: Iterable[Batch]) -> None:
        """These requests went down with their stream: whether they had an effect is not known."""
        for batch in batches:
            self._landed(batch)
            for key in batch.keys:
                self._know(key, Told.UNKNOWN)
                self._touch(key)

    def server_forgot(self) -> None:
        """A fresh tunnel: the server knows nothing, and what it refused may be asked again."""
        self._told.clear()
        self._enabled.clear()
        self._pending.clear()
        self._asking = 0
        for key, mode in self._wishes.items():
            if mode is not PathMode.STREAM:
                self.wanting.add(key)
            self._touch(key)

    def _landed(self, batch: Batch) -> None:
        """The batch is no longer in flight."""
        self._pending.difference_update(batch.keys)
        self._asking -= batch.action is ServiceAction.ENABLE

    def _target(self, key: Key, may_enable: bool, held: bool) -> Told:
        told = self._told.get(key, Told.NOTHING)
        if key in self.wanting:
            if not may_enable:
                return told
            return Told.HELD if held else Told[self._wishes[key].name]
        if told is Told.NOTHING or key not in self._wishes:
            return Told.NOTHING
        return Told.MEDIA

    def _know(self, key: Key, told: Told) -> None:
        if told is Told.NOTHING:
            self._told.pop(key, None)
        else:
            self._told[key] = told
        if told in _ENABLED:
            self._enabled.add(key)
        else:
            self._enabled.discard(key)

    def _touch(self, key: Key) -> None:
        """Look at this key again. One with a request in flight is looked at when its answer comes; one
        that neither side knows is forgotten."""
        if key not in self._wishes and key not in self._told:
            self._untold.pop(key, None)
        elif key not in self._pending:
            self._untold[key] = None
        if key is not None:
            self._unsteered[key] = None

    # -- steering -------------------------------------------------------------------------------------

    def path(self, flow: Flow) -> Path:
        return Path.DATAGRAM if self._rows.get(flow) is SteerMode.DATAGRAM else Path.STREAM

    def steering(self, *, up: bool) -> list[tuple[Flow, SteerMode | None, SteerMode | None]]:
        """(flow, old row, new row) of every row that must change now; None = no row. Taken as done.

        Args:
            up: the DDT is there and heard.
        """
        changes = []
        for flow in self._unsteered:
            old, new = self._rows.get(flow), self._row(flow, up)
            if old is not new:
                changes.append((flow, old, new))
            if new is None:
                self._rows.pop(flow, None)
            else:
                self._rows[flow] = new
        self._unsteered.clear()
        return changes

    def forget_rows(self) -> None:
        """The user plane's table is empty (a new session there)."""
        self._rows.clear()
        for key in self._wishes:
            self._touch(key)

    def _row(self, flow: Flow, up: bool) -> SteerMode | None:
        mode = self._wishes.get(flow)
        if mode is None:
            return None
        if not up or flow not in self.wanting:
            return SteerMode.STREAM
        if mode is PathMode.AUTO and self._chosen.get(flow, Path.STREAM) is Path.STREAM:
            return SteerMode.STREAM
        told = self._told.get(flow)
        if told is Told.UNKNOWN:  # the stream is down: no reason to leave a tunnel that works
            return self._rows.get(flow, SteerMode.STREAM)
        return SteerMode.DATAGRAM if told in _ENABLED else SteerMode.STREAM
