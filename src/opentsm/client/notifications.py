"""What a tunnel tells the application, and how: callbacks with an opaque value, and async iterators.

Both get every notification in the same order. A callback runs in the event loop, at once; an iterator has a
bounded queue of its own, and when its reader does not keep up, the oldest notification is dropped and
counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from opentsm.engine.breaker import BreakerDecision
from opentsm.engine.redundancy import Protection
from opentsm.engine.spreading import SpreadDecision
from opentsm.engine.steering import Decision
from opentsm.protocol.actions import Configuration
from opentsm.types import Flow, Path, Redundancy, Tsid
from opentsm.wire.messages import PathQuality

NOTIFICATION_QUEUE: Final = 1024
"""Notifications waiting in one iterator: minutes of a lively call. Whoever is further behind does
not read."""

MAX_LISTENERS: Final = 1024
"""Callbacks and iterators of one tunnel: some for each of a few hundred calls; more is a leak."""

_log: Final = logging.getLogger(__name__)


class FlowOwner(Protocol):
    """A socket or transport, as notifications show it."""

    @property
    def flow(self) -> Flow | None: ...


@dataclass(frozen=True, slots=True)
class Notification:
    """Base of all. ``kind`` is a stable name."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class TunnelUp(Notification):
    """The stream tunnel is configured. With ``address_changed`` the inner address is another than before,
    and every socket that was open has been closed."""

    kind: ClassVar[str] = "tunnel-up"
    configuration: Configuration
    address_changed: bool = False


@dataclass(frozen=True, slots=True)
class TunnelLost(Notification):
    """The stream tunnel is gone; the client is coming back. Address and sockets stay."""

    kind: ClassVar[str] = "tunnel-lost"
    reason: str


@dataclass(frozen=True, slots=True)
class TunnelResumed(Notification):
    """The stream tunnel is back, with the same address; sockets go on."""

    kind: ClassVar[str] = "tunnel-resumed"
    configuration: Configuration | None


@dataclass(frozen=True, slots=True)
class TunnelTerminated(Notification):
    """The end. Nothing comes after it."""

    kind: ClassVar[str] = "tunnel-terminated"
    reason: str
    text: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class DdtAvailable(Notification):
    """The server's first answer about DDT on this tunnel."""

    kind: ClassVar[str] = "ddt-available"
    available: bool


@dataclass(frozen=True, slots=True)
class DdtUp(Notification):
    """The datagram tunnel is there; sockets move to it one by one (DdtEnabled)."""

    kind: ClassVar[str] = "ddt-up"
    tsid: Tsid


@dataclass(frozen=True, slots=True)
class DdtDown(Notification):
    """The datagram tunnel is gone: ``released`` (nobody needs it), or why it was lost."""

    kind: ClassVar[str] = "ddt-down"
    tsid: Tsid
    reason: str


@dataclass(frozen=True, slots=True)
class DdtEnabled(Notification):
    """These sockets' packets go by the datagram tunnel from now on."""

    kind: ClassVar[str] = "ddt-enabled"
    sockets: tuple[FlowOwner, ...]


