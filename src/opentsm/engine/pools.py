"""Address pools: which inner address a session gets.

A pool leases addresses of its ranges, each to one session at a time; a released one rests for a
quarantine. How that is done in O(1) for ranges of any size is in ``opentsm.engine.space``. Nothing
here knows of time but the ``now`` it is given, which must not go backwards.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import islice, pairwise
from typing import Final

from opentsm.engine.addresses import AddressRange, Family
from opentsm.engine.space import Space
from opentsm.errors import LocalProtocolError, OpenTsmError
from opentsm.limits import ADDRESS_QUARANTINE
from opentsm.types import IpAddress

__all__ = [
    "AddressPool",
    "AddressRange",
    "Family",
    "Lease",
    "LeasePart",
    "PoolExhausted",
    "PoolSet",
    "PoolStatistics",
]


class PoolExhausted(OpenTsmError):
    """No address of a wanted family can be leased now.

    Args:
        family: the family that has run out (or that no pool offers).
        pools: names of the pools asked.
        detail: what an operator should read.
    """

    def __init__(self, family: Family, pools: Sequence[str], detail: str) -> None:
        self.family = family
        self.pools = tuple(pools)
        names = ", ".join(pools) or "none"
        super().__init__(f"no {_family_name(family)} address to lease from {names}: {detail}")


@dataclass(frozen=True, slots=True)
class LeasePart:
    """One leased address and the pool it came from."""

    address: IpAddress
    pool: str


@dataclass(frozen=True, slots=True)
class Lease:
    """What a session holds: at most one address of each family, IPv4 first."""

    parts: tuple[LeasePart, ...]

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        return tuple(part.address for part in self.parts)

    @property
    def ipv4(self) -> IPv4Address | None:
        return next((a for a in self.addresses if isinstance(a, IPv4Address)), None)

    @property
    def ipv6(self) -> IPv6Address | None:
        return next((a for a in self.addresses if isinstance(a, IPv6Address)), None)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Usage of one family of one pool. ``capacity`` leaves reserved addresses out."""

    pool: str
    family: Family
    capacity: int
    leased: int
    resting: int
    high_water: int
    leases: int
    exhausted: int


class AddressPool:
    """Ranges of addresses, leased one by one.

    Args:
        name: the pool's name in the configuration.
        ranges: disjoint ranges, IPv4 and IPv6 mixed as you like; used in this order.
        reserved: addresses never to lease, such as the server's own.
        quarantine: seconds a released address rests.

    Attributes:
        families: of which this pool has addresses.

    Raises:
        ValueError: two ranges overlap.
    """

    def __init__(
        self,
        name: str,
        ranges: Sequence[AddressRange],
        *,
        reserved: Collection[IpAddress] = (),
        quarantine: float = ADDRESS_QUARANTINE,
    ) -> None:
        self.name = name
        self._spaces: dict[Family, Space] = {}
        for family in Family:
            spans = _spans(family, ranges, reserved)
            if spans:
                self._spaces[family] = Space(spans, quarantine)
        self.families: Final = _union(self._spaces)

    def allocate(self, now: float, family: Family) -> LeasePart:
        """Lease any address of one family.

        Raises:
            PoolExhausted: none is left, or the pool has none of this family.
        """
        space = self._spaces.get(family)
        if space is None:
            raise PoolExhausted(family, [self.name], "the pool has no range of this family")
        value = space.take(now)
        if value is None:
            state = f"{len(space.leased)} leased, {len(space.resting)} just released"
            raise PoolExhausted(family, [self.name], state)
        return LeasePart(_address(family, value), self.name)

    def allocate_exact(
        self, now: float, address: IpAddress, *, owner: Hashable | None = None
    ) -> LeasePart | None:
        """Lease this very address to a client that resumes, or that storage restores.

        An address still in quarantine is given only to the owner who released it. None: the
        address is not ours, is leased, or rests for somebody else.
        """
        space = self._spaces.get(Family.of(address))
        if space is None or not space.take_exact(now, int(address), owner):
            return None
        return LeasePart(address, self.name)

    def may_have(self, now: float, address: IpAddress, *, owner: Hashable | None = None) -> bool:
        """Whether ``allocate_exact`` would give this owner the address now."""
        space = self._spaces.get(Family.of(address))
        return space is not None and space.may_have(now, int(address), owner)

    def has_free(self, now: float, family: Family) -> bool:
        """Whether ``allocate`` would succeed now."""
        space = self._spaces.get(family)
        return space is not None and space.has_free(now)

    def release(self, now: float, address: IpAddress, *, owner: Hashable | None = None) -> None:
        """Give an address back; it rests for the quarantine, kept for ``owner``.

        Raises:
            LocalProtocolError: this pool has not leased the address.
        """
        space = self._spaces.get(Family.of(address))
        if space is None or not space.give_back(now, int(address), owner):
            raise LocalProtocolError(f"{address} is not leased by pool {self.name}")

    def is_leased(self, address: IpAddress) -> bool:
        space = self._spaces.get(Family.of(address))
        return space is not None and int(address) in space.leased

    def __contains__(self, address: IpAddress) -> bool:
        """Whether the pool may lease this address at all (it is in a range and not reserved)."""
        space = self._spaces.get(Family.of(address))
        return space is not None and space.span_of(int(address)) is not None

    def carry_over(self, old: AddressPool) -> None:
        """After a reload: take over what ``old`` has leased or rests, as far as it is in our ranges.

        Linear in the addresses in use, so it is for reloads only.
        """
        for family, space in self._spaces.items():
            if (before := old._spaces.get(family)) is not None:
                space.carry_over(before)

    def note_exhausted(self, family: Family) -> None:
        """Count a request that found every pool of an interface empty."""
        if (space := self._spaces.get(family)) is not None:
            space.exhausted += 1

    def statistics(self, family: Family) -> PoolStatistics:
        space = self._spaces.get(family)
        if space is None:
            return PoolStatistics(self.name, family, 0, 0, 0, 0, 0, 0)
        return PoolStatistics(
            pool=self.name,
            family=family,
            capacity=space.capacity,
            leased=len(space.leased),
            resting=len(space.resting),
            high_water=space.high_water,
            leases=space.leases,
            exhausted=space.exhausted,
        )


