"""The store in one SQLite file. One thread owns the connection; callers never wait for the disk.

Writes queue up and are committed together. If the disk stands still for so long that the queue is full,
writes are dropped by name: a lost registration comes back by itself within minutes, a server that waits does
not.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from opentsm.errors import ConfigError

from .ports import BindingRow, SessionRow

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], object]

MAX_WAITING: Final = 10_000
"""Writes that may wait for the disk, about 1 KiB each: minutes of a busy registrar."""

MAX_BATCH: Final = 500
"""Writes in one transaction: far below what a read would notice waiting for."""

MAX_CALLS: Final = 1_000_000
"""Call records kept in the file, about 1 GiB; who needs more has the JSON lines file."""

TRIM_EVERY: Final = 1_000
"""Records between two looks at whether the oldest must go."""

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE binding (
        user TEXT NOT NULL, key TEXT NOT NULL, contact TEXT NOT NULL, params TEXT NOT NULL,
        transport TEXT NOT NULL, local_address TEXT NOT NULL, local_port INTEGER NOT NULL,
        remote_address TEXT NOT NULL, remote_port INTEGER NOT NULL, path TEXT NOT NULL,
        q REAL NOT NULL, expires_at REAL NOT NULL, call_id TEXT NOT NULL,
        sequence INTEGER NOT NULL, owner TEXT NOT NULL,
        PRIMARY KEY (user, key)
    ) WITHOUT ROWID;
    CREATE TABLE call (
        id INTEGER PRIMARY KEY, call_id TEXT NOT NULL, caller TEXT NOT NULL, callee TEXT NOT NULL,
        ended_at REAL NOT NULL, record TEXT NOT NULL
    );
    CREATE INDEX call_caller ON call (caller, id);
    CREATE INDEX call_callee ON call (callee, id);
    CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE session (
        tsid BLOB PRIMARY KEY, interface TEXT NOT NULL, transport TEXT NOT NULL, identity TEXT NOT NULL,
        method TEXT NOT NULL, attributes TEXT NOT NULL, addresses TEXT NOT NULL,
        outer_address TEXT NOT NULL, outer_port INTEGER NOT NULL, generation INTEGER NOT NULL,
        proved INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE moment (name TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE dialog (key TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
    """,
)
"""Script number n brings a file of version n to version n + 1; only ever append."""

_log: Final = structlog.get_logger("opentsm.store")


