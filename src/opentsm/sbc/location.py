"""Where users are: the bindings of addresses-of-record to contacts (RFC 3261 section 10)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from .deadlines import Deadlines
from .hop import Hop

MAX_CONTACTS: Final = 10
"""Contacts of one user: desk phone, softphones and the ones that were restarted lately. A further one
takes the place of the one that ends first, so a phone that forgets its contacts harms only itself."""

CORE_OWNER: Final = ""
"""Owner of what a phone outside of the tunnels registered: its password was all the proof there is."""

MAX_USERS: Final = 100_000
"""Users with a binding: half the highest ``max-tunnels``; about 1 KiB each."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One contact of one user.

    Attributes:
        aor: ``user@domain``. key: what makes it another contact: instance and reg-id (RFC 5626), or the URI.
        contact: URI text. params: header parameters to repeat to the phone (instance, reg-id, q).
        hop: where its REGISTER came from; calls go there, whatever the contact says.
        path: Path values (RFC 3327). q: 0 to 1. expires_at: on the core's clock.
        call_id, sequence: of the REGISTER. owner: identity of the client that registered it.
    """

    aor: str
    key: str
    contact: str
    params: str
    hop: Hop
    path: tuple[str, ...]
    q: float
    expires_at: float
    call_id: str
    sequence: int
    owner: str


class Location:
    """All bindings, in memory."""

    def __init__(self) -> None:
        self._users: dict[str, dict[str, Binding]] = {}
        self._addresses: dict[str, Counter[str]] = {}
        self._deadlines: Deadlines[tuple[str, str]] = Deadlines()

    def __len__(self) -> int:
        return len(self._users)

    def is_full_for(self, aor: str) -> bool:
        return aor not in self._users and len(self._users) >= MAX_USERS

    def of(self, aor: str) -> list[Binding]:
        """Bindings of a user, the most wanted first (by q), the freshest first among equals."""
        return sorted(self._users.get(aor, {}).values(), key=lambda b: (-b.q, -b.expires_at))

    def get(self, aor: str, key: str) -> Binding | None:
        return self._users.get(aor, {}).get(key)

    def at(self, address: str) -> frozenset[str]:
        """Users registered from this source (``Hop.source``)."""
        return frozenset(self._addresses.get(address, ()))

    def put(self, binding: Binding) -> Binding | None:
        """Add or replace a binding. Returns the one that had to make room, if any."""
        self.remove(binding.aor, binding.key)
        contacts = self._users.setdefault(binding.aor, {})
        evicted = None
        if len(contacts) >= MAX_CONTACTS:
            evicted = min(contacts.values(), key=lambda b: b.expires_at)
            self.remove(binding.aor, evicted.key)
            contacts = self._users.setdefault(binding.aor, {})
        contacts[binding.key] = binding
        self._addresses.setdefault(binding.hop.source, Counter())[binding.aor] += 1
        self._deadlines.set((binding.aor, binding.key), binding.expires_at)
        return evicted

    def remove(self, aor: str, key: str) -> bool:
        contacts = self._users.get(aor, {})
        binding = contacts.pop(key, None)
        if binding is None:
            return False
        if not contacts:
            del self._users[aor]
        self._deadlines.cancel((aor, key))
        here = self._addresses[binding.hop.source]
        here[aor] -= 1
        if not here[aor]:
            del here[aor]
        if not here:
            del self._addresses[binding.hop.source]
        return True

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def expire(self, now: float) -> list[str]:
        """Forget what is over. Returns the users that lost a binding."""
        changed: dict[str, None] = {}
        while (due := self._deadlines.pop_due(now)) is not None:
            self.remove(*due)
            changed[due[0]] = None
        return list(changed)
