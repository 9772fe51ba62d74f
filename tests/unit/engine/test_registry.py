"""Sessions are found by every key, and by none once they are gone."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Any

import pytest

from opentsm.engine.registry import Record, Registry, RegistryStatistics, TooManyTunnels
from opentsm.errors import LocalProtocolError
from opentsm.limits import MAX_TUNNELS_PER_INTERFACE
from opentsm.types import UNASSIGNED_TSID, Tsid

V4, V6 = IPv4Address("10.0.0.1"), IPv6Address("fd00::1")


def add(registry: Registry[str], number: int, interface: str = "a") -> Record[str]:
    return registry.add(
        number,
        interface=interface,
        stream_tsid=Tsid(number),
        addresses=[V4 + number, V6 + number],
        value=f"session {number}",
        tunnel=1000 + number,
    )


def test_a_session_is_found_by_every_key() -> None:
    registry: Registry[str] = Registry({"a": 0})
    record = add(registry, 7)
    registry.set_ddt(7, Tsid(99))
    registry.bind(7, 2000)
    found = [
        registry.by_session(7),
        registry.by_stream_tsid(Tsid(7)),
        registry.by_ddt_tsid(Tsid(99)),
        registry.by_tsid(Tsid(7)),
        registry.by_tsid(Tsid(99)),
        registry.by_address(V4 + 7),
        registry.by_address(V6 + 7),
        registry.by_tunnel(1007),
        registry.by_tunnel(2000),
    ]
    assert all(one is record for one in found)
    assert record.value == "session 7"
    assert registry.by_ddt_tsid(Tsid(7)) is None


def test_a_removed_session_leaves_no_key_behind() -> None:
    registry: Registry[str] = Registry({"a": 0})
    add(registry, 7)
    registry.set_ddt(7, Tsid(99))
    assert registry.remove(7).session == 7
    assert registry.by_tsid(Tsid(7)) is None
    assert registry.by_tsid(Tsid(99)) is None
    assert registry.by_address(V4 + 7) is None
    assert registry.by_tunnel(1007) is None
    assert (len(registry), 7 in registry) == (0, False)
    add(registry, 7)
    with pytest.raises(KeyError):
        registry.remove(8)


def test_a_full_interface_refuses_clearly_and_others_do_not_care() -> None:
    registry: Registry[str] = Registry({"a": 2, "b": 1})
    add(registry, 1)
    add(registry, 2)
    with pytest.raises(TooManyTunnels, match="interface a is full: 2 tunnels; raise max-tunnels"):
        add(registry, 3)
    assert registry.by_session(3) is None
    add(registry, 4, "b")
    assert registry.statistics("a") == RegistryStatistics(active=2, high_water=2, total=2, rejects=1)
    assert (registry.room("a"), registry.room("b")) == (0, 0)
    registry.remove(1)
    add(registry, 3)
    assert registry.statistics().active == 3


def test_a_lowered_limit_keeps_the_sessions_and_zero_is_the_ceiling() -> None:
    registry: Registry[str] = Registry({"a": 0})
    assert registry.room("a") == MAX_TUNNELS_PER_INTERFACE
    add(registry, 1)
    add(registry, 2)
    registry.set_limit("a", 1)
    assert (len(registry), registry.room("a")) == (2, 0)
    registry.remove(1)
    with pytest.raises(TooManyTunnels):
        add(registry, 3)


def test_counters_tell_the_history() -> None:
    registry: Registry[str] = Registry({"a": 0, "b": 0})
    for number in range(5):
        add(registry, number)
    for number in range(3):
        registry.remove(number)
    add(registry, 10, "b")
    registry.count_error("b")
    assert registry.statistics("a") == RegistryStatistics(active=2, high_water=5, total=5, deletes=3)
    assert registry.statistics("b") == RegistryStatistics(active=1, high_water=1, total=1, errors=1)
    assert registry.statistics() == RegistryStatistics(active=3, high_water=5, total=6, deletes=3, errors=1)


@pytest.mark.parametrize(
    ("session", "tsid", "address", "tunnel", "said"),
    [
        (1, 50, V4 + 50, 50, "session 1 is known already"),
        (50, 1, V4 + 50, 50, "TSID 0000000000000001 belongs to session 1"),
        (50, 99, V4 + 50, 50, "TSID 0000000000000063 belongs to session 1"),
        (50, 50, V4 + 1, 50, "10.0.0.2 belongs to session 1"),
        (50, 50, V4 + 50, 1001, "tunnel 1001 belongs to session 1"),
        (50, UNASSIGNED_TSID, V4 + 50, 50, "TSID of its own"),
    ],
)
def test_no_key_is_taken_twice_and_nothing_is_half_entered(
    session: int, tsid: int, address: IPv4Address, tunnel: int, said: str
) -> None:
    registry: Registry[str] = Registry({"a": 0})
    add(registry, 1)
    registry.set_ddt(1, Tsid(99))
    with pytest.raises(LocalProtocolError, match=said):
        registry.add(
            session, interface="a", stream_tsid=Tsid(tsid), addresses=[address], value="x", tunnel=tunnel
        )
    assert len(registry) == 1
    assert registry.by_address(V4 + 50) is None
    assert registry.by_tsid(Tsid(50)) is None


def test_tsids_change_and_the_old_one_is_void() -> None:
    registry: Registry[str] = Registry({"a": 0})
    record = add(registry, 1)
    registry.set_stream_tsid(1, Tsid(500))
    assert (registry.by_tsid(Tsid(1)), registry.by_tsid(Tsid(500))) == (None, record)
    for tsid in (Tsid(600), Tsid(700), None, None):
        registry.set_ddt(1, tsid)
        assert record.ddt_tsid == tsid
    assert registry.by_tsid(Tsid(600)) is None
    with pytest.raises(LocalProtocolError):
        registry.set_ddt(1, Tsid(500))


def test_a_tunnel_belongs_to_one_session_until_it_ends() -> None:
    registry: Registry[str] = Registry({"a": 0})
    add(registry, 1)
    add(registry, 2)
    with pytest.raises(LocalProtocolError, match="tunnel 1001 belongs to session 1"):
        registry.bind(2, 1001)
    released = registry.unbind(1001)
    assert released is not None
    assert released.session == 1
    registry.bind(2, 1001)
    assert registry.unbind(12345) is None


def test_a_thousand_random_histories_agree_with_a_list() -> None:
    chance = random.Random(3)
    registry: Registry[str] = Registry({"a": 40})
    live: dict[int, Record[str]] = {}
    for _ in range(5_000):
        number = chance.randrange(80)
        if number in live and chance.random() < 0.6:
            assert registry.remove(number) is live.pop(number)
        elif number not in live and len(live) < 40:
            live[number] = add(registry, number)
        for key in (number, chance.randrange(80)):
            assert registry.by_tsid(Tsid(key)) is live.get(key)
            assert registry.by_address(V6 + key) is live.get(key)
            assert registry.by_tunnel(1000 + key) is live.get(key)
    assert {record.session for record in registry} == set(live)


class _Counting(dict[int, Any]):
    """Counts look-ups."""

    looked = 0

    def get(self, key: int, default: Any = None) -> Any:
        self.looked += 1
        return super().get(key, default)


def test_a_walk_may_begin_anywhere_and_does_not_pass_what_is_before() -> None:
    registry: Registry[None] = Registry({"access": 0})
    for number in range(1, 50_001):
        registry.add(number, interface="access", stream_tsid=Tsid(number), addresses=(), value=None)
    for number in range(10_000, 20_000):
        registry.remove(number)
    everybody = [record.session for record in registry.after(0)]
    assert everybody == [*range(1, 10_000), *range(20_000, 50_001)]
    assert [record.session for record in islice(registry.after(9_998), 3)] == [9_999, 20_000, 20_001]
    counting = _Counting(registry._by_session)
    registry._by_session = counting
    assert [record.session for record in islice(registry.after(45_000), 10)] == [*range(45_001, 45_011)]
    assert counting.looked == 10
    assert list(registry.after(50_000)) == []
