"""All clients of a server, and what they share: user plane, leases, authentication, registry, logs."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from opentsm.config.model import LogLevel, Settings
from opentsm.engine.addresses import Family
from opentsm.engine.pools import Lease
from opentsm.engine.registry import Record, Registry
from opentsm.errors import RemoteProtocolError
from opentsm.protocol import actions as a
from opentsm.protocol.resume import resume_secret
from opentsm.protocol.server import Entropy, Kept, peek_resume
from opentsm.protocol.server_streams import peek_join
from opentsm.protocol.states import Server as State
from opentsm.server.auth import Identity
from opentsm.server.counters import MALFORMED, Count
from opentsm.server.datalog import DataLog
from opentsm.server.door import Door
from opentsm.server.judging import Switch
from opentsm.server.keeping import Keeping
from opentsm.server.leases import AddressTaken, Leases, lease
from opentsm.server.logs import wanted
from opentsm.server.offers import STREAM_PROBE, Offer
from opentsm.server.peer import Peer
from opentsm.types import UNASSIGNED_TSID, Code, IpAddress, Path, Transport, Tsid
from opentsm.userplane import Plane
from opentsm.userplane._core import StreamReady
from opentsm.wire.log import log_record
from opentsm.wire.messages import Message

MAX_UNCONFIGURED: Final = 8192
"""Streams that may be on their way to a configuration at once: at 1,500 set-ups a second some five seconds'
worth. Each lives at most CONFIGURATION_DEADLINE and costs a few kilobytes."""

MAX_UNCONFIGURED_PER_SOURCE: Final = 1024
"""The same for one source address, so that one stranger cannot take all of them; an office of a thousand
phones behind one NAT may come back together."""

DEAD_AFTER: Final = 2 * STREAM_PROBE * 1000
"""Milliseconds of silence after which a fixed address may pass to a new tunnel of the same account: two
probes of the old client have not come."""

REFUSALS_LOGGED: Final = 20
"""Lines about refused clients in one REFUSAL_WINDOW; the rest is only counted, so that an attack does not
fill the disk."""

REFUSAL_WINDOW: Final = 10.0

_log: Final = structlog.get_logger("opentsm.server")


class Hub:
    """Every client, by every key.

    Args:
        plane: the user plane.

    Attributes:
        counts: the control plane's own named drops and troubles.
        refusals: clients refused, by interface and reason.
        unconfigured: clients that have no tunnel yet.
        persistent, paired: clients without a stream, and clients with a datagram tunnel, by interface.
        joins: who has reserved which further stream.
        offers: what each interface gives a client that comes now.
        on_left: told of each client that had a tunnel and is gone for good.
        entropy: where sessions' unguessable values come from.
        epoch: number of this process. resume_key: from which the resume secrets are made.
        keeping: what outlives this process.
    """

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.core = plane.core
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.door = Door()
        self.leases = Leases()
        self.registry: Registry[Peer] = Registry({})
        self.joins: dict[Tsid, Peer] = {}
        self.offers: dict[str, Offer] = {}
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.unconfigured: set[Peer] = set()
        self.persistent: defaultdict[str, set[Peer]] = defaultdict(set)
        self.paired: defaultdict[str, set[Peer]] = defaultdict(set)
        self.data_log: DataLog | None = None
        self.logged: frozenset[str] = frozenset()
        self.on_left: Callable[[Record[Peer]], None] = lambda record: None
        self.epoch = secrets.randbits(64)
        self.resume_key = secrets.token_bytes(32)
        self.entropy = Entropy(tsid=self.new_tsid, secret=self.resume_secret)
        self.keeping = Keeping(self)
        self._sources: Counter[str] = Counter()
        self._session_ids = 0
        self._refusal_lines: deque[float] = deque(maxlen=REFUSALS_LOGGED)
        self._empty = asyncio.Event()
        self._empty.set()

    # -- arrivals ---------------------------------------------------------------------------------------

    def accept(self, interface: str, transport: Transport, ready: StreamReady) -> None:
        """A client has opened a stream."""
        offer = self.offers.get(interface)
        source = ready.peer[0]
        crowded = self._sources[source] >= MAX_UNCONFIGURED_PER_SOURCE
        if offer is None or crowded or len(self.unconfigured) >= MAX_UNCONFIGURED:
            self.counts[Count.NO_INTERFACE if offer is None else Count.UNCONFIGURED_FULL] += 1
            self.core.close(ready.tunnel)
            return
        peer = Peer(self, offer, transport, ready)
        self.unconfigured.add(peer)
        self._sources[source] += 1
        self._empty.clear()
        self.plane.watch_tunnel(ready.tunnel, peer.on_event)
        peer.begin(ready)

    def hand_over(self, fresh: Peer, message: Message) -> bool:
        """Give the stream of ``fresh`` to the session that its first message proves to be.

        The session must be of the same interface and transport: what began encrypted stays so.
        """
        tsid = peek_resume(message)
        record = None if tsid is None else self.registry.by_stream_tsid(tsid)
        if record is None:
            return False
        old = record.value
        if (old.offer.name, old.transport) != (fresh.offer.name, fresh.transport):
            return False
        if not old.session.verify_resume(message, fresh.session.binding):
            return False
        old.take_stream(fresh, message)
        fresh.hand_over()
        return True

    def join(self, fresh: Peer, message: Message) -> bool:
        """Give the stream of ``fresh`` to the session that has reserved it, as one more of its streams.

        As with a resume, the session must be of the same interface and transport.
        """
        tsid = peek_join(message)
        old = None if tsid is None else self.joins.get(tsid)
        if old is None or (old.offer.name, old.transport) != (fresh.offer.name, fresh.transport):
            return False
        if not old.session.verify_join(message, fresh.session.binding):
            return False
        old.take_further(fresh, message)
        fresh.hand_over()
        return True

    def forget_joins(self, peer: Peer) -> None:
        """This peer reserves nothing any more."""
        for tsid in [tsid for tsid in peer.session.streams.states if self.joins.get(tsid) is peer]:
            del self.joins[tsid]

    def entered(self, peer: Peer, session: int, event: a.Configured) -> None:
        """A client has its tunnel."""
        self._leave_unconfigured(peer)
        self.registry.add(
            session,
            interface=peer.offer.name,
            stream_tsid=event.tsid,
            addresses=event.lease.addresses,
            value=peer,
        )
        self.keeping.save(peer)
        method = None if peer.identity is None else peer.identity.method
        if wanted(LogLevel.INFO):
            _log.info("tunnel up", **peer.describe(), transport=peer.transport.value, method=method)

    def taken_up(self, peer: Peer, session: int, kept: Kept) -> None:
        """A client of an earlier process has its session again, and may come back to it.

        Raises:
            TooManyTunnels: its interface is full. LocalProtocolError: another has one of its keys.
        """
        self.registry.add(
            session,
            interface=peer.offer.name,
            stream_tsid=kept.tsid,
            addresses=kept.lease.addresses,
            value=peer,
        )
        self.persistent[peer.offer.name].add(peer)
        self._empty.clear()

    def left(self, peer: Peer) -> None:
        """A client is gone."""
        self._leave_unconfigured(peer)
        self.persistent[peer.offer.name].discard(peer)
        self.paired[peer.offer.name].discard(peer)
        if peer.session_id is not None and peer.session_id in self.registry:
            record = self.registry.remove(peer.session_id)
            self.keeping.forget(record.stream_tsid)
            self.on_left(record)
        self._check_empty()

    def _leave_unconfigured(self, peer: Peer) -> None:
        if peer in self.unconfigured:
            self.unconfigured.remove(peer)
            source = peer.outer[0]
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]

    def _check_empty(self) -> None:
        if not self.unconfigured and not len(self.registry):
            self._empty.set()

    async def drained(self) -> None:
        """Wait until there is no client."""
        await self._empty.wait()

    def peers(self) -> Iterable[Peer]:
        """Every client. For the end of the process and for changed pools only: it walks everything."""
        yield from [*self.unconfigured, *(record.value for record in self.registry)]

    def held_addresses(self) -> Iterable[IpAddress]:
        """Inner addresses of all living sessions, found as they are asked for."""
        return (address for peer in self.peers() for address in peer.addresses)

    def moved(self) -> tuple[int, int]:
        """Clients that have ever gone, and that have ever come, with and without a tunnel."""
        numbers = self.registry.statistics()
        strangers = self.counts[Count.NEVER_CONFIGURED]
        return numbers.deletes + strangers, numbers.total + strangers

    # -- what peers ask for -----------------------------------------------------------------------------

    def lease(self, peer: Peer, families: Family, identity: Identity) -> Lease:
        """Lease addresses for a client. See ``opentsm.server.leases.lease``."""
        owner = None if identity.method == "anonymous" else identity.name
        try:
            return lease(peer.offer.pools, families, identity.addresses, owner, self.now())
        except AddressTaken as error:
            if not self._make_way(error.address, identity):
                raise
        return lease(peer.offer.pools, families, identity.addresses, owner, self.now())

    def _make_way(self, address: IpAddress, identity: Identity) -> bool:
        """End the account's own earlier session that holds this address, if nobody seems to be there."""
        record = self.registry.by_address(address)
        if record is None or record.value.identity is None or record.value.identity.name != identity.name:
            return False
        old = record.value
        if old.state is not State.PERSISTENT and not self._silent(old):
            return False
        old.give_way()
        return True

    def _silent(self, peer: Peer) -> bool:
        try:
            return peer.stream is None or self.core.tunnel_stats(peer.stream).last_rx_ms > DEAD_AFTER
        except KeyError:
            return True

    def new_tsid(self) -> Tsid:
        """A TSID that nobody has and nobody can guess."""
        while True:
            tsid = Tsid(secrets.randbits(64))
            taken = tsid in self.joins or self.registry.by_tsid(tsid) is not None
            if tsid not in (0, UNASSIGNED_TSID) and not taken:
                return tsid

    def resume_secret(self, tsid: Tsid, generation: int) -> bytes:
        """A session's resume secret of a generation."""
        return resume_secret(self.resume_key, tsid, generation)

    def new_session_id(self) -> int:
        """The next id of a session in the user plane."""
        self._session_ids += 1
        return self._session_ids

    # -- what is written down ---------------------------------------------------------------------------

    def refused(self, peer: Peer, code: Code, reason: str) -> None:
        """A client gets no tunnel."""
        self.refusals[peer.offer.name, reason] += 1
        now = self.now()
        if len(self._refusal_lines) == REFUSALS_LOGGED and now - self._refusal_lines[0] < REFUSAL_WINDOW:
            self.counts[Count.REFUSAL_NOT_LOGGED] += 1
            return
        self._refusal_lines.append(now)
        _log.info("tunnel refused", **peer.describe(), code=code.label, reason=reason)

    def note(self, peer: Peer, event: a.SessionEvent) -> None:
        """Something has happened to a client that people should be able to read of."""
        match event:
            case a.Resumed():
                self.persistent[peer.offer.name].discard(peer)
                self.keeping.save(peer)
                _log.info("tunnel resumed", **peer.describe())
            case a.StreamLost():
                self.persistent[peer.offer.name].add(peer)
                _log.info("tunnel persistent", **peer.describe(), reason=event.reason)
            case a.Terminated() if peer.session.tsid is not None:
                lasted = round(self.now() - peer.since, 1)
                _log.info("tunnel down", **peer.describe(), reason=event.reason, seconds=lasted)
            case a.Terminated():
                self.counts[Count.NEVER_CONFIGURED] += 1
            case a.DdtUp():
                self.paired[peer.offer.name].add(peer)
                if wanted(LogLevel.DEBUG):
                    _log.debug("datagram tunnel up", **peer.describe())
            case a.DdtDown():
                self.paired[peer.offer.name].discard(peer)
                if wanted(LogLevel.DEBUG):
                    _log.debug("datagram tunnel down", **peer.describe(), reason=event.reason)
            case a.StreamsChanged():
                words = {"redundancy": str(event.redundancy), "further": event.up, "reason": event.reason}
                _log.info("further streams", **peer.describe(), **words)
            case a.PairMissing():
                if wanted(LogLevel.DEBUG):
                    _log.debug("datagram tunnel missing", **peer.describe())

    def media_moved(self, peer: Peer, switch: Switch) -> None:
        """Media of a client goes by another path."""
        _log.info(
            "media moved",
            **peer.describe(),
            direction=switch.direction,
            path=switch.path.name.lower(),
            ports=list(switch.ports),
            reason=switch.reason,
        )

    def breaker_moved(self, peer: Peer, path: Path, what: str) -> None:
        """The circuit breaker of a client's downlink has opened or closed."""
        _log.info("circuit breaker", **peer.describe(), path=path.name.lower(), what=what)

    def log_message(self, peer: Peer, path: Path, direction: str, message: Message) -> None:
        """Put a control message into the data log, where the interface has it on."""
        if self.data_log is not None and peer.offer.name in self.logged:
            self.data_log.write(self._record(peer, path, direction) | log_record(message))

    def malformed(self, peer: Peer, path: Path, error: RemoteProtocolError) -> None:
        """A client has sent a control message that is none."""
        self.counts[MALFORMED + error.reason.replace("-", "_")] += 1
        if self.data_log is not None and peer.offer.name in self.logged:
            record = self._record(peer, path, "in")
            self.data_log.write({**record, "malformed": error.reason, "detail": error.detail})

    def _record(self, peer: Peer, path: Path, direction: str) -> dict[str, Any]:
        return {
            "time": _wall_clock(),
            "direction": direction,
            "interface": peer.offer.name,
            "path": path.name.lower(),
            "outer": f"{peer.outer[0]} port {peer.outer[1]}",
        }

    def set_logged(self, settings: Settings) -> None:
        """Interfaces whose control messages are logged from now on."""
        self.logged = frozenset(one.name for one in settings.interfaces.values() if one.control_log)


def _wall_clock() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
