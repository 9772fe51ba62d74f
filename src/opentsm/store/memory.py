"""A store for servers that have no file to keep things in: registrations last as long as the process."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from .ports import BindingRow, SessionRow

MAX_CALLS: Final = 10_000
"""Call records kept, about 1 KiB each; a file keeps more."""


class MemoryStore:
    """Keeps everything in memory."""

    outlives = False

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        self._bindings: dict[str, tuple[BindingRow, ...]] = {}
        self._calls: deque[dict[str, Any]] = deque(maxlen=max_calls)
        self._secrets: dict[str, bytes] = {}
        self._dialogs: dict[str, dict[str, Any]] = {}
        self._sessions: dict[int, SessionRow] = {}
        self._alive = 0.0

    def save_bindings(self, user: str, rows: Sequence[BindingRow]) -> None:
        if rows:
            self._bindings[user] = tuple(rows)
        else:
            self._bindings.pop(user, None)

    async def bindings(self, now: float) -> list[BindingRow]:
        return [row for rows in self._bindings.values() for row in rows if row.expires_at > now]

    def add_call(self, record: dict[str, Any]) -> None:
        self._calls.append(record)

    async def calls(self, limit: int = 100, user: str | None = None) -> list[dict[str, Any]]:
        wanted = [c for c in reversed(self._calls) if user is None or user in (c["caller"], c["callee"])]
        return wanted[:limit]

    def save_dialog(self, key: str, state: dict[str, Any]) -> None:
        self._dialogs[key] = state

    def forget_dialog(self, key: str) -> None:
        self._dialogs.pop(key, None)

    async def dialogs(self) -> list[dict[str, Any]]:
        return list(self._dialogs.values())

    async def secret(self, name: str, size: int = 32) -> bytes:
        return self._secrets.setdefault(name, secrets.token_bytes(size))

    def save_session(self, row: SessionRow) -> None:
        self._sessions[row.tsid] = row

    def forget_session(self, tsid: int) -> None:
        self._sessions.pop(tsid, None)

    def mark_alive(self, now: float) -> None:
        self._alive = now

    async def sessions(self, since: float) -> list[SessionRow]:
        if self._alive < since:
            self._sessions.clear()
        return list(self._sessions.values())

    async def close(self) -> None:
        return None
