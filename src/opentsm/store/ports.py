"""What callers may ask of a store. Writes return at once and are carried out in order; reads are awaited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class BindingRow:
    """One contact of one SIP user.

    Attributes:
        user: ``name@domain``. key: unique within the user.
        transport, local, remote: the hop its registration came by; addresses as (text, port).
        path: Path values, each on a line. expires_at: seconds since 1970.
    """

    user: str
    key: str
    contact: str
    params: str
    transport: str
    local: tuple[str, int]
    remote: tuple[str, int]
    path: str
    q: float
    expires_at: float
    call_id: str
    sequence: int
    owner: str


class LocationStore(Protocol):
    """Registrations."""

    def save_bindings(self, user: str, rows: Sequence[BindingRow]) -> None:
        """The bindings of a user are now these; none forgets the user."""
        ...

    async def bindings(self, now: float) -> list[BindingRow]:
        """All bindings that end after ``now`` (seconds since 1970)."""
        ...


class CallStore(Protocol):
    """Call detail records."""

    def add_call(self, record: dict[str, Any]) -> None:
        """Keep one record; it has at least ``call_id``, ``caller``, ``callee`` and ``ended_at`` (seconds
        since 1970). When the store is full the oldest goes."""
        ...

    async def calls(self, limit: int = 100, user: str | None = None) -> list[dict[str, Any]]:
        """The latest records, newest first; of one ``name@domain`` if given."""
        ...


class SecretStore(Protocol):
    """Secrets that a process makes once and finds again after a restart."""

    async def secret(self, name: str, size: int = 32) -> bytes:
        """The random secret of this name, made when first asked for."""
        ...


class Store(LocationStore, CallStore, SecretStore, Protocol):
    """All of it, and an end."""

    async def close(self) -> None:
        """Write what is waiting, then close."""
        ...
