"""Both stores keep the same promises; the file keeps them over a restart."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from opentsm.errors import ConfigError
from opentsm.store import BindingRow, MemoryStore, SessionRow, SqliteStore, Store
from opentsm.store.sqlite import MIGRATIONS

Maker = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Maker:
    async def memory() -> Store:
        return MemoryStore(max_calls=20)

    async def sqlite() -> Store:
        return await SqliteStore.open(tmp_path / "opentsm.db", max_calls=20)

    return memory if request.param == "memory" else sqlite


def row(user: str = "alice@x", key: str = "k", expires_at: float = 1000.0) -> BindingRow:
    return BindingRow(
        user=user,
        key=key,
        contact="sip:alice@10.64.0.2",
        params=";reg-id=1",
        transport="udp",
        local=("10.64.0.1", 5060),
        remote=("10.64.0.2", 5060),
        path="<sip:edge;lr>",
        q=0.5,
        expires_at=expires_at,
        call_id="c",
        sequence=7,
        owner="alice",
    )


def call(number: int, caller: str = "alice@x") -> dict[str, Any]:
    return {
        "call_id": str(number),
        "caller": caller,
        "callee": "bob@x",
        "ended_at": float(number),
        "code": 200,
    }


async def test_bindings_are_replaced_user_by_user(make: Maker) -> None:
    store = await make()
    store.save_bindings("alice@x", [row(key="1"), row(key="2")])
    store.save_bindings("bob@x", [row("bob@x")])
    store.save_bindings("alice@x", [row(key="3"), row(key="4", expires_at=10.0)])
    assert sorted((b.user, b.key) for b in await store.bindings(100.0)) == [("alice@x", "3"), ("bob@x", "k")]
    assert row("bob@x") in await store.bindings(100.0)
    store.save_bindings("bob@x", [])
    assert [b.user for b in await store.bindings(100.0)] == ["alice@x"]
    await store.close()


async def test_calls_come_back_newest_first_and_by_user(make: Maker) -> None:
    store = await make()
    for number in range(5):
        store.add_call(call(number, "carol@x" if number == 3 else "alice@x"))
    assert [c["call_id"] for c in await store.calls(3)] == ["4", "3", "2"]
    assert [c["call_id"] for c in await store.calls(user="carol@x")] == ["3"]
    assert len(await store.calls(user="bob@x")) == 5
    await store.close()


async def test_the_oldest_calls_go(make: Maker) -> None:
    store = await make()
    for number in range(100):
        store.add_call(call(number))
    kept = await store.calls(1000)
    assert kept[0]["call_id"] == "99"
    assert 20 <= len(kept) <= 22
    await store.close()


async def test_a_secret_is_made_once(make: Maker) -> None:
    store = await make()
    first = await store.secret("a")
    assert len(first) == 32
    assert await store.secret("a") == first != await store.secret("b")
    await store.close()


async def test_a_file_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "opentsm.db"
    store = await SqliteStore.open(path)
    store.save_bindings("alice@x", [row()])
    store.add_call(call(1))
    secret = await store.secret("a")
    await store.close()
    again = await SqliteStore.open(path)
    assert await again.bindings(0.0) == [row()]
    assert await again.calls() == [call(1)]
    assert await again.secret("a") == secret
    await again.close()
    await again.close()


async def test_text_that_is_no_utf8_is_kept_as_far_as_it_goes(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "opentsm.db")
    store.save_bindings("a\udcff@x", [row("a\udcff@x")])
    store.add_call(call(1, "b\udcff@x"))
    assert len(await store.bindings(0.0)) == 1
    assert len(await store.calls()) == 1
    assert not store.dropped
    await store.close()


async def test_one_bad_write_takes_no_other_with_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "opentsm.db")
    store.save_bindings("alice@x", [row()])
    store.save_bindings("bob@x", [row("bob@x"), row("bob@x")])
    store.save_bindings("carol@x", [row("carol@x")])
    assert sorted(b.user for b in await store.bindings(0.0)) == ["alice@x", "carol@x"]
    assert store.dropped == {"failed": 1}
    await store.close()


async def test_a_file_of_the_future_or_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="newer version"):
        await SqliteStore.open(path)
    (tmp_path / "text.db").write_text("this is no database, though it is long enough to be looked at" * 20)
    with pytest.raises(ConfigError, match="cannot be used"):
        await SqliteStore.open(tmp_path / "text.db")
    with pytest.raises(ConfigError, match="cannot be used"):
        await SqliteStore.open(tmp_path / "none" / "x.db")


def session(tsid: int, generation: int = 0) -> SessionRow:
    return SessionRow(
        tsid=tsid,
        interface="access",
        transport="tls",
        identity="alice \udcff",
        method="password",
        attributes=(("address", "10.64.1.9"),),
        addresses=("10.64.1.9", "fd00::9"),
        outer=("192.0.2.7", 5000),
        generation=generation,
        proved=max(0, generation - 1),
    )


async def test_sessions_are_kept_replaced_and_forgotten(make: Maker) -> None:
    store = await make()
    store.mark_alive(1000.0)
    biggest = (1 << 64) - 2
    for row_ in (session(1), session(biggest), session(3), session(biggest, generation=4)):
        store.save_session(row_)
    store.forget_session(3)
    store.forget_session(99)
    found = {one.tsid: one for one in await store.sessions(since=900.0)}
    assert set(found) == {1, biggest}
    assert (found[biggest].generation, found[biggest].proved) == (4, 3)
    assert found[1].addresses == ("10.64.1.9", "fd00::9")
    assert found[1].attributes == (("address", "10.64.1.9"),)
    assert found[1].outer == ("192.0.2.7", 5000)
    await store.close()


async def test_sessions_nobody_hopes_for_any_more_are_forgotten(make: Maker) -> None:
    store = await make()
    store.mark_alive(1000.0)
    store.save_session(session(1))
    assert await store.sessions(since=1001.0) == []
    assert await store.sessions(since=0.0) == []
    await store.close()


async def test_a_file_of_the_version_before_gets_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    old.close()
    path.chmod(0o644)
    store = await SqliteStore.open(path)
    store.save_session(session(5))
    store.mark_alive(1.0)
    assert [one.tsid for one in await store.sessions(0.0)] == [5]
    await store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a file that others could read is closed to them"


async def test_calls_in_progress_are_kept_replaced_and_forgotten(make: Maker) -> None:
    store = await make()
    store.save_dialog("a", {"call_id": "a", "times": [1.5, None], "caller": {"aor": "al \udcff"}})
    store.save_dialog("b \udcff", {"call_id": "b"})
    store.save_dialog("a", {"call_id": "a", "code": 200})
    store.save_dialog("c", {"call_id": "c"})
    store.forget_dialog("c")
    assert sorted(one["call_id"] for one in await store.dialogs()) == ["a", "b"]
    assert {"call_id": "a", "code": 200} in await store.dialogs()
    store.forget_dialog("b \udcff")
    assert [one["call_id"] for one in await store.dialogs()] == ["a"]
    await store.close()
