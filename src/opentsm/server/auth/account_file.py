"""Files of accounts: one a line, ``name:secret[:key=value,...]``; what is common to passwords and tokens.

    # a comment
    alice:$argon2id$v=19$m=65536,t=3,p=1$...:address=10.8.0.17,address6=2001:db8::17

The name has no colon, no control characters and no space at its ends. Attributes are plain words; the
keys ``address`` and ``address6`` hold the account's fixed inner addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

from opentsm.errors import ConfigError
from opentsm.limits import MAX_TEXT

MAX_ACCOUNTS: Final = 1_000_000
"""Accounts in one file; beyond that a plug-in in front of a real directory is the better tool."""

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
"""Bytes of an account file: a million lines of the usual 150 bytes, and some room."""

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """One line: a name, the stored form of its secret, and what else is known."""

    name: str
    secret: str = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def line(self) -> str:
        """The account as it stands in the file, without the line's end."""
        extra = ",".join(f"{key}={value}" for key, value in self.attributes.items())
        return f"{self.name}:{self.secret}:{extra}" if extra else f"{self.name}:{self.secret}"


def check_name(name: str) -> str | None:
    """What is wrong with a name of an account; None if it may be used."""
    if not name or name != name.strip():
        return "a name must not be empty, nor begin or end with a space"
    if name.startswith("#"):
        return "a name must not begin with #, which begins a comment"
    if ":" in name or not name.isprintable():
        return "a name must have no colon and no control characters"
    if len(name.encode(errors="surrogatepass")) > MAX_TEXT:
        return f"a name must have at most {MAX_TEXT} bytes"
    return None


def parse_accounts(
    text: str, *, source: str, check_secret: Callable[[str], str | None], most: int = MAX_ACCOUNTS
) -> dict[str, Account]:
    """Read a whole account file.

    Args:
        text: the file's content.
        source: its name, for errors.
        check_secret: says what is wrong with a stored secret, or None.
        most: accounts the file may hold.

    Raises:
        ConfigError: a line cannot be used; nothing of the file is.
    """
    accounts: dict[str, Account] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        account = _parse_line(line, source, number)
        wrong = check_secret(account.secret)
        if wrong is None and account.name in accounts:
            wrong = f"the name {account.name!r} stands here a second time"
        if wrong is None and len(accounts) >= most:
            wrong = f"the file holds more than {most} accounts"
        if wrong is not None:
            raise ConfigError(wrong, source=source, line=number, hint="see `opentsm passwd --help`")
        accounts[account.name] = account
    return accounts


def _parse_line(line: str, source: str, number: int) -> Account:
    name, colon, rest = line.partition(":")
    secret, _, extra = rest.partition(":")
    wrong = check_name(name) if colon else "this is not a line of the form name:secret"
    if wrong is not None:
        raise ConfigError(wrong, source=source, line=number, hint="see `opentsm passwd --help`")
    try:
        return Account(name, secret.strip(), parse_attributes(extra))
    except ValueError as error:
        raise ConfigError(str(error), source=source, line=number) from None


def parse_attributes(text: str) -> Mapping[str, str]:
    """``a=1,b=2`` -> a read-only mapping.

    Raises:
        ValueError: it is not of that form, or an address is none.
    """
    attributes: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{part!r} is not of the form key=value")
        attributes[key.strip()] = value.strip()
    if "address" in attributes:
        IPv4Address(attributes["address"])
    if "address6" in attributes:
        IPv6Address(attributes["address6"])
    return MappingProxyType(attributes)


class WatchedAccounts:
    """The accounts of a file, read again when the file has changed.

    A file that cannot be read any more, or has a line that cannot be used, changes nothing: the accounts
    read last stay good, and the log says why once for each state of the file.

    Args:
        path: the file; it must be good when the server starts.
        check_secret: as in ``parse_accounts``.
        most: as in ``parse_accounts``.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(
        self, path: Path, check_secret: Callable[[str], str | None], *, most: int = MAX_ACCOUNTS
    ) -> None:
        self._path = path
        self._most = most
        self._check_secret = check_secret
        self._signature = self._current_signature()
        self._accounts = self._read()

    def current(self) -> Mapping[str, Account]:
        """The accounts as of now. Asks for the file's status each time, reads it only after a change."""
        signature = self._current_signature()
        if signature != self._signature:
            self._signature = signature
            try:
                self._accounts = self._read()
                _log.info("account file read again", file=str(self._path), accounts=len(self._accounts))
            except ConfigError as error:
                _log.error("account file not used, the accounts read before stay", error=str(error))
        return self._accounts

    def _current_signature(self) -> tuple[int, int, int] | None:
        """Changes with every replacement or rewriting of the file."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def _read(self) -> dict[str, Account]:
        text = read_text(self._path)
        return parse_accounts(text, source=str(self._path), check_secret=self._check_secret, most=self._most)


def read_text(path: Path) -> str:
    """The text of an account file.

    Raises:
        ConfigError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"larger than {MAX_FILE_BYTES >> 20} MiB", source=str(path))
        return content.decode()
    except OSError as error:
        hint = "make it with `opentsm passwd`" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(error.strerror or str(error), source=str(path), hint=hint) from None
    except UnicodeDecodeError:
        raise ConfigError("this is not UTF-8 text", source=str(path)) from None
