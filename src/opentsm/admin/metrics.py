"""The numbers of a server in the text format that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from opentsm.admin.backend import Facts
from opentsm.admin.health import warnings

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_DROP: Final = "drop_"


class FactsCollector(Collector):
    """Reads the facts anew for each scrape; keeps nothing.

    Args:
        facts: where they come from.
    """

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        facts = self._facts()
        yield from _process(facts)
        yield from _interfaces(facts)
        yield from _pools(facts)
        yield from _counters(facts)


def render(facts: Callable[[], Facts]) -> str:
    """One scrape."""
    registry = CollectorRegistry()
    registry.register(FactsCollector(facts))
    return generate_latest(registry).decode()


def _process(facts: Facts) -> Iterator[Metric]:
    info = GaugeMetricFamily("opentsm_info", "The server's version.", labels=["version"])
    info.add_metric([facts.version], 1)
    yield info
    yield GaugeMetricFamily("opentsm_uptime_seconds", "Since the server started.", facts.uptime)
    yield GaugeMetricFamily(
        "opentsm_warnings", "Standing warnings; `opentsm status` shows them.", len(warnings(facts))
    )
    yield GaugeMetricFamily(
        "opentsm_descriptors_limit",
        "Files the server may have open, each stream tunnel one.",
        facts.descriptors,
    )
    yield GaugeMetricFamily(
        "opentsm_collector_pause_seconds",
        "The control plane stood still so long in its last full garbage collection.",
        facts.collector_pause,
    )
    ok = 0 if facts.reload_error else 1
    yield GaugeMetricFamily("opentsm_last_reload_ok", "1 unless the last reload changed nothing.", ok)
    expiry = GaugeMetricFamily(
        "opentsm_certificate_expiry_seconds",
        "Until a TLS profile's certificate ends.",
        labels=["tls_profile"],
    )
    for name, seconds in facts.certificates.items():
        expiry.add_metric([name], seconds)
    yield expiry


def _interfaces(facts: Facts) -> Iterator[Metric]:
    tunnels = GaugeMetricFamily("opentsm_tunnels", "Client sessions now.", labels=["interface", "state"])
    datagram = GaugeMetricFamily(
        "opentsm_datagram_tunnels", "Sessions with a datagram tunnel.", labels=["interface"]
    )
    limit = GaugeMetricFamily("opentsm_tunnels_limit", "Most sessions at once.", labels=["interface"])
    total = CounterMetricFamily("opentsm_tunnels_opened", "Sessions ever opened.", labels=["interface"])
    refused = CounterMetricFamily("opentsm_refusals", "Clients refused.", labels=["interface", "reason"])
    for one in facts.interfaces:
        tunnels.add_metric([one.name, "active"], one.active - one.persistent)
        tunnels.add_metric([one.name, "persistent"], one.persistent)
        datagram.add_metric([one.name], one.datagram)
        limit.add_metric([one.name], one.limit)
        total.add_metric([one.name], one.total)
        for reason, count in one.refusals.items():
            refused.add_metric([one.name, reason], count)
    yield from (tunnels, datagram, limit, total, refused)


def _pools(facts: Facts) -> Iterator[Metric]:
    labels = ["pool", "family"]
    addresses = GaugeMetricFamily("opentsm_pool_addresses", "Inner addresses.", labels=[*labels, "state"])
    capacity = GaugeMetricFamily("opentsm_pool_capacity", "Inner addresses there are.", labels=labels)
    exhausted = CounterMetricFamily("opentsm_pool_exhausted", "Requests that found none left.", labels=labels)
    for pool in facts.pools:
        addresses.add_metric([pool.pool, pool.family, "leased"], pool.leased)
        addresses.add_metric([pool.pool, pool.family, "resting"], pool.resting)
        capacity.add_metric([pool.pool, pool.family], pool.capacity)
        exhausted.add_metric([pool.pool, pool.family], pool.exhausted)
    yield from (addresses, capacity, exhausted)


def _counters(facts: Facts) -> Iterator[Metric]:
    drops = CounterMetricFamily("opentsm_drops", "What was dropped, by docs/counters.md.", labels=["reason"])
    events = CounterMetricFamily("opentsm_events", "What was counted, by docs/counters.md.", labels=["name"])
    for name, value in sorted(facts.counters.items()):
        if name.startswith(_DROP):
            drops.add_metric([name.removeprefix(_DROP)], value)
        else:
            events.add_metric([name], value)
    yield from (drops, events)
