"""Standing warnings: what an operator should do something about, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from opentsm.admin.backend import Facts

POOL_NEARLY_EXHAUSTED: Final = 0.9
"""Part of a pool in use from which it is time to widen it."""

CERTIFICATE_DAYS: Final = 21
"""Days before the end of a certificate at which to warn: renewal by machine is due at 30, so that at 21 it
has failed for a week."""

DROPS_A_MINUTE: Final = 100
"""Drops of one kind within a minute that are worth a look, however much traffic there is."""

DROPS_PART: Final = 0.01
"""Where there is more traffic, drops worth a look are this part of its packets: what ears begin to notice."""

NOISE: Final = frozenset({"drop_stray_datagram", "drop_record_replay"})
"""Drops that strangers and networks cause all the time, by which nobody of ours loses anything."""

NO_DESCRIPTOR: Final = "drop_no_descriptor"
"""It has a sentence of its own, from the first one on."""

_DAY: Final = 86400.0


def warnings(facts: Facts) -> list[str]:
    """What is wrong now, the most urgent first; nothing is a good sign."""
    return [
        *_listeners(facts),
        *_certificates(facts),
        *_reload(facts),
        *_pools(facts),
        *_interfaces(facts),
        *_descriptors(facts),
        *_drops(facts),
        *_data_log(facts),
    ]


def _listeners(facts: Facts) -> Iterator[str]:
    for interface in facts.interfaces:
        if not interface.listening:
            yield f"Interface {interface.name} is not listening: restart the server."


def _certificates(facts: Facts) -> Iterator[str]:
    for name, seconds in facts.certificates.items():
        days = int(seconds // _DAY)
        if seconds <= 0:
            yield f"The certificate of tls-profile {name} has expired: clients that check it cannot connect."
        elif days < CERTIFICATE_DAYS:
            yield f"The certificate of tls-profile {name} expires in {days} day{'s' * (days != 1)}: renew it."


def _reload(facts: Facts) -> Iterator[str]:
    if facts.reload_error:
        first = facts.reload_error.splitlines()[0]
        yield f"The last reload changed nothing: {first}"
    if facts.waiting:
        yield f"{len(facts.waiting)} changed settings wait for a restart: {'; '.join(facts.waiting)}"


def _pools(facts: Facts) -> Iterator[str]:
    for pool in facts.pools:
        if pool.capacity and pool.leased >= pool.capacity:
            yield f"Pool {pool.pool} has no {pool.family} address left ({pool.leased} leased): add a range."
        elif pool.capacity and pool.leased >= POOL_NEARLY_EXHAUSTED * pool.capacity:
            used = f"{pool.leased} of {pool.capacity} {pool.family} addresses"
            yield f"Pool {pool.pool} is nearly exhausted: {used} are leased."


def _interfaces(facts: Facts) -> Iterator[str]:
    for interface in facts.interfaces:
        if interface.active >= interface.limit:
            yield f"Interface {interface.name} is full ({interface.limit} tunnels): raise max-tunnels."


def _descriptors(facts: Facts) -> Iterator[str]:
    if facts.recent.get(NO_DESCRIPTOR, 0):
        yield (
            f"New tunnels are turned away because the server may have only {facts.descriptors} files open, "
            "one for each stream tunnel: raise LimitNOFILE= of the service (or `ulimit -n`), or add a server."
        )


def _drops(facts: Facts) -> Iterator[str]:
    packets = facts.recent.get("inner_rx", 0) + facts.recent.get("inner_tx", 0)
    least = max(DROPS_A_MINUTE, DROPS_PART * packets)
    for name, count in sorted(facts.recent.items()):
        if name.startswith("drop_") and name not in {*NOISE, NO_DESCRIPTOR} and count >= least:
            yield f"{name} grew by {count} in the last minute: docs/counters.md says what to do."


def _data_log(facts: Facts) -> Iterator[str]:
    if facts.data_log_dropped:
        yield f"The data log has left out {facts.data_log_dropped} lines: its disk is too slow or full."
