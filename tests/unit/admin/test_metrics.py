"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from opentsm.admin.backend import Facts, InterfaceUse, PoolUse
from opentsm.admin.metrics import render

FACTS = Facts(
    version="1.0",
    uptime=12.5,
    interfaces=[
        InterfaceUse(
            "access",
            active=5,
            persistent=2,
            datagram=1,
            limit=100,
            high_water=6,
            total=9,
            listening=True,
            refusals={"wrong-password": 4},
        )
    ],
    pools=[PoolUse("office", "IPv4", capacity=254, leased=5, resting=3, high_water=6, exhausted=1)],
    certificates={"main": 3600.0},
    counters={"inner_rx": 7, "drop_inner_no_route": 2},
    recent={},
)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in found}


def test_every_number_has_its_metric() -> None:
    found = samples(render(lambda: FACTS))
    access = ("interface", "access")
    pool = (("family", "IPv4"), ("pool", "office"))
    assert found["opentsm_tunnels", (access, ("state", "active"))] == 3
    assert found["opentsm_tunnels", (access, ("state", "persistent"))] == 2
    assert found["opentsm_datagram_tunnels", (access,)] == 1
    assert found["opentsm_tunnels_limit", (access,)] == 100
    assert found["opentsm_tunnels_opened_total", (access,)] == 9
    assert found["opentsm_refusals_total", (access, ("reason", "wrong-password"))] == 4
    assert found["opentsm_pool_addresses", (*pool, ("state", "leased"))] == 5
    assert found["opentsm_pool_capacity", pool] == 254
    assert found["opentsm_pool_exhausted_total", pool] == 1
    assert found["opentsm_drops_total", (("reason", "inner_no_route"),)] == 2
    assert found["opentsm_events_total", (("name", "inner_rx"),)] == 7
    assert found["opentsm_certificate_expiry_seconds", (("tls_profile", "main"),)] == 3600
    assert found["opentsm_uptime_seconds", ()] == 12.5
    assert found["opentsm_last_reload_ok", ()] == 1
    assert found["opentsm_info", (("version", "1.0"),)] == 1


def test_a_scrape_shows_the_numbers_of_its_moment() -> None:
    moments = iter([FACTS, Facts(**{**{f: getattr(FACTS, f) for f in FACTS.__slots__}, "uptime": 99.0})])
    first, second = (samples(render(lambda: next(moments))) for _ in range(2))
    assert (first["opentsm_uptime_seconds", ()], second["opentsm_uptime_seconds", ()]) == (12.5, 99.0)
