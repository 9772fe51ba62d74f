"""Redundancy on the DDT, FEC and header compression of one connection: agreement and decision to the user
plane."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from opentsm.client.notifications import CodingDecided
from opentsm.engine.redundancy import Applied, Coder
from opentsm.protocol.actions import SetCoding
from opentsm.wire.messages import PathQuality

if TYPE_CHECKING:
    from opentsm.client.connection import Connection

_log: Final = logging.getLogger(__name__)


class CodingControl:
    """What one connection sends and takes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._coder = Coder()
        self._applied = Applied()
        self._session: int | None = None

    def set(self, action: SetCoding) -> None:
        """Both sides have agreed anew, or the application has another wish."""
        self._coder.agree(_now(), action.takes, action.sends, action.coding)
        self._apply()

    def reported(self, reports: Iterable[PathQuality]) -> None:
        """The server's view of what we send."""
        self._coder.reported(_now(), reports)

    def path_gone(self) -> None:
        """The datagram tunnel has ended."""
        self._coder.path_gone()
        self.tick(_now())

    def tick(self, now: float) -> None:
        """Weigh what was reported."""
        if self._coder.decide(now).changed:
            _log.info("on the datagram tunnel: %s", self._coder.protection)
            self._apply()

    def numbers(self) -> Mapping[str, int]:
        """What the user plane's coding has done; empty without a session."""
        session = self._connection.plane_session
        if session is not None:
            with contextlib.suppress(KeyError):
                return self._connection.plane.core.coding_stats(session)
        return {}

    def _apply(self) -> None:
        """Tell the user plane, if that is news to it."""
        session, applied = self._connection.plane_session, self._coder.applied
        if session is None or (session, applied) == (self._session, self._applied):
            return
        before, self._session, self._applied = self._applied, session, applied
        with contextlib.suppress(KeyError):  # just closed
            self._connection.plane.core.set_coding(session, **dataclasses.asdict(applied))
        if (before.factor, before.fec, before.compress) != (applied.factor, applied.fec, applied.compress):
            self._connection.hub.publish(CodingDecided(self._coder.protection, applied.compress))


def _now() -> float:
    return asyncio.get_running_loop().time()
