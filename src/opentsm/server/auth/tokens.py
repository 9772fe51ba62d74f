"""Static tokens: long random strings for trunks and machines, stored as their SHA-256.

A fast hash is right here and wrong for passwords: a token of 256 random bits cannot be guessed, however
fast the guesses are checked. ``opentsm passwd --token`` makes them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Final

from .account_file import Account, WatchedAccounts
from .model import NOT_OFFERED, Credentials, Identity, denied

TOKEN_BYTES: Final = 32
"""Random bytes of a token we make."""

MAX_TOKENS: Final = 1000
"""Tokens in one file: a nameless attempt is compared with each of them, 0.2 ms in all. Tokens are for trunks
and machines; people have passwords or certificates."""


def make_token() -> str:
    """A new token, to be shown once."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def hash_token(token: bytes) -> str:
    """The stored form of a token: SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(token).hexdigest()


def check_token_hash(secret: str) -> str | None:
    """What is wrong with a stored token; None if it can be compared with."""
    if re.fullmatch(r"[0-9a-f]{64}", secret):
        return None
    return "the secret is not a SHA-256 in 64 lower-case hexadecimal digits"


class TokenFile:
    """The password field as a token against an account file, which may change while the server runs.

    A client may leave the name out; a name that is there has to be the token's.

    Args:
        path: the file.

    Raises:
        ConfigError: the file cannot be used.
    """

    method: Final = "token"

    def __init__(self, path: Path) -> None:
        self._accounts = WatchedAccounts(path, check_token_hash, most=MAX_TOKENS)

    async def authenticate(self, credentials: Credentials) -> Identity:
        """See ``Authenticator``."""
        if not credentials.password:
            raise denied(NOT_OFFERED)
        account = self._find(hash_token(credentials.password))
        if account is None:
            raise denied("unknown-token")
        if credentials.username and credentials.username != account.name:
            raise denied("name-mismatch")
        return Identity(name=account.name, method=self.method, attributes=account.attributes)

    def _find(self, digest: str) -> Account | None:
        """Compares with every stored one, each in constant time: its place in the file does not show."""
        found: Account | None = None
        for account in self._accounts.current().values():
            if hmac.compare_digest(account.secret, digest):
                found = account
        return found
