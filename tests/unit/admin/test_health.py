"""Standing warnings: each trouble has a sentence, and good order has none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from opentsm.admin.backend import Facts, InterfaceUse, PoolUse
from opentsm.admin.health import CERTIFICATE_DAYS, DROPS_A_MINUTE, NOISE, warnings

DAY = 86400.0
POOL = PoolUse("office", "IPv4", capacity=100, leased=89, resting=0, high_water=89, exhausted=0)
INTERFACE = InterfaceUse(
    "access", active=89, persistent=0, datagram=0, limit=100, high_water=89, total=89, listening=True
)
WELL = Facts(
    version="1.0",
    uptime=1.0,
    interfaces=[INTERFACE],
    pools=[POOL],
    certificates={"main": (CERTIFICATE_DAYS + 1) * DAY},
    counters={},
    recent={"inner_rx": 100, "drop_inner_no_route": DROPS_A_MINUTE - 1},
)


def test_good_order_has_no_warning() -> None:
    assert warnings(WELL) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pools": [replace(POOL, leased=90)]}, "Pool office is nearly exhausted: 90 of 100 IPv4 addresses"),
        ({"pools": [replace(POOL, leased=100)]}, "Pool office has no IPv4 address left (100 leased)"),
        ({"certificates": {"main": 2.5 * DAY}}, "tls-profile main expires in 2 days: renew it"),
        ({"certificates": {"main": 1.5 * DAY}}, "expires in 1 day: renew it"),
        ({"certificates": {"main": -1.0}}, "tls-profile main has expired"),
        ({"reload_error": "a.toml:3: no\nmore"}, "The last reload changed nothing: a.toml:3: no"),
        ({"waiting": ["port: 1 -> 2"]}, "1 changed settings wait for a restart: port: 1 -> 2"),
        ({"interfaces": [replace(INTERFACE, listening=False)]}, "Interface access is not listening"),
        ({"interfaces": [replace(INTERFACE, active=100)]}, "Interface access is full (100 tunnels)"),
        ({"recent": {"drop_inner_no_route": DROPS_A_MINUTE}}, "drop_inner_no_route grew by 100"),
        ({"recent": {"drop_no_descriptor": 1}, "descriptors": 1024}, "may have only 1024 files open"),
        ({"recent": {"drop_no_descriptor": 9999}, "descriptors": 1024}, "raise LimitNOFILE="),
        ({"data_log_dropped": 3}, "The data log has left out 3 lines"),
    ],
)
def test_each_trouble_has_its_sentence(change: dict[str, Any], says: str) -> None:
    (sentence,) = warnings(replace(WELL, **change))
    assert says in sentence


def test_drops_are_judged_by_the_traffic_and_noise_by_nothing() -> None:
    busy = {"inner_rx": 1_000_000, "drop_inner_no_route": 5_000, **dict.fromkeys(NOISE, 10**9)}
    assert warnings(replace(WELL, recent=busy)) == []
    assert len(warnings(replace(WELL, recent={**busy, "drop_inner_no_route": 20_000}))) == 1