class PoolSet:
    """An interface's pools, asked in their order, leasing all families of a session at once.

    Attributes:
        families: that at least one pool has addresses of.
    """

    def __init__(self, pools: Sequence[AddressPool]) -> None:
        self.pools = tuple(pools)
        self.families: Final = _union(family for pool in self.pools for family in pool.families)

    def lease(self, now: float, families: Family) -> Lease:
        """Lease one address of each wanted family that the pools offer.

        A family which no pool has is left out, so a dual-stack client can live with an IPv4-only
        server. All parts are found before the first one is taken, so a failure keeps nothing.

        Raises:
            PoolExhausted: no wanted family is on offer, or one of them has run out.
        """
        usable = families & self.families
        if not usable:
            raise PoolExhausted(families, self._names, "no pool has a range of this family")
        sources = [(self._source(now, family), family) for family in usable]
        return Lease(tuple(pool.allocate(now, family) for pool, family in sources))

    def lease_exact(
        self, now: float, addresses: Iterable[IpAddress], *, owner: Hashable | None = None
    ) -> Lease | None:
        """Lease exactly these addresses, all or none (see ``AddressPool.allocate_exact``)."""
        wanted = sorted(set(addresses), key=lambda one: one.version)
        parts: list[LeasePart] = []
        if not all(any(p.may_have(now, a, owner=owner) for p in self.pools) for a in wanted):
            return None
        for address in wanted:
            taken = (pool.allocate_exact(now, address, owner=owner) for pool in self.pools)
            parts.extend(islice((part for part in taken if part is not None), 1))
        return Lease(tuple(parts))

    def release(self, now: float, lease: Lease, *, owner: Hashable | None = None) -> None:
        """Give a lease back. A part that a reload has taken out of every pool is simply gone."""
        for address in lease.addresses:
            for pool in self.pools:
                if pool.is_leased(address):
                    pool.release(now, address, owner=owner)
                    break

    def statistics(self) -> list[PoolStatistics]:
        return [pool.statistics(family) for pool in self.pools for family in pool.families]

    @property
    def _names(self) -> list[str]:
        return [pool.name for pool in self.pools]

    def _source(self, now: float, family: Family) -> AddressPool:
        candidates = [pool for pool in self.pools if family in pool.families]
        for pool in candidates:
            if pool.has_free(now, family):
                return pool
        for pool in candidates:
            pool.note_exhausted(family)
        raise PoolExhausted(family, self._names, "all are in use; add a range or lower max-tunnels")


def _spans(
    family: Family, ranges: Sequence[AddressRange], reserved: Collection[IpAddress]
) -> list[tuple[int, int]]:
    """The ranges of one family as integers, cut where an address is reserved."""
    own = [one for one in ranges if one.family is family]
    by_first = sorted(own, key=lambda one: int(one.first))
    for one, following in pairwise(by_first):
        if one.overlaps(following):
            raise ValueError(f"{one} and {following} overlap")
    holes = sorted({int(address) for address in reserved if Family.of(address) is family})
    return [span for one in own for span in _cut(int(one.first), int(one.last), holes)]


def _cut(first: int, last: int, holes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The pieces of first..last that are left without the holes, which are in rising order."""
    for hole in holes:
        if first <= hole <= last:
            if first < hole:
                yield first, hole - 1
            first = hole + 1
    if first <= last:
        yield first, last


def _union(families: Iterable[Family]) -> Family:
    return functools.reduce(operator.or_, families, Family(0))


def _address(family: Family, value: int) -> IpAddress:
    return IPv4Address(value) if family is Family.IPV4 else IPv6Address(value)


def _family_name(families: Family) -> str:
    return " or ".join(_FAMILY_NAMES[family] for family in families) or "inner"


_FAMILY_NAMES: Final = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}
