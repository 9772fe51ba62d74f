"""The circuit breakers of one connection: readings in, valves of the user plane out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from opentsm.client.notifications import BreakerMoved
from opentsm.engine.breaker import INTERVAL, Breaker, BreakerDecision, ReportedFlow, StreamOutflow
from opentsm.types import Path
from opentsm.wire.messages import PathQuality

if TYPE_CHECKING:
    from opentsm.client.connection import Connection

_log: Final = logging.getLogger(__name__)


class Breakers:
    """One for each path of what we send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._breakers = {path: Breaker() for path in Path}
        self._outflow = StreamOutflow()
        self._reported = ReportedFlow()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The tunnel is up: look at its stream from time to time."""
        if self._timer is None:
            self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lost(self, path: Path) -> None:
        """The tunnel of this path is gone; the next one is judged by itself."""
        if path is Path.STREAM:
            self._outflow = StreamOutflow()
        else:
            self._reported = ReportedFlow()
        if self._breakers[path].reset():
            self._set(path, BreakerDecision(open=False, moved=True, sent=0, arrived=0))

    def reported(self, reports: Iterable[PathQuality]) -> None:
        """The server's word on what it receives."""
        for report in reports:
            stats = self._connection.tunnel_stats(report.path) if report.path is Path.DATAGRAM else None
            if stats is not None:
                self._look(Path.DATAGRAM, self._reported.since(stats.tx_records, report.received))

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._tick)

    def _tick(self) -> None:
        self._schedule()
        stats = self._connection.tunnel_stats(Path.STREAM)
        if stats is not None:
            others = self._connection.further.stats()
            records = stats.tx_records + sum(other.tx_records for other in others)
            dropped = 0 if others else stats.tx_dropped
            self._look(Path.STREAM, self._outflow.since(stats.tx_packets, records, dropped))

    def _look(self, path: Path, seen: tuple[int, int] | None) -> None:
        if seen is None:
            return
        decision = self._breakers[path].look(asyncio.get_running_loop().time(), *seen)
        if decision.moved:
            self._set(path, decision)

    def _set(self, path: Path, decision: BreakerDecision) -> None:
        connection = self._connection
        if connection.plane_session is not None:
            with contextlib.suppress(KeyError):
                connection.plane.core.set_breaker(
                    connection.plane_session, path is Path.DATAGRAM, round(decision.every * 1000)
                )
        _log.log(logging.WARNING if decision.open else logging.INFO, "%s: %s", path.name.lower(), decision)
        connection.hub.publish(BreakerMoved(path, decision))
