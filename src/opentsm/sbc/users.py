"""SIP accounts: who may register, and the stored form of their passwords.

A file of accounts has the format of ``htdigest``, one hash a line, so that passwords are never stored:

    # name:realm:H(name:realm:password)      32 hexadecimal digits: MD5, 64: SHA-256
    alice:example.org:939e7578ed9e3c518a452acee763bce9

A name may have a line for each algorithm; its phone is offered the algorithms that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from opentsm.errors import ConfigError

from .digest import ha1
from .settings import ALGORITHMS

MAX_USERS: Final = 1_000_000
"""Lines of one file; beyond that a provider in front of a real directory is the better tool."""

_BY_LENGTH: Final = {32: "MD5", 64: "SHA-256"}


class Credentials(Protocol):
    """Where digest hashes come from. Both methods answer at once, from memory."""

    def ha1(self, user: str, algorithm: str) -> str | None:
        """H(user:realm:password) in lower-case hexadecimal digits; None if there is none."""
        ...

    def knows(self, user: str) -> bool:
        """Whether there is such a user at all, registered or not."""
        ...


class Users:
    """Accounts in memory.

    Args:
        hashes: (name, algorithm) to H(A1).
    """

    def __init__(self, hashes: Mapping[tuple[str, str], str]) -> None:
        self._hashes = dict(hashes)
        self._names = {name for name, _ in hashes}

    @classmethod
    def from_passwords(
        cls, realm: str, passwords: Mapping[str, str], algorithms: Iterable[str] = ALGORITHMS
    ) -> Users:
        """Accounts of plain passwords, for tests and demonstrations."""
        algorithms = tuple(algorithms)
        return cls(
            {
                (name, algorithm): ha1(algorithm, name, realm, password)
                for name, password in passwords.items()
                for algorithm in algorithms
            }
        )

    @classmethod
    def from_file(cls, path: Path, realm: str) -> Users:
        """Read a file of accounts; lines of other realms are left out.

        Raises:
            ConfigError: the file cannot be read, or a line cannot be used.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the SIP accounts cannot be read: {error}", source=str(path), hint="check sbc users-file"
            ) from None
        return cls(parse_users(text, realm, source=str(path)))

    def ha1(self, user: str, algorithm: str) -> str | None:
        return self._hashes.get((user, algorithm))

    def knows(self, user: str) -> bool:
        return user in self._names


def parse_users(text: str, realm: str, *, source: str) -> dict[tuple[str, str], str]:
    """The content of a file of accounts (see the module).

    Raises:
        ConfigError: with the line that is wrong.
    """
    hashes: dict[tuple[str, str], str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.strip().split(":")
        algorithm = _BY_LENGTH.get(len(parts[-1]))
        digits = all(c in "0123456789abcdefABCDEF" for c in parts[-1])
        if len(parts) != 3 or not parts[0] or algorithm is None or not digits:
            hint = "write name:realm:hash, the hash as `htdigest` makes it"
            raise ConfigError("this is no SIP account", source=source, line=number, hint=hint)
        if len(hashes) >= MAX_USERS:
            raise ConfigError(f"more than {MAX_USERS} accounts", source=source, line=number)
        if parts[1] == realm:
            hashes[parts[0], algorithm] = parts[2].lower()
    return hashes


def account_line(name: str, realm: str, password: str, algorithm: str) -> str:
    """One line of a file of accounts."""
    return f"{name}:{realm}:{ha1(algorithm, name, realm, password)}"
