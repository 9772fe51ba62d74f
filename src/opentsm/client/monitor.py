"""What a connection does by the clock: probes of both paths, quality reports, the judgement of mode AUTO."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from opentsm.client.notifications import PathDecided, SpreadDecided
from opentsm.engine.judge import Judge, Reading, Receiver
from opentsm.engine.spreading import Spreading
from opentsm.engine.steering import Decision
from opentsm.protocol.actions import QualityReported
from opentsm.protocol.states import Client, ClientDdt
from opentsm.types import NO_REDUNDANCY, Path, PathMode
from opentsm.userplane.readings import reading

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

TRAIN: Final = 2.0
"""Seconds of a train of probes over a DDT that is new to mode AUTO, at the rate and size of media: no media
depends on what it has not shown. Enough of them for ``steering.ENOUGH``, with 20 % lost. Costs as much as two
seconds of one call, each way."""

TRAIN_PROBE: Final = 0.02
"""Seconds between them: the packets of a call."""

RESERVE_PROBE: Final = 0.1
"""Seconds between probes of a DDT that mode AUTO holds in reserve: the slow window of 10 s then has more than
``steering.ENOUGH`` of them. A fifth of a call's packets."""

MEDIA_PROBE: Final = 220
"""Bytes of a probe as large as a packet of G.711 in IPv6."""

JUDGE_INTERVAL: Final = 1.0
"""Seconds between two judgements of mode AUTO, and between its reports to the server, which judges the other
direction by them."""

REPORT_EVERY: Final = 2
"""Seconds between two reports where nobody judges by them: for the operator."""

_HEARD: Final = frozenset({ClientDdt.PROVING, ClientDdt.UP})


_log: Final = logging.getLogger(__name__)


