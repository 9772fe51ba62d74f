"""Hashes that are quick to make: the tests are about who gets in, not about the cost of argon2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from argon2 import PasswordHasher

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)

WriteAccounts = Callable[..., Path]


@pytest.fixture
def write_accounts(tmp_path: Path) -> WriteAccounts:
    """Write an account file from names and passwords; attributes may follow a password after ``:``."""

    def write(**passwords: str) -> Path:
        lines = []
        for name, text in passwords.items():
            password, _, extra = text.partition(":")
            lines.append(f"{name}:{QUICK.hash(password)}" + (f":{extra}" if extra else ""))
        path = tmp_path / "accounts"
        fresh = tmp_path / "accounts.new"
        fresh.write_text("# who may come in\n\n" + "\n".join(lines) + "\n")
        fresh.replace(path)
        return path

    return write
