from __future__ import annotations

from typing import Any

import pytest

from opentsm.lab.firewall import (
    POLICIES,
    Policy,
    everything,
    one_way,
    tcp_443_only,
    tcp_udp_443,
    udp_blocked,
)
from opentsm.lab.nftables import Chain, Rule, Table

UP, DOWN = ("lan0", "wan0"), ("wan0", "lan0")


def verdict(
    policy: Policy,
    way: tuple[str, str],
    protocol: str,
    *,
    sport: int = 40000,
    dport: int = 443,
    known: bool = False,
) -> str:
    """What the first rule that matches says; the kernel's part of it is in tests/e2e."""
    for rule in policy.rules("lan0", "wan0"):
        matches = (
            (rule.inside, rule.outside) == way
            and rule.protocol in (None, protocol)
            and rule.source_port in (None, sport)
            and rule.destination_port in (None, dport)
            and (not rule.state or (known and "established" in rule.state))
        )
        if matches:
            return rule.verdict
    return "accept"


def test_only_tcp_443_gets_out_and_only_answers_get_in() -> None:
    policy = tcp_443_only()
    assert verdict(policy, UP, "tcp") == "accept"
    assert verdict(policy, UP, "tcp", dport=80) == "drop"
    assert verdict(policy, UP, "udp") == "drop"
    assert verdict(policy, DOWN, "tcp", sport=443, dport=40000, known=True) == "accept"
    assert verdict(policy, DOWN, "tcp", sport=443, dport=40000) == "drop"
    assert verdict(policy, DOWN, "udp", sport=443, dport=40000, known=True) == "drop"


def test_refusing_aloud_resets_tcp_and_answers_udp() -> None:
    policy = tcp_443_only(refuse="reject")
    assert verdict(policy, UP, "udp") == "reject"
    assert verdict(policy, UP, "tcp", dport=80) == "reset"
    assert verdict(policy, DOWN, "udp") == "drop"


def test_udp_443_can_be_allowed_too() -> None:
    policy = tcp_udp_443()
    assert verdict(policy, UP, "udp") == "accept"
    assert verdict(policy, UP, "udp", dport=5060) == "drop"
    assert verdict(policy, DOWN, "udp", sport=443, known=True) == "accept"


def test_a_running_udp_flow_ends_with_the_policy_that_allowed_it() -> None:
    assert verdict(everything(), DOWN, "udp", sport=443, known=True) == "accept"
    assert verdict(udp_blocked(), DOWN, "udp", sport=443, known=True) == "drop"
    assert verdict(udp_blocked(how="reject"), UP, "udp") == "reject"


def test_one_way_blocks_leave_the_other_way_open() -> None:
    policy = one_way("down", "udp")
    assert verdict(policy, UP, "udp") == "accept"
    assert verdict(policy, DOWN, "udp", sport=443, known=True) == "drop"
    narrow = one_way("up", "udp", port=443)
    assert verdict(narrow, UP, "udp") == "drop"
    assert verdict(narrow, UP, "udp", dport=3478) == "accept"


def test_servers_restrict_where_phones_may_go() -> None:
    rules = tcp_443_only("198.19.1.2", "fd66:200:1::2").rules("lan0", "wan0")
    accepted = {rule.destination for rule in rules if rule.protocol == "tcp" and rule.verdict == "accept"}
    assert accepted == {"198.19.1.2", "fd66:200:1::2", None}
    assert all(rule.source for rule in rules if rule.name == "allow-tcp-443-down")


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_lets_an_outsider_begin(name: str) -> None:
    for protocol in ("tcp", "udp"):
        assert verdict(POLICIES[name](), DOWN, protocol) == "drop"


def test_a_policy_may_let_outsiders_in() -> None:
    assert verdict(Policy("open", incoming=True), DOWN, "udp") == "accept"


def test_rules_read_as_nft_prints_them() -> None:
    rule = Rule(
        "a",
        "reject",
        inside="lan0",
        outside="wan0",
        protocol="udp",
        destination_port=443,
        destination="fd66:200:1::/64",
        state=("established", "related"),
    )
    assert rule.text() == (
        'iifname "lan0" oifname "wan0" ip6 daddr fd66:200:1::/64 meta l4proto udp udp dport 443 '
        'ct state established,related counter reject with icmpx type port-unreachable comment "a"'
    )
    nat = Rule("m", "masquerade", outside="wan0", ipv4_only=True, protocol="udp", ports=(20000, 20009))
    text = Table("t", (Chain("post", "nat", (nat,)),)).text()
    assert "type nat hook postrouting priority 100; policy accept;" in text
    assert "meta nfproto ipv4" in text
    assert "masquerade to :20000-20009" in text


@pytest.mark.parametrize("wrong", ["10.0.0.0/9", "0.0.0.0/0", "not an address"])
def test_addresses_that_cannot_be_matched_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=wrong.split("/")[0]):
        Rule("x", "drop", source=wrong).text()
