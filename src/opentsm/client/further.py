"""The streams of a client beside its main one, joined to the user plane: opened, attached, watched, closed.

Which there shall be is ``protocol.client_streams``'s to say; this carries it out for one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from opentsm.errors import RemoteProtocolError, TunnelError
from opentsm.protocol import actions as a
from opentsm.types import Path, Tsid
from opentsm.userplane._core import ControlMessage, PathSilent, TunnelClosed, TunnelStats
from opentsm.userplane.plane import TunnelEvent
from opentsm.wire.codec import decode_untrusted, encode

if TYPE_CHECKING:
    from opentsm.client.connection import Connection
    from opentsm.client.dial import Dialled

EXTRA_PROBE: Final = 5.0
"""Seconds between probes of a further stream: cheap, and three of them within EXTRA_SILENT_AFTER."""

EXTRA_SILENT_AFTER: Final = 15.0
"""A further stream that answers nothing for this long is given up and made anew, as the main one would be."""

_log: Final = logging.getLogger(__name__)


class FurtherStreams:
    """Tunnels of one connection beside its main stream, by their TSID."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tunnels: dict[Tsid, int] = {}

    @property
    def tunnels(self) -> dict[Tsid, int]:
        """The user plane's ids."""
        return dict(self._tunnels)

    def stats(self) -> list[TunnelStats]:
        """The counters of each that is there."""
        found = []
        for tunnel in self._tunnels.values():
            with contextlib.suppress(KeyError):  # gone, the event is on its way
                found.append(self._connection.plane.core.tunnel_stats(tunnel))
        return found

    def set_nagle(self, on: bool) -> None:
        for tunnel in self._tunnels.values():
            self._with(self._connection.plane.core.set_nagle, tunnel, on)

    def close_all(self, reason: str) -> None:
        for tsid in tuple(self._tunnels):
            self._drop(tsid, reason)

    # -- actions ----------------------------------------------------------------------------------------

    def send(self, action: a.SendExtra) -> None:
        connection = self._connection
        connection.message_log.log("sent", Path.STREAM, action.message)
        tunnel = self._tunnels.get(action.tsid)
        if tunnel is None or not connection.plane.core.send_control(tunnel, encode(action.message)):
            connection.counts["control-not-queued"] += 1

    def open(self, action: a.OpenExtra) -> None:
        self._connection.spawn(_task(action.tsid), self._dial(action.tsid))

    async def _dial(self, tsid: Tsid) -> None:
        """To the very address the main stream is at: another of the same name may be another server."""
        connection = self._connection
        try:
            dialled = await connection.dial_again()
        except TunnelError as error:
            _log.info("no further stream: %s", error)
            connection.session.streams.lost(tsid, "unreachable", asyncio.get_running_loop().time())
        else:
            self._take(tsid, dialled)
        connection.settle()

    def _take(self, tsid: Tsid, dialled: Dialled) -> None:
        tunnel = dialled.opening.tunnel
        self._tunnels[tsid] = tunnel
        now = asyncio.get_running_loop().time()
        if not self._connection.session.streams.ready(tsid, now, dialled.binding):
            del self._tunnels[tsid]
            dialled.opening.abandon()
            return
        self._connection.settle()
        dialled.opening.adopt(functools.partial(self._on_event, tsid))

    def attach(self, action: a.AttachExtra) -> None:
        session = self._connection.plane_session
        tunnel = self._tunnels.get(action.tsid)
        if tunnel is not None and session is not None:
            self._with(self._connection.plane.core.attach_extra, session, tunnel, action.tsid)

    def use(self, action: a.UseExtra) -> None:
        core, session = self._connection.plane.core, self._connection.plane_session
        tunnel = self._tunnels.get(action.tsid)
        if tunnel is None or session is None:
            return
        self._with(core.use_extra, session, tunnel, action.used)
        self._connection.age_media(tunnel)
        if action.used:
            self._with(
                functools.partial(core.set_keepalive, tunnel),
                interval_ms=round(EXTRA_PROBE * 1000),
                silent_after_ms=round(EXTRA_SILENT_AFTER * 1000),
            )

    def close(self, action: a.CloseExtra) -> None:
        self._connection.stop_task(_task(action.tsid))
        self._drop(action.tsid, action.reason)

    # -- events -----------------------------------------------------------------------------------------

    def _on_event(self, tsid: Tsid, event: TunnelEvent) -> None:
        if self._tunnels.get(tsid) != event.tunnel:
            return
        connection = self._connection
        now = asyncio.get_running_loop().time()
        if isinstance(event, ControlMessage):
            self._receive(tsid, event.data, now)
        elif isinstance(event, TunnelClosed):
            del self._tunnels[tsid]
            _log.info("further stream closed: %s %s", event.reason, event.detail)
            connection.session.streams.lost(tsid, event.reason, now)
        elif isinstance(event, PathSilent):
            connection.session.streams.lost(tsid, "path-silent", now)
        connection.settle()

    def _receive(self, tsid: Tsid, data: bytes, now: float) -> None:
        try:
            message = decode_untrusted(data)
        except RemoteProtocolError as error:
            self._connection.counts[f"malformed-{error.reason}"] += 1
            return
        self._connection.message_log.log("received", Path.STREAM, message)
        self._connection.session.streams.receive(tsid, message, now)

    def _drop(self, tsid: Tsid, reason: str) -> None:
        tunnel = self._tunnels.pop(tsid, None)
        if tunnel is not None:
            self._connection.plane.unwatch_tunnel(tunnel)
            self._connection.plane.core.close(tunnel, reason=reason)

    @staticmethod
    def _with(command: Callable[..., None], *args: Any, **options: Any) -> None:
        """A command about a tunnel that may have ended a moment ago; the event is on its way."""
        with contextlib.suppress(KeyError, OSError):
            command(*args, **options)


def _task(tsid: Tsid) -> str:
    return f"open-extra-{tsid:016x}"
