"""The server as the admin side sees it (``opentsm.admin.backend.Backend``)."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import opentsm
from opentsm.admin.backend import AdminError, Facts, InterfaceUse, PoolUse
from opentsm.config.model import Interface, LogLevel
from opentsm.engine.registry import Record
from opentsm.engine.services import format_services
from opentsm.server import descriptors, logs
from opentsm.server.counters import Count
from opentsm.server.offers import tunnel_limit
from opentsm.server.peer import Peer
from opentsm.types import Code, Path, Tsid
from opentsm.userplane._core import FlowStats, TunnelStats

if TYPE_CHECKING:
    from opentsm.server.server import Server

SAMPLE_EVERY: Final = 10.0
"""Seconds between two looks at the counters."""

SAMPLES: Final = 7
"""Looks kept: the first and the last are a minute apart."""

SCAN: Final = 1_000
"""Sessions looked at for one page: some ten milliseconds, in which nobody is served. A search goes on with
the next page's cursor."""

MAX_FLOWS_SHOWN: Final = 500


class Report:
    """Answers of one server.

    Args:
        server: whose.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._started = time.monotonic()
        self._samples: deque[dict[str, int]] = deque(maxlen=SAMPLES)

    # -- numbers ------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Remember the counters of this moment, for what they grew by within the last minute."""
        self._samples.append(self._counters())

    def _counters(self) -> dict[str, int]:
        hub = self._server.hub
        return {**hub.core.counters(), **dict.fromkeys(Count, 0), **hub.counts}

    def facts(self) -> Facts:
        """See ``Backend``."""
        server = self._server
        counters = self._counters()
        before = self._samples[0] if self._samples else counters
        now = datetime.now(UTC)
        return Facts(
            version=opentsm.__version__,
            uptime=time.monotonic() - self._started,
            interfaces=self._interfaces(),
            pools=[_pool_use(one) for one in server.hub.leases.statistics()],
            certificates={name: (end - now).total_seconds() for name, end in server.tls.expiry.items()},
            counters=counters,
            recent={name: value - before.get(name, 0) for name, value in counters.items()},
            reload_error=server.reload_error,
            waiting=server.waiting,
            collector_pause=server.collector.pause,
            data_log_dropped=0 if server.hub.data_log is None else server.hub.data_log.dropped,
            descriptors=descriptors.limit(),
        )

    def _interfaces(self) -> list[InterfaceUse]:
        return [self._use(one) for one in self._server.settings.interfaces.values()]

    def _use(self, interface: Interface) -> InterfaceUse:
        hub = self._server.hub
        name = interface.name
        numbers = hub.registry.statistics(name)
        refusals = {reason: count for (where, reason), count in hub.refusals.items() if where == name}
        return InterfaceUse(
            name=name,
            active=numbers.active,
            persistent=len(hub.persistent[name]),
            datagram=len(hub.paired[name]),
            limit=tunnel_limit(interface),
            high_water=numbers.high_water,
            total=numbers.total,
            listening=any(port.interface == name for port in self._server.listeners.open_ports),
            refusals=refusals,
        )

    # -- answers ------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """See ``Backend``."""
        facts = self.facts()
        server = self._server
        return {
            "version": facts.version,
            "uptime": round(facts.uptime, 1),
            "configuration": server.settings.source,
            "reload": {
                "error": server.reload_error,
                "at": server.reloaded_at,
                "waiting": list(server.waiting),
            },
            "interfaces": [self._interface(use) for use in facts.interfaces],
            "descriptors": facts.descriptors,
            "unconfigured": len(server.hub.unconfigured),
            "pools": [_plain(pool) for pool in facts.pools],
            "drops": {name: n for name, n in facts.counters.items() if n and name.startswith("drop_")},
            "sbcs": server.calls.status(),
            "listeners": {"opened": server.listeners.opened, "closed": server.listeners.closed},
        }

    def _interface(self, use: InterfaceUse) -> dict[str, Any]:
        settings = self._server.settings.interfaces[use.name]
        ports = [
            {
                "name": one.port.name,
                "address": str(one.port.address),
                "port": one.number,
                "transports": [transport.value for transport in one.transports],
            }
            for one in self._server.listeners.open_ports
            if one.interface == use.name
        ]
        return {
            **_plain(use),
            "enabled": settings.enabled,
            "realm": settings.realm.name,
            "core": settings.realm.core.value,
            "services": format_services(settings.assigned_services),
            "ports": ports,
        }

    def tunnels(self, *, after: int, limit: int, match: str) -> dict[str, Any]:
        """See ``Backend``. The cursor is the session's number; a search may give a short page and go on."""
        found: list[dict[str, Any]] = []
        last = after
        scanned = 0
        for record in islice(self._server.hub.registry.after(after), SCAN):
            scanned += 1
            last = record.session
            row = self._row(record)
            if _matches(row, match):
                found.append(row)
            if len(found) == limit:
                break
        more = len(found) == limit or scanned == SCAN
        return {"tunnels": found, "next": last if more else None, "total": len(self._server.hub.registry)}

    def _row(self, record: Record[Peer]) -> dict[str, Any]:
        peer = record.value
        return {
            **peer.describe(),
            "session": record.session,
            "state": peer.state.value,
            "transport": peer.transport.value,
            "tls": peer.tls_version,
            "method": None if peer.identity is None else peer.identity.method,
            "ddt": peer.session.ddt_state.value,
            "streams": int(peer.stream is not None) + peer.session.streams.up,
            "redundancy": str(peer.session.streams.redundancy),
            "seconds": round(self._server.hub.now() - peer.since, 1),
        }

    def tunnel(self, tsid: str) -> dict[str, Any]:
        """See ``Backend``."""
        record = self._find(tsid)
        peer = record.value
        core = self._server.hub.core
        stats: dict[str, Any] = {"stream": None, "datagram": None}
        further = [(f"stream {n}", tunnel) for n, tunnel in enumerate(peer.further.tunnels.values(), 2)]
        for path, tunnel in (("stream", peer.stream), ("datagram", peer.datagram), *further):
            if tunnel is not None:
                with suppress(KeyError):
                    stats[path] = _attributes(core.tunnel_stats(tunnel), TunnelStats)
        flows = core.flow_stats(record.session)
        return {
            **self._row(record),
            "services": format_services(peer.offer.services),
            "ddt_tsid": None if record.ddt_tsid is None else f"{record.ddt_tsid:016x}",
            "ddt_outer": peer.datagram_outer,
            "breakers": [path.name.lower() for path in Path if peer.downstream.is_open(path)],
            "paths": stats,
            "flows": [_attributes(flow, FlowStats) for flow in flows[:MAX_FLOWS_SHOWN]],
            "flow_count": len(flows),
            "quality": [
                {
                    "path": one.path.name.lower(),
                    "interval_ms": one.interval_ms,
                    "received": one.received,
                    "lost": one.lost,
                    "jitter_us": one.jitter_us,
                    "delay_us": one.delay_us,
                }
                for one in peer.quality
            ],
            "coding": peer.describe_coding(),
            "switches": [one.shown(self._server.hub.now()) for one in peer.downlink.switches],
            "judged": None if peer.downlink.decision is None else str(peer.downlink.decision),
            "drops": {**core.session_drops(record.session), **peer.session.counts},
        }

    def disconnect(self, tsid: str) -> dict[str, Any]:
        """See ``Backend``."""
        record = self._find(tsid)
        record.value.terminate(Code.NOT_ALLOWED, "disconnected by the operator")
        return {"disconnected": f"{record.stream_tsid:016x}"}

    def _find(self, tsid: str) -> Record[Peer]:
        try:
            number = Tsid(int(tsid, 16))
        except ValueError:
            raise AdminError(f"{tsid[:40]!r} is not a TSID: 16 hexadecimal digits") from None
        record = self._server.hub.registry.by_tsid(number)
        if record is None:
            raise AdminError(
                f"there is no tunnel with TSID {number:016x}; `opentsm status tunnels` lists them"
            )
        return record

    def set_log_level(self, level: str) -> dict[str, Any]:
        """See ``Backend``. It holds until the next reload that changes it, or the end."""
        try:
            logs.set_level(LogLevel(level))
        except ValueError:
            known = ", ".join(one.value for one in LogLevel)
            raise AdminError(f"there is no log level {level[:40]!r}; known: {known}") from None
        return {"level": level}

    async def reload(self) -> dict[str, Any]:
        """See ``Backend``."""
        changes = await self._server.reload()
        return {"ok": not self._server.reload_error, "error": self._server.reload_error, "changes": changes}


def _matches(row: dict[str, Any], match: str) -> bool:
    if not match:
        return True
    texts = (row["tsid"], row["identity"], row["outer"], row["interface"], row["state"], *row["inner"])
    return any(match in text for text in texts if text is not None)


def _pool_use(one: Any) -> PoolUse:
    return PoolUse(
        pool=one.pool,
        family="IPv4" if one.family == 1 else "IPv6",
        capacity=one.capacity,
        leased=one.leased,
        resting=one.resting,
        high_water=one.high_water,
        exhausted=one.exhausted,
    )


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _attributes(value: object, kind: type) -> dict[str, Any]:
    """The public attributes of a native object."""
    return {name: getattr(value, name) for name in dir(kind) if not name.startswith("_")}
