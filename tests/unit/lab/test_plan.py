from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import combinations

import pytest

from opentsm.lab.plan import Interface, Plan, server_name


def interfaces(plan: Plan) -> list[Interface]:
    found = [plan.phone(phone) for phone in range(1, plan.phones + 1)]
    for site in range(1, plan.sites + 1):
        found += [plan.lan(site), plan.wan(site), plan.internet(site)]
    for server in range(1, plan.servers + 1):
        found += [plan.server(server), plan.server_gateway(server)]
        found += [plan.core(server), plan.core_gateway(server)]
    return found


def test_no_address_is_used_twice_in_the_largest_labs() -> None:
    for plan in (Plan(200, 1, 16), Plan(1, 200), Plan(20, 10, 3)):
        addresses = [address for i in interfaces(plan) for address in (i.ipv4, i.ipv6)]
        assert all(ip_address(address) for address in addresses)
        assert len(set(addresses)) == len(addresses)


def test_phones_and_their_gateway_share_a_network_that_overlaps_no_other() -> None:
    plan = Plan(sites=3, phones_per_site=2)
    assert plan.site_of(1) == plan.site_of(2) == 1
    assert plan.site_of(5) == 3
    for phone in range(1, 7):
        site = plan.site_of(phone)
        for prefix in plan.lan_prefixes(site):
            network = ip_network(prefix)
            version = "ipv4" if network.version == 4 else "ipv6"
            for interface in (plan.phone(phone), plan.lan(site)):
                assert ip_address(getattr(interface, version)) in network
    networks = [ip_network(prefix) for site in (1, 2, 3) for prefix in plan.lan_prefixes(site)]
    assert not any(a.overlaps(b) for a, b in combinations(networks, 2) if a.version == b.version)


def test_a_phone_that_moves_gets_an_address_of_the_other_site() -> None:
    plan = Plan(sites=2)
    assert plan.phone(1, site=2).ipv4 in {str(a) for a in ip_network(plan.lan_prefixes(2)[0])}
    assert plan.phone(1, site=2) != plan.phone(2)


def test_a_family_that_is_off_has_no_addresses() -> None:
    plan = Plan(ipv6=False)
    assert plan.server().ipv6 == ""
    assert plan.server().with_prefix == ("198.19.1.2/24",)
    assert plan.lan_prefixes(1) == ("192.168.1.0/24",)
    assert Plan(ipv4=False).lan_prefixes(1) == ("fd66:1::/64",)


@pytest.mark.parametrize(
    "shape",
    [
        {"sites": 0},
        {"sites": 201},
        {"servers": 17},
        {"sites": 20, "phones_per_site": 11},
        {"phones_per_site": 0},
    ],
)
def test_impossible_shapes_are_refused(shape: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 to"):
        Plan(**shape)  # type: ignore[arg-type]


def test_no_family_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="IPv4, IPv6"):
        Plan(ipv4=False, ipv6=False)


def test_the_first_server_has_no_number() -> None:
    assert [server_name(n) for n in (1, 2)] == ["server", "server2"]
