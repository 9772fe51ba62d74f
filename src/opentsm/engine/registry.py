"""Sessions by every key somebody can come with: all look-ups and changes are O(1).

A *record* is one client session: it counts as one tunnel against ``max-tunnels`` of its interface,
with or without a datagram half. What the server keeps of a session rides along as ``value``; the
registry never looks at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from opentsm.errors import LocalProtocolError, OpenTsmError
from opentsm.limits import MAX_TUNNELS_PER_INTERFACE
from opentsm.types import UNASSIGNED_TSID, IpAddress, Tsid

S = TypeVar("S")

BLOCK: Final = 1024
"""Numbers of sessions that are counted together, so that a walk can begin anywhere without passing what is
before: 200,000 sessions are some 200 blocks."""


class TooManyTunnels(OpenTsmError):
    """The interface holds as many sessions as ``max-tunnels`` lets it."""

    def __init__(self, interface: str, limit: int) -> None:
        self.interface = interface
        self.limit = limit
        super().__init__(
            f"interface {interface} is full: {limit} tunnels; raise max-tunnels or add an interface"
        )


@dataclass(slots=True, eq=False)
class Record(Generic[S]):
    """One session and the keys under which it is found. Change keys by the registry's methods only."""

    session: int
    interface: str
    stream_tsid: Tsid
    addresses: tuple[IpAddress, ...]
    value: S
    ddt_tsid: Tsid | None = None
    tunnels: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """Counters of one interface, or of all together.

    Attributes:
        active: sessions now. high_water: the most there ever were at once.
        total: sessions ever added, which is also the count of adds.
        rejects: sessions refused because the interface was full.
        deletes: sessions removed. errors: set-ups that failed otherwise (``count_error``).
    """

    active: int = 0
    high_water: int = 0
    total: int = 0
    rejects: int = 0
    deletes: int = 0
    errors: int = 0


