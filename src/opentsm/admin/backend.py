"""What the admin side may ask a server. Answers are plain values, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from opentsm.errors import OpenTsmError


class AdminError(OpenTsmError):
    """A request that cannot be carried out; the message is for a person."""


@dataclass(frozen=True, slots=True)
class PoolUse:
    """One family of one address pool."""

    pool: str
    family: str
    capacity: int
    leased: int
    resting: int
    high_water: int
    exhausted: int


@dataclass(frozen=True, slots=True)
class InterfaceUse:
    """One interface: sessions now and since the start.

    Args:
        limit: most sessions it may have.
        refusals: clients refused, by reason.
        listening: its sockets are open.
    """

    name: str
    active: int
    persistent: int
    datagram: int
    limit: int
    high_water: int
    total: int
    listening: bool
    refusals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """The numbers of one moment: what metrics show and what warnings are made of.

    Args:
        uptime: seconds.
        certificates: seconds until each TLS profile's certificate expires.
        counters: every counter by name, those of the user plane and the control plane's own drops.
        recent: how much each counter grew in the last minute.
        reload_error: why the last reload changed nothing, or "".
        waiting: changes that wait for a restart.
        data_log_dropped: lines the data log has left out.
        collector_pause: seconds the control plane stood still in its last full collection.
        descriptors: files the server may have open, each stream tunnel being one.
    """

    version: str
    uptime: float
    interfaces: Sequence[InterfaceUse]
    pools: Sequence[PoolUse]
    certificates: dict[str, float]
    counters: dict[str, int]
    recent: dict[str, int]
    reload_error: str = ""
    waiting: Sequence[str] = ()
    data_log_dropped: int = 0
    collector_pause: float = 0.0
    descriptors: int = 0


class Backend(Protocol):
    """A server, as the admin side sees it. Every method answers at once but ``reload``."""

    def facts(self) -> Facts:
        """The numbers of this moment."""
        ...

    def status(self) -> dict[str, Any]:
        """The overview."""
        ...

    def tunnels(self, *, after: int, limit: int, match: str) -> dict[str, Any]:
        """A page of tunnels: ``tunnels``, and ``next``, the cursor of the next page or None."""
        ...

    def tunnel(self, tsid: str) -> dict[str, Any]:
        """Everything about one tunnel.

        Raises:
            AdminError: there is none with this TSID.
        """
        ...

    def disconnect(self, tsid: str) -> dict[str, Any]:
        """End a tunnel.

        Raises:
            AdminError: there is none with this TSID.
        """
        ...

    def set_log_level(self, level: str) -> dict[str, Any]:
        """Change the least severe log line written.

        Raises:
            AdminError: there is no such level.
        """
        ...

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; ``ok`` and what changed, or why nothing did."""
        ...
