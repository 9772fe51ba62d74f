"""What an interface gives a new tunnel: fixed when the client arrives, so reloads touch only later ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import opentsm
from opentsm.config.model import DataFlow, Interface, PoolSettings, Sbc, Settings
from opentsm.engine.addresses import Family
from opentsm.engine.pools import PoolSet
from opentsm.limits import MAX_TUNNELS_PER_INTERFACE
from opentsm.protocol.server import ServerSettings
from opentsm.server.core_side import INNER_MTU
from opentsm.server.leases import Leases
from opentsm.types import IpAddress, Service

STREAM_PROBE: Final = 30.0
"""Seconds between a client's probes of its stream: keeps the TCP binding of a NAT (RFC 5382 allows 124 min,
many boxes forget after a few) and finds a dead path long before the keepalive-timer ends."""

PROBES_PER_TIMER: Final = 3
"""Probes within one keepalive-timer: two may be lost before silence counts."""

DATAGRAM_PROBE: Final = 1.0
"""Seconds between probes of a datagram tunnel, from both sides: what media itself does not show within a
second, they do; 60 bytes a second per client."""

DATAGRAM_SILENCE: Final = 2.5
"""Unanswered probes for this long make the server send by the stream. The client judges in a fraction of
that and tells us; this is for the client whose word does not get through."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One interface, as a new tunnel finds it. Times in milliseconds, as the user plane wants them."""

    interface: Interface
    session: ServerSettings
    pools: PoolSet
    sbc: Sbc | None
    idle_stream: int
    idle_datagram: int
    probe_stream: int

    @property
    def name(self) -> str:
        return self.interface.name

    @property
    def media_age(self) -> int:
        """Milliseconds after which media that waits on a stream is stale."""
        return round(self.interface.media_age * 1000)

    @property
    def services(self) -> frozenset[Service]:
        return self.interface.assigned_services

    @property
    def between_clients(self) -> bool:
        """Whether the interface's clients may reach other clients."""
        return Service.INTER_CLIENT_BLOCK not in self.services

    def pool(self, name: str) -> PoolSettings | None:
        return next((pool for pool in self.interface.address_pools if pool.name == name), None)

    def sip_server(self, pool: str, families: Family) -> tuple[IpAddress, int] | None:
        """The SIP server told to a client with an address of this pool: the pool's, else the realm's SBC if
        the client has an address of its family."""
        settings = self.pool(pool)
        if settings is not None and settings.sip_server is not None:
            return settings.sip_server
        if self.sbc is None or Family.of(self.sbc.address) not in families:
            return None
        return self.sbc.address, self.sbc.port

    def rates(self, pool: str) -> tuple[int, int]:
        """Upstream and downstream rate of a client with an address of this pool, bytes/s; 0 = none."""
        settings = self.pool(pool)
        flow = None if settings is None else settings.data_flow
        if flow is None or not _meant(flow, self.interface):
            return 0, 0
        return flow.upstream_rate, flow.downstream_rate


def _meant(flow: DataFlow, interface: Interface) -> bool:
    return flow.realm is None or flow.realm.name == interface.realm.name


def make_offers(settings: Settings, leases: Leases, *, epoch: int | None = None) -> dict[str, Offer]:
    """What each interface gives new tunnels under these settings, from a process of this number."""
    interfaces = settings.interfaces.values()
    return {interface.name: _offer(interface, settings, leases, epoch) for interface in interfaces}


def shared_rates(settings: Settings) -> tuple[str, ...]:
    """Data flows whose limit is meant for a group of clients; the user plane limits each client by itself."""
    flows = settings.data_flows.values()
    limited = (flow for flow in flows if flow.upstream_rate or flow.downstream_rate)
    return tuple(flow.name for flow in limited if flow.group_size > 1)


def tunnel_limit(interface: Interface) -> int:
    """The interface's max-tunnels as a number."""
    return interface.max_tunnels or MAX_TUNNELS_PER_INTERFACE


def _services(interface: Interface) -> frozenset[Service]:
    """Services on offer: nagle only where nagle-state lets clients have it."""
    return interface.assigned_services - (frozenset() if interface.nagle else {Service.NAGLE})


def _offer(interface: Interface, settings: Settings, leases: Leases, epoch: int | None) -> Offer:
    probe = STREAM_PROBE
    timers = settings.timers
    if timers.keepalive_timer:
        probe = min(probe, timers.keepalive_timer / PROBES_PER_TIMER)
    return Offer(
        interface=interface,
        session=ServerSettings(
            services=_services(interface),
            keepalive=probe,
            keepalive_datagram=DATAGRAM_PROBE,
            persistence=timers.tunnel_persistence_time,
            inner_mtu=INNER_MTU,
            software=f"OpenTSM/{opentsm.__version__}",
            epoch=epoch,
        ),
        pools=leases.of_interface(interface),
        sbc=settings.sbc_of(interface.realm),
        idle_stream=round(timers.keepalive_timer * 1000),
        idle_datagram=round(timers.keepalive_timer_datagram * 1000),
        probe_stream=round(probe * 1000) if Service.SERVER_KEEPALIVE in interface.assigned_services else 0,
    )
