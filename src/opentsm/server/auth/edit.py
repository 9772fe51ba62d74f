"""Changing an account file: one editor at a time, and a reader sees the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from opentsm.errors import ConfigError

from .account_file import Account, check_name, read_text


def set_account(path: Path, name: str, secret: str, attributes: dict[str, str] | None = None) -> bool:
    """Add an account or change its secret; comments and other lines stay as they are.

    Args:
        path: the file; made with mode 0600 where there is none.
        name: the account.
        secret: the stored form of its secret (a hash, never the secret itself).
        attributes: new attributes, or None to keep those it has.

    Returns:
        True if the account is new.

    Raises:
        ConfigError: the name cannot be used, or the file cannot be read.
        OSError: the file cannot be written.
    """
    wrong = check_name(name)
    if wrong is not None:
        raise ConfigError(wrong, source=name)
    with _locked(path.parent):
        lines = _lines(path)
        at = _find(lines, name)
        account = Account(name, secret) if at is None else replace(_account(lines[at]), secret=secret)
        if attributes is not None:
            account = replace(account, attributes=attributes)
        if at is None:
            lines.append(account.line())
        else:
            lines[at] = account.line()
        _replace(path, lines)
    return at is None


def delete_account(path: Path, name: str) -> bool:
    """Remove an account; False if it was not there (and the file is not touched)."""
    with _locked(path.parent):
        lines = _lines(path)
        at = _find(lines, name)
        if at is None:
            return False
        del lines[at]
        _replace(path, lines)
    return True


def _lines(path: Path) -> list[str]:
    return read_text(path).splitlines() if path.exists() else []


def _find(lines: list[str], name: str) -> int | None:
    return next((i for i, line in enumerate(lines) if line.partition(":")[0] == name), None)


def _account(line: str) -> Account:
    """A line of the file, its attributes taken as they are: an editor repairs, it does not judge."""
    name, _, rest = line.partition(":")
    secret, _, extra = rest.partition(":")
    pairs = (part.partition("=") for part in extra.split(",") if part.strip())
    return Account(name, secret, {key.strip(): value.strip() for key, _, value in pairs})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Editors of files in this folder take turns. The file itself is replaced, so it cannot be locked."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, lines: list[str]) -> None:
    """Write a new file beside the old one and move it over; the owner of the old one keeps it."""
    target = path.resolve()
    handle, fresh = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            _keep_owner(target, file.fileno())
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


def _keep_owner(target: Path, handle: int) -> None:
    """A server that runs as its own user must still be able to read a file that root has changed."""
    if not target.exists():
        return
    status = target.stat()
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(handle, status.st_uid, status.st_gid)
