"""Inner addresses: the pools of the running configuration, and which client has which address."""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from opentsm.config.model import Interface, Settings
from opentsm.engine.pools import (
    AddressPool,
    AddressRange,
    Family,
    Lease,
    LeasePart,
    PoolExhausted,
    PoolSet,
    PoolStatistics,
)
from opentsm.types import IpAddress


class AddressTaken(Exception):
    """An account's fixed address cannot be had: another session has it, or no pool holds it.

    Args:
        address: the first one that cannot be had.
    """

    def __init__(self, address: IpAddress) -> None:
        self.address = address
        super().__init__(str(address))


@dataclass(frozen=True, slots=True)
class _Made:
    ranges: tuple[AddressRange, ...]
    reserved: frozenset[IpAddress]
    pool: AddressPool


class Leases:
    """The address pools of a server. Interfaces may share pools; a reload keeps what is leased."""

    def __init__(self) -> None:
        self._pools: dict[str, _Made] = {}

    def load(self, settings: Settings, held: Iterable[IpAddress], now: float) -> None:
        """Make the pools those of the settings.

        Args:
            held: addresses of all living sessions. Most are known from the pools before; but a range that
                was taken out and comes back must not be leased over a session that still has its address.
        """
        reserved = settings.server_addresses
        pools = settings.address_pools.values()
        made = {pool.name: self._make(pool.name, pool.ranges, reserved) for pool in pools}
        before = list(self._pools.values())
        changed = [one for one in made.values() if one not in before]
        for fresh in changed:
            for old in before:
                fresh.pool.carry_over(old.pool)
        # A pool that is the same as before knows its leases; with no other there is nobody to ask.
        for address in held if changed else ():
            for one in changed:
                if address in one.pool and not one.pool.is_leased(address):
                    one.pool.allocate_exact(now, address)
        self._pools = made

    def _make(self, name: str, ranges: tuple[AddressRange, ...], reserved: frozenset[IpAddress]) -> _Made:
        old = self._pools.get(name)
        if old is not None and (old.ranges, old.reserved) == (ranges, reserved):
            return old
        return _Made(ranges, reserved, AddressPool(name, ranges, reserved=reserved))

    def of_interface(self, interface: Interface) -> PoolSet:
        """The pools that an interface leases from, in its order."""
        return PoolSet([self._pools[pool.name].pool for pool in interface.address_pools])

    def release(self, addresses: Iterable[IpAddress], owner: Hashable, now: float) -> None:
        """Give addresses back; one whose pool a reload has taken away is simply gone."""
        for address in addresses:
            for one in self._pools.values():
                if one.pool.is_leased(address):
                    one.pool.release(now, address, owner=owner)
                    break

    def statistics(self) -> list[PoolStatistics]:
        """Usage of every pool, by family."""
        pools = [one.pool for one in self._pools.values()]
        return [pool.statistics(family) for pool in pools for family in pool.families]


def lease(
    pools: PoolSet, families: Family, fixed: tuple[IpAddress, ...], owner: Hashable, now: float
) -> Lease:
    """Lease one address of each wanted family that is on offer.

    Args:
        fixed: the account's own addresses; a family that has one gets exactly that.
        owner: who may have an address back that it has just released.

    Raises:
        AddressTaken: a fixed address cannot be had.
        PoolExhausted: no address of a wanted family is left, or no pool has any.
    """
    own = [address for address in fixed if Family.of(address) in families]
    parts: tuple[LeasePart, ...] = ()
    if own:
        exact = pools.lease_exact(now, own, owner=owner)
        if exact is None:
            raise AddressTaken(next(address for address in own if not _free(pools, address, owner, now)))
        parts = exact.parts
        families &= ~functools.reduce(operator.or_, map(Family.of, own))
        if not families & pools.families:
            return exact
    try:
        rest = pools.lease(now, families)
    except PoolExhausted:
        pools.release(now, Lease(parts), owner=owner)
        raise
    return Lease(tuple(sorted((*parts, *rest.parts), key=lambda part: part.address.version)))


def _free(pools: PoolSet, address: IpAddress, owner: Hashable, now: float) -> bool:
    return any(pool.may_have(now, address, owner=owner) for pool in pools.pools)