class Monitor:
    """Probes, reports and judges for one connection.

    Args:
        keepalive: probe the stream at this interval instead of the server's, or None.

    Attributes:
        deciding: the decision of mode AUTO that is just being carried out.
    """

    def __init__(self, connection: Connection, *, keepalive: float | None) -> None:
        self.deciding: Decision | None = None
        self._connection = connection
        self._own_keepalive = keepalive
        self._stream_interval = 0.0
        self._judge: Judge | None = None
        self._receiver = Receiver()
        self._timer: asyncio.TimerHandle | None = None
        self._train: asyncio.TimerHandle | None = None
        self._trained: int | None = None
        self._turn = 0
        self._probed_for = (False, False)
        self._spreading: Spreading | None = None
        self._stale = 0

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
        auto = connection.bindings.in_mode(PathMode.AUTO)
        if bool(auto) != (self._judge is not None):
            self._judge = Judge(connection.path(auto[0])) if auto else None
        if (self._judge is not None, connection.bindings.any_media) != self._probed_for:
            self._probe_stream()
            if not auto and self._spreading is not None:  # nobody is left for whom it was decided
                self._spreading = Spreading()
                connection.apply_redundancy(NO_REDUNDANCY)
        if connection.session.ddt_state in _HEARD:
            self._probe_datagram()
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
        if path is Path.DATAGRAM:
            self._end_train()
            self._connection.coding.path_gone()
        if self._judge is not None:
            self._judge.died(path)

    def spread_automatically(self, automatic: bool) -> None:
        """Whether mode AUTO may put media on several streams, or the application has a wish of its own."""
        self._spreading = Spreading() if automatic else None

    def reported(self, event: QualityReported) -> None:
        """The server's word on what we send, and on where it now sends."""
        self._connection.coding.reported(event.reports)
        if self._judge is not None:
            now = asyncio.get_running_loop().time()
            self._judge.reported(now, event.reports)

    def stop(self) -> None:
        self._end_train()
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
        tunnel = self._connection.tunnel(Path.DATAGRAM)
        if self._judge is not None and tunnel is not None and tunnel != self._trained:
            self._trained = tunnel
            self._begin_train()
        if self._train is not None:
            self._set(Path.DATAGRAM, TRAIN_PROBE, DDT_SILENT_AFTER, MEDIA_PROBE)
        elif self._judge is not None:
            if self._judge.path is Path.STREAM:  # what speaks for it must be like media
                self._set(Path.DATAGRAM, RESERVE_PROBE, DDT_SILENT_AFTER, MEDIA_PROBE)
            else:
                self._set(Path.DATAGRAM, DDT_PROBE, DDT_SILENT_AFTER)
        elif self._connection.bindings.in_mode(PathMode.DATAGRAM):
            self._set(Path.DATAGRAM, DDT_PROBE, DDT_SILENT_AFTER)
        else:
            self._set(Path.DATAGRAM, DDT_STANDBY_PROBE, DDT_STANDBY_SILENT_AFTER)

    def _begin_train(self) -> None:
        if self._train is not None:
            self._train.cancel()
        self._train = asyncio.get_running_loop().call_later(TRAIN, self._train_over)

    def _train_over(self) -> None:
        """What it has shown is reported at once, and weighed when the server's answer is here."""
        self._train = None
        self._probe_datagram()
        self._report(asyncio.get_running_loop().time())

    def _end_train(self) -> None:
        if self._train is not None:
            self._train.cancel()
            self._train = None

    def _set(self, path: Path, interval: float, silent_after: float, size: int = 0) -> None:
        tunnel = self._connection.tunnel(path)
        if tunnel is not None:
            with contextlib.suppress(KeyError):  # just closed; the event is on its way
                self._connection.plane.core.set_keepalive(
                    tunnel,
                    interval_ms=round(interval * 1000),
                    silent_after_ms=round(silent_after * 1000),
                    size=size,
                )

    # -- once a second ------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(JUDGE_INTERVAL, self._tick)

    def _tick(self) -> None:
        self._schedule()
        now = asyncio.get_running_loop().time()
        self._turn += 1
        if self._judge is not None:
            self._measure(self._judge, now)
            self._decide(self._judge, now)
            self._spread(self._judge, now)
        self._connection.coding.tick(now)
        if self._judge is None and self._turn % REPORT_EVERY == 0:
            self._report(now)

    def _measure(self, judge: Judge, now: float) -> None:
        if (found := self._read(Path.STREAM)) is not None:
            judge.stream_read(now, found)
        if (found := self._read(Path.DATAGRAM)) is not None:
            judge.datagram_read(now, found)

    def _read(self, path: Path) -> Reading | None:
        session = self._connection.session
        lives = session.state is Client.ACTIVE if path is Path.STREAM else session.ddt_state in _HEARD
        stats = self._connection.tunnel_stats(path) if lives else None
        return None if stats is None else reading(path, stats)

    def _decide(self, judge: Judge, now: float) -> None:
        decision = judge.decide(now)
        self.deciding = decision if decision.moved else None
        for flow in self._connection.bindings.in_mode(PathMode.AUTO):
            self._connection.use_path(flow, decision.path)
        self.deciding = None
        self._connection.hub.publish(PathDecided(decision))
        if decision.moved:
            self._probe_datagram()
        self._report(now, decision)

    def _spread(self, judge: Judge, now: float) -> None:
        """Media on several streams, while there is no better way for it."""
        if self._spreading is None:
            return
        connection = self._connection
        stats = connection.tunnel_stats(Path.STREAM)
        stale, self._stale = self._stale, 0 if stats is None else stats.tx_dropped
        decision = self._spreading.decide(
            now,
            judge.scores(now)[0],
            on_datagram=judge.path is Path.DATAGRAM and connection.session.ddt_state is ClientDdt.UP,
            backed_up=self._stale > stale,
        )
        if decision.moved:
            _log.info("%s", decision)
            connection.apply_redundancy(decision.redundancy)
            connection.hub.publish(SpreadDecided(decision))

    def _report(self, now: float, decision: Decision | None = None) -> None:
        reports = []
        for path in Path:
            found = self._read(path)
            if found is None:
                self._receiver.pause(path)
            elif (report := self._receiver.report(now, path, found)) is not None:
                reports.append(report)
        # A stream that is stuck carries no report either.
        stuck = decision is not None and decision.stream is not None and decision.stream.dead
        path = Path.DATAGRAM if stuck and self._connection.session.ddt_state in _HEARD else Path.STREAM
        told = decision.told() if decision is not None and decision.moved else None
        if reports:
            self._connection.send_quality(tuple(reports), now, decision=told, path=path)