class Registry(Generic[S]):
    """All sessions of a server.

    Args:
        limits: ``max-tunnels`` by interface name; 0 means the most an interface can have.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits: dict[str, int] = {}
        self._counters: dict[str, _Counters] = {}
        self._all = _Counters()
        self._by_session: dict[int, Record[S]] = {}
        self._by_stream_tsid: dict[Tsid, Record[S]] = {}
        self._by_ddt_tsid: dict[Tsid, Record[S]] = {}
        self._by_address: dict[IpAddress, Record[S]] = {}
        self._by_tunnel: dict[int, Record[S]] = {}
        self._blocks: dict[int, int] = {}
        for interface, limit in limits.items():
            self.set_limit(interface, limit)

    def set_limit(self, interface: str, limit: int) -> None:
        """Give an interface its ``max-tunnels``. Sessions above a lowered limit stay."""
        self._limits[interface] = min(limit, MAX_TUNNELS_PER_INTERFACE) or MAX_TUNNELS_PER_INTERFACE
        self._counters.setdefault(interface, _Counters())

    def room(self, interface: str) -> int:
        """How many more sessions the interface may have."""
        return max(0, self._limits[interface] - self._counters[interface].active)

    def add(
        self,
        session: int,
        *,
        interface: str,
        stream_tsid: Tsid,
        addresses: Iterable[IpAddress],
        value: S,
        tunnel: int | None = None,
    ) -> Record[S]:
        """Enter a session.

        Raises:
            TooManyTunnels: the interface is full; counted as a reject.
            LocalProtocolError: one of the keys is in use. Nothing is entered.
        """
        if not self.room(interface):
            self._count(interface, "rejects")
            raise TooManyTunnels(interface, self._limits[interface])
        record = Record(session, interface, stream_tsid, tuple(addresses), value)
        self._refuse_known_keys(record, tunnel)
        self._by_session[session] = self._by_stream_tsid[stream_tsid] = record
        self._blocks[session // BLOCK] = self._blocks.get(session // BLOCK, 0) + 1
        for address in record.addresses:
            self._by_address[address] = record
        if tunnel is not None:
            self.bind(session, tunnel)
        for counters in (self._counters[interface], self._all):
            counters.grow()
        return record

    def remove(self, session: int) -> Record[S]:
        """Forget a session and all its keys.

        Raises:
            KeyError: there is no such session.
        """
        record = self._by_session.pop(session)
        left = self._blocks[session // BLOCK] - 1
        if left:
            self._blocks[session // BLOCK] = left
        else:
            del self._blocks[session // BLOCK]
        del self._by_stream_tsid[record.stream_tsid]
        if record.ddt_tsid is not None:
            del self._by_ddt_tsid[record.ddt_tsid]
        for address in record.addresses:
            del self._by_address[address]
        for tunnel in record.tunnels:
            del self._by_tunnel[tunnel]
        for counters in (self._counters[record.interface], self._all):
            counters.shrink()
        return record

    def bind(self, session: int, tunnel: int) -> None:
        """An outer connection (by its user plane id) now belongs to the session."""
        record = self._by_session[session]
        holder = self._by_tunnel.setdefault(tunnel, record)
        if holder is not record:
            raise LocalProtocolError(f"tunnel {tunnel} belongs to session {holder.session}")
        record.tunnels.add(tunnel)

    def unbind(self, tunnel: int) -> Record[S] | None:
        """An outer connection has ended; returns the session it belonged to, if any."""
        record = self._by_tunnel.pop(tunnel, None)
        if record is not None:
            record.tunnels.discard(tunnel)
        return record

    def set_stream_tsid(self, session: int, tsid: Tsid) -> None:
        """The session resumed under a new TSID; the old one is void."""
        record = self._by_session[session]
        if tsid != record.stream_tsid:
            self._refuse_known_tsid(tsid)
            del self._by_stream_tsid[record.stream_tsid]
            self._by_stream_tsid[tsid] = record
            record.stream_tsid = tsid

    def set_ddt(self, session: int, tsid: Tsid | None) -> None:
        """The session's datagram tunnel was reserved under this TSID, or (None) is gone."""
        record = self._by_session[session]
        if tsid == record.ddt_tsid:
            return
        if tsid is not None:
            self._refuse_known_tsid(tsid)
            self._by_ddt_tsid[tsid] = record
        if record.ddt_tsid is not None:
            del self._by_ddt_tsid[record.ddt_tsid]
        record.ddt_tsid = tsid

    def by_session(self, session: int) -> Record[S] | None:
        return self._by_session.get(session)

    def by_stream_tsid(self, tsid: Tsid) -> Record[S] | None:
        return self._by_stream_tsid.get(tsid)

    def by_ddt_tsid(self, tsid: Tsid) -> Record[S] | None:
        return self._by_ddt_tsid.get(tsid)

    def by_tsid(self, tsid: Tsid) -> Record[S] | None:
        """By the TSID of either half: they share one number space."""
        return self._by_stream_tsid.get(tsid) or self._by_ddt_tsid.get(tsid)

    def by_address(self, address: IpAddress) -> Record[S] | None:
        return self._by_address.get(address)

    def by_tunnel(self, tunnel: int) -> Record[S] | None:
        return self._by_tunnel.get(tunnel)

    def count_error(self, interface: str) -> None:
        """A session could not be set up for a reason other than ``max-tunnels``."""
        self._count(interface, "errors")

    def statistics(self, interface: str | None = None) -> RegistryStatistics:
        """Counters of one interface, or with None of all of them together."""
        counters = self._all if interface is None else self._counters[interface]
        return counters.frozen()

    def after(self, session: int) -> Iterator[Record[S]]:
        """Records with a greater number than this, in rising order. What is before is not walked over.

        A record that comes or goes meanwhile may or may not be among them.
        """
        first = session + 1
        for block in sorted(number for number in self._blocks if number >= first // BLOCK):
            for number in range(max(first, block * BLOCK), (block + 1) * BLOCK):
                if (record := self._by_session.get(number)) is not None:
                    yield record

    def __len__(self) -> int:
        return len(self._by_session)

    def __iter__(self) -> Iterator[Record[S]]:
        return iter(self._by_session.values())

    def __contains__(self, session: int) -> bool:
        return session in self._by_session

    def _refuse_known_keys(self, record: Record[S], tunnel: int | None) -> None:
        if record.session in self._by_session:
            raise LocalProtocolError(f"session {record.session} is known already")
        self._refuse_known_tsid(record.stream_tsid)
        for address in record.addresses:
            if (holder := self._by_address.get(address)) is not None:
                raise LocalProtocolError(f"{address} belongs to session {holder.session}")
        if tunnel is not None and (holder := self._by_tunnel.get(tunnel)) is not None:
            raise LocalProtocolError(f"tunnel {tunnel} belongs to session {holder.session}")

    def _refuse_known_tsid(self, tsid: Tsid) -> None:
        if tsid == UNASSIGNED_TSID:
            raise LocalProtocolError("a session needs a TSID of its own, not the unassigned one")
        if (holder := self.by_tsid(tsid)) is not None:
            raise LocalProtocolError(f"TSID {tsid:016x} belongs to session {holder.session}")

    def _count(self, interface: str, what: str) -> None:
        for counters in (self._counters[interface], self._all):
            setattr(counters, what, getattr(counters, what) + 1)


@dataclass(slots=True)
class _Counters:
    active: int = 0
    high_water: int = 0
    total: int = 0
    rejects: int = 0
    deletes: int = 0
    errors: int = 0

    def grow(self) -> None:
        self.active += 1
        self.total += 1
        self.high_water = max(self.high_water, self.active)

    def shrink(self) -> None:
        self.active -= 1
        self.deletes += 1

    def frozen(self) -> RegistryStatistics:
        return RegistryStatistics(
            self.active, self.high_water, self.total, self.rejects, self.deletes, self.errors
        )
