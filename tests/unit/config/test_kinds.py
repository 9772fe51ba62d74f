from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from opentsm.config import kinds


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("10.64.0.1", ("10.64.0.1", 5060)),
        ("10.64.0.1:5080", ("10.64.0.1", 5080)),
        ("fd00::1", ("fd00::1", 5060)),
        ("[fd00::1]", ("fd00::1", 5060)),
        ("[fd00::1]:5080", ("fd00::1", 5080)),
    ],
)
def test_sip_servers(raw: str, expected: tuple[str, int]) -> None:
    assert kinds.SIP_SERVER.parse(raw) == (ip_address(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (kinds.SIP_SERVER, "10.64.0.1:0"),
        (kinds.SIP_SERVER, "10.64.0.1:99999"),
        (kinds.SIP_SERVER, "10.64.0.1:sip"),
        (kinds.SIP_SERVER, "pbx.example.org"),
        (kinds.SIP_SERVER, "[fd00::1"),
        (kinds.SIP_SERVER, 5060),
        (kinds.ADDRESS, "10.64.0.256"),
        (kinds.ADDRESS, 1),
        (kinds.INTERFACE_ADDRESS, "10.64.0.1"),
        (kinds.INTERFACE_ADDRESS, "10.64.0.1/33"),
        (kinds.INTERFACE_ADDRESS, "fe80::1%eth0/64"),
        (kinds.NETWORK, "10.64.0.1/16"),
        (kinds.many(kinds.ADDRESS), "10.0.0.1, 10.0.0.1"),
        (kinds.many(kinds.ADDRESS), 7),
        (kinds.many(kinds.ADDRESS), ["10.0.0.1", 7]),
        (kinds.reference("realm"), "two words"),
        (kinds.reference("realm"), "-a"),
        (kinds.reference("realm"), "a" * 65),
        (kinds.path(), ""),
        (kinds.path(), "a\0b"),
        (kinds.count(1, 5), 6),
        (kinds.count(1, 5), 10**400),
        (kinds.count_of([1, 2]), 3),
        (kinds.rate(1024, "1 KB/s"), "2 KB/s"),
        (kinds.duration(30, 660), "29 s"),
        (kinds.duration(30, 660), 661),
        (kinds.duration(30, 660, or_zero=False), 0),
        (kinds.port(zero_means="any"), 65536),
        (kinds.word(["a"]), "b"),
        (kinds.text("a letter", "[a-z]"), "ab"),
        (kinds.services(), "SIP, DTD"),
        (kinds.PLUGIN, "a.b"),
    ],
)
def test_what_is_not_of_the_kind_is_refused_in_words(kind: kinds.Kind, raw: object) -> None:
    with pytest.raises(ValueError, match=r"[a-z]{3}"):
        kind.parse(raw)


def test_lists_keep_their_order_from_array_and_text() -> None:
    kind = kinds.many(kinds.ADDRESS)
    assert kind.parse("10.0.0.2, 10.0.0.1,") == kind.parse(["10.0.0.2", "10.0.0.1"])
    assert kind.parse("") == ()


def test_an_empty_text_is_none_only_where_allowed() -> None:
    assert kinds.path(or_empty=True).parse("") is None
    assert kinds.path(or_empty=True).parse("a/b") == Path("a/b")
    assert kinds.text("x", "x", or_empty=True).parse(" ") is None
