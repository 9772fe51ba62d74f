"""Leasing as the server does it, and the whole against a naive model."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from opentsm.engine.pools import AddressPool, AddressRange, Family, Lease, LeasePart, PoolExhausted, PoolSet
from opentsm.errors import LocalProtocolError
from opentsm.limits import ADDRESS_QUARANTINE
from opentsm.types import IpAddress

BOTH = Family.IPV4 | Family.IPV6


def pool(name: str, *ranges: str, reserved: tuple[str, ...] = ()) -> AddressPool:
    parsed = [AddressRange.parse(text) for text in ranges]
    return AddressPool(name, parsed, reserved=[ip_address(text) for text in reserved])


def take_all(source: AddressPool, family: Family) -> list[str]:
    found: list[str] = []
    while source.has_free(0.0, family):
        found.append(str(source.allocate(0.0, family).address))
    return found


def test_ranges_are_used_in_order_without_the_reserved() -> None:
    source = pool("a", "10.0.0.6-10.0.0.9", "10.0.0.0/30", reserved=("10.0.0.1", "10.0.0.7", "10.0.0.9"))
    assert take_all(source, Family.IPV4) == ["10.0.0.6", "10.0.0.8", "10.0.0.2"]
    assert source.statistics(Family.IPV4).capacity == 3


def test_exhaustion_says_what_is_going_on() -> None:
    source = pool("a", "10.0.0.1-10.0.0.2")
    source.allocate(0.0, Family.IPV4)
    source.release(0.0, source.allocate(0.0, Family.IPV4).address)
    with pytest.raises(PoolExhausted, match="no IPv4 address to lease from a: 1 leased, 1 just released"):
        source.allocate(0.5, Family.IPV4)
    with pytest.raises(PoolExhausted, match="no range of this family"):
        source.allocate(0.5, Family.IPV6)
    assert source.statistics(Family.IPV4).exhausted == 1


def test_overlapping_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        pool("a", "10.0.0.1-10.0.0.9", "10.0.0.9-10.0.0.12")


def test_a_released_address_rests_but_not_for_its_owner() -> None:
    source = pool("a", "10.0.0.0/24")
    address = source.allocate(0.0, Family.IPV4).address
    source.release(100.0, address, owner="alice")
    assert source.allocate_exact(101.0, address, owner="bob") is None
    assert source.allocate_exact(101.0, address) is None
    assert source.allocate(101.0, Family.IPV4).address != address
    assert source.allocate_exact(101.0, address, owner="alice") == LeasePart(address, "a")
    source.release(102.0, address, owner="alice")
    assert source.allocate_exact(102.0 + ADDRESS_QUARANTINE, address, owner="bob") is not None


def test_a_named_address_must_be_ours_and_free() -> None:
    source = pool("a", "10.0.0.0/29", reserved=("10.0.0.1",))
    for text in ("10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.1.1", "::a00:2"):
        assert source.allocate_exact(0.0, ip_address(text)) is None
        assert ip_address(text) not in source
    address = source.allocate(0.0, Family.IPV4).address
    assert source.allocate_exact(0.0, address) is None


def test_releasing_twice_is_a_bug_of_ours() -> None:
    source = pool("a", "10.0.0.0/29")
    address = source.allocate(0.0, Family.IPV4).address
    source.release(0.0, address)
    with pytest.raises(LocalProtocolError, match="not leased by pool a"):
        source.release(0.0, address)


def test_a_large_pool_is_leased_to_the_last_address_each_once() -> None:
    source = pool("big", "10.0.0.0/14")
    leased = {source.allocate(0.0, Family.IPV4).address for _ in range(200_000)}
    assert len(leased) == 200_000
    assert source.statistics(Family.IPV4).high_water == 200_000


def test_a_reload_keeps_leases_and_rests_that_are_in_the_new_ranges() -> None:
    old = pool("a", "10.0.0.1-10.0.0.9")
    kept, gone = ip_address("10.0.0.5"), ip_address("10.0.0.2")
    resting = ip_address("10.0.0.6")
    for address in (kept, gone, resting):
        assert old.allocate_exact(0.0, address, owner="x") is not None
    old.release(10.0, resting, owner="x")
    new = pool("a", "10.0.0.4-10.0.0.8")
    new.carry_over(old)
    assert new.is_leased(kept)
    assert not new.is_leased(gone)
    assert take_all(new, Family.IPV4) == ["10.0.0.4", "10.0.0.7", "10.0.0.8"]
    assert new.allocate_exact(11.0, resting, owner="x") is not None
    new.release(12.0, kept)


def test_a_lease_has_both_families_where_the_pools_do() -> None:
    pools = PoolSet([pool("four", "10.0.0.0/24"), pool("six", "fd00::/64")])
    lease = pools.lease(0.0, BOTH)
    assert (lease.ipv4, lease.ipv6) == (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    assert [part.pool for part in lease.parts] == ["four", "six"]
    assert pools.lease(0.0, Family.IPV6).addresses == (IPv6Address("fd00::2"),)


def test_a_family_that_no_pool_has_is_left_out_unless_it_is_all_that_is_wanted() -> None:
    pools = PoolSet([pool("four", "10.0.0.0/24")])
    assert pools.lease(0.0, BOTH).ipv6 is None
    with pytest.raises(PoolExhausted, match="no IPv6 address to lease from four"):
        pools.lease(0.0, Family.IPV6)
    with pytest.raises(PoolExhausted, match="from none"):
        PoolSet([]).lease(0.0, BOTH)


def test_the_next_pool_is_asked_when_one_is_exhausted() -> None:
    pools = PoolSet([pool("a", "10.0.0.1"), pool("b", "10.0.1.1")])
    assert [pools.lease(0.0, Family.IPV4).parts[0].pool for _ in range(2)] == ["a", "b"]
    with pytest.raises(PoolExhausted, match="all are in use; add a range"):
        pools.lease(0.0, Family.IPV4)
    assert [one.exhausted for one in pools.statistics()] == [1, 1]


def test_half_a_lease_is_no_lease() -> None:
    pools = PoolSet([pool("a", "10.0.0.0/24", "fd00::1")])
    pools.lease(0.0, BOTH)
    with pytest.raises(PoolExhausted, match="IPv6"):
        pools.lease(0.0, BOTH)
    four = pools.pools[0].statistics(Family.IPV4)
    assert (four.leased, four.resting, four.leases) == (1, 0, 1)


def test_a_client_that_comes_back_has_all_of_its_addresses_or_none() -> None:
    pools = PoolSet([pool("a", "10.0.0.0/24", "fd00::/64")])
    lease = pools.lease(0.0, BOTH)
    pools.release(1.0, lease, owner="alice")
    assert pools.lease_exact(2.0, lease.addresses, owner="alice") == lease
    pools.release(3.0, lease, owner="alice")
    assert lease.ipv6 is not None
    stolen = pools.lease_exact(3.0 + ADDRESS_QUARANTINE, [lease.ipv6])
    assert stolen is not None
    assert pools.lease_exact(3.0 + ADDRESS_QUARANTINE, lease.addresses, owner="alice") is None
    assert not pools.pools[0].is_leased(lease.addresses[0])


def test_releasing_what_a_reload_took_away_is_no_error() -> None:
    pools = PoolSet([pool("a", "10.0.0.0/24")])
    foreign = Lease((LeasePart(ip_address("192.0.2.1"), "old"),))
    pools.release(0.0, foreign)
    assert pools.statistics()[0].resting == 0


class PoolModel(RuleBasedStateMachine):
    """A pool of nine addresses beside a set that looks at every address each time."""

    QUARANTINE = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leased: set[IpAddress] = set()
        self.rested_since: dict[IpAddress, tuple[float, str]] = {}

    @initialize(reserved=st.sets(st.integers(0, 12)))
    def build(self, reserved: set[int]) -> None:
        ranges = [AddressRange.parse(text) for text in ("10.0.0.8-10.0.0.10", "10.0.0.0-10.0.0.5")]
        kept = [IPv4Address("10.0.0.0") + number for number in reserved]
        self.pool = AddressPool("m", ranges, reserved=kept, quarantine=self.QUARANTINE)
        numbers = [*range(6), *range(8, 11)]
        every = {IPv4Address("10.0.0.0") + number for number in numbers}
        self.all: set[IpAddress] = {address for address in every if address not in kept}

    def free_at(self, least: float) -> set[IpAddress]:
        young = {a for a, (since, _) in self.rested_since.items() if self.now - since < least}
        return self.all - self.leased - young

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 9.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def allocate(self) -> None:
        rested, usable = self.free_at(self.QUARANTINE), self.free_at(1.0)
        if not usable:
            with pytest.raises(PoolExhausted):
                self.pool.allocate(self.now, Family.IPV4)
            return
        address = self.pool.allocate(self.now, Family.IPV4).address
        assert address in (rested or usable)
        self._lease(address)

    @rule(number=st.integers(0, 12), owner=st.sampled_from(["a", "b"]))
    def allocate_exact(self, number: int, owner: str) -> None:
        address = IPv4Address("10.0.0.0") + number
        mine = self.rested_since.get(address, (0.0, ""))[1] == owner
        expected = address in self.free_at(self.QUARANTINE) or (address in self.free_at(0.0) and mine)
        assert (self.pool.allocate_exact(self.now, address, owner=owner) is not None) == expected
        if expected:
            self._lease(address)

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), owner=st.sampled_from(["a", "b"]))
    def release(self, data: st.DataObject, owner: str) -> None:
        address = data.draw(st.sampled_from(sorted(self.leased, key=int)))
        self.pool.release(self.now, address, owner=owner)
        self.leased.remove(address)
        self.rested_since[address] = (self.now, owner)

    @rule()
    def reload(self) -> None:
        fresh = AddressPool(
            "m", [AddressRange(a, a) for a in sorted(self.all, key=int)], quarantine=self.QUARANTINE
        )
        fresh.carry_over(self.pool)
        self.pool = fresh

    @invariant()
    def same_as_model(self) -> None:
        if not hasattr(self, "pool"):
            return
        counted = self.pool.statistics(Family.IPV4)
        assert counted.leased == len(self.leased)
        assert counted.resting == len(self.rested_since)
        assert all(self.pool.is_leased(address) for address in self.leased)
        assert self.pool.has_free(self.now, Family.IPV4) == bool(self.free_at(1.0))

    def _lease(self, address: IpAddress) -> None:
        assert address not in self.leased
        self.leased.add(address)
        self.rested_since.pop(address, None)


TestPoolModel = PoolModel.TestCase