@dataclass(frozen=True, slots=True)
class DdtDisabled(Notification):
    """These sockets' packets are on the stream again. ``reason``: ``switched``, ``path-silent``, ..."""

    kind: ClassVar[str] = "ddt-disabled"
    sockets: tuple[FlowOwner, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class PairMissing(Notification):
    """The server misses our datagram half, though sockets want it."""

    kind: ClassVar[str] = "pair-missing"


@dataclass(frozen=True, slots=True)
class PathSilent(Notification):
    """Nothing is heard on this path, though we ask."""

    kind: ClassVar[str] = "path-silent"
    path: Path
    silent: float


@dataclass(frozen=True, slots=True)
class PathAlive(Notification):
    """The path that was silent has been heard again."""

    kind: ClassVar[str] = "path-alive"
    path: Path


@dataclass(frozen=True, slots=True)
class NetworkChanged(Notification):
    """This machine reaches the server from another address now, or (``source`` None) not at all. What follows
    for the tunnel is told by the notifications about it."""

    kind: ClassVar[str] = "network-changed"
    source: str | None


@dataclass(frozen=True, slots=True)
class StreamsChanged(Notification):
    """Media that goes by stream has another number of streams, or is spread over them in another way.

    ``up`` counts those that carry media; ``reason`` is ``joined``, ``released``, ``switched``,
    ``service-unavailable`` (the server does not offer redundancy), or why one was lost."""

    kind: ClassVar[str] = "streams-changed"
    redundancy: Redundancy
    up: int
    reason: str


@dataclass(frozen=True, slots=True)
class NagleSet(Notification):
    """The server's answer about Nagle's algorithm; ``granted``: both sides have it so now."""

    kind: ClassVar[str] = "nagle-set"
    on: bool
    granted: bool


@dataclass(frozen=True, slots=True)
class QualityReported(Notification):
    """How the server receives what we send."""

    kind: ClassVar[str] = "quality-reported"
    reports: tuple[PathQuality, ...]


@dataclass(frozen=True, slots=True)
class PathDecided(Notification):
    """Mode AUTO has weighed both paths: where its sockets are from now on, both scores, and why."""

    kind: ClassVar[str] = "path-decided"
    decision: Decision


@dataclass(frozen=True, slots=True)
class CodingDecided(Notification):
    """Media on the datagram tunnel goes with another amount of recovery data from now on, and why;
    ``compressed``: headers are left out."""

    kind: ClassVar[str] = "coding-decided"
    protection: Protection
    compressed: bool


@dataclass(frozen=True, slots=True)
class PathSwitched(Notification):
    """Media of these sockets goes by another path, in one direction, from now on.

    ``direction`` is ``up`` (what we send) or ``down`` (what the server sends, as far as it has told us: it
    does in mode AUTO). ``reason`` is for people; ``decision``, where mode AUTO decided here, has both scores.
    """

    kind: ClassVar[str] = "path-switched"
    sockets: tuple[FlowOwner, ...]
    direction: str
    path: Path
    reason: str
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class SpreadDecided(Notification):
    """Mode AUTO has put media that goes by stream on several streams, or on one again, and why."""

    kind: ClassVar[str] = "spread-decided"
    decision: SpreadDecision


@dataclass(frozen=True, slots=True)
class BreakerMoved(Notification):
    """The circuit breaker of what we send by this path has opened (nearly nothing of it arrives, so that only
    a few packets a second go) or closed again."""

    kind: ClassVar[str] = "breaker-moved"
    path: Path
    decision: BreakerDecision


Callback = Callable[[Notification, Any], None]


class Subscription:
    """One callback. ``cancel`` ends it."""

    def __init__(self, hub: NotificationHub, callback: Callback, opaque: Any, kinds: frozenset[str]) -> None:
        self._hub = hub
        self._callback = callback
        self._opaque = opaque
        self._kinds = kinds

    def cancel(self) -> None:
        self._hub.remove(self)

    def deliver(self, notification: Notification) -> None:
        if self._kinds and notification.kind not in self._kinds:
            return
        try:
            self._callback(notification, self._opaque)
        except Exception:  # one listener's mistake must not cost the others their news
            _log.exception("the callback for %s failed", notification.kind)

    def end(self) -> None:
        """Nothing more will come."""


class NotificationStream:
    """Notifications as an async iterator; it ends after TunnelTerminated.

    Attributes:
        missed: notifications dropped because the reader was NOTIFICATION_QUEUE behind.
    """

    def __init__(self, hub: NotificationHub) -> None:
        self.missed = 0
        self._hub = hub
        self._queue: deque[Notification] = deque(maxlen=NOTIFICATION_QUEUE)
        self._wake = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> NotificationStream:
        return self

    async def __anext__(self) -> Notification:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()

    async def __aenter__(self) -> NotificationStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """No more, please; what is queued can still be read."""
        self._hub.remove(self)
        self.end()

    def deliver(self, notification: Notification) -> None:
        self.missed += len(self._queue) == NOTIFICATION_QUEUE
        self._queue.append(notification)
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()


class NotificationHub:
    """Hands each notification to every listener, in the order they came."""

    def __init__(self) -> None:
        self._listeners: dict[Subscription | NotificationStream, None] = {}
        self._ended = False

    def subscribe(
        self, callback: Callback, opaque: Any = None, kinds: frozenset[str] = frozenset()
    ) -> Subscription:
        subscription = Subscription(self, callback, opaque, kinds)
        self._add(subscription)
        return subscription

    def stream(self) -> NotificationStream:
        stream = NotificationStream(self)
        self._add(stream)
        return stream

    def remove(self, listener: Subscription | NotificationStream) -> None:
        self._listeners.pop(listener, None)

    def publish(self, notification: Notification) -> None:
        for listener in list(self._listeners):
            listener.deliver(notification)

    def end(self) -> None:
        """The tunnel is over: iterators end when they are read empty."""
        self._ended = True
        for listener in list(self._listeners):
            listener.end()
        self._listeners.clear()

    def _add(self, listener: Subscription | NotificationStream) -> None:
        if self._ended:
            listener.end()
        elif len(self._listeners) >= MAX_LISTENERS:
            raise RuntimeError(f"{MAX_LISTENERS} listeners on one tunnel: cancel those no longer needed")
        else:
            self._listeners[listener] = None
