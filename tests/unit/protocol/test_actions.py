"""The vocabulary of actions."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from opentsm.protocol import actions as a
from opentsm.types import Path
from tests.unit.protocol.conversation import IPV4, IPV6


@pytest.mark.parametrize("kind", [*typing.get_args(a.Action), *typing.get_args(a.SessionEvent)])
def test_actions_and_events_are_frozen(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_a_password_on_its_way_to_be_checked_is_not_shown() -> None:
    assert "hunter2" not in repr(a.Authenticate(b"id", "al", b"hunter2", False))


def test_a_lease_lists_the_addresses_it_has() -> None:
    assert a.Lease(IPV4, IPV6).addresses == (IPV4.ip, IPV6.ip)
    assert a.Lease(ipv6=IPV6).addresses == (IPV6.ip,)


def test_steer_modes_are_the_user_planes() -> None:
    assert [int(mode) for mode in a.SteerMode] == [int(path) for path in Path]
