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


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One configured client session of a server: what its next process needs to let the client come back.

    Attributes:
        tsid: of its stream tunnel, the key. interface, transport: where it came in; it comes back there only.
        identity, method, attributes: who it was authenticated as.
        addresses: its inner addresses, as text. outer: where its stream came from last, as (text, port).
        generation, proved: of its newest resume secret, and of the one that was shown for it. No secret is
            kept: they are made from one key.
    """

    tsid: int
    interface: str
    transport: str
    identity: str
    method: str
    attributes: tuple[tuple[str, str], ...]
    addresses: tuple[str, ...]
    outer: tuple[str, int]
    generation: int
    proved: int


class SessionStore(Protocol):
    """Sessions of a server, and when it was last alive."""

    def save_session(self, row: SessionRow) -> None:
        """The session of this TSID is now this."""
        ...

    def forget_session(self, tsid: int) -> None:
        """The session is over."""
        ...

    def mark_alive(self, now: float) -> None:
        """The server is alive at ``now`` (seconds since 1970)."""
        ...

    async def sessions(self, since: float) -> list[SessionRow]:
        """All sessions, if the server was alive after ``since``. Else they are forgotten: no client still
        hopes for its address."""
        ...


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


class DialogStore(Protocol):
    """Answered calls in progress.

    Attributes:
        outlives: what is kept is found by the next process.
    """

    outlives: bool

    def save_dialog(self, key: str, state: dict[str, Any]) -> None:
        """The call of this key is now this; values as JSON has them."""
        ...

    def forget_dialog(self, key: str) -> None:
        """The call is over."""
        ...

    async def dialogs(self) -> list[dict[str, Any]]:
        """All calls that are kept."""
        ...


class SecretStore(Protocol):
    """Secrets that a process makes once and finds again after a restart."""

    async def secret(self, name: str, size: int = 32) -> bytes:
        """The random secret of this name, made when first asked for."""
        ...


class Store(LocationStore, CallStore, DialogStore, SecretStore, SessionStore, Protocol):
    """All of it, and an end."""

    async def close(self) -> None:
        """Write what is waiting, then close."""
        ...
