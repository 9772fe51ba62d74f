from __future__ import annotations

import itertools
import random
from ipaddress import ip_address, ip_network

import pytest

from opentsm.engine.policy import (
    TRANSPORTS,
    PolicyAction,
    PolicyConflict,
    ProtocolPolicy,
    RewriteRow,
    compile_policies,
    first_match,
)


def policy(
    name: str, destination: str, transport: str = "any", port: int = 0, action: str = "allow", to: str = ""
) -> ProtocolPolicy:
    redirect = (ip_address(to), 0) if to else None
    return ProtocolPolicy(
        name, ip_network(destination), TRANSPORTS[transport], port, PolicyAction(action), redirect
    )


def test_rows_are_the_arguments_of_the_user_plane_most_specific_first() -> None:
    rows = compile_policies(
        [
            policy("no", "0.0.0.0/0", action="deny"),
            policy("mail", "0.0.0.0/0", "tcp", 25, action="deny"),
            policy("ldap", "10.0.0.1", "tls", 636, action="redirect", to="192.0.2.1"),
            policy("inside", "10.0.0.0/8"),
        ]
    )
    assert rows == (
        RewriteRow("10.0.0.1/32", 6, 636, ("192.0.2.1", 0), True),
        RewriteRow("10.0.0.0/8", 0, 0, None, True),
        RewriteRow("0.0.0.0/0", 6, 25, None, False),
        RewriteRow("0.0.0.0/0", 0, 0, None, False),
    )


@pytest.mark.parametrize(
    ("destination", "protocol", "port", "name"),
    [
        ("10.0.0.1", 6, 636, "redirect"),
        ("10.0.0.1", 17, 636, "allow"),
        ("10.9.9.9", 6, 25, "allow"),
        ("192.0.2.9", 6, 25, "deny"),
        ("192.0.2.9", 17, 53, "deny"),
        ("2001:db8::1", 6, 25, "none"),
    ],
)
def test_the_most_specific_policy_counts(destination: str, protocol: int, port: int, name: str) -> None:
    rows = compile_policies(
        [
            policy("no", "0.0.0.0/0", action="deny"),
            policy("ldap", "10.0.0.1", "tcp", 636, action="redirect", to="192.0.2.1"),
            policy("inside", "10.0.0.0/8"),
        ]
    )
    row = first_match(rows, ip_address(destination), protocol, port)
    found = "none" if row is None else "redirect" if row.to else "allow" if row.allow else "deny"
    assert found == name


def test_order_in_the_file_does_not_matter() -> None:
    policies = [
        policy("a", "10.0.0.0/8"),
        policy("b", "10.0.0.0/8", "udp", action="deny"),
        policy("c", "10.0.0.0/8", "udp", 53),
        policy("d", "fd00::/8", "tcp", 1, action="deny"),
    ]
    orders = {compile_policies(order) for order in itertools.permutations(policies)}
    assert len(orders) == 1


def test_first_match_is_best_match() -> None:
    """A table that takes the first row and one that looks for the most specific row agree."""
    chance = random.Random(2)
    for _ in range(300):
        chosen = {
            (f"10.{chance.randrange(2)}.0.0/16" if chance.random() < 0.5 else "10.0.0.0/8", *pair)
            for pair in [(chance.choice(["any", "udp", "tcp"]), 0), ("udp", chance.choice([1, 2]))]
        }
        rows = compile_policies(
            policy(str(n), where, what, port, chance.choice(["allow", "deny"]))
            for n, (where, what, port) in enumerate(sorted(chosen))
        )
        target = (
            ip_address(f"10.{chance.randrange(2)}.0.9"),
            chance.choice([6, 17]),
            chance.choice([1, 2, 3]),
        )
        matching = [row for row in rows if first_match([row], *target)]
        best = max(
            matching,
            key=lambda row: (ip_network(row.match).prefixlen, row.port > 0, row.protocol > 0),
            default=None,
        )
        assert first_match(rows, *target) == best


def test_the_same_twice_is_one_row_and_a_contradiction_is_refused() -> None:
    assert len(compile_policies([policy("a", "10.0.0.0/8"), policy("b", "10.0.0.0/8")])) == 1
    with pytest.raises(PolicyConflict, match=r"a and b both match udp 10\.0\.0\.0/8 port 53 and differ"):
        compile_policies([policy("a", "10.0.0.0/8", "udp", 53), policy("b", "10.0.0.0/8", "udp", 53, "deny")])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("10.0.0.0/8", "any", 0, "redirect", ""), "has a new destination"),
        (("10.0.0.0/8", "any", 0, "deny", "192.0.2.1"), "has a new destination"),
        (("10.0.0.0/8", "any", 0, "redirect", "fd00::1"), "other address family"),
        (("10.0.0.0/8", "any", 53, "deny", ""), "a port needs a transport"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, str, int, str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        policy("p", *arguments)
