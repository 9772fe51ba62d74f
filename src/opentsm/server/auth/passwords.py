"""Passwords: argon2id hashes in an account file that ``opentsm passwd`` keeps.

argon2 takes tens of milliseconds of CPU and 64 MiB on purpose (RFC 9106), so it runs in a few threads
beside the event loop, and what waits for them is bounded. argon2 releases the GIL while it works.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError

from opentsm.limits import MAX_PASSWORD

from .account_file import Account, WatchedAccounts
from .model import NOT_OFFERED, Credentials, Identity, denied
from .remembered import Remembered
from .slots import Slots

Admit = Callable[[Credentials], None]

HASHER: Final = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)
"""RFC 9106's second recommended choice (64 MiB, 3 passes), in one lane: several at once are better
spread over several checks than over the cores that packets need."""

MAX_HASH_MEMORY: Final = 256 * 1024
"""KiB one stored hash may ask for: a file from elsewhere must not make the server eat the machine."""

MAX_HASH_PASSES: Final = 16
"""Passes over that memory one stored hash may ask for; the same reason, for time."""

MAX_HASH_LANES: Final = 8
"""Threads one stored hash may ask for; the same reason again."""

_MOST: Final = (MAX_HASH_MEMORY, MAX_HASH_PASSES, MAX_HASH_LANES)


def hash_password(password: bytes) -> str:
    """The stored form of a password.

    Raises:
        ValueError: it is empty or longer than the protocol carries.
    """
    if not password:
        raise ValueError("a password must not be empty")
    if len(password) > MAX_PASSWORD:
        raise ValueError(f"a password must have at most {MAX_PASSWORD} bytes")
    return HASHER.hash(password)


def check_hash(secret: str) -> str | None:
    """What is wrong with a stored hash; None if a password can be checked against it."""
    try:
        parameters = extract_parameters(secret)
    except (InvalidHashError, ValueError):
        return "the secret is not an argon2id hash"
    if parameters.type is not Type.ID:
        return "the secret is a hash of another kind of argon2; argon2id is needed"
    asked = (parameters.memory_cost, parameters.time_cost, parameters.parallelism)
    if any(value > most for value, most in zip(asked, _MOST, strict=True)):
        return "the hash asks for more than {} KiB of memory, {} passes or {} lanes".format(*_MOST)
    return None


def matches(secret: str, password: bytes) -> bool:
    """Whether the password is the one that was hashed. Takes as long for a wrong one as for the right one."""
    try:
        return HASHER.verify(secret, password)
    except Argon2Error:
        return False


@functools.cache
def decoy_hash() -> str:
    """A hash nobody's password is checked against in earnest."""
    return HASHER.hash(b"\x00 no account has this")


class PasswordFile:
    """Name and password against an account file, which may change while the server runs.

    An unknown name costs the same time as a wrong password, so that names cannot be found by timing.

    Args:
        path: the file.
        admit: called with the credentials right before an expensive check, inside the bound on checks at
            once; may raise AuthenticationFailed (attempts per source, see ``Limited``).
        slots: the bound; by default one of its own.

    Raises:
        ConfigError: the file cannot be used.
    """

    method: Final = "password"

    def __init__(self, path: Path, *, admit: Admit | None = None, slots: Slots | None = None) -> None:
        self._accounts = WatchedAccounts(path, check_hash)
        self._admit = admit
        self._slots = slots or Slots()
        self._remembered = Remembered(time.monotonic)

    async def authenticate(self, credentials: Credentials) -> Identity:
        """See ``Authenticator``."""
        if not credentials.username or not credentials.password:
            raise denied(NOT_OFFERED)
        if len(credentials.password) > MAX_PASSWORD:
            raise denied("wrong-password")
        known = self._accounts.current().get(credentials.username)
        if known is not None and self._remembered.knows(known.name, known.secret, credentials.password):
            return self._identity(known)
        async with self._slots.slot():
            if self._admit is not None:
                self._admit(credentials)
            accounts = self._accounts.current()
            return await self._slots.run(lambda: self._check(accounts, credentials))

    def _check(self, accounts: Mapping[str, Account], credentials: Credentials) -> Identity:
        account = accounts.get(credentials.username)
        right = matches(_any_secret(accounts) if account is None else account.secret, credentials.password)
        if account is None:
            raise denied("unknown-user")
        if not right:
            raise denied("wrong-password")
        self._remembered.was_right(account.name, account.secret, credentials.password)
        return self._identity(account)

    def _identity(self, account: Account) -> Identity:
        return Identity(name=account.name, method=self.method, attributes=account.attributes)

    def close(self) -> None:
        """Stop the threads."""
        self._slots.close()


def _any_secret(accounts: Mapping[str, Account]) -> str:
    """A hash that costs what the accounts' own cost: one of theirs where there is any."""
    first = next(iter(accounts.values()), None)
    return decoy_hash() if first is None else first.secret
