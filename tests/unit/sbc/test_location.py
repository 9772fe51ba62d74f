from __future__ import annotations

from opentsm.sbc.hop import Hop
from opentsm.sbc.location import MAX_CONTACTS, Binding, Location


def binding(
    key: str, *, user: str = "alice", address: str = "10.64.0.2", q: float = 1.0, until: float = 100.0
) -> Binding:
    hop = Hop("udp", ("10.64.0.1", 5060), (address, 5060))
    return Binding(f"{user}@x", key, f"sip:{key}", "", hop, (), q, until, "c", 1, user)


def test_contacts_come_in_order_of_q() -> None:
    location = Location()
    for key, q in (("low", 0.2), ("high", 0.9), ("mid", 0.5)):
        location.put(binding(key, q=q))
    assert [b.key for b in location.of("alice@x")] == ["high", "mid", "low"]
    assert location.at("10.64.0.2") == {"alice@x"}


def test_what_ends_is_forgotten_everywhere() -> None:
    location = Location()
    location.put(binding("a", until=50.0))
    location.put(binding("b", until=60.0))
    location.put(binding("c", user="bob", until=70.0))
    assert location.next_deadline() == 50.0
    assert location.expire(65.0) == ["alice@x"]
    assert location.of("alice@x") == []
    assert location.at("10.64.0.2") == {"bob@x"}
    assert len(location) == 1
    assert location.expire(70.0) == ["bob@x"]
    assert location.at("10.64.0.2") == frozenset()


def test_a_refresh_moves_the_contact_and_its_end() -> None:
    location = Location()
    location.put(binding("a", until=50.0))
    location.put(binding("a", until=90.0, address="10.64.0.3"))
    assert location.at("10.64.0.2") == frozenset()
    assert location.expire(60.0) == []
    assert len(location.of("alice@x")) == 1


def test_one_contact_too_many_takes_the_place_of_the_one_that_ends_first() -> None:
    location = Location()
    for number in range(MAX_CONTACTS):
        assert location.put(binding(str(number), until=200.0 - number)) is None
    evicted = location.put(binding("new", until=300.0))
    assert evicted is not None
    assert evicted.key == str(MAX_CONTACTS - 1)
    assert len(location.of("alice@x")) == MAX_CONTACTS
