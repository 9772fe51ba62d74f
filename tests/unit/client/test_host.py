"""Which routes a tunnel for the whole machine needs, and which of them cannot be."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.client.host import (
    EVERYTHING,
    ROUTE_PROTOCOL,
    HostOptions,
    Underlay,
    conflict,
    find_underlay,
    outer_addresses,
    parse_route,
    pins_needed,
    resolv_conf,
    wanted_routes,
)
from opentsm.errors import ConfigError
from opentsm.protocol.actions import Lease

V4 = ip_interface("10.64.1.10/16")
V6 = ip_interface("fd00:64::10/64")
OPTIONS = HostOptions("tsm0")


def lease(*interfaces: Any, dns: tuple[str, ...] = (), sip: str | None = None) -> Lease:
    by_version = {one.version: one for one in interfaces}
    return Lease(
        ipv4=by_version.get(4),
        ipv6=by_version.get(6),
        dns_servers=tuple(ip_address(one) for one in dns),
        sip_server=None if sip is None else (ip_address(sip), 5060),
    )


def texts(prefixes: Any) -> list[str]:
    return [str(prefix) for prefix in prefixes]


def row(destination: str, **more: Any) -> dict[str, Any]:
    return {"dst": destination, "dev": "eth0", "flags": [], **more}


class TestWantedRoutes:
    def test_by_default_only_what_is_inside(self) -> None:
        given_lease = lease(V4, V6, dns=("10.64.0.53", "10.200.1.53"), sip="10.200.1.2")
        assert texts(wanted_routes(given_lease, OPTIONS)) == [
            "10.64.0.0/16",
            "fd00:64::/64",
            "10.200.1.53/32",
            "10.200.1.2/32",
        ]

    def test_what_is_asked_for_comes_on_top_once(self) -> None:
        options = HostOptions("tsm0", (ip_network("10.64.0.0/16"), ip_network("192.0.2.0/24")))
        assert texts(wanted_routes(lease(V4), options)) == ["10.64.0.0/16", "192.0.2.0/24"]

    def test_a_family_without_an_address_gets_no_route(self) -> None:
        options = HostOptions("tsm0", (ip_network("2001:db8::/32"),), default_route=True)
        assert texts(wanted_routes(lease(V4), options)) == ["10.64.0.0/16", "0.0.0.0/1", "128.0.0.0/1"]

    def test_an_address_without_a_network_needs_no_route_to_itself(self) -> None:
        assert wanted_routes(lease(ip_interface("10.64.1.10/32")), OPTIONS) == ()

    @given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
    def test_the_default_routes_cover_everything(self, address: Any) -> None:
        assert sum(address in prefix for prefix in EVERYTHING) == 1


class TestPins:
    OUTER = (ip_address("198.51.100.7"), ip_address("2001:db8::7"))

    def test_nothing_is_pinned_that_no_route_covers(self) -> None:
        assert pins_needed(self.OUTER, [ip_network("10.64.0.0/16")]) == ()

    def test_what_a_route_covers_is_pinned(self) -> None:
        assert pins_needed(self.OUTER, EVERYTHING) == self.OUTER
        assert pins_needed(self.OUTER, [ip_network("198.51.100.0/24")]) == self.OUTER[:1]

    def test_the_server_itself_cannot_be_routed_into_its_own_tunnel(self) -> None:
        with pytest.raises(ConfigError, match=r"198\.51\.100\.7 would send the tunnel's own packets into"):
            pins_needed(self.OUTER, [ip_network("198.51.100.7/32")])

    def test_zones_and_link_local_addresses_are_left_out(self) -> None:
        found = outer_addresses(["198.51.100.7", "fe80::1%eth0", "198.51.100.7"])
        assert found == self.OUTER[:1]


class TestUnderlay:
    ADDRESS = ip_address("198.51.100.7")

    def test_the_most_specific_then_the_cheapest_way_counts(self) -> None:
        rows = [
            row("default", gateway="192.0.2.1", metric=100),
            row("default", gateway="192.0.2.9", dev="wlan0", metric=600),
        ]
        assert find_underlay(rows, self.ADDRESS, "tsm0") == Underlay("eth0", "192.0.2.1")
        rows.append(row("198.51.100.0/24", dev="eth1"))
        assert find_underlay(rows, self.ADDRESS, "tsm0") == Underlay("eth1")

    @pytest.mark.parametrize(
        "bad",
        [
            row("0.0.0.0/1", dev="tsm0"),
            row("198.51.100.7", gateway="192.0.2.1", protocol=ROUTE_PROTOCOL),
            row("198.51.100.0/24", flags=["linkdown"]),
            row("198.51.100.0/24", type="unreachable"),
            row("2001:db8::/32"),
        ],
    )
    def test_ways_that_are_none_do_not_count(self, bad: dict[str, Any]) -> None:
        assert find_underlay([bad], self.ADDRESS, "tsm0") is None
        good = row("default", gateway="192.0.2.1")
        assert find_underlay([bad, good], self.ADDRESS, "tsm0") == Underlay("eth0", "192.0.2.1")


def test_a_network_that_is_here_already_is_named_with_its_device() -> None:
    rows = [row("default", gateway="192.0.2.1"), row("10.64.0.0/16", dev="wlan0")]
    inner = [ip_network("10.64.0.0/16")]
    assert conflict(rows, inner, "tsm0") == "the network 10.64.0.0/16 is behind wlan0 already"
    assert conflict(rows, [ip_network("10.64.0.0/17")], "tsm0") is None
    assert conflict([row("10.64.0.0/16", dev="tsm0")], inner, "tsm0") is None
    assert conflict(rows, EVERYTHING, "tsm0") is None


@pytest.mark.parametrize("text", ["10.0.0.1/8", "everything", "300.0.0.0/8", ""])
def test_a_route_that_is_none_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--route .*10\.1\.0\.0/16"):
        parse_route(text)


def test_resolvers_read_three_servers() -> None:
    servers = [ip_address(f"10.0.0.{n}") for n in range(1, 6)]
    lines = resolv_conf(servers).splitlines()
    assert lines[1:] == ["nameserver 10.0.0.1", "nameserver 10.0.0.2", "nameserver 10.0.0.3"]
