"""Redundancy on the DDT, FEC and header compression towards one client."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from opentsm.engine.redundancy import Applied, Coder
from opentsm.protocol.actions import SetCoding
from opentsm.types import Path
from opentsm.userplane._core import UserPlane
from opentsm.wire.messages import PathQuality

_log: Final = structlog.get_logger("opentsm.server")


@dataclass(slots=True)
class _Reading:
    """The DDT's counters when we last reported of them."""

    tunnel: int
    at: float
    packets: int
    lost: int


class PeerCoding:
    """What the server sends to, and takes from, one client.

    The client's reports are the clock: with each one the factor is weighed, and it gets ours in return, which
    is how it judges its own direction.
    """

    __slots__ = ("_applied", "_coder", "_core", "_reading", "_session")

    def __init__(self, core: UserPlane, session: int) -> None:
        self._core = core
        self._session = session
        self._coder = Coder()
        self._applied = Applied()
        self._reading: _Reading | None = None

    def set(self, action: SetCoding, now: float) -> None:
        """The client has asked, and been granted."""
        self._coder.agree(now, action.takes, action.sends, action.coding)
        self._apply()

    def path_gone(self, now: float) -> None:
        """The client's DDT has ended."""
        self._reading = None
        self._coder.path_gone()
        self._coder.decide(now)
        self._apply()

    def reported(
        self, reports: Iterable[PathQuality], tunnel: int | None, now: float
    ) -> tuple[PathQuality, ...]:
        """The client's view of what we send; returns ours of what it sends, to be sent in return."""
        if not self._coder.agreed:
            return ()
        self._coder.reported(now, reports)
        if self._coder.decide(now).changed:
            _log.info("towards a client", session=self._session, coding=str(self._coder.protection))
            self._apply()
        return () if tunnel is None else self._report(tunnel, now)

    def describe(self) -> dict[str, object]:
        """For the status of one tunnel."""
        numbers: dict[str, object] = {"why": self._coder.protection.reason.value}
        with suppress(KeyError):
            numbers.update(self._core.coding_stats(self._session))
        return numbers

    def _report(self, tunnel: int, now: float) -> tuple[PathQuality, ...]:
        try:
            stats = self._core.tunnel_stats(tunnel)
        except KeyError:  # just closed
            return ()
        before, self._reading = self._reading, _Reading(tunnel, now, stats.rx_packets, stats.rx_lost)
        if before is None or before.tunnel != tunnel:
            return ()
        report = PathQuality(
            path=Path.DATAGRAM,
            interval_ms=round((now - before.at) * 1000),
            received=max(0, stats.rx_packets - before.packets),
            lost=max(0, stats.rx_lost - before.lost),
            jitter_us=stats.rtt_var_us,
            delay_us=stats.rtt_us,
        )
        return (report,)

    def _apply(self) -> None:
        applied = self._coder.applied
        if applied != self._applied:
            self._applied = applied
            with suppress(KeyError):  # just closed
                self._core.set_coding(self._session, **dataclasses.asdict(applied))
