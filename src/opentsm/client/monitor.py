"""What a connection does by the clock: probes of both paths, quality reports, the judgement of mode AUTO."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from opentsm.client.notifications import PathDecided
from opentsm.client.quality import Counted, PathJudge, quality_report
from opentsm.protocol.states import Client, ClientDdt
from opentsm.types import Path, PathMode
from opentsm.wire.messages import PathQuality

if TYPE_CHECKING:
    from opentsm.client.connection import Connection

DDT_PROBE: Final = 0.2
"""Seconds between probes of a DDT that carries media: ten packet times. Five probes of 60 bytes a second are
1 % of a G.711 call."""

DDT_SILENT_AFTER: Final = 0.6
"""A DDT that answers nothing for this long is in doubt, and its media goes to the stream: three probes in a
row, so that single losses do not count. With the probe interval, the media is back within 0.8 s."""

DDT_STANDBY_PROBE: Final = 5.0
"""The same for a DDT that carries nothing: enough to keep the NAT binding (RFC 4787 REQ-5: two minutes,
though 30 s are seen), cheap on a phone's battery."""

DDT_STANDBY_SILENT_AFTER: Final = 10.0
"""Two probes of a standby DDT."""

STREAM_SILENT_AFTER: Final = 15.0
"""A stream that answers nothing for this long is given up: TCP has sent its segment again five times by then,
and a new connection is quicker than the next time."""

STREAM_CALL_PROBE: Final = 1.0
"""Seconds between probes of the stream while there is media: a call whose signalling is cut off cannot be put
on hold, or ended."""

STREAM_CALL_SILENT_AFTER: Final = 3.0
"""A stream that answers nothing for this long during a call is given up, unless its round trip is so long
that STREAM_SILENT_ROUND_TRIPS of them take longer. TCP has sent its segment again three times by then."""

STREAM_SILENT_ROUND_TRIPS: Final = 8

STREAM_AUTO_PROBE: Final = 1.0
"""Seconds between probes of the stream while mode AUTO weighs it: one sample a judgement."""

JUDGE_INTERVAL: Final = 1.0
"""Seconds between two judgements of mode AUTO."""

REPORT_EVERY: Final = 2
"""Judgement intervals between two quality reports to the server."""

_HEARD: Final = frozenset({ClientDdt.PROVING, ClientDdt.UP})


class Monitor:
    """Probes, reports and judges for one connection.

    Args:
        keepalive: probe the stream at this interval instead of the server's, or None.
    """

    def __init__(self, connection: Connection, *, keepalive: float | None) -> None:
        self._connection = connection
        self._own_keepalive = keepalive
        self._stream_interval = 0.0
        self._judge: PathJudge | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0
        self._probed_for = (False, False)
        self._reported: dict[Path, Counted] = {}

    def keepalive(self, path: Path, seconds: float) -> None:
        """The server's interval for this path. A DDT is probed by our own rule."""
        if path is Path.STREAM:
            self._stream_interval = seconds if self._own_keepalive is None else self._own_keepalive
            self._probe_stream()

    def flows_changed(self) -> None:
        """Modes, rows or the DDT have changed: probe and judge as they need it."""
        connection = self._connection
        if connection.closed.done():
            return
        if connection.session.ddt_state in _HEARD:
            self._probe_datagram()
        auto = connection.bindings.in_mode(PathMode.AUTO)
        if bool(auto) != (self._judge is not None):
            self._judge = PathJudge(connection.path(auto[0])) if auto else None
        if (self._judge is not None, connection.bindings.any_media) != self._probed_for:
            self._probe_stream()
        busy = bool(auto) or connection.session.ddt_state in (*_HEARD, ClientDdt.SILENT)
        if busy and self._timer is None:
            self._schedule()
        elif not busy:
            self.stop()

    @property
    def auto_path(self) -> Path | None:
        """Where flows in mode AUTO are now; None while there are none."""
        return None if self._judge is None else self._judge.path

    def lost(self, path: Path) -> None:
        """The tunnel of this path is gone or silent."""
        self._reported.pop(path, None)
        if path is Path.DATAGRAM:
            self._connection.coding.path_gone()
        if self._judge is not None:
            self._judge.died(path)

    def reported(self, reports: Iterable[PathQuality]) -> None:
        self._connection.coding.reported(reports)
        if self._judge is not None:
            self._judge.reported(asyncio.get_running_loop().time(), reports)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- probing ----------------------------------------------------------------------------------------

    def _probe_stream(self) -> None:
        media = self._connection.bindings.any_media
        self._probed_for = (self._judge is not None, media)
        interval = STREAM_AUTO_PROBE if self._judge is not None else self._stream_interval
        silent_after = STREAM_SILENT_AFTER if interval else 0.0
        if media and self._own_keepalive != 0:
            interval = min(interval or STREAM_CALL_PROBE, STREAM_CALL_PROBE)
            silent_after = min(self._patience_in_call(), STREAM_SILENT_AFTER)
        self._set(Path.STREAM, interval, silent_after)

    def _patience_in_call(self) -> float:
        stats = self._connection.tunnel_stats(Path.STREAM)
        round_trip = max(stats.rtt_us, stats.tcp_rtt_us) / 1e6 if stats is not None else 0.0
        return max(STREAM_CALL_SILENT_AFTER, STREAM_SILENT_ROUND_TRIPS * round_trip)

    def _probe_datagram(self) -> None:
        in_use = any(self._connection.bindings.in_mode(mode) for mode in (PathMode.DATAGRAM, PathMode.AUTO))
        if in_use:
            self._set(Path.DATAGRAM, DDT_PROBE, DDT_SILENT_AFTER)
        else:
            self._set(Path.DATAGRAM, DDT_STANDBY_PROBE, DDT_STANDBY_SILENT_AFTER)

    def _set(self, path: Path, interval: float, silent_after: float) -> None:
        tunnel = self._connection.tunnel(path)
        if tunnel is not None:
            with contextlib.suppress(KeyError):  # just closed; the event is on its way
                self._connection.plane.core.set_keepalive(
                    tunnel, interval_ms=round(interval * 1000), silent_after_ms=round(silent_after * 1000)
                )

    # -- once a second ------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(JUDGE_INTERVAL, self._tick)

    def _tick(self) -> None:
        self._schedule()
        now = asyncio.get_running_loop().time()
        if self._judge is not None:
            self._measure(self._judge, now)
            self._decide(self._judge, now)
        self._connection.coding.tick(now)
        self._turn += 1
        if self._turn % REPORT_EVERY == 0:
            self._report(now)

    def _measure(self, judge: PathJudge, now: float) -> None:
        connection = self._connection
        for path, lives in (
            (Path.STREAM, connection.session.state is Client.ACTIVE),
            (Path.DATAGRAM, connection.session.ddt_state in _HEARD),
        ):
            stats = connection.tunnel_stats(path) if lives else None
            if stats is not None:
                judge.measured(now, path, stats)

    def _decide(self, judge: PathJudge, now: float) -> None:
        decision = judge.decide(now)
        for flow in self._connection.bindings.in_mode(PathMode.AUTO):
            self._connection.use_path(flow, decision.path)
        self._connection.hub.publish(PathDecided(decision))

    def _report(self, now: float) -> None:
        reports = []
        for path in Path:
            stats = self._connection.tunnel_stats(path)
            if stats is None:
                continue
            before = self._reported.get(path)
            self._reported[path] = Counted.of(path, stats)
            if before is not None:
                reports.append(quality_report(path, stats, before, JUDGE_INTERVAL * REPORT_EVERY))
        if reports:
            self._connection.send_quality(tuple(reports), now)
