"""The admin socket as somebody at the other end meets it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from opentsm.admin.backend import AdminError, Facts
from opentsm.admin.client import ask
from opentsm.admin.protocol import MAX_LINE, MAX_PAGE
from opentsm.admin.socket import MAX_CLIENTS, AdminSocket
from opentsm.errors import PlatformError


class Recorder:
    """A backend that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def facts(self) -> Facts:
        return Facts("1", 1.0, [], [], {}, {"drop_x": 2, "drop_y": 0, "rx": 5}, {"drop_x": 1})

    def status(self) -> dict[str, Any]:
        return {"version": "1"}

    def tunnels(self, *, after: int, limit: int, match: str) -> dict[str, Any]:
        self.asked.append(("tunnels", (after, limit, match)))
        return {"tunnels": [], "next": None}

    def tunnel(self, tsid: str) -> dict[str, Any]:
        raise AdminError(f"no {tsid}")

    def disconnect(self, tsid: str) -> dict[str, Any]:
        self.asked.append(("disconnect", tsid))
        return {}

    def set_log_level(self, level: str) -> dict[str, Any]:
        self.asked.append(("level", level))
        return {"level": level}

    async def reload(self) -> dict[str, Any]:
        raise RuntimeError("a bug of ours")


@pytest.fixture
async def backend() -> Recorder:
    return Recorder()


@pytest.fixture
async def path(tmp_path: Path, backend: Recorder) -> AsyncIterator[Path]:
    file = tmp_path / "run" / "admin.sock"
    admin = AdminSocket(file, backend)
    await admin.open()
    yield file
    await admin.close()
    assert not file.exists()


async def answer(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(lambda: ask(path, command, **arguments))


async def raw(path: Path, line: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    try:
        return await asyncio.wait_for(reader.readline(), 20)
    except ConnectionResetError:  # hung up on with our request unread
        return b""
    finally:
        writer.close()


async def test_only_the_owner_may_ask(path: Path) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_commands_reach_the_backend(path: Path, backend: Recorder) -> None:
    assert await answer(path, "status") == {"version": "1", "warnings": []}
    await answer(path, "tunnels", after=3, limit=10**9, match="al")
    await answer(path, "disconnect", tsid="12")
    assert await answer(path, "log-level", level="debug") == {"level": "debug"}
    assert backend.asked == [("tunnels", (3, MAX_PAGE, "al")), ("disconnect", "12"), ("level", "debug")]
    assert await answer(path, "drops") == {"drops": {"drop_x": 2}, "recent": {"drop_x": 1}}
    assert (await answer(path, "counters"))["counters"]["rx"] == 5
    assert 'opentsm_drops_total{reason="x"} 2.0' in (await answer(path, "metrics"))["text"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"hello\n", "one JSON object"),
        (b"[1]\n", "one JSON object"),
        (b"[" * 60_000 + b"\n", "one JSON object"),
        (b'{"command": "fly"}\n', "there is no command 'fly'; known: counters"),
        (b'{"command": {}}\n', "there is no command"),
        (b'{"command": "tunnels", "limit": "all"}\n', "limit is a whole number"),
        (b'{"command": "tunnels", "match": 5}\n', "match is a text"),
        (b'{"command": "tunnel"}\n', "needs tsid"),
        (b'{"command": "tunnel", "tsid": "9"}\n', "no 9"),
    ],
)
async def test_a_wrong_request_gets_a_sentence(path: Path, line: bytes, says: str) -> None:
    got = json.loads(await raw(path, line))
    assert got["ok"] is False
    assert says in got["error"]


async def test_a_line_without_end_ends_its_connection_and_no_other(path: Path) -> None:
    assert await raw(path, b"x" * (MAX_LINE * 2)) == b""
    assert await answer(path, "status")


async def test_a_request_that_breaks_us_ends_its_connection_and_no_other(path: Path) -> None:
    assert await raw(path, b'{"command": "reload"}\n') == b""
    assert await answer(path, "status")


async def test_connections_are_bounded(path: Path) -> None:
    held = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CLIENTS)]
    for reader, writer in held:
        writer.write(b'{"command": "status"}\n')
        assert await asyncio.wait_for(reader.readline(), 20)
    assert await raw(path, b'{"command": "status"}\n') == b""
    held[0][1].close()
    for _, writer in held:
        writer.close()


async def test_what_a_dead_server_left_is_replaced_and_what_a_living_one_has_is_not(
    tmp_path: Path, backend: Recorder
) -> None:
    file = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(file))
    first, second = AdminSocket(file, backend), AdminSocket(file, backend)
    await first.open()
    with pytest.raises(PlatformError, match="another server answers on"):
        await second.open()
    await second.close()
    assert await answer(file, "status"), "the first one's socket is untouched"
    await first.close()


async def test_a_place_that_cannot_be_written_is_named(backend: Recorder) -> None:
    with pytest.raises(PlatformError, match=r"cannot make the admin socket /proc/opentsm\.sock"):
        await AdminSocket(Path("/proc/opentsm.sock"), backend).open()


def test_asking_nobody_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="start one with `opentsm serve`"):
        ask(tmp_path / "none.sock", "status")
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(dead))
    with pytest.raises(PlatformError, match="is gone"):
        ask(dead, "status")
