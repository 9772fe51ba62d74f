"""Notifications as the patent's text has them: a kind, a callback, an opaque value, and a data structure.

Callbacks run in a thread of their own, one after the other, so that they may use every ``tsc_`` call.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from opentsm.client import notifications as n

tsc_notification_ddt: Final = 1
"""The DDT: available, enabled, and for which socket."""

tsc_notification_tunnel: Final = 2
"""The tunnel: up, lost, resumed, terminated."""

tsc_notification_pair_missing: Final = 3
"""The server has no datagram half of ours."""

MAX_WAITING: Final = 4096
"""Callbacks waiting for their thread: one that never returns must not fill the memory."""

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class tsc_notification_data:  # the patent's name
    """What a callback gets.

    Attributes:
        type: the kind it was enabled for. event: the stable name of what happened (``ddt-enabled``, ...).
        available: DDT is an assigned service of the interface. enabled: the socket's packets go by the DDT.
        socket: descriptor of the socket this is about, or -1.
        opaque: the value given to ``tsc_notification_enable``. reason: why, where there is a reason.
    """

    type: int
    event: str
    available: bool = False
    enabled: bool = False
    socket: int = -1
    opaque: Any = None
    reason: str = ""


TscCallback = Callable[[tsc_notification_data], None]

KINDS: Final[dict[int, tuple[type[n.Notification], ...]]] = {
    tsc_notification_ddt: (n.DdtAvailable, n.DdtEnabled, n.DdtDisabled),
    tsc_notification_tunnel: (n.TunnelUp, n.TunnelLost, n.TunnelResumed, n.TunnelTerminated),
    tsc_notification_pair_missing: (n.PairMissing,),
}


def data_of(
    kind: int, notification: n.Notification, opaque: Any, descriptor: Callable[[object], int]
) -> list[tsc_notification_data]:
    """One notification as one or, for several sockets, several data structures."""
    event = notification.kind
    if isinstance(notification, n.DdtAvailable):
        return [tsc_notification_data(kind, event, available=notification.available, opaque=opaque)]
    if isinstance(notification, n.DdtEnabled | n.DdtDisabled):
        on = isinstance(notification, n.DdtEnabled)
        reason = getattr(notification, "reason", "")
        return [
            tsc_notification_data(kind, event, True, on, descriptor(socket), opaque, reason)
            for socket in notification.sockets
        ]
    return [tsc_notification_data(kind, event, opaque=opaque, reason=getattr(notification, "reason", ""))]


class CallbackThread:
    """Runs callbacks in the order they were put.

    Attributes:
        dropped: callbacks given up because MAX_WAITING were waiting.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._queue: queue.Queue[tuple[TscCallback, tsc_notification_data] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="tsc-callbacks", daemon=True)
        self._thread.start()

    def put(self, callback: TscCallback, data: tsc_notification_data) -> None:
        try:
            self._queue.put_nowait((callback, data))
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """Run what waits, then end. A callback may itself ask for that."""
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            callback, data = entry
            try:
                callback(data)
            except Exception:  # the program's mistake; the next callback runs all the same
                _log.exception("the callback for %s failed", data.event)
