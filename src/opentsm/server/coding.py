"""Redundancy on the DDT, FEC and header compression towards one client."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import structlog

from opentsm.engine.redundancy import Applied, Coder
from opentsm.protocol.actions import SetCoding
from opentsm.userplane._core import UserPlane
from opentsm.wire.messages import PathQuality

_log: Final = structlog.get_logger("opentsm.server")


class PeerCoding:
    """What the server sends to, and takes from, one client.

    The client's reports are the clock: with each one the factor is weighed, and it gets ours in return
    (``judging``), which is how it judges its own direction.
    """

    __slots__ = ("_applied", "_coder", "_core", "_session")

    def __init__(self, core: UserPlane, session: int) -> None:
        self._core = core
        self._session = session
        self._coder = Coder()
        self._applied = Applied()

    def set(self, action: SetCoding, now: float) -> None:
        """The client has asked, and been granted."""
        self._coder.agree(now, action.takes, action.sends, action.coding)
        self._apply()

    def path_gone(self, now: float) -> None:
        """The client's DDT has ended."""
        self._coder.path_gone()
        self._coder.decide(now)
        self._apply()

    def reported(self, reports: Iterable[PathQuality], now: float) -> bool:
        """The client's view of what we send; whether it needs ours of what it sends in return."""
        if not self._coder.agreed:
            return False
        self._coder.reported(now, reports)
        if self._coder.decide(now).changed:
            _log.info("towards a client", session=self._session, coding=str(self._coder.protection))
            self._apply()
        return True

    def describe(self) -> dict[str, object]:
        """For the status of one tunnel."""
        numbers: dict[str, object] = {"why": self._coder.protection.reason.value}
        with suppress(KeyError):
            numbers.update(self._core.coding_stats(self._session))
        return numbers

    def _apply(self) -> None:
        applied = self._coder.applied
        if applied != self._applied:
            self._applied = applied
            with suppress(KeyError):  # just closed
                self._core.set_coding(self._session, **dataclasses.asdict(applied))
