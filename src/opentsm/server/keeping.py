"""What a server keeps of its sessions over its own end, and how the next process takes them up.

A session is written down when it is configured and after each resume, and struck out when it is over; the
store writes in a thread of its own, some milliseconds later. So a process that is killed loses what these
milliseconds brought, and that is safe:

* a session not written: its client is refused and asks afresh, as after a restart without a store;
* a generation not written: the one that is written allows for the next (``ServerSession.restored``);
* an end not written: the address rests for the persistence time, as if the client had been cut off.

A process that stops in good order keeps what it says goodbye to.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from opentsm.config.model import Settings
from opentsm.engine.registry import TooManyTunnels
from opentsm.errors import LocalProtocolError
from opentsm.server.auth import Identity
from opentsm.server.counters import Count
from opentsm.server.peer import Peer
from opentsm.store import SessionRow, SqliteStore
from opentsm.types import Transport, Tsid

if TYPE_CHECKING:
    from opentsm.server.hub import Hub

STORE_NAME: Final = "server.db"
RESUME_KEY: Final = "resume-key"

ALIVE_EVERY: Final = 10.0
"""Seconds between two marks that this process lives: by so much a session may be kept too long."""

RESTORE_TURN: Final = 256
"""Sessions taken up in one go, some fifty milliseconds, before the loop may do something else."""

_log: Final = structlog.get_logger("opentsm.server")


def store_path(settings: Settings, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where sessions are kept: as configured, else in the state directory of systemd, else nowhere."""
    if settings.server.store is not None:
        return settings.server.store
    folder = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(folder) / STORE_NAME if folder else None


class Keeping:
    """The sessions of a hub in a store.

    Args:
        hub: the clients.

    Attributes:
        restored: sessions of the process before that were taken up at the start.
    """

    def __init__(self, hub: Hub) -> None:
        self.restored = 0
        self._hub = hub
        self._store: SqliteStore | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    async def open(self, settings: Settings) -> None:
        """Open the store, if there is one, and take up the sessions in it. Before anybody is let in.

        Raises:
            ConfigError: the store cannot be used.
        """
        path = store_path(settings)
        if path is None:
            return
        self._store = await SqliteStore.open(path)
        self._hub.resume_key = await self._store.secret(RESUME_KEY)
        since = time.time() - settings.timers.tunnel_persistence_time - ALIVE_EVERY
        rows = await self._store.sessions(since)
        begun = time.monotonic()
        for number, row in enumerate(rows):
            self.restored += self._restore(row)
            if number % RESTORE_TURN == RESTORE_TURN - 1:
                await asyncio.sleep(0)
        if rows:
            took = round(time.monotonic() - begun, 3)
            _log.info("sessions taken up", sessions=self.restored, of=len(rows), seconds=took)
        self._mark()

    async def close(self) -> None:
        """Write what is waiting. May be called again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._store is not None:
            self._store.mark_alive(time.time())
            await self._store.close()

    def stop(self) -> None:
        """From now on sessions end because this process does: they stay in the store."""
        self._stopping = True

    def save(self, peer: Peer) -> None:
        """A session is configured, or has been resumed."""
        kept = peer.session.kept
        if self._store is None or kept is None or peer.identity is None:
            return
        self._store.save_session(
            SessionRow(
                tsid=kept.tsid,
                interface=peer.offer.name,
                transport=peer.transport.value,
                identity=peer.identity.name,
                method=peer.identity.method,
                attributes=tuple(peer.identity.attributes.items()),
                addresses=tuple(map(str, kept.lease.addresses)),
                outer=peer.outer,
                generation=kept.generation,
                proved=kept.proved,
            )
        )

    def forget(self, tsid: int) -> None:
        """A session is over."""
        if self._store is not None and not self._stopping:
            self._store.forget_session(tsid)

    def dropped(self) -> dict[str, int]:
        """Writes that were given up, by reason."""
        return {} if self._store is None else dict(self._store.dropped)

    def _mark(self) -> None:
        if self._store is not None:
            self._store.mark_alive(time.time())
        self._timer = self._hub.loop.call_later(ALIVE_EVERY, self._mark)

    def _restore(self, row: SessionRow) -> bool:
        """Take one session up; False if the configuration has no place for it any more."""
        offer = self._hub.offers.get(row.interface)
        transport = Transport(row.transport)
        if offer is None or transport not in {one.transport for one in offer.interface.listeners}:
            return self._give_up(row, "no such interface")
        identity = Identity(name=row.identity, method=row.method, attributes=dict(row.attributes))
        addresses = tuple(ip_address(text) for text in row.addresses)
        lease = offer.pools.lease_exact(self._hub.now(), addresses)
        if lease is None or not addresses:
            return self._give_up(row, "address not in the pools")
        try:
            peer = Peer.waiting(self._hub, offer, transport, identity, lease)
            peer.take_up(Tsid(row.tsid), (row.generation, row.proved), row.outer)
        except (TooManyTunnels, LocalProtocolError) as error:
            return self._give_up(row, str(error))
        return True

    def _give_up(self, row: SessionRow, reason: str) -> bool:
        self._hub.counts[Count.NOT_RESTORED] += 1
        _log.warning("session not taken up", identity=row.identity, inner=list(row.addresses), reason=reason)
        self.forget(row.tsid)
        return False
