"""The streams of one client beside its main one, joined to the user plane.

Which there may be is ``protocol.server_streams``'s to say; this carries it out for one peer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opentsm.protocol import actions as a
from opentsm.server.counters import Count
from opentsm.server.offers import PROBES_PER_TIMER
from opentsm.types import Path, Tsid
from opentsm.userplane._core import TunnelStats
from opentsm.wire.codec import encode

if TYPE_CHECKING:
    from opentsm.server.peer import Peer


class FurtherStreams:
    """Tunnels of one peer beside its main stream, by their TSID."""

    __slots__ = ("_peer", "_tunnels")

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._tunnels: dict[Tsid, int] = {}

    @property
    def tunnels(self) -> dict[Tsid, int]:
        """The user plane's ids."""
        return dict(self._tunnels)

    def stats(self) -> list[TunnelStats]:
        """The counters of each that is there."""
        found = []
        for tunnel in self._tunnels.values():
            with suppress(KeyError):  # gone, the event is on its way
                found.append(self._peer.hub.core.tunnel_stats(tunnel))
        return found

    def tsid_of(self, tunnel: int) -> Tsid | None:
        """Which of them a tunnel is; None: none."""
        return next((tsid for tsid, known in self._tunnels.items() if known == tunnel), None)

    def add(self, tsid: Tsid, tunnel: int) -> None:
        """A new stream whose join has been verified."""
        self._tunnels[tsid] = tunnel

    def ended(self, tsid: Tsid) -> None:
        """The outer connection is gone."""
        self._tunnels.pop(tsid, None)

    def close_all(self) -> None:
        """Whatever is left, when the peer goes."""
        self._peer.hub.forget_joins(self._peer)
        for tsid in tuple(self._tunnels):
            self._peer.hub.core.close(self._tunnels.pop(tsid), reason="session-closed")

    # -- actions ----------------------------------------------------------------------------------------

    def send(self, action: a.SendExtra) -> None:
        tunnel = self._tunnels.get(action.tsid)
        if tunnel is None:
            return
        hub = self._peer.hub
        hub.log_message(self._peer, Path.STREAM, "out", action.message)
        if not hub.core.send_control(tunnel, encode(action.message)):
            hub.counts[Count.CONTROL_NOT_SENT] += 1
            hub.core.close(tunnel, reason="timeout")

    def reserve(self, action: a.ReserveExtra) -> None:
        self._peer.hub.joins[action.tsid] = self._peer

    def unreserve(self, action: a.UnreserveExtra) -> None:
        self._peer.hub.joins.pop(action.tsid, None)

    def attach(self, action: a.AttachExtra) -> None:
        tunnel, offer = self._tunnels.get(action.tsid), self._peer.offer
        if tunnel is None:
            return
        core = self._peer.hub.core
        self._with(core.attach_extra, self._peer.session_id, tunnel, action.tsid)
        self._with(core.set_media_age, tunnel, max_ms=offer.media_age)
        self._with(core.set_idle, tunnel, idle_ms=offer.idle_stream)
        if offer.probe_stream:
            silence = offer.probe_stream * PROBES_PER_TIMER
            self._with(core.set_keepalive, tunnel, interval_ms=offer.probe_stream, silent_after_ms=silence)

    def use(self, action: a.UseExtra) -> None:
        tunnel = self._tunnels.get(action.tsid)
        if tunnel is not None:
            self._with(self._peer.hub.core.use_extra, self._peer.session_id, tunnel, action.used)

    def close(self, action: a.CloseExtra) -> None:
        tunnel = self._tunnels.pop(action.tsid, None)
        if tunnel is not None:
            self._peer.hub.core.close(tunnel, reason=action.reason)

    def set_nagle(self, on: bool) -> None:
        for tunnel in self._tunnels.values():
            with suppress(KeyError, OSError):
                self._peer.hub.core.set_nagle(tunnel, on)

    def _with(self, command: Callable[..., None], *args: Any, **options: Any) -> None:
        """A command about a tunnel that may have ended a moment ago; the event is on its way."""
        try:
            command(*args, **options)
        except (KeyError, OSError):
            self._peer.hub.counts[Count.ATTACH_TOO_LATE] += 1