class SqliteStore:
    """Sessions, registrations, call records and secrets in a file. Made by ``open``.

    Attributes:
        dropped: writes that were given up, by reason: ``queue-full``, ``failed``.
    """

    outlives = True

    def __init__(self, connection: sqlite3.Connection, max_calls: int = MAX_CALLS) -> None:
        self.dropped: Counter[str] = Counter()
        self._connection = connection
        self._max_calls = max_calls
        self._calls_until_trim = 0
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="opentsm-store", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path, *, max_calls: int = MAX_CALLS) -> SqliteStore:
        """Open the file, or make it.

        Raises:
            ConfigError: it cannot be used; the message says why.
        """
        return cls(await asyncio.to_thread(_connect, path), max_calls)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._jobs.put, None)
        await asyncio.to_thread(self._thread.join)

    # -- registrations ------------------------------------------------------------------------------
    def save_bindings(self, user: str, rows: Sequence[BindingRow]) -> None:
        values = [tuple(_storable(value) for value in _columns(row)) for row in rows]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM binding WHERE user = ?", (_storable(user),))
            marks = ", ".join("?" * 15)
            connection.executemany(f"INSERT INTO binding VALUES ({marks})", values)

        self._write(write)

    async def bindings(self, now: float) -> list[BindingRow]:
        def read(connection: sqlite3.Connection) -> list[BindingRow]:
            rows = connection.execute("SELECT * FROM binding WHERE expires_at > ?", (now,))
            return [_row(columns) for columns in rows]

        return await self._read(read)

    # -- call records -------------------------------------------------------------------------------
    def add_call(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, ensure_ascii=True)
        values = (record["call_id"], record["caller"], record["callee"], record["ended_at"], text)
        values = tuple(_storable(value) for value in values)

        def write(connection: sqlite3.Connection) -> None:
            columns = "call_id, caller, callee, ended_at, record"
            connection.execute(f"INSERT INTO call ({columns}) VALUES (?, ?, ?, ?, ?)", values)
            self._trim(connection)

        self._write(write)

    async def calls(self, limit: int = 100, user: str | None = None) -> list[dict[str, Any]]:
        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            where, values = ("", ()) if user is None else ("WHERE caller = ? OR callee = ?", (user, user))
            rows = connection.execute(
                f"SELECT record FROM call {where} ORDER BY id DESC LIMIT ?", (*values, limit)
            )
            return [json.loads(row[0]) for row in rows]

        return await self._read(read)

    # -- calls in progress --------------------------------------------------------------------------
    def save_dialog(self, key: str, state: dict[str, Any]) -> None:
        values = (_storable(key), json.dumps(state, ensure_ascii=True))
        self._write(lambda c: c.execute("INSERT OR REPLACE INTO dialog VALUES (?, ?)", values))

    def forget_dialog(self, key: str) -> None:
        values = (_storable(key),)
        self._write(lambda connection: connection.execute("DELETE FROM dialog WHERE key = ?", values))

    async def dialogs(self) -> list[dict[str, Any]]:
        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            return [json.loads(state) for (state,) in connection.execute("SELECT state FROM dialog")]

        return await self._read(read)

    def _trim(self, connection: sqlite3.Connection) -> None:
        self._calls_until_trim -= 1
        if self._calls_until_trim > 0:
            return
        self._calls_until_trim = min(TRIM_EVERY, max(1, self._max_calls // 10))
        connection.execute(
            "DELETE FROM call WHERE id <= (SELECT id FROM call ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (self._max_calls,),
        )

    # -- sessions -----------------------------------------------------------------------------------
    def save_session(self, row: SessionRow) -> None:
        values = (
            row.tsid.to_bytes(8, "big"),
            *(_storable(text) for text in (row.interface, row.transport, row.identity, row.method)),
            json.dumps(row.attributes),
            json.dumps(row.addresses),
            *row.outer,
            row.generation,
            row.proved,
        )

        def write(connection: sqlite3.Connection) -> None:
            marks = ", ".join("?" * 11)
            connection.execute(f"INSERT OR REPLACE INTO session VALUES ({marks})", values)

        self._write(write)

    def forget_session(self, tsid: int) -> None:
        key = (tsid.to_bytes(8, "big"),)
        self._write(lambda connection: connection.execute("DELETE FROM session WHERE tsid = ?", key))

    def mark_alive(self, now: float) -> None:
        self._write(lambda c: c.execute("INSERT OR REPLACE INTO moment VALUES ('alive', ?)", (now,)))

    async def sessions(self, since: float) -> list[SessionRow]:
        def read(connection: sqlite3.Connection) -> list[SessionRow]:
            alive = connection.execute("SELECT at FROM moment WHERE name = 'alive'").fetchone()
            if alive is None or alive[0] < since:
                connection.execute("DELETE FROM session")
            return [_session(columns) for columns in connection.execute("SELECT * FROM session")]

        return await self._read(read)

    # -- secrets ------------------------------------------------------------------------------------
    async def secret(self, name: str, size: int = 32) -> bytes:
        def read(connection: sqlite3.Connection) -> bytes:
            fresh = (name, secrets.token_bytes(size))
            connection.execute("INSERT OR IGNORE INTO secret VALUES (?, ?)", fresh)
            found: bytes = connection.execute("SELECT value FROM secret WHERE name = ?", (name,)).fetchone()[
                0
            ]
            return found

        return await self._read(read)

    # -- the thread ---------------------------------------------------------------------------------
    def _write(self, job: Job) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self.dropped["queue-full"] += 1

    async def _read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        answer: Future[T] = Future()

        def job(connection: sqlite3.Connection) -> None:
            if answer.done():
                return
            try:
                answer.set_result(ask(connection))
            except Exception as error:
                answer.set_exception(error)

        await asyncio.to_thread(self._jobs.put, job)
        return await asyncio.wrap_future(answer)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            ended = False
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    ended = True
                    break
                batch.append(more)
            self._commit(batch)
            if ended:
                break
        self._connection.close()

    def _commit(self, batch: list[Job]) -> None:
        """All of a batch, or, where one of it fails, each by itself."""
        try:
            with self._connection:
                for job in batch:
                    job(self._connection)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._commit([job])
                return
            self.dropped["failed"] += 1
            _log.error("store-write-failed", error=str(error))


def _connect(path: Path) -> sqlite3.Connection:
    hint = "check store path and its folder's permissions; the file can be deleted: phones register again"
    try:
        _make_private(path)
        connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise ConfigError(f"made by a newer version (schema {version})", source=str(path), hint=hint)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        for number in range(version, len(MIGRATIONS)):
            script = MIGRATIONS[number]
            connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number + 1}; COMMIT;")
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"the store cannot be used: {error}", source=str(path), hint=hint) from None
    return connection


def _make_private(path: Path) -> None:
    """Nobody but the owner reads or writes the file, or those that SQLite makes beside it with its mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _session(columns: tuple[Any, ...]) -> SessionRow:
    tsid, interface, transport, identity, method, attributes, addresses, *rest = columns
    outer, port, generation, proved = rest
    return SessionRow(
        tsid=int.from_bytes(tsid, "big"),
        interface=interface,
        transport=transport,
        identity=identity,
        method=method,
        attributes=tuple((key, value) for key, value in json.loads(attributes)),
        addresses=tuple(json.loads(addresses)),
        outer=(outer, port),
        generation=generation,
        proved=proved,
    )


def _columns(row: BindingRow) -> tuple[Any, ...]:
    """In the order of the table."""
    hop = (row.transport, *row.local, *row.remote)
    rest = (row.path, row.q, row.expires_at, row.call_id, row.sequence, row.owner)
    return (row.user, row.key, row.contact, row.params, *hop, *rest)


def _row(columns: tuple[Any, ...]) -> BindingRow:
    user, key, contact, params, transport, local, local_port, remote, remote_port, *rest = columns
    path, q, expires_at, call_id, sequence, owner = rest
    return BindingRow(
        user=user,
        key=key,
        contact=contact,
        params=params,
        transport=transport,
        local=(local, local_port),
        remote=(remote, remote_port),
        path=path,
        q=q,
        expires_at=expires_at,
        call_id=call_id,
        sequence=sequence,
        owner=owner,
    )


def _storable(value: Any) -> Any:
    """Text that came from a peer may hold what is no UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
