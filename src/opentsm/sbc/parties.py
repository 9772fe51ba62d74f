"""Who stands behind an inner address, and the two sides of a call."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """A tunnelled client, as the server knows it. Its inner source addresses cannot be forged.

    Args:
        name: its authenticated identity.
        session, tsid: for commands and for log lines.
        addresses: its inner addresses, one of each family at most.
        users: SIP user names it may register; None: its own name only. An empty set: none.
            ``ANY_USER`` among them: every name it has the password for.
    """

    name: str
    session: int
    tsid: int
    addresses: tuple[str, ...]
    users: frozenset[str] | None = None

    def may_register(self, user: str) -> bool:
        if self.users is None:
            return user == self.name
        return user in self.users or ANY_USER in self.users


ANY_USER = "*"
"""In ``Client.users``: the SIP password alone decides, as for a PBX that registers its extensions."""

IdentityOf = Callable[[str], Client | None]
"""The client that holds an inner address now, or None."""


class Side(enum.Enum):
    """A side of a call, named by who sent the first INVITE."""

    CALLER = "caller"
    CALLEE = "callee"

    @property
    def other(self) -> Side:
        return Side.CALLEE if self is Side.CALLER else Side.CALLER
