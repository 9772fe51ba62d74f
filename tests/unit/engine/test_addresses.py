"""Ranges as an operator writes them."""

from __future__ import annotations

import pytest

from opentsm.engine.addresses import AddressRange, Family


@pytest.mark.parametrize(
    ("text", "shown", "size"),
    [
        ("10.64.1.0/24", "10.64.1.1-10.64.1.254", 254),
        ("10.64.1.0/31", "10.64.1.0-10.64.1.1", 2),
        ("10.64.1.7/32", "10.64.1.7", 1),
        ("10.64.1.7", "10.64.1.7", 1),
        (" 10.64.1.10 - 10.64.1.99 ", "10.64.1.10-10.64.1.99", 90),
        ("10.64.1.0-10.64.1.255", "10.64.1.0-10.64.1.255", 256),
        ("fd00:64::/64", "fd00:64::1-fd00:64::ffff:ffff:ffff:ffff", 2**64 - 1),
        ("fd00:64::/127", "fd00:64::-fd00:64::1", 2),
    ],
)
def test_a_range_is_read_and_shown(text: str, shown: str, size: int) -> None:
    found = AddressRange.parse(text)
    assert (str(found), found.size) == (shown, size)
    assert AddressRange.parse(shown) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.64.1.1/24",
        "10.64.1.9-10.64.1.1",
        "10.64.1.1-fd00::1",
        "10.64.1",
        "a-b",
        "fe80::1%eth0",
        "1-2-3",
    ],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        AddressRange.parse(text)


def test_overlap_needs_a_common_address_of_one_family() -> None:
    one = AddressRange.parse("10.0.0.1-10.0.0.9")
    assert one.overlaps(AddressRange.parse("10.0.0.9-10.0.0.20"))
    assert not one.overlaps(AddressRange.parse("10.0.0.10-10.0.0.20"))
    assert not one.overlaps(AddressRange.parse("::a00:1"))
    assert one.family is Family.IPV4


def test_membership_keeps_the_families_apart() -> None:
    one = AddressRange.parse("0.0.0.1-0.0.0.9")
    assert AddressRange.parse("0.0.0.5").first in one
    assert AddressRange.parse("::5").first not in one
